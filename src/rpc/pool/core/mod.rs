//! What a pool decides, without any I/O.
//!
//! It sees `(now, event)` and gives actions; it knows no clock, no process and no message, so thousands of random lives of a
//! pool are simulated in seconds, and each replays from its seed. Time is a [`Duration`] since any fixed start.
//!
//! An event is first written into the books ([`calls`], [`crew`]); what it means for one worker stands in the policy's
//! [`table`]. Last, all is looked over ([`settle`](Core::settle)): waiting calls are handed out in their order, and workers are
//! started and dismissed ([`staffing`]) by what is lacking now, never by the history that led to it.

mod calls;
mod crew;
mod message;
#[cfg(test)]
mod simulation;
mod staffing;
mod table;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::time::Duration;

pub(super) use self::message::{Action, CallNumber, Event, NoReply, Refusal, Terms, WorkerNumber};
pub use self::message::{Cause, Late};
pub(super) use self::table::Phase;

use self::calls::Call;
use self::crew::{Rank, Worker};
use self::table::Cue;
use super::options::Rules;
use super::report::Statistics;
use crate::machine::{Random, Timers};

/// What can run out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Timer {
    /// A caller's patience.
    Patience(CallNumber),
    /// The time that a call may be with its worker.
    Deadline(CallNumber),
    /// A worker should be ready, or should have left.
    Late(WorkerNumber),
    /// A worker has reached its age.
    Age(WorkerNumber),
    /// There has been too much to do for so long that another worker is started.
    Grow,
    /// A worker may have been idle for long enough.
    Shrink,
    /// The delay after a failed start is over.
    Retry,
    /// Workers that have worked are to be measured.
    Measure,
}

/// The state machine; see the [module](self).
#[derive(Debug)]
pub(super) struct Core {
    rules: Rules,
    random: Random,
    now: Duration,
    timers: Timers<Timer>,
    calls: HashMap<CallNumber, Call>,
    /// Calls that wait for a worker; their numbers are their order.
    queue: BTreeSet<CallNumber>,
    queued_bytes: u64,
    /// Calls whose callers wait until the queue has room.
    door: BTreeSet<CallNumber>,
    crew: BTreeMap<WorkerNumber, Worker>,
    /// How many of the crew are at each phase.
    at: [usize; 5],
    /// Those who take a call, the best first.
    free: BTreeSet<Rank>,
    /// Those who have nothing in hand, and since when.
    idle: BTreeSet<(Duration, WorkerNumber)>,
    /// Those who serve on until their successor is ready, and that one.
    worn: BTreeMap<WorkerNumber, Option<WorkerNumber>>,
    last_worker: WorkerNumber,
    /// Handed-out calls so far.
    handed: u64,
    /// Starts that failed in a row.
    failures: u32,
    /// No worker is started before.
    not_before: Duration,
    /// Somebody has called since the last failure.
    wanted: bool,
    /// The time after which another worker is started has passed.
    grow_due: bool,
    closed: bool,
    finished: bool,
    tally: Statistics,
    actions: VecDeque<Action>,
}

impl Core {
    pub(super) fn new(rules: Rules, seed: u64) -> Core {
        let mut core = Core {
            rules,
            random: Random::new(seed),
            now: Duration::ZERO,
            timers: Timers::default(),
            calls: HashMap::new(),
            queue: BTreeSet::new(),
            queued_bytes: 0,
            door: BTreeSet::new(),
            crew: BTreeMap::new(),
            at: [0; 5],
            free: BTreeSet::new(),
            idle: BTreeSet::new(),
            worn: BTreeMap::new(),
            last_worker: 0,
            handed: 0,
            failures: 0,
            not_before: Duration::ZERO,
            wanted: false,
            grow_due: false,
            closed: false,
            finished: false,
            tally: Statistics::default(),
            actions: VecDeque::new(),
        };
        core.settle();
        core
    }

    /// When it was told something last.
    pub(super) fn now(&self) -> Duration {
        self.now
    }

