//! How many workers there are to be: what is lacking now is started, what is too much leaves.

use std::time::Duration;

use super::table::Cue;
use super::{Cause, Core, Phase, Timer, WorkerNumber};

/// Whether a worker is lacking.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Need {
    /// There is nobody who could do what is to be done, or fewer than the least.
    AtOnce,
    /// There could be more, if that lasts.
    IfItLasts,
    None,
}

impl Core {
    pub(super) fn grow(&mut self) {
        loop {
            let need = self.need();
            if need != Need::IfItLasts {
                self.timers.cancel(Timer::Grow);
                self.grow_due = false;
            }
            // A timer looks at it again then.
            let may = self.now >= self.not_before && self.crew.len() < self.rules.max.get();
            match need {
                Need::AtOnce if may => drop(self.start()),
                Need::IfItLasts if may && (self.grow_due || self.rules.start.is_zero()) => {
                    self.grow_due = false;
                    self.start();
                }
                Need::IfItLasts if !self.grow_due && !self.timers.is_set(Timer::Grow) => {
                    return self.set_timer(Timer::Grow, self.rules.start);
                }
                _ => return,
            }
        }
    }

    fn need(&self) -> Need {
        let starting = self.count(Phase::Starting);
        let staff = starting + self.count(Phase::Serving);
        let (min, idle) = if self.closed { (0, 0) } else { (self.rules.min, self.rules.idle) };
        // After a failure one at a time is tried.
        if self.failures > 0 && starting > 0 {
            return Need::None;
        }
        if self.is_stuck() {
            let wanted = !self.closed && (self.wanted || min > 0 || idle > 0);
            return if wanted { Need::AtOnce } else { Need::None };
        }
        if staff < min || (staff == 0 && self.has_backlog()) {
            Need::AtOnce
        } else if self.is_short_handed() || self.idle.len() + starting < idle {
            Need::IfItLasts
        } else {
            Need::None
        }
    }

    /// Those who have reached a limit are replaced: their successors come first, where they are missed and there is room.
    pub(super) fn replace_worn(&mut self) {
        let waiting =
            |(&number, successor): (&WorkerNumber, &Option<WorkerNumber>)| successor.is_none().then_some(number);
        let worn: Vec<WorkerNumber> = self.worn.iter().filter_map(waiting).collect();
        for number in worn {
            let full = self.crew.len() >= self.rules.max.get();
            // While starts fail, an old worker is better than none.
            if self.closed || !self.is_missed(number) || (full && self.failures == 0) {
                self.step(number, Cue::Worn);
            } else if !full && self.now >= self.not_before {
                let successor = self.start();
                self.worn.insert(number, Some(successor));
            }
        }
    }

    /// Whether too few would be left without it.
    fn is_missed(&self, number: WorkerNumber) -> bool {
        let others = self.count(Phase::Serving).saturating_sub(1);
        let is_idle = |other: WorkerNumber| self.idle.iter().any(|(_, idle)| *idle == other);
        let idle_others = self.idle.len() - usize::from(is_idle(number));
        others < self.rules.min || idle_others < self.rules.idle || (idle_others == 0 && !is_idle(number))
    }

    fn has_too_many_idle(&self) -> bool {
        !self.closed && self.idle.len() > self.rules.idle && self.count(Phase::Serving) > self.rules.min
    }

    pub(super) fn plan_shrinking(&mut self) {
        if self.has_too_many_idle()
            && !self.timers.is_set(Timer::Shrink)
            && let Some(at) = self.longest_idle_may_leave()
        {
            self.timers.set(Timer::Shrink, at.max(self.now));
        }
    }

    pub(super) fn dismiss_idle(&mut self) {
        while self.has_too_many_idle()
            && self.longest_idle_may_leave().is_some_and(|at| at <= self.now)
            && let Some(&(_, number)) = self.idle.first()
        {
            self.retire(number, Cue::Unneeded, Cause::Idle);
        }
    }

    fn longest_idle_may_leave(&self) -> Option<Duration> {
        self.idle.first().and_then(|(since, _)| since.checked_add(self.rules.stop))
    }
}
