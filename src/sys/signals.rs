//! Signal masks around a fork, and the state in which a process starts.

use std::io;

use nix::errno::Errno;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, SigmaskHow, Signal, sigaction};

/// Blocks all signals of the calling thread; the mask that held before comes back.
pub(crate) fn block_all() -> io::Result<SigSet> {
    Ok(SigSet::all().thread_swap_mask(SigmaskHow::SIG_BLOCK)?)
}

/// Sets the calling thread's mask, as [`block_all`] gave it.
pub(crate) fn restore(mask: &SigSet) -> io::Result<()> {
    Ok(mask.thread_set_mask()?)
}

/// Lets this signal through to the calling thread.
pub(crate) fn unblock(signal: Signal) -> Result<(), Errno> {
    let mut one = SigSet::empty();
    one.add(signal);
    one.thread_unblock()
}

/// Lets all signals through.
///
/// Every new process calls it first, so it is the bare system call: libc's functions for it lie in two
/// parts of libc that nothing else touches there, and each would cost a page fault.
pub(crate) fn unblock_all() -> io::Result<()> {
    let none = 0u64;
    // SAFETY: the kernel reads a set of the size that it is told, and `none` has that size.
    let done = unsafe {
        libc::syscall(
            libc::SYS_rt_sigprocmask,
            libc::SIG_SETMASK,
            &raw const none,
            std::ptr::null_mut::<u64>(),
            size_of_val(&none),
        )
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Gives every signal the action that it has when a Rust program starts: SIGPIPE is ignored.
pub(crate) fn default_of_rust() {
    default_all();
    let ignore = SigAction::new(SigHandler::SigIgn, SaFlags::empty(), SigSet::empty());
    // SAFETY: ignoring runs no code of this process.
    let ignored = unsafe { sigaction(Signal::SIGPIPE, &ignore) };
    debug_assert!(ignored.is_ok(), "SIGPIPE cannot be ignored");
}

/// Gives every signal its default action, as a newly executed program expects it.
///
/// `exec` resets handlers by itself but keeps what is ignored, and Rust's runtime ignores SIGPIPE.
pub(crate) fn default_all() {
    let default = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
    for signal in Signal::iterator() {
        if signal != Signal::SIGKILL && signal != Signal::SIGSTOP {
            // SAFETY: the default action runs no code of this process.
            let reset = unsafe { sigaction(signal, &default) };
            debug_assert!(reset.is_ok(), "{signal} cannot be reset");
        }
    }
}
