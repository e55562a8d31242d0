//! The whole policy, in six tables: what the server does, how an upgrade of the master goes, what a seat needs, what
//! becomes of a template, what a report makes of a worker, and how failures change the fleet's health.
//!
//! What no table can say is decided in three other files, each about numbers: `recycling` when a worker is worn out,
//! `scaling` how many workers there are to be, `farewell` when the queues count as served. All others keep the books that
//! the tables are asked with.

use super::fleet::WorkerState;
use super::message::{Exit, Signal};
use super::restarts::Cause;
use super::templates::TemplateState;
use crate::server::Slot;

/// Where the server stands in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Not yet told to boot.
    New,
    /// The first boot: until each slot has had its ready worker, a failure ends the server.
    Booting,
    /// Every slot is kept filled.
    Serving,
    /// The same, while the next generation's template preloads.
    Preparing,
    /// The next generation takes over slot by slot.
    Rolling,
    /// The workers are drained on request, and none is forked.
    Paused,
    /// The same, while the template preloads whose workers are to fill the slots.
    Replenishing,
    /// Leaving: no more ready for new clients, who are served until they have heard of it.
    Unready,
    /// Leaving: the gate is shut, and whoever has come through is served.
    Gated,
    /// Leaving: the listeners are closed, and the workers have the graceful timeout, counted from the gate.
    Stopping,
    /// Leaving: the workers have the quick timeout.
    Quitting,
    /// Leaving: the workers are killed.
    Killing,
    /// Leaving the listeners as they are, to a new master, or after a failed boot: the workers have the graceful timeout.
    Yielding,
    /// No process is left.
    Left,
}

impl Phase {
    /// Whether each slot below the target is to have a worker.
    pub(super) fn is_staffed(self) -> bool {
        matches!(self, Self::Booting | Self::Serving | Self::Preparing | Self::Rolling | Self::Unready | Self::Gated)
    }

    /// Whether a client that comes is to be served, even if there must be one worker more for it.
    pub(super) fn welcomes(self) -> bool {
        self.is_staffed() && self != Self::Booting
    }

    /// Whether the listeners are closed, and nobody is forked any more.
    pub(super) fn is_ending(self) -> bool {
        matches!(self, Self::Stopping | Self::Quitting | Self::Killing | Self::Yielding | Self::Left)
    }

    /// Whether the server has been told to leave, or is on its way out.
    pub(super) fn is_leaving(self) -> bool {
        matches!(self, Self::Unready | Self::Gated) || self.is_ending()
    }

    /// Whether a new master may be started beside this one, which has proven itself.
    fn is_upgradable(self) -> bool {
        matches!(self, Self::Serving | Self::Preparing | Self::Rolling | Self::Paused | Self::Replenishing)
    }
}

/// What a generation is to the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// The one that serves.
    Current,
    /// The one that a reload brings.
    Incoming,
    /// One that has been replaced or withdrawn.
    Retired,
}

/// An event, or a condition that now holds, as the server's table sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cue {
    Boot,
    TemplateReady(Role),
    /// It failed, died, or was given up.
    TemplateLost(Role),
    /// A worker refused, was not ready in time, died before that, or its template could not fork it.
    StartFailed(Role, Slot),
    /// A worker never came to be, for want of something that all would have wanted.
    Shortage(Role),
    /// A worker died without an answer to any request, and sooner after its readiness than counts as having served well.
    DiedYoung(Role, Slot),
    DiedWell(Role, Slot),
    Asked(Signal),
    /// A new master has the listeners and serves.
    HandedOver,
    /// Since the readiness went, the drain delay is over.
    DrainDelayOver,
    /// Whoever came through before the gate was shut is accepted.
    QueuesServed,
    /// The graceful timeout, counted from the gate, is over.
    QueueTimeOver,
    /// Condition: each slot below the target has one worker, ready and of the wanted generation.
    Staffed,
    /// Condition: a queued reload waits.
    ReloadWaits,
    /// Condition: no process is left.
    Empty,
}

