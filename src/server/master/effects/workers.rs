//! Workers: forked, heard, asked to drain, killed, and seen to end.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use nix::libc;
use slog::{debug, info, o, warn};

use super::words::{as_told, why_no_process, words_of_failure};
use super::{Effects, clone_fd};
use crate::proc::{self, Exit, Failure, How, Process};
use crate::server::hosting::{encode, worker_entry};
use crate::server::listener::slots;
use crate::server::master::event::Event;
use crate::server::master::offers::Offer;
use crate::server::master::worker::Worker;
use crate::server::message::FromWorker;
use crate::server::scoreboard::Snapshot;
use crate::server::supervisor::{self, KillReason, StartFailure};
use crate::server::worker_config::WorkerBirth;
use crate::server::{Generation, Slot, WorkerId};
use crate::sys::clock::Monotonic;

impl Effects {
    pub(in crate::server::master) fn fork(&mut self, id: WorkerId, slot: Slot, generation: Generation) {
        match self.try_fork(id, slot, generation) {
            Ok(worker) => drop(self.workers.insert(id, worker)),
            Err(failure) => self.tell(Event::WorkerEnded { id, end: Err(failure) }),
        }
    }

    fn try_fork(&mut self, id: WorkerId, slot: Slot, generation: Generation) -> Result<Worker, StartFailure> {
        let no_process = |words: &str| StartFailure::NoProcess { words: words.to_owned() };
        let (_, template) = self.templates.get_mut(&generation).ok_or_else(|| no_process("the template is gone"))?;
        let template = template.as_mut().ok_or_else(|| no_process("the template was not started"))?;
        let Some(&record) = self.free_records.last() else {
            return Err(StartFailure::Resource { words: "every record of the scoreboard is taken".to_owned() });
        };
        let lacking = |words: String| StartFailure::Resource { words };
        let queue = self.estate.queue_for(slot).map_err(|error| lacking(error.to_string()))?;
        let own = queue.map(|queue| slots::of_slot(self.estate.listeners(), queue).map(clone_fd).collect());
        let own: Vec<OwnedFd> = own.unwrap_or_else(|| Ok(Vec::new())).map_err(|error| lacking(error.to_string()))?;
        let birth = WorkerBirth { slot, generation, id, record };
        let birth = encode(&birth).map_err(|error| no_process(&proc::words_of(error.as_ref())))?;
        let entry = worker_entry(self.config.service);
        let running = template.fork().and_then(|process| {
            let process = own.into_iter().try_fold(process, Process::send_fd)?;
            process.send_arg(birth)?.run(&entry)
        });
        let running = running.map_err(|error| why_no_process(&error))?;
        self.free_records.pop();
        if let Some(queue) = queue {
            self.queues.opened(queue, Monotonic::now());
        }
        let events = self.events.clone();
        running.on_birth(move |pid| drop(events.send(Event::WorkerBorn { id, pid })));
        let events = self.events.clone();
        running.on_gone(move || drop(events.send(Event::WorkerGone { id })));
        let events = self.events.clone();
        running.on_exit(move |end| {
            let end = end.map_err(|error| why_no_process(&error));
            let _ = events.send(Event::WorkerEnded { id, end });
        });
        Ok(Worker::new(running, record, slot, generation, queue))
    }

    pub(in crate::server::master) fn drain(&mut self, id: WorkerId) {
        self.queues.leaves(id, Monotonic::now());
        if let Some(Err(why)) = self.workers.get_mut(&id).map(Worker::drain) {
            // It is gone, and its end is on the way; or it is stuck, and its deadline is.
            info!(self.log, "cannot ask a worker to drain"; "worker" => id.0, "why" => why);
        }
    }

    pub(in crate::server::master) fn kill(&mut self, id: WorkerId, why: KillReason) {
        if let Some(worker) = self.workers.get_mut(&id) {
            let log =
                self.log.new(o!("slot" => worker.slot.0, "pid" => worker.pid, "generation" => worker.generation.0));
            warn!(log, "killing a worker"; "why" => %why);
            if let Err(why) = worker.kill() {
                warn!(log, "cannot kill a worker"; "why" => why);
            }
        }
    }

    pub(super) fn worker_born(&mut self, id: WorkerId, pid: i32) -> Option<supervisor::Event> {
        let worker = self.workers.get_mut(&id)?;
        if let Err(why) = worker.born(id, pid, &self.events) {
            // Its end is on the way: with its socket it loses what keeps it waiting.
            warn!(self.log, "cannot talk to a worker"; "worker" => id.0, "pid" => pid, "why" => why);
        }
        Some(supervisor::Event::WorkerForked { id, pid })
    }

