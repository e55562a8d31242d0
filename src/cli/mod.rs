//! The `hatchery` command.

use std::process::ExitCode;

/// Runs the `hatchery` command on this process's arguments.
pub fn main() -> ExitCode {
    ExitCode::SUCCESS
}
