//! The one timer table: everything the supervisor waits for stands here and nowhere else.

use crate::server::{Generation, Slot, WorkerId};

/// What can run out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Timer {
    /// A template should have ended its preload.
    Preload(Generation),
    /// The delay before a lost template's successor is over.
    TemplateRetry(Generation),
    /// A worker should be ready, or should have drained.
    Worker(WorkerId),
    /// The time between the end of readiness and the gate is over.
    DrainDelay,
    /// The queues are to be looked at again.
    Look,
    /// The queues should have been served.
    QueueTime,
    /// The delay before a slot's next worker is over.
    SlotRetry(Slot),
    /// A worker has reached its age.
    Age(WorkerId),
    /// The workers are to be looked at.
    Sample,
    /// The delay before the next probe is over.
    Probe,
    /// The probe has served well by then.
    ProbeProven,
    /// A new master should serve.
    Upgrade,
}

/// Each timer with its time.
pub(super) type Timers = crate::machine::Timers<Timer>;
