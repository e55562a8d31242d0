//! The fleet's health, kept in books of its own: who is tried when, and why the server says that it is degraded.

use std::collections::VecDeque;
use std::time::Duration;

use super::super::policy::Backoff;
use super::super::table::Health;
use super::super::{Action, Notice, Phase, Policy};
use crate::server::WorkerId;

pub(super) struct HealthBook {
    policy: Policy,
    now: Duration,
    pub(super) health: Health,
    /// Since when it is so.
    since: Duration,
    /// When workers failed, within the budget's window.
    charges: VecDeque<Duration>,
    /// The event was a shortage that nobody rests for yet.
    shortage: bool,
    tries: u32,
    rest_until: Duration,
    pub(super) probe: Option<WorkerId>,
}

impl HealthBook {
    pub(super) fn new(policy: Policy) -> Self {
        Self {
            policy,
            now: Duration::ZERO,
            health: Health::Sound,
            since: Duration::ZERO,
            charges: VecDeque::new(),
            shortage: false,
            tries: 0,
            rest_until: Duration::ZERO,
            probe: None,
        }
    }

    /// For how long the fleet has been sound.
    pub(super) fn sound_for(&self) -> Duration {
        if self.health == Health::Sound { self.now - self.since } else { Duration::ZERO }
    }

    pub(super) fn hear(&mut self, now: Duration) {
        self.now = now;
        self.shortage = false;
    }

    /// A worker failed, and no shortage was to blame.
    pub(super) fn charge(&mut self) {
        self.charges.push_back(self.now);
    }

    pub(super) fn shortage(&mut self) {
        self.shortage = true;
    }

    /// A new generation begins with new luck.
    pub(super) fn renew(&mut self) {
        self.change(Health::Sound);
        self.charges.clear();
    }

    /// Checks what is done; `proven` says that the probe has served well, `complete` that no seat lacks anybody.
    pub(super) fn check(&mut self, action: &Action, proven: bool, complete: bool) {
        match action {
            Action::Fork { id, .. } if self.health != Health::Sound => {
                assert!(self.now >= self.rest_until, "{id:?} is tried too early");
                assert_eq!(self.probe, None, "{id:?} is not tried alone");
                self.probe = Some(*id);
            }
            Action::Notice(Notice::Degraded { failures, .. }) => {
                let budget = self.policy.budget.expect("nobody is degraded without a budget");
                assert!(self.spent() >= budget.restarts as usize, "degraded for nothing");
                assert!(failures.sum() >= budget.restarts);
                assert_ne!(self.health, Health::Degraded, "said twice");
                self.change(Health::Degraded);
            }
            Action::Notice(Notice::ProbeDelayed { tries, delay }) => {
                assert_eq!(self.health, Health::Degraded);
                let backoff = self.policy.probe_backoff.clone();
                self.rest(*tries, *delay, &backoff);
            }
            Action::Notice(Notice::Short { tries, delay }) => {
                if self.health == Health::Sound {
                    assert!(self.shortage, "short of nothing");
                    self.change(Health::Short);
                }
                assert_eq!(self.health, Health::Short);
                let backoff = self.policy.shortage_backoff.clone();
                self.rest(*tries, *delay, &backoff);
            }
            Action::Notice(Notice::Relieved { .. }) => {
                assert_eq!(self.health, Health::Short);
                assert!(self.probe.is_some() || complete, "relieved by nothing");
                self.change(Health::Sound);
            }
            Action::Notice(Notice::Recovered { .. }) => {
                assert_eq!(self.health, Health::Degraded);
                assert!(proven || complete, "recovered by nothing");
                self.renew();
            }
            _ => {}
        }
    }

    pub(super) fn check_after(&mut self, phase: Phase) {
        if phase.is_ending() {
            return; // Nobody is forked any more.
        }
        if let Some(budget) = self.policy.budget {
            let bearable = self.health == Health::Degraded || self.spent() < budget.restarts as usize;
            assert!(bearable, "the budget is spent and nobody cares");
        }
        assert!(!self.shortage || self.health != Health::Sound, "a shortage and nobody cares");
    }

    fn change(&mut self, health: Health) {
        if self.health != health {
            self.since = self.now;
        }
        self.health = health;
        self.tries = 0;
        self.probe = None;
        self.rest_until = self.now;
    }

    fn rest(&mut self, tries: u32, delay: Duration, backoff: &Backoff) {
        self.tries += 1;
        assert_eq!(tries, self.tries);
        check_delay(backoff, tries, delay);
        self.rest_until = self.now + delay;
        self.probe = None;
    }

    fn spent(&mut self) -> usize {
        let window = self.policy.budget.map_or(Duration::ZERO, |budget| budget.window);
        while self.charges.front().is_some_and(|&at| at + window <= self.now) {
            self.charges.pop_front();
        }
        self.charges.len()
    }
}

/// The shortest delay after so many failures in a row.
pub(super) fn least_delay(backoff: &Backoff, failures: u32) -> Duration {
    usual_delay(backoff, failures).mul_f64(1.0 - jitter(backoff))
}

/// A delay grows with the failures in a row, up to its cap, and jitter moves it by no more than it may.
#[track_caller]
pub(super) fn check_delay(backoff: &Backoff, failures: u32, delay: Duration) {
    let most = usual_delay(backoff, failures).mul_f64(1.0 + jitter(backoff));
    assert!((least_delay(backoff, failures)..=most).contains(&delay), "{delay:?} after {failures} failures");
}

fn usual_delay(backoff: &Backoff, failures: u32) -> Duration {
    let growth = backoff.factor.saturating_pow(failures - 1);
    backoff.first.saturating_mul(growth).min(backoff.cap)
}

fn jitter(backoff: &Backoff) -> f64 {
    f64::from(backoff.jitter_percent) / 100.0
}
