//! The descriptor table of this process.

use std::io;
use std::os::fd::{AsFd, FromRawFd, OwnedFd, RawFd};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};

/// Descriptors below this are redirected in a child.
const ABOVE_REDIRECTED: RawFd = 10;

/// Closes every descriptor from `first` on (close_range(2)).
///
/// # Safety
/// No object of this process owns a descriptor in the range: so in the first moments of a program.
pub(crate) unsafe fn close_from(first: u32) -> io::Result<()> {
    // SAFETY: the caller's contract: nothing that anybody still uses is closed.
    let closed = unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, 0) };
    if closed == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Marks every descriptor but the standard three to be closed by `exec`, those too that careless code has opened.
pub(crate) fn close_beyond_standard_at_exec() -> io::Result<()> {
    // SAFETY: no descriptor is closed here, and close_range touches no memory of this process.
    let marked = unsafe { libc::syscall(libc::SYS_close_range, 3, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    match io::Error::last_os_error() {
        _ if marked == 0 => Ok(()),
        // Linux before 5.11 does not know the flag: descriptor by descriptor. What has gone meanwhile is as good.
        error if error.raw_os_error() == Some(libc::EINVAL) => {
            for entry in std::fs::read_dir("/proc/self/fd")?.flatten() {
                match entry.file_name().to_string_lossy().parse::<RawFd>() {
                    // SAFETY: as above; a number that is no descriptor is an error that changes nothing.
                    Ok(fd) if fd > 2 => drop(unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) }),
                    _ => {}
                }
            }
            Ok(())
        }
        error => Err(error),
    }
}

/// Marks a descriptor to be closed by `exec`.
pub(crate) fn set_cloexec(fd: impl AsFd) -> io::Result<()> {
    fcntl(fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
    Ok(())
}

/// A second descriptor for the same open file, CLOEXEC, above all that are redirected in a child: what it needs until `exec`,
/// or is to have at another number, lies there.
pub(crate) fn duplicate_above_redirected(fd: OwnedFd) -> io::Result<OwnedFd> {
    let raw = fcntl(fd, FcntlArg::F_DUPFD_CLOEXEC(ABOVE_REDIRECTED))?;
    // SAFETY: fcntl has just made this descriptor for us; nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}
