//! A look at all workers: what the scoreboard says of them, and what the kernel says of their memory.

use std::collections::BTreeMap;
use std::fs;

use nix::unistd::{SysconfVar, sysconf};

use super::worker::Worker;
use crate::server::WorkerId;
use crate::server::listener::Listener;
use crate::server::scoreboard::{Board, WorkerState};
use crate::server::supervisor::{Load, WorkerLoad};
use crate::sys::backlog;

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

/// The resident memory of a process in bytes, shared pages included, as ps(1) shows it: the second field of
/// `/proc/PID/statm`, in pages (proc_pid_statm(5)). None if it has just ended.
fn resident(pid: i32) -> Option<u64> {
    let statm = fs::read_to_string(format!("/proc/{pid}/statm")).ok()?;
    let pages: u64 = statm.split(' ').nth(1)?.parse().ok()?;
    let page = sysconf(SysconfVar::PAGE_SIZE).ok()??;
    Some(pages * u64::try_from(page).ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_resident_memory_is_that_of_the_process() {
        let own = std::process::id() as i32;
        let before = resident(own).expect("this process lives");
        let block = vec![1_u8; 64 << 20];
        let after = resident(own).expect("this process lives");
        assert!(after >= before + (48 << 20), "{before} and {after} with {} bytes more", block.len());
        assert_eq!(resident(i32::MAX), None);
    }
}
