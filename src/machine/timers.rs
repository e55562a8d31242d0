//! The one timer table of a state machine: everything it waits for stands here and nowhere else.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Each timer with its time since a fixed start, by timer and by time.
#[derive(Debug)]
pub(crate) struct Timers<T> {
    times: BTreeMap<T, Duration>,
    order: BTreeSet<(Duration, T)>,
}

impl<T> Default for Timers<T> {
    fn default() -> Self {
        Self { times: BTreeMap::new(), order: BTreeSet::new() }
    }
}

impl<T: Copy + Ord> Timers<T> {
    /// Sets `timer` to `at`, whatever it stood at.
    pub(crate) fn set(&mut self, timer: T, at: Duration) {
        self.cancel(timer);
        self.times.insert(timer, at);
        self.order.insert((at, timer));
    }

    /// Sets `timer` to `at` unless it runs out before that.
    pub(crate) fn set_no_later(&mut self, timer: T, at: Duration) {
        if self.times.get(&timer).is_none_or(|&time| time > at) {
            self.set(timer, at);
        }
    }

    pub(crate) fn cancel(&mut self, timer: T) {
        if let Some(at) = self.times.remove(&timer) {
            self.order.remove(&(at, timer));
        }
    }

    /// Cancels every timer of this kind.
    pub(crate) fn cancel_where(&mut self, is: impl Fn(&T) -> bool) {
        self.times.retain(|timer, _| !is(timer));
        self.order.retain(|(_, timer)| !is(timer));
    }

    pub(crate) fn is_set(&self, timer: T) -> bool {
        self.times.contains_key(&timer)
    }

    /// Every timer that is set.
    #[cfg(test)]
    pub(crate) fn all(&self) -> impl Iterator<Item = &T> {
        self.times.keys()
    }

    /// When the earliest timer runs out.
    pub(crate) fn next(&self) -> Option<Duration> {
        self.order.first().map(|&(at, _)| at)
    }

    /// Takes out the earliest timer that has run out by `now`.
    pub(crate) fn pop_due(&mut self, now: Duration) -> Option<T> {
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
        timers.set("b", 3 * SECOND);
        timers.set("a", 2 * SECOND);
        timers.set("b", SECOND);
        assert_eq!(timers.next(), Some(SECOND));
        assert_eq!(timers.pop_due(5 * SECOND), Some("b"));
        assert_eq!(timers.pop_due(SECOND), None);
        assert_eq!(timers.pop_due(2 * SECOND), Some("a"));
        assert_eq!(timers.next(), None);
    }

    #[test]
    fn set_no_later_only_ever_shortens() {
        let mut timers = Timers::default();
        let timer = "c";
        timers.set_no_later(timer, 2 * SECOND);
        timers.set_no_later(timer, 3 * SECOND);
        assert_eq!(timers.next(), Some(2 * SECOND));
        timers.set_no_later(timer, SECOND);
        assert_eq!(timers.next(), Some(SECOND));
    }
}
