//! What master and worker say to each other on the worker's own socket.

use serde::{Deserialize, Serialize};

/// From the master to a worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum ToWorker {
    /// Stop accepting, finish what is in hand, exit 0.
    Drain,
}

/// From a worker to the master.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum FromWorker {
    /// The service has started and the worker accepts connections.
    Ready,
}
