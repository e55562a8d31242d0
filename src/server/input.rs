//! Bytes received and not yet consumed.

use std::io;
use std::mem;
use std::os::fd::BorrowedFd;

use nix::errno::Errno;

use crate::sys::stream;

/// What a buffer holds at first; a request's head nearly always fits.
const FIRST: usize = 16 * 1024;

/// Up to so many unconsumed bytes are moved out of the worker's buffer, and back into it.
const PACKED: usize = 2048;

/// A service that consumes nothing gets no more than this of a request.
pub(super) const MOST: usize = 1024 * 1024;

/// A buffer that is filled at its end and consumed at its start. It takes no memory until it is
/// first filled, and can be handed from one connection to the next when it is empty.
#[derive(Debug, Default)]
pub(super) struct Input {
    /// All of it is initialised, so that filling needs no `unsafe`; `start..end` is unconsumed.
    space: Vec<u8>,
    start: usize,
    end: usize,
}

impl Input {
    pub(super) fn bytes(&self) -> &[u8] {
        &self.space[self.start..self.end]
    }

    pub(super) fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// Forgets the first `count` bytes.
    ///
    /// # Panics
    /// If there are fewer.
    pub(super) fn consume(&mut self, count: usize) {
        assert!(count <= self.end - self.start, "consumed more than there is");
        self.start += count;
        if self.is_empty() {
            (self.start, self.end) = (0, 0);
        }
    }

    /// Receives once, without waiting. Zero is the peer's end.
    pub(super) fn receive(&mut self, socket: BorrowedFd<'_>) -> io::Result<usize> {
        self.make_room()?;
        loop {
            match stream::receive(socket, &mut self.space[self.end..]) {
                Ok(count) => {
                    self.end += count;
                    return Ok(count);
                }
                Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Goes on with the bytes of `self`, in the memory of `spare`.
    pub(super) fn unpack_into(&mut self, spare: &mut Self) {
        if self.end > PACKED || spare.space.is_empty() {
            return;
        }
        spare.space[..self.end].copy_from_slice(&self.space[..self.end]);
        (spare.start, spare.end) = (self.start, self.end);
        *self = mem::take(spare);
    }

    /// Gives the memory to `spare`, and keeps what the unconsumed bytes need. Much of them, and
    /// much memory for them, stays as it is.
    pub(super) fn pack_from(&mut self, spare: &mut Self) {
        if self.bytes().len() > PACKED {
            return;
        }
        let kept = Self { space: self.bytes().to_vec(), start: 0, end: self.bytes().len() };
        let given = mem::replace(self, kept);
        if given.space.len() == FIRST {
            *spare = Self { start: 0, end: 0, ..given };
        }
    }

    /// How much memory it holds.
    #[cfg(test)]
    pub(super) fn capacity(&self) -> usize {
        self.space.capacity()
    }

    fn make_room(&mut self) -> io::Result<()> {
        if self.end < self.space.len() {
            return Ok(());
        }
        if self.start > 0 {
            self.space.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
            return Ok(());
        }
        if self.space.len() >= MOST {
            return Err(io::Error::new(
                io::ErrorKind::FileTooLarge,
                format!("received {MOST} bytes of which the service consumed none"),
            ));
        }
        self.space.resize((self.space.len() * 2).max(FIRST), 0);
        Ok(())
    }
}
