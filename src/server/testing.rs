//! What tests and fuzz targets of services share: connections over socket pairs, a worker without a master.

#[cfg(test)]
mod processes;

use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

#[cfg(test)]
pub(crate) use self::processes::{child_of, is_child, link, worker_cx};
use super::cleanup::Cleanups;
use super::conn::Conn;
use super::deadline::{Begun, Deadlines};
use super::in_hand::InHand;
use super::request_cx::RequestCx;
use super::scoreboard::{Board, Record};
use super::worker_config::{WorkerBirth, WorkerConfig};
use super::{Generation, Slot, WorkerId};
use crate::sys::clock::Monotonic;

/// A connection, and its client.
pub(crate) fn conn_pair() -> (Conn, UnixStream) {
    let (served, client) = UnixStream::pair().expect("a socket pair");
    (Conn::from_fd(served.into()).expect("a connection"), client)
}

pub(crate) fn birth() -> WorkerBirth {
    WorkerBirth { slot: Slot(0), generation: Generation(1), id: WorkerId(1), record: 0 }
}

pub(crate) fn record(board: &Board) -> Record {
    Record::map(board.as_fd(), &birth(), std::process::id()).expect("a record")
}

/// A worker without listeners and without a loop, to call `serve` in.
pub(crate) struct Bench {
    #[cfg(test)]
    pub(crate) board: Board,
    pub(crate) config: WorkerConfig,
    pub(in crate::server) in_hand: &'static InHand,
    birth: WorkerBirth,
    record: Record,
    deadlines: Deadlines,
    cleanups: Cleanups,
}

impl Bench {
    pub(crate) fn new() -> Self {
        let board = Board::new(1).expect("a scoreboard");
        let record = record(&board);
        let in_hand = InHand::of_worker();
        // Without a timer: the alarm is the whole process's.
        let config = WorkerConfig { request_timeout: None, ..WorkerConfig::default() };
        let deadlines = Deadlines::new(&config, in_hand, record).expect("nothing to be made");
        Self {
            #[cfg(test)]
            board,
            config,
            in_hand,
            birth: birth(),
            record,
            deadlines,
            cleanups: Cleanups::default(),
        }
    }

    /// What `serve` is given.
    pub(crate) fn request(&self, draining: bool, left: Option<Duration>) -> RequestCx<'_> {
        let since = Monotonic::now();
        self.deadlines.begin(Begun { since, due: left.map(|left| since.after(left)) }, since);
        RequestCx {
            config: &self.config,
            birth: &self.birth,
            record: &self.record,
            pid: std::process::id(),
            draining,
            link: None,
            since,
            deadlines: &self.deadlines,
            in_hand: self.in_hand,
            cleanups: &self.cleanups,
        }
    }
}
