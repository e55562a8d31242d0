//! The call stack of a thread that a signal has interrupted, as addresses, taken in the signal's handler.
//!
//! It is for a process that is about to die, of its overdue work or of its own fault: nothing is allocated and nothing resolved here.
//! The unwinder finds its tables without a lock since glibc 2.35 (`_dl_find_object`); with an older one the walk could wait
//! for ever for a lock that the interrupted code holds, so it has a limit.

use std::ffi::{c_int, c_void};
use std::ptr;
use std::slice;
use std::sync::atomic::{AtomicI32, AtomicPtr, AtomicU64, AtomicUsize, Ordering};

use nix::sys::signal::{SigSet, Signal};

const NO_REASON: c_int = 0;
const END_OF_STACK: c_int = 5;

type Visit = extern "C" fn(*mut c_void, *mut c_void) -> c_int;

// The platform's unwinder (Itanium C++ ABI, level I), with which the standard library is linked.
unsafe extern "C" {
    fn _Unwind_Backtrace(visit: Visit, argument: *mut c_void) -> c_int;
    fn _Unwind_GetIPInfo(frame: *mut c_void, before_instruction: *mut c_int) -> usize;
}

/// How long leaving the call stack may take.
const LIMIT_MICROS: libc::suseconds_t = 200_000;

const NOWHERE: usize = usize::MAX;
const NOBODY: i32 = -1;

// Where the call stack is left: the number of frames first, then the frames; and by which process. None of them begins as
// zero, or it would stand in .bss, and so on a page of which a worker has no copy of its own yet.
static PLACE: AtomicPtr<AtomicU64> = AtomicPtr::new(ptr::dangling_mut());
static PLACE_LENGTH: AtomicUsize = AtomicUsize::new(NOWHERE);
static OWNER: AtomicI32 = AtomicI32::new(NOBODY);
/// By which signal the process is about to die.
static FATAL: AtomicI32 = AtomicI32::new(libc::SIGKILL);

/// From now on [`leave`] leaves this process's call stack there: the number of its frames first, then the frames.
pub(crate) fn keep_in(place: &'static [AtomicU64]) {
    PLACE.store(place.as_ptr().cast_mut(), Ordering::Relaxed);
    PLACE_LENGTH.store(place.len(), Ordering::Relaxed);
    OWNER.store(nix::unistd::getpid().as_raw(), Ordering::Release);
}

/// Leaves the call stack of what the signal has interrupted in the place for it, if there is one. To be called in the
/// handler of a signal by which the process is about to die: if this takes too long, it dies by it here.
pub(super) fn leave(fatal: libc::c_int) {
    // Whatever the service has forked has a copy of all this, and of the place.
    // SAFETY: getpid(2) has no preconditions.
    if OWNER.load(Ordering::Acquire) != unsafe { libc::getpid() } {
        return;
    }
    end_within_the_limit(fatal);
    let length = PLACE_LENGTH.load(Ordering::Relaxed);
    // SAFETY: since there is an owner, `keep_in` has stored pointer and length of a static slice.
    let place = unsafe { slice::from_raw_parts(PLACE.load(Ordering::Relaxed), length) };
    if let [count, frames @ ..] = place {
        count.store(capture(frames) as u64, Ordering::Relaxed);
    }
}

/// The walk may go over a broken stack, or wait for a lock.
fn end_within_the_limit(fatal: libc::c_int) {
    FATAL.store(fatal, Ordering::Relaxed);
    // SAFETY: signal(2) is async-signal-safe, and so is what the handler calls.
    unsafe { libc::signal(libc::SIGALRM, on_limit as *const () as libc::sighandler_t) };
    let never = libc::timeval { tv_sec: 0, tv_usec: 0 };
    let limit = libc::itimerval { it_interval: never, it_value: libc::timeval { tv_sec: 0, tv_usec: LIMIT_MICROS } };
    // SAFETY: `limit` is live for the call, and setitimer(2) is a plain system call.
    unsafe { libc::setitimer(libc::ITIMER_REAL, &raw const limit, ptr::null_mut()) };
    unblock(libc::SIGALRM);
}

/// The walk has had its time. A deadline's timer that happens to fire meanwhile ends it as well, for which there is nothing
/// to be done but to lose the rest of the stack.
extern "C" fn on_limit(_: libc::c_int) {
    die_by(FATAL.load(Ordering::Relaxed));
}

