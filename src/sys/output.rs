//! Writing to a descriptor that was inherited, without waiting for whoever reads it.

use std::io::IoSlice;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::stat::{SFlag, fstat};

/// Where the file itself keeps the place to write at (pwritev2(2)).
const CURRENT: libc::off_t = -1;

/// Writes what is taken now; `EAGAIN` if that is nothing. The descriptor's own flags do not matter and are left
/// alone: O_NONBLOCK would hold for every process that has the same file open, an operator's shell too.
pub(crate) fn write_now(fd: BorrowedFd<'_>, bytes: &[u8]) -> Result<usize, Errno> {
    // A file on a disk has no reader to wait for, and RWF_NOWAIT means something else there.
    if fstat(fd).is_ok_and(|stat| SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT == SFlag::S_IFREG) {
        return nix::unistd::write(fd, bytes);
    }
    let slice = IoSlice::new(bytes);
    // SAFETY: IoSlice has the layout of iovec, and the one given lives for the call, which only reads it.
    let written = unsafe { libc::pwritev2(fd.as_raw_fd(), (&raw const slice).cast(), 1, CURRENT, libc::RWF_NOWAIT) };
    match Errno::result(written) {
        Ok(written) => Ok(written as usize),
        // A terminal, or a pipe of a kernel before 6.4. Somebody else may take the room in between, and then this
        // waits after all.
        Err(Errno::EOPNOTSUPP | Errno::EINVAL | Errno::ENOSYS | Errno::ESPIPE) => {
            match poll(&mut [PollFd::new(fd.as_fd(), PollFlags::POLLOUT)], PollTimeout::ZERO) {
                Ok(0) => Err(Errno::EAGAIN),
                _ => nix::unistd::write(fd, bytes),
            }
        }
        Err(error) => Err(error),
    }
}
