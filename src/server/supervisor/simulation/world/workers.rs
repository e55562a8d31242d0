//! Workers that start, serve, get stuck and die.

use std::time::Duration;

use super::{Happening, World};
use crate::server::supervisor::simulation::MS;
use crate::server::supervisor::{Event, Exit, StartFailure};
use crate::server::{Generation, WorkerId};

/// A worker's process, from the asking to its end.
pub(super) struct Process {
    pub(super) generation: Generation,
    /// Which template is to fork it.
    pub(super) template: u64,
    pub(super) born: bool,
    pub(super) ready: bool,
    pub(super) killed: bool,
    pub(super) draining: bool,
    pub(super) stubborn: bool,
    pub(super) born_at: Duration,
    /// It keeps connections.
    pub(super) parks: bool,
    /// Requests that it answers in a second, and bytes by which it grows.
    pub(super) pace: u64,
    pub(super) growth: u64,
}

impl World {
    pub(in crate::server::supervisor::simulation) fn processes(&self) -> usize {
        self.processes.len()
    }

    pub(super) fn fork(&mut self, now: Duration, id: WorkerId, generation: Generation) {
        let Some(template) = self.templates.get(&generation) else {
            return;
        };
        let (life, stuck) = (template.life, template.stuck);
        let process = Process {
            generation,
            template: life,
            born: false,
            ready: false,
            killed: false,
            draining: false,
            stubborn: self.trouble(15),
            born_at: now,
            parks: self.random.below(6) == 0,
            pace: u64::from(self.random.below(50)),
            growth: u64::from(self.random.below(50)),
        };
        self.processes.insert(id, process);
        let then = now + MS * (1 + self.random.below(5));
        if stuck {
            return;
        }
        if self.trouble(2) {
            self.short_until = now + MS * self.random.below(10_000);
        }
        if self.hostile && now < self.short_until {
            let words = "EAGAIN".to_owned();
            self.plan(then, Happening::NeverBorn(id, StartFailure::Resource { words }));
        } else if self.trouble(4) {
            let words = "a second thread".to_owned();
            self.plan(then, Happening::NeverBorn(id, StartFailure::NoProcess { words }));
        } else {
            self.plan(then, Happening::Born(id));
        }
    }

    pub(super) fn born(&mut self, now: Duration, id: WorkerId) -> Vec<Event> {
        let Some(process) = self.processes.get_mut(&id) else {
            return Vec::new();
        };
        let template = self.templates.get(&process.generation);
        if template.is_none_or(|template| template.life != process.template) {
            return Vec::new();
        }
        process.born = true;
        let (killed, drained) = (process.killed, process.draining && !process.stubborn);
        let pid = 1000 + id.0 as i32;
        let forked = Event::WorkerForked { id, pid };
        let soon = now + MS * (1 + self.random.below(500));
        self.may_hang_up(now, id);
        if self.trouble(2) {
            self.plan(soon, Happening::Sticks(id));
        }
        if self.trouble(3) {
            self.broken_until = now + MS * self.random.below(60_000);
        }
        if killed {
            self.plan(now + MS, Happening::Dies(id, Exit::Signal(9)));
        } else if drained {
            self.plan_drained(now, id);
        } else if self.trouble(8) || (self.is_broken(now) && self.trouble(60)) {
            self.plan(soon, Happening::Refuses(id));
        } else if self.trouble(8) {
            self.plan(soon, Happening::Dies(id, Exit::Signal(11)));
        } else if self.trouble(6) {
            // It hangs.
        } else if self.random.below(10) == 0 {
            let mut events = self.ready(now, id);
            events.push(forked);
            return events;
        } else {
            self.plan(soon, Happening::Ready(id));
        }
        vec![forked]
    }

    pub(super) fn ready(&mut self, now: Duration, id: WorkerId) -> Vec<Event> {
        let Some(process) = self.processes.get_mut(&id) else {
            return Vec::new();
        };
        process.ready = true;
        self.may_hang_up(now, id);
        if self.trouble(10) {
            let later = now + MS * self.random.below(20_000);
            self.plan(later, Happening::Sticks(id));
        }
        if self.trouble(10) || (self.is_broken(now) && self.trouble(60)) {
            let young = now + MS * self.random.below(900);
            self.plan(young, Happening::Dies(id, Exit::Code(3)));
        } else if self.trouble(30) {
            let later = now + MS * (1_100 + self.random.below(40_000));
            self.plan(later, Happening::Dies(id, Exit::Signal(11)));
        }
        vec![Event::WorkerReady { id }]
    }

