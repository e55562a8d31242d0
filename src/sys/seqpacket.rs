//! Message sockets that carry descriptors: `AF_UNIX`, `SOCK_SEQPACKET`, `SCM_RIGHTS` (unix(7)).
//!
//! A message arrives whole or not at all, so descriptors never part from their message. Nothing here waits, unless
//! its name says so: a call that would have to says [`io::ErrorKind::WouldBlock`].

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

use nix::sys::socket::{
    AddressFamily, MsgFlags, Shutdown, SockFlag, SockType, UnixAddr, getsockname, getsockopt, shutdown, socketpair,
    sockopt,
};

/// The most descriptors that one message carries (`SCM_MAX_FD`, unix(7)).
pub(crate) const MAX_DESCRIPTORS: usize = 253;

/// The longest message sent through the socket itself; the kernel charges it to a send buffer of 208 KiB by default.
pub(crate) const MAX_BYTES: usize = 64 << 10;

/// So long after the kernel has lacked something for a message (memory, room for its descriptors) it is asked again: no
/// readiness tells when it has it.
pub(crate) const ASK_AGAIN: Duration = Duration::from_millis(5);

/// Room for the control message of [`MAX_DESCRIPTORS`]: header and numbers, in words so that it is aligned.
const CONTROL_WORDS: usize = (size_of::<libc::cmsghdr>() + MAX_DESCRIPTORS * size_of::<RawFd>()).div_ceil(8) + 1;

/// Two connected ends, both CLOEXEC.
pub(crate) fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?)
}

/// Whether the descriptor is a message socket between processes of this machine, as whoever sent it says.
pub(crate) fn is_one(fd: BorrowedFd<'_>) -> bool {
    let is_of_type = getsockopt(&fd, sockopt::SockType).is_ok_and(|kind| kind == SockType::SeqPacket);
    is_of_type && getsockname::<UnixAddr>(fd.as_raw_fd()).is_ok()
}

/// Sends one message with descriptors, at once or not at all.
pub(crate) fn send(socket: BorrowedFd<'_>, bytes: &[u8], fds: &[RawFd]) -> io::Result<()> {
    if !fds.is_empty() {
        return send_with_rights(socket, bytes, fds);
    }
    // Not sendmsg(2): to have its header copied and checked is a good part of a short message's time.
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
    nix::sys::socket::send(socket.as_raw_fd(), bytes, flags)?;
    Ok(())
}

fn send_with_rights(socket: BorrowedFd<'_>, bytes: &[u8], fds: &[RawFd]) -> io::Result<()> {
    if fds.len() > MAX_DESCRIPTORS {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "too many descriptors for one message"));
    }
    let mut part = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    let mut control = [0u64; CONTROL_WORDS];
    // SAFETY: all-zero is a valid msghdr.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_iov = &raw mut part;
    header.msg_iovlen = 1;
    header.msg_control = control.as_mut_ptr().cast();
    header.msg_controllen = write_rights(&mut control, fds);
    // SAFETY: the header points to `part` and `control`, both alive; sendmsg only reads them.
    let sent = unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const header, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Writes the one control message that passes `fds`; its length comes back.
fn write_rights(control: &mut [u64; CONTROL_WORDS], fds: &[RawFd]) -> usize {
    let payload = size_of_val(fds) as u32;
    let header: *mut libc::cmsghdr = control.as_mut_ptr().cast();
    // SAFETY: CMSG_LEN only computes.
    let length = unsafe { libc::CMSG_LEN(payload) } as usize;
    // SAFETY: the buffer is aligned for the header and longer than it.
    unsafe {
        header.write(libc::cmsghdr { cmsg_len: length, cmsg_level: libc::SOL_SOCKET, cmsg_type: libc::SCM_RIGHTS })
    };
    // SAFETY: `header` points to a header inside `control`.
    let data = unsafe { libc::CMSG_DATA(header) };
    // SAFETY: at most MAX_DESCRIPTORS numbers, for which the buffer has room behind the header.
    unsafe { std::ptr::copy_nonoverlapping(fds.as_ptr().cast::<u8>(), data, size_of_val(fds)) };
    // SAFETY: CMSG_SPACE only computes.
    unsafe { libc::CMSG_SPACE(payload) as usize }
}

