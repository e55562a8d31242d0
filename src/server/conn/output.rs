//! Bytes written and not yet sent.

use std::os::fd::BorrowedFd;

use nix::errno::Errno;

use crate::sys::stream;

/// With more than this unsent, a write sends.
pub(super) const MUCH: usize = 16 * 1024;

/// With more than this unsent, an answer that is made piece by piece waits for its client.
pub(super) const ROOM: usize = 64 * 1024;

/// No more than this is kept; a write that finds so much unsent waits.
pub(super) const MOST: usize = 1024 * 1024;

/// A buffer that is filled at its end and sent from its start.
#[derive(Debug, Default)]
pub(super) struct Output {
    unsent: Vec<u8>,
    /// So much at the front answers earlier requests.
    earlier: usize,
    /// So much was unsent when the socket took no more; zero: it has taken all.
    refused_at: usize,
}

impl Output {
    pub(super) fn len(&self) -> usize {
        self.unsent.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.unsent.is_empty()
    }

    /// Whether so many bytes can be added before it is time to send. What the socket has refused it is not asked to take
    /// again for each few bytes.
    pub(super) fn has_room_for(&self, count: usize) -> bool {
        self.unsent.len() + count <= (self.refused_at + MUCH).min(MOST)
    }

    /// Adds bytes.
    pub(super) fn append(&mut self, bytes: &[u8]) {
        self.unsent.extend_from_slice(bytes);
    }

    /// Adds as many of the bytes as there may be, and gives their number.
    pub(super) fn append_some(&mut self, bytes: &[u8]) -> usize {
        let count = bytes.len().min(MOST.saturating_sub(self.unsent.len()));
        self.append(&bytes[..count]);
        count
    }

    /// Sends what the socket takes, and tells whether that was all.
    pub(super) fn send(&mut self, socket: BorrowedFd<'_>) -> Result<bool, Errno> {
        let mut sent = 0;
        let result = loop {
            if sent == self.unsent.len() {
                break Ok(true);
            }
            match stream::send(socket, &self.unsent[sent..]) {
                Ok(count) => sent += count,
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => break Ok(false),
                Err(error) => break Err(error),
            }
        };
        self.unsent.drain(..sent);
        self.earlier = self.earlier.saturating_sub(sent);
        self.refused_at = self.unsent.len();
        result
    }

    /// What there is now answers earlier requests.
    pub(super) fn begin_response(&mut self) {
        self.earlier = self.unsent.len();
    }

    /// All that is unsent, if it answers earlier requests alone.
    pub(super) fn earlier_alone(&self) -> Option<&[u8]> {
        (self.unsent.len() == self.earlier).then_some(&self.unsent)
    }

    /// Drops what is unsent of the response in hand.
    pub(super) fn forget_response(&mut self) {
        self.unsent.truncate(self.earlier);
    }

    /// Takes the memory of `spare`, if it has none of its own.
    pub(super) fn unpack_into(&mut self, spare: &mut Self) {
        if self.unsent.capacity() == 0 {
            std::mem::swap(&mut self.unsent, &mut spare.unsent);
        }
    }

    /// Gives the memory to `spare`, or keeps what the unsent bytes need.
    pub(super) fn pack_from(&mut self, spare: &mut Self) {
        if !self.is_empty() {
            self.unsent.shrink_to_fit();
        } else if self.unsent.capacity() <= 4 * MUCH {
            spare.unsent = std::mem::take(&mut self.unsent);
        } else {
            self.unsent = Vec::new();
        }
    }

    /// How much memory it holds.
    #[cfg(test)]
    pub(super) fn capacity(&self) -> usize {
        self.unsent.capacity()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn what_the_socket_refuses_is_kept_up_to_a_mebibyte_and_not_offered_for_each_byte() {
        let (served, mut client) = UnixStream::pair().unwrap();
        served.set_nonblocking(true).unwrap();
        let mut output = Output::default();
        let mut written = 0;
        while output.has_room_for(1) || output.send(served.as_fd()).unwrap() {
            output.append(b"x");
            written += 1;
        }
        let refused = output.len();
        assert!(output.has_room_for(MUCH) && !output.has_room_for(MUCH + 1));
        written += output.append_some(&vec![b'x'; 2 * MOST]);
        assert_eq!(output.len(), MOST);
        assert_eq!(output.append_some(b"x"), 0);
        assert!(!output.has_room_for(1) && refused < MOST);

        let mut received = 0;
        let mut buffer = [0; 65536];
        while !output.send(served.as_fd()).unwrap() {
            received += client.read(&mut buffer).unwrap();
        }
        drop(served);
        loop {
            match client.read(&mut buffer).unwrap() {
                0 => break,
                count => received += count,
            }
        }
        assert_eq!(received, written);
        assert!(output.has_room_for(MUCH));
    }
}
