//! Calls on stream sockets that never wait: accept, receive, send, and waiting as a call of its own.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{MsgFlags, Shutdown};
use socket2::{SockAddr, SockAddrStorage};

use super::clock::{Monotonic, poll_timeout};

/// Takes one connection from the queue of a non-blocking listener, close-on-exec and non-blocking
/// itself, with its peer's address.
pub(crate) fn accept(listener: BorrowedFd<'_>) -> Result<(OwnedFd, SockAddr), Errno> {
    let flags = libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    let mut storage = SockAddrStorage::zeroed();
    let mut length = storage.size_of();
    // SAFETY: the storage is live and as long as `length` says; the kernel keeps neither pointer.
    let fd = unsafe { libc::accept4(listener.as_raw_fd(), (&raw mut storage).cast(), &raw mut length, flags) };
    let fd = Errno::result(fd)?;
    // SAFETY: accept4 has just returned this descriptor, so nobody else owns it.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: the kernel has written an address of this length; what is longer it has cut to the storage's size.
    Ok((socket, unsafe { SockAddr::new(storage, length) }))
}

/// Whether any descriptor is readable at this moment; a listener is while somebody waits in its queue (accept(2)).
pub(crate) fn is_readable(descriptor: BorrowedFd<'_>) -> bool {
    let mut fds = [PollFd::new(descriptor, PollFlags::POLLIN)];
    matches!(poll(&mut fds, PollTimeout::ZERO), Ok(1..))
}

/// Receives what is there.
pub(crate) fn receive(socket: BorrowedFd<'_>, into: &mut [u8]) -> Result<usize, Errno> {
    nix::sys::socket::recv(socket.as_raw_fd(), into, MsgFlags::empty())
}

/// Sends what fits. A peer that is gone is EPIPE, never SIGPIPE.
pub(crate) fn send(socket: BorrowedFd<'_>, bytes: &[u8]) -> Result<usize, Errno> {
    nix::sys::socket::send(socket.as_raw_fd(), bytes, MsgFlags::MSG_NOSIGNAL)
}

/// Tells the peer that nothing more will be sent.
pub(crate) fn shut_write(socket: BorrowedFd<'_>) -> Result<(), Errno> {
    nix::sys::socket::shutdown(socket.as_raw_fd(), Shutdown::Write)
}

/// What to wait for.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Wait {
    /// Bytes, or the peer's end.
    Readable,
    /// Room for bytes.
    Writable,
}

/// Waits until the socket is ready, at most until `deadline`.
///
/// # Errors
/// `TimedOut` at the deadline, at once if it has passed.
pub(crate) fn wait(socket: BorrowedFd<'_>, what: Wait, deadline: Option<Monotonic>) -> io::Result<()> {
    let flags = match what {
        Wait::Readable => PollFlags::POLLIN,
        Wait::Writable => PollFlags::POLLOUT,
    };
    loop {
        let timeout = match deadline {
            None => PollTimeout::NONE,
            Some(deadline) => {
                let left = deadline.since(Monotonic::now());
                if left.is_zero() {
                    return Err(io::ErrorKind::TimedOut.into());
                }
                poll_timeout(left)
            }
        };
        match poll(&mut [PollFd::new(socket.as_fd(), flags)], timeout) {
            // Zero is the end of this wait, EINTR a signal: both look at the deadline again.
            Ok(0) | Err(Errno::EINTR) => {}
            Ok(_) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
}
