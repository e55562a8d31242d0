//! The client's books, without any I/O: which calls are outstanding, whose reply is whose, how each ends, once.
//!
//! The shell (`link.rs`) brings what arrives and carries out what comes of it. A token stands for whoever waits for a
//! call; it is handed out exactly once: with the reply, by a cancel, at its deadline, or at the end of all.

use std::collections::BTreeSet;
use std::time::Instant;

use super::wire::{Broken, CallId, Kind};

/// The calls of one client.
pub(super) struct Conversation<T> {
    phase: Phase,
    places: Vec<Place<T>>,
    free: Vec<u32>,
    outstanding: usize,
    limit: usize,
    /// How many calls were begun: each is known by its number in this order too.
    begun: u64,
    /// Calls up to this number may have reached the process.
    sent: u64,
    /// When outstanding calls end unanswered, the next first.
    deadlines: BTreeSet<(Instant, CallId)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// The process has not said its first word.
    New,
    Open,
    Ended,
}

struct Place<T> {
    generation: u32,
    call: Option<Outstanding<T>>,
}

struct Outstanding<T> {
    number: u64,
    token: T,
    deadline: Option<Instant>,
}

/// What an arrived frame means.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step<T> {
    /// What the process speaks.
    Hello,
    /// The end of this call: a reply, or why there is none.
    End(T),
    /// The reply to a call that has ended before.
    Late,
    Event,
    /// The process ends the conversation, and says why.
    Refused,
}

/// A call that is not to be waited for any more.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Ended<T> {
    pub(super) token: T,
    pub(super) may_have_run: bool,
}

impl<T> Conversation<T> {
    /// At most `limit` calls are outstanding at a time.
    pub(super) fn new(limit: usize) -> Conversation<T> {
        Conversation {
            phase: Phase::New,
            places: Vec::new(),
            free: Vec::new(),
            outstanding: 0,
            // Places are numbered with 32 bits.
            limit: limit.min(u32::MAX as usize),
            begun: 0,
            sent: 0,
            deadlines: BTreeSet::new(),
        }
    }

    pub(super) fn outstanding(&self) -> usize {
        self.outstanding
    }

    /// Whether a further call can begin.
    pub(super) fn has_room(&self) -> bool {
        self.outstanding < self.limit && self.phase != Phase::Ended
    }

    /// A call begins; its id and its number come back, or the token if there is no room.
    pub(super) fn begin(&mut self, token: T, deadline: Option<Instant>) -> Result<(CallId, u64), T> {
        if !self.has_room() {
            return Err(token);
        }
        self.begun += 1;
        self.outstanding += 1;
        let call = Some(Outstanding { number: self.begun, token, deadline });
        let place = match self.free.pop() {
            Some(place) => place,
            None => {
                self.places.push(Place { generation: 0, call: None });
                self.places.len() as u32 - 1
            }
        };
        let seat = &mut self.places[place as usize];
        seat.call = call;
        let id = CallId { place, generation: seat.generation };
        self.deadlines.extend(deadline.map(|deadline| (deadline, id)));
        Ok((id, self.begun))
    }

    /// When the next call is overdue.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.deadlines.first().map(|(deadline, _)| *deadline)
    }

    /// A call whose deadline has come, the earliest first: nobody waits for it any more.
    pub(super) fn take_overdue(&mut self, now: Instant) -> Option<(CallId, Ended<T>)> {
        let (_, id) = *self.deadlines.first().filter(|(deadline, _)| *deadline <= now)?;
        Some((id, self.cancel(id)?))
    }

    /// Calls up to this number are about to be sent; what was said before comes back.
    pub(super) fn mark_sent(&mut self, number: u64) -> u64 {
        let before = self.sent;
        self.sent = before.max(number);
        before
    }

    /// The calls that were about to be sent were not.
    pub(super) fn unmark_sent(&mut self, before: u64) {
        self.sent = before;
    }

    /// Nobody waits for the call any more.
    pub(super) fn cancel(&mut self, id: CallId) -> Option<Ended<T>> {
        self.find(id).ok().flatten()?;
        let call = self.take(id)?;
        Some(Ended { may_have_run: call.number <= self.sent, token: call.token })
    }

    /// A frame has arrived from the process.
    pub(super) fn handle(&mut self, kind: Kind, id: CallId) -> Result<Step<T>, Broken> {
        match (kind, self.phase) {
            (_, Phase::Ended) => Ok(Step::Late),
            (Kind::Hello, Phase::New) => {
                self.phase = Phase::Open;
                Ok(Step::Hello)
            }
            (Kind::Refused, _) => Ok(Step::Refused),
            (_, Phase::New) => Err(Broken(format!("its first word was {kind:?}"))),
            (Kind::Event, Phase::Open) => Ok(Step::Event),
            (Kind::Reply | Kind::Failed, Phase::Open) => match self.find(id)? {
                Some(call) if call.number > self.sent => {
                    Err(Broken("a reply came to a call that was not sent".to_owned()))
                }
                Some(_) => Ok(self.take(id).map_or(Step::Late, |call| Step::End(call.token))),
                None => Ok(Step::Late),
            },
            (Kind::Hello | Kind::Call | Kind::Cancel, Phase::Open) => {
                Err(Broken(format!("{kind:?} is nothing that a process may say")))
            }
        }
    }

    /// All is over: every call that is outstanding ends, in the order of their beginning. A process says its first word
    /// before it looks at any call.
    pub(super) fn end(&mut self) -> Vec<Ended<T>> {
        let met = std::mem::replace(&mut self.phase, Phase::Ended) == Phase::Open;
        self.outstanding = 0;
        self.free.clear();
        self.deadlines.clear();
        let mut calls: Vec<_> = self.places.drain(..).filter_map(|place| place.call).collect();
        calls.sort_by_key(|call| call.number);
        let sent = self.sent;
        calls.into_iter().map(|call| Ended { may_have_run: met && call.number <= sent, token: call.token }).collect()
    }

    /// The call of that id; none, if it has ended before.
    fn find(&self, id: CallId) -> Result<Option<&Outstanding<T>>, Broken> {
        let never = || Broken(format!("a reply came to a call that was never made: {id:?}"));
        let place = self.places.get(id.place as usize).ok_or_else(never)?;
        // Generations wrap around, in some thousand million calls of one place.
        match place.generation.wrapping_sub(id.generation) {
            0 => place.call.as_ref().map(Some).ok_or_else(never),
            behind if behind < u32::MAX / 2 => Ok(None),
            _ => Err(never()),
        }
    }

    /// Takes the call of that id, which is outstanding, out of its place; nobody else will have its id.
    fn take(&mut self, id: CallId) -> Option<Outstanding<T>> {
        let place = self.places.get_mut(id.place as usize)?;
        let call = place.call.take()?;
        place.generation = place.generation.wrapping_add(1);
        self.free.push(id.place);
        self.outstanding -= 1;
        if let Some(deadline) = call.deadline {
            self.deadlines.remove(&(deadline, id));
        }
        Some(call)
    }
}

#[cfg(test)]
mod tests;
