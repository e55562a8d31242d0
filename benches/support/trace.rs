//! System calls of a server's workers, counted by strace.

use std::fs;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use super::machine::field;
use super::process::Started;
use super::{Result, Server, find, interrupt};

const PATIENCE: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(5);

/// A count under way, of all workers of a server.
pub struct Count {
    strace: Started,
    folder: TempDir,
}

impl Count {
    /// Counts these calls from now on. It slows the workers down a lot.
    ///
    /// # Errors
    /// strace is not installed, or may not trace other processes here.
    pub fn begin(server: &Server, calls: &[&str]) -> Result<Count> {
        let folder = TempDir::new()?;
        let mut command = Command::new(find("strace", "strace")?);
        command.args(["-c", "-U", "calls,name", "-e", &format!("trace={}", calls.join(",")), "-o"]);
        command.arg(folder.path().join("counts"));
        let workers = server.workers();
        for worker in &workers {
            command.args(["-p", &worker.pid.to_string()]);
        }
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut count = Count { strace: Started::new(&mut command)?, folder };
        let deadline = Instant::now() + PATIENCE;
        while !workers.iter().all(|worker| is_traced(worker.pid)) {
            interrupt::check()?;
            if let Some(status) = count.strace.child().try_wait()? {
                return Err(format!("strace cannot trace the workers: it ended with {status}").into());
            }
            if Instant::now() > deadline {
                return Err("strace does not come to trace the workers".into());
            }
            sleep(POLL);
        }
        Ok(count)
    }

    /// Ends the count and gives how often each of these calls was made.
    pub fn end(mut self, calls: &[&str]) -> Result<Vec<f64>> {
        kill(Pid::from_raw(self.strace.child().id().cast_signed()), Signal::SIGINT)?;
        self.strace.child().wait()?;
        let text = fs::read_to_string(self.folder.path().join("counts"))?;
        Ok(calls.iter().map(|call| of_call(&text, call)).collect())
    }
}

fn is_traced(pid: u32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    field(&status, "TracerPid").is_some_and(|tracer| tracer != "0")
}

/// A call that was never made has no line.
fn of_call(text: &str, call: &str) -> f64 {
    let lines = text.lines().filter_map(|line| line.trim().split_once(' '));
    lines.filter(|(_, name)| name.trim() == call).filter_map(|(calls, _)| calls.parse::<f64>().ok()).sum()
}
