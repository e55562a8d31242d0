//! Recycling: a worker that has reached one of its limits is worn out. It then counts as stale in its seat, so it is
//! followed as in a roll: its successor is ready first, and no more seats change at a time than the surge has room for.
//!
//! Each worker has limits of its own, somewhat below those of the policy, so that workers which began together do not
//! end together. While the fleet is not sound nobody is worn out: whoever serves is kept.

use std::fmt;
use std::time::Duration;

use super::fleet::{Worker, WorkerState};
use super::table::Health;
use super::timers::Timer;
use super::{Load, Notice, Supervisor};
use crate::machine::Random;
use crate::server::WorkerId;

/// When a worker is worn out; none is never.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Limits {
    /// Requests that it has answered.
    pub(crate) requests: Option<u64>,
    /// Time since its readiness.
    pub(crate) age: Option<Duration>,
    /// Resident memory, in bytes.
    pub(crate) memory: Option<u64>,
}

impl Limits {
    /// One worker's own limits.
    pub(super) fn for_one(self, random: &mut Random) -> Limits {
        Limits {
            requests: self.requests.map(|requests| random.lowered(requests)),
            age: self.age.map(|age| random.lowered_time(age)),
            memory: self.memory.map(|bytes| random.lowered(bytes)),
        }
    }

    /// Whether workers must be looked at to know.
    pub(super) fn need_samples(self) -> bool {
        self.requests.is_some() || self.memory.is_some()
    }
}

/// The limit that a worker has reached, and what it had reached by then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WornBy {
    Requests(u64),
    Age(Duration),
    /// Bytes.
    Memory(u64),
}

impl fmt::Display for WornBy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Requests(count) => write!(f, "it has answered {count} requests"),
            Self::Age(age) => write!(f, "it has served for {} s", age.as_secs()),
            Self::Memory(bytes) => write!(f, "it holds {} KiB of memory", bytes / 1024),
        }
    }
}

impl Supervisor {
    /// The next look at the workers is due: where there is any need, they are looked at.
    pub(super) fn sample_due(&mut self) {
        if self.sampling_interval().is_none() {
            return;
        }
        let memory = self.policy.limits.memory.is_some() && self.now >= self.memory_due;
        if memory {
            self.memory_due = self.now + self.policy.sample_every;
        }
        self.act(super::Action::Sample { memory });
    }

    /// Sees to it that there is a next look, if there will be anything to see.
    pub(super) fn plan_sample(&mut self) {
        if let Some(interval) = self.sampling_interval()
            && !self.timers.is_set(Timer::Sample)
        {
            self.timers.set(Timer::Sample, self.now + interval);
        }
    }

    fn sampling_interval(&self) -> Option<Duration> {
        let limited = self.policy.limits.need_samples() && self.fleet.ready() > 0;
        let for_limits = limited.then_some(self.policy.sample_every);
        self.scaling_interval().or(for_limits).filter(|_| self.phase.is_staffed())
    }

    pub(super) fn sampled(&mut self, load: &Load) {
        for sample in &load.workers {
            let Some(worker) = self.fleet.get_mut(sample.id) else {
                continue;
            };
            worker.served |= sample.requests > 0;
            let limits = worker.limits;
            let reached = |limit: Option<u64>, now: u64| limit.is_some_and(|limit| now >= limit);
            if reached(limits.requests, sample.requests) {
                self.wear_out(sample.id, WornBy::Requests(sample.requests));
            } else if let Some(resident) = sample.resident
                && reached(limits.memory, resident)
            {
                self.wear_out(sample.id, WornBy::Memory(resident));
            }
        }
        self.scale(load);
    }

    /// A worker begins to age.
    pub(super) fn plan_end(&mut self, id: WorkerId) {
        let end = self.fleet.get(id).and_then(|worker| Some(worker.ready_at? + worker.limits.age?));
        if let Some(end) = end {
            self.timers.set(Timer::Age(id), end.max(self.now));
        }
    }

    /// A worker's time is up.
    pub(super) fn aged(&mut self, id: WorkerId) {
        let Some(ready_at) = self.fleet.get(id).and_then(|worker| worker.ready_at) else {
            return;
        };
        if !self.wear_out(id, WornBy::Age(self.now - ready_at)) {
            // The fleet is not sound; it may be, later.
            self.timers.set(Timer::Age(id), self.now + self.policy.sample_every);
        }
    }

    /// Marks a worker, and says whether it is marked.
    fn wear_out(&mut self, id: WorkerId, by: WornBy) -> bool {
        let fit = |worker: &&Worker| worker.state() == WorkerState::Ready && !worker.worn;
        if self.phase.is_leaving() || self.fleet.get(id).filter(fit).is_none() {
            return true; // It is on its way out already.
        }
        if self.restarts.health != Health::Sound {
            return false;
        }
        if let Some(worker) = self.fleet.set_worn(id, true) {
            self.notice(Notice::WornOut { worker, by });
        }
        true
    }

    /// The fleet is in need of everybody who serves: whoever has no successor yet is taken for fit again.
    pub(super) fn keep_worn(&mut self) {
        for id in self.fleet.ids_where(|worker| worker.worn && worker.state() == WorkerState::Ready) {
            let slot = self.fleet.get(id).map(|worker| worker.slot);
            let has_successor = slot.is_some_and(|slot| self.fleet.seats.sitters(slot).len() > 1);
            if !has_successor {
                self.fleet.set_worn(id, false);
                self.plan_end(id);
            }
        }
    }
}
