//! A look at all workers: what the scoreboard says of them, and what the kernel says of their memory.

use std::collections::BTreeMap;

use super::worker::Worker;
use crate::server::WorkerId;
use crate::server::listener::Listener;
use crate::server::scoreboard::{Board, WorkerState};
use crate::server::supervisor::{Load, WorkerLoad};
use crate::sys::backlog;
use crate::sys::memory::resident;

/// Looks at every worker that has begun to write its record.
pub(super) fn look(workers: &BTreeMap<WorkerId, Worker>, board: &Board, listeners: &[Listener], memory: bool) -> Load {
    let look_at = |(&id, worker): (&WorkerId, &Worker)| {
        let tally = board.tally(worker.record).filter(|tally| tally.id == id)?;
        // Not the pid that the worker has written: what runs wild in it must not make another suspect.
        let resident = worker.pid.filter(|_| memory).and_then(resident);
        let busy = tally.state == WorkerState::Busy;
        Some(WorkerLoad { id, requests: tally.requests, busy, parked: tally.parked > 0, resident })
    };
    let queue = listeners.iter().map(backlog::length).fold(0, u32::saturating_add);
    Load { workers: workers.iter().filter_map(look_at).collect(), queue }
}
