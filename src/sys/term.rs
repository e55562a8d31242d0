//! SIGTERM as a byte in a socket, for a process that waits for descriptors.
//!
//! A worker does without signal-hook's registry for its one signal: the tables that it makes, after
//! the fork, would be a page more of memory in every worker.

use std::os::fd::{IntoRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicI32, Ordering};

use nix::errno::Errno;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

/// The handler can reach nothing but statics.
static SOCKET: AtomicI32 = AtomicI32::new(NONE);

const NONE: RawFd = -1;

/// From now on each SIGTERM writes a byte to this stream socket, if there is room, and does nothing
/// else. The socket stays open for as long as the process lives; a second call puts another in its place.
pub(crate) fn write_to(socket: OwnedFd) -> Result<(), Errno> {
    SOCKET.store(socket.into_raw_fd(), Ordering::Relaxed);
    let action = SigAction::new(SigHandler::Handler(on_term), SaFlags::SA_RESTART, SigSet::empty());
    // SAFETY: the handler makes one async-signal-safe call and restores errno.
    unsafe { sigaction(Signal::SIGTERM, &action) }?;
    let mut term = SigSet::empty();
    term.add(Signal::SIGTERM);
    term.thread_unblock()
}

extern "C" fn on_term(_: libc::c_int) {
    let errno = Errno::last_raw();
    let byte = 0u8;
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: `byte` is one live byte; send(2) is async-signal-safe, and nobody ever closes the socket.
    // A socket that is full is readable already, which is all that is wanted.
    unsafe { libc::send(SOCKET.load(Ordering::Relaxed), (&raw const byte).cast(), 1, flags) };
    Errno::set_raw(errno);
}
