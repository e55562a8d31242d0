//! Asking the kernel for TCP sockets in one state at one port (sock_diag(7)).
//!
//! Only what matches is copied, so it stays quick beside the tens of thousands of closed connections that a busy server
//! leaves in TIME_WAIT, every one of which is a line of `/proc/net/tcp`.

use std::io;
use std::os::fd::AsRawFd;

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket};

/// A handshake of which the last acknowledgement is still to come (enum tcp state in the kernel's net/tcp_states.h).
const SYN_RECV: u32 = 3;

// linux/netlink.h, linux/sock_diag.h, linux/inet_diag.h.
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const NLM_F_REQUEST_AND_DUMP: u16 = 0x301;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const HEADER: usize = 16;
const REQUEST: usize = HEADER + 56;

/// Whether some handshake is under way at this local port, over IPv4 or IPv6.
///
/// # Errors
/// Those of netlink(7): a sandbox may forbid it.
pub(crate) fn has_half_open(port: u16) -> io::Result<bool> {
    Ok(has_half_open_of(libc::AF_INET as u8, port)? || has_half_open_of(libc::AF_INET6 as u8, port)?)
}

fn has_half_open_of(family: u8, port: u16) -> io::Result<bool> {
    let kernel =
        socket(AddressFamily::Netlink, SockType::Datagram, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkSockDiag)?;
    send(kernel.as_raw_fd(), &request(family, port), MsgFlags::empty())?;
    let mut buffer = [0; 8192];
    let length = recv(kernel.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
    match first_answer(&buffer[..length]) {
        Answer::Found => Ok(true),
        Answer::End => Ok(false),
        Answer::Failed(errno) => Err(errno.into()),
    }
}

/// A netlink header, and an `inet_diag_req_v2` that names family, protocol, state and port.
fn request(family: u8, port: u16) -> [u8; REQUEST] {
    let mut bytes = [0; REQUEST];
    bytes[0..4].copy_from_slice(&(REQUEST as u32).to_ne_bytes());
    bytes[4..6].copy_from_slice(&SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    bytes[6..8].copy_from_slice(&NLM_F_REQUEST_AND_DUMP.to_ne_bytes());
    bytes[HEADER] = family;
    bytes[HEADER + 1] = libc::IPPROTO_TCP as u8;
    bytes[HEADER + 4..HEADER + 8].copy_from_slice(&(1u32 << SYN_RECV).to_ne_bytes());
    bytes[HEADER + 8..HEADER + 10].copy_from_slice(&port.to_be_bytes());
    bytes
}

enum Answer {
    Found,
    End,
    Failed(Errno),
}

/// One message is enough: a socket, the end of the list, or an error.
fn first_answer(bytes: &[u8]) -> Answer {
    let word = |at: usize| bytes.get(at..at + 4).and_then(|word| word.try_into().ok()).map(i32::from_ne_bytes);
    let kind = bytes.get(4..6).and_then(|kind| kind.try_into().ok()).map(u16::from_ne_bytes);
    match kind {
        Some(SOCK_DIAG_BY_FAMILY) => Answer::Found,
        Some(NLMSG_DONE) => Answer::End,
        Some(NLMSG_ERROR) => Answer::Failed(Errno::from_raw(-word(HEADER).unwrap_or(-libc::EPROTO))),
        _ => Answer::Failed(Errno::EPROTO),
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn established_and_closed_connections_are_no_handshakes() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let at = listener.local_addr().unwrap();
        assert!(!has_half_open(at.port()).unwrap());
        let client = TcpStream::connect(at).unwrap();
        assert!(!has_half_open(at.port()).unwrap());
        drop(listener.accept().unwrap());
        drop(client);
        assert!(!has_half_open(at.port()).unwrap());
    }

    #[test]
    fn an_error_and_nonsense_are_told() {
        let mut error = [0; 20];
        error[4..6].copy_from_slice(&NLMSG_ERROR.to_ne_bytes());
        error[16..20].copy_from_slice(&(-libc::EPERM).to_ne_bytes());
        assert!(matches!(first_answer(&error), Answer::Failed(Errno::EPERM)));
        for nonsense in [&error[..2], &[0xff; 20]] {
            assert!(matches!(first_answer(nonsense), Answer::Failed(Errno::EPROTO)));
        }
    }
}
