//! Pools on real processes.

mod basics;
mod deaths;
pub mod example;
mod lives;
mod queues;
pub mod tasks;

use std::time::{Duration, Instant};

use libtest_mimic::Trial;

use crate::support::Outcome;

const SOON: Duration = Duration::from_secs(30);

pub fn tests() -> Vec<Trial> {
    [basics::tests(), deaths::tests(), example::tests(), lives::tests(), queues::tests()]
        .into_iter()
        .flatten()
        .collect()
}

/// Waits until it is so.
fn eventually(what: &str, mut is_so: impl FnMut() -> bool) -> Outcome {
    let deadline = Instant::now() + SOON;
    while !is_so() {
        if Instant::now() > deadline {
            return Err(format!("it never comes that {what}").into());
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

/// Whether there is such a process, be it a zombie.
fn exists(pid: i32) -> bool {
    std::path::Path::new(&format!("/proc/{pid}")).exists()
}
