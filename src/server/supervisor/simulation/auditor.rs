//! Keeps its own books from what the supervisor hears and asks for, and checks every action against them.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use super::super::{Action, Event, KillReason, Notice, Outcome, Phase, Policy, Signal};
use super::super::{StartFailure, Supervisor};
use super::SECOND;
use super::world::World;
use crate::server::{Generation, Slot, WorkerId};

/// A worker, as far as it has been heard of.
struct Worker {
    slot: Slot,
    generation: Generation,
    asked_at: Duration,
    forked: bool,
    ready: bool,
    /// Since when it is on its way out, and how long it has.
    leaving: Option<(Duration, Duration)>,
    killed: bool,
}

impl Worker {
    fn is_seated(&self) -> bool {
        self.leaving.is_none() && !self.killed
    }
}

pub(super) struct Auditor {
    policy: Policy,
    now: Duration,
    event: Event,
    workers: BTreeMap<WorkerId, Worker>,
    last_id: u64,
    newest: Generation,
    target: u32,
    phase: Phase,
    quits: u32,
    stops: u32,
    served: bool,
    reload_failed: bool,
    listeners_closed: bool,
    left: bool,
    /// The latest forks for a slot and generation, forgotten when the operator interferes.
    forks: BTreeMap<(Slot, Generation), VecDeque<Duration>>,
}

impl Auditor {
    pub(super) fn new(policy: Policy) -> Self {
        Self {
            target: policy.workers,
            policy,
            now: Duration::ZERO,
            event: Event::Tick,
            workers: BTreeMap::new(),
            last_id: 0,
            newest: Generation(0),
            phase: Phase::New,
            quits: 0,
            stops: 0,
            served: false,
            reload_failed: false,
            listeners_closed: false,
            left: false,
            forks: BTreeMap::new(),
        }
    }

    /// Writes down what the supervisor is about to hear.
    pub(super) fn hear(&mut self, now: Duration, event: &Event) {
        self.now = now;
        self.event = event.clone();
        let quick = self.policy.quick_timeout;
        match event {
            Event::WorkerForked { id, .. } => {
                self.workers
                    .entry(*id)
                    .and_modify(|worker| worker.forked = true);
            }
            Event::WorkerReady { id } => {
                if let Some(worker) = self.workers.get_mut(id).filter(|worker| worker.is_seated()) {
                    worker.ready = true;
                }
            }
            Event::WorkerFailed { id, cause } => match cause {
                StartFailure::Resource { .. } => {
                    self.workers.remove(id);
                }
                StartFailure::Refused { .. } => {
                    let unready = |worker: &&mut Worker| worker.is_seated() && !worker.ready;
                    if let Some(worker) = self.workers.get_mut(id).filter(unready) {
                        worker.leaving = Some((now, quick));
                    }
                }
                StartFailure::TimedOut => {}
            },
            Event::WorkerExited { id, .. } => {
                self.workers.remove(id);
            }
            Event::Signal(signal) => {
                self.forks.clear();
                self.quits += u32::from(*signal == Signal::Quit);
                self.stops += u32::from(*signal == Signal::Stop);
                if *signal == Signal::Quit {
                    for worker in self.workers.values_mut() {
                        if let Some((since, limit)) = &mut worker.leaving {
                            *limit = (*limit).min(now - *since + quick);
                        }
                    }
                }
            }
            _ => {}
        }
    }

    pub(super) fn read_notices(&mut self, actions: &[Action]) {
        let failed =
            |action: &Action| matches!(action, Action::Notice(Notice::ReloadFailed { .. }));
        self.reload_failed = actions.iter().any(failed);
    }

    pub(super) fn check_action(&mut self, action: &Action, supervisor: &Supervisor, world: &World) {
        assert!(!self.left, "{action:?} after the end");
        match action {
            Action::StartTemplate { generation } => {
                assert!(
                    !world.templates().contains(generation),
                    "two of one generation"
                );
                assert!(generation.0 <= self.newest.0 + 1);
                self.newest = self.newest.max(*generation);
                assert_eq!(self.stops + self.quits, 0, "started on the way out");
            }
            Action::CloseTemplate { generation } => self.check_close(*generation, world),
            Action::Fork {
                id,
                slot,
                generation,
            } => {
                assert!(
                    world.has_ready_template(*generation),
                    "no template for {id:?}"
                );
                self.check_fork(*id, *slot, *generation, supervisor);
            }
            Action::Drain { id } => self.check_drain(*id, supervisor),
            Action::Kill { id, why } => self.check_kill(*id, *why),
            Action::CloseListeners => {
                assert!(!self.listeners_closed, "closed twice");
                self.listeners_closed = true;
            }
            Action::Notice(Notice::Serving { .. }) => {
                assert!(!self.served, "said twice");
                self.served = true;
                self.assert_staffed(supervisor);
            }
            Action::Notice(Notice::Reloaded { .. }) => self.assert_staffed(supervisor),
            Action::Notice(_) => {}
            Action::Leave(outcome) => {
                self.left = true;
                assert_eq!(world.processes(), 0, "left an orphan");
                assert_eq!(world.templates(), [], "left a template");
                assert!(self.listeners_closed);
                match outcome {
                    Outcome::Stopped => assert!(self.stops + self.quits > 0),
                    Outcome::BootFailed { words } => assert!(!self.served && !words.is_empty()),
                }
            }
        }
    }

