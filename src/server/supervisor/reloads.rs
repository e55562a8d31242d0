//! What becomes of reloads, for whoever asks: how the last one ended, and who waits for which.
//!
//! Whoever asks for a reload waits for the first that begins after that, as the signals do that become one: what has
//! begun before may not have seen what he wants rolled in.

use std::time::Duration;

use super::table::Phase;
use super::{Action, Notice, Outcome, Supervisor};
use crate::server::Generation;
use crate::server::status::ReloadOutcome;

/// Somebody who has asked for a reload and is to be told its end, once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct ReloadTicket(pub(crate) u64);

/// The end of a reload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ReloadEnd {
    /// The generation that it was to bring; none if it never began.
    pub(crate) generation: Option<Generation>,
    pub(crate) outcome: ReloadOutcome,
    /// How long it took from its beginning.
    pub(crate) took: Duration,
}

/// The book of reloads.
#[derive(Debug, Default)]
pub(super) struct Reloads {
    /// The last one that began and ended, and when it did.
    last: Option<(ReloadEnd, Duration)>,
    /// Who waits for the end of the one under way.
    awaiting: Vec<ReloadTicket>,
    /// Who waits for the one after it.
    waiting: Vec<ReloadTicket>,
}

impl Reloads {
    /// Somebody waits for the next one.
    pub(super) fn await_next(&mut self, ticket: ReloadTicket) {
        self.waiting.push(ticket);
    }

    /// What was the next one is under way.
    pub(super) fn begin(&mut self) {
        self.awaiting.append(&mut self.waiting);
    }
}

impl Supervisor {
    /// How the last reload ended that has, and when.
    pub(crate) fn last_reload(&self) -> Option<&(ReloadEnd, Duration)> {
        self.reloads.last.as_ref()
    }

    /// The reload under way has come to its end.
    pub(super) fn end_reload(&mut self, generation: Generation, outcome: ReloadOutcome) {
        let took = self.now - self.began_at;
        self.notice(match outcome.clone() {
            ReloadOutcome::Reloaded => Notice::Reloaded { generation, took },
            ReloadOutcome::RolledBack { why: words } => Notice::ReloadFailed { generation, words },
            ReloadOutcome::CalledOff { why: words } => Notice::ReloadCalledOff { generation, words },
        });
        let end = ReloadEnd { generation: Some(generation), outcome, took };
        for ticket in std::mem::take(&mut self.reloads.awaiting) {
            self.act(Action::TellReload { ticket, end: end.clone() });
        }
        self.reloads.last = Some((end, self.now));
    }

    /// Nobody waits for a reload that will never begin.
    pub(super) fn turn_away_who_waits_in_vain(&mut self) {
        if self.reload_queued && !self.phase.is_leaving() {
            return;
        }
        let why = match (self.phase, &self.outcome) {
            (Phase::Paused | Phase::Replenishing, _) => "the workers were drained before it began",
            (_, Outcome::Replaced { .. }) => super::REPLACED,
            _ => super::STOPPING,
        };
        for ticket in std::mem::take(&mut self.reloads.waiting) {
            let outcome = ReloadOutcome::CalledOff { why: why.to_owned() };
            let end = ReloadEnd { generation: None, outcome, took: Duration::ZERO };
            self.act(Action::TellReload { ticket, end });
        }
    }
}

#[cfg(test)]
impl Supervisor {
    /// Why the last reload failed, if none has succeeded since; it is of no further reload's concern.
    pub(crate) fn reload_failure(&self) -> Option<&str> {
        match &self.reloads.last.as_ref()?.0.outcome {
            ReloadOutcome::Reloaded => None,
            ReloadOutcome::RolledBack { why } | ReloadOutcome::CalledOff { why } => Some(why),
        }
    }
}
