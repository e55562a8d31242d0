//! Subprocesses of a worker: they have nothing of the worker's but what they are given, and leave no zombie in it.

use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::ExitStatus;

use nix::unistd::Pid;

use super::request_cx::RequestCx;
use super::service::WorkerCx;
use crate::proc::ExecCommand;
use crate::sys::posix_spawn::Group;
use crate::sys::subprocess::{self, NotGiven};
use crate::sys::{reaper, wait};

/// A program to start from a worker; made by [`RequestCx::command`] and [`WorkerCx::command`].
///
/// What is started holds its standard input, output and error and no other descriptor: no listener, no connection, no
/// lock, and nothing that careless code has opened. Its signals have their default actions and none is blocked. Starting
/// it costs the same from a worker of any size, and a worker with several threads may do it as well.
///
/// Standard input, output and error are the worker's own unless they are given: /dev/null to read from, and the server's
/// output and error. Those of a [`detached`](Self::detached) one are /dev/null.
///
/// ```
/// # use hatchery::server::{RequestCx, Result};
/// # fn date(cx: &RequestCx<'_>) -> Result<String> {
/// let (reader, writer) = std::io::pipe()?;
/// let mut date = cx.command("date").arg("-u").stdout(writer).spawn()?;
/// let text = std::io::read_to_string(reader)?;
/// assert!(cx.wait(&mut date)?.success());
/// # Ok(text)
/// # }
/// ```
#[derive(Debug)]
#[must_use = "nothing is started before `spawn`"]
pub struct WorkerCommand {
    program: String,
    exec: ExecCommand,
    detached: bool,
}

impl WorkerCommand {
    pub(super) fn new(program: impl AsRef<OsStr>) -> WorkerCommand {
        let program = program.as_ref();
        WorkerCommand {
            program: program.to_string_lossy().into_owned(),
            exec: ExecCommand::new(program),
            detached: false,
        }
    }

    /// Adds an argument.
    pub fn arg(self, arg: impl AsRef<OsStr>) -> WorkerCommand {
        self.with(|exec| exec.arg(arg))
    }

    /// Adds arguments.
    pub fn args<A: AsRef<OsStr>>(self, args: impl IntoIterator<Item = A>) -> WorkerCommand {
        self.with(|exec| exec.args(args))
    }

    /// Sets a variable; the others are the worker's.
    pub fn env(self, key: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> WorkerCommand {
        self.with(|exec| exec.env(key, value))
    }

    /// Removes a variable.
    pub fn env_remove(self, key: impl AsRef<OsStr>) -> WorkerCommand {
        self.with(|exec| exec.env_remove(key))
    }

    /// Starts from an empty environment; what [`env`](Self::env) has set before is gone too.
    pub fn env_clear(self) -> WorkerCommand {
        self.with(ExecCommand::env_clear)
    }

    /// The program's working directory. A path of the program that is not absolute is looked up from there.
    pub fn current_dir(self, directory: impl AsRef<Path>) -> WorkerCommand {
        self.with(|exec| exec.current_dir(directory))
    }

    /// Its standard input, such as a file or the reading end of a pipe.
    pub fn stdin(self, fd: impl Into<OwnedFd>) -> WorkerCommand {
        self.with(|exec| exec.stdin(fd))
    }

    /// Its standard output, such as a file or the writing end of a pipe.
    pub fn stdout(self, fd: impl Into<OwnedFd>) -> WorkerCommand {
        self.with(|exec| exec.stdout(fd))
    }

    /// Its standard error.
    pub fn stderr(self, fd: impl Into<OwnedFd>) -> WorkerCommand {
        self.with(|exec| exec.stderr(fd))
    }

    /// In a session of its own (setsid(2)), with /dev/null where nothing is given: no terminal's signals reach it, it does
    /// not hold the server's output or log open, and nothing of the server waits for it. A service manager may still count
    /// it to the server and end it with it, as systemd does by default (systemd.kill(5), `KillMode`).
    pub fn detached(mut self) -> WorkerCommand {
        self.detached = true;
        self
    }

    fn with(self, change: impl FnOnce(ExecCommand) -> ExecCommand) -> WorkerCommand {
        WorkerCommand { exec: change(self.exec), ..self }
    }

    /// Starts it.
    ///
    /// # Errors
    /// Those of posix_spawn(3), with the program in words: `NotFound` for a program or directory that is not there,
    /// `PermissionDenied` for what may not be executed, EAGAIN for too many processes, EMFILE for too many descriptors;
    /// `InvalidInput` for a text with a NUL in it.
    pub fn spawn(self) -> io::Result<Subprocess> {
        let (group, not_given) = match self.detached {
            true => (Group::OwnSession, NotGiven::Null),
            false => (Group::Starters, NotGiven::Inherited),
        };
        match subprocess::spawn(self.exec.into_plan(), group, not_given) {
            Ok(pid) => Ok(Subprocess { pid, status: None }),
            Err(error) => Err(io::Error::new(error.kind(), format!("cannot start {}: {error}", self.program))),
        }
    }
}

/// A subprocess of a worker.
///
/// Dropping this does not end it, nor does the end of its request or of its worker: it ends when it wants to or is
/// [killed](Self::kill), for example by [`RequestCx::on_cleanup`]. The worker takes the status of one that nobody waits
/// for as soon as it ends, so it is no zombie. For this it has a handler for SIGCHLD from the first such drop on; it leaves
/// other children of the process alone, and handlers that signal-hook has set stay in force beside it.
#[derive(Debug)]
pub struct Subprocess {
    pid: Pid,
    status: Option<ExitStatus>,
}

impl Subprocess {
    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.pid.as_raw().unsigned_abs()
    }

