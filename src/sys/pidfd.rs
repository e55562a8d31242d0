//! Descriptors that stand for a process (pidfd_open(2)): signals without pid races, deaths as readiness.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::unistd::Pid;

/// Opens a descriptor for a process. It is CLOEXEC (pidfd_open(2)).
///
/// The caller knows that `pid` is not yet reaped, or the descriptor may be another process's.
pub(crate) fn open(pid: Pid) -> io::Result<OwnedFd> {
    // SAFETY: pidfd_open takes two integers and touches no memory of this process.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid.as_raw(), 0) };
    let fd = RawFd::try_from(fd).map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor for us; nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Sends a signal to exactly that process; `ESRCH` when it is gone.
pub(crate) fn send_signal(pidfd: BorrowedFd<'_>, signal: i32) -> io::Result<()> {
    // SAFETY: a null siginfo asks for the same information that kill(2) sends; no memory is read.
    let sent = unsafe {
        libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal, std::ptr::null::<libc::siginfo_t>(), 0)
    };
    if sent == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// `struct pidfd_info` of linux/pidfd.h in its first published size, 64 bytes.
#[repr(C)]
#[derive(Default)]
struct Info {
    mask: u64,
    cgroup: u64,
    ids: [u32; 11],
    exit_status: i32,
}

const INFO_EXIT: u64 = 1 << 3;
nix::ioctl_readwrite!(get_info, 0xFF, 11, Info);

/// How a process ended that somebody else has reaped, as a wait status; `None` while it is not reaped.
///
/// An error: the kernel cannot say it (before Linux 6.15).
pub(crate) fn exit_status(pidfd: BorrowedFd<'_>) -> io::Result<Option<i32>> {
    let mut info = Info { mask: INFO_EXIT, ..Info::default() };
    // SAFETY: the request's number carries the size of `Info`, and the kernel writes no more than that.
    let asked = unsafe { get_info(pidfd.as_raw_fd(), &raw mut info) };
    match asked {
        Ok(_) => Ok((info.mask & INFO_EXIT != 0).then_some(info.exit_status)),
        // It is being reaped at this very moment; asked again, the kernel can tell.
        Err(nix::Error::ESRCH) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}
