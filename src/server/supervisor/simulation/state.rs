//! What must hold after every event, whatever it was; and once the world has been healthy for long.

use std::collections::BTreeMap;
use std::time::Duration;

use super::super::table::Health;
use super::super::{Action, Event, Phase, Signal, Supervisor};
use super::super::{Limits, Scaling};
use super::SECOND;
use super::auditor::{Auditor, Worker, is_paused};
use super::consequences::Standing;
use super::world::World;
use crate::server::{Slot, WorkerId};

/// Where a client that comes is served, and the number of workers follows the load.
const WELCOMES: [Phase; 5] = [Phase::Serving, Phase::Preparing, Phase::Rolling, Phase::Unready, Phase::Gated];

impl Auditor {
    pub(super) fn check_state(&mut self, actions: &[Action], supervisor: &Supervisor, world: &World) {
        self.consequences.check(actions, supervisor.phase());
        self.tickets.check(actions, supervisor);
        assert_eq!(supervisor.health(), self.consequences.health.health);
        self.check_phase(supervisor.phase());
        self.check_target(supervisor.target());
        self.check_agreement(actions, supervisor, world);
        self.standing =
            Standing { phase: supervisor.phase(), current: supervisor.generation(), incoming: supervisor.incoming() };
        let surge = self.policy.max_surge;
        let most = 6 * (self.policy.max_workers + surge) as usize + 12;
        assert!(actions.len() <= most, "{} actions at once", actions.len());
        if self.event == Event::Tick {
            let next = supervisor.next_timer();
            assert!(next.is_none_or(|at| at > self.now), "a timer in the past");
            self.check_nobody_is_overdue();
        }
        let mut seats: BTreeMap<Slot, Vec<&Worker>> = BTreeMap::new();
        for worker in self.workers.values().filter(|worker| worker.is_seated()) {
            let forkable = worker.forked || world.has_ready_template(worker.generation);
            assert!(forkable, "a fork waits for a template that is gone");
            seats.entry(worker.slot).or_default().push(worker);
        }
        let seated: usize = seats.values().map(Vec::len).sum();
        assert!(seated <= (self.target + surge) as usize, "more than the surge");
        let staffed = !supervisor.phase().is_ending() && !is_paused(supervisor.phase());
        for (slot, seat) in &seats {
            assert!(staffed && slot.0 < self.target, "slot {slot} is taken");
            match seat.as_slice() {
                [_] => {}
                [old, new] if old.generation == new.generation => {
                    assert!(old.worn && old.ready.is_some(), "two in slot {slot}");
                }
                [_, _] => {}
                _ => panic!("{} in slot {slot}", seat.len()),
            }
        }
        self.check_wear(supervisor);
        let sleeps = self.target == 0 && WELCOMES.contains(&supervisor.phase());
        assert!(!sleeps || self.awaiting, "a client would wait in vain");
        let known: Vec<WorkerId> = self.workers.keys().copied().collect();
        let theirs: Vec<_> = supervisor.workers().map(|(worker, _)| worker.id).collect();
        assert_eq!(theirs, known, "somebody was forgotten");
        if staffed && supervisor.phase() != Phase::New {
            self.check_nobody_waits_for_nothing(&seats, supervisor);
        }
        if !supervisor.phase().is_ending() && supervisor.phase() != Phase::New {
            let has_template = world.templates().contains(&supervisor.generation());
            assert!(has_template || supervisor.retries_template(), "who could fork was forgotten");
        }
    }

    /// Whoever is beyond a limit is worn out, unless everybody is needed.
    fn check_wear(&self, supervisor: &Supervisor) {
        let (Event::Sampled(_) | Event::Tick) = self.event else {
            return;
        };
        if supervisor.phase().is_leaving() {
            return;
        }
        let sound = self.consequences.health.sound_for() > 2 * self.policy.sample_every;
        for (id, worker) in self.workers.iter().filter(|(_, worker)| worker.is_seated()) {
            let age = worker.ready.map_or(Duration::ZERO, |since| self.now - since);
            let too_old = self.policy.limits.age.is_some_and(|limit| age > limit + self.policy.sample_every);
            assert!(worker.worn || !too_old || !sound, "{id:?} grows old");
            assert!(worker.worn || !self.is_beyond(*id) || !sound, "{id:?} goes on and on");
        }
        let recycled = self.workers.values().filter(|worker| worker.is_seated() && worker.ready.is_none());
        let rolling = supervisor.phase() == Phase::Rolling;
        for new in recycled {
            let same = |old: &&Worker| old.slot == new.slot && old.ready.is_some() && old.is_seated();
            let old = self.workers.values().find(same);
            assert!(!rolling || old.is_none_or(|old| old.generation != new.generation), "recycled in a roll");
        }
    }

    /// Whether the event tells that the worker has answered or holds too much.
    fn is_beyond(&self, id: WorkerId) -> bool {
        let Event::Sampled(load) = &self.event else {
            return false;
        };
        let limits = self.policy.limits;
        load.workers.iter().filter(|sample| sample.id == id).any(|sample| {
            limits.requests.is_some_and(|limit| sample.requests >= limit)
                || limits.memory.is_some_and(|limit| sample.resident.is_some_and(|resident| resident >= limit))
        })
    }

    fn check_nobody_is_overdue(&self) {
        for (id, worker) in self.workers.iter().filter(|(_, worker)| worker.killed.is_none()) {
            assert!(worker.deadline(&self.policy).is_none_or(|deadline| self.now < deadline), "{id:?} had its time");
        }
    }

