//! A client's connection: a stream socket, TCP or Unix, with a buffer each way.
//!
//! Every call on the socket is tried first and waited for only when it would block, so a busy
//! worker makes one system call to receive a request and one to send its answer. Waiting ends at
//! the request's deadline.
//!
//! What is written is kept until the request ends, until there is much of it, or until the connection has to wait for
//! input, so a client is never left waiting for an answer that sits in the buffer. What the client does not take then
//! stays in the buffer, up to a mebibyte, and the worker sends it as the client reads: a slow reader holds no worker.

mod lending;
mod output;
mod reading;
mod writing;

use std::any::Any;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use socket2::{SockAddr, SockRef};

use self::output::Output;
use super::abort::PeerState;
use super::in_hand::{InHand, Serial};
use super::input::Input;
use crate::sys::clock::Monotonic;
use crate::sys::hangup;

pub(super) use lending::Buffers;
pub use reading::Fill;

/// One client's connection.
///
/// Reading takes what was received and waits for more only when there is none. Writing goes to a
/// buffer, which the worker sends when the request ends, as fast as the client takes it;
/// [`flush`](io::Write::flush) sends it now.
#[derive(Debug)]
pub struct Conn {
    socket: OwnedFd,
    peer: Peer,
    input: Input,
    output: Output,
    /// The request in hand, while this connection is served.
    request: Option<(&'static InHand, Serial)>,
    /// Something that is no earlier answer was handed to the socket.
    response_begun: bool,
    /// What was set beside the request's deadline.
    deadline: Option<Monotonic>,
    /// The peer has sent its last byte.
    ended: bool,
    timed_out: bool,
    lingers: bool,
    /// Something of the request in hand, or of the one that is not over yet, was consumed.
    consumed: bool,
    /// What the service keeps from one call to the next.
    state: Option<Box<dyn Any + Send>>,
    /// What the service has said of a request that the connection is not done with, while another one is in hand.
    label: Option<Box<[u8]>>,
}

/// Who is at the other end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Peer {
    /// A TCP client.
    Inet(SocketAddr),
    /// A client of a Unix socket; such clients have no address.
    Unix,
    /// A client that was gone before [`Conn::from_fd`] took it over.
    Gone,
}

impl From<SockAddr> for Peer {
    fn from(address: SockAddr) -> Self {
        address.as_socket().map_or(Self::Unix, Self::Inet)
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Inet(address) => address.fmt(f),
            Self::Unix => f.write_str("unix"),
            Self::Gone => f.write_str("gone"),
        }
    }
}

impl Conn {
    /// A connection over a connected stream socket, which becomes non-blocking. The worker loop
    /// makes its own; this is for a program with its own loop, and for tests over a socket pair.
    ///
    /// # Errors
    /// Those of fcntl(2).
    pub fn from_fd(socket: OwnedFd) -> io::Result<Self> {
        let flags = OFlag::from_bits_retain(fcntl(&socket, FcntlArg::F_GETFL)?);
        fcntl(&socket, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
        let peer = SockRef::from(&socket).peer_addr().map_or(Peer::Gone, Peer::from);
        Ok(Self::new(socket, peer))
    }

    /// A connection over a socket that is known to be non-blocking.
    pub(crate) fn new(socket: OwnedFd, peer: Peer) -> Self {
        Self {
            socket,
            peer,
            input: Input::default(),
            output: Output::default(),
            request: None,
            response_begun: false,
            deadline: None,
            ended: false,
            timed_out: false,
            lingers: false,
            consumed: false,
            state: None,
            label: None,
        }
    }

    /// Who is at the other end.
    pub fn peer(&self) -> Peer {
        self.peer
    }

    /// Whether the client has sent its end (FIN) or is gone altogether (RST, or a Unix socket that is closed). Nothing is
    /// read or written, so it can be asked in the middle of anything; it costs one system call that never waits.
    ///
    /// A client that only says "this is all I send" and waits for its answer looks the same over TCP: where there are such
    /// clients, ask [`peer_state`](Self::peer_state).
    pub fn peer_gone(&self) -> bool {
        self.peer_state() != PeerState::Open
    }

    /// What is left of the client; as [`peer_gone`](Self::peer_gone), with the difference between one that sends no more and
    /// one that is gone.
    pub fn peer_state(&self) -> PeerState {
        match hangup::look(self.socket.as_fd()) {
            hangup::Peer::Open => PeerState::Open,
            hangup::Peer::Finished => PeerState::Finished,
            hangup::Peer::Gone => PeerState::Gone,
        }
    }

    /// Whether the peer has sent its last byte; what came before it may still be in the buffer.
    pub fn has_ended(&self) -> bool {
        self.ended
    }

    /// Whether this is the last call of `serve` for an incomplete request whose deadline has passed:
    /// time to say so to the client and close.
    pub fn timed_out(&self) -> bool {
        self.timed_out
    }

    /// Asks for a slow close. A socket closed with unread bytes in it resets the connection, and
    /// the client may lose the answer that it has not read yet. With this, the worker closes only
    /// the sending side, and drops what still comes for up to two seconds or 256 KiB.
    pub fn linger(&mut self) {
        self.lingers = true;
    }

    /// When waiting ends; none: never. In the worker loop it ends at the request's own deadline as
    /// well, and what is set here holds until `serve` returns.
    pub fn set_deadline(&mut self, deadline: Option<Instant>) {
        let now = (Monotonic::now(), Instant::now());
        self.deadline = deadline.map(|at| now.0.after(at.saturating_duration_since(now.1)));
    }

    /// The request in hand, if it is this connection's. It is not when a service has taken the connection away and kept it.
    fn in_hand(&self) -> Option<&'static InHand> {
        let (in_hand, serial) = self.request?;
        in_hand.is(serial).then_some(in_hand)
    }

    /// When waiting ends.
    fn due(&self) -> Option<Monotonic> {
        let of_request = self.in_hand().and_then(InHand::due);
        self.deadline.into_iter().chain(of_request).min()
    }

    fn is_overdue(&self) -> bool {
        self.due().is_some_and(|due| due <= Monotonic::now())
    }
}

/// A service may have put another connection in this one's place, and drop this one in the middle of its
/// request: its descriptor is soon another's.
impl Drop for Conn {
    fn drop(&mut self) {
        self.end();
    }
}

impl AsFd for Conn {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

#[cfg(test)]
mod tests;
