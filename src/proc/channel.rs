//! Typed messages over a message socket, with descriptors.
//!
//! A [`Channel<Out, In>`] on one side is a `Channel<In, Out>` on the other: sending the wrong thing does not
//! compile. A message travels in one datagram, or, if it is large, as a sealed memory file whose descriptor
//! travels in one datagram.

use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::sys::{memfd, seqpacket};

/// The longest message that is received: 4 GiB − 1.
const LIMIT: u64 = u32::MAX as u64;

/// The first byte of a datagram: the message follows.
const INLINE: u8 = 0;
/// The first byte of a datagram: the message is in the memory file that is its last descriptor.
const IN_FILE: u8 = 1;

/// A conversation of typed messages over a `SOCK_SEQPACKET` socket.
///
/// ```
/// # fn main() -> std::io::Result<()> {
/// use hatchery::proc::{Channel, Received};
///
/// let (master, worker) = Channel::<u32, String>::pair()?;
/// master.send(&7, &[])?;
/// let Received::Message { message, .. } = worker.recv()? else { panic!("the other end is open") };
/// assert_eq!(message, 7);
/// worker.send(&"seven".to_owned(), &[])?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Channel<Out, In> {
    socket: OwnedFd,
    /// The longest message that is received, in bytes.
    limit: u64,
    types: PhantomData<fn(Out) -> In>,
}

/// What a channel had to give.
#[derive(Debug)]
#[non_exhaustive]
pub enum Received<In> {
    /// A message and the descriptors that came with it, all CLOEXEC.
    Message {
        /// The message.
        message: In,
        /// Its descriptors, in the order in which they were sent.
        fds: Vec<OwnedFd>,
        /// Some descriptors could not be received, because this process's descriptor table is full.
        lost_descriptors: bool,
    },
    /// Nothing has arrived yet.
    Empty,
    /// The other end is closed, and everything it sent has been received.
    Eof,
}

impl<Out: Serialize, In: DeserializeOwned> Channel<Out, In> {
    /// The two ends of a new conversation.
    ///
    /// # Errors
    /// Those of socketpair(2): EMFILE and ENFILE if there is no descriptor left.
    pub fn pair() -> io::Result<(Channel<Out, In>, Channel<In, Out>)> {
        let (here, there) = seqpacket::pair()?;
        Ok((Channel::new(here), Channel { socket: there, limit: LIMIT, types: PhantomData }))
    }

    /// A conversation over a socket from elsewhere; it must be of the type `SOCK_SEQPACKET`.
    pub fn new(socket: OwnedFd) -> Channel<Out, In> {
        Channel { socket, limit: LIMIT, types: PhantomData }
    }

    /// Sets the longest message that is received, in bytes; 4 GiB − 1 if nothing is set. Nothing is allocated for a longer one.
    /// Up to 64 KiB come in any case.
    pub fn max_message(mut self, bytes: u32) -> Channel<Out, In> {
        self.limit = bytes.into();
        self
    }

    /// Sends a message with descriptors; waits while the other end's queue is full.
    ///
    /// # Errors
    /// EPIPE or ECONNRESET if the other end is closed; EMFILE if a large message finds no descriptor for its memory file.
    pub fn send(&self, message: &Out, fds: &[OwnedFd]) -> io::Result<()> {
        let packet = Packet::encode(message)?;
        while !self.send_now(&packet, fds)? {
            wait(self.as_fd(), PollFlags::POLLOUT)?;
        }
        Ok(())
    }

    /// Sends a message with descriptors if the queue has room for it now; says whether it did.
    ///
    /// # Errors
    /// As [`Channel::send`].
    pub fn try_send(&self, message: &Out, fds: &[OwnedFd]) -> io::Result<bool> {
        self.send_now(&Packet::encode(message)?, fds)
    }

    fn send_now(&self, packet: &Packet, fds: &[OwnedFd]) -> io::Result<bool> {
        let raw: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
        packet.send(self.as_fd(), &raw)
    }

    /// Receives a message; waits for one.
    ///
    /// # Errors
    /// As [`Channel::try_recv`].
    pub fn recv(&self) -> io::Result<Received<In>> {
        loop {
            match self.try_recv()? {
                Received::Empty => wait(self.as_fd(), PollFlags::POLLIN)?,
                received => return Ok(received),
            }
        }
    }

    /// Receives a message if one has arrived.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidData`] if what arrived is not a message of the type `In`, or longer than
    /// [`max_message`](Self::max_message); the conversation goes on with the next one.
    pub fn try_recv(&self) -> io::Result<Received<In>> {
        receive_within(self.limit, self.as_fd(), &mut Vec::new())
    }
}

impl<Out, In> Channel<Out, In> {
    /// Ends the typed conversation; the socket remains.
    pub fn into_fd(self) -> OwnedFd {
        self.socket
    }
}

