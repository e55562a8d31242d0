//! Children for whose ends nobody waits: reaped as they end, in a SIGCHLD handler, and no others, since the process's own
//! code keeps its own.

use std::io;
use std::iter;
use std::ptr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicI32, AtomicPtr, Ordering};

use nix::errno::Errno;
use nix::unistd::Pid;

/// The handler walks these while others may come in: a seat, once made, stays for ever and is taken again.
struct Seat {
    child: AtomicI32,
    next: Option<&'static Seat>,
}

static SEATS: AtomicPtr<Seat> = AtomicPtr::new(ptr::null_mut());

/// No process has this number; waitpid(2) would take it for a group.
const FREE: i32 = 0;

/// Reaps this child when it ends, or now if it has. From now on its number is no longer this child's for sure.
pub(crate) fn reap_in_background(child: Pid) -> io::Result<()> {
    static HANDLER: OnceLock<()> = OnceLock::new();
    if HANDLER.get().is_none() {
        // SAFETY: the handler calls waitpid and uses lock-free atomics, and it keeps errno.
        unsafe { signal_hook::low_level::register(libc::SIGCHLD, reap_those_that_ended) }?;
        // Who comes second has registered it twice, which does no harm.
        let _ = HANDLER.set(());
    }
    seat(child);
    // It may have ended before it had its seat, and its signal has found nobody.
    reap_those_that_ended();
    Ok(())
}

fn seat(child: Pid) {
    let sits = |seat: &&'static Seat| {
        seat.child.compare_exchange(FREE, child.as_raw(), Ordering::AcqRel, Ordering::Relaxed).is_ok()
    };
    if seats().find(sits).is_some() {
        return;
    }
    let mut first = SEATS.load(Ordering::Acquire);
    loop {
        // SAFETY: null, or a seat that was leaked below and is never freed.
        let next = unsafe { first.as_ref() };
        let new = ptr::from_mut(Box::leak(Box::new(Seat { child: AtomicI32::new(child.as_raw()), next })));
        match SEATS.compare_exchange(first, new, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => return,
            // SAFETY: it was made above, and nobody else has come to know it.
            Err(_) => drop(unsafe { Box::from_raw(new) }),
        }
        first = SEATS.load(Ordering::Acquire);
    }
}

fn seats() -> impl Iterator<Item = &'static Seat> {
    // SAFETY: null, or a seat that was leaked and is never freed.
    let first = unsafe { SEATS.load(Ordering::Acquire).as_ref() };
    iter::successors(first, |seat| seat.next)
}

fn reap_those_that_ended() {
    let errno = Errno::last_raw();
    for seat in seats() {
        let child = seat.child.load(Ordering::Acquire);
        // SAFETY: waitpid is async-signal-safe (signal-safety(7)) and a null status is allowed.
        if child != FREE && unsafe { libc::waitpid(child, ptr::null_mut(), libc::WNOHANG) } != 0 {
            // From now on this number may be that of a child of the process's own code.
            let _ = seat.child.compare_exchange(child, FREE, Ordering::AcqRel, Ordering::Relaxed);
        }
    }
    Errno::set_raw(errno);
}
