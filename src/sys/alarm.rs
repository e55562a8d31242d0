//! One POSIX timer that interrupts, and in the end kills, a thread that overstays.
//!
//! The thread says when its work must end by storing two moments; that costs no system call. The
//! timer is set only when none is pending that fires early enough, so a busy thread sets it once and
//! the handler, when it comes too early, sets it again for what is left. From the soft moment on the
//! handler comes every few milliseconds until the work ends: a signal that lands just before a
//! blocking call does not interrupt that call, the next one does. At the hard moment the handler says
//! the last words, and the signal gets its default action and ends the process.

use std::mem;
use std::ptr;
use std::sync::atomic::{AtomicPtr, AtomicU64, Ordering, compiler_fence};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

use super::clock::Monotonic;
use super::crash;
use super::hangup;
use super::last_words::Cause;
use super::signals;

/// How soon the signal comes again once the soft moment has passed.
const AGAIN: Duration = Duration::from_millis(10);

const NEVER: u64 = u64::MAX;

// The handler can reach nothing but statics. It runs on the thread that stores here, between two
// instructions of it, so relaxed atomics kept in order by compiler fences are enough.
static SOFT: AtomicU64 = AtomicU64::new(NEVER);
static HARD: AtomicU64 = AtomicU64::new(NEVER);
static PENDING: AtomicU64 = AtomicU64::new(NEVER);
// Never used before it is set. Not null, since what begins as zero stands on another page (.bss) than
// what does not (.data): so a worker has a copy of its own of one page and not of two.
static TIMER: AtomicPtr<libc::c_void> = AtomicPtr::new(ptr::dangling_mut());

/// The process's alarm, for the thread that installed it.
#[derive(Debug)]
pub(crate) struct Alarm(());

impl Alarm {
    /// Makes the timer and takes SIGALRM over, for the calling thread. Timers do not survive a fork,
    /// so this belongs after it. A second call in one process moves the alarm to its caller.
    pub(crate) fn install() -> Result<Self, Errno> {
        // No SA_RESTART: the point is that the blocking call returns.
        let handler = SigHandler::Handler(on_alarm);
        let action = SigAction::new(handler, SaFlags::empty(), SigSet::empty());
        // SAFETY: the handler makes async-signal-safe calls only and restores errno.
        unsafe { sigaction(Signal::SIGALRM, &action) }?;
        TIMER.store(create_timer()?, Ordering::Relaxed);
        signals::unblock(Signal::SIGALRM)?;
        Ok(Self(()))
    }

    /// The work in hand is to be interrupted from `soft` on and killed at `hard`.
    pub(crate) fn begin(&self, soft: Monotonic, hard: Monotonic) {
        self.keep(soft, hard);
        if soft.nanos() < PENDING.load(Ordering::Relaxed) {
            set_timer(soft.nanos());
        }
    }

    /// As [`begin`](Self::begin), for work that nothing pending from before may interrupt: at the cost of a system call.
    pub(crate) fn begin_anew(&self, soft: Monotonic, hard: Monotonic) {
        self.keep(soft, hard);
        set_timer(soft.nanos());
    }

    fn keep(&self, soft: Monotonic, hard: Monotonic) {
        HARD.store(hard.nanos(), Ordering::Relaxed);
        compiler_fence(Ordering::SeqCst);
        SOFT.store(soft.nanos(), Ordering::Relaxed);
        compiler_fence(Ordering::SeqCst);
    }

    /// The work is done. What is pending fires once more, finds nothing to do and stays off.
    pub(crate) fn end(&self) {
        SOFT.store(NEVER, Ordering::Relaxed);
        compiler_fence(Ordering::SeqCst);
    }
}

extern "C" fn on_alarm(_: libc::c_int) {
    let errno = Errno::last_raw();
    let soft = SOFT.load(Ordering::Relaxed);
    let now = Monotonic::now();
    if soft == NEVER {
        PENDING.store(NEVER, Ordering::Relaxed);
    } else if now.nanos() < soft {
        set_timer(soft);
    } else {
        hangup::note_deadline();
        let hard = HARD.load(Ordering::Relaxed);
        if now.nanos() < hard {
            set_timer(now.after(AGAIN).nanos().min(hard));
        } else {
            crash::die(libc::SIGALRM, Cause::Deadline);
        }
    }
    Errno::set_raw(errno);
}

fn set_timer(nanos: u64) {
    PENDING.store(nanos, Ordering::Relaxed);
    compiler_fence(Ordering::SeqCst);
    let value = libc::timespec {
        tv_sec: i64::try_from(nanos / 1_000_000_000).unwrap_or(i64::MAX),
        tv_nsec: (nanos % 1_000_000_000) as i64,
    };
    let interval = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    let setting = libc::itimerspec { it_interval: interval, it_value: value };
    let timer = TIMER.load(Ordering::Relaxed);
    // SAFETY: `install` stored a timer of this process before anything could call this; `setting`
    // is a live, valid itimerspec; the call is async-signal-safe.
    unsafe { libc::timer_settime(timer, libc::TIMER_ABSTIME, &raw const setting, ptr::null_mut()) };
}

/// A timer that signals the calling thread and no other: it is that thread's call to interrupt.
fn create_timer() -> Result<libc::timer_t, Errno> {
    // SAFETY: a sigevent is plain numbers and a pointer, for which zero is valid.
    let mut event: libc::sigevent = unsafe { mem::zeroed() };
    event.sigev_notify = libc::SIGEV_THREAD_ID;
    event.sigev_signo = libc::SIGALRM;
    event.sigev_notify_thread_id = nix::unistd::gettid().as_raw();
    let mut timer = ptr::null_mut();
    // SAFETY: both pointers are to live values of this frame; the kernel keeps neither.
    let result = unsafe { libc::timer_create(libc::CLOCK_MONOTONIC, &raw mut event, &raw mut timer) };
    Errno::result(result).map(|_| timer)
}