    /// Waits for its end, however long that takes; [`RequestCx::wait`] waits no longer than the request may take.
    ///
    /// # Errors
    /// ECHILD if other code of this process has waited for every child.
    pub fn wait(&mut self) -> io::Result<ExitStatus> {
        self.wait_while(|| Ok(()))
    }

    /// How it has ended, if it has.
    ///
    /// # Errors
    /// As for [`wait`](Self::wait).
    pub fn try_wait(&mut self) -> io::Result<Option<ExitStatus>> {
        if self.status.is_none() {
            self.status = wait::try_reap(self.pid)?.map(ExitStatus::from_raw);
        }
        Ok(self.status)
    }

    /// Sends it a signal, such as `libc::SIGTERM` (15).
    ///
    /// # Errors
    /// `NotFound` if its end has been seen: its number may be another process's by now. `InvalidInput` for a number that
    /// is no signal.
    pub fn kill(&self, signal: i32) -> io::Result<()> {
        if self.status.is_some() {
            return Err(io::Error::new(io::ErrorKind::NotFound, "the subprocess has ended"));
        }
        let signal = nix::sys::signal::Signal::try_from(signal)?;
        Ok(nix::sys::signal::kill(self.pid, signal)?)
    }

    fn wait_while(&mut self, interrupted: impl Fn() -> io::Result<()>) -> io::Result<ExitStatus> {
        loop {
            if let Some(status) = self.status {
                return Ok(status);
            }
            match wait::reap_interruptibly(self.pid) {
                Ok(status) => self.status = Some(ExitStatus::from_raw(status)),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => interrupted()?,
                Err(error) => return Err(error),
            }
        }
    }
}

impl Drop for Subprocess {
    fn drop(&mut self) {
        if self.status.is_none() {
            // It fails only where no signal can be handled at all.
            let _ = reaper::reap_in_background(self.pid);
        }
    }
}

impl RequestCx<'_> {
    /// A program to start: by its path, or by its name if PATH leads to it.
    pub fn command(&self, program: impl AsRef<OsStr>) -> WorkerCommand {
        WorkerCommand::new(program)
    }

    /// Waits for the end of a subprocess, at most until the deadline.
    ///
    /// # Errors
    /// `TimedOut` when the deadline has passed: the subprocess goes on unless it is [killed](Subprocess::kill). Else as for
    /// [`Subprocess::wait`].
    pub fn wait(&self, subprocess: &mut Subprocess) -> io::Result<ExitStatus> {
        subprocess.wait_while(|| self.in_time())
    }
}

impl WorkerCx {
    /// A program to start: by its path, or by its name if PATH leads to it.
    pub fn command(&self, program: impl AsRef<OsStr>) -> WorkerCommand {
        WorkerCommand::new(program)
    }
}