/// What the server does about a cue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    Nothing,
    StartFirstTemplate,
    FailBoot,
    AnnounceServing,
    /// The slot's next worker waits for a growing delay, and the end counts against the restart budget.
    DelaySlot(Slot, Cause),
    /// No slot is to blame, so all wait.
    FeelShortage,
    /// The slot's delay starts small again.
    ForgiveSlot(Slot),
    /// The same generation's next template, after a growing delay.
    RetryTemplate,
    StartNextTemplate,
    QueueReload,
    WantIncoming,
    AdoptIncoming,
    WithdrawIncoming,
    RaiseTarget,
    LowerTarget,
    Pause,
    /// Pause, and withdraw what was being prepared or rolled.
    PauseAndWithdraw,
    Resume,
    IgnoreSignal(Signal),
    /// Shut the gate at once: no new client was sent here yet, or any more.
    Stop,
    /// The same, and withdraw what was being prepared.
    StopAndWithdraw,
    /// Readiness goes; what was being prepared or rolled is withdrawn.
    Announce,
    ShutGate,
    CloseServedListeners,
    /// Close them with clients in their queues.
    AbandonQueues,
    Quit,
    /// The quick timeout for those who have the graceful one.
    Hasten,
    KillAll,
    Yield,
    Leave,
}