    /// A seat that lacks somebody is waited for: by a timer, or by a process that has been asked for.
    fn check_nobody_waits_for_nothing(&self, seats: &BTreeMap<Slot, Vec<&Worker>>, supervisor: &Supervisor) {
        let lacks = |slot| !seats.contains_key(&Slot(slot));
        if (0..self.target).any(lacks) {
            assert!(supervisor.next_timer().is_some(), "an empty seat was forgotten");
        }
    }

    fn check_phase(&self, phase: Phase) {
        let before = self.standing.phase;
        if phase != before {
            let ok = match phase {
                Phase::Paused => self.event == Event::Signal(Signal::DrainWorkers) || before == Phase::Replenishing,
                Phase::Replenishing => before == Phase::Paused,
                Phase::Yielding => self.handed_over || !self.served,
                Phase::Unready => self.event == Event::Signal(Signal::Stop),
                Phase::Gated => self.stops > 0 && self.gate_shut == Some(self.now),
                Phase::Stopping => before == Phase::Gated && self.listeners_closed,
                Phase::Quitting => self.event == Event::Signal(Signal::Quit),
                Phase::Killing => self.quits > 1,
                Phase::Left => self.left,
                _ => !before.is_ending(),
            };
            assert!(ok, "{phase:?} after {before:?} by {:?}", self.event);
        }
    }

    fn check_target(&mut self, target: u32) {
        let policy = &self.policy;
        let is_static = policy.scaling == Scaling::Static;
        let grown = policy.growth_per_second;
        let before = self.standing.phase;
        let moves = !before.is_leaving() && before != Phase::New;
        let (more, fewer) = ((self.target + 1).min(policy.max_workers), (self.target.max(2) - 1));
        let sound = self.consequences.health.health == Health::Sound;
        let (least, most) = match &self.event {
            Event::Signal(Signal::More) if is_static && moves && !is_paused(before) => (more, more),
            Event::Signal(Signal::Fewer) if is_static && moves => (fewer, fewer),
            Event::Sampled(load) if WELCOMES.contains(&before) && sound => {
                let waited_for = load.queue > 0 && matches!(policy.scaling, Scaling::OnDemand { .. });
                (self.target.saturating_sub(u32::from(!waited_for)), self.target + grown)
            }
            Event::ClientWaits | Event::TemplateReady { .. } if self.target == 0 => (0, 1),
            _ => (self.target, self.target),
        };
        assert!((least..=most).contains(&target), "{target} after {} by {:?}", self.target, self.event);
        let bounds = match policy.scaling {
            Scaling::Static => 1..=policy.max_workers,
            Scaling::Dynamic { min, max, .. } => min..=max,
            Scaling::OnDemand { max, .. } => 0..=max,
        };
        assert!(bounds.contains(&target), "{target} workers");
        self.check_pace(target);
        self.target = target;
    }

    /// Not too many more in a second, and fewer only when they have not been needed for long.
    fn check_pace(&mut self, target: u32) {
        if matches!(self.event, Event::Signal(_)) {
            return;
        }
        if target > self.target {
            // From none to one is no growth: a client is there for it, and the slot's own delay holds.
            let grown = if self.target == 0 { 0 } else { target - self.target };
            self.grown.push_back((self.now, grown));
            self.moved_at = self.now;
        }
        self.grown.retain(|(at, _)| *at + SECOND > self.now);
        let grown: u32 = self.grown.iter().map(|(_, count)| count).sum();
        assert!(grown <= self.policy.growth_per_second, "{grown} more within a second");
        if target < self.target {
            let patience = match self.policy.scaling {
                Scaling::Dynamic { .. } => self.policy.shrink_after,
                _ => Duration::ZERO,
            };
            assert!(self.now >= self.moved_at + patience, "it flaps");
            assert!(matches!(self.standing.phase, Phase::Serving | Phase::Preparing), "fewer in {:?}", self.standing);
            self.moved_at = self.now;
        }
    }

    pub(super) fn assert_staffed(&self, supervisor: &Supervisor) {
        assert!(self.is_staffed(supervisor), "a slot is not ready");
    }

    /// Whether each slot has a ready worker of the generation that serves.
    fn is_staffed(&self, supervisor: &Supervisor) -> bool {
        (0..supervisor.target()).all(|slot| {
            let holds = |worker: &Worker| {
                worker.slot == Slot(slot)
                    && worker.ready.is_some()
                    && worker.is_seated()
                    && worker.generation == supervisor.generation()
            };
            self.workers.values().any(holds)
        })
    }

    /// Whether all is as the operator wants it.
    pub(super) fn is_at_rest(&self, supervisor: &Supervisor, world: &World) -> bool {
        let moving = self.policy.limits != Limits::default() || self.policy.scaling != Scaling::Static;
        supervisor.phase() == Phase::Serving
            && supervisor.health() == Health::Sound
            && self.workers.len() == self.target as usize
            && world.processes() == self.target as usize
            && world.templates() == [supervisor.generation()]
            && !world.has_new_master()
            && self.is_staffed(supervisor)
            && (world.demand == 0 || self.target > 0)
            && (moving || supervisor.next_timer().is_none())
    }

    /// In a world that has been healthy for long, all is as the operator wants it.
    pub(super) fn assert_at_rest(&self, supervisor: &Supervisor, world: &World) {
        assert!(
            self.is_at_rest(supervisor, world),
            "{:?}: {:?} of {}",
            supervisor.phase(),
            self.workers.keys(),
            self.target
        );
        assert_eq!(supervisor.incoming(), None);
    }
}
