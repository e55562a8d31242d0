//! The descriptor table of this process.

use std::io;
use std::os::fd::{AsFd, OwnedFd, RawFd};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};

/// Closes every descriptor from `first` on (close_range(2)).
///
/// # Safety
/// No object of this process owns a descriptor in the range: so in the first moments of a program.
pub(crate) unsafe fn close_from(first: u32) -> io::Result<()> {
    // SAFETY: the caller's contract: nothing that anybody still uses is closed.
    let closed = unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, 0) };
    if closed == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Marks a descriptor to be closed by `exec`.
pub(crate) fn set_cloexec(fd: impl AsFd) -> io::Result<()> {
    fcntl(fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
    Ok(())
}

/// A second descriptor for the same open file, CLOEXEC, at `lowest` or above.
pub(crate) fn duplicate_above(fd: impl AsFd, lowest: RawFd) -> io::Result<OwnedFd> {
    use std::os::fd::FromRawFd;
    let raw = fcntl(fd, FcntlArg::F_DUPFD_CLOEXEC(lowest))?;
    // SAFETY: fcntl has just made this descriptor for us; nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}