/// One message as it arrived.
#[derive(Debug)]
pub(crate) struct Datagram {
    /// The descriptors that came with it, CLOEXEC.
    pub(crate) fds: Vec<OwnedFd>,
    /// Descriptors were lost on the way: this process's table is full (`MSG_CTRUNC`).
    pub(crate) lost_descriptors: bool,
}

/// Receives one message into `buffer`, whose content is replaced; `None` at the end of the conversation.
pub(crate) fn receive(socket: BorrowedFd<'_>, buffer: &mut Vec<u8>) -> io::Result<Option<Datagram>> {
    receive_whatever_was_unread(socket, buffer, libc::MSG_DONTWAIT)
}

/// As [`receive`], but waits for a message or the end, whatever signals come meanwhile.
pub(crate) fn receive_waiting(socket: BorrowedFd<'_>, buffer: &mut Vec<u8>) -> io::Result<Option<Datagram>> {
    loop {
        match receive_whatever_was_unread(socket, buffer, 0) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            received => return received,
        }
    }
}

/// Ends the conversation for both ends, however many hold them; what has arrived can still be received.
pub(crate) fn shut(socket: BorrowedFd<'_>) {
    // It fails only where there is nothing left to end.
    let _ = shutdown(socket.as_raw_fd(), Shutdown::Both);
}

/// Tells the other end that nothing more will be sent; what it sends is still received.
pub(crate) fn shut_write(socket: BorrowedFd<'_>) {
    // As above.
    let _ = shutdown(socket.as_raw_fd(), Shutdown::Write);
}

/// If the other end was closed with messages of ours unread, the kernel says so once, before all that the other end had
/// sent; those messages and then the end are still to come.
fn receive_whatever_was_unread(
    socket: BorrowedFd<'_>,
    buffer: &mut Vec<u8>,
    flags: libc::c_int,
) -> io::Result<Option<Datagram>> {
    let reset = |received: &io::Result<_>| matches!(received, Err(e) if e.kind() == io::ErrorKind::ConnectionReset);
    let received = receive_with(socket, buffer, flags);
    if !reset(&received) {
        return received;
    }
    let received = receive_with(socket, buffer, flags);
    if reset(&received) { Ok(None) } else { received }
}

fn receive_with(socket: BorrowedFd<'_>, buffer: &mut Vec<u8>, flags: libc::c_int) -> io::Result<Option<Datagram>> {
    buffer.clear();
    buffer.reserve(MAX_BYTES);
    let room = buffer.spare_capacity_mut();
    let mut part = libc::iovec { iov_base: room.as_mut_ptr().cast(), iov_len: room.len() };
    let mut control = [const { MaybeUninit::<u64>::uninit() }; CONTROL_WORDS];
    // SAFETY: all-zero is a valid msghdr.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_iov = &raw mut part;
    header.msg_iovlen = 1;
    header.msg_control = control.as_mut_ptr().cast();
    header.msg_controllen = size_of_val(&control);
    let flags = flags | libc::MSG_CMSG_CLOEXEC;
    // SAFETY: the header points to room of the lengths it names, all alive and ours to write.
    let received = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut header, flags) };
    let Ok(length) = usize::try_from(received) else {
        return Err(io::Error::last_os_error());
    };
    // SAFETY: recvmsg has written `length` bytes, no more than the spare capacity.
    unsafe { buffer.set_len(length) };
    let fds = take_rights(&header);
    let lost_descriptors = header.msg_flags & libc::MSG_CTRUNC != 0;
    if header.msg_flags & libc::MSG_TRUNC != 0 {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a message was longer than any that we send"));
    }
    // Nobody here sends an empty message, so no bytes mean that the other end is closed.
    Ok((length > 0).then_some(Datagram { fds, lost_descriptors }))
}

