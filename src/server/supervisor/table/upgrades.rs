//! The upgrade's table: how a new master comes to take this one's place.

use super::phases::Phase;

/// Where an upgrade of the master stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Upgrade {
    /// None is under way.
    Idle,
    /// The new master boots, and this one serves on.
    UnderWay,
    /// The new master is killed, and its end has not been reported.
    CalledOff,
    /// The new master serves.
    Done,
}

/// What an upgrade depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::server::supervisor) enum UpgradeCue {
    Asked,
    /// The new master, of this pid, serves.
    Ready(i32),
    /// The new master is gone, or never came to be.
    Lost,
    /// The new master's time is up.
    Late,
    /// Condition: this server is on its way out.
    Ending,
}

/// What is done about an upgrade.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::server::supervisor) enum UpgradeStep {
    Nothing,
    Start,
    Ignore,
    /// To the new master of this pid.
    HandOver(i32),
    /// It has failed, and this master stays.
    Fail,
    /// The same, and the new master is killed.
    GiveUp,
    /// The new master is killed, because this one leaves.
    CallOff,
}

/// The upgrade's table. Until the new master serves, it is a part of this server, and whoever stops that stops both.
#[rustfmt::skip]
pub(in crate::server::supervisor) fn upgrade(phase: Phase, upgrade: Upgrade, cue: UpgradeCue) -> (Upgrade, UpgradeStep) {
    use Upgrade::*;
    use UpgradeCue::*;
    match (upgrade, cue) {
        (Idle,      Asked) if phase.is_upgradable() => (UnderWay,  UpgradeStep::Start),
        (_,         Asked) if !phase.is_leaving()   => (upgrade,   UpgradeStep::Ignore),
        (UnderWay,  Ready(pid))                     => (Done,      UpgradeStep::HandOver(pid)),
        (UnderWay,  Lost)                           => (Idle,      UpgradeStep::Fail),
        (UnderWay,  Late)                           => (CalledOff, UpgradeStep::GiveUp),
        (UnderWay,  Ending)                         => (CalledOff, UpgradeStep::CallOff),
        (CalledOff, Lost)                           => (Idle,      UpgradeStep::Nothing),
        (_,         _)                              => (upgrade,   UpgradeStep::Nothing),
    }
}
