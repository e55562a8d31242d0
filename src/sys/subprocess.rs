//! A program started from a worker that has nothing of the worker's but what it is given.

use std::io;
use std::os::fd::AsRawFd;

use nix::unistd::Pid;

use super::descriptors;
use super::exec::Plan;
use super::posix_spawn::{self, Attributes, FileActions, Group, Program};

/// What becomes of standard input, output or error that the plan does not give.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NotGiven {
    /// It is this process's own.
    Inherited,
    /// It is /dev/null.
    Null,
}

/// Starts it; descriptors but the standard three, signal actions and mask are not inherited.
pub(crate) fn spawn(plan: Plan, group: Group, not_given: NotGiven) -> io::Result<Pid> {
    let mut actions = FileActions::new()?;
    if let Some(directory) = &plan.directory {
        actions.change_directory(directory)?;
    }
    let strings = plan.strings()?;
    // They stay open until the program has them.
    let given = plan
        .stdio
        .into_iter()
        .map(|fd| fd.map(descriptors::duplicate_above_redirected).transpose())
        .collect::<io::Result<Vec<_>>>()?;
    for (at, given) in (0..).zip(&given) {
        match (given, not_given) {
            (Some(fd), _) => actions.duplicate(fd.as_raw_fd(), at)?,
            (None, NotGiven::Null) => actions.open_null(at, if at == 0 { libc::O_RDONLY } else { libc::O_WRONLY })?,
            (None, NotGiven::Inherited) => {}
        }
    }
    actions.close_beyond_standard()?;
    let program = Program { file: &strings.program, arguments: &strings.arguments, environment: &strings.environment };
    posix_spawn::spawn(&program, &actions, &Attributes::new(group)?)
}
