//! Scaling: how many workers there are to be, as the load has it.
//!
//! It grows at once and in doubling steps, up to a limit per second, while too few workers are idle; it shrinks by one worker
//! at a time, and only after there have been too many for a while. What lies between the least and the most idle workers
//! moves nothing, so a burst makes the fleet grow once, and the next burst finds it grown.
//!
//! Only a worker that is idle itself is sent away: to drain is to be killed when the graceful timeout is over, which is nothing
//! for somebody in the middle of a long answer. The worker of the highest slot goes first, so it is that one which must be idle.

use std::collections::VecDeque;
use std::time::Duration;

use super::fleet::WorkerState;
use super::table::{Health, Phase};
use super::timers::Timer;
use super::{Action, Load, Notice, Supervisor, WorkerLoad};
use crate::server::{Slot, WorkerId};

const SECOND: Duration = Duration::from_secs(1);

/// How the number of workers is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scaling {
    /// As many as the operator says.
    Static,
    /// From `min` to `max`, such that from `spare_min` to `spare_max` are idle.
    Dynamic { min: u32, max: u32, spare_min: u32, spare_max: u32 },
    /// None until a client comes, then as many as are busy, up to `max`; one that has been idle for so long leaves.
    OnDemand { max: u32, idle_timeout: Duration },
}

impl Scaling {
    /// How many workers a server begins with, if the operator wishes for so many. Each boot and each reload proves itself with one worker
    /// at least.
    pub(super) fn first_target(self, workers: u32, max_workers: u32) -> u32 {
        match self {
            Self::Static => workers.clamp(1, max_workers.max(1)),
            Self::Dynamic { min, .. } => min.max(1),
            Self::OnDemand { .. } => 1,
        }
    }

    /// The bounds between which the load moves the number of workers.
    fn bounds(self) -> Option<(u32, u32)> {
        match self {
            Self::Static => None,
            Self::Dynamic { min, max, .. } => Some((min.max(1), max)),
            Self::OnDemand { max, .. } => Some((0, max)),
        }
    }

    fn spare_min(self) -> u32 {
        if let Self::Dynamic { spare_min, .. } = self { spare_min } else { 0 }
    }
}

/// What the movement depends on beside the load of the moment.
#[derive(Debug, Default)]
pub(super) struct Scaler {
    /// How much the next step upwards may be.
    step: u32,
    /// The growth of the last second.
    grown: VecDeque<(Duration, u32)>,
    /// Since when too many are idle.
    surplus_since: Option<Duration>,
    /// A client is awaited.
    awaiting: bool,
}

impl Scaler {
    /// How much of a wish is granted now; each granted wish doubles the next step.
    fn grant(&mut self, now: Duration, wish: u32, per_second: u32) -> u32 {
        while self.grown.front().is_some_and(|(at, _)| *at + SECOND <= now) {
            self.grown.pop_front();
        }
        let grown: u32 = self.grown.iter().map(|(_, count)| count).sum();
        let granted = wish.min(self.step.max(1)).min(per_second.saturating_sub(grown));
        if granted > 0 {
            self.grown.push_back((now, granted));
        }
        self.step = self.step.max(1).saturating_mul(2).min(per_second);
        granted
    }
}

impl Supervisor {
    /// How often the workers must be looked at for their number's sake, if they must.
    pub(super) fn scaling_interval(&self) -> Option<Duration> {
        (self.policy.scaling != Scaling::Static && self.target > 0).then_some(self.policy.scale_every)
    }

