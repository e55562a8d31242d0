//! What can go wrong in the master when it deals with its processes.

use std::io;
use std::sync::Arc;

use super::exit::Exit;
use super::failure::Failure;
use crate::sys::kernel::KernelTooOld;

/// An operation on a process failed.
///
/// The error can be cloned, because several callers may wait for the same thing.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// `hatchery::init` was not called in this program. Call it first in `main`: the template is this same
    /// program, and without that call it would be one more master instead of a template.
    #[error("cannot spawn a template: hatchery::init was not called; call it first in main")]
    NotInitialised,
    /// The kernel is older than Linux 5.10.
    #[error(transparent)]
    Kernel(#[from] KernelTooOld),
    /// The template could not be started. ENOENT: the executable is gone. EAGAIN: a limit on processes. ENOMEM.
    #[error("cannot spawn a template of {program}")]
    Spawn {
        /// The executable.
        program: String,
        /// What the kernel says.
        #[source]
        source: Arc<io::Error>,
    },
    /// The calling program has more than one thread, so no early template can be forked from it. Do it
    /// before the first thread is started, or use [`Template::spawn`](super::Template::spawn).
    #[error("cannot fork an early template: this program has more than one thread ({})", names.join(", "))]
    Threads {
        /// The names of the threads beside the main one.
        names: Vec<String>,
    },
    /// There is no descriptor left in this process (EMFILE) or on this machine (ENFILE); a fork has waited half a second
    /// for one. Raise RLIMIT_NOFILE, or hold fewer processes at a time: each needs two.
    #[error("cannot {operation}: no descriptor is left")]
    DescriptorsExhausted {
        /// What the descriptor was needed for.
        operation: &'static str,
        /// What the kernel says.
        #[source]
        source: Arc<io::Error>,
    },
    /// Another system call failed.
    #[error("cannot {operation}")]
    System {
        /// What was tried.
        operation: &'static str,
        /// What the kernel says.
        #[source]
        source: Arc<io::Error>,
    },
    /// Something failed inside the process.
    #[error(transparent)]
    Inside(#[from] Failure),
    /// The process has ended before it could do what was asked of it.
    #[error("cannot {operation}: the process has ended{}", exit.as_ref().map(|exit| format!(" ({exit})")).unwrap_or_default())]
    Gone {
        /// What was asked.
        operation: &'static str,
        /// How it ended, if that is known.
        exit: Option<Box<Exit>>,
    },
    /// The time that the caller gave has passed.
    #[error("cannot {operation} in time")]
    TimedOut {
        /// What was waited for.
        operation: &'static str,
    },
    /// The socket was taken from the handle before.
    #[error("cannot {operation}: the socket was already taken")]
    SocketTaken {
        /// What was asked.
        operation: &'static str,
    },
}

impl Error {
    /// Tells exhausted descriptors apart from everything else that the kernel refuses.
    pub(crate) fn system(operation: &'static str, source: io::Error) -> Error {
        let exhausted = matches!(source.raw_os_error(), Some(nix::libc::EMFILE | nix::libc::ENFILE));
        let source = Arc::new(source);
        if exhausted { Error::DescriptorsExhausted { operation, source } } else { Error::System { operation, source } }
    }
}
