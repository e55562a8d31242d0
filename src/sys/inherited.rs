//! Taking over a descriptor that this process was started with, known by its number alone.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::{Mutex, PoisonError};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};

/// The numbers that were claimed. A number is claimed once in a process's life: afterwards it may name
/// a descriptor that somebody else opened.
static CLAIMED: Mutex<BTreeSet<RawFd>> = Mutex::new(BTreeSet::new());

/// Why a descriptor was not taken over; it is open as before.
#[derive(Debug)]
pub(crate) enum ClaimError<E> {
    /// No descriptor has the number.
    Closed(io::Error),
    /// The number was claimed before.
    Claimed,
    /// The caller's check refused what the number names.
    Refused(E),
}

/// Takes the descriptor `number` over if `check` accepts it; it is closed on exec from then on.
///
/// `check` sees it borrowed, so that a refused descriptor, which may be anybody's, stays open.
pub(crate) fn claim<E>(
    number: RawFd,
    check: impl FnOnce(BorrowedFd<'_>) -> Result<(), E>,
) -> Result<OwnedFd, ClaimError<E>> {
    let mut claimed = CLAIMED.lock().unwrap_or_else(PoisonError::into_inner);
    if claimed.contains(&number) {
        return Err(ClaimError::Claimed);
    }
    look_at(number, check).map_err(ClaimError::Closed)?.map_err(ClaimError::Refused)?;
    // SAFETY: the number was just seen open, it names what this process was started with or what its
    // caller vouches for, and `CLAIMED` keeps a second owner from being made here.
    let fd = unsafe { OwnedFd::from_raw_fd(number) };
    claimed.insert(number);
    fcntl(&fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).map_err(|errno| ClaimError::Closed(errno.into()))?;
    Ok(fd)
}

fn look_at<T>(number: RawFd, check: impl FnOnce(BorrowedFd<'_>) -> T) -> Result<T, io::Error> {
    // SAFETY: F_GETFD reads the flags of any number, and fails for one that is not open.
    if unsafe { libc::fcntl(number, libc::F_GETFD) } == -1 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the number is open and not -1; the borrow ends with this call. Only options are read.
    let fd = unsafe { BorrowedFd::borrow_raw(number) };
    Ok(check(fd))
}
