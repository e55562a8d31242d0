//! The books of the workers.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::time::Duration;

use super::table::{Cue, Step, look_up};
use super::{Action, CallNumber, Cause, Core, Late, Phase, Timer, WorkerNumber};

/// A worker that dies idle before it has served for so long counts as one that could not be started.
const PROVEN: Duration = Duration::from_secs(1);

/// Workers that have worked are measured at most once in so long.
const MEASURE_EVERY: Duration = Duration::from_millis(100);

#[derive(Debug)]
pub(super) struct Worker {
    phase: Phase,
    in_hand: BTreeSet<CallNumber>,
    ready_at: Option<Duration>,
    /// It has had nothing in hand since then, or had something in hand last.
    idle_since: Duration,
    /// Calls that it was handed.
    begun: u64,
    /// Its own limits; jitter makes them differ.
    most_calls: Option<u64>,
    most_memory: Option<u64>,
    /// How many calls had been handed out when it got its last one.
    last_used: u64,
    rank: Option<Rank>,
    cause: Option<Cause>,
    /// It has worked since it was measured last.
    unmeasured: bool,
}

/// Who gets the next call: who serves on for good before who is about to be replaced, then who has the least in hand, then
/// who was used last, so that the others may leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Rank {
    worn: bool,
    in_hand: usize,
    last_used: Reverse<u64>,
    pub(super) worker: WorkerNumber,
}

impl Worker {
    pub(super) fn is_at(&self, phase: Phase) -> bool {
        self.phase == phase
    }
}

impl Core {
    pub(super) fn count(&self, phase: Phase) -> usize {
        self.at[phase as usize]
    }

    pub(super) fn crew_at(&self, phases: &[Phase]) -> Vec<WorkerNumber> {
        let here = |worker: &Worker| phases.contains(&worker.phase);
        self.crew.iter().filter(|(_, worker)| here(worker)).map(|(&number, _)| number).collect()
    }

    pub(super) fn start(&mut self) -> WorkerNumber {
        self.last_worker += 1;
        let number = self.last_worker;
        let worker = Worker {
            phase: Phase::Starting,
            in_hand: BTreeSet::new(),
            ready_at: None,
            idle_since: self.now,
            begun: 0,
            most_calls: None,
            most_memory: None,
            last_used: 0,
            rank: None,
            cause: None,
            unmeasured: false,
        };
        self.crew.insert(number, worker);
        self.at[Phase::Starting as usize] += 1;
        self.tally.started += 1;
        self.act(Action::Start { worker: number });
        number
    }

    /// From now on it is its own time that passes, and not that of its source, or of others before it.
    pub(super) fn made(&mut self, number: WorkerNumber) {
        if self.crew.get(&number).is_some_and(|worker| worker.is_at(Phase::Starting)) {
            self.set_timer(Timer::Late(number), self.rules.start_within);
        }
    }

    /// What the policy's table says.
    pub(super) fn step(&mut self, number: WorkerNumber, cue: Cue) {
        let Some(worker) = self.crew.get_mut(&number) else { return };
        match look_up(worker.phase, cue) {
            Step::Serve => self.serve(number),
            Step::Drain => {
                let drained = worker.in_hand.is_empty();
                self.enter(number, Phase::Draining);
                if drained {
                    self.step(number, Cue::Drained);
                }
            }
            Step::Dismiss => {
                if worker.ready_at.is_some() {
                    // It could be started, and nothing happened to it.
                    self.failures = 0;
                }
                self.enter(number, Phase::Leaving);
                self.set_timer(Timer::Late(number), self.rules.leave_within);
                self.act(Action::Dismiss { worker: number });
            }
            Step::Kill => {
                let late = match worker.phase {
                    Phase::Starting => Late::Ready,
                    Phase::Leaving => Late::Leaving,
                    _ => Late::Call,
                };
                worker.cause = Some(Cause::Late(late));
                self.tally.overdue += u64::from(late == Late::Call);
                self.expect_end(number);
                self.act(Action::Kill { worker: number, late });
            }
            Step::AwaitEnd => {
                if worker.phase != Phase::Leaving {
                    worker.cause = Some(Cause::Unasked);
                }
                self.expect_end(number);
            }
            Step::Remove => self.remove(number),
            Step::Nothing => {}
        }
    }

    /// It is to leave, and why.
    pub(super) fn retire(&mut self, number: WorkerNumber, cue: Cue, cause: Cause) {
        if let Some(worker) = self.crew.get_mut(&number) {
            worker.cause.get_or_insert(cause);
        }
        self.step(number, cue);
    }

    fn serve(&mut self, number: WorkerNumber) {
        let rules = &self.rules;
        let (random, now) = (&mut self.random, self.now);
        let most_calls = rules.calls.map(|calls| random.lowered(calls.get()));
        let most_memory = rules.memory.map(|bytes| random.lowered(bytes.get()));
        let age = rules.age.map(|age| random.lowered_time(age));
        if let Some(worker) = self.crew.get_mut(&number) {
            worker.ready_at = Some(now);
            worker.idle_since = now;
            (worker.most_calls, worker.most_memory) = (most_calls, most_memory);
        }
        self.enter(number, Phase::Serving);
        if let Some(age) = age {
            self.set_timer(Timer::Age(number), age);
        }
        let followed = self.worn.iter().find(|(_, successor)| **successor == Some(number)).map(|(&worn, _)| worn);
        if let Some(worn) = followed {
            self.step(worn, Cue::Worn);
        }
    }

