//! The accepting side of a listener, as a worker has it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use socket2::{Domain, SockRef};

use super::conn::{Conn, Peer};
use crate::sys::{gate, stream};

/// A listener, shared by all workers or the slot's own; it never waits.
#[derive(Debug)]
pub struct Acceptor {
    socket: OwnedFd,
    address: String,
}

impl Acceptor {
    /// Takes a listening socket that is known in logs by `address`, and makes it non-blocking.
    ///
    /// # Errors
    /// `InvalidInput` for a socket that does not listen; those of getsockopt(2), setsockopt(2) and
    /// fcntl(2) for what is no socket at all.
    pub(crate) fn from_fd(socket: OwnedFd, address: String) -> io::Result<Self> {
        let options = SockRef::from(&socket);
        if !options.is_listener()? {
            let words = format!("the socket of {address} does not listen");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, words));
        }
        options.set_nonblocking(true)?;
        if matches!(options.domain()?, Domain::IPV4 | Domain::IPV6) {
            // On Linux an accepted socket inherits this, so it costs no call per connection. Without
            // it the second of two answers sent in a row would wait for the client's delayed ACK.
            options.set_tcp_nodelay(true)?;
        }
        Ok(Self { socket, address })
    }

    /// The address it is known by.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Whether nobody comes to the queue any more: then who leaves takes with him all who are in it.
    pub(super) fn is_shut(&self) -> bool {
        gate::is_shut(self.socket.as_fd()) || gate::is_turned_away(self.socket.as_fd())
    }

    /// Whether somebody waits in the queue at this moment.
    pub(super) fn has_queue(&self) -> bool {
        stream::is_readable(self.as_fd())
    }

    /// Takes a connection from the queue; none if nobody waits there, which is no surprise even
    /// after the descriptor was seen readable: another worker may have been faster.
    ///
    /// # Errors
    /// Those of accept(2) that are about this process or machine, such as EMFILE. A connection that
    /// ended in the queue is skipped.
    pub fn accept(&self) -> io::Result<Option<Conn>> {
        loop {
            match stream::accept(self.socket.as_fd()) {
                Ok((socket, address)) => return Ok(Some(Conn::new(socket, Peer::from(address)))),
                Err(Errno::EAGAIN) => return Ok(None),
                Err(error) if is_about_one_connection(error) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// The errors after which accept(2) says to try again: Linux passes the new connection's own network
/// errors on to whoever accepts it.
fn is_about_one_connection(error: Errno) -> bool {
    matches!(
        error,
        Errno::EINTR
            | Errno::ECONNABORTED
            | Errno::EPROTO
            | Errno::ENETDOWN
            | Errno::ENOPROTOOPT
            | Errno::EHOSTDOWN
            | Errno::ENONET
            | Errno::EHOSTUNREACH
            | Errno::ENETUNREACH
    )
}

impl AsFd for Acceptor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
