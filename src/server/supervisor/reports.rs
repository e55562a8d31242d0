//! What is heard of workers and templates, written into the books and looked up.

use std::time::Duration;

use super::fleet::{Worker, WorkerState};
use super::table::{self, Cue, Phase, Report, Role, WorkerStep};
use super::templates::{Template, TemplateState};
use super::timers::Timer;
use super::{Action, KillReason, Notice, StartFailure, Supervisor};
use crate::server::{Generation, WorkerId};

impl From<StartFailure> for Report {
    fn from(cause: StartFailure) -> Self {
        match cause {
            StartFailure::Refused { words } => Self::Refused { words },
            StartFailure::NoProcess { words } => Self::NoProcess { words },
            StartFailure::Resource { words } => Self::Shortage { words },
            StartFailure::TimedOut => Self::Late,
        }
    }
}

impl Supervisor {
    /// Looks a report up in the workers' table and follows it.
    pub(super) fn worker_report(&mut self, id: WorkerId, report: Report) {
        let Some(worker) = self.fleet.get_mut(id) else {
            return; // A late word about a life that is over.
        };
        match table::report(worker.state(), &report) {
            WorkerStep::Ignore => {}
            WorkerStep::Start => {
                worker.note_pid(&report);
                self.fleet.set_state(id, WorkerState::Starting);
            }
            WorkerStep::NotePid => worker.note_pid(&report),
            WorkerStep::NoteServed => worker.served = true,
            WorkerStep::Serve => {
                worker.ready_at = Some(self.now);
                let took = self.now - worker.asked_at;
                let end_by = worker.end_by;
                let worker = worker.identity(id);
                self.fleet.set_state(id, WorkerState::Ready);
                self.timers.cancel(Timer::Worker(id));
                // Its socket may have been seen closed before its last words were read.
                if let Some(end_by) = end_by {
                    self.timers.set(Timer::Worker(id), end_by);
                }
                self.plan_end(id);
                self.notice(Notice::WorkerReady { worker, took });
            }
            WorkerStep::AwaitEnd => {
                let end_by = *worker.end_by.get_or_insert(self.now + self.policy.reap_timeout);
                self.timers.set_no_later(Timer::Worker(id), end_by);
            }
            WorkerStep::Dismiss => {
                let worker = worker.clone();
                self.fleet.set_state(id, WorkerState::Draining);
                self.expect_end(id, self.now + self.policy.quick_timeout);
                self.start_failed(id, &worker, report);
            }
            WorkerStep::GiveUp => {
                let worker = worker.clone();
                self.kill(id, KillReason::NotReady);
                self.start_failed(id, &worker, report);
            }
            WorkerStep::Kill => self.kill(id, KillReason::NotDrained),
            WorkerStep::KillStuck => self.kill(id, KillReason::Stuck),
            WorkerStep::KillHungUp => self.kill(id, KillReason::HungUp),
            WorkerStep::BlameTemplate => {
                let generation = worker.generation;
                let failing = if worker.is_unborn() { "fork" } else { "reap" };
                let words = format!("it did not {failing} a worker of slot {} in time", worker.slot);
                self.give_up_template(generation, &words);
            }
            WorkerStep::Bereave => {
                let worker = worker.clone();
                self.timers.cancel(Timer::Worker(id));
                self.timers.cancel(Timer::Age(id));
                self.fleet.set_state(id, WorkerState::Gone);
                self.stopped_serving(&worker, "is gone");
            }
            WorkerStep::BuryUnready => {
                if let Some(worker) = self.bury(id) {
                    self.start_failed(id, &worker, report);
                }
            }
            WorkerStep::BuryServing => {
                if let Some(worker) = self.bury(id) {
                    let how = match &report {
                        Report::Exited { exit, .. } => exit.to_string(),
                        _ => String::new(),
                    };
                    self.tell_end(id, &worker, report);
                    self.stopped_serving(&worker, &how);
                }
            }
            WorkerStep::Bury => {
                if let Some(worker) = self.bury(id) {
                    self.tell_end(id, &worker, report);
                }
            }
        }
    }

    pub(super) fn worker_late(&mut self, id: WorkerId) {
        let report = match self.fleet.get(id) {
            Some(worker) if worker.is_unborn() => Report::LateUnborn,
            Some(worker) if worker.end_by.is_some() => Report::Unreported,
            _ => Report::Late,
        };
        self.worker_report(id, report);
    }

    pub(super) fn template_ready(&mut self, generation: Generation) {
        let now = self.now;
        let starting = |template: &&mut Template| template.state == TemplateState::Starting;
        let Some(template) = self.templates.get_mut(generation).filter(starting) else {
            return;
        };
        let took = now - template.since;
        template.state = TemplateState::Ready;
        template.since = now;
        self.timers.cancel(Timer::Preload(generation));
        self.notice(Notice::TemplateReady { generation, took });
        self.apply(Cue::TemplateReady(self.role(generation)), "");
    }

