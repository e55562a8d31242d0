//! Keeps its own books from what the supervisor hears and asks for, and checks every action against them.

mod workers;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use super::super::recycling::WornBy;
use super::super::table::Health;
use super::super::{Action, Event, KillReason, Notice, Outcome, Phase, Policy, Signal};
use super::super::{Load, Scaling, StartFailure, Supervisor};
use super::SECOND;
use super::consequences::{Consequences, Standing};
use super::tickets::Tickets;
use super::world::World;
use crate::server::{Generation, Slot, WorkerId};

/// A worker, as far as it has been heard of.
pub(super) struct Worker {
    pub(super) slot: Slot,
    pub(super) generation: Generation,
    pub(super) asked_at: Duration,
    pub(super) forked: bool,
    /// Since when it has been ready.
    pub(super) ready: Option<Duration>,
    pub(super) served: bool,
    /// It has reached a limit.
    pub(super) worn: bool,
    /// It has closed its socket, and is to be gone by then.
    pub(super) end_by: Option<Duration>,
    /// Since when it is on its way out, and how long it has.
    pub(super) leaving: Option<(Duration, Duration)>,
    pub(super) killed: Option<Duration>,
    /// It was ready, and has ended; how, is to be told.
    pub(super) gone: bool,
}

impl Worker {
    /// By when its state is to change: by itself, or by a kill.
    pub(super) fn deadline(&self, policy: &Policy) -> Option<Duration> {
        if self.gone {
            return None;
        }
        let limit = match (self.killed, self.leaving) {
            (Some(since), _) => return Some(since + policy.reap_timeout),
            (None, Some((since, limit))) => Some(since + limit),
            (None, None) if self.ready.is_none() => Some(self.asked_at + policy.start_timeout),
            (None, None) => None,
        };
        limit.into_iter().chain(self.end_by).min()
    }

    pub(super) fn is_seated(&self) -> bool {
        self.leaving.is_none() && self.killed.is_none() && !self.gone
    }
}

pub(super) struct Auditor {
    pub(super) policy: Policy,
    pub(super) now: Duration,
    pub(super) event: Event,
    pub(super) workers: BTreeMap<WorkerId, Worker>,
    pub(super) last_id: u64,
    pub(super) newest: Generation,
    pub(super) retired: BTreeSet<Generation>,
    pub(super) target: u32,
    pub(super) standing: Standing,
    pub(super) consequences: Consequences,
    pub(super) tickets: Tickets,
    pub(super) quits: u32,
    pub(super) stops: u32,
    pub(super) served: bool,
    pub(super) reload_failed: bool,
    /// Since when the gate is shut.
    pub(super) gate_shut: Option<Duration>,
    /// Somebody was in the queue when it was last looked at.
    queued: bool,
    pub(super) listeners_closed: bool,
    pub(super) handed_over: bool,
    pub(super) left: bool,
    /// When memory was last looked at.
    memory_at: Option<Duration>,
    /// What each worker had answered when it was last looked at, and since when it has been idle.
    idle: BTreeMap<WorkerId, (u64, Option<Duration>)>,
    /// The supervisor waits for a client.
    pub(super) awaiting: bool,
    /// How the number of workers grew within the last second, and when it last changed.
    pub(super) grown: VecDeque<(Duration, u32)>,
    pub(super) moved_at: Duration,
    /// The latest forks for a slot and generation, forgotten when the operator interferes.
    pub(super) forks: BTreeMap<(Slot, Generation), VecDeque<Duration>>,
}

impl Auditor {
    pub(super) fn new(policy: Policy) -> Self {
        Self {
            target: policy.scaling.first_target(policy.workers, policy.max_workers),
            now: Duration::ZERO,
            event: Event::Tick,
            workers: BTreeMap::new(),
            last_id: 0,
            newest: Generation(0),
            retired: BTreeSet::new(),
            standing: Standing { phase: Phase::New, current: Generation(1), incoming: None },
            consequences: Consequences::new(policy.clone()),
            tickets: Tickets::new(),
            quits: 0,
            stops: 0,
            served: false,
            reload_failed: false,
            gate_shut: None,
            queued: false,
            listeners_closed: false,
            handed_over: false,
            left: false,
            memory_at: None,
            idle: BTreeMap::new(),
            awaiting: false,
            grown: VecDeque::new(),
            moved_at: Duration::ZERO,
            forks: BTreeMap::new(),
            policy,
        }
    }

