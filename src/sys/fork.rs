//! `fork(2)`, only for a process with exactly one thread, with all signals blocked across it.

use std::io;
use std::os::fd::OwnedFd;

use nix::sys::signal::Signal;
use nix::unistd::{ForkResult, Pid};

use super::{pidfd, signals, threads, wait};

/// Which side of the fork returned.
pub(crate) enum Fork {
    /// The process that forked, with the child's process id.
    Parent(Pid),
    /// The new process, with the conversation. **All signals are blocked**: the caller unblocks them when it is in order.
    Child(OwnedFd),
}

/// Why there was no fork.
#[derive(Debug)]
pub(crate) enum Refused {
    /// This process has more than one thread; their names.
    Threads(Vec<String>),
    /// The kernel said no: EAGAIN (a limit on processes), ENOMEM.
    Os(io::Error),
}

impl From<io::Error> for Refused {
    fn from(error: io::Error) -> Self {
        Refused::Os(error)
    }
}

/// Forks this process if it has exactly one thread. The conversation is the child's.
///
/// The caller has flushed what the program keeps in buffers: the child would write it once more.
pub(crate) fn fork(conversation: OwnedFd) -> Result<Fork, Refused> {
    if threads::count()? != 1 {
        return Err(Refused::Threads(threads::names_of_others()));
    }
    let mask = signals::block_all()?;
    // SAFETY: this process has one thread (counted above; nobody but it could start another), so every
    // lock of the child is in a defined state and the child may run any code.
    let forked = unsafe { nix::unistd::fork() };
    match forked {
        Ok(ForkResult::Child) => Ok(Fork::Child(conversation)),
        Ok(ForkResult::Parent { child }) => {
            // Closed before a pidfd is opened, so that there is room for it even in a full descriptor table.
            drop(conversation);
            signals::restore(&mask)?;
            Ok(Fork::Parent(child))
        }
        Err(errno) => {
            signals::restore(&mask)?;
            Err(Refused::Os(errno.into()))
        }
    }
}

/// A descriptor of a child, immune to the pid's reuse. Without one the child is ended.
pub(crate) fn supervise(child: Pid) -> io::Result<OwnedFd> {
    pidfd::open(child).inspect_err(|_| undo(child))
}

/// Ends a child for which no pidfd could be had: nobody could supervise it.
pub(crate) fn undo(child: Pid) {
    // The pid is still ours: the child has not been reaped.
    let _ = nix::sys::signal::kill(child, Signal::SIGKILL);
    let _ = wait::reap(child);
}