    fn check_close(&self, generation: Generation, world: &World) {
        assert!(world.templates().contains(&generation), "closed twice");
        let mut own = self
            .workers
            .values()
            .filter(|worker| worker.generation == generation);
        if world.has_ready_template(generation) && own.clone().any(|worker| worker.forked) {
            // Its workers would lose who reaps them: only if it is stuck, or all is killed anyway.
            let patience = self.policy.quick_timeout;
            let stuck = own.any(|worker| !worker.forked && self.now >= worker.asked_at + patience);
            assert!(stuck || !self.served || self.quits > 1, "closed a parent");
        }
    }

    fn check_fork(
        &mut self,
        id: WorkerId,
        slot: Slot,
        generation: Generation,
        supervisor: &Supervisor,
    ) {
        assert!(id.0 > self.last_id, "an id used again");
        self.last_id = id.0;
        assert!(slot.0 < supervisor.target());
        assert_eq!(self.stops + self.quits, 0, "forked on the way out");
        assert_ne!(supervisor.phase(), Phase::Paused);
        let worker = Worker {
            slot,
            generation,
            asked_at: self.now,
            forked: false,
            ready: false,
            leaving: None,
            killed: false,
        };
        self.workers.insert(id, worker);
        let forks = self.forks.entry((slot, generation)).or_default();
        forks.push_back(self.now);
        while forks.front().is_some_and(|&at| at + SECOND < self.now) {
            forks.pop_front();
        }
        assert!(forks.len() <= 12, "slot {slot} spins");
    }

    fn check_drain(&mut self, id: WorkerId, supervisor: &Supervisor) {
        let worker = self.workers.get(&id).expect("drained a stranger");
        assert!(worker.is_seated(), "drained twice");
        let ending = self.stops + self.quits > 0;
        let paused = supervisor.phase() == Phase::Paused;
        let fewer = worker.slot.0 >= supervisor.target();
        let replaced = self.workers.values().any(|other| {
            other.slot == worker.slot
                && other.ready
                && other.is_seated()
                && other.generation != worker.generation
                && Some(other.generation) == self.wanted(supervisor)
        });
        let rolled = matches!(self.event, Event::TemplateReady { .. });
        let called_off = !worker.ready && (self.reload_failed || rolled);
        assert!(
            ending || paused || fewer || replaced || called_off,
            "{id:?} was drained for nothing"
        );
        let limit = match self.quits {
            0 => self.policy.graceful_timeout,
            _ => self.policy.quick_timeout,
        };
        if let Some(worker) = self.workers.get_mut(&id) {
            worker.leaving = Some((self.now, limit));
        }
    }

    /// The generation that a roll or its withdrawal leads to.
    fn wanted(&self, supervisor: &Supervisor) -> Option<Generation> {
        match supervisor.phase() {
            Phase::Rolling => supervisor.incoming(),
            _ => Some(supervisor.generation()),
        }
    }

    fn check_kill(&mut self, id: WorkerId, why: KillReason) {
        let now = self.now;
        let start_timeout = self.policy.start_timeout;
        let worker = self.workers.get_mut(&id).expect("killed a stranger");
        assert!(!worker.killed, "killed twice");
        worker.killed = true;
        let just = match why {
            KillReason::NotReady => {
                let told = matches!(self.event, Event::WorkerFailed { .. });
                !worker.ready
                    && worker.leaving.is_none()
                    && (told || now >= worker.asked_at + start_timeout)
            }
            KillReason::NotDrained => worker
                .leaving
                .is_some_and(|(since, limit)| now >= since + limit),
            KillReason::TemplateLost => !worker.forked,
            KillReason::BootFailed => !self.served,
            KillReason::AtOnce => self.quits > 1,
        };
        assert!(just, "{id:?} was killed for nothing ({why:?})");
    }