    /// Writes down what the supervisor is about to hear.
    pub(super) fn hear(&mut self, now: Duration, event: &Event) {
        self.now = now;
        self.event = event.clone();
        self.tickets.hear(event);
        let worker = match event {
            Event::WorkerFailed { id, .. } | Event::WorkerExited { id, .. } | Event::WorkerGone { id } => {
                self.workers.get(id)
            }
            _ => None,
        };
        self.consequences.hear(now, event, worker, self.standing);
        let quick = self.policy.quick_timeout;
        match event {
            Event::WorkerForked { id, .. } => {
                self.workers.entry(*id).and_modify(|worker| worker.forked = true);
            }
            Event::WorkerReady { id } => {
                if let Some(worker) = self.workers.get_mut(id).filter(|worker| worker.is_seated()) {
                    worker.ready.get_or_insert(now);
                }
            }
            Event::WorkerServed { id } => {
                self.workers.entry(*id).and_modify(|worker| worker.served = true);
            }
            Event::WorkerGone { id } => {
                if let Some(worker) = self.workers.get_mut(id).filter(|worker| worker.is_seated()) {
                    worker.gone = worker.ready.is_some();
                }
            }
            Event::ClientWaits => self.awaiting = false,
            Event::Sampled(load) => {
                for sample in load.workers.iter().filter(|sample| sample.requests > 0) {
                    self.workers.entry(sample.id).and_modify(|worker| worker.served = true);
                }
                self.note_idleness(load);
            }
            Event::WorkerHungUp { id } => {
                let end_by = now + self.policy.reap_timeout;
                if let Some(worker) = self.workers.get_mut(id).filter(|worker| worker.killed.is_none()) {
                    worker.end_by.get_or_insert(end_by);
                }
            }
            Event::WorkerFailed { id, cause } => match cause {
                StartFailure::NoProcess { .. } | StartFailure::Resource { .. } => {
                    self.workers.remove(id);
                }
                StartFailure::Refused { .. } => {
                    let unready = |worker: &&mut Worker| worker.is_seated() && worker.ready.is_none();
                    if let Some(worker) = self.workers.get_mut(id).filter(unready) {
                        worker.leaving = Some((now, quick));
                    }
                }
                StartFailure::TimedOut => {}
            },
            Event::WorkerExited { id, .. } => {
                self.workers.remove(id);
            }
            Event::QueuesSeen { queued, .. } => self.queued = *queued,
            Event::ReloadAsked { .. } => self.forks.clear(),
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
        let failed = |action: &Action| {
            matches!(action, Action::Notice(Notice::ReloadFailed { .. } | Notice::ReloadCalledOff { .. }))
        };
        self.reload_failed = actions.iter().any(failed);
    }

    pub(super) fn check_action(&mut self, action: &Action, supervisor: &Supervisor, world: &World) {
        // Whoever asks after the end is told so.
        assert!(!self.left || matches!(action, Action::TellReload { .. }), "{action:?} after the end");
        self.consequences.check_action(action, self.is_probe_proven(), self.is_complete(supervisor));
        match action {
            Action::Notice(Notice::Ignored { signal }) => {
                assert!(
                    !matches!(signal, Signal::Stop | Signal::Quit),
                    "a stop means something in {:?}",
                    self.standing
                );
            }
            Action::StartTemplate { generation } => {
                assert!(!world.templates().contains(generation), "two of one generation");
                assert!(!self.retired.contains(generation), "its executable is gone");
                assert!(generation.0 <= self.newest.0 + 1);
                self.newest = self.newest.max(*generation);
                assert!(!self.standing.phase.is_ending(), "started on the way out");
            }
            Action::CloseTemplate { generation } => self.check_close(*generation, world),
            Action::Retire { generation } => {
                assert!(*generation <= self.newest && self.retired.insert(*generation), "retired twice");
                assert_ne!(*generation, supervisor.generation(), "retired while it serves");
            }
            Action::Fork { id, slot, generation } => {
                assert!(world.has_ready_template(*generation), "no template for {id:?}");
                self.check_fork(*id, *slot, *generation, supervisor);
            }
            Action::Drain { id } => self.check_drain(*id, supervisor),
            Action::Kill { id, why } => self.check_kill(*id, *why),
            Action::AwaitClient => {
                assert!(!self.awaiting && supervisor.target() == 0, "awaited for nothing");
                self.awaiting = true;
            }
            Action::Sample { memory: true } => {
                assert!(self.policy.limits.memory.is_some());
                let last = self.memory_at.replace(self.now);
                assert!(
                    last.is_none_or(|at| self.now >= at + self.policy.sample_every),
                    "memory is looked at too often"
                );
            }
            Action::Sample { .. } if self.policy.scaling != Scaling::Static => {}
            Action::Sample { .. } => {
                let serves = |worker: &Worker| worker.ready.is_some() && worker.is_seated();
                assert!(self.workers.values().any(serves), "nobody to look at");
            }
            Action::ShutGate => {
                assert!(self.stops > 0 && !self.listeners_closed);
                assert!(self.gate_shut.replace(self.now).is_none(), "shut twice");
            }
            Action::LookAtQueues => assert!(self.gate_shut.is_some() && !self.listeners_closed),
            Action::CloseListeners => {
                assert!(!self.listeners_closed, "closed twice");
                self.listeners_closed = true;
                let time_is_over = |at| self.now >= at + self.policy.graceful_timeout;
                let served = self.gate_shut.is_some_and(|at| world.queued() == 0 || time_is_over(at));
                assert!(served || self.quits > 0 || !self.served, "closed with clients in the queue");
            }
            Action::StartUpgrade => {
                assert!(!world.has_new_master(), "two upgrades at once");
                assert!(self.served && !self.is_ending());
            }
            Action::EndUpgrade => assert!(world.has_new_master(), "no new master to kill"),
            Action::HandOver => {
                assert!(world.has_new_master() && !self.listeners_closed, "handed over to nobody");
                assert!(matches!(self.event, Event::UpgradeReady { .. }));
                self.handed_over = true;
            }
            Action::Notice(Notice::Serving { .. }) => {
                assert!(!self.served, "said twice");
                self.served = true;
                self.assert_staffed(supervisor);
            }
            Action::Notice(Notice::WornOut { worker, by }) => self.check_worn(worker.id, *by),
            Action::Notice(Notice::Degraded { .. }) => {
                // Those without a successor in the making are needed.
                let mut seated = BTreeMap::new();
                for worker in self.workers.values().filter(|worker| worker.is_seated()) {
                    *seated.entry(worker.slot).or_insert(0) += 1;
                }
                for worker in self.workers.values_mut() {
                    worker.worn &= seated.get(&worker.slot) == Some(&2);
                }
            }
            Action::Notice(Notice::Reloaded { .. }) => self.assert_staffed(supervisor),
            Action::Notice(_) | Action::TellReload { .. } => {}
            Action::Leave(outcome) => {
                self.left = true;
                assert_eq!(world.processes(), 0, "left an orphan");
                assert_eq!(world.templates(), [], "left a template");
                assert!(!world.has_new_master(), "left a new master that does not serve");
                assert!(self.listeners_closed || self.handed_over);
                match outcome {
                    Outcome::Replaced { .. } => assert!(self.handed_over),
                    Outcome::Stopped => assert!(self.stops + self.quits > 0),
                    Outcome::BootFailed { words } => assert!(!self.served && !words.is_empty()),
                }
            }
        }
    }

    fn is_probe_proven(&self) -> bool {
        let probe = self.consequences.health.probe.and_then(|id| self.workers.get(&id));
        probe.filter(|probe| probe.is_seated()).is_some_and(|probe| {
            probe.served || probe.ready.is_some_and(|since| self.now >= since + self.policy.served_well_after)
        })
    }

    /// Whether each slot has somebody.
    fn is_complete(&self, supervisor: &Supervisor) -> bool {
        let seated = |slot| self.workers.values().any(|worker| worker.slot == Slot(slot) && worker.is_seated());
        (0..supervisor.target()).all(seated)
    }

    fn check_close(&self, generation: Generation, world: &World) {
        assert!(world.templates().contains(&generation), "closed twice");
        let mut own = self.workers.values().filter(|worker| worker.generation == generation);
        if world.has_ready_template(generation) && own.clone().any(|worker| worker.forked) {
            // Its workers would lose who reaps them: only if it is stuck, or all is killed anyway.
            let patience = self.policy.quick_timeout;
            let reap_timeout = self.policy.reap_timeout;
            let stuck = own.any(|worker| {
                let unreaped = worker.killed.is_some_and(|since| self.now >= since + reap_timeout);
                unreaped || (!worker.forked && self.now >= worker.asked_at + patience)
            });
            assert!(stuck || !self.served || self.quits > 1, "closed a parent");
        }
    }

    fn is_ending(&self) -> bool {
        self.stops + self.quits > 0 || self.handed_over || self.listeners_closed
    }

    /// The generation that a roll or its withdrawal leads to.
    fn wanted(&self, supervisor: &Supervisor) -> Option<Generation> {
        match supervisor.phase() {
            Phase::Rolling => supervisor.incoming(),
            _ => Some(supervisor.generation()),
        }
    }
}

pub(super) fn is_paused(phase: Phase) -> bool {
    matches!(phase, Phase::Paused | Phase::Replenishing)
}