/// Ends the process by the signal's default action. In the signal's own handler it acts when that returns.
pub(super) fn die_by(fatal: libc::c_int) {
    // SAFETY: signal(2) and raise(3) are async-signal-safe; the default action needs no handler.
    unsafe { libc::signal(fatal, libc::SIG_DFL) };
    // SAFETY: as above.
    unsafe { libc::raise(fatal) };
    unblock(fatal);
}

fn unblock(signal: libc::c_int) {
    let Ok(signal) = Signal::try_from(signal) else { return };
    let mut set = SigSet::empty();
    set.add(signal);
    // It cannot fail for a valid signal.
    let _ = set.thread_unblock();
}

struct Walk<'a> {
    frames: &'a [AtomicU64],
    count: usize,
}

/// Writes the addresses of the interrupted code and of its callers into `frames`, innermost first, as many as fit, and
/// gives their number. Each address lies within the call that it stands for.
fn capture(frames: &[AtomicU64]) -> usize {
    let mut walk = Walk { frames, count: 0 };
    // SAFETY: `visit` gets the pointer to `walk` back during this call alone, and `walk` outlives it.
    unsafe { _Unwind_Backtrace(visit, (&raw mut walk).cast()) };
    walk.count
}

extern "C" fn visit(frame: *mut c_void, walk: *mut c_void) -> c_int {
    // SAFETY: it is the `Walk` that `capture` has passed and does not touch meanwhile.
    let walk = unsafe { &mut *walk.cast::<Walk<'_>>() };
    let mut before_instruction = 0;
    // SAFETY: the unwinder calls with a live frame, and the flag is a live integer.
    let address = unsafe { _Unwind_GetIPInfo(frame, &raw mut before_instruction) };
    if address == 0 {
        return END_OF_STACK;
    }
    let interrupted = before_instruction != 0;
    if interrupted {
        // What was seen so far is the handler itself.
        walk.count = 0;
    }
    let Some(place) = walk.frames.get(walk.count) else {
        return END_OF_STACK;
    };
    // A caller's address is that of the instruction after the call.
    let within = if interrupted { address } else { address - 1 };
    place.store(within as u64, Ordering::Relaxed);
    walk.count += 1;
    NO_REASON
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    static LEFT: [AtomicU64; 33] = [const { AtomicU64::new(0) }; 33];

    extern "C" fn on_signal(signal: c_int) {
        leave(signal);
    }

    #[inline(never)]
    fn interrupted_function() {
        nix::sys::signal::raise(nix::sys::signal::Signal::SIGUSR1).expect("a signal can be raised");
        // Something after the call, or the call would become a jump and the frame would vanish.
        std::hint::black_box(());
    }

    /// Runs in a process of its own, because signal handlers are the whole process's.
    #[test]
    fn the_interrupted_functions_are_found_and_the_handler_is_not() {
        const CHILD: &str = "HATCHERY_TRACE_TEST";
        if std::env::var_os(CHILD).is_none() {
            let name = "sys::trace::tests::the_interrupted_functions_are_found_and_the_handler_is_not";
            let program = std::env::current_exe().expect("the test's own program");
            let status = Command::new(program).args([name, "--exact"]).env(CHILD, "1").status();
            assert!(status.expect("it starts").success());
            return;
        }
        use nix::sys::signal::{SaFlags, SigAction, SigHandler, sigaction};
        let action = SigAction::new(SigHandler::Handler(on_signal), SaFlags::empty(), SigSet::empty());
        // SAFETY: the handler stores into statics and walks its own stack.
        unsafe { sigaction(Signal::SIGUSR1, &action) }.expect("a handler can be installed");
        leave(nix::libc::SIGUSR1);
        assert_eq!(LEFT[0].load(Ordering::Relaxed), 0, "nobody has said where");
        keep_in(&LEFT);
        interrupted_function();
        let count = LEFT[0].load(Ordering::Relaxed) as usize;
        let frames: Vec<u64> = LEFT[1..=count].iter().map(|frame| frame.load(Ordering::Relaxed)).collect();
        let near = |function: usize| frames.iter().position(|&at| (at as usize).wrapping_sub(function) < 256);
        assert!(near(interrupted_function as *const () as usize).is_some_and(|at| at > 0), "{frames:x?}");
        assert_eq!(near(on_signal as *const () as usize), None, "{frames:x?}");
    }

    #[test]
    fn as_many_as_fit_are_kept() {
        let frames = [const { AtomicU64::new(0) }; 2];
        assert_eq!(capture(&frames), 2);
    }
}