    /// A template that is of no more use, whether or not it still lives.
    pub(super) fn give_up_template(&mut self, generation: Generation, words: &str) {
        if self.templates.is_alive(generation) {
            self.act(Action::CloseTemplate { generation });
            self.template_gone(generation, words);
        }
    }

    /// A template is gone, and with it every worker it has not been seen to fork.
    pub(super) fn template_gone(&mut self, generation: Generation, words: &str) {
        let served_well_after = self.policy.served_well_after;
        let now = self.now;
        let alive = |template: &&mut Template| template.state != TemplateState::Lost;
        let Some(template) = self.templates.get_mut(generation).filter(alive) else {
            return;
        };
        let served_well = template.state == TemplateState::Ready && now - template.since >= served_well_after;
        template.failures = if served_well { 0 } else { template.failures.saturating_add(1) };
        template.state = TemplateState::Lost;
        template.since = now;
        self.timers.cancel(Timer::Preload(generation));
        // Why a reload failed is said once, by the reload.
        if self.role(generation) != Role::Incoming || self.phase.is_ending() {
            self.notice(Notice::TemplateLost { generation, words: words.to_owned() });
        }
        let unborn = self.fleet.ids_where(|worker| worker.generation == generation && worker.is_unborn());
        for id in unborn {
            self.kill(id, KillReason::TemplateLost);
        }
        self.apply(Cue::TemplateLost(self.role(generation)), words);
    }

    fn bury(&mut self, id: WorkerId) -> Option<Worker> {
        self.timers.cancel(Timer::Worker(id));
        self.timers.cancel(Timer::Age(id));
        self.fleet.remove(id)
    }

    fn start_failed(&mut self, id: WorkerId, worker: &Worker, report: Report) {
        let slot = worker.slot;
        let words = match &report {
            Report::NoProcess { words } | Report::Shortage { words } => words.clone(),
            Report::Refused { words } => format!("the start of the worker of slot {slot} failed: {words}"),
            Report::Exited { words: Some(words), .. } => words.clone(),
            Report::Exited { exit, words: None } => {
                format!("the worker of slot {slot} {exit} before it was ready")
            }
            Report::Unreported => format!("the worker of slot {slot} has closed its socket before it was ready"),
            _ => {
                let limit = self.policy.start_timeout;
                format!("the worker of slot {slot} was not ready within {limit:?}")
            }
        };
        let role = self.role(worker.generation);
        let cue = match report {
            Report::Shortage { .. } => Cue::Shortage(role),
            _ => Cue::StartFailed(role, slot),
        };
        // Why a reload failed is said once, by the reload.
        match report {
            Report::Exited { exit, .. } if takes_reload_back(self.phase, role) => {
                self.tell_end(id, worker, Report::Exited { exit, words: None });
            }
            _ if takes_reload_back(self.phase, role) => {}
            report => self.tell_end(id, worker, report),
        }
        self.apply(cue, &words);
    }

    /// A worker that was ready is no more: its slot waits for the next or does not, by how well it has served.
    fn stopped_serving(&mut self, worker: &Worker, how: &str) {
        let served = worker.ready_at.map_or(Duration::ZERO, |at| self.now - at);
        let slot = worker.slot;
        let role = self.role(worker.generation);
        let cue = if worker.served || served >= self.policy.served_well_after {
            Cue::DiedWell(role, slot)
        } else {
            Cue::DiedYoung(role, slot)
        };
        self.apply(cue, &format!("the worker of slot {slot} {how}, {served:?} after it was ready"));
    }

    /// Says what became of a worker, with what its last state was before that.
    fn tell_end(&mut self, id: WorkerId, worker: &Worker, report: Report) {
        let took = self.now - worker.asked_at;
        let identity = worker.identity(id);
        let failed = |cause| Notice::WorkerFailed { worker: identity, cause, took };
        self.notice(match report {
            Report::Refused { words } => failed(StartFailure::Refused { words }),
            Report::NoProcess { words } => failed(StartFailure::NoProcess { words }),
            Report::Shortage { words } => failed(StartFailure::Resource { words }),
            Report::Exited { exit, words } => {
                Notice::WorkerExited { worker: identity, was: worker.was_before(exit), exit, words, took }
            }
            _ => failed(StartFailure::TimedOut),
        });
    }
}

fn takes_reload_back(phase: Phase, role: Role) -> bool {
    phase == Phase::Rolling && role == Role::Incoming
}
