//! The steps of the server's table, carried out.

use std::time::Duration;

use super::fleet::{Worker, WorkerState};
use super::scaling::Scaling;
use super::table::{self, Cue, Phase, Step, Strain};
use super::timers::Timer;
use super::{Action, KillReason, Notice, Outcome, Policy, STOPPING, Signal, Supervisor};
use crate::server::status::ReloadOutcome;
use crate::server::{Generation, WorkerId};

impl Supervisor {
    /// Looks a cue up in the server's table and follows it; the words are for whoever asks why.
    pub(super) fn apply(&mut self, cue: Cue, words: &str) {
        let (phase, step) = table::transition(self.phase, cue);
        if self.phase != phase {
            self.phase = phase;
            self.fleet.seats.unsettle_all(self.target);
        }
        match step {
            Step::Nothing => {}
            Step::StartFirstTemplate => {
                self.began_at = self.now;
                self.start_template(self.current);
            }
            Step::FailBoot => self.fail_boot(words),
            Step::AnnounceServing => {
                self.notice(Notice::Serving { workers: self.target, took: self.now - self.began_at })
            }
            Step::DelaySlot(slot, cause) => self.delay_slot(slot, cause),
            Step::FeelShortage => self.strain(Strain::Shortage),
            Step::ForgiveSlot(slot) => self.restarts.forgive(slot),
            Step::RetryTemplate => self.retry_template(),
            Step::StartNextTemplate => self.start_next_template(),
            Step::QueueReload => {
                self.reload_queued = true;
                self.notice(Notice::ReloadQueued);
            }
            Step::WantIncoming => self.want_incoming(),
            Step::AdoptIncoming => self.adopt_incoming(),
            Step::WithdrawIncoming => self.fail_reload(words),
            Step::RaiseTarget => self.move_target(Signal::More),
            Step::LowerTarget => self.move_target(Signal::Fewer),
            Step::Pause => self.pause(),
            Step::PauseAndWithdraw => {
                self.call_off_reload("the workers were drained in the middle of it");
                self.pause();
            }
            Step::Resume => self.notice(Notice::Resumed),
            Step::IgnoreSignal(signal) => self.notice(Notice::Ignored { signal }),
            Step::Stop => {
                self.notice(Notice::Stopping { signal: Signal::Stop });
                self.shut_gate();
            }
            Step::StopAndWithdraw => {
                self.notice(Notice::Stopping { signal: Signal::Stop });
                self.call_off_reload(STOPPING);
                self.shut_gate();
            }
            Step::Announce => {
                self.announce_stop();
                self.call_off_reload(STOPPING);
            }
            Step::ShutGate => self.shut_gate(),
            Step::CloseServedListeners => self.close_served_listeners(),
            Step::AbandonQueues => self.abandon_queues(),
            Step::Quit => {
                self.notice(Notice::Stopping { signal: Signal::Quit });
                self.abandon_reload(STOPPING);
                self.close_listeners();
                self.hasten();
            }
            Step::Hasten => {
                self.notice(Notice::Stopping { signal: Signal::Quit });
                self.hasten();
            }
            Step::KillAll => self.kill_where(|_| true, KillReason::AtOnce),
            Step::Yield => self.hand_over(),
            Step::Leave => self.act(Action::Leave(self.outcome.clone())),
        }
    }

    pub(super) fn start_template(&mut self, generation: Generation) {
        self.templates.start(generation, self.now);
        let deadline = self.now + self.policy.preload_timeout;
        self.timers.set(Timer::Preload(generation), deadline);
        self.act(Action::StartTemplate { generation });
    }

    /// Asks a worker to drain, within the time that the phase leaves it.
    pub(super) fn drain(&mut self, id: WorkerId) {
        self.fleet.set_state(id, WorkerState::Draining);
        let Policy { quick_timeout: quick, graceful_timeout: graceful, .. } = self.policy;
        let deadline = match (self.phase, self.farewell.leave_by) {
            (Phase::Quitting, _) => self.now + quick,
            // Also at the end of a stop's time whoever has nothing in hand can leave by itself.
            (Phase::Stopping, Some(leave_by)) => leave_by.max(self.now + quick.min(graceful)),
            _ => self.now + graceful,
        };
        self.expect_end(id, deadline);
        self.act(Action::Drain { id });
    }

    /// The worker is to end by then, or sooner, if it has closed its socket already.
    pub(super) fn expect_end(&mut self, id: WorkerId, by: Duration) {
        let end_by = self.fleet.get(id).and_then(|worker| worker.end_by);
        self.timers.set(Timer::Worker(id), end_by.map_or(by, |end_by| end_by.min(by)));
    }

