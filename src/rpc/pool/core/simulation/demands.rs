//! What the core asks for, carried out, and what must hold whenever it does and at any time.

use std::time::Duration;

use super::*;

impl World {
    pub(super) fn carry_out(&mut self) {
        while let Some(action) = self.core.poll_action() {
            if self.said {
                eprintln!("{:?}     {action:?}", self.now);
            }
            assert!(!self.finished, "it acts after it has finished: {action:?}");
            match action {
                Action::Start { worker } => {
                    assert!(self.crew.insert(worker, Process::default()).is_none(), "a number came twice");
                    assert!(self.crew.len() <= self.rules.max.get(), "more than max processes");
                    let rests = self.last_failure.is_some_and(|at| self.now < at + 75 * MS);
                    assert!(!rests, "it starts another one at once after a failure");
                    self.hear(Event::Made { worker });
                }
                Action::Send { worker, call } => self.send(worker, call),
                Action::Discourage { call } => assert!(self.calls[&call].with.is_some(), "nobody has it"),
                Action::End { call, why } => self.end(call, why),
                Action::Kill { worker, late } => {
                    let process = self.crew.get_mut(&worker).expect("it lives");
                    assert!(!std::mem::replace(&mut process.killed, true), "killed twice");
                    if late == Late::Ready {
                        self.last_failure = Some(self.now);
                    }
                    self.saw(match late {
                        Late::Call => "overdue",
                        Late::Ready => "late start",
                        Late::Leaving => "late leaving",
                    });
                }
                Action::Dismiss { worker } => {
                    let process = self.crew.get_mut(&worker).expect("it lives");
                    assert!(process.in_hand.is_empty(), "it is dismissed with calls in hand");
                    assert!(!std::mem::replace(&mut process.dismissed, true), "dismissed twice");
                }
                Action::Measure { workers } => {
                    for worker in workers {
                        let resident = u64::from(self.random.below(1_200));
                        self.hear(Event::Measured { worker, resident });
                    }
                }
                Action::Left { cause, .. } => match cause {
                    Cause::Idle => self.saw("idle left"),
                    Cause::Calls => self.saw("worn by calls"),
                    Cause::Age => self.saw("worn by age"),
                    Cause::Memory => self.saw("worn by memory"),
                    _ => {}
                },
                Action::Finished => {
                    assert!(self.closed && self.crew.is_empty() && self.open.is_empty(), "it finishes too early");
                    self.finished = true;
                }
            }
        }
        if self.core.worn.values().any(Option::is_some) {
            self.saw("successor");
        }
    }

    fn send(&mut self, worker: WorkerNumber, call: CallNumber) {
        let first = self.calls.iter().filter(|(_, sim)| sim.waiting).map(|(&number, _)| number).min();
        let process = self.crew.get_mut(&worker).expect("calls go to living processes");
        assert!(process.ready && !process.dismissed && !process.killed, "{worker} takes no calls: {process:?}");
        let sim = self.calls.get_mut(&call).expect("it was made");
        assert!(!sim.ended && sim.waiting && sim.with.is_none(), "{call} is not to be sent: {sim:?}");
        if process.broken || self.random.below(40) == 0 {
            // It breaks in this moment.
            let worker_breaks = !std::mem::replace(&mut process.broken, true);
            sim.back = true;
            self.saw("unsent");
            self.hear(Event::Unsent { call });
            if worker_breaks {
                self.break_off(worker);
            }
            return;
        }
        assert_eq!(first, Some(call), "an earlier call waits");
        sim.waiting = false;
        sim.with = Some((worker, self.now));
        sim.begun += 1;
        let begun = sim.begun;
        assert!(begun <= 1 + sim.terms.repeats + 100, "begun too often");
        process.in_hand.push(call);
        process.handed += 1;
        assert!(process.in_hand.len() <= self.rules.load.get(), "more than load in flight");
        assert!(self.rules.calls.is_none_or(|most| process.handed <= most.get()), "more calls than a worker may get");
        if begun > 1 {
            self.saw("retried");
        }
    }

    fn end(&mut self, call: CallNumber, why: NoReply) {
        let sim = self.calls.get_mut(&call).expect("it was made");
        assert!(!std::mem::replace(&mut sim.ended, true), "{call} ends twice");
        sim.waiting = false;
        let may_have_run = match why {
            NoReply::TimedOut { may_have_run }
            | NoReply::Lost { may_have_run }
            | NoReply::NoWorker { may_have_run } => may_have_run,
        };
        assert!(!may_have_run || sim.begun > 0, "a call that was never begun cannot have run");
        self.open.remove(&call);
        self.saw(match why {
            NoReply::TimedOut { .. } => "timed out",
            NoReply::Lost { .. } => "lost",
            NoReply::NoWorker { .. } => "no worker",
        });
    }

    /// What holds at any time.
    pub(super) fn audit(&mut self) {
        let statistics = self.core.statistics();
        let waiting = self.calls.values().filter(|sim| sim.waiting).count();
        assert_eq!(statistics.queued + statistics.waiting, waiting);
        let again = self.calls.values().filter(|sim| sim.waiting && sim.back).count();
        assert!(statistics.queued <= self.rules.queue.get() + again, "the queue is too long");
        assert_eq!(statistics.in_flight, self.calls.values().filter(|sim| sim.with.is_some()).count());
        let all = statistics.starting + statistics.idle + statistics.busy + statistics.leaving;
        assert_eq!(all, self.crew.len());
        if waiting > 0 {
            let free = self.core.free.first();
            assert!(free.is_none(), "calls wait though {free:?} is free");
            assert!(!self.core.is_stuck(), "calls wait though no worker becomes ready");
        }
        for (number, sim) in &self.calls {
            let overdue = |(worker, since): (WorkerNumber, Duration)| {
                let late = sim.terms.deadline.is_some_and(|deadline| since + deadline < self.now);
                let process = &self.crew[&worker];
                late && !(sim.ended && (process.killed || process.broken))
            };
            assert!(!sim.with.is_some_and(overdue), "{number} has met its deadline, and lives on: {sim:?}");
            let patience = sim.terms.patience.filter(|patience| sim.called_at + *patience < self.now);
            assert!(sim.ended || patience.is_none(), "{number} waits beyond its caller's patience");
        }
    }
}