impl<Out, In> AsFd for Channel<Out, In> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Waits until the socket is ready, however often a signal interrupts.
fn wait(socket: BorrowedFd<'_>, events: PollFlags) -> io::Result<()> {
    loop {
        match poll(&mut [PollFd::new(socket, events)], PollTimeout::NONE) {
            Ok(_) => return Ok(()),
            Err(nix::Error::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// Receives one message into a buffer that is kept from call to call.
pub(crate) fn receive<In: DeserializeOwned>(socket: BorrowedFd<'_>, buffer: &mut Vec<u8>) -> io::Result<Received<In>> {
    receive_within(LIMIT, socket, buffer)
}

fn receive_within<In: DeserializeOwned>(
    limit: u64,
    socket: BorrowedFd<'_>,
    buffer: &mut Vec<u8>,
) -> io::Result<Received<In>> {
    let datagram = match seqpacket::receive(socket, buffer) {
        Ok(Some(datagram)) => datagram,
        Ok(None) => return Ok(Received::Eof),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Received::Empty),
        Err(error) => return Err(error),
    };
    let seqpacket::Datagram { mut fds, lost_descriptors } = datagram;
    let message = match buffer.split_first() {
        Some((&INLINE, bytes)) => decode(bytes)?,
        Some((&IN_FILE, _)) if lost_descriptors => {
            return Err(io::Error::from_raw_os_error(nix::libc::EMFILE));
        }
        Some((&IN_FILE, _)) => {
            let file = fds.pop().ok_or_else(|| invalid("a large message came without its memory file"))?;
            decode(&memfd::read(file, limit)?)?
        }
        _ => return Err(invalid("a message began with an unknown byte")),
    };
    Ok(Received::Message { message, fds, lost_descriptors })
}

pub(super) fn decode<In: DeserializeOwned>(bytes: &[u8]) -> io::Result<In> {
    postcard::from_bytes(bytes).map_err(|error| invalid(&format!("a message could not be read: {error}")))
}

fn invalid(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why.to_owned())
}

/// A message ready to be sent.
#[derive(Debug)]
pub(crate) struct Packet {
    datagram: Vec<u8>,
    file: Option<OwnedFd>,
}

impl Packet {
    pub(crate) fn encode<T: Serialize>(message: &T) -> io::Result<Packet> {
        // Most messages are short: one allocation does.
        let mut datagram = Vec::with_capacity(64);
        datagram.push(INLINE);
        let mut datagram = postcard::to_extend(message, datagram)
            .map_err(|error| invalid(&format!("a message could not be written: {error}")))?;
        let mut file = None;
        if datagram.len() > seqpacket::MAX_BYTES {
            if datagram.len() as u64 > LIMIT {
                return Err(io::Error::new(io::ErrorKind::FileTooLarge, "a message is longer than 4 GiB - 1 bytes"));
            }
            file = Some(memfd::seal(&datagram[1..])?);
            datagram = vec![IN_FILE];
        }
        Ok(Packet { datagram, file })
    }

    /// Sends it if the queue has room; says whether it did.
    pub(crate) fn send(&self, socket: BorrowedFd<'_>, fds: &[RawFd]) -> io::Result<bool> {
        let sent = match &self.file {
            None => seqpacket::send(socket, &self.datagram, fds),
            Some(file) => {
                let mut with_file = fds.to_vec();
                with_file.push(file.as_raw_fd());
                seqpacket::send(socket, &self.datagram, &with_file)
            }
        };
        match sent {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_of_any_size_arrives_as_it_was_sent() {
        let (here, there) = Channel::<Vec<u32>, ()>::pair().expect("a pair");
        for length in [0, 1, 1000, 20_000, 300_000] {
            let message: Vec<u32> = (0..length).collect();
            here.send(&message, &[]).expect("sent");
            match there.recv().expect("received") {
                Received::Message { message: arrived, fds, .. } => {
                    assert_eq!(arrived, message);
                    assert!(fds.is_empty());
                }
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn nonsense_is_an_error_and_the_conversation_goes_on() {
        let (here, there) = seqpacket::pair().expect("a pair");
        let typed = Channel::<(), String>::new(there);
        let empty_file = Packet { datagram: vec![IN_FILE], file: None };
        assert!(empty_file.send(here.as_fd(), &[]).expect("sent"));
        seqpacket::send(here.as_fd(), &[INLINE, 0xFF, 0xFF], &[]).expect("sent");
        seqpacket::send(here.as_fd(), &[9], &[]).expect("sent");
        assert!(Packet::encode(&"sense").expect("encoded").send(here.as_fd(), &[]).expect("sent"));
        for _ in 0..3 {
            assert_eq!(typed.recv().unwrap_err().kind(), io::ErrorKind::InvalidData);
        }
        assert!(matches!(typed.recv(), Ok(Received::Message { message, .. }) if message == "sense"));
    }
}
