//! An operator who asks for anything at any moment, and the new masters that he has started.

use std::time::Duration;

use super::{Happening, World};
use crate::server::supervisor::Signal;
use crate::server::supervisor::simulation::MS;

impl World {
    /// Decides what the operator will ask for.
    pub(in crate::server::supervisor::simulation) fn plan_signals(&mut self) {
        for _ in 0..self.random.below(9) {
            let signal = match self.random.below(26) {
                20.. => Signal::Upgrade,
                0..=8 => Signal::Reload,
                9..=11 => Signal::More,
                12..=14 => Signal::Fewer,
                15..=17 => Signal::DrainWorkers,
                18 => Signal::Stop,
                _ => Signal::Quit,
            };
            let mut at = MS * self.random.below(20_000);
            // Signals come in bursts too.
            for _ in 0..=self.random.below(2) {
                self.plan(at, Happening::Asked(signal));
                at += MS * self.random.below(300);
            }
        }
    }

    /// It fails more often than not, so that most lives go on after it; some hang.
    pub(super) fn start_upgrade(&mut self, now: Duration) {
        self.count += 1;
        let number = self.count;
        self.new_master = Some(number);
        let then = now + MS * self.random.below(3_000);
        match self.random.below(10) {
            0..=3 => self.plan(then, Happening::UpgradeReady(number)),
            4..=7 => self.plan(then, Happening::UpgradeFails(number)),
            8 => {
                self.plan(then, Happening::UpgradeReady(number));
                self.plan(then, Happening::UpgradeReady(number));
            }
            _ => {}
        }
    }

    pub(in crate::server::supervisor::simulation) fn has_new_master(&self) -> bool {
        self.new_master.is_some()
    }
}