    pub(super) fn refuses(&mut self, now: Duration, id: WorkerId) -> Vec<Event> {
        if !self.processes.contains_key(&id) {
            return Vec::new();
        }
        if !self.trouble(20) {
            let then = now + MS * self.random.below(50);
            self.plan(then, Happening::Dies(id, Exit::Code(1)));
        }
        let words = "no".to_owned();
        let cause = StartFailure::Refused { words };
        vec![Event::WorkerFailed { id, cause }]
    }

    pub(super) fn dies(&mut self, now: Duration, id: WorkerId, exit: Exit) -> Vec<Event> {
        let Some(process) = self.processes.remove(&id) else {
            return Vec::new();
        };
        // Without its parent nobody learns how it ended.
        let exit = match self.is_life(process.generation, process.template) {
            true => exit,
            false => Exit::Unknown,
        };
        let served = process.ready && self.random.below(4) == 0;
        let ended = if exit == Exit::Unknown && self.random.below(2) == 0 {
            // Whoever has it now is slow to reap it.
            let then = now + MS * self.random.below(1_000);
            self.plan(then, Happening::Reaped(id));
            Event::WorkerGone { id }
        } else {
            self.plan_echo(now, id, exit);
            Event::WorkerExited { id, exit, words: None }
        };
        if served { vec![Event::WorkerServed { id }, ended] } else { vec![ended] }
    }

    pub(super) fn kill(&mut self, now: Duration, id: WorkerId) {
        let slow = self.trouble(5);
        let Some(process) = self.processes.get_mut(&id) else {
            return;
        };
        process.killed = true;
        let is_born = process.born;
        if is_born {
            // What was told once may be told twice.
            self.plan(now + MS, Happening::Echo(Event::WorkerForked { id, pid: 1000 + id.0 as i32 }));
            let wait = if slow { 5000 } else { 20 };
            let then = now + MS * (1 + self.random.below(wait));
            self.plan(then, Happening::Dies(id, Exit::Signal(9)));
        }
    }

    pub(super) fn plan_drained(&mut self, now: Duration, id: WorkerId) {
        let longest = if self.trouble(10) { 40_000 } else { 2_000 };
        let then = now + MS * (1 + self.random.below(longest));
        self.plan(then, Happening::Dies(id, Exit::Clean));
    }

    /// A process closes its socket when it ends, which its parent may be late to tell, or never comes to tell.
    pub(super) fn may_hang_up(&mut self, now: Duration, id: WorkerId) {
        if self.trouble(4) {
            let then = now + MS * self.random.below(3_000);
            self.plan(then, Happening::HangsUp(id));
        }
    }

    pub(super) fn hangs_up(&mut self, now: Duration, id: WorkerId) -> Vec<Event> {
        let Some(process) = self.processes.get(&id).filter(|process| process.born) else {
            return Vec::new();
        };
        let clean = process.draining;
        if self.random.below(3) > 0 {
            let then = now + MS * self.random.below(2_500);
            let exit = if clean { Exit::Clean } else { Exit::Signal(11) };
            self.plan(then, Happening::Dies(id, exit));
        }
        vec![Event::WorkerHungUp { id }]
    }

    fn plan_echo(&mut self, now: Duration, id: WorkerId, exit: Exit) {
        let words = None;
        let echo = match self.random.below(14) {
            0 => Event::WorkerReady { id },
            1 => Event::WorkerForked { id, pid: 1 },
            2 => Event::WorkerExited { id, exit, words },
            3 => Event::WorkerFailed { id, cause: StartFailure::TimedOut },
            4 => Event::WorkerServed { id },
            5 => Event::WorkerHungUp { id },
            6 => Event::WorkerStuck { id },
            _ => return,
        };
        let then = now + MS * self.random.below(2_000);
        self.plan(then, Happening::Echo(echo));
    }

    fn is_broken(&self, now: Duration) -> bool {
        now < self.broken_until
    }
}
