//! How a server stands, as it tells whoever asks: plain data.

use serde::{Deserialize, Serialize};

use super::{Generation, Slot};

/// How a server stands at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Status {
    /// The master that answers.
    pub pid: u32,
    /// The version of this crate that the master runs.
    pub hatchery_version: String,
    /// The one word for all of it; the fields that follow say more.
    pub state: ServerState,
    /// How the fleet stands with its failures, whatever else is going on.
    pub health: FleetHealth,
    /// Whether a new master boots beside this one.
    pub upgrading: bool,
    /// How long ago the master was started, in milliseconds.
    pub uptime_ms: u64,
    /// The generation that serves; during a reload, still the old one.
    pub generation: Generation,
    /// The generation that a reload is bringing.
    pub incoming: Option<Generation>,
    /// How many slots are to be filled.
    pub workers: u32,
    /// The last reload that has ended.
    pub last_reload: Option<LastReload>,
    /// Each slot that is to be filled, or in which somebody still sits, by number.
    pub slots: Vec<SlotStatus>,
}

/// A server's state in a word. Of several that hold, the first of this list is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ServerState {
    /// It is on its way out: stopped, or replaced by a new master.
    Stopping,
    /// Its first workers are not ready yet.
    Booting,
    /// A new master boots beside it.
    Upgrading,
    /// A new generation is being rolled in.
    Reloading,
    /// Its workers were drained and none is forked (SIGWINCH).
    Paused,
    /// Workers failed too often, or cannot be forked for want of something: fewer serve than are to.
    Degraded,
    /// All is well.
    Serving,
}

/// How the fleet stands with its failures.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum FleetHealth {
    /// Each slot is filled as its own delay allows.
    Sound,
    /// Something is lacking that every fork needs: processes, memory, descriptors.
    Short,
    /// The restart budget is spent.
    Degraded,
}

/// A slot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct SlotStatus {
    /// Its number.
    pub slot: Slot,
    /// Who sits there, the eldest first: nobody while the next one waits for its delay, and two or more while one follows
    /// another.
    pub workers: Vec<WorkerStatus>,
}

/// A worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct WorkerStatus {
    /// Its process; none until it is forked.
    pub pid: Option<i32>,
    /// Its generation.
    pub generation: Generation,
    /// What it is at.
    pub state: WorkerActivity,
    /// How long ago its fork was asked for, in milliseconds.
    pub age_ms: u64,
    /// How long the request in hand has taken so far, in milliseconds; none if it has none in hand.
    pub request_ms: Option<u64>,
    /// Requests that it has answered.
    pub requests: u64,
    /// Connections that it has accepted.
    pub connections: u64,
    /// Connections that it holds and that wait for their next request.
    pub parked: u64,
    /// What its service says of the request in hand, or of the one before
    /// ([`RequestCx::label`](super::RequestCx::label)); what is no UTF-8 is replaced.
    pub label: String,
}

/// What a worker is at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum WorkerActivity {
    /// It is being forked, or its service starts.
    Starting,
    /// It waits for clients.
    Idle,
    /// It serves a request.
    Busy,
    /// It finishes what is in hand and leaves.
    Draining,
    /// It was killed, or has ended, and is not reaped yet.
    Ending,
}

/// The last reload that has ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct LastReload {
    /// How it ended.
    #[serde(flatten)]
    pub end: ReloadEnd,
    /// How long ago, in milliseconds.
    pub ago_ms: u64,
}

/// The end of a reload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ReloadEnd {
    /// The generation that it was to bring; none if it never began.
    pub generation: Option<Generation>,
    /// How it ended.
    #[serde(flatten)]
    pub outcome: ReloadOutcome,
    /// How long it took from its beginning, in milliseconds.
    pub took_ms: u64,
}

/// How a reload ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
#[non_exhaustive]
pub enum ReloadOutcome {
    /// The new generation serves in every slot.
    Reloaded,
    /// The new generation failed and was withdrawn; the old one serves as before.
    RolledBack {
        /// The words of whoever failed: the preload, a worker, the kernel.
        why: String,
    },
    /// It was withdrawn, or never begun, because the operator wants something else.
    CalledOff {
        /// What he wants.
        why: String,
    },
}
