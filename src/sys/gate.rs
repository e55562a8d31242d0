//! The gate of a listening socket: shut, it lets nobody new in, and whoever has come is still accepted.
//!
//! A TCP listener that is bound to a network interface takes the handshakes that begin on that interface and no others
//! (socket(7), SO_BINDTODEVICE). Bound to an interface that does not exist it takes none: the kernel refuses a new
//! client at once, as if nobody listened. A handshake under way and a connection in the queue are looked up by
//! themselves, not by the listener, and come through. The binding belongs to the socket, so it holds for all processes
//! that share it, and each can see it.
//!
//! A packet filter that drops SYNs (SO_ATTACH_FILTER) would do too, but on recent kernels it takes CAP_NET_ADMIN, and it
//! leaves a new client waiting where this one tells it at once that there is nobody.
//!
//! A Unix listener that is shut down for receiving (shutdown(2)) refuses new clients at once too, and those in its queue can
//! still be accepted. But from then on poll(2) and epoll(7) find it readable for ever, so that it wakes all who wait on it.

use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::Shutdown;

/// The index of no interface: the kernel counts them from 1 up.
const NOWHERE: libc::c_int = libc::c_int::MAX;

const LENGTH: libc::socklen_t = size_of::<libc::c_int>() as libc::socklen_t;

/// Shuts the gate of a TCP listener, for good: to open it again takes CAP_NET_RAW.
///
/// # Errors
/// EPERM for a socket that is bound to an interface already, as one of a link-local address is.
pub(crate) fn shut(listener: BorrowedFd<'_>) -> Result<(), Errno> {
    let (fd, option) = (listener.as_raw_fd(), ptr::from_ref(&NOWHERE).cast());
    // SAFETY: the option is a c_int that lives through the call, and LENGTH is its size.
    let done = unsafe { libc::setsockopt(fd, libc::SOL_SOCKET, libc::SO_BINDTOIFINDEX, option, LENGTH) };
    Errno::result(done).map(drop)
}

/// Whether the gate of a TCP listener is shut.
pub(crate) fn is_shut(listener: BorrowedFd<'_>) -> bool {
    let (mut index, mut length): (libc::c_int, _) = (0, LENGTH);
    let (fd, option) = (listener.as_raw_fd(), (&raw mut index).cast());
    // SAFETY: the option is a writable c_int, `length` says its size, and both live through the call.
    let done = unsafe { libc::getsockopt(fd, libc::SOL_SOCKET, libc::SO_BINDTOIFINDEX, option, &raw mut length) };
    done == 0 && index == NOWHERE
}

/// Shuts a Unix listener down: new clients are refused, queued ones can still be accepted.
///
/// # Errors
/// ENOTCONN for a socket that does not listen.
pub(crate) fn turn_away(listener: BorrowedFd<'_>) -> Result<(), Errno> {
    nix::sys::socket::shutdown(listener.as_raw_fd(), Shutdown::Read)
}

/// Whether a Unix listener has been shut down; never so for a TCP listener that listens.
pub(crate) fn is_turned_away(listener: BorrowedFd<'_>) -> bool {
    let flags = PollFlags::from_bits_retain(libc::POLLRDHUP);
    matches!(poll(&mut [PollFd::new(listener, flags)], PollTimeout::ZERO), Ok(1..))
}

#[cfg(test)]
mod tests {
    use std::io::{ErrorKind, Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsFd;
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};

    use socket2::{Domain, SockAddr, Socket, Type};

    use super::*;

    /// Who is in the queue is accepted and served, who comes later is refused at once.
    fn holds(listener: TcpListener, clients: &[&str]) {
        let port = listener.local_addr().unwrap().port();
        let queued: Vec<_> = clients.iter().map(|host| TcpStream::connect((*host, port)).unwrap()).collect();
        assert!(!is_shut(listener.as_fd()));
        shut(listener.try_clone().unwrap().as_fd()).unwrap();
        assert!(is_shut(listener.as_fd()), "the gate is the socket's, not the descriptor's");
        for host in clients {
            let refused = TcpStream::connect((*host, port)).expect_err("the gate is shut");
            assert_eq!(refused.kind(), ErrorKind::ConnectionRefused, "{host}");
        }
        for mut client in queued {
            let (mut accepted, _) = listener.accept().unwrap();
            client.write_all(b"?").unwrap();
            accepted.read_exact(&mut [0]).unwrap();
            accepted.write_all(b"!").unwrap();
            client.read_exact(&mut [0]).unwrap();
            assert!(!is_shut(accepted.as_fd()), "a connection does not inherit it");
        }
    }

    #[test]
    fn a_unix_listener_that_turns_away_refuses_the_new_and_keeps_the_queued() {
        let name = SocketAddr::from_abstract_name(format!("hatchery-gate-{}", std::process::id())).unwrap();
        let listener = UnixListener::bind_addr(&name).unwrap();
        let connect = || UnixStream::connect_addr(&name);
        let mut queued = [connect().unwrap(), connect().unwrap()];
        assert!(!is_turned_away(listener.as_fd()));
        turn_away(listener.as_fd()).unwrap();
        assert!(is_turned_away(listener.as_fd()) && !is_shut(listener.as_fd()));
        assert_eq!(connect().expect_err("turned away").kind(), ErrorKind::ConnectionRefused);
        listener.set_nonblocking(true).unwrap();
        for client in &mut queued {
            let (mut accepted, _) = listener.accept().unwrap();
            client.write_all(b"?").unwrap();
            accepted.read_exact(&mut [0]).unwrap();
        }
        assert_eq!(listener.accept().expect_err("nobody is left").kind(), ErrorKind::WouldBlock);
    }

    #[test]
    fn a_shut_gate_refuses_the_new_and_keeps_the_queued_over_ipv4() {
        holds(TcpListener::bind("127.0.0.1:0").unwrap(), &["127.0.0.1"]);
    }

    #[test]
    fn a_shut_gate_refuses_the_new_and_keeps_the_queued_over_ipv6() {
        holds(TcpListener::bind("[::1]:0").unwrap(), &["::1"]);
    }

    #[test]
    fn a_shut_gate_refuses_the_new_and_keeps_the_queued_over_both_at_once() {
        let both = Socket::new(Domain::IPV6, Type::STREAM, None).unwrap();
        both.set_only_v6(false).unwrap();
        let any: std::net::SocketAddr = "[::]:0".parse().unwrap();
        both.bind(&SockAddr::from(any)).unwrap();
        both.listen(8).unwrap();
        holds(both.into(), &["::1", "127.0.0.1"]);
    }
}
