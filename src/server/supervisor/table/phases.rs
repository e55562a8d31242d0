//! The server's table: what it does about what happens, by where it stands in its life.

use crate::server::Slot;
use crate::server::supervisor::message::Signal;
use crate::server::supervisor::restarts::Cause;

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
    pub(in crate::server::supervisor) fn is_staffed(self) -> bool {
        matches!(self, Self::Booting | Self::Serving | Self::Preparing | Self::Rolling | Self::Unready | Self::Gated)
    }

    /// Whether a client that comes is to be served, even if there must be one worker more for it.
    pub(in crate::server::supervisor) fn welcomes(self) -> bool {
        self.is_staffed() && self != Self::Booting
    }

    /// Whether the listeners are closed, and nobody is forked any more.
    pub(in crate::server::supervisor) fn is_ending(self) -> bool {
        matches!(self, Self::Stopping | Self::Quitting | Self::Killing | Self::Yielding | Self::Left)
    }

    /// Whether the server has been told to leave, or is on its way out.
    pub(crate) fn is_leaving(self) -> bool {
        matches!(self, Self::Unready | Self::Gated) || self.is_ending()
    }

    /// Whether a new master may be started beside this one, which has proven itself.
    pub(super) fn is_upgradable(self) -> bool {
        matches!(self, Self::Serving | Self::Preparing | Self::Rolling | Self::Paused | Self::Replenishing)
    }
}

/// What a generation is to the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::server::supervisor) enum Role {
    /// The one that serves.
    Current,
    /// The one that a reload brings.
    Incoming,
    /// One that has been replaced or withdrawn.
    Retired,
}

/// An event, or a condition that now holds, as the server's table sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::server::supervisor) enum Cue {
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
pub(in crate::server::supervisor) enum Step {
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
pub(in crate::server::supervisor) fn transition(phase: Phase, cue: Cue) -> (Phase, Step) {
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
