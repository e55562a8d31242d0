//! The scoreboard: what each worker is doing, in memory shared with the master.
//!
//! One page per worker, one writer per page: the worker itself, which maps that page alone, so a
//! worker that runs wild can spoil only what is said about itself. There are no locks. Every field
//! is an atomic that stands for itself; only the label is longer than a word, and a version counter
//! that is odd while it changes keeps a reader from taking half of one and half of the next.

mod peer;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering, fence};

use super::conn::Peer;
use super::worker_config::WorkerBirth;
use super::{Generation, Slot, WorkerId};
use crate::sys::clock::Monotonic;
use crate::sys::shared::{self, Access, Mapping, WORDS};
use crate::sys::trace;

/// Longest label in bytes; what is longer is cut.
pub const LABEL_BYTES: usize = 64;

/// Most frames of a dying worker's call stack; those further out are left away.
const TRACE_FRAMES: usize = 64;

/// Words of a peer's address: what it is and its port, then the IP address.
const PEER_WORDS: usize = 3;

/// Where each field lies in a record's page, in words.
mod at {
    pub(super) const ID: usize = 0;
    pub(super) const PID: usize = 1;
    pub(super) const SLOT: usize = 2;
    pub(super) const GENERATION: usize = 3;
    pub(super) const STATE: usize = 4;
    pub(super) const REQUESTS: usize = 5;
    pub(super) const CONNECTIONS: usize = 6;
    pub(super) const PARKED: usize = 7;
    pub(super) const REQUEST_STARTED: usize = 8;
    pub(super) const SOFT_DEADLINE: usize = 9;
    pub(super) const HARD_DEADLINE: usize = 10;
    pub(super) const PEER: usize = 11;
    pub(super) const LABEL_VERSION: usize = PEER + super::PEER_WORDS;
    pub(super) const LABEL_LENGTH: usize = LABEL_VERSION + 1;
    pub(super) const LABEL: usize = LABEL_LENGTH + 1;
    pub(super) const LABEL_END: usize = LABEL + super::LABEL_BYTES / size_of::<u64>();
    pub(super) const TRACE_LENGTH: usize = LABEL_END;
    pub(super) const TRACE: usize = TRACE_LENGTH + 1;
    pub(super) const TRACE_END: usize = TRACE + super::TRACE_FRAMES;
    pub(super) const ABORTED: usize = TRACE_END;
}

/// What a worker is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WorkerState {
    /// It builds its service and does not accept yet.
    Starting,
    /// It waits for connections and requests.
    Idle,
    /// It serves a request.
    Busy,
    /// It accepts no more, finishes what is in hand and leaves.
    Draining,
}

impl WorkerState {
    const ALL: [Self; 4] = [Self::Starting, Self::Idle, Self::Busy, Self::Draining];
}

/// One worker's record as it was when it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Snapshot {
    /// Which life of which worker.
    pub(crate) id: WorkerId,
    /// Its process.
    pub(crate) pid: u32,
    /// Its seat.
    pub(crate) slot: Slot,
    /// Its generation.
    pub(crate) generation: Generation,
    /// What it is doing.
    pub(crate) state: WorkerState,
    /// Requests it has answered.
    pub(crate) requests: u64,
    /// Requests whose client was gone before it had its answer.
    pub(crate) aborted: u64,
    /// Connections it has accepted.
    pub(crate) connections: u64,
    /// Connections it holds parked now.
    pub(crate) parked: u64,
    /// When the request in hand began.
    pub(crate) request_started: Option<Monotonic>,
    /// Who has asked for it, or for the one before.
    pub(crate) peer: Option<Peer>,
    /// What the service says it is doing; empty where it says nothing.
    pub(crate) label: Vec<u8>,
    /// The call stack that a dying worker has left, as addresses in its memory, innermost first.
    pub(crate) trace: Vec<u64>,
}

/// What a worker has done and does, as the look at all workers needs it: read without memory of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Tally {
    /// Which life of which worker.
    pub(crate) id: WorkerId,
    /// What it is doing.
    pub(crate) state: WorkerState,
    /// Requests it has answered.
    pub(crate) requests: u64,
    /// Connections it holds parked now.
    pub(crate) parked: u64,
}

