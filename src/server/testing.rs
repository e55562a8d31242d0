//! What tests of services and of the worker loop share: connections over socket pairs, a worker
//! without a master.

use std::env;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::time::Duration;

use slog::{Discard, Logger, o};

use super::acceptor::Acceptor;
use super::cleanup::Cleanups;
use super::conn::Conn;
use super::deadline::{Begun, Deadlines};
use super::drain::MasterLink;
use super::in_hand::InHand;
use super::message::{FromWorker, ToWorker};
use super::request_cx::RequestCx;
use super::scoreboard::{Board, Record};
use super::service::WorkerCx;
use super::worker_config::{WorkerBirth, WorkerConfig};
use super::{Generation, Slot, WorkerId};
use crate::proc::Channel;
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
        Self { board, config, in_hand, birth: birth(), record, deadlines, cleanups: Cleanups::default() }
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

/// The worker's end of its socket, and the master's.
pub(crate) fn link() -> (MasterLink, Channel<ToWorker, FromWorker>) {
    let (worker, master) = Channel::pair().expect("a socket pair");
    (MasterLink::new(worker), master)
}

/// A worker's context over these listeners. A worker belongs to one thread, so make it there.
pub(crate) fn worker_cx(acceptors: Vec<Acceptor>, config: WorkerConfig, link: MasterLink, record: Record) -> WorkerCx {
    let log = Logger::root(Discard, o!());
    WorkerCx::new(acceptors, config, birth(), link, record, log).expect("a worker's context")
}

/// This very test, run again in a process of its own, where [`is_child`] is true: for what changes
/// or ends a process.
pub(crate) fn child_of(test: &str) -> Command {
    let mut child = Command::new(env::current_exe().expect("this executable"));
    child.args([test, "--exact", "--nocapture", "--test-threads=1"]).env(CHILD, "1");
    child
}

pub(crate) fn is_child() -> bool {
    env::var_os(CHILD).is_some()
}

const CHILD: &str = "HATCHERY_TEST_CHILD";
