//! The books of the calls: each waits, is with a worker, and ends, once.

use std::time::Duration;

use super::table::Cue;
use super::{Action, CallNumber, Cause, Core, NoReply, Phase, Terms, Timer, WorkerNumber};

#[derive(Debug)]
pub(super) struct Call {
    terms: Terms,
    place: Place,
    repeats_left: u32,
    /// An earlier worker may have begun it.
    may_have_run: bool,
    /// Nobody waits for it; its worker has not answered yet.
    given_up: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Door,
    Queue,
    With(WorkerNumber),
}

impl Core {
    pub(super) fn queue_has_room(&self) -> bool {
        self.queue.len() < self.rules.queue.get() && self.queued_bytes < self.rules.queued_bytes
    }

    pub(super) fn called(&mut self, number: CallNumber, terms: Terms) {
        self.wanted = true;
        if let Some(patience) = terms.patience {
            self.set_timer(Timer::Patience(number), patience);
        }
        let place = Place::Door;
        let call = Call { terms, place, repeats_left: terms.repeats, may_have_run: false, given_up: false };
        self.calls.insert(number, call);
        self.door.insert(number);
    }

    /// Hands waiting calls to workers, and lets those at the door in, all in their order.
    pub(super) fn hand_out(&mut self) {
        loop {
            if let Some(&call) = self.queue.first()
                && let Some(&rank) = self.free.first()
            {
                self.hand(call, rank.worker);
            } else if let Some(&call) = self.door.first()
                && (self.queue_has_room() || !self.free.is_empty())
            {
                self.door.remove(&call);
                self.enqueue(call);
            } else {
                return;
            }
        }
    }

    fn enqueue(&mut self, number: CallNumber) {
        let Some(call) = self.calls.get_mut(&number) else { return };
        call.place = Place::Queue;
        self.queued_bytes += call.terms.bytes;
        self.queue.insert(number);
    }

    fn dequeue(&mut self, number: CallNumber) {
        if let Some(call) = self.calls.get(&number)
            && self.queue.remove(&number)
        {
            self.queued_bytes -= call.terms.bytes;
        }
    }

    fn hand(&mut self, number: CallNumber, worker: WorkerNumber) {
        self.dequeue(number);
        let Some(call) = self.calls.get_mut(&number) else { return };
        call.place = Place::With(worker);
        if let Some(deadline) = call.terms.deadline {
            self.set_timer(Timer::Deadline(number), deadline);
        }
        self.act(Action::Send { worker, call: number });
        self.take_in_hand(worker, number);
    }

    /// The call's own end, whatever it is: a reply, or a failure that is its own.
    pub(super) fn answered(&mut self, number: CallNumber, well: bool) {
        let Some((call, worker)) = self.release(number) else { return };
        self.failures = 0;
        self.timers.cancel(Timer::Patience(number));
        if !call.given_up {
            let count = if well { &mut self.tally.answered } else { &mut self.tally.failed };
            *count += 1;
        }
        self.has_worked(worker);
    }

    pub(super) fn unsent(&mut self, number: CallNumber) {
        let Some((call, worker)) = self.release(number) else { return };
        self.step(worker, Cue::Broken);
        if !call.given_up {
            self.calls.insert(number, call);
            self.enqueue(number);
        }
    }

    pub(super) fn lost(&mut self, number: CallNumber, may_have_run: bool) {
        let Some((mut call, worker)) = self.release(number) else { return };
        self.step(worker, Cue::Broken);
        if call.given_up {
            return;
        }
        let repeatable = call.terms.repeats > 0 && (!may_have_run || call.repeats_left > 0);
        call.may_have_run |= may_have_run;
        if repeatable {
            call.repeats_left -= u32::from(may_have_run);
            self.tally.retried += 1;
            self.calls.insert(number, call);
            self.enqueue(number);
        } else {
            self.tally.lost += 1;
            self.timers.cancel(Timer::Patience(number));
            self.act(Action::End { call: number, why: NoReply::Lost { may_have_run: call.may_have_run } });
        }
    }