    /// Nobody is served by it any more; what becomes of its record and of its last request is seen to at its end.
    pub(super) fn worker_gone(&mut self, id: WorkerId) -> Vec<supervisor::Event> {
        let Some(worker) = self.workers.get(&id) else {
            return Vec::new();
        };
        let last = self.board.read(worker.record).filter(|last| last.id == id);
        let mut told = self.take_leave_of(id);
        told.extend(last.filter(|last| last.requests > 0).map(|_| supervisor::Event::WorkerServed { id }));
        told.push(supervisor::Event::WorkerGone { id });
        told
    }

    /// A worker has ended: its own words come before that, and others take over what it would have served.
    fn take_leave_of(&mut self, id: WorkerId) -> Vec<supervisor::Event> {
        let messages = self.workers.get(&id).map(Worker::last_messages).unwrap_or_default();
        let told = messages.iter().filter_map(|message| self.said(id, message)).collect();
        self.queues.leaves(id, Monotonic::now());
        self.look_in_place_of(id);
        if let Some(offers) = &self.offers {
            offers.forget(id);
        }
        told
    }

    /// Hands an offer to whoever wants it. Unwanted, it is closed, which its worker hears.
    pub(super) fn pass_on(&mut self, id: WorkerId, name: String, socket: OwnedFd) {
        let Some(Worker { slot, generation, pid: Some(pid), running, .. }) = self.workers.get(&id) else { return };
        let (slot, generation, pid) = (*slot, *generation, *pid);
        debug!(self.log, "a worker offers something";
            "offer" => &name, "slot" => slot.0, "pid" => pid, "generation" => generation.0, "wanted" => self.offers.is_some());
        if let Some(offers) = &self.offers {
            offers.push(Offer { id, name, slot, generation, pid, socket, running: Arc::clone(running) });
        }
    }

    pub(super) fn refuse_offer(&self, id: WorkerId, why: &str) {
        let pid = self.workers.get(&id).and_then(|worker| worker.pid);
        warn!(self.log, "an offer of a worker is refused"; "worker" => id.0, "pid" => pid, "why" => why);
    }

    pub(super) fn worker_ended(&mut self, id: WorkerId, end: Result<Exit, StartFailure>) -> Vec<supervisor::Event> {
        let mut told = self.take_leave_of(id);
        let mut served = false;
        if let Some(worker) = self.workers.remove(&id) {
            served = worker.ready;
            if let Some(last) = self.board.read(worker.record).filter(|last| last.id == id) {
                self.tell_of_last_request(&last, &end);
                told.extend((last.requests > 0).then_some(supervisor::Event::WorkerServed { id }));
            }
            self.free_records.push(worker.record);
        }
        match end {
            Ok(exit) => {
                let words = exit.failure.as_ref().map(words_of_failure);
                if let (false, Some(words), Some(Failure::Returned { .. })) = (served, &words, &exit.failure) {
                    let cause = StartFailure::Refused { words: words.clone() };
                    told.push(supervisor::Event::WorkerFailed { id, cause });
                }
                told.push(supervisor::Event::WorkerExited { id, exit: as_told(&exit), words });
            }
            Err(cause) => told.push(supervisor::Event::WorkerFailed { id, cause }),
        }
        told
    }

    pub(super) fn said(&mut self, id: WorkerId, message: &FromWorker) -> Option<supervisor::Event> {
        let worker = self.workers.get_mut(&id)?;
        match message {
            FromWorker::Ready => {
                worker.ready = true;
                if let Some(queue) = worker.queue {
                    self.queues.ready(id, queue);
                }
                Some(supervisor::Event::WorkerReady { id })
            }
            FromWorker::CanStandIn => {
                self.queues.can_help(id);
                None
            }
            FromWorker::CannotStandIn => {
                self.queues.cannot_help(id, Monotonic::now());
                None
            }
            FromWorker::Full => {
                self.send_others_to_look(id);
                None
            }
            FromWorker::Leaving => {
                self.queues.leaves(id, Monotonic::now());
                None
            }
            FromWorker::TimedOut(request) => {
                let record = self.board.read(worker.record).filter(|record| record.id == id)?;
                self.slow.interrupted(&record, request);
                None
            }
            // It is an event of its own, with its socket; this one is a dead worker's.
            FromWorker::Offer { .. } => None,
        }
    }

    /// What the dead worker was at, if it died in the middle of a request.
    fn tell_of_last_request(&mut self, last: &Snapshot, end: &Result<Exit, StartFailure>) {
        let by_alarm = matches!(end, Ok(exit) if matches!(exit.how, How::Signal { signal: libc::SIGALRM, .. }));
        let relative = match self.templates.get(&last.generation) {
            Some((_, Some(template))) => template.pid().ok(),
            _ => None,
        };
        self.slow.ended(last, by_alarm, relative);
    }
}
