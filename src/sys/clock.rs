//! The clock of deadlines and of the scoreboard: CLOCK_MONOTONIC as one number.
//!
//! A number, unlike `Instant`, fits into an atomic, so a signal handler and another process can read
//! it. On Linux it counts from the machine's boot, the same in every process (clock_gettime(2)), and
//! is read through the vDSO, without a system call.

use std::num::NonZeroU64;
use std::time::{Duration, Instant};

use nix::poll::PollTimeout;

/// A moment, in nanoseconds of CLOCK_MONOTONIC. Never zero, so zero may stand for "none".
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Monotonic(NonZeroU64);

impl Monotonic {
    /// Now.
    pub(crate) fn now() -> Self {
        let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: `time` is a live, writable timespec; the call keeps no pointer to it.
        unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
        let nanos = time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64;
        Self::from_nanos(nanos.max(1)).unwrap_or(Self(NonZeroU64::MIN))
    }

    /// The moment that [`nanos`](Self::nanos) named; none for zero.
    pub(crate) fn from_nanos(nanos: u64) -> Option<Self> {
        NonZeroU64::new(nanos).map(Self)
    }

    /// Nanoseconds of CLOCK_MONOTONIC.
    pub(crate) fn nanos(self) -> u64 {
        self.0.get()
    }

    /// This moment and `span` more; at the end of time for a `span` that does not fit.
    pub(crate) fn after(self, span: Duration) -> Self {
        let nanos = u64::try_from(span.as_nanos()).unwrap_or(u64::MAX);
        Self(self.0.saturating_add(nanos))
    }

    /// How long it is from `earlier` to this moment; zero if it is not earlier.
    pub(crate) fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.nanos().saturating_sub(earlier.nanos()))
    }

    /// The same moment on std's clock, near enough: both clocks are read one after the other.
    pub(crate) fn instant(self) -> Instant {
        let (instant, now) = (Instant::now(), Self::now());
        if self >= now { instant + self.since(now) } else { instant.checked_sub(now.since(self)).unwrap_or(instant) }
    }
}

/// The time that is left, for poll(2) and epoll_wait(2): rounded up, or the last millisecond would be spent spinning. What
/// is longer than they can wait for, 24 days, is cut: who has waited looks at the clock again.
pub(crate) fn poll_timeout(left: Duration) -> PollTimeout {
    PollTimeout::try_from(left.as_nanos().div_ceil(1_000_000)).unwrap_or(PollTimeout::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_is_rounded_up_and_cut_to_what_can_be_waited_for() {
        let nanos = Duration::from_nanos;
        for (left, waited) in [(nanos(0), 0_u16), (nanos(1), 1), (nanos(1_000_000), 1), (nanos(1_000_001), 2)] {
            assert_eq!(poll_timeout(left), PollTimeout::from(waited), "{left:?}");
        }
        assert_eq!(poll_timeout(Duration::MAX), PollTimeout::MAX);
    }
}
