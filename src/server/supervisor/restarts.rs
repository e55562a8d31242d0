//! The book of failures: those of each slot in a row, those of the fleet within the budget's window, and the one worker
//! that is tried while the fleet is not sound.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use super::policy::{Backoff, Budget};
use super::table::{self, Health, HealthStep, Strain};
use super::timers::Timer;
use super::{Notice, Supervisor};
use crate::server::{Slot, WorkerId};

/// Why a worker's end is no good sign. A shortage is the third cause; it is no slot's fault and is not counted here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cause {
    /// It refused, died before it was ready, was not ready in time, or its template could not fork it.
    NeverReady,
    /// It was ready, and died soon without having answered a request.
    DiedYoung,
}

/// How many ended for each cause.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Failures {
    pub(crate) never_ready: u32,
    pub(crate) died_young: u32,
}

impl Failures {
    pub(crate) fn sum(self) -> u32 {
        self.never_ready.saturating_add(self.died_young)
    }

    fn add(&mut self, cause: Cause) {
        let count = match cause {
            Cause::NeverReady => &mut self.never_ready,
            Cause::DiedYoung => &mut self.died_young,
        };
        *count = count.saturating_add(1);
    }
}

/// The book; see the [module](self).
#[derive(Debug)]
pub(super) struct Restarts {
    of_slot: BTreeMap<Slot, Failures>,
    /// The latest ends, oldest first; no more than the budget allows.
    recent: VecDeque<(Duration, Cause)>,
    pub(super) health: Health,
    /// Since when it is so.
    since: Duration,
    /// How many probes in a row have failed, the failure that led to the first included.
    tries: u32,
    probe: Option<WorkerId>,
    /// Where the last probe sat: the next sits elsewhere, if elsewhere too somebody is missing.
    last_probed: Option<Slot>,
}

impl Default for Restarts {
    fn default() -> Self {
        Self {
            of_slot: BTreeMap::new(),
            recent: VecDeque::new(),
            health: Health::Sound,
            since: Duration::ZERO,
            tries: 0,
            probe: None,
            last_probed: None,
        }
    }
}

impl Restarts {
    /// Counts one more failure in a row for the slot, and gives them.
    fn blame(&mut self, slot: Slot, cause: Cause) -> Failures {
        let failures = self.of_slot.entry(slot).or_default();
        failures.add(cause);
        *failures
    }

    pub(super) fn forgive(&mut self, slot: Slot) {
        self.of_slot.remove(&slot);
    }

    /// Counts an end against the budget, and says whether that is spent.
    fn charge(&mut self, now: Duration, cause: Cause, budget: Budget) -> bool {
        self.recent.push_back((now, cause));
        while self.recent.front().is_some_and(|(at, _)| now.saturating_sub(*at) >= budget.window) {
            self.recent.pop_front();
        }
        // More than the budget need not be remembered.
        if self.recent.len() > budget.restarts as usize {
            self.recent.pop_front();
        }
        self.recent.len() >= budget.restarts as usize
    }

    fn recent(&self) -> Failures {
        let mut failures = Failures::default();
        self.recent.iter().for_each(|(_, cause)| failures.add(*cause));
        failures
    }

    /// The slots in the order in which the next probe is to try them.
    pub(super) fn in_order_of_trial(&self, mut slots: Vec<Slot>) -> Vec<Slot> {
        if let (true, Some(last)) = (self.health != Health::Sound, self.last_probed) {
            let tried = slots.partition_point(|&slot| slot <= last);
            slots.rotate_left(tried);
        }
        slots
    }
}

impl Supervisor {
    /// The slot's next worker waits, and the fleet remembers why.
    pub(super) fn delay_slot(&mut self, slot: Slot, cause: Cause) {
        let failures = self.restarts.blame(slot, cause);
        let delay = self.policy.backoff.delay(failures.sum(), &mut self.random);
        self.timers.set(Timer::SlotRetry(slot), self.now + delay);
        self.notice(Notice::SlotDelayed { slot, failures, delay });
        if let Some(budget) = self.policy.budget
            && self.restarts.charge(self.now, cause, budget)
        {
            self.strain(Strain::BudgetSpent);
        }
    }