    /// Moves the number of workers as the load has it.
    pub(super) fn scale(&mut self, load: &Load) {
        let Some((min, max)) = self.policy.scaling.bounds() else {
            return;
        };
        self.note_idleness(load);
        if !self.phase.welcomes() || self.restarts.health != Health::Sound {
            return;
        }
        let serves =
            |sample: &&WorkerLoad| self.fleet.get(sample.id).is_some_and(|worker| worker.state() == WorkerState::Ready);
        let idle = load.workers.iter().filter(serves).filter(|sample| !sample.busy).count() as u32;
        let spare = idle + self.under_way();
        let lacking = self.policy.scaling.spare_min().saturating_sub(spare);
        let wish = if spare == 0 { lacking.max(load.queue) } else { lacking };
        if wish > 0 {
            self.scaler.surplus_since = None;
            let wish = wish.min(max.saturating_sub(self.target));
            let granted = self.scaler.grant(self.now, wish, self.policy.growth_per_second);
            if granted > 0 {
                self.scale_to(self.target + granted, idle, load.queue);
            }
            return;
        }
        self.scaler.step = 1;
        let settled = matches!(self.phase, Phase::Serving | Phase::Preparing);
        if settled && self.target > min && self.is_too_many(spare, load.queue) {
            self.scaler.surplus_since = Some(self.now);
            self.scale_to(self.target - 1, idle, load.queue);
        }
    }

    /// The slots whose worker is not ready yet and will be idle soon. One that waits for its delay is no help for now.
    fn under_way(&self) -> u32 {
        let is_ready = |&id: &WorkerId| self.fleet.get(id).is_some_and(|worker| worker.state() == WorkerState::Ready);
        let awaited = |&slot: &Slot| {
            let sitters = self.fleet.seats.sitters(slot);
            !sitters.iter().any(is_ready) && (!sitters.is_empty() || !self.timers.is_set(Timer::SlotRetry(slot)))
        };
        (0..self.target).map(Slot).filter(awaited).count() as u32
    }

    /// Whether one may go: too many have been idle for long, and the one that would go is.
    fn is_too_many(&mut self, spare: u32, queue: u32) -> bool {
        match self.policy.scaling {
            Scaling::Static => false,
            Scaling::Dynamic { spare_max, .. } => {
                if spare <= spare_max {
                    self.scaler.surplus_since = None;
                    return false;
                }
                let since = *self.scaler.surplus_since.get_or_insert(self.now);
                self.now - since >= self.policy.shrink_after && self.last_is_idle_for(Duration::ZERO)
            }
            Scaling::OnDemand { idle_timeout, .. } => queue == 0 && self.last_is_idle_for(idle_timeout),
        }
    }

    /// Whether the worker of the highest slot has been idle for so long; nobody there is idle.
    fn last_is_idle_for(&self, time: Duration) -> bool {
        let last = Slot(self.target.saturating_sub(1));
        self.fleet.seats.sitters(last).iter().filter_map(|&id| self.fleet.get(id)).all(|worker| {
            let idle_since = worker.idle_since.filter(|_| worker.state() == WorkerState::Ready);
            idle_since.is_some_and(|since| self.now - since >= time)
        })
    }

    /// Writes down since when each worker has done nothing. One that has answered since the last look was not idle; on demand, one that
    /// holds connections is not either, because they would be closed.
    fn note_idleness(&mut self, load: &Load) {
        let on_demand = matches!(self.policy.scaling, Scaling::OnDemand { .. });
        for sample in &load.workers {
            if let Some(worker) = self.fleet.get_mut(sample.id) {
                let busy = sample.busy || (on_demand && sample.parked) || sample.requests != worker.requests;
                worker.requests = sample.requests;
                worker.idle_since = if busy { None } else { worker.idle_since.or(Some(self.now)) };
            }
        }
    }

    fn scale_to(&mut self, workers: u32, idle: u32, queue: u32) {
        self.target = workers;
        self.fleet.seats.unsettle_all(self.target);
        self.notice(Notice::Scaled { workers, idle, queue });
    }

    /// A client waits while there is no worker, or was heard of too late to matter.
    pub(super) fn client_waits(&mut self) {
        self.scaler.awaiting = false;
        // It is not limited: from none to one is no flood, and the next fall to none takes the idle timeout.
        if self.phase.welcomes() && self.target == 0 {
            self.scale_to(1, 0, 1);
        }
    }

    /// A new generation proves itself with one worker at least.
    pub(super) fn want_one_at_least(&mut self) {
        if self.target == 0 {
            self.scale_to(1, 0, 0);
        }
    }

    /// Without workers, clients are awaited by the master.
    pub(super) fn await_client(&mut self) {
        if self.target == 0 && self.phase.welcomes() && !self.scaler.awaiting {
            self.scaler.awaiting = true;
            self.act(Action::AwaitClient);
        }
    }
}