    /// Takes a call from its worker. Who waits for it waits on.
    fn release(&mut self, number: CallNumber) -> Option<(Call, WorkerNumber)> {
        let call = self.calls.get(&number)?;
        let Place::With(worker) = call.place else { return None };
        let call = self.calls.remove(&number)?;
        self.timers.cancel(Timer::Deadline(number));
        self.put_down(worker, number);
        Some((call, worker))
    }

    pub(super) fn given_up(&mut self, number: CallNumber) {
        if self.abandon(number).is_some() {
            self.tally.cancelled += 1;
        }
    }

    pub(super) fn impatient(&mut self, number: CallNumber) -> Option<bool> {
        let may_have_run = self.abandon(number)?;
        self.tally.timed_out += 1;
        Some(may_have_run)
    }

    pub(super) fn out_of_patience(&mut self, number: CallNumber) {
        if let Some(may_have_run) = self.impatient(number) {
            self.act(Action::End { call: number, why: NoReply::TimedOut { may_have_run } });
        }
    }

    /// Whether a worker that had it before may have begun it.
    pub(in crate::rpc::pool) fn begun_before(&self, number: CallNumber) -> bool {
        self.calls.get(&number).is_some_and(|call| call.may_have_run)
    }

    /// Nobody waits any more. Whether it may have run, if somebody did.
    fn abandon(&mut self, number: CallNumber) -> Option<bool> {
        self.timers.cancel(Timer::Patience(number));
        let call = self.calls.get_mut(&number).filter(|call| !call.given_up)?;
        let may_have_run = call.may_have_run;
        match call.place {
            Place::With(_) => {
                call.given_up = true;
                self.act(Action::Discourage { call: number });
                Some(true)
            }
            Place::Door | Place::Queue => {
                self.forget(number);
                Some(may_have_run)
            }
        }
    }

    /// A call has been with its worker for too long: that worker dies.
    pub(super) fn overdue(&mut self, number: CallNumber) {
        let Some(call) = self.calls.get_mut(&number) else { return };
        let Place::With(worker) = call.place else { return };
        if !std::mem::replace(&mut call.given_up, true) {
            self.tally.timed_out += 1;
            self.timers.cancel(Timer::Patience(number));
            self.act(Action::End { call: number, why: NoReply::TimedOut { may_have_run: true } });
        }
        self.step(worker, Cue::Overdue);
    }

    /// No worker becomes ready: whoever waits is told so.
    pub(super) fn turn_away(&mut self) {
        let waiting: Vec<CallNumber> = self.queue.iter().chain(&self.door).copied().collect();
        for number in waiting {
            let may_have_run = self.begun_before(number);
            self.timers.cancel(Timer::Patience(number));
            self.forget(number);
            self.tally.refused += 1;
            self.act(Action::End { call: number, why: NoReply::NoWorker { may_have_run } });
        }
    }

    /// Strikes out a call that is with nobody.
    fn forget(&mut self, number: CallNumber) {
        self.dequeue(number);
        self.door.remove(&number);
        self.calls.remove(&number);
    }

    pub(super) fn set_timer(&mut self, timer: Timer, after: Duration) {
        // What is too far away for the clock never comes.
        if let Some(at) = self.now.checked_add(after) {
            self.timers.set(timer, at);
        }
    }

    pub(super) fn has_backlog(&self) -> bool {
        !self.queue.is_empty() || !self.door.is_empty()
    }

    /// More calls wait than the workers that start will take.
    pub(super) fn is_short_handed(&self) -> bool {
        let coming = self.count(Phase::Starting).saturating_mul(self.rules.load.get());
        self.queue.len() + self.door.len() > coming
    }

    /// Its worker has reached a limit of calls.
    pub(super) fn wear_out_by_calls(&mut self, worker: WorkerNumber) {
        self.retire(worker, Cue::Worn, Cause::Calls);
    }
}