    fn enter(&mut self, number: WorkerNumber, phase: Phase) {
        let Some(worker) = self.crew.get_mut(&number) else { return };
        self.at[worker.phase as usize] -= 1;
        self.at[phase as usize] += 1;
        worker.phase = phase;
        self.timers.cancel(Timer::Late(number));
        if phase != Phase::Serving {
            self.timers.cancel(Timer::Age(number));
            self.worn.remove(&number);
        }
        self.rank(number);
    }

    /// Puts a worker where those are found who take a call, and those who are idle.
    pub(super) fn rank(&mut self, number: WorkerNumber) {
        let Some(worker) = self.crew.get_mut(&number) else { return };
        if let Some(rank) = worker.rank.take() {
            self.free.remove(&rank);
        }
        self.idle.remove(&(worker.idle_since, number));
        if worker.phase != Phase::Serving {
            return;
        }
        if worker.in_hand.is_empty() {
            self.idle.insert((worker.idle_since, number));
        }
        if worker.in_hand.len() < self.rules.load.get() {
            let rank = Rank {
                worn: self.worn.contains_key(&number),
                in_hand: worker.in_hand.len(),
                last_used: Reverse(worker.last_used),
                worker: number,
            };
            worker.rank = Some(rank);
            self.free.insert(rank);
        }
    }

    pub(super) fn take_in_hand(&mut self, number: WorkerNumber, call: CallNumber) {
        self.handed += 1;
        let Some(worker) = self.crew.get_mut(&number) else { return };
        worker.in_hand.insert(call);
        worker.begun += 1;
        worker.last_used = self.handed;
        // What was idle is found by when it became so.
        self.idle.remove(&(worker.idle_since, number));
        let last = worker.most_calls.is_some_and(|most| worker.begun >= most);
        self.rank(number);
        if last {
            self.wear_out_by_calls(number);
        }
    }

    pub(super) fn put_down(&mut self, number: WorkerNumber, call: CallNumber) {
        let Some(worker) = self.crew.get_mut(&number) else { return };
        worker.in_hand.remove(&call);
        let drained = worker.in_hand.is_empty();
        if drained {
            worker.idle_since = self.now;
        }
        self.rank(number);
        if drained {
            self.step(number, Cue::Drained);
        }
    }

    /// Its memory is worth a look.
    pub(super) fn has_worked(&mut self, number: WorkerNumber) {
        if self.rules.memory.is_none() {
            return;
        }
        if let Some(worker) = self.crew.get_mut(&number) {
            worker.unmeasured = true;
            if !self.timers.is_set(Timer::Measure) {
                self.set_timer(Timer::Measure, MEASURE_EVERY);
            }
        }
    }

    pub(super) fn measure(&mut self) {
        let worked = |worker: &mut Worker| std::mem::take(&mut worker.unmeasured) && worker.phase == Phase::Serving;
        let workers: Vec<_> =
            self.crew.iter_mut().filter_map(|(&number, worker)| worked(worker).then_some(number)).collect();
        if !workers.is_empty() {
            self.act(Action::Measure { workers });
        }
    }

    pub(super) fn measured(&mut self, number: WorkerNumber, resident: u64) {
        let most = self.crew.get(&number).and_then(|worker| worker.most_memory);
        if most.is_some_and(|most| resident >= most) {
            self.wear_out(number, Cause::Memory);
        }
    }

    /// It has reached a limit; it serves on until its successor is ready, if it needs one.
    pub(super) fn wear_out(&mut self, number: WorkerNumber, cause: Cause) {
        let Some(worker) = self.crew.get_mut(&number).filter(|worker| worker.phase == Phase::Serving) else { return };
        worker.cause.get_or_insert(cause);
        self.worn.entry(number).or_insert(None);
        self.rank(number);
    }

    fn remove(&mut self, number: WorkerNumber) {
        if self.crew.get(&number).is_some_and(|worker| worker.phase != Phase::Ending) {
            self.step(number, Cue::Broken);
        }
        let Some(worker) = self.crew.remove(&number) else { return };
        self.at[Phase::Ending as usize] -= 1;
        self.act(Action::Left { worker: number, cause: worker.cause.unwrap_or(Cause::Unasked) });
    }

    /// Nothing more is expected of it but its end: what that means for the others is known now.
    fn expect_end(&mut self, number: WorkerNumber) {
        self.enter(number, Phase::Ending);
        self.worn.values_mut().filter(|successor| **successor == Some(number)).for_each(|successor| *successor = None);
        let Some(worker) = self.crew.get(&number) else { return };
        let cause = worker.cause.unwrap_or(Cause::Unasked);
        let served_for = worker.ready_at.map(|at| self.now - at);
        match (cause, served_for) {
            (Cause::Unasked | Cause::Late(Late::Ready), None) => self.start_failed(),
            (Cause::Unasked, Some(time)) if worker.begun == 0 && time < PROVEN => self.start_failed(),
            (Cause::Unasked | Cause::Late(_), _) => self.tally.restarts += 1,
            (Cause::Calls | Cause::Age | Cause::Memory, _) => self.tally.recycled += 1,
            (Cause::Idle | Cause::Finished, _) => {}
        }
        if served_for.is_some_and(|time| time >= PROVEN) {
            self.failures = 0;
        }
    }

    fn start_failed(&mut self) {
        self.tally.failed_starts += 1;
        self.failures += 1;
        self.wanted = false;
        let delay = self.rules.backoff.delay(self.failures, &mut self.random);
        self.not_before = self.now + delay;
        self.timers.set(Timer::Retry, self.not_before);
    }
}