/// Takes ownership of every descriptor in a received header.
fn take_rights(header: &libc::msghdr) -> Vec<OwnedFd> {
    let mut fds = Vec::new();
    // SAFETY: recvmsg has filled the header, so the control messages in it are well formed.
    let mut message = unsafe { libc::CMSG_FIRSTHDR(header) };
    while !message.is_null() {
        // SAFETY: CMSG_FIRSTHDR and CMSG_NXTHDR give only headers that lie wholly inside the buffer.
        let head = unsafe { message.read() };
        if head.cmsg_level == libc::SOL_SOCKET && head.cmsg_type == libc::SCM_RIGHTS {
            // SAFETY: `message` points to a header inside the buffer.
            let data = unsafe { libc::CMSG_DATA(message) }.cast::<RawFd>();
            // SAFETY: CMSG_LEN only computes.
            let overhead = unsafe { libc::CMSG_LEN(0) } as usize;
            for index in 0..(head.cmsg_len - overhead) / size_of::<RawFd>() {
                // SAFETY: the message's own length says that this number is inside it.
                let at = unsafe { data.add(index) };
                // SAFETY: the kernel has written a number there.
                let raw = unsafe { at.read_unaligned() };
                // SAFETY: the kernel has installed this descriptor for us; nobody else knows it.
                fds.push(unsafe { OwnedFd::from_raw_fd(raw) });
            }
        }
        // SAFETY: as for the first header.
        message = unsafe { libc::CMSG_NXTHDR(header, message) };
    }
    fds
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn a_message_arrives_whole_with_its_descriptors_in_order() {
        let (here, there) = pair().expect("a socket pair");
        let (a, b) = pair().expect("a socket pair");
        send(here.as_fd(), b"two", &[a.as_raw_fd(), b.as_raw_fd()]).expect("sent");
        send(here.as_fd(), b"none", &[]).expect("sent");
        let mut buffer = Vec::new();
        let first = receive(there.as_fd(), &mut buffer).expect("received").expect("not the end");
        assert_eq!(buffer, b"two");
        assert!(!first.lost_descriptors);
        send(first.fds[0].as_fd(), b"through a", &[]).expect("sent");
        let second = receive(there.as_fd(), &mut buffer).expect("received").expect("not the end");
        assert_eq!((buffer.as_slice(), second.fds.len()), (b"none".as_slice(), 0));
        receive(first.fds[1].as_fd(), &mut buffer).expect("received").expect("not the end");
        assert_eq!(buffer, b"through a");
    }

    #[test]
    fn the_other_ends_close_is_the_end_and_an_empty_queue_is_not() {
        let (here, there) = pair().expect("a socket pair");
        let mut buffer = Vec::new();
        let empty = receive(there.as_fd(), &mut buffer).unwrap_err();
        assert_eq!(empty.kind(), io::ErrorKind::WouldBlock);
        drop(here);
        assert!(receive(there.as_fd(), &mut buffer).expect("the end").is_none());
    }

    #[test]
    fn a_socket_of_another_kind_or_no_socket_is_told_from_one() {
        let (one, _other) = pair().expect("a socket pair");
        assert!(is_one(one.as_fd()));
        let (stream, _other) = std::os::unix::net::UnixStream::pair().expect("a pair");
        let (pipe, _writer) = std::io::pipe().expect("a pipe");
        let udp = std::net::UdpSocket::bind("127.0.0.1:0").expect("a socket");
        assert!(![stream.as_fd(), pipe.as_fd(), udp.as_fd()].into_iter().any(is_one));
    }

    #[test]
    fn the_most_descriptors_fit_one_message() {
        let (here, there) = pair().expect("a socket pair");
        let fds = vec![here.as_raw_fd(); MAX_DESCRIPTORS];
        send(here.as_fd(), b"many", &fds).expect("sent");
        let mut buffer = Vec::new();
        let many = receive(there.as_fd(), &mut buffer).expect("received").expect("not the end");
        assert_eq!(many.fds.len(), MAX_DESCRIPTORS);
        let one_more = vec![here.as_raw_fd(); MAX_DESCRIPTORS + 1];
        assert_eq!(send(here.as_fd(), b"more", &one_more).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }
}
