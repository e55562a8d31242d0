//! The supervisor: which templates and workers there are to be, decided without touching one.
//!
//! It is a pure state machine. It sees `(now, event)` and gives actions; it knows no clock, no descriptor and no
//! system call, so thousands of random lives of a server are simulated in seconds, and each replays from its seed.
//! Time is a [`Duration`] since any fixed start.
//!
//! An event is first written into the books ([`fleet`], [`seats`], [`restarts`], [`templates`], [`timers`]), then looked up in the policy's
//! [`table`], and the step found there is carried out ([`steps`]); last, the seats are looked over and whatever
//! they lack is asked for ([`settle`]). So a seat is filled, rolled or drained by what it lacks now, never by the history that
//! led to it.

mod farewell;
mod fleet;
mod message;
mod policy;
mod recycling;
mod reloads;
mod reports;
mod restarts;
mod scaling;
mod seats;
mod settle;
#[cfg(test)]
mod simulation;
mod steps;
mod table;
mod templates;
#[cfg(test)]
mod tests;
mod timers;
mod upgrade;

use std::collections::VecDeque;
use std::time::Duration;

use self::farewell::Farewell;
use self::fleet::Fleet;
use self::reloads::Reloads;
use self::restarts::Restarts;
use self::scaling::Scaler;
use self::table::{Cue, UpgradeCue};
#[cfg(test)]
use self::templates::TemplateState;
use self::templates::Templates;
use self::timers::{Timer, Timers};
use self::upgrade::Upgrading;
#[cfg(test)]
use super::Slot;
use super::{Generation, WorkerId};
use crate::machine::Random;

pub(crate) use self::fleet::WorkerState;
pub(crate) use self::message::{Action, Event, Exit, Identity, KillReason, Notice, Outcome, Signal, StartFailure};
pub(crate) use self::message::{Load, WorkerLoad};
pub(crate) use self::policy::{Budget, Policy};
pub(crate) use self::recycling::Limits;
pub(crate) use self::reloads::{ReloadEnd, ReloadTicket};
pub(crate) use self::restarts::Failures;
pub(crate) use self::scaling::Scaling;
pub(crate) use self::table::{Health, Phase};

/// Why a reload is called off, or an upgrade: the server is on its way out.
const STOPPING: &str = "the server stops";

/// Why a reload is called off: this master is on its way out, the server is not.
const REPLACED: &str = "a new master takes this one's place";

/// The state machine; see the [module](self).
#[derive(Debug)]
pub(crate) struct Supervisor {
    policy: Policy,
    random: Random,
    now: Duration,
    phase: Phase,
    /// How many slots are to be filled, counted from slot 0.
    target: u32,
    /// The generation that serves and has proven itself.
    current: Generation,
    /// The generation that a reload brings.
    incoming: Option<Generation>,
    /// The generation that each slot is to have: the current one, or during a roll the incoming one.
    wanted: Generation,
    /// The newest generation there has been.
    newest: Generation,
    reload_queued: bool,
    reloads: Reloads,
    upgrading: Upgrading,
    /// When the boot or the reload under way began.
    began_at: Duration,
    outcome: Outcome,
    farewell: Farewell,
    fleet: Fleet,
    restarts: Restarts,
    scaler: Scaler,
    /// When memory is to be looked at again.
    memory_due: Duration,
    templates: Templates,
    timers: Timers,
    actions: VecDeque<Action>,
}

impl Supervisor {
    /// A supervisor that waits for [`Event::Boot`]; the seed is for the jitter of delays.
    pub(crate) fn new(policy: Policy, seed: u64) -> Self {
        let first = Generation(1);
        Self {
            target: policy.scaling.first_target(policy.workers, policy.max_workers),
            policy,
            random: Random::new(seed),
            now: Duration::ZERO,
            phase: Phase::New,
            current: first,
            incoming: None,
            wanted: first,
            newest: first,
            reload_queued: false,
            reloads: Reloads::default(),
            upgrading: Upgrading::default(),
            began_at: Duration::ZERO,
            outcome: Outcome::Stopped,
            farewell: Farewell::default(),
            fleet: Fleet::default(),
            restarts: Restarts::default(),
            scaler: Scaler::default(),
            memory_due: Duration::ZERO,
            templates: Templates::default(),
            timers: Timers::default(),
            actions: VecDeque::new(),
        }
    }