    /// Why no call is taken now, if it does not wait for room.
    pub(super) fn refusal(&self) -> Option<Refusal> {
        if self.closed {
            Some(Refusal::Closed)
        } else if self.is_stuck() {
            Some(Refusal::NoWorker)
        } else if self.door.is_empty() && (self.queue_has_room() || !self.free.is_empty()) {
            None
        } else {
            Some(Refusal::Full)
        }
    }

    /// Somebody was refused. If that was for want of a worker, another is tried when its time has come.
    pub(super) fn handle_refused(&mut self, now: Duration) {
        self.now = self.now.max(now);
        self.tally.refused += 1;
        self.wanted = true;
        self.settle();
    }

    pub(super) fn handle(&mut self, now: Duration, event: Event) {
        self.now = self.now.max(now);
        match event {
            Event::Called { call, terms } => self.called(call, terms),
            Event::GivenUp { call } => self.given_up(call),
            Event::Impatient { call } => drop(self.impatient(call)),
            Event::Answered { call, well } => self.answered(call, well),
            Event::Unsent { call } => self.unsent(call),
            Event::Lost { call, may_have_run } => self.lost(call, may_have_run),
            Event::Made { worker } => self.made(worker),
            Event::Ready { worker } => self.step(worker, Cue::Ready),
            Event::Broken { worker } => self.step(worker, Cue::Broken),
            Event::Exited { worker } => self.step(worker, Cue::Exited),
            Event::Measured { worker, resident } => self.measured(worker, resident),
            Event::Closed => self.closed = true,
        }
        self.settle();
    }

    /// What has run out by now.
    pub(super) fn handle_timeouts(&mut self, now: Duration) {
        self.now = self.now.max(now);
        while let Some(timer) = self.timers.pop_due(self.now) {
            match timer {
                Timer::Patience(call) => self.out_of_patience(call),
                Timer::Deadline(call) => self.overdue(call),
                Timer::Late(worker) => self.step(worker, Cue::Late),
                Timer::Age(worker) => self.wear_out(worker, Cause::Age),
                Timer::Grow => self.grow_due = true,
                Timer::Shrink => self.dismiss_idle(),
                // What it was for is seen by looking over all.
                Timer::Retry => {}
                Timer::Measure => self.measure(),
            }
            self.settle();
        }
    }

    /// When [`handle_timeouts`](Core::handle_timeouts) is to be called.
    pub(super) fn poll_timeout(&self) -> Option<Duration> {
        self.timers.next()
    }

    #[must_use]
    pub(super) fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    pub(super) fn statistics(&self) -> Statistics {
        Statistics {
            starting: self.count(Phase::Starting),
            idle: self.idle.len(),
            busy: self.count(Phase::Serving) - self.idle.len(),
            leaving: self.count(Phase::Draining) + self.count(Phase::Leaving) + self.count(Phase::Ending),
            queued: self.queue.len(),
            waiting: self.door.len(),
            in_flight: self.calls.len() - self.queue.len() - self.door.len(),
            ..self.tally
        }
    }

    /// Looks over all after each event.
    fn settle(&mut self) {
        self.replace_worn();
        self.hand_out();
        if self.is_stuck() {
            self.turn_away();
        }
        self.grow();
        self.plan_shrinking();
        self.finish();
    }

    fn act(&mut self, action: Action) {
        self.actions.push_back(action);
    }

    /// Whether the worker was told to leave.
    pub(super) fn has_dismissed(&self, worker: WorkerNumber) -> bool {
        self.crew.get(&worker).is_some_and(|worker| worker.is_at(Phase::Leaving))
    }

    /// Whether the call has not been settled yet.
    pub(super) fn knows(&self, call: CallNumber) -> bool {
        self.calls.contains_key(&call)
    }

    /// So many starts have failed in a row, and nobody serves.
    fn is_stuck(&self) -> bool {
        self.failures >= self.rules.attempts.get() && self.count(Phase::Serving) == 0
    }

    fn finish(&mut self) {
        if !self.closed || !self.calls.is_empty() || self.finished {
            return;
        }
        for worker in self.crew_at(&[Phase::Starting, Phase::Serving]) {
            self.retire(worker, Cue::Unneeded, Cause::Finished);
        }
        if self.crew.is_empty() {
            self.finished = true;
            self.timers = Timers::default();
            self.act(Action::Finished);
        }
    }
}
