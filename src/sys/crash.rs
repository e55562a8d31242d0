//! The signals by which a process dies of its own fault: SEGV, BUS, ILL, FPE, ABRT.
//!
//! The handler says the last words, leaves the call stack for the log, and lets the signal take its default course, so the process ends by
//! the same signal as without it, and leaves a core where one is wanted. It runs on an alternate stack
//! (sigaltstack(2)): a stack that has overflowed can take no handler.

use std::mem;
use std::ptr;
use std::sync::OnceLock;

use nix::errno::Errno;

use super::last_words::{self, Cause};
use super::trace;

const SIGNALS: [libc::c_int; 5] = [libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGFPE, libc::SIGABRT];

/// Enough for the frame that the kernel writes (AT_MINSIGSTKSZ, getauxval(3)), for the handler and for the unwinder.
const STACK: usize = 64 * 1024;
/// As large as the largest page that Linux has.
const GUARD: usize = 64 * 1024;

/// What each signal's handler was before the user's code ran.
static FOUND: OnceLock<[libc::sighandler_t; 5]> = OnceLock::new();

/// Notes the handlers of this process as those of the runtime, which [`install`] may replace. It belongs
/// before the user's code: Rust's runtime has handlers of its own, which tell a stack overflow, and they
/// cannot be told from a service's by their looks.
pub(crate) fn note_handlers() -> Result<(), Errno> {
    let mut found = [libc::SIG_DFL; 5];
    for (handler, signal) in found.iter_mut().zip(SIGNALS) {
        *handler = exchange(signal, None)?.sa_sigaction;
    }
    let _ = FOUND.set(found);
    Ok(())
}

/// Handles the signals from now on, in the calling thread's process, and sees to an alternate stack for
/// the calling thread; Rust's own threads have one. A handler that has come since [`note_handlers`] is
/// the service's, and left alone, as is a signal that is ignored. Without notes nothing is done.
pub(crate) fn install() -> Result<(), Errno> {
    let Some(found) = FOUND.get() else {
        return Ok(());
    };
    ensure_stack()?;
    // SAFETY: a sigaction is plain numbers and pointers, for which zero is valid.
    let mut ours: libc::sigaction = unsafe { mem::zeroed() };
    ours.sa_sigaction = on_crash as *const () as libc::sighandler_t;
    ours.sa_flags = libc::SA_ONSTACK;
    // SAFETY: the set is a live value of this frame.
    unsafe { libc::sigfillset(&raw mut ours.sa_mask) };
    for (&found, signal) in found.iter().zip(SIGNALS) {
        let before = exchange(signal, Some(&ours))?;
        if before.sa_sigaction != found || before.sa_sigaction == libc::SIG_IGN {
            exchange(signal, Some(&before))?;
        }
    }
    Ok(())
}

/// All signals are blocked meanwhile, so a fault in here ends the process at once (signal(7)).
extern "C" fn on_crash(signal: libc::c_int) {
    die(signal, Cause::Crash);
}

/// What a worker does at its end, in the handler of the signal by which it dies: it says its last words, leaves its call
/// stack, and lets the signal take its default course.
pub(super) fn die(signal: libc::c_int, cause: Cause) {
    last_words::speak(cause);
    trace::leave(signal);
    trace::die_by(signal);
}

/// Sets the signal's action, if one is given; the one before comes back.
fn exchange(signal: libc::c_int, action: Option<&libc::sigaction>) -> Result<libc::sigaction, Errno> {
    // SAFETY: a sigaction is plain numbers and pointers, for which zero is valid.
    let mut before: libc::sigaction = unsafe { mem::zeroed() };
    let action = action.map_or(ptr::null(), ptr::from_ref);
    // SAFETY: both are live values or null. What is set is what the kernel gave, or a handler that makes
    // async-signal-safe calls only and does not return to the code that it interrupts.
    let done = unsafe { libc::sigaction(signal, action, &raw mut before) };
    Errno::result(done).map(|_| before)
}

/// Rust's runtime has made one for the main thread, which a fork keeps; it is too small for a walk over the call stack.
/// Below ours lies a page that nobody may touch.
fn ensure_stack() -> Result<(), Errno> {
    // SAFETY: a stack_t is plain numbers and a pointer, for which zero is valid.
    let mut stack: libc::stack_t = unsafe { mem::zeroed() };
    // SAFETY: `stack` is live and writable.
    Errno::result(unsafe { libc::sigaltstack(ptr::null(), &raw mut stack) })?;
    if stack.ss_flags & libc::SS_DISABLE == 0 && stack.ss_size >= STACK {
        return Ok(());
    }
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_STACK;
    // SAFETY: a new mapping at an address of the kernel's choice touches nothing that exists.
    let guard = unsafe { libc::mmap(ptr::null_mut(), GUARD + STACK, libc::PROT_NONE, flags, -1, 0) };
    if guard == libc::MAP_FAILED {
        return Err(Errno::last());
    }
    // SAFETY: it lies within the mapping that was just made.
    let memory = unsafe { guard.add(GUARD) };
    // SAFETY: this part of the mapping is ours, and nobody uses it yet.
    Errno::result(unsafe { libc::mprotect(memory, STACK, libc::PROT_READ | libc::PROT_WRITE) })?;
    let stack = libc::stack_t { ss_sp: memory, ss_flags: 0, ss_size: STACK };
    // SAFETY: the mapping is of that size and is never unmapped.
    Errno::result(unsafe { libc::sigaltstack(&raw const stack, ptr::null_mut()) }).map(drop)
}
