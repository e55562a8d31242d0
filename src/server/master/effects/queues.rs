//! Workers sent to queues that would else be left alone.

use std::io;
use std::ops::Bound;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use slog::info;

use super::{Effects, clone_fd};
use crate::server::WorkerId;
use crate::server::listener::slots;
use crate::server::master::queues::Order;
use crate::server::master::worker::Worker;
use crate::server::message::ToWorker;
use crate::server::scoreboard::WorkerState as State;
use crate::sys::clock::Monotonic;
use crate::sys::stream::is_readable;

/// So many workers are sent at a time to look at a queue, and so often at most.
const LOOKERS: usize = 16;
const LOOK_EVERY: Duration = Duration::from_millis(20);

impl Effects {
    /// When to call [`look_after_queues`](Self::look_after_queues) again at the latest, beside after every event.
    pub(in crate::server::master) fn next_stand_in(&self) -> Option<Monotonic> {
        self.queues.next_due()
    }

    /// Sees to it that the queues of slots without a ready worker are served.
    pub(in crate::server::master) fn look_after_queues(&mut self) {
        let now = Monotonic::now();
        while let Some(order) = self.queues.poll(now) {
            let (worker, slot) = match order {
                Order::StandIn { worker, slot } | Order::StandDown { worker, slot } => (worker, slot),
            };
            if let Err(why) = self.send_order(order) {
                info!(self.log, "a worker cannot stand in"; "worker" => worker.0, "for_slot" => slot.0, "why" => why);
                self.queues.cannot_help(worker, now);
            }
        }
    }

    /// Lets somebody look at the queues in place of a worker that is dead. A client that came a moment before that may
    /// have woken it and nobody else, and would wait for the next client, or for a successor that may be long in coming.
    /// One that is idle will do: it sleeps. Where all are busy, several are asked, and the first to be free goes.
    pub(super) fn look_in_place_of(&self, dead: WorkerId) {
        let Some(worker) = self.workers.get(&dead).filter(|worker| worker.ready) else {
            return;
        };
        let mut shared = self.estate.listeners().iter().filter(|listener| listener.slot().is_none());
        if !shared.any(|listener| is_readable(listener.as_fd())) {
            return;
        }
        let others = self
            .workers
            .iter()
            .filter(|(id, other)| **id != dead && other.ready && other.generation == worker.generation);
        let is_idle = |other: &Worker| self.board.read(other.record).is_some_and(|record| record.state == State::Idle);
        let idle = others.clone().find(|(_, other)| is_idle(other));
        if idle.is_some_and(|(_, idle)| idle.order(&ToWorker::Look, &[])) {
            return;
        }
        for (_, busy) in others.take(LOOKERS) {
            busy.order(&ToWorker::Look, &[]);
        }
    }

    /// Lets some other workers look at the queue for which this one, woken for it, has no room. They run the same loop, so
    /// they are of the same generation; and not so many at a time that a full server would spend its time on it.
    pub(super) fn send_others_to_look(&mut self, full: WorkerId) {
        let now = Monotonic::now();
        let Some(generation) = self.workers.get(&full).map(|worker| worker.generation) else {
            return;
        };
        if self.looked.is_some_and(|(_, at)| now.since(at) < LOOK_EVERY) {
            return;
        }
        let last = self.looked.map_or(full, |(last, _)| last);
        let after = self.workers.range((Bound::Excluded(last), Bound::Unbounded));
        let others = after.chain(self.workers.range(..=last)).filter(|(id, _)| **id != full);
        let others = others.filter(|(_, worker)| worker.ready && worker.generation == generation);
        let mut last = last;
        for (&id, worker) in others.take(LOOKERS) {
            // One that does not listen is busy enough.
            worker.order(&ToWorker::Look, &[]);
            last = id;
        }
        self.looked = Some((last, now));
    }

    fn send_order(&self, order: Order) -> Result<(), String> {
        let (worker, message, fds) = match order {
            Order::StandIn { worker, slot } => {
                let listeners: Vec<_> = slots::of_slot(self.estate.listeners(), slot).collect();
                let fds: io::Result<Vec<OwnedFd>> = listeners.iter().copied().map(clone_fd).collect();
                let addresses = listeners.iter().map(|listener| listener.address().to_string()).collect();
                (worker, ToWorker::StandIn { slot, addresses }, fds.map_err(|error| error.to_string())?)
            }
            Order::StandDown { worker, slot } => (worker, ToWorker::StandDown { slot }, Vec::new()),
        };
        let sent = self.workers.get(&worker).is_some_and(|worker| worker.order(&message, &fds));
        if sent { Ok(()) } else { Err("it does not listen".to_owned()) }
    }
}