/// The request that a worker has in hand, as the watch over deadlines sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RequestInHand {
    /// Which life of which worker.
    pub(crate) id: WorkerId,
    /// When it began.
    pub(crate) started: Monotonic,
    /// By when it is to end: interrupted at the first moment, killed at the second. None: whenever it likes.
    pub(crate) deadlines: Option<(Monotonic, Monotonic)>,
}

/// The master's end: all records, to read.
#[derive(Debug)]
pub(crate) struct Board {
    memory: OwnedFd,
    pages: Mapping,
}

impl Board {
    /// Makes the memory for `capacity` records.
    pub(crate) fn new(capacity: u32) -> io::Result<Self> {
        let capacity = capacity as usize;
        let memory = shared::create("hatchery-scoreboard", capacity)?;
        let pages = Mapping::new(memory.as_fd(), 0, capacity, Access::Read)?;
        Ok(Self { memory, pages })
    }

    /// How many records there are.
    pub(crate) fn capacity(&self) -> u32 {
        (self.pages.words().len() / WORDS) as u32
    }

    /// Reads one record; none where no worker has ever written, or beyond the capacity.
    pub(crate) fn read(&self, record: u32) -> Option<Snapshot> {
        let words = self.page(record)?;
        let load = |field: usize| words[field].load(Ordering::Relaxed);
        let pid = u32::try_from(load(at::PID)).ok().filter(|&pid| pid != 0)?;
        Some(Snapshot {
            id: WorkerId(load(at::ID)),
            pid,
            slot: Slot(load(at::SLOT) as u32),
            generation: Generation(load(at::GENERATION) as u32),
            state: *WorkerState::ALL.get(load(at::STATE) as usize)?,
            requests: load(at::REQUESTS),
            aborted: load(at::ABORTED),
            connections: load(at::CONNECTIONS),
            parked: load(at::PARKED),
            request_started: Monotonic::from_nanos(load(at::REQUEST_STARTED)),
            peer: peer::from_words([0, 1, 2].map(|word| load(at::PEER + word))),
            label: read_label(words),
            trace: words[at::TRACE..at::TRACE_END]
                .iter()
                .take(load(at::TRACE_LENGTH) as usize)
                .map(|frame| frame.load(Ordering::Relaxed))
                .collect(),
        })
    }

    /// Reads the few fields of a record that change with the load; none as for [`read`](Self::read).
    pub(crate) fn tally(&self, record: u32) -> Option<Tally> {
        let words = self.page(record)?;
        let load = |field: usize| words[field].load(Ordering::Relaxed);
        (load(at::PID) != 0).then_some(())?;
        Some(Tally {
            id: WorkerId(load(at::ID)),
            state: *WorkerState::ALL.get(load(at::STATE) as usize)?,
            requests: load(at::REQUESTS),
            parked: load(at::PARKED),
        })
    }

    /// The request that the worker of this record has in hand; none where it rests.
    pub(crate) fn request_in_hand(&self, record: u32) -> Option<RequestInHand> {
        let words = self.page(record)?;
        let moment = |field: usize| Monotonic::from_nanos(words[field].load(Ordering::Acquire));
        // In the order opposite to that of the writer.
        let started = moment(at::REQUEST_STARTED)?;
        let soft = moment(at::SOFT_DEADLINE);
        let deadlines = soft.zip(moment(at::HARD_DEADLINE));
        Some(RequestInHand { id: WorkerId(words[at::ID].load(Ordering::Relaxed)), started, deadlines })
    }

    fn page(&self, record: u32) -> Option<&[AtomicU64]> {
        let first = (record as usize).checked_mul(WORDS)?;
        self.pages.words().get(first..first + WORDS)
    }
}

/// The memory itself, to hand to the template.
impl AsFd for Board {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.memory.as_fd()
    }
}

/// A whole label, or an empty one from a worker that changes it without pause or died changing it.
fn read_label(words: &[AtomicU64]) -> Vec<u8> {
    const TRIES: usize = 100;
    for _ in 0..TRIES {
        let version = words[at::LABEL_VERSION].load(Ordering::Acquire);
        let length = words[at::LABEL_LENGTH].load(Ordering::Relaxed) as usize;
        let mut label: Vec<u8> = words[at::LABEL..at::LABEL_END]
            .iter()
            .flat_map(|word| word.load(Ordering::Relaxed).to_ne_bytes())
            .collect();
        fence(Ordering::Acquire);
        let unchanged = words[at::LABEL_VERSION].load(Ordering::Relaxed) == version;
        if unchanged && version.is_multiple_of(2) {
            label.truncate(length);
            return label;
        }
    }
    Vec::new()
}