/// The server's table: the phase after the cue, and the step to it.
#[rustfmt::skip]
pub(super) fn transition(phase: Phase, cue: Cue) -> (Phase, Step) {
    use Cue::*;
    use Phase::*;
    use Role::{Current, Incoming};
    use Signal as S;
    match (phase, cue) {
        // The first boot: the first failure ends it.
        (New,                                     Boot)                          => (Booting,   Step::StartFirstTemplate),
        (Booting,                                 TemplateLost(_))               => (Yielding,  Step::FailBoot),
        (Booting,                                 StartFailed(..) | Shortage(_)) => (Yielding,  Step::FailBoot),
        (Booting,                                 Staffed)                       => (Serving,   Step::AnnounceServing),

        // Lives that end: only the slot or the template concerned waits; in a shortage, all slots do.
        (Booting | Serving | Preparing,           DiedYoung(Current, slot))      => (phase,     Step::DelaySlot(slot, Cause::DiedYoung)),
        (Serving | Preparing,                     StartFailed(Current, slot))    => (phase,     Step::DelaySlot(slot, Cause::NeverReady)),
        (Serving | Preparing,                     Shortage(Current))             => (phase,     Step::FeelShortage),
        (Unready | Gated,                         DiedYoung(Current, slot))      => (phase,     Step::DelaySlot(slot, Cause::DiedYoung)),
        (Unready | Gated,                         StartFailed(Current, slot))    => (phase,     Step::DelaySlot(slot, Cause::NeverReady)),
        (Unready | Gated,                         Shortage(Current))             => (phase,     Step::FeelShortage),
        (_,                                       DiedWell(Current, slot))       => (phase,     Step::ForgiveSlot(slot)),
        (_,                                       DiedWell(Incoming, slot))      => (phase,     Step::ForgiveSlot(slot)),
        (Serving | Preparing | Rolling | Paused,  TemplateLost(Current))         => (phase,     Step::RetryTemplate),
        (Replenishing,                            TemplateLost(Current))         => (phase,     Step::RetryTemplate),
        (Unready | Gated,                         TemplateLost(Current))         => (phase,     Step::RetryTemplate),

        // A reload: any failure before its end takes it back.
        (Serving,                                 Asked(S::Reload))              => (Preparing, Step::StartNextTemplate),
        (Booting | Preparing | Rolling,           Asked(S::Reload))              => (phase,     Step::QueueReload),
        (Serving,                                 ReloadWaits)                   => (Preparing, Step::StartNextTemplate),
        (Preparing,                               TemplateReady(Incoming))       => (Rolling,   Step::WantIncoming),
        (Rolling,                                 Staffed)                       => (Serving,   Step::AdoptIncoming),
        (Preparing | Rolling,                     TemplateLost(Incoming))        => (Serving,   Step::WithdrawIncoming),
        (Rolling,                                 StartFailed(Incoming, _))      => (Serving,   Step::WithdrawIncoming),
        (Rolling,                                 Shortage(Incoming))            => (Serving,   Step::WithdrawIncoming),
        (Rolling,                                 DiedYoung(Incoming, _))        => (Serving,   Step::WithdrawIncoming),

        // A reload while the workers are drained: none of the old generation comes back for it.
        (Paused,                                  Asked(S::Reload))              => (Replenishing, Step::StartNextTemplate),
        (Paused,                                  ReloadWaits)                   => (Replenishing, Step::StartNextTemplate),
        (Replenishing,                            Asked(S::Reload))              => (phase,     Step::QueueReload),
        (Replenishing,                            TemplateReady(Incoming))       => (Rolling,   Step::WantIncoming),
        (Replenishing,                            TemplateLost(Incoming))        => (Paused,    Step::WithdrawIncoming),

        // More, fewer, none for now.
        (Paused,                                  Asked(S::More))                => (Serving,   Step::Resume),
        (Replenishing,                            Asked(S::More))                => (Preparing, Step::Resume),
        (Booting | Serving | Preparing | Rolling, Asked(S::More))                => (phase,     Step::RaiseTarget),
        (Booting | Serving | Preparing | Rolling, Asked(S::Fewer))               => (phase,     Step::LowerTarget),
        (Paused | Replenishing,                   Asked(S::Fewer))               => (phase,     Step::LowerTarget),
        (Serving,                                 Asked(S::DrainWorkers))        => (Paused,    Step::Pause),
        (Preparing | Rolling | Replenishing,      Asked(S::DrainWorkers))        => (Paused,    Step::PauseAndWithdraw),

        // The last stop: whoever has come is served before the listeners close.
        (Serving | Preparing | Rolling,           Asked(S::Stop))                => (Unready,   Step::Announce),
        (New | Booting | Paused,                  Asked(S::Stop))                => (Gated,     Step::Stop),
        (Replenishing,                            Asked(S::Stop))                => (Gated,     Step::StopAndWithdraw),
        (Unready,                                 DrainDelayOver)                => (Gated,     Step::ShutGate),
        (Gated,                                   QueuesServed)                  => (Stopping,  Step::CloseServedListeners),
        (Gated,                                   QueueTimeOver)                 => (Stopping,  Step::AbandonQueues),
        (Unready | Gated,                         Asked(S::Stop))                => (phase,     Step::Nothing),

        // The way out: each more urgent wish overrides, and it ends when nobody is left.
        (Stopping | Yielding,                     Asked(S::Quit))                => (Quitting,  Step::Hasten),
        (Quitting,                                Asked(S::Quit))                => (Killing,   Step::KillAll),
        (Stopping | Quitting | Killing | Yielding, Empty)                        => (Left,      Step::Leave),
        (Stopping | Quitting | Killing | Yielding | Left, _)                     => (phase,     Step::Nothing),
        (_,                                       HandedOver)                    => (Yielding,  Step::Yield),
        (_,                                       Asked(S::Quit))                => (Quitting,  Step::Quit),

        (_,                                       Asked(signal))                 => (phase,     Step::IgnoreSignal(signal)),
        _                                                                        => (phase,     Step::Nothing),
    }
}

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
pub(super) enum UpgradeCue {
    Asked,
    /// The new master serves.
    Ready,
    /// The new master is gone, or never came to be.
    Lost,
    /// The new master's time is up.
    Late,
    /// Condition: this server is on its way out.
    Ending,
}

/// What is done about an upgrade.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum UpgradeStep {
    Nothing,
    Start,
    Ignore,
    HandOver,
    /// It has failed, and this master stays.
    Fail,
    /// The same, and the new master is killed.
    CallOff,
}

/// The upgrade's table. Until the new master serves, it is a part of this server, and whoever stops that stops both.
#[rustfmt::skip]
pub(super) fn upgrade(phase: Phase, upgrade: Upgrade, cue: UpgradeCue) -> (Upgrade, UpgradeStep) {
    use Upgrade::*;
    use UpgradeCue::*;
    match (upgrade, cue) {
        (Idle,      Asked) if phase.is_upgradable() => (UnderWay,  UpgradeStep::Start),
        (_,         Asked) if !phase.is_leaving()   => (upgrade,   UpgradeStep::Ignore),
        (UnderWay,  Ready)                          => (Done,      UpgradeStep::HandOver),
        (UnderWay,  Lost)                           => (Idle,      UpgradeStep::Fail),
        (UnderWay,  Late | Ending)                  => (CalledOff, UpgradeStep::CallOff),
        (CalledOff, Lost)                           => (Idle,      UpgradeStep::Nothing),
        (_,         _)                              => (upgrade,   UpgradeStep::Nothing),
    }
}

