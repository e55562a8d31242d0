//! The example of a progress bar does what it is an example of.

#[path = "../examples/progress.rs"]
#[allow(dead_code, reason = "its main is this program's")]
mod example;

use std::io::{self, Write};
use std::sync::{Arc, Mutex, PoisonError};

use libtest_mimic::Trial;

pub use self::example::register;
use crate::support::{Outcome, test};

pub fn tests() -> Vec<Trial> {
    vec![test("the_example_of_a_progress_bar_draws_every_step_before_the_result", bar)]
}

#[derive(Clone, Default)]
struct Screen(Arc<Mutex<Vec<u8>>>);

impl Write for Screen {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn bar() -> Outcome {
    let screen = Screen::default();
    assert_eq!(example::run(10_000, screen.clone())?, 1229);
    let drawn = String::from_utf8(screen.0.lock().unwrap_or_else(PoisonError::into_inner).clone())?;
    let expected: String =
        (1..=20).map(|n| format!("\r{}{} {:3} %", "█".repeat(n), "·".repeat(20 - n), 5 * n)).collect();
    assert_eq!(drawn, expected);
    Ok(())
}
