//! The workers' table: what a report makes of a worker, by where it stands in its life.

use crate::server::supervisor::fleet::WorkerState;
use crate::server::supervisor::message::Exit;

/// What is heard of a worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::server::supervisor) enum Report {
    Forked {
        pid: i32,
    },
    Ready,
    /// It has closed its socket.
    HungUp,
    /// Its process has ended, and nobody can tell yet how.
    Gone,
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
    /// The time in which its end should have been told, after it had closed its socket, ran out.
    Unreported,
    /// Its timer ran out, and its template has not even told its pid.
    LateUnborn,
    Exited {
        exit: Exit,
        words: Option<String>,
    },
}

/// What a report makes of a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::server::supervisor) enum WorkerStep {
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
    /// It serves nobody any more, and its seat is free; its end is still to be told.
    Bereave,
    /// It is gone, and its start has failed.
    BuryUnready,
    /// It is gone, and had served.
    BuryServing,
    /// It is gone, as was wished.
    Bury,
}

/// The workers' table.
#[rustfmt::skip]
pub(in crate::server::supervisor) fn report(state: WorkerState, report: &Report) -> WorkerStep {
    use Report::*;
    use WorkerState as W;
    match (state, report) {
        (W::Asked,                    Forked { .. })                    => WorkerStep::Start,
        (_,                           Forked { .. })                    => WorkerStep::NotePid,
        // The worker's own socket may be read before the template's: ready may come before forked.
        (W::Asked | W::Starting,      Ready)                            => WorkerStep::Serve,
        (W::Asked | W::Starting,      Refused { .. })                   => WorkerStep::Dismiss,
        (W::Asked | W::Starting,      Late | Unreported)                => WorkerStep::GiveUp,
        (W::Asked | W::Ready | W::Draining, LateUnborn)                 => WorkerStep::BlameTemplate,
        (W::Draining,                 Late)                             => WorkerStep::Kill,
        (W::Asked | W::Starting | W::Ready | W::Draining, HungUp)       => WorkerStep::AwaitEnd,
        (W::Ready | W::Draining,      Unreported)                       => WorkerStep::KillHungUp,
        // While it serves, time is up for nothing.
        (W::Ready,                    Late)                             => WorkerStep::Ignore,
        (W::Ready | W::Draining,      Stuck)                            => WorkerStep::KillStuck,
        (W::Asked | W::Starting | W::Killed, Stuck)                     => WorkerStep::Ignore,
        // A killed process ends, so it is its parent that does not reap.
        (W::Killed,                   Late | LateUnborn | Unreported)   => WorkerStep::BlameTemplate,
        (W::Ready,                    Gone)                             => WorkerStep::Bereave,
        // How it ended is worth the wait where nobody else waits, or a delay comes anyway.
        (W::Asked | W::Starting | W::Draining | W::Killed, Gone)        => WorkerStep::Ignore,
        (W::Asked | W::Starting | W::Ready,  Served)                    => WorkerStep::NoteServed,
        (W::Draining | W::Killed,     Served)                           => WorkerStep::Ignore,
        (W::Asked | W::Starting,      NoProcess { .. } | Shortage { .. } | Exited { .. }) => WorkerStep::BuryUnready,
        (W::Ready,                    NoProcess { .. } | Shortage { .. } | Exited { .. }) => WorkerStep::BuryServing,
        (W::Draining | W::Killed | W::Gone, NoProcess { .. } | Shortage { .. } | Exited { .. }) => WorkerStep::Bury,
        (W::Gone,                     _)                                => WorkerStep::Ignore,
        (W::Ready | W::Draining | W::Killed, Ready | Refused { .. })    => WorkerStep::Ignore,
        (W::Killed,                   HungUp)                           => WorkerStep::Ignore,
        // Whoever starts is born.
        (W::Starting,                 LateUnborn)                       => WorkerStep::Ignore,
    }
}
