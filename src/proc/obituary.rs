//! The last words of a process, left for the process that forked it.
//!
//! All children of a process share one message socket. A message is written whole before its writer ends, so
//! its parent finds it there when it reaps the child; a child that is killed while it writes harms nobody.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::channel::{self, Packet, Received};
use super::failure::Failure;
use super::message::Obituary;
use crate::sys::seqpacket;

/// Leaves why this process ends.
pub(crate) fn leave(parent: BorrowedFd<'_>, failure: Failure) {
    let pid = nix::unistd::getpid().as_raw();
    let obituary = Obituary { pid, failure: failure.shortened() };
    // If the parent is gone or its queue is full there is nobody to tell: the exit code must do.
    let _ = Packet::encode(&obituary).and_then(|packet| packet.send(parent, &[]));
}

/// The parent's side.
pub(crate) struct Obituaries {
    read: OwnedFd,
    write: OwnedFd,
}

impl Obituaries {
    pub(crate) fn new() -> io::Result<Obituaries> {
        let (read, write) = seqpacket::pair()?;
        Ok(Obituaries { read, write })
    }

    /// In a new child, which has inherited both ends: closes the parent's.
    pub(crate) fn into_childs_end(self) -> OwnedFd {
        self.write
    }

    /// All that was left so far.
    pub(crate) fn collect(&self) -> Vec<Obituary> {
        let mut buffer = Vec::new();
        let mut found = Vec::new();
        loop {
            match channel::receive(self.read.as_fd(), &mut buffer) {
                Ok(Received::Message { message, .. }) => found.push(message),
                // A child's nonsense is no reason to lose another's words.
                Err(error) if error.kind() == io::ErrorKind::InvalidData => {}
                Ok(Received::Empty | Received::Eof) | Err(_) => return found,
            }
        }
    }
}
