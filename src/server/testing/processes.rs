//! What the tests of the worker loop need beside: the context of a whole worker, and a process of their own.

use std::env;
use std::process::Command;

use slog::{Discard, Logger, o};

use super::birth;
use crate::proc::Channel;
use crate::server::acceptor::Acceptor;
use crate::server::drain::MasterLink;
use crate::server::message::{FromWorker, ToWorker};
use crate::server::scoreboard::Record;
use crate::server::service::WorkerCx;
use crate::server::worker_config::WorkerConfig;

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
