//! What a process has to report to its master: gathered into letters, and kept until the socket takes them.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};

use nix::libc;

use super::channel::Packet;
use super::message::{Frame, Report};

/// Reports that make one letter: however long the words in them are, it needs no memory file.
const TOGETHER: usize = 7;

#[derive(Default)]
pub(crate) struct Reports {
    /// What goes with the next letter, and its descriptors in order.
    gathered: Frame<Report>,
    fds: Vec<OwnedFd>,
    letters: VecDeque<(Packet, Vec<OwnedFd>)>,
    /// Too many descriptors of this user are on their way (unix(7), ETOOMANYREFS); no readiness tells when that ends.
    limited: bool,
}

impl Reports {
    pub(crate) fn add(&mut self, report: Report, fd: Option<OwnedFd>) -> io::Result<()> {
        self.gathered.push(report);
        self.fds.extend(fd);
        if self.gathered.len() == TOGETHER { self.close_letter() } else { Ok(()) }
    }

    /// What comes next goes with another letter.
    pub(crate) fn close_letter(&mut self) -> io::Result<()> {
        if !self.gathered.is_empty() {
            let packet = Packet::encode(&self.gathered)?;
            self.gathered.clear();
            self.letters.push_back((packet, std::mem::take(&mut self.fds)));
        }
        Ok(())
    }

    /// Sends what the socket takes.
    pub(crate) fn send(&mut self, socket: BorrowedFd<'_>) -> io::Result<()> {
        self.close_letter()?;
        self.limited = false;
        while let Some((packet, fds)) = self.letters.front() {
            let raw: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
            match packet.send(socket, &raw) {
                Ok(true) => drop(self.letters.pop_front()),
                Ok(false) => break,
                // The master is gone: what it has queued for us is still carried out, and then comes the end.
                Err(error) if is_gone(&error) => self.letters.clear(),
                Err(error) if error.raw_os_error() == Some(libc::ETOOMANYREFS) => {
                    self.limited = true;
                    break;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// In a new child: these are its parent's.
    pub(crate) fn leave_to_parent(&mut self) {
        // Writing to what is empty would copy the page in which it lies, for nothing.
        if !self.is_empty() || self.limited {
            *self = Reports::default();
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.gathered.is_empty() && self.letters.is_empty()
    }

    /// Whether sending must be tried again though no readiness tells when.
    pub(crate) fn is_limited(&self) -> bool {
        self.limited
    }
}

fn is_gone(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset)
}
