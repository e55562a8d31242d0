//! The slow log: one record for each request that met its deadline, with what its worker was at.
//!
//! A request that was interrupted (`soft`) is reported by its worker. One that took its worker with it (`hard`) is found in
//! the worker's page of the scoreboard, where the dying worker has left its call stack; the functions are looked up here, by
//! a thread of its own, because reading debug information takes long. One whose worker did not even die by its alarm,
//! because it blocks the signal or stands still, is ended by the master (`stuck`): the backstop.
//!
//! What the kernel says of the worker is noted when half of the time is over, and again just before the soft deadline, while
//! the request still hangs in it.

mod kernel_state;
mod modules;
mod symbols;
mod watch;
mod writer;

use std::collections::BTreeMap;
use std::time::Duration;

use slog::{Logger, warn};

use self::kernel_state::KernelState;
use self::modules::Modules;
use self::watch::{Request, Step, Watch};
use self::writer::{Trace, Writer};
use super::journal::millis;
use crate::server::WorkerId;
use crate::server::conn::Peer;
use crate::server::message::TimedOut;
use crate::server::scoreboard::{RequestInHand, Snapshot};
use crate::sys::clock::Monotonic;

/// Follows the requests in hand and writes down those that met their deadline.
pub(super) struct SlowLog {
    watch: Watch,
    /// What the workers waited for just before the deadline of the request that began then.
    samples: BTreeMap<WorkerId, Sample>,
    stuck: Vec<WorkerId>,
    writer: Writer,
    log: Logger,
}

struct Sample {
    started: Monotonic,
    state: Option<KernelState>,
}

impl SlowLog {
    /// For a server whose requests have usually this timeout.
    pub(super) fn new(request_timeout: Option<Duration>, log: Logger) -> SlowLog {
        SlowLog {
            watch: Watch::new(request_timeout, Monotonic::now()),
            samples: BTreeMap::new(),
            stuck: Vec::new(),
            writer: Writer::new(log.clone()),
            log,
        }
    }

    /// When to [`look`](Self::look) again.
    pub(super) fn next(&self) -> Monotonic {
        self.watch.next()
    }

    /// Looks at the requests in hand, given with the workers' pids. Gives those workers that are to be killed: their
    /// request is long over its hard deadline.
    pub(super) fn look(&mut self, in_hand: impl IntoIterator<Item = (i32, RequestInHand)>) -> Vec<WorkerId> {
        let now = Monotonic::now();
        let in_hand: BTreeMap<WorkerId, (i32, RequestInHand)> =
            in_hand.into_iter().map(|(pid, request)| (request.id, (pid, request))).collect();
        let requests = in_hand.values().filter_map(|(_, request)| {
            let (soft, hard) = request.deadlines?;
            Some(Request { id: request.id, started: request.started, soft, hard })
        });
        let steps = self.watch.look(now, requests);
        self.samples.retain(|id, sample| in_hand.get(id).is_some_and(|(_, request)| request.started == sample.started));
        let mut stuck = Vec::new();
        for (id, step) in steps {
            let Some((pid, request)) = in_hand.get(&id) else { continue };
            match step {
                Step::Sample => {
                    let sample = Sample { started: request.started, state: KernelState::of(*pid) };
                    self.samples.insert(id, sample);
                }
                Step::GiveUp => stuck.push(id),
            }
        }
        self.stuck.extend(&stuck);
        stuck
    }

    /// A worker reports a request that was interrupted.
    pub(super) fn interrupted(&self, worker: &Snapshot, request: &TimedOut) {
        warn!(self.log, "a request timed out"; "kind" => "soft", "slot" => worker.slot.0, "pid" => worker.pid,
        "generation" => worker.generation.0, "peer" => &request.peer, "label" => text(&request.label),
        "elapsed_ms" => millis(request.elapsed),
        "kernel" => match request.parked {
            true => "waited for the client, beside other work".to_owned(),
            false => self.kernel(worker.id, Monotonic::from_nanos(request.started)),
        });
    }

    /// A worker has ended with a request in hand, by its own alarm or by anything else. `relative` is a live process with
    /// the same memory map: its template or another worker of its generation.
    pub(super) fn ended(&mut self, worker: &Snapshot, by_alarm: bool, relative: Option<i32>) {
        let stuck = self.stuck.iter().position(|id| *id == worker.id).map(|at| self.stuck.swap_remove(at));
        let Some(started) = worker.request_started else { return };
        let kind = match (stuck, by_alarm) {
            (Some(_), _) => Some("stuck"),
            (None, true) => Some("hard"),
            (None, false) => None,
        };
        let elapsed = Monotonic::now().since(started);
        let common = slog::o!("slot" => worker.slot.0, "pid" => worker.pid, "generation" => worker.generation.0,
            "peer" => worker.peer.as_ref().map(Peer::to_string), "label" => text(&worker.label), "elapsed_ms" => millis(elapsed));
        let log = match kind {
            Some(kind) => {
                let kernel = self.kernel(worker.id, Some(started));
                self.log.new(slog::o!("kind" => kind)).new(common).new(slog::o!("kernel" => kernel))
            }
            None => self.log.new(common).new(slog::o!("requests" => worker.requests)),
        };
        let words = if kind.is_some() { "a request timed out" } else { "a worker died in a request" };
        let modules = relative.and_then(|pid| Modules::of(pid).ok());
        self.samples.remove(&worker.id);
        self.writer.write(Trace { log, words, modules, addresses: worker.trace.clone() });
    }

    fn kernel(&self, id: WorkerId, started: Option<Monotonic>) -> String {
        let sample = self.samples.get(&id).filter(|sample| Some(sample.started) == started);
        match sample.and_then(|sample| sample.state.as_ref()) {
            Some(state) => state.to_string(),
            None => "not seen".to_owned(),
        }
    }
}

fn text(label: &[u8]) -> String {
    String::from_utf8_lossy(label).into_owned()
}
