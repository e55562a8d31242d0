//! Copies of programs, to be started.

use std::path::Path;
use std::process::Command;

/// Copies a program. Another process writes the copy: a descriptor of ours that is open for writing would be inherited by
/// the children that other tests start at the same time, and exec(2) refuses a program that somebody can write (ETXTBSY).
pub fn copy_program(program: impl AsRef<Path>, copy: impl AsRef<Path>) {
    let copied = Command::new("cp").args([program.as_ref(), copy.as_ref()]).status().expect("cp can be started");
    assert!(copied.success());
}
