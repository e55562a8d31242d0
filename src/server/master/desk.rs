//! Where the master is asked: questions come as events, and are answered when the answer is known.

use std::collections::BTreeMap;
use std::fmt;

use crossbeam_channel::Sender;

use super::event::Event;
use super::journal::millis;
use crate::server::status;
use crate::server::supervisor::{ReloadEnd, ReloadTicket};

/// A way to ask the master, from any thread; nobody waits here.
#[derive(Debug, Clone)]
pub(crate) struct Desk(Sender<Event>);

/// What the master can be asked.
#[derive(Debug)]
#[cfg_attr(not(feature = "control"), expect(dead_code, reason = "whoever asks is behind that feature"))]
pub(crate) enum Question {
    /// How the server stands. Answered within the master's next turn.
    Status(Reply<status::Status>),
    /// Reload; answered when the reload has ended, or is called off.
    Reload { asker: Asker, reply: Reply<status::ReloadEnd> },
}

/// Who asks, as far as that can be told: a process and its user.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Asker {
    pub(crate) pid: i32,
    pub(crate) uid: u32,
}

/// What is called with the answer, on the master's thread: it must not wait. It is dropped if the master ends first.
pub(crate) struct Reply<T>(Box<dyn FnOnce(T) + Send>);

impl Desk {
    pub(super) fn new(events: Sender<Event>) -> Desk {
        Desk(events)
    }

    #[cfg_attr(not(feature = "control"), expect(dead_code, reason = "whoever asks is behind that feature"))]
    pub(crate) fn ask(&self, question: Question) {
        // Nobody listens any more: the server has ended.
        let _ = self.0.send(Event::Asked(question));
    }
}

impl<T> Reply<T> {
    #[cfg_attr(not(feature = "control"), expect(dead_code, reason = "whoever asks is behind that feature"))]
    pub(crate) fn new(tell: impl FnOnce(T) + Send + 'static) -> Reply<T> {
        Reply(Box::new(tell))
    }

    pub(super) fn give(self, answer: T) {
        (self.0)(answer);
    }
}

impl<T> fmt::Debug for Reply<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Reply")
    }
}

/// Who waits for the end of a reload.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    last: u64,
    replies: BTreeMap<ReloadTicket, Reply<status::ReloadEnd>>,
}

impl Waiting {
    pub(super) fn enter(&mut self, reply: Reply<status::ReloadEnd>) -> ReloadTicket {
        self.last += 1;
        let ticket = ReloadTicket(self.last);
        self.replies.insert(ticket, reply);
        ticket
    }

    pub(super) fn tell(&mut self, ticket: ReloadTicket, end: ReloadEnd) {
        if let Some(reply) = self.replies.remove(&ticket) {
            reply.give(told(end));
        }
    }
}

/// The end of a reload as whoever asks is told.
pub(super) fn told(end: ReloadEnd) -> status::ReloadEnd {
    let ReloadEnd { generation, outcome, took } = end;
    status::ReloadEnd { generation, outcome, took_ms: millis(took) }
}