    pub(super) fn check_state(
        &mut self,
        event: &Event,
        actions: &[Action],
        supervisor: &Supervisor,
    ) {
        self.check_phase(supervisor.phase());
        self.check_target(event, supervisor.target());
        let surge = self.policy.max_surge;
        let most = 6 * (self.policy.max_workers + surge) as usize + 12;
        assert!(actions.len() <= most, "{} actions at once", actions.len());
        if *event == Event::Tick {
            let next = supervisor.next_timer();
            assert!(next.is_none_or(|at| at > self.now), "a timer in the past");
            self.check_nobody_is_overdue();
        }
        let mut seats: BTreeMap<Slot, Vec<&Worker>> = BTreeMap::new();
        for worker in self.workers.values().filter(|worker| worker.is_seated()) {
            seats.entry(worker.slot).or_default().push(worker);
        }
        let seated: usize = seats.values().map(Vec::len).sum();
        assert!(
            seated <= (self.target + surge) as usize,
            "more than the surge"
        );
        let staffed = !supervisor.phase().is_ending() && supervisor.phase() != Phase::Paused;
        for (slot, seat) in &seats {
            assert!(staffed && slot.0 < self.target, "slot {slot} is taken");
            match seat.as_slice() {
                [_] => {}
                [old, new] => assert_ne!(old.generation, new.generation, "two in slot {slot}"),
                _ => panic!("{} in slot {slot}", seat.len()),
            }
        }
        let known: Vec<WorkerId> = self.workers.keys().copied().collect();
        let theirs: Vec<_> = supervisor.workers().map(|(worker, _)| worker.id).collect();
        assert_eq!(theirs, known, "somebody was forgotten");
        if staffed && supervisor.phase() != Phase::New {
            self.check_nobody_waits_for_nothing(&seats, supervisor);
        }
    }

    fn check_nobody_is_overdue(&self) {
        for (id, worker) in self.workers.iter().filter(|(_, worker)| !worker.killed) {
            let deadline = match worker.leaving {
                Some((since, limit)) => since + limit,
                None if !worker.ready => worker.asked_at + self.policy.start_timeout,
                None => continue,
            };
            assert!(self.now < deadline, "{id:?} had its time");
        }
    }

    /// A seat that lacks somebody is waited for: by a timer, or by a process that has been asked for.
    fn check_nobody_waits_for_nothing(
        &self,
        seats: &BTreeMap<Slot, Vec<&Worker>>,
        supervisor: &Supervisor,
    ) {
        let lacks = |slot| !seats.contains_key(&Slot(slot));
        if (0..self.target).any(lacks) {
            assert!(
                supervisor.next_timer().is_some(),
                "an empty seat was forgotten"
            );
        }
    }

    fn check_phase(&mut self, phase: Phase) {
        if phase != self.phase {
            let ok = match phase {
                Phase::Paused => self.event == Event::Signal(Signal::DrainWorkers),
                Phase::Stopping => self.event == Event::Signal(Signal::Stop),
                Phase::Quitting => self.event == Event::Signal(Signal::Quit),
                Phase::Killing => self.quits > 1 || !self.served,
                Phase::Left => self.left,
                _ => !self.phase.is_ending(),
            };
            assert!(ok, "{phase:?} after {:?} by {:?}", self.phase, self.event);
            self.phase = phase;
        }
    }

    fn check_target(&mut self, event: &Event, target: u32) {
        let allowed = match event {
            Event::Signal(Signal::More) => (self.target, self.target + 1),
            Event::Signal(Signal::Fewer) => (self.target - 1, self.target),
            _ => (self.target, self.target),
        };
        assert!((allowed.0..=allowed.1).contains(&target));
        assert!((1..=self.policy.max_workers).contains(&target));
        self.target = target;
    }

    fn assert_staffed(&self, supervisor: &Supervisor) {
        for slot in 0..supervisor.target() {
            let holds = |worker: &Worker| {
                worker.slot == Slot(slot)
                    && worker.ready
                    && worker.is_seated()
                    && worker.generation == supervisor.generation()
            };
            assert!(self.workers.values().any(holds), "slot {slot} is not ready");
        }
    }

    /// In a world that has been healthy for long, all is as the operator wants it.
    pub(super) fn assert_at_rest(&self, supervisor: &Supervisor, world: &World) {
        assert_eq!(supervisor.phase(), Phase::Serving);
        assert_eq!(supervisor.incoming(), None);
        self.assert_staffed(supervisor);
        assert_eq!(self.workers.len(), self.target as usize);
        assert_eq!(world.processes(), self.target as usize);
        assert_eq!(world.templates(), [supervisor.generation()]);
        assert_eq!(supervisor.next_timer(), None, "nothing is left to wait for");
    }
}
