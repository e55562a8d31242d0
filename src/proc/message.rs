//! What a master and its waiting processes say to each other.
//!
//! A datagram holds one [`Frame`]: several commands in their order, or several reports. A process answers only what asks for
//! an answer (`Fork`, `Sync`, `Identify`, `Run` with `announce`); it reports by itself only the ends of its
//! children. A command that fails makes the process skip what follows until the next `Sync`, which tells
//! the failure and clears it: so instructions can be sent without waiting, and none is carried out on top of
//! a failed one.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

use serde::{Deserialize, Serialize};

use super::exit::Exit;
use super::failure::Failure;

/// Numbers a master gives to its forks and syncs, each within one process's conversation.
pub(crate) type Ticket = u32;

/// Commands, or reports, that travel together, with their descriptors in order.
pub(crate) type Frame<T> = Vec<T>;

/// From the master to a waiting process.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Command {
    /// Keep these arguments and that many descriptors for a later `Call` or `Run`.
    Give { args: Vec<Blob>, fds: u32 },
    /// Run the entry point inside the waiting process.
    Call { name: String, args: Vec<Blob> },
    /// Load a shared object's entry points.
    Load { path: Blob },
    /// Fork; the child's conversation is the next descriptor.
    Fork { ticket: Ticket },
    /// Let the entry point take the process over.
    Run { name: String, announce: bool },
    /// Become another program.
    Exec(Box<ExecMessage>),
    /// Tell the births of these children once more: their pidfds were lost on their way.
    Retell { tickets: Vec<Ticket> },
    /// Kill these children: their pidfds were lost for good, so nobody could supervise them.
    Kill { tickets: Vec<Ticket> },
    /// Say how everything up to here went.
    Sync { ticket: Ticket },
    /// Say who you are.
    Identify,
}

/// The program that a process is to become.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ExecMessage {
    pub(crate) program: Blob,
    pub(crate) args: Vec<Blob>,
    pub(crate) clear_environment: bool,
    /// Variables to set, or to remove.
    pub(crate) environment: Vec<(Blob, Option<Blob>)>,
    pub(crate) directory: Option<Blob>,
    /// Which of the standard three come as descriptors with this command.
    pub(crate) stdio: [bool; 3],
}

/// From a waiting process to its master.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Report {
    /// The child of that ticket exists; a pidfd comes along.
    Forked { ticket: Ticket, pid: i32 },
    /// The child of that ticket has existed, has ended and is reaped.
    Lived { ticket: Ticket, pid: i32, exit: Exit },
    /// There is no child for that ticket.
    ForkFailed { ticket: Ticket, failure: Failure },
    /// The child of that ticket has ended and is reaped.
    Exited { ticket: Ticket, exit: Exit },
    /// All commands before that sync went so.
    Synced { ticket: Ticket, outcome: Result<(), Failure> },
    /// The answer to `Identify`; a pidfd comes along.
    Identity { pid: i32 },
    /// The entry point takes over: what follows on this socket is the user's.
    TakenOver,
}

/// What a dying process leaves for its parent to report.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Obituary {
    pub(crate) pid: i32,
    pub(crate) failure: Failure,
}

/// Any bytes, written as one run instead of number by number.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Blob(#[serde(with = "serde_bytes")] pub(crate) Vec<u8>);

impl Blob {
    pub(crate) fn into_os_string(self) -> OsString {
        OsString::from_vec(self.0)
    }
}

impl From<&std::ffi::OsStr> for Blob {
    fn from(text: &std::ffi::OsStr) -> Blob {
        use std::os::unix::ffi::OsStrExt;
        Blob(text.as_bytes().to_vec())
    }
}
