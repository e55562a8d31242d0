//! The frame of a bench: its options, what it prints first, its exit code.

use std::process::ExitCode;

use super::{Result, interrupt, machine_line};

/// What the command line asks for.
#[derive(Clone, Copy)]
pub struct Options {
    quick: bool,
}

impl Options {
    /// Rounds of which the median is taken.
    pub fn rounds(self) -> usize {
        self.pick(5, 3)
    }

    /// `full` as a rule, `quick` in a run with `--quick`.
    pub fn pick<T>(self, full: T, quick: T) -> T {
        if self.quick { quick } else { full }
    }
}

/// Runs `bench`, unless this is not a bench run at all: `cargo test --all-targets` starts the bench
/// programs too, without the `--bench` that `cargo bench` adds, and must not take minutes.
pub fn run(bench: fn(Options) -> Result<()>) -> ExitCode {
    let mut options = Options { quick: false };
    let mut asked_for = false;
    for argument in std::env::args().skip(1) {
        match argument.as_str() {
            "--bench" => asked_for = true,
            "--quick" => options.quick = true,
            other => {
                eprintln!("unknown argument {other:?}: --quick is the only one there is");
                return ExitCode::from(2);
            }
        }
    }
    if !asked_for {
        println!("a benchmark: run it with `cargo bench`");
        return ExitCode::SUCCESS;
    }
    println!("{}\n", machine_line());
    match interrupt::watch().and_then(|()| bench(options)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}
