//! The request in hand, as all who deal with it see it: its connection, its context, the worker loop.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::sys::clock::Monotonic;
use crate::sys::hangup::Line;
use crate::sys::last_words::LastWords;

/// Names one request of a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Serial(u64);

/// What a worker knows of the one request that it serves just now.
///
/// There is one for each worker loop and it lasts as long as the process, so a connection that is
/// served can refer to it and stay a value that may be moved anywhere.
#[derive(Debug, Default)]
pub(super) struct InHand {
    /// Counts the beginnings and ends of requests.
    serial: AtomicU64,
    /// In nanoseconds of [`Monotonic`]; zero: no deadline. Only the worker's own thread sets it.
    due: AtomicU64,
    /// Its connection, to be watched.
    pub(super) line: Line,
    /// What its client is told if it ends with the worker.
    pub(super) last_words: LastWords,
}

impl InHand {
    /// For a worker loop that begins.
    pub(super) fn of_worker() -> &'static InHand {
        Box::leak(Box::default())
    }

    /// A request comes in hand.
    pub(super) fn begin(&self) -> Serial {
        Serial(self.serial.fetch_add(1, Ordering::Relaxed) + 1)
    }

    /// No request is in hand, or not that of the connection which says so.
    pub(super) fn end(&self) {
        self.serial.fetch_add(1, Ordering::Relaxed);
        self.line.close();
        self.last_words.close();
    }

    /// Whether it is still that request.
    pub(super) fn is(&self, request: Serial) -> bool {
        self.serial.load(Ordering::Relaxed) == request.0
    }

    /// When the request must have ended; none: whenever it likes.
    pub(super) fn due(&self) -> Option<Monotonic> {
        Monotonic::from_nanos(self.due.load(Ordering::Relaxed))
    }

    pub(super) fn set_due(&self, due: Option<Monotonic>) {
        self.due.store(due.map_or(0, Monotonic::nanos), Ordering::Relaxed);
    }
}
