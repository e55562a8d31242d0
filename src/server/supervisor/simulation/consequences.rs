//! What must follow from a failure: the end of a boot, the end of a reload, or a delay that grows.

use std::collections::BTreeMap;
use std::time::Duration;

use super::super::{Action, Event, Notice, Phase, Policy, Signal, StartFailure};
use super::auditor::Worker;
use super::health::{HealthBook, check_delay, least_delay};
use crate::server::{Generation, Slot};

/// How a worker that nobody had sent away failed.
enum Failure {
    Start,
    Shortage,
    DiedYoung,
    DiedWell,
}

/// Where the server stood before the event.
#[derive(Debug, Clone, Copy)]
pub(super) struct Standing {
    pub(super) phase: Phase,
    pub(super) current: Generation,
    pub(super) incoming: Option<Generation>,
}

pub(super) struct Consequences {
    policy: Policy,
    pub(super) health: HealthBook,
    now: Duration,
    standing: Standing,
    boot_must_end: bool,
    reload_must_end: bool,
    reload_must_be_heard: bool,
    reload_queued: bool,
    failures: BTreeMap<Slot, u32>,
    /// The delays that must be told of, with the failures in a row.
    delays: Vec<(Slot, u32)>,
    /// Until when a slot gets no worker of the generation.
    barred: BTreeMap<(Slot, Generation), Duration>,
}

impl Consequences {
    pub(super) fn new(policy: Policy) -> Self {
        Self {
            health: HealthBook::new(policy.clone()),
            policy,
            now: Duration::ZERO,
            standing: Standing { phase: Phase::New, current: Generation(1), incoming: None },
            boot_must_end: false,
            reload_must_end: false,
            reload_must_be_heard: false,
            reload_queued: false,
            failures: BTreeMap::new(),
            delays: Vec::new(),
            barred: BTreeMap::new(),
        }
    }

    /// Takes in an event, and whom it is about.
    pub(super) fn hear(&mut self, now: Duration, event: &Event, worker: Option<&Worker>, standing: Standing) {
        self.now = now;
        self.standing = standing;
        self.boot_must_end = false;
        self.reload_must_end = false;
        let hears = !standing.phase.is_leaving() && standing.phase != Phase::New;
        let asks = matches!(event, Event::Signal(Signal::Reload) | Event::ReloadAsked { .. });
        self.reload_must_be_heard = asks && hears;
        self.delays.clear();
        self.health.hear(now);
        if let Event::TemplateReady { generation } = event
            && Some(*generation) == standing.incoming
        {
            self.forgive_all();
            self.health.renew();
        }
        if let Some(worker) = worker.filter(|worker| worker.is_seated())
            && let Some(failure) = self.failure(event, worker)
        {
            self.failed(worker, failure);
        }
    }

    fn forgive_all(&mut self) {
        self.failures.clear();
        self.barred.clear();
    }

    /// A worker was killed because it was not ready in time.
    pub(super) fn not_ready(&mut self, worker: &Worker) {
        self.failed(worker, Failure::Start);
    }

    pub(super) fn check_fork(&self, slot: Slot, generation: Generation) {
        let barred = self.barred.get(&(slot, generation));
        assert!(barred.is_none_or(|&until| self.now >= until), "slot {slot} did not wait");
    }

    /// Where the fleet's own delay begins or ends, those of the slots do.
    pub(super) fn check_action(&mut self, action: &Action, proven: bool, complete: bool) {
        self.health.check(action, proven, complete);
        if matches!(action, Action::Notice(Notice::Degraded { .. } | Notice::Recovered { .. })) {
            self.forgive_all();
        }
    }

    pub(super) fn check(&mut self, actions: &[Action], phase: Phase) {
        self.health.check_after(phase);
        let mut delays = Vec::new();
        let mut reload_ended = false;
        for action in actions {
            match action {
                Action::Notice(Notice::SlotDelayed { slot, failures, delay }) => {
                    delays.push((*slot, failures.sum()));
                    check_delay(&self.policy.backoff, failures.sum(), *delay);
                }
                Action::Notice(Notice::ReloadFailed { .. } | Notice::ReloadCalledOff { .. }) => reload_ended = true,
                Action::Notice(Notice::ReloadQueued) => {
                    self.reload_queued = true;
                    self.reload_must_be_heard = false;
                }
                Action::Notice(Notice::Reloading { .. }) => {
                    self.reload_queued = false;
                    self.reload_must_be_heard = false;
                }
                Action::Notice(Notice::Paused) => self.reload_queued = false,
                _ => {}
            }
        }
        // At one tick the server's time may be over first, and then a worker's.
        let told = delays == self.delays || phase.is_ending();
        assert!(told, "{delays:?} were delayed, and {:?} have failed", self.delays);
        assert!(!self.reload_must_end || reload_ended, "the roll went on after a failure");
        assert!(!self.boot_must_end || phase.is_ending(), "the boot went on after a failure");
        assert!(!self.reload_must_be_heard, "a reload was neither begun nor queued");
        let waits = self.reload_queued && matches!(phase, Phase::Serving | Phase::Paused);
        assert!(!waits, "a queued reload was forgotten");
    }

    fn failure(&self, event: &Event, worker: &Worker) -> Option<Failure> {
        match (event, worker.ready) {
            (Event::WorkerFailed { cause, .. }, None) => {
                match cause {
                    // Too late is told by the kill that must follow.
                    StartFailure::TimedOut => None,
                    StartFailure::Resource { .. } => Some(Failure::Shortage),
                    StartFailure::Refused { .. } | StartFailure::NoProcess { .. } => Some(Failure::Start),
                }
            }
            (Event::WorkerExited { .. }, None) => Some(Failure::Start),
            (Event::WorkerExited { .. } | Event::WorkerGone { .. }, Some(_)) if worker.served => {
                Some(Failure::DiedWell)
            }
            (Event::WorkerExited { .. } | Event::WorkerGone { .. }, Some(since)) => {
                match self.now - since < self.policy.served_well_after {
                    true => Some(Failure::DiedYoung),
                    false => Some(Failure::DiedWell),
                }
            }
            _ => None,
        }
    }

    fn failed(&mut self, worker: &Worker, failure: Failure) {
        let slot = worker.slot;
        let is_current = worker.generation == self.standing.current;
        let is_incoming = Some(worker.generation) == self.standing.incoming;
        match (self.standing.phase, failure) {
            (_, Failure::DiedWell) if is_current || is_incoming => {
                self.failures.remove(&slot);
            }
            (_, Failure::DiedWell) => {}
            (Phase::Booting, Failure::Start | Failure::Shortage) => self.boot_must_end = true,
            (Phase::Rolling, _) if is_incoming => self.reload_must_end = true,
            (Phase::Serving | Phase::Preparing | Phase::Unready | Phase::Gated, Failure::Shortage) if is_current => {
                self.health.shortage()
            }
            (Phase::Booting | Phase::Serving | Phase::Preparing | Phase::Unready | Phase::Gated, _) if is_current => {
                self.health.charge();
                let failures = self.failures.entry(slot).or_default();
                *failures += 1;
                self.delays.push((slot, *failures));
                let least = least_delay(&self.policy.backoff, *failures);
                let seat = (slot, worker.generation);
                self.barred.insert(seat, self.now + least);
            }
            _ => {}
        }
    }
}