    /// Takes in what happened; then [`poll_action`](Self::poll_action) is to be called until it gives nothing more.
    ///
    /// A `now` before an earlier one is taken for that one: time never goes back.
    pub(crate) fn handle(&mut self, now: Duration, event: Event) {
        self.now = self.now.max(now);
        match event {
            Event::Boot => self.apply(Cue::Boot, ""),
            Event::TemplateReady { generation } => self.template_ready(generation),
            Event::TemplateFailed { generation, words } => self.give_up_template(generation, &words),
            Event::TemplateDied { generation, words } => self.template_gone(generation, &words),
            Event::WorkerForked { id, pid } => self.worker_report(id, table::Report::Forked { pid }),
            Event::WorkerReady { id } => self.worker_report(id, table::Report::Ready),
            Event::WorkerServed { id } => self.worker_report(id, table::Report::Served),
            Event::WorkerHungUp { id } => self.worker_report(id, table::Report::HungUp),
            Event::WorkerGone { id } => self.worker_report(id, table::Report::Gone),
            Event::WorkerStuck { id } => self.worker_report(id, table::Report::Stuck),
            Event::WorkerFailed { id, cause } => self.worker_report(id, cause.into()),
            Event::WorkerExited { id, exit, words } => {
                self.worker_report(id, table::Report::Exited { exit, words });
            }
            Event::ClientWaits => self.client_waits(),
            Event::Sampled(load) => self.sampled(&load),
            Event::QueuesSeen { queued, half_open } => self.queues_seen(queued, half_open),
            Event::Signal(Signal::Upgrade) => self.upgrade(UpgradeCue::Asked, ""),
            Event::Signal(signal) => self.apply(Cue::Asked(signal), ""),
            Event::ReloadAsked { ticket } => {
                self.reloads.await_next(ticket);
                self.apply(Cue::Asked(Signal::Reload), "");
            }
            Event::UpgradeReady { pid } => self.upgrade(UpgradeCue::Ready(pid), ""),
            Event::UpgradeFailed { words } => self.upgrade(UpgradeCue::Lost, &words),
            Event::Tick => {
                while let Some(timer) = self.timers.pop_due(self.now) {
                    self.ran_out(timer);
                }
            }
        }
        self.settle();
    }

    /// The next thing to do, in the order in which it is to be done.
    #[must_use]
    pub(crate) fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// When to call [`handle`](Self::handle) with [`Event::Tick`], if nothing happens before.
    pub(crate) fn next_timer(&self) -> Option<Duration> {
        self.timers.next()
    }

    fn ran_out(&mut self, timer: Timer) {
        match timer {
            Timer::Preload(generation) => {
                let limit = self.policy.preload_timeout;
                let words = format!("the template did not end its preload within {limit:?}");
                self.give_up_template(generation, &words);
            }
            Timer::TemplateRetry(generation) => self.start_template(generation),
            Timer::Worker(id) => self.worker_late(id),
            Timer::Upgrade => self.upgrade_late(),
            Timer::Age(id) => self.aged(id),
            Timer::Sample => self.sample_due(),
            // The look over probe and seats that follows every event does the rest.
            Timer::SlotRetry(_) | Timer::Probe | Timer::ProbeProven => {}
            Timer::DrainDelay => self.apply(Cue::DrainDelayOver, ""),
            Timer::Look => self.act(Action::LookAtQueues),
            Timer::QueueTime => self.apply(Cue::QueueTimeOver, ""),
        }
    }

    fn act(&mut self, action: Action) {
        self.actions.push_back(action);
    }

    fn notice(&mut self, notice: Notice) {
        self.act(Action::Notice(notice));
    }
}

/// How all stands, for whoever asks.
impl Supervisor {
    /// Where the server stands.
    pub(crate) fn phase(&self) -> Phase {
        self.phase
    }

    /// How the fleet stands with its failures.
    pub(crate) fn health(&self) -> table::Health {
        self.restarts.health
    }

    /// How many workers there are to be.
    pub(crate) fn target(&self) -> u32 {
        self.target
    }

    /// The generation that serves; during a reload, still the old one.
    pub(crate) fn generation(&self) -> Generation {
        self.current
    }

    /// The generation that a reload is bringing.
    pub(crate) fn incoming(&self) -> Option<Generation> {
        self.incoming
    }

    /// Every worker whose end is not yet known, by birth.
    pub(crate) fn workers(&self) -> impl Iterator<Item = (Identity, WorkerState)> {
        self.fleet.iter().map(|(id, worker)| (worker.identity(id), worker.state()))
    }

    /// When the worker's life began: its fork was asked for.
    pub(crate) fn asked_at(&self, id: WorkerId) -> Option<Duration> {
        self.fleet.get(id).map(|worker| worker.asked_at)
    }
}

/// What the tests look at.
#[cfg(test)]
impl Supervisor {
    /// Whether new clients are to be sent here: what a load balancer asks.
    pub(crate) fn is_ready(&self) -> bool {
        matches!(self.phase, Phase::Serving | Phase::Preparing | Phase::Rolling)
    }

    /// Whether the current generation's template is to be started again after a delay.
    pub(crate) fn retries_template(&self) -> bool {
        self.timers.is_set(Timer::TemplateRetry(self.current))
    }

    /// Whether the slot's next worker waits for a delay.
    pub(crate) fn waits(&self, slot: Slot) -> bool {
        self.timers.is_set(Timer::SlotRetry(slot))
    }

    /// A timer that is set although nobody waits for it any more.
    pub(crate) fn stray_timer(&self) -> Option<String> {
        let is_of_use = |timer: &Timer| match *timer {
            Timer::Preload(generation) => self.templates.is_in(generation, TemplateState::Starting),
            Timer::TemplateRetry(generation) => self.templates.is_in(generation, TemplateState::Lost),
            Timer::Worker(id) | Timer::Age(id) => self.fleet.get(id).is_some(),
            Timer::DrainDelay => self.phase == Phase::Unready,
            Timer::Look | Timer::QueueTime => self.phase == Phase::Gated,
            Timer::Probe | Timer::ProbeProven => self.restarts.health != table::Health::Sound,
            Timer::Upgrade => self.upgrade_state() == table::Upgrade::UnderWay,
            Timer::SlotRetry(_) | Timer::Sample => true,
        };
        self.timers.all().find(|timer| !is_of_use(timer)).map(|timer| format!("{timer:?}"))
    }
}
