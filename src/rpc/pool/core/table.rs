//! The policy of one worker's life as a table: what it is at × what happens → what is done.

/// What a worker is at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::rpc::pool) enum Phase {
    /// It was asked for, and has not said yet that it is ready.
    Starting,
    /// It takes calls.
    Serving,
    /// It takes no further call, and has some in hand.
    Draining,
    /// It was told that no further call comes.
    Leaving,
    /// Nothing more is heard of it; only its end is awaited.
    Ending,
}

/// What happens to a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cue {
    /// Its `init` is over.
    Ready,
    /// It has reached a limit, and whoever is to follow it is there.
    Worn,
    /// There are more than are needed, or all is over.
    Unneeded,
    /// The last call in hand has ended.
    Drained,
    /// It should have been ready, or gone, by now.
    Late,
    /// A call in hand has met its deadline.
    Overdue,
    /// The conversation with it has ended.
    Broken,
    /// The process is gone.
    Exited,
}

/// What is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    Serve,
    /// No further call for it; it is dismissed as soon as nothing is in hand.
    Drain,
    /// It is told that no further call comes.
    Dismiss,
    Kill,
    AwaitEnd,
    Remove,
    /// Too late to matter.
    Nothing,
}

pub(super) fn look_up(phase: Phase, cue: Cue) -> Step {
    use Phase::{Draining, Ending, Leaving, Serving, Starting};
    match (phase, cue) {
        (Starting, Cue::Ready) => Step::Serve,
        (Starting, Cue::Unneeded) => Step::Dismiss,
        (Serving, Cue::Worn | Cue::Unneeded) => Step::Drain,

        (Draining, Cue::Drained) => Step::Dismiss,

        (Starting | Leaving, Cue::Late) => Step::Kill,
        (Serving | Draining, Cue::Overdue) => Step::Kill,

        (Starting | Serving | Draining | Leaving, Cue::Broken) => Step::AwaitEnd,
        (Starting | Serving | Draining | Leaving | Ending, Cue::Exited) => Step::Remove,

        // It was dismissed while it started, and has become ready before it heard so.
        (Leaving | Ending | Serving | Draining, Cue::Ready)
        | (Starting | Draining | Leaving | Ending, Cue::Worn)
        | (Draining | Leaving | Ending, Cue::Unneeded)
        | (Starting | Serving | Leaving | Ending, Cue::Drained)
        | (Serving | Draining | Ending, Cue::Late)
        | (Starting | Leaving | Ending, Cue::Overdue)
        | (Ending, Cue::Broken) => Step::Nothing,
    }
}
