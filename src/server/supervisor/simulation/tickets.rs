//! Who has asked for a reload, and what he is told: once, and by the first reload that begins after he has asked.

use std::collections::BTreeMap;

use super::super::{Action, Event, Notice, Phase, ReloadEnd, ReloadTicket, Supervisor};
use crate::server::Generation;
use crate::server::status::ReloadOutcome;

pub(super) struct Tickets {
    /// Who waits, and the newest generation when he asked.
    open: BTreeMap<ReloadTicket, Generation>,
    newest: Generation,
}

impl Tickets {
    pub(super) fn new() -> Self {
        Self { open: BTreeMap::new(), newest: Generation(1) }
    }

    pub(super) fn hear(&mut self, event: &Event) {
        if let Event::ReloadAsked { ticket } = event {
            assert!(self.open.insert(*ticket, self.newest).is_none(), "{ticket:?} comes twice");
        }
    }

    pub(super) fn check(&mut self, actions: &[Action], supervisor: &Supervisor) {
        for (at, action) in actions.iter().enumerate() {
            match action {
                Action::Notice(Notice::Reloading { generation }) => self.newest = *generation,
                Action::TellReload { ticket, end } => {
                    let asked = self.open.remove(ticket);
                    let newest = asked.unwrap_or_else(|| panic!("{ticket:?} is told twice, or has not asked"));
                    check_end(end, newest, &actions[..at]);
                }
                _ => {}
            }
        }
        if matches!(supervisor.phase(), Phase::Serving | Phase::Paused) || supervisor.phase().is_leaving() {
            assert_eq!(self.open.keys().next(), None, "somebody waits in vain in {:?}", supervisor.phase());
        }
    }
}

/// What somebody is told who asked when that generation was the newest, after these actions.
fn check_end(end: &ReloadEnd, newest: Generation, before: &[Action]) {
    let Some(generation) = end.generation else {
        assert!(matches!(end.outcome, ReloadOutcome::CalledOff { .. }), "{end:?} without having begun");
        return;
    };
    assert!(generation > newest, "{end:?} of a reload that had begun before he asked");
    let told = before.iter().any(|action| match (action, &end.outcome) {
        (Action::Notice(Notice::Reloaded { generation: of, .. }), ReloadOutcome::Reloaded) => *of == generation,
        (Action::Notice(Notice::ReloadFailed { generation: of, words }), ReloadOutcome::RolledBack { why })
        | (Action::Notice(Notice::ReloadCalledOff { generation: of, words }), ReloadOutcome::CalledOff { why }) => {
            *of == generation && why == words
        }
        _ => false,
    });
    assert!(told, "the log says nothing of {end:?}");
}