/// Who sits in one half of a seat; workers on their way out sit nowhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sitter {
    Nobody,
    /// Asked for, and not yet ready.
    Unready,
    Ready,
}

/// What a seat needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SeatStep {
    Rest,
    /// Drain whoever sits there.
    Vacate,
    /// Fork a worker as soon as the slot's delay is over and the template is ready.
    Fork,
    /// The same, once the surge has room.
    ForkBeside,
    /// The successor is ready: drain the old one.
    DrainStale,
}

/// The seats' table: is the seat wanted, who sits there of another generation than the wanted one, who of that one.
#[rustfmt::skip]
pub(super) fn seat(wanted: bool, stale: Sitter, fresh: Sitter) -> SeatStep {
    use Sitter::*;
    match (wanted, stale, fresh) {
        (false, Nobody,          Nobody)          => SeatStep::Rest,
        (false, _,               _)               => SeatStep::Vacate,
        (true,  Nobody,          Nobody)          => SeatStep::Fork,
        (true,  Nobody,          Unready | Ready) => SeatStep::Rest,
        (true,  Unready | Ready, Nobody)          => SeatStep::ForkBeside,
        (true,  Unready | Ready, Unready)         => SeatStep::Rest,
        (true,  Unready | Ready, Ready)           => SeatStep::DrainStale,
    }
}

/// What becomes of a template.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TemplateStep {
    Keep,
    Close,
    /// It is gone, and no other is to follow.
    Forget,
}

/// The templates' table: may it have to fork again, where does it stand, is a worker of its generation left.
#[rustfmt::skip]
pub(super) fn template(needed: bool, state: TemplateState, has_workers: bool) -> TemplateStep {
    use TemplateState::*;
    match (needed, state, has_workers) {
        (true,  _,        _)     => TemplateStep::Keep,
        (false, Starting, _)     => TemplateStep::Close,
        // It is the parent that reaps them.
        (false, Ready,    true)  => TemplateStep::Keep,
        (false, Ready,    false) => TemplateStep::Close,
        (false, Lost,     _)     => TemplateStep::Forget,
    }
}

/// What is heard of a worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Report {
    Forked {
        pid: i32,
    },
    Ready,
    /// It has closed its socket.
    HungUp,
    /// It is long over its hard deadline.
    Stuck,
    /// Its service said no; it leaves by itself.
    Refused {
        words: String,
    },
    /// No process came to be, because of its template.
    NoProcess {
        words: String,
    },
    /// No process came to be, for want of something that all would have wanted.
    Shortage {
        words: String,
    },
    /// It has answered a request.
    Served,
    /// Its timer ran out.
    Late,
    /// Its timer ran out, and its template has not even told its pid.
    LateUnborn,
    Exited {
        exit: Exit,
        words: Option<String>,
    },
}

/// What a report makes of a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum WorkerStep {
    /// A late or double word.
    Ignore,
    NotePid,
    /// It exists, and has the rest of the start timeout.
    Start,
    Serve,
    /// Whatever becomes of it, it has served well.
    NoteServed,
    /// Its end is to be reported within the reap timeout.
    AwaitEnd,
    /// It leaves by itself, within the quick timeout; its start has failed.
    Dismiss,
    /// Kill it; its start has failed.
    GiveUp,
    /// Kill it; it was leaving anyway.
    Kill,
    /// Kill it, which its own alarm did not end.
    KillStuck,
    /// Kill it, which hung up and did not end; or its template, which does not say so, has another chance to.
    KillHungUp,
    /// Its template is stuck, and neither forks nor reaps: give that up, and with it all it has not forked.
    BlameTemplate,
    /// It is gone, and its start has failed.
    BuryUnready,
    /// It is gone, and had served.
    BuryServing,
    /// It is gone, as was wished.
    Bury,
}

