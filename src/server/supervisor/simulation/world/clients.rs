//! Clients who come and go, and those who wait behind the shut gate.

use std::time::Duration;

use super::workers::Process;
use super::{Happening, World};
use crate::server::supervisor::simulation::MS;
use crate::server::supervisor::{Event, Load, WorkerLoad};

impl World {
    /// Decides how many clients come and go, and when.
    pub(in crate::server::supervisor::simulation) fn plan_demand(&mut self) {
        let mut at = Duration::ZERO;
        for _ in 0..self.random.below(20) {
            at += MS * self.random.below(10_000);
            let clients = if self.random.below(2) == 0 { 0 } else { self.random.below(10) };
            self.plan(at, Happening::Demand(clients));
        }
    }

    /// What is to be seen of the workers. Some accept nobody: clients wait beside them, and they are idle.
    pub(in crate::server::supervisor::simulation) fn look(&self, now: Duration, memory: bool) -> Load {
        let mut queue = self.demand;
        let mut workers = Vec::new();
        for (&id, process) in self.processes.iter().filter(|(_, process)| process.ready) {
            let lived = (now - process.born_at).as_secs();
            let busy = queue > 0 && !process.stubborn;
            queue -= u32::from(busy);
            let resident = memory.then_some(process.growth * lived);
            workers.push(WorkerLoad { id, requests: process.pace * lived, busy, parked: process.parks, resident });
        }
        Load { workers, queue }
    }

    pub(in crate::server::supervisor::simulation) fn queued(&self) -> u32 {
        self.queued
    }

    pub(super) fn shut_gate(&mut self, now: Duration) {
        self.queued = self.random.below(4) * 3;
        if self.random.below(3) == 0 {
            let completes = self.random.below(2) == 0;
            let longest = if completes { 1_400 } else { 10_000 };
            self.half_open = Some((now + MS * self.random.below(longest), completes));
        }
    }

    /// Workers that serve take clients from the queue between one look and the next; some are stuck for long.
    pub(super) fn look_at_queues(&mut self, now: Duration) -> Vec<Event> {
        if let Some((_, completes)) = self.half_open.take_if(|(until, _)| *until <= now) {
            self.queued += u32::from(completes);
        }
        let event = Event::QueuesSeen { queued: self.queued > 0, half_open: self.half_open.is_some() };
        let serves = |process: &&Process| process.ready && !process.killed && !process.stubborn;
        let serving = self.processes.values().filter(serves).count() as u32;
        self.queued = self.queued.saturating_sub(self.random.below(1 + serving));
        vec![event]
    }
}
