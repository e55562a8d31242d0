//! Waiting for children, with what they used.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd};

use nix::sys::wait::{Id, WaitPidFlag};
use nix::unistd::Pid;

/// What the kernel tells of a reaped child: its wait status and its resource usage.
pub(crate) struct Reaped {
    pub(crate) pid: Pid,
    /// As wait(2) gives it: see `WIFEXITED` and its like.
    pub(crate) status: i32,
    pub(crate) usage: libc::rusage,
}

/// Reaps one child that has ended, any child; `None` when none has (or there is none at all).
pub(crate) fn reap_any() -> Option<Reaped> {
    wait4(-1, libc::WNOHANG).ok().flatten()
}

/// Whether this process has that child, alive or not yet reaped.
pub(crate) fn is_child(pid: Pid) -> bool {
    // Only whether it may be waited for is asked: WNOWAIT leaves it as it is.
    let asked =
        nix::sys::wait::waitid(Id::Pid(pid), WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT);
    asked != Err(nix::Error::ECHILD)
}

/// Waits for one child of this process and reaps it.
pub(crate) fn reap(pid: Pid) -> io::Result<()> {
    wait4(pid.as_raw(), 0).map(|_| ())
}

/// Waits for one child of this process and reaps it: its status as wait(2) gives it.
///
/// # Errors
/// `Interrupted` by a signal whose handler does not restart calls.
pub(crate) fn reap_interruptibly(pid: Pid) -> io::Result<i32> {
    let mut status = 0;
    // SAFETY: the pointer is to a live integer.
    let reaped = unsafe { libc::waitpid(pid.as_raw(), &raw mut status, 0) };
    if reaped > 0 { Ok(status) } else { Err(io::Error::last_os_error()) }
}

/// Reaps one child of this process if it has ended: its status as wait(2) gives it; none while it runs.
pub(crate) fn try_reap(pid: Pid) -> io::Result<Option<i32>> {
    Ok(wait4(pid.as_raw(), libc::WNOHANG)?.map(|reaped| reaped.status))
}

fn wait4(pid: libc::pid_t, options: i32) -> io::Result<Option<Reaped>> {
    let mut status = 0;
    let mut usage = MaybeUninit::<libc::rusage>::zeroed();
    loop {
        // SAFETY: both pointers are to live memory of the right type.
        let reaped = unsafe { libc::wait4(pid, &raw mut status, options, usage.as_mut_ptr()) };
        return match reaped {
            0 => Ok(None),
            1.. => Ok(Some(Reaped {
                pid: Pid::from_raw(reaped),
                status,
                // SAFETY: zeroed is a valid value of this plain struct, and wait4 has filled it.
                usage: unsafe { usage.assume_init() },
            })),
            _ => match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::Interrupted => continue,
                error => Err(error),
            },
        };
    }
}

/// Reaps exactly the child that `pidfd` stands for; `None` while it runs.
///
/// ECHILD: it is not a child of this process, or somebody else has reaped it.
pub(crate) fn reap_by_pidfd(pidfd: BorrowedFd<'_>) -> io::Result<Option<Reaped>> {
    let mut info = MaybeUninit::<libc::siginfo_t>::zeroed();
    let mut usage = MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: the pointers are to live memory of the types that waitid(2) names. The system call is used
    // directly because libc's wrapper leaves out the last argument, the resource usage.
    let done = unsafe {
        libc::syscall(
            libc::SYS_waitid,
            libc::P_PIDFD,
            pidfd.as_raw_fd(),
            info.as_mut_ptr(),
            libc::WEXITED | libc::WNOHANG,
            usage.as_mut_ptr(),
        )
    };
    if done != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: zeroed is valid for this plain struct, and waitid has filled it.
    let info = unsafe { info.assume_init() };
    // SAFETY: after waitid without an error, si_pid is either 0 or the child's.
    let pid = unsafe { info.si_pid() };
    if pid == 0 {
        return Ok(None);
    }
    // SAFETY: a child was reported, so this is a SIGCHLD siginfo and si_status is set.
    let value = unsafe { info.si_status() };
    let status = match info.si_code {
        libc::CLD_EXITED => (value & 0xFF) << 8,
        libc::CLD_DUMPED => value | 0x80,
        _ => value,
    };
    Ok(Some(Reaped {
        pid: Pid::from_raw(pid),
        status,
        // SAFETY: zeroed is a valid value of this plain struct, and waitid has filled it.
        usage: unsafe { usage.assume_init() },
    }))
}
