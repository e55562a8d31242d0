//! The look over all seats and templates that ends every event.

use super::seats::Seat;
use super::table::{self, Cue, Phase, Role, SeatStep, TemplateStep, UpgradeCue};
use super::templates::TemplateState;
use super::timers::Timer;
use super::{Action, Supervisor};
use crate::server::{Generation, Slot};

impl Supervisor {
    /// Asks for what the seats lack, lets go of what nobody needs, and raises the conditions that now hold, until
    /// the phase is at rest.
    pub(super) fn settle(&mut self) {
        loop {
            self.turn_away_who_waits_in_vain();
            self.look_after_probe();
            self.look_over_seats();
            self.note_nobody_lacks();
            self.close_unneeded_templates();
            let phase = self.phase;
            for cue in self.conditions() {
                self.apply(cue, "");
            }
            if self.phase.is_leaving() {
                self.upgrade(UpgradeCue::Ending, "the server was stopped");
            }
            if self.phase == phase {
                break;
            }
        }
        self.plan_sample();
        self.await_client();
    }

    /// What a generation is to the server now.
    pub(super) fn role(&self, generation: Generation) -> Role {
        if Some(generation) == self.incoming {
            Role::Incoming
        } else if generation == self.current {
            Role::Current
        } else {
            Role::Retired
        }
    }

    fn look_over_seats(&mut self) {
        let has_template = self.templates.is_in(self.wanted, TemplateState::Ready);
        // Behind the gate only those who wait there need workers.
        let is_needed = self.phase != Phase::Gated || self.farewell.queued;
        let surging = self.fleet.surging_seats(self.wanted, self.current).len();
        let mut room = (self.policy.max_surge.max(1) as usize).saturating_sub(surging);
        let mut allowed = self.allowance();
        for slot in self.restarts.in_order_of_trial(self.fleet.seats.unsettled()) {
            let seat = self.fleet.seat(slot, self.wanted, self.current);
            let wanted = self.phase.is_staffed() && slot.0 < self.target;
            let may_fork = has_template && is_needed && allowed > 0 && !self.timers.is_set(Timer::SlotRetry(slot));
            match table::seat(wanted, seat.stale_sitter(), seat.fresh_sitter()) {
                SeatStep::Rest => {}
                SeatStep::Vacate => self.vacate(seat),
                SeatStep::Fork if may_fork => {
                    allowed -= 1;
                    self.fork(slot);
                }
                SeatStep::ForkBeside if may_fork && room > 0 => {
                    allowed -= 1;
                    room -= 1;
                    self.fork(slot);
                }
                SeatStep::Fork | SeatStep::ForkBeside => continue, // It stays unsettled.
                SeatStep::DrainStale => {
                    if let Some((id, _)) = seat.stale {
                        self.drain(id);
                    }
                }
            }
            self.fleet.seats.settle(slot);
        }
    }

    fn vacate(&mut self, seat: Seat) {
        for (id, _) in seat.stale.into_iter().chain(seat.fresh) {
            self.drain(id);
        }
    }

    fn fork(&mut self, slot: Slot) {
        let generation = self.wanted;
        let limits = self.policy.limits.for_one(&mut self.random);
        let id = self.fleet.add(slot, generation, limits, self.now);
        let limit = self.policy.start_timeout;
        self.timers.set(Timer::Worker(id), self.now + limit);
        self.note_fork(id, slot);
        self.act(Action::Fork { id, slot, generation });
    }

    fn close_unneeded_templates(&mut self) {
        let steps: Vec<_> = self
            .templates
            .iter()
            .map(|(generation, template)| {
                let needed = !self.phase.is_ending() && self.role(generation) != Role::Retired;
                let has_workers = self.has_workers(generation);
                let step = table::template(needed, template.state, has_workers);
                (generation, step)
            })
            .collect();
        for (generation, step) in steps {
            if step == TemplateStep::Keep {
                continue;
            }
            self.templates.remove(generation);
            self.timers.cancel(Timer::Preload(generation));
            self.timers.cancel(Timer::TemplateRetry(generation));
            if step == TemplateStep::Close {
                self.act(Action::CloseTemplate { generation });
            }
        }
    }

    fn has_workers(&self, generation: Generation) -> bool {
        self.fleet.iter().any(|(_, worker)| worker.generation == generation)
    }

    fn conditions(&self) -> Vec<Cue> {
        let mut cues = Vec::new();
        if self.fleet.seats.are_all_ready() {
            cues.push(Cue::Staffed);
        }
        if self.reload_queued {
            cues.push(Cue::ReloadWaits);
        }
        // On the way out a template goes with its last worker.
        if self.fleet.is_empty() && !self.upgrading.has_process() {
            cues.push(Cue::Empty);
        }
        cues
    }
}
