//! The one timer table: everything the supervisor waits for stands here and nowhere else.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::server::{Generation, Slot, WorkerId};

/// What can run out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Timer {
    /// A template should have ended its preload.
    Preload(Generation),
    /// The delay before a lost template's successor is over.
    TemplateRetry(Generation),
    /// A worker should be ready, or should have drained.
    Worker(WorkerId),
    /// The time between the end of readiness and the gate is over.
    DrainDelay,
    /// The queues are to be looked at again.
    Look,
    /// The queues should have been served.
    QueueTime,
    /// The delay before a slot's next worker is over.
    SlotRetry(Slot),
    /// A worker has reached its age.
    Age(WorkerId),
    /// The workers are to be looked at.
    Sample,
    /// The delay before the next probe is over.
    Probe,
    /// The probe has served well by then.
    ProbeProven,
    /// A new master should serve.
    Upgrade,
}

/// Each timer with its time, by timer and by time.
#[derive(Debug, Default)]
pub(super) struct Timers {
    times: BTreeMap<Timer, Duration>,
    order: BTreeSet<(Duration, Timer)>,
}

impl Timers {
    /// Sets `timer` to `at`, whatever it stood at.
    pub(super) fn set(&mut self, timer: Timer, at: Duration) {
        self.cancel(timer);
        self.times.insert(timer, at);
        self.order.insert((at, timer));
    }

    /// Sets `timer` to `at` unless it runs out before that.
    pub(super) fn set_no_later(&mut self, timer: Timer, at: Duration) {
        if self.times.get(&timer).is_none_or(|&time| time > at) {
            self.set(timer, at);
        }
    }

    pub(super) fn cancel(&mut self, timer: Timer) {
        if let Some(at) = self.times.remove(&timer) {
            self.order.remove(&(at, timer));
        }
    }

    pub(super) fn is_set(&self, timer: Timer) -> bool {
        self.times.contains_key(&timer)
    }

    /// When the earliest timer runs out.
    pub(super) fn next(&self) -> Option<Duration> {
        self.order.first().map(|&(at, _)| at)
    }

    /// Takes out the earliest timer that has run out by `now`.
    pub(super) fn pop_due(&mut self, now: Duration) -> Option<Timer> {
        let &(at, timer) = self.order.first()?;
        if at > now {
            return None;
        }
        self.cancel(timer);
        Some(timer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn timers_come_due_in_order_and_once() {
        let mut timers = Timers::default();
        timers.set(Timer::SlotRetry(Slot(1)), 3 * SECOND);
        timers.set(Timer::SlotRetry(Slot(0)), 2 * SECOND);
        timers.set(Timer::SlotRetry(Slot(1)), SECOND);
        assert_eq!(timers.next(), Some(SECOND));
        assert_eq!(timers.pop_due(5 * SECOND), Some(Timer::SlotRetry(Slot(1))));
        assert_eq!(timers.pop_due(SECOND), None);
        assert_eq!(timers.pop_due(2 * SECOND), Some(Timer::SlotRetry(Slot(0))));
        assert_eq!(timers.next(), None);
    }

    #[test]
    fn set_no_later_only_ever_shortens() {
        let mut timers = Timers::default();
        let timer = Timer::Worker(WorkerId(1));
        timers.set_no_later(timer, 2 * SECOND);
        timers.set_no_later(timer, 3 * SECOND);
        assert_eq!(timers.next(), Some(2 * SECOND));
        timers.set_no_later(timer, SECOND);
        assert_eq!(timers.next(), Some(SECOND));
    }
}
