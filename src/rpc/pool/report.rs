//! What a pool tells of itself.

use std::fmt;
use std::time::Duration;

use super::core::Cause;
use crate::proc::{self, Exit};

/// One process of a [`Pool`](super::Pool).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Worker {
    /// Its number in this pool, counted from 1 in the order of starting; no number comes twice.
    pub number: u64,
    /// Its process id; `None`, if it was not born.
    pub pid: Option<i32>,
}

impl fmt::Display for Worker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.pid {
            Some(pid) => write!(f, "worker {} (pid {pid})", self.number),
            None => write!(f, "worker {} (not born)", self.number),
        }
    }
}

/// The end of a worker; see [`Pool::on_worker_exit`](super::Pool::on_worker_exit).
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct WorkerExit {
    /// Which.
    pub worker: Worker,
    /// How the process ended; an error, if it was never born.
    pub exit: Result<Exit, proc::Error>,
    /// Why.
    pub cause: Cause,
    /// The calls that it had in hand, in the order of their calling.
    pub in_hand: Vec<InHand>,
}

/// A call that a worker had in hand when it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct InHand {
    /// [`Prepared::label`](super::Prepared::label).
    pub label: Option<String>,
    /// How long it had been with this worker.
    pub since: Duration,
    /// Whether it may have run there, wholly or in part.
    pub may_have_run: bool,
}

/// The numbers of a [`Pool`](super::Pool): first of this moment, then since its beginning.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Statistics {
    /// Workers that are not ready yet.
    pub starting: usize,
    /// Workers that have nothing to do.
    pub idle: usize,
    /// Workers that have calls in hand, and take further ones.
    pub busy: usize,
    /// Workers that take no further call.
    pub leaving: usize,
    /// Calls that wait in the queue.
    pub queued: usize,
    /// Calls whose callers wait until the queue has room.
    pub waiting: usize,
    /// Calls that are with a worker, those included that nobody waits for any more.
    pub in_flight: usize,

    /// Calls that were answered with a reply.
    pub answered: u64,
    /// Calls that ended with an error of their own, the handler's mostly.
    pub failed: u64,
    /// Calls that ended because their worker did.
    pub lost: u64,
    /// Calls that met the end of their caller's patience, or their deadline.
    pub timed_out: u64,
    /// Calls that their callers gave up.
    pub cancelled: u64,
    /// Calls that were not taken: the queue was full, or no worker became ready.
    pub refused: u64,
    /// Workers that were killed because a call met its deadline.
    pub overdue: u64,
    /// How often a call was begun again.
    pub retried: u64,
    /// Workers that were started.
    pub started: u64,
    /// Workers that were never ready, or died idle within a second.
    pub failed_starts: u64,
    /// Other workers that ended without being asked to, or had to be killed.
    pub restarts: u64,
    /// Workers that ended because they had reached a limit.
    pub recycled: u64,
}
