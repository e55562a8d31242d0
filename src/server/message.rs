//! What master and worker say to each other on the worker's own socket.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Slot;

/// From the master to a worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum ToWorker {
    /// Stop accepting, finish what is in hand, exit 0.
    Drain,
    /// Accept from the queues of this slot too: from the sockets that come along, which are known by these addresses.
    StandIn { slot: Slot, addresses: Vec<String> },
    /// Somebody waits at the listeners, and whom the kernel has woken for him cannot accept.
    Look,
    /// Leave the queues of this slot to its own worker.
    StandDown { slot: Slot },
}

/// From a worker to the master.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum FromWorker {
    /// The service has started and the worker accepts connections.
    Ready,
    /// The worker can take [`ToWorker::StandIn`] from now on: it runs the worker loop.
    CanStandIn,
    /// It cannot any more: no descriptor is left.
    CannotStandIn,
    /// Somebody waits at a listener that all share, and the worker has no room for him.
    Full,
    /// The worker accepts no more. Said where its queue is its own, which somebody else is to serve now.
    Leaving,
    /// A request has met its soft deadline and is over.
    TimedOut(TimedOut),
    /// The master may call the worker over the socket that comes along.
    Offer { name: String },
}

/// A request that was interrupted by its deadline.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TimedOut {
    /// When it began, in nanoseconds of CLOCK_MONOTONIC.
    pub(crate) started: u64,
    /// How long it took.
    pub(crate) elapsed: Duration,
    /// What the service said about it.
    pub(crate) label: Vec<u8>,
    /// Who had asked.
    pub(crate) peer: String,
    /// The worker was not held up: beside other work it waited for the client to send the rest of the request, or to take
    /// the rest of the answer.
    pub(crate) parked: bool,
}
