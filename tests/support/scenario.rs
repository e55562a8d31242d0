//! Scenarios that need a process of their own: this test binary once more, told by its environment what to do.
//!
//! A scenario runs in `main`, before any thread exists, and says by its exit code and standard output how it went.

use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};

use nix::unistd::alarm;

use super::{Outcome, words_of};

/// The variable that names the scenario.
const SWITCH: &str = "HATCHERY_SCENARIO";

/// A scenario's name and what it does.
pub type Scenario = (&'static str, fn() -> Outcome);

/// After so many seconds SIGALRM ends a scenario that hangs.
const LIMIT_SECONDS: u32 = 90;

/// The scenario that this process is to run.
pub fn asked() -> Option<String> {
    std::env::var(SWITCH).ok()
}

/// Runs the scenario that was asked for.
pub fn run(name: &str, scenarios: &[Scenario]) -> ExitCode {
    alarm::set(LIMIT_SECONDS);
    let Some((_, scenario)) = scenarios.iter().find(|(known, _)| *known == name) else {
        eprintln!("there is no scenario {name:?}");
        return ExitCode::from(2);
    };
    match scenario() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{name}: {}", words_of(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}

/// This binary, to run a scenario.
pub fn command(name: &str) -> io::Result<Command> {
    Ok(command_of(&std::env::current_exe()?, name))
}

/// A copy of this binary, to run a scenario.
pub fn command_of(program: &Path, name: &str) -> Command {
    let mut command = Command::new(program);
    command.env(SWITCH, name).stdin(Stdio::null());
    command
}

/// Runs a scenario to its end, which must be good; what it printed comes back.
pub fn pass(name: &str) -> Result<String, Box<dyn std::error::Error>> {
    finish(&mut command(name)?)
}

/// Runs a prepared scenario to its end, which must be good; what it printed comes back.
pub fn finish(command: &mut Command) -> Result<String, Box<dyn std::error::Error>> {
    let output = command.output()?;
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        return Ok(printed);
    }
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    Err(format!("{}: {printed}{said}", output.status).into())
}

/// A scenario under way; it is killed when this is dropped.
pub struct Started(pub Child);

/// Starts a scenario with pipes at both its standard ends, as the leader of a process group.
pub fn start(name: &str) -> io::Result<Started> {
    let mut command = command(name)?;
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).process_group(0);
    Ok(Started(command.spawn()?))
}

impl Drop for Started {
    fn drop(&mut self) {
        // It may have ended by itself, which is as good.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
