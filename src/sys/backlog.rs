//! How many clients wait on a listening socket.

use std::os::fd::{AsFd, AsRawFd};

use super::stream;

/// The clients that nobody has accepted yet; where the kernel does not count them (Unix sockets), 1 if there are any.
pub(crate) fn length(listener: impl AsFd) -> u32 {
    let mut info = std::mem::MaybeUninit::<libc::tcp_info>::zeroed();
    let mut size = size_of::<libc::tcp_info>() as libc::socklen_t;
    let raw = listener.as_fd().as_raw_fd();
    // SAFETY: the kernel writes at most `size` bytes into `info`, which is that large, and the descriptor is borrowed.
    let told = unsafe { libc::getsockopt(raw, libc::IPPROTO_TCP, libc::TCP_INFO, info.as_mut_ptr().cast(), &mut size) };
    if told == 0 {
        // SAFETY: zeroes are a value of every field, and the kernel has overwritten some of them.
        let info = unsafe { info.assume_init() };
        // On a listening socket the field holds the queue's length (tcp_get_info in net/ipv4/tcp.c).
        return info.tcpi_unacked;
    }
    u32::from(stream::is_readable(listener.as_fd()))
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};
    use std::os::unix::net::{UnixListener, UnixStream};

    use super::*;

    #[test]
    fn the_queue_of_a_tcp_listener_is_counted() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        assert_eq!(length(&listener), 0);
        let clients: Vec<_> = (0..3).map(|_| TcpStream::connect(listener.local_addr().unwrap()).unwrap()).collect();
        assert_eq!(length(&listener), 3);
        listener.accept().unwrap();
        assert_eq!(length(&listener), 2);
        drop(clients);
    }

    #[test]
    fn of_a_unix_listener_it_is_known_whether_somebody_waits() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        assert_eq!(length(&listener), 0);
        let _client = UnixStream::connect(&path).unwrap();
        assert_eq!(length(&listener), 1);
    }
}
