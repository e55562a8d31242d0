//! Where the auditor's books and the supervisor's must say the same, and that every wait has its timer and no other has.

use super::super::table::Health;
use super::super::{Action, Event, Notice, Phase, Signal, Supervisor, WorkerState};
use super::auditor::Auditor;
use super::world::World;
use crate::server::Slot;

impl Auditor {
    pub(super) fn check_agreement(&self, actions: &[Action], supervisor: &Supervisor, world: &World) {
        self.check_states(supervisor);
        self.check_delays(actions, supervisor);
        self.check_timers(supervisor);
        let phase = supervisor.phase();
        let withdrawn = !matches!(phase, Phase::Unready | Phase::Gated | Phase::Stopping);
        assert!(withdrawn || supervisor.incoming().is_none(), "a reload goes on in {phase:?}");
        if phase == Phase::Killing || (phase == Phase::Yielding && !self.served) {
            let may_be_born = |generation| world.templates().contains(generation);
            let mut unborn = self.workers.iter().filter(|(_, worker)| !worker.forked);
            let born_late = unborn.find(|(_, worker)| may_be_born(&worker.generation));
            assert!(born_late.is_none(), "{:?} may still be forked", born_late.map(|(id, _)| id));
        }
        let proven = [Phase::Serving, Phase::Preparing, Phase::Rolling, Phase::Paused, Phase::Replenishing];
        if self.event == Event::Signal(Signal::Upgrade) && proven.contains(&self.standing.phase) {
            assert!(world.has_new_master(), "no upgrade is under way");
        }
        if phase == Phase::Serving && self.is_fully_seated() && self.consequences.health.probe.is_none() {
            assert_eq!(supervisor.health(), Health::Sound, "nobody is missing");
        }
    }

    fn check_states(&self, supervisor: &Supervisor) {
        for (theirs, state) in supervisor.workers() {
            let Some(ours) = self.workers.get(&theirs.id) else {
                continue; // Told elsewhere.
            };
            assert_eq!((theirs.slot, theirs.generation), (ours.slot, ours.generation));
            let expected = match (ours.killed, ours.leaving, ours.ready) {
                _ if ours.gone => WorkerState::Gone,
                (Some(_), _, _) => WorkerState::Killed,
                (None, Some(_), _) => WorkerState::Draining,
                (None, None, Some(_)) => WorkerState::Ready,
                (None, None, None) if ours.forked => WorkerState::Starting,
                (None, None, None) => WorkerState::Asked,
            };
            assert_eq!(state, expected, "{:?}", theirs.id);
        }
    }

    /// Where the fleet's own delay begins, those of the slots end, but for what fails after that.
    fn check_delays(&self, actions: &[Action], supervisor: &Supervisor) {
        let degrades = |action: &Action| matches!(action, Action::Notice(Notice::Degraded { .. }));
        let Some(at) = actions.iter().rposition(degrades) else {
            return;
        };
        for slot in (0..self.policy.max_workers).map(Slot).filter(|&slot| supervisor.waits(slot)) {
            let delays =
                |action: &Action| matches!(action, Action::Notice(Notice::SlotDelayed { slot: at, .. }) if *at == slot);
            assert!(actions[at..].iter().any(delays), "the fleet's delay begins, and that of slot {slot} goes on");
        }
    }

    /// Whoever has a deadline is looked at by then; and no timer is left of what is over.
    fn check_timers(&self, supervisor: &Supervisor) {
        assert_eq!(supervisor.stray_timer(), None);
        let next = supervisor.next_timer();
        for (id, worker) in &self.workers {
            let due = worker.deadline(&self.policy).filter(|&deadline| deadline > self.now);
            assert!(due.is_none_or(|due| next.is_some_and(|at| at <= due)), "nobody looks at {id:?} in time");
        }
    }

    /// Whether each slot has one worker, and none is to be followed by another.
    fn is_fully_seated(&self) -> bool {
        let seated = || self.workers.values().filter(|worker| worker.is_seated());
        let sits = |slot| seated().any(|worker| worker.slot == Slot(slot));
        (0..self.target).all(sits)
            && seated().count() == self.target as usize
            && seated().all(|worker| !worker.worn && worker.generation == self.standing.current)
    }
}
