//! The upgrade of the master: a new one boots beside this one, which serves on until the new one does.
//!
//! It goes its own way beside the server's phases: while it is under way, every signal means to this master what it
//! always means, and nothing that this master does touches the new one, but for a stop.

use std::time::Duration;

use super::table::{self, Cue, Upgrade, UpgradeCue, UpgradeStep};
use super::timers::Timer;
use super::{Action, Notice, Outcome, REPLACED, Signal, Supervisor};

/// Where the upgrade stands, and since when it is under way.
#[derive(Debug)]
pub(super) struct Upgrading {
    state: Upgrade,
    began_at: Duration,
}

impl Default for Upgrading {
    fn default() -> Self {
        Self { state: Upgrade::Idle, began_at: Duration::ZERO }
    }
}

impl Upgrading {
    /// Whether there is a new master that belongs to this server and whose end is to be waited for.
    pub(super) fn has_process(&self) -> bool {
        matches!(self.state, Upgrade::UnderWay | Upgrade::CalledOff)
    }
}

impl Supervisor {
    /// Looks a cue up in the upgrade's table and follows it; the words are for whoever asks why.
    pub(super) fn upgrade(&mut self, cue: UpgradeCue, words: &str) {
        let (state, step) = table::upgrade(self.phase, self.upgrading.state, cue);
        self.upgrading.state = state;
        match step {
            UpgradeStep::Nothing => {}
            UpgradeStep::Start => {
                self.upgrading.began_at = self.now;
                self.timers.set(Timer::Upgrade, self.now + self.policy.upgrade_timeout);
                self.act(Action::StartUpgrade);
            }
            UpgradeStep::Ignore => self.notice(Notice::Ignored { signal: Signal::Upgrade }),
            UpgradeStep::HandOver(pid) => {
                self.timers.cancel(Timer::Upgrade);
                self.outcome = Outcome::Replaced { pid };
                self.apply(Cue::HandedOver, "");
            }
            UpgradeStep::Fail => self.upgrade_failed(words),
            UpgradeStep::GiveUp => {
                self.act(Action::EndUpgrade);
                self.upgrade_failed(words);
            }
            UpgradeStep::CallOff => {
                self.act(Action::EndUpgrade);
                let took = self.upgrade_over();
                self.notice(Notice::UpgradeCalledOff { words: words.to_owned(), took });
            }
        }
    }

    pub(super) fn upgrade_late(&mut self) {
        let limit = self.policy.upgrade_timeout;
        self.upgrade(UpgradeCue::Late, &format!("the new master did not serve within {limit:?}"));
    }

    /// The new master has the listeners: this one's workers drain.
    pub(super) fn hand_over(&mut self) {
        if let Outcome::Replaced { pid } = self.outcome {
            self.notice(Notice::Replaced { pid, took: self.now - self.upgrading.began_at });
        }
        self.abandon_reload(REPLACED);
        self.act(Action::HandOver);
    }

    fn upgrade_failed(&mut self, words: &str) {
        let took = self.upgrade_over();
        self.notice(Notice::UpgradeFailed { words: words.to_owned(), took });
    }

    /// It is not waited for any more; says how long it took.
    fn upgrade_over(&mut self) -> Duration {
        self.timers.cancel(Timer::Upgrade);
        self.now - self.upgrading.began_at
    }
}

impl Supervisor {
    /// Whether a new master boots beside this one.
    pub(crate) fn is_upgrading(&self) -> bool {
        self.upgrading.state == Upgrade::UnderWay
    }

    /// Where the upgrade stands.
    #[cfg(test)]
    pub(crate) fn upgrade_state(&self) -> Upgrade {
        self.upgrading.state
    }
}
