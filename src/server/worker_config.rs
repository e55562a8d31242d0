//! What a worker is told at its birth.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Generation, LogFormat, LogLevel, Slot, WorkerId};

/// What is the same for all workers of a generation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct WorkerConfig {
    /// How long a request may take, from its first byte on; none: as long as it likes.
    pub(crate) request_timeout: Option<Duration>,
    /// How long after that a request that cannot be interrupted takes its worker with it.
    pub(crate) request_kill_after: Duration,
    /// How long a connection may stay parked without a byte; none: as long as it likes.
    pub(crate) idle_timeout: Option<Duration>,
    /// How long a draining worker keeps a connection that is between two requests.
    pub(crate) last_chance: Duration,
    /// The service's own settings, by name.
    pub(crate) args: BTreeMap<String, String>,
    /// The listeners, in the order in which they were configured.
    pub(crate) listeners: Vec<Listened>,
    /// How log records are written.
    pub(crate) log_format: LogFormat,
    /// The least level that is logged.
    pub(crate) log_level: LogLevel,
}

/// An address that a worker listens on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Listened {
    pub(crate) address: String,
    /// The slot has a socket of its own, which comes to the worker alone; the shared ones come through the template.
    pub(crate) own: bool,
}

impl Default for WorkerConfig {
    fn default() -> Self {
        Self {
            request_timeout: Some(Duration::from_secs(30)),
            request_kill_after: Duration::from_secs(5),
            idle_timeout: Some(Duration::from_secs(60)),
            last_chance: Duration::from_millis(500),
            args: BTreeMap::new(),
            listeners: Vec::new(),
            log_format: LogFormat::Term,
            log_level: LogLevel::Info,
        }
    }
}

/// What is this worker's alone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct WorkerBirth {
    /// Its seat.
    pub(crate) slot: Slot,
    /// Its generation.
    pub(crate) generation: Generation,
    /// This life of it.
    pub(crate) id: WorkerId,
    /// Its page of the scoreboard.
    pub(crate) record: u32,
}