/// The workers' table.
#[rustfmt::skip]
pub(super) fn report(state: WorkerState, report: &Report) -> WorkerStep {
    use Report::*;
    use WorkerState as W;
    match (state, report) {
        (W::Asked,                    Forked { .. })                    => WorkerStep::Start,
        (_,                           Forked { .. })                    => WorkerStep::NotePid,
        // The worker's own socket may be read before the template's: ready may come before forked.
        (W::Asked | W::Starting,      Ready)                            => WorkerStep::Serve,
        (W::Asked | W::Starting,      Refused { .. })                   => WorkerStep::Dismiss,
        (W::Asked | W::Starting,      Late)                             => WorkerStep::GiveUp,
        // One that is ready is late only if it has hung up.
        (W::Asked | W::Ready | W::Draining, LateUnborn)                 => WorkerStep::BlameTemplate,
        (W::Draining,                 Late)                             => WorkerStep::Kill,
        (W::Asked | W::Starting | W::Ready | W::Draining, HungUp)       => WorkerStep::AwaitEnd,
        (W::Ready,                    Late)                             => WorkerStep::KillHungUp,
        (W::Ready | W::Draining,      Stuck)                            => WorkerStep::KillStuck,
        (W::Asked | W::Starting | W::Killed, Stuck)                     => WorkerStep::Ignore,
        // A killed process ends, so it is its parent that does not reap.
        (W::Killed,                   Late | LateUnborn)                => WorkerStep::BlameTemplate,
        (W::Asked | W::Starting | W::Ready,  Served)                    => WorkerStep::NoteServed,
        (W::Draining | W::Killed,     Served)                           => WorkerStep::Ignore,
        (W::Asked | W::Starting,      NoProcess { .. } | Shortage { .. } | Exited { .. }) => WorkerStep::BuryUnready,
        (W::Ready,                    NoProcess { .. } | Shortage { .. } | Exited { .. }) => WorkerStep::BuryServing,
        (W::Draining | W::Killed,     NoProcess { .. } | Shortage { .. } | Exited { .. }) => WorkerStep::Bury,
        (W::Ready | W::Draining | W::Killed, Ready | Refused { .. })    => WorkerStep::Ignore,
        (W::Killed,                   HungUp)                           => WorkerStep::Ignore,
        // Whoever starts is born.
        (W::Starting,                 LateUnborn)                       => WorkerStep::Ignore,
    }
}

/// How the fleet stands with its failures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Health {
    /// Each slot is filled as its own delay allows.
    Sound,
    /// Something is lacking that every fork needs: after a growing delay one is tried.
    Short,
    /// The restart budget is spent: after a growing delay one worker is tried, which is to serve well.
    Degraded,
}

/// What happens to the fleet's health. The probe is the one worker that is tried while it is not sound.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Strain {
    Shortage,
    BudgetSpent,
    ProbeBorn,
    ProbeServedWell,
    /// It failed, or was sent away before it could prove anything.
    ProbeFailed,
    /// Condition: every seat is taken, and by no probe.
    NobodyLacks,
    /// New code, new luck.
    NewGeneration,
}

/// What is done about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum HealthStep {
    Nothing,
    /// None is forked for a growing delay.
    Rest,
    /// The slots' own delays end: from now on the fleet's counts.
    Degrade,
    Relieve,
    Recover,
    /// All that was counted is forgotten.
    Forget,
}

/// The fleet's table: its health after the strain, and the step to it.
#[rustfmt::skip]
pub(super) fn health(health: Health, strain: Strain) -> (Health, HealthStep) {
    use Health::*;
    use Strain::*;
    match (health, strain) {
        (Sound,            Shortage)                      => (Short,    HealthStep::Rest),
        (Short,            ProbeFailed)                   => (Short,    HealthStep::Rest),
        (Short,            ProbeBorn | NobodyLacks)       => (Sound,    HealthStep::Relieve),
        (Sound | Short,    BudgetSpent)                   => (Degraded, HealthStep::Degrade),
        (Degraded,         ProbeFailed)                   => (Degraded, HealthStep::Rest),
        (Degraded,         ProbeServedWell | NobodyLacks) => (Sound,    HealthStep::Recover),
        (_,                NewGeneration)                 => (Sound,    HealthStep::Forget),
        _                                                 => (health,   HealthStep::Nothing),
    }
}