/// The worker's end: its own record, to write.
///
/// A store costs a few nanoseconds and no system call.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Record {
    words: &'static [AtomicU64],
}

impl Record {
    /// Maps the record that `birth` names and begins it anew. The caller closes `memory` afterwards:
    /// with it a worker could map the others' records as well.
    pub(crate) fn map(memory: BorrowedFd<'_>, birth: &WorkerBirth, pid: u32) -> io::Result<Self> {
        // It stays mapped: a signal may find the worker at its very end.
        let words = Mapping::new(memory, birth.record as usize, 1, Access::ReadWrite)?.leak();
        let record = Self { words };
        record.set_label(b"");
        record.end_request();
        record.store(at::PEER, 0);
        record.store(at::TRACE_LENGTH, 0);
        record.set_requests(0);
        record.set_aborted(0);
        record.set_connections(0);
        record.set_parked(0);
        record.set_state(WorkerState::Starting);
        record.store(at::SLOT, birth.slot.0.into());
        record.store(at::GENERATION, birth.generation.0.into());
        record.store(at::ID, birth.id.0);
        record.store(at::PID, pid.into());
        Ok(record)
    }

    pub(crate) fn set_state(&self, state: WorkerState) {
        self.store(at::STATE, state as u64);
    }

    pub(crate) fn set_requests(&self, count: u64) {
        self.store(at::REQUESTS, count);
    }

    pub(crate) fn set_aborted(&self, count: u64) {
        self.store(at::ABORTED, count);
    }

    pub(crate) fn set_connections(&self, count: u64) {
        self.store(at::CONNECTIONS, count);
    }

    pub(crate) fn set_parked(&self, count: u64) {
        self.store(at::PARKED, count);
    }

    /// A request comes in hand.
    pub(crate) fn begin_request(&self, started: Monotonic, peer: Peer) {
        for (word, value) in peer::to_words(peer).into_iter().enumerate() {
            self.store(at::PEER + word, value);
        }
        self.store(at::SOFT_DEADLINE, 0);
        self.words[at::REQUEST_STARTED].store(started.nanos(), Ordering::Release);
    }

    /// By when the request in hand is to end: interrupted at the first moment, killed at the second.
    pub(crate) fn set_deadlines(&self, soft: Monotonic, hard: Monotonic) {
        // In this order: a reader that sees the new soft moment sees no hard one of an earlier request.
        self.store(at::HARD_DEADLINE, hard.nanos());
        self.words[at::SOFT_DEADLINE].store(soft.nanos(), Ordering::Release);
    }

    /// No request is in hand.
    pub(crate) fn end_request(&self) {
        self.store(at::REQUEST_STARTED, 0);
        self.store(at::SOFT_DEADLINE, 0);
    }

    /// From now on the process's call stack is left in this record when it dies by its alarm or by its own fault.
    pub(crate) fn keep_trace(&self) {
        trace::keep_in(&self.words[at::TRACE_LENGTH..at::TRACE_END]);
    }

    /// Sets the label; what is longer than [`LABEL_BYTES`] is cut.
    pub(crate) fn set_label(&self, label: &[u8]) {
        let label = &label[..label.len().min(LABEL_BYTES)];
        let words = self.words;
        let length = &words[at::LABEL_LENGTH];
        if label.is_empty() && length.load(Ordering::Relaxed) == 0 {
            return;
        }
        // Made odd from whatever it was: the writer before may have died in the middle.
        let changing = words[at::LABEL_VERSION].load(Ordering::Relaxed) | 1;
        words[at::LABEL_VERSION].store(changing, Ordering::Relaxed);
        fence(Ordering::Release);
        length.store(label.len() as u64, Ordering::Relaxed);
        for (word, bytes) in words[at::LABEL..].iter().zip(label.chunks(size_of::<u64>())) {
            let mut whole = [0; size_of::<u64>()];
            whole[..bytes.len()].copy_from_slice(bytes);
            word.store(u64::from_ne_bytes(whole), Ordering::Relaxed);
        }
        words[at::LABEL_VERSION].store(changing.wrapping_add(1), Ordering::Release);
    }

    /// The label as it is.
    pub(crate) fn label(&self) -> Vec<u8> {
        read_label(self.words)
    }

    fn store(&self, field: usize, value: u64) {
        self.words[field].store(value, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests;