    /// Looks a strain up in the fleet's table and follows it.
    pub(super) fn strain(&mut self, strain: Strain) {
        let (health, step) = table::health(self.restarts.health, strain);
        let took = self.now - self.restarts.since;
        if self.restarts.health != health {
            self.restarts.health = health;
            self.restarts.since = self.now;
            self.restarts.tries = 0;
            self.dismiss_probe();
        }
        match step {
            HealthStep::Nothing => {}
            HealthStep::Rest => self.rest(),
            HealthStep::Degrade => {
                let window = self.policy.budget.map_or(Duration::ZERO, |budget| budget.window);
                let failures = self.restarts.recent();
                self.notice(Notice::Degraded { ready: self.fleet.ready(), failures, window });
                self.forgive_all_slots();
                self.keep_worn();
                self.rest();
            }
            HealthStep::Relieve => self.notice(Notice::Relieved { took }),
            HealthStep::Recover => {
                self.forget_failures();
                self.notice(Notice::Recovered { took });
            }
            HealthStep::Forget => self.forget_failures(),
        }
    }

    /// How many workers may be forked now.
    pub(super) fn allowance(&self) -> usize {
        let may_try = self.restarts.probe.is_none() && !self.timers.is_set(Timer::Probe);
        match self.restarts.health {
            Health::Sound => usize::MAX,
            Health::Short | Health::Degraded => usize::from(may_try),
        }
    }

    /// A worker was forked; unless the fleet is sound, it is the one that is tried.
    pub(super) fn note_fork(&mut self, id: WorkerId, slot: Slot) {
        if self.restarts.health != Health::Sound {
            self.restarts.probe = Some(id);
            self.restarts.last_probed = Some(slot);
        }
    }

    /// What has become of the probe, and whether there is any need of one.
    pub(super) fn look_after_probe(&mut self) {
        if self.phase.is_ending() {
            self.dismiss_probe();
            return;
        }
        let Some(id) = self.restarts.probe else {
            return;
        };
        let Some(probe) = self.fleet.get(id).filter(|worker| worker.is_seated()) else {
            self.strain(Strain::ProbeFailed);
            return;
        };
        let well_at = probe.ready_at.map(|at| at + self.policy.served_well_after);
        let served_well = probe.served || well_at.is_some_and(|at| at <= self.now);
        if !probe.is_unborn() || probe.ready_at.is_some() {
            self.strain(Strain::ProbeBorn);
        }
        if served_well {
            self.strain(Strain::ProbeServedWell);
        } else if let Some(at) = well_at.filter(|_| self.restarts.health == Health::Degraded) {
            self.timers.set(Timer::ProbeProven, at);
        }
    }

    /// Nobody is missing any more, so nobody needs to be tried.
    pub(super) fn note_nobody_lacks(&mut self) {
        if self.phase.is_staffed() && self.restarts.probe.is_none() && self.fleet.seats.are_all_taken() {
            self.strain(Strain::NobodyLacks);
        }
    }

    fn rest(&mut self) {
        self.dismiss_probe();
        self.restarts.tries = self.restarts.tries.saturating_add(1);
        let tries = self.restarts.tries;
        let backoff: &Backoff = match self.restarts.health {
            Health::Sound | Health::Short => &self.policy.shortage_backoff,
            Health::Degraded => &self.policy.probe_backoff,
        };
        let delay = backoff.delay(tries, &mut self.random);
        self.timers.set(Timer::Probe, self.now + delay);
        self.notice(match self.restarts.health {
            Health::Sound | Health::Short => Notice::Short { tries, delay },
            Health::Degraded => Notice::ProbeDelayed { tries, delay },
        });
    }

    fn dismiss_probe(&mut self) {
        self.restarts.probe = None;
        self.timers.cancel(Timer::Probe);
        self.timers.cancel(Timer::ProbeProven);
    }

    fn forget_failures(&mut self) {
        self.restarts.recent.clear();
        self.forgive_all_slots();
    }

    fn forgive_all_slots(&mut self) {
        self.restarts.of_slot.clear();
        // A slot may wait that is blamed for nothing any more: its successor failed, and then its worker died well.
        self.timers.cancel_where(|timer| matches!(timer, Timer::SlotRetry(_)));
    }
}
