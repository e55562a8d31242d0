//! The supervisor's promises, one by one.

mod boot;
mod failing;
mod recycling;
mod reload;
mod scaling;
mod serving;
mod stop;
mod upgrade;

use std::time::Duration;

use super::*;
use crate::server::{Slot, WorkerId};

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

/// A supervisor, its clock, and everything it asked for since it was last looked at.
struct Bench {
    supervisor: Supervisor,
    now: Duration,
    actions: Vec<Action>,
}

impl Bench {
    fn new(workers: u32) -> Self {
        Self::with(Policy { workers, max_workers: 4, ..Policy::default() })
    }

    fn with(policy: Policy) -> Self {
        Self { supervisor: Supervisor::new(policy, 1), now: Duration::ZERO, actions: Vec::new() }
    }

    /// Booted, with all workers ready for a minute; worker ids are 1 to `workers`, in the order of slots.
    fn serving(workers: u32) -> Self {
        let mut bench = Self::new(workers);
        bench.tell(Event::Boot);
        bench.template_ready(1);
        for id in 1..=u64::from(workers) {
            bench.ready(id);
        }
        bench.wait(60 * SECOND);
        bench.take();
        bench
    }

    fn tell(&mut self, event: Event) {
        self.supervisor.handle(self.now, event);
        while let Some(action) = self.supervisor.poll_action() {
            self.actions.push(action);
        }
    }

    /// Lets time pass, with a tick whenever one is due.
    fn wait(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(at) = self.supervisor.next_timer().filter(|&at| at <= end) {
            self.now = at;
            self.tell(Event::Tick);
        }
        self.now = end;
    }

    fn signal(&mut self, signal: Signal) {
        self.tell(Event::Signal(signal));
    }

    fn template_ready(&mut self, generation: u32) {
        let generation = Generation(generation);
        self.tell(Event::TemplateReady { generation });
    }

    fn template_fails(&mut self, generation: u32, words: &str) {
        self.tell(Event::TemplateFailed { generation: Generation(generation), words: words.into() });
    }

    fn template_dies(&mut self, generation: u32) {
        self.tell(Event::TemplateDied { generation: Generation(generation), words: "killed by signal 9".into() });
    }

    fn forked(&mut self, id: u64) {
        self.tell(Event::WorkerForked { id: WorkerId(id), pid: 1000 + id as i32 });
    }

    fn ready(&mut self, id: u64) {
        self.forked(id);
        self.tell(Event::WorkerReady { id: WorkerId(id) });
    }

    fn refuses(&mut self, id: u64, words: &str) {
        self.forked(id);
        self.tell(Event::WorkerFailed { id: WorkerId(id), cause: StartFailure::Refused { words: words.into() } });
    }

    fn fork_refused(&mut self, id: u64) {
        self.tell(Event::WorkerFailed { id: WorkerId(id), cause: StartFailure::Resource { words: "EAGAIN".into() } });
    }

    fn served(&mut self, id: u64) {
        self.tell(Event::WorkerServed { id: WorkerId(id) });
    }

    fn exits(&mut self, id: u64, exit: Exit) {
        self.tell(Event::WorkerExited { id: WorkerId(id), exit, words: None });
    }

    /// Told to stop; the gate is shut.
    fn stop(&mut self) {
        self.signal(Signal::Stop);
        self.wait(Duration::ZERO);
    }

    /// Two looks at the queues find nobody.
    fn nobody_waits(&mut self) {
        self.tell(queues_seen(false, false));
        self.wait(10 * MS);
        self.tell(queues_seen(false, false));
    }

    fn take(&mut self) -> Vec<Action> {
        std::mem::take(&mut self.actions)
    }

    /// What was asked for, without the notices.
    fn asked(&mut self) -> Vec<Action> {
        let mut actions = self.take();
        actions.retain(|action| !matches!(action, Action::Notice(_)));
        actions
    }

    fn state(&self, id: u64) -> Option<WorkerState> {
        let mut workers = self.supervisor.workers();
        workers.find(|(worker, _)| worker.id == WorkerId(id)).map(|(_, state)| state)
    }
}

fn queues_seen(queued: bool, half_open: bool) -> Event {
    Event::QueuesSeen { queued, half_open }
}

fn start(generation: u32) -> Action {
    Action::StartTemplate { generation: Generation(generation) }
}

fn close(generation: u32) -> Action {
    Action::CloseTemplate { generation: Generation(generation) }
}

fn retire(generation: u32) -> Action {
    Action::Retire { generation: Generation(generation) }
}

fn fork(id: u64, slot: u32, generation: u32) -> Action {
    Action::Fork { id: WorkerId(id), slot: Slot(slot), generation: Generation(generation) }
}

fn drain(id: u64) -> Action {
    Action::Drain { id: WorkerId(id) }
}

fn kill(id: u64, why: KillReason) -> Action {
    let id = WorkerId(id);
    Action::Kill { id, why }
}

fn boot_failed(words: &str) -> Action {
    Action::Leave(Outcome::BootFailed { words: words.into() })
}

fn reload_called_off(actions: &[Action]) -> Option<&str> {
    actions.iter().find_map(|action| match action {
        Action::Notice(Notice::ReloadCalledOff { words, .. }) => Some(words.as_str()),
        _ => None,
    })
}

fn reload_failed(actions: &[Action]) -> Option<&str> {
    actions.iter().find_map(|action| match action {
        Action::Notice(Notice::ReloadFailed { words, .. }) => Some(words.as_str()),
        _ => None,
    })
}
