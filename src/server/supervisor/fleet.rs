//! The book of workers: every life that has been asked for and is not yet known to be over.

use std::collections::BTreeMap;
use std::time::Duration;

use super::message::{Exit, Identity};
use super::recycling::Limits;
use super::seats::{Seat, Seats};
use super::table::{Report, Sitter};
use crate::server::{Generation, Slot, WorkerId};

/// Where a worker stands in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WorkerState {
    /// The fork has been asked for.
    Asked,
    /// It exists and starts its service.
    Starting,
    /// It serves.
    Ready,
    /// It is to finish what is in hand and leave, or leaves by itself after a failed start.
    Draining,
    /// It has been killed; its end has not been reported.
    Killed,
    /// It had served and its process has ended; how, has not been reported.
    Gone,
}

/// One life.
#[derive(Debug, Clone)]
pub(super) struct Worker {
    pub(super) slot: Slot,
    pub(super) generation: Generation,
    pub(super) pid: Option<i32>,
    state: WorkerState,
    pub(super) asked_at: Duration,
    pub(super) ready_at: Option<Duration>,
    /// It has closed its socket, and its end is to be reported by then.
    pub(super) end_by: Option<Duration>,
    /// It has answered a request.
    pub(super) served: bool,
    /// How many, when it was last looked at.
    pub(super) requests: u64,
    /// Since when it has done nothing, as far as it was looked at.
    pub(super) idle_since: Option<Duration>,
    /// Its own limits.
    pub(super) limits: Limits,
    /// It has reached one of them.
    pub(super) worn: bool,
    /// It was to leave by itself.
    leaves: bool,
}

impl Worker {
    pub(super) fn state(&self) -> WorkerState {
        self.state
    }

    /// What it was when it came to this end: a kill that comes after a worker has left as it was to is none.
    pub(super) fn was_before(&self, exit: Exit) -> WorkerState {
        if self.leaves && exit == Exit::Clean { WorkerState::Draining } else { self.state }
    }

    pub(super) fn is_unready(&self) -> bool {
        self.sitter() == Sitter::Unready
    }

    pub(super) fn is_seated(&self) -> bool {
        self.sitter() != Sitter::Nobody
    }

    /// Whether its template may still have to fork it.
    pub(super) fn is_unborn(&self) -> bool {
        self.pid.is_none()
    }

    pub(super) fn note_pid(&mut self, report: &Report) {
        if let Report::Forked { pid } = report {
            self.pid = Some(*pid);
        }
    }

    pub(super) fn identity(&self, id: WorkerId) -> Identity {
        Identity { id, slot: self.slot, generation: self.generation, pid: self.pid }
    }

    fn sitter(&self) -> Sitter {
        match self.state {
            WorkerState::Asked | WorkerState::Starting => Sitter::Unready,
            WorkerState::Ready => Sitter::Ready,
            WorkerState::Draining | WorkerState::Killed | WorkerState::Gone => Sitter::Nobody,
        }
    }
}

/// All lives.
#[derive(Debug, Default)]
pub(super) struct Fleet {
    workers: BTreeMap<WorkerId, Worker>,
    pub(super) seats: Seats,
    last_id: u64,
}

impl Fleet {
    /// Enters a new life.
    pub(super) fn add(&mut self, slot: Slot, generation: Generation, limits: Limits, now: Duration) -> WorkerId {
        self.last_id += 1;
        let id = WorkerId(self.last_id);
        let worker = Worker {
            slot,
            generation,
            pid: None,
            state: WorkerState::Asked,
            asked_at: now,
            ready_at: None,
            end_by: None,
            served: false,
            requests: 0,
            idle_since: None,
            limits,
            worn: false,
            leaves: false,
        };
        self.seats.change(slot, id, Sitter::Nobody, worker.sitter());
        self.workers.insert(id, worker);
        id
    }

    /// The worker now stands there in its life.
    pub(super) fn set_state(&mut self, id: WorkerId, state: WorkerState) {
        if let Some(worker) = self.workers.get_mut(&id) {
            let was = worker.sitter();
            worker.state = state;
            worker.leaves |= state == WorkerState::Draining;
            self.seats.change(worker.slot, id, was, worker.sitter());
        }
    }

    /// Marks a worker as worn out or not, and gives it.
    pub(super) fn set_worn(&mut self, id: WorkerId, worn: bool) -> Option<Identity> {
        let worker = self.workers.get_mut(&id)?;
        worker.worn = worn;
        self.seats.unsettle(worker.slot);
        Some(worker.identity(id))
    }

    pub(super) fn get(&self, id: WorkerId) -> Option<&Worker> {
        self.workers.get(&id)
    }

    pub(super) fn get_mut(&mut self, id: WorkerId) -> Option<&mut Worker> {
        self.workers.get_mut(&id)
    }

    pub(super) fn remove(&mut self, id: WorkerId) -> Option<Worker> {
        let worker = self.workers.remove(&id)?;
        self.seats.change(worker.slot, id, worker.sitter(), Sitter::Nobody);
        Some(worker)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.workers.is_empty()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (WorkerId, &Worker)> {
        self.workers.iter().map(|(&id, worker)| (id, worker))
    }

    /// The lives for which `which` holds, by birth.
    pub(super) fn ids_where(&self, which: impl Fn(&Worker) -> bool) -> Vec<WorkerId> {
        self.iter().filter(|(_, worker)| which(worker)).map(|(id, _)| id).collect()
    }

    /// Who sits in the slot's seat, told apart by the generation that is wanted; one of the current generation that is
    /// worn out is as stale as one of another.
    pub(super) fn seat(&self, slot: Slot, wanted: Generation, current: Generation) -> Seat {
        let mut seat = Seat::default();
        for &id in self.seats.sitters(slot) {
            let Some(worker) = self.workers.get(&id) else {
                continue;
            };
            let is_worn = worker.worn && worker.generation == current;
            let half = if worker.generation == wanted && !is_worn { &mut seat.fresh } else { &mut seat.stale };
            *half = Some((id, worker.sitter()));
        }
        seat
    }

    /// The seats in which a successor is in the making.
    pub(super) fn surging_seats(&self, wanted: Generation, current: Generation) -> Vec<Seat> {
        self.seats.shared().map(|slot| self.seat(slot, wanted, current)).filter(Seat::is_surging).collect()
    }

    /// How many serve.
    pub(super) fn ready(&self) -> u32 {
        self.workers.values().filter(|worker| worker.state == WorkerState::Ready).count() as u32
    }
}
