//! Another program in place of a waiting process: a fork and exec whose cost does not depend on the master.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use super::message::{Blob, ExecMessage};
use crate::sys::exec::Plan;

/// A program to execute in a forked process, with its arguments and surroundings.
///
/// Standard input, output and error are those of the template unless they are given; every other descriptor
/// is closed. Signals have their default actions and none is blocked.
///
/// ```
/// use hatchery::proc::ExecCommand;
///
/// let (_reader, writer) = std::io::pipe()?;
/// let command = ExecCommand::new("date").arg("-u").env("LC_ALL", "C").current_dir("/").stdout(writer);
/// # let _ = command;
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Debug)]
pub struct ExecCommand {
    program: OsString,
    args: Vec<OsString>,
    clear_environment: bool,
    environment: BTreeMap<OsString, Option<OsString>>,
    directory: Option<PathBuf>,
    stdio: [Option<OwnedFd>; 3],
}

impl ExecCommand {
    /// A program by its path, or by its name if PATH leads to it (execvp(3)).
    pub fn new(program: impl AsRef<OsStr>) -> ExecCommand {
        ExecCommand {
            program: program.as_ref().to_owned(),
            args: Vec::new(),
            clear_environment: false,
            environment: BTreeMap::new(),
            directory: None,
            stdio: [None, None, None],
        }
    }

    /// Adds an argument.
    #[must_use]
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> ExecCommand {
        self.args.push(arg.as_ref().to_owned());
        self
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<A: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = A>) -> ExecCommand {
        self.args.extend(args.into_iter().map(|arg| arg.as_ref().to_owned()));
        self
    }

    /// Sets a variable; the others are the template's.
    #[must_use]
    pub fn env(mut self, key: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> ExecCommand {
        self.environment.insert(key.as_ref().to_owned(), Some(value.as_ref().to_owned()));
        self
    }

    /// Removes a variable.
    #[must_use]
    pub fn env_remove(mut self, key: impl AsRef<OsStr>) -> ExecCommand {
        self.environment.insert(key.as_ref().to_owned(), None);
        self
    }

    /// Starts from an empty environment; what [`ExecCommand::env`] has set before is gone too.
    #[must_use]
    pub fn env_clear(mut self) -> ExecCommand {
        self.clear_environment = true;
        self.environment.clear();
        self
    }

    /// The program's working directory.
    #[must_use]
    pub fn current_dir(mut self, directory: impl AsRef<Path>) -> ExecCommand {
        self.directory = Some(directory.as_ref().to_owned());
        self
    }

    /// Its standard input.
    #[must_use]
    pub fn stdin(mut self, fd: impl Into<OwnedFd>) -> ExecCommand {
        self.stdio[0] = Some(fd.into());
        self
    }

    /// Its standard output.
    #[must_use]
    pub fn stdout(mut self, fd: impl Into<OwnedFd>) -> ExecCommand {
        self.stdio[1] = Some(fd.into());
        self
    }

    /// Its standard error.
    #[must_use]
    pub fn stderr(mut self, fd: impl Into<OwnedFd>) -> ExecCommand {
        self.stdio[2] = Some(fd.into());
        self
    }

    /// What is to be done in this very process's place.
    pub(crate) fn into_plan(self) -> Plan {
        let (message, fds) = self.into_message();
        plan(message, fds.into_iter())
    }

    pub(crate) fn into_message(self) -> (ExecMessage, Vec<OwnedFd>) {
        let blob = |text: OsString| Blob::from(text.as_os_str());
        let message = ExecMessage {
            program: blob(self.program),
            args: self.args.into_iter().map(blob).collect(),
            clear_environment: self.clear_environment,
            environment: self.environment.into_iter().map(|(key, value)| (blob(key), value.map(blob))).collect(),
            directory: self.directory.map(|directory| blob(directory.into_os_string())),
            stdio: [0, 1, 2].map(|index| self.stdio[index].is_some()),
        };
        (message, self.stdio.into_iter().flatten().collect())
    }
}

/// In the process: the message, its descriptors and the process's own environment become a plan.
pub(crate) fn plan(message: ExecMessage, mut fds: impl Iterator<Item = OwnedFd>) -> Plan {
    let mut environment: BTreeMap<OsString, OsString> =
        if message.clear_environment { BTreeMap::new() } else { std::env::vars_os().collect() };
    for (key, value) in message.environment {
        let key = key.into_os_string();
        match value {
            Some(value) => drop(environment.insert(key, value.into_os_string())),
            None => drop(environment.remove(&key)),
        }
    }
    Plan {
        program: message.program.into_os_string(),
        arguments: message.args.into_iter().map(Blob::into_os_string).collect(),
        environment: environment.into_iter().collect(),
        directory: message.directory.map(|directory| PathBuf::from(directory.into_os_string())),
        stdio: message.stdio.map(|given| if given { fds.next() } else { None }),
    }
}