    /// Kills a worker, once; it stays in the book until its end is reported, for which its template has the reap timeout.
    pub(super) fn kill(&mut self, id: WorkerId, why: KillReason) {
        let living = |worker: &&Worker| !matches!(worker.state(), WorkerState::Killed | WorkerState::Gone);
        if self.fleet.get(id).filter(living).is_none() {
            return;
        }
        self.fleet.set_state(id, WorkerState::Killed);
        self.timers.set(Timer::Worker(id), self.now + self.policy.reap_timeout);
        self.act(Action::Kill { id, why });
    }

    fn fail_boot(&mut self, words: &str) {
        self.outcome = Outcome::BootFailed { words: words.to_owned() };
        self.close_listeners();
        // Those who are ready may have a request in hand, as clients of the master before this one do.
        self.kill_where(|worker| worker.state() != WorkerState::Ready, KillReason::BootFailed);
    }

    fn retry_template(&mut self) {
        let generation = self.current;
        let failures = self.templates.get_mut(generation).map_or(0, |template| template.failures);
        if failures == 0 {
            self.start_template(generation);
            return;
        }
        let delay = self.policy.backoff.delay(failures, &mut self.random);
        let retry = Timer::TemplateRetry(generation);
        self.timers.set(retry, self.now + delay);
        self.notice(Notice::TemplateDelayed { generation, delay });
    }

    fn start_next_template(&mut self) {
        self.reload_queued = false;
        self.reloads.begin();
        self.newest = Generation(self.newest.0 + 1);
        let generation = self.newest;
        self.incoming = Some(generation);
        self.began_at = self.now;
        self.notice(Notice::Reloading { generation });
        self.start_template(generation);
    }

    /// The new template is ready: from now on each slot is to have the new generation.
    fn want_incoming(&mut self) {
        let Some(incoming) = self.incoming else {
            return;
        };
        // A withdrawal that is not over yet ends here: its successors in the making make room for the new ones.
        for seat in self.fleet.surging_seats(self.wanted, self.current) {
            if let Some((id, _)) = seat.fresh {
                self.drain(id);
            }
        }
        self.strain(Strain::NewGeneration);
        self.want_one_at_least();
        self.wanted = incoming;
    }

    fn adopt_incoming(&mut self) {
        self.act(Action::Retire { generation: self.current });
        self.current = self.wanted;
        self.incoming = None;
        self.end_reload(self.current, ReloadOutcome::Reloaded);
    }

    fn fail_reload(&mut self, words: &str) {
        self.withdraw_incoming(ReloadOutcome::RolledBack { why: words.to_owned() });
    }

    /// The operator wants something else: the reload is at no fault, and whether the old generation stays is another matter.
    fn call_off_reload(&mut self, words: &str) {
        self.withdraw_incoming(ReloadOutcome::CalledOff { why: words.to_owned() });
    }

    /// The same where everybody leaves at once, of whichever generation.
    pub(super) fn abandon_reload(&mut self, words: &str) {
        if let Some(generation) = self.incoming.take() {
            self.end_reload(generation, ReloadOutcome::CalledOff { why: words.to_owned() });
        }
    }

    /// Takes the new generation back: what is not ready goes at once, what is ready when its successor is.
    fn withdraw_incoming(&mut self, outcome: ReloadOutcome) {
        let Some(generation) = self.incoming.take() else {
            return;
        };
        self.wanted = self.current;
        self.act(Action::Retire { generation });
        self.end_reload(generation, outcome);
        let unready = self.fleet.ids_where(|worker| worker.generation == generation && worker.is_unready());
        for id in unready {
            self.drain(id);
        }
    }

    /// One worker more or fewer. Where the load decides, there is nothing for an operator to move.
    fn move_target(&mut self, signal: Signal) {
        if self.policy.scaling != Scaling::Static {
            self.notice(Notice::Ignored { signal });
            return;
        }
        let wish = match signal {
            Signal::More => self.target.saturating_add(1),
            _ => self.target.saturating_sub(1),
        };
        self.target = wish.clamp(1, self.policy.max_workers.max(1));
        self.fleet.seats.unsettle_all(self.target);
        self.notice(Notice::Target { workers: self.target });
    }

    fn pause(&mut self) {
        self.reload_queued = false;
        self.notice(Notice::Paused);
    }

    fn hasten(&mut self) {
        let deadline = self.now + self.policy.quick_timeout;
        let draining = |worker: &Worker| worker.state() == WorkerState::Draining;
        for id in self.fleet.ids_where(draining) {
            self.timers.set_no_later(Timer::Worker(id), deadline);
        }
    }

    /// Kills these workers, and the templates that may still fork one.
    fn kill_where(&mut self, which: impl Fn(&Worker) -> bool, why: KillReason) {
        for id in self.fleet.ids_where(which) {
            self.kill(id, why);
        }
        let unborn: Vec<_> =
            self.fleet.iter().filter(|(_, worker)| worker.is_unborn()).map(|(_, worker)| worker.generation).collect();
        for generation in unborn {
            self.give_up_template(generation, "the server ends at once");
        }
    }
}
