//! A world of processes that hang, fail, die and answer late, and of an operator who asks for anything at any moment.

use std::collections::BTreeMap;
use std::time::Duration;

use super::super::{Action, Event, Exit, Load, Signal, StartFailure, WorkerLoad};
use super::MS;
use crate::machine::Random;
use crate::server::{Generation, WorkerId};

/// A living template.
struct Template {
    /// Which of all templates it is.
    life: u64,
    ready: bool,
    /// It will answer no fork.
    stuck: bool,
}

/// A worker's process, from the asking to its end.
struct Process {
    generation: Generation,
    /// Which template is to fork it.
    template: u64,
    born: bool,
    ready: bool,
    killed: bool,
    draining: bool,
    stubborn: bool,
    born_at: Duration,
    /// Requests that it answers in a second, and bytes by which it grows.
    pace: u64,
    growth: u64,
}

/// What will happen, if whom it happens to still lives.
enum Happening {
    TemplateReady(Generation, u64),
    TemplateFails(Generation, u64),
    TemplateDies(Generation, u64),
    Born(WorkerId),
    Ready(WorkerId),
    Refuses(WorkerId),
    /// A request that its alarm does not end.
    Sticks(WorkerId),
    Dies(WorkerId, Exit),
    NeverBorn(WorkerId, StartFailure),
    /// The queues have been looked at.
    Looked,
    /// From now on there are so many clients.
    Demand(u32),
    ClientWaits,
    /// A report that comes late, or twice.
    Echo(Event),
    Asked(Signal),
    /// Of the new master of this number.
    UpgradeReady(u64),
    UpgradeFails(u64),
}

/// Everything outside the supervisor, the shell included.
pub(super) struct World {
    random: Random,
    pub(super) hostile: bool,
    /// Requests in hand and clients that wait.
    pub(super) demand: u32,
    /// The master is to hear of the next client.
    awaited: bool,
    /// Until then nothing can be forked.
    short_until: Duration,
    /// Until then hardly any worker serves well.
    broken_until: Duration,
    happenings: BTreeMap<(Duration, u64), Happening>,
    count: u64,
    templates: BTreeMap<Generation, Template>,
    processes: BTreeMap<WorkerId, Process>,
    /// Which of all new masters lives and does not serve yet.
    new_master: Option<u64>,
    /// How many clients are in the queue behind the shut gate.
    queued: u32,
    /// One more completes its handshake then, or never.
    half_open: Option<(Duration, bool)>,
}

impl World {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            random: Random::new(seed),
            hostile: false,
            demand: 0,
            awaited: false,
            short_until: Duration::ZERO,
            broken_until: Duration::ZERO,
            happenings: BTreeMap::new(),
            count: 0,
            templates: BTreeMap::new(),
            processes: BTreeMap::new(),
            new_master: None,
            queued: 0,
            half_open: None,
        }
    }

    /// What is to be seen of the workers.
    pub(super) fn look(&self, now: Duration, memory: bool) -> Load {
        let look_at = |(&id, process): (&WorkerId, &Process)| {
            let lived = (now - process.born_at).as_secs();
            let resident = memory.then_some(process.growth * lived);
            WorkerLoad { id, requests: process.pace * lived, busy: false, parked: false, resident }
        };
        let ready = self.processes.iter().filter(|(_, process)| process.ready);
        let mut workers: Vec<_> = ready.map(look_at).collect();
        let busy = self.demand.min(workers.len() as u32);
        workers.iter_mut().take(busy as usize).for_each(|worker| worker.busy = true);
        Load { workers, queue: self.demand - busy }
    }

    /// Decides how many clients come and go, and when.
    pub(super) fn plan_demand(&mut self) {
        let mut at = Duration::ZERO;
        for _ in 0..self.random.below(20) {
            at += MS * self.random.below(10_000);
            let clients = if self.random.below(2) == 0 { 0 } else { self.random.below(10) };
            self.plan(at, Happening::Demand(clients));
        }
    }

    /// Decides what the operator will ask for.
    pub(super) fn plan_signals(&mut self) {
        for _ in 0..self.random.below(9) {
            let signal = match self.random.below(22) {
                20.. => Signal::Upgrade,
                0..=8 => Signal::Reload,
                9..=11 => Signal::More,
                12..=14 => Signal::Fewer,
                15..=17 => Signal::DrainWorkers,
                18 => Signal::Stop,
                _ => Signal::Quit,
            };
            let mut at = MS * self.random.below(20_000);
            // Signals come in bursts too.
            for _ in 0..=self.random.below(2) {
                self.plan(at, Happening::Asked(signal));
                at += MS * self.random.below(300);
            }
        }
    }

    /// From now on nothing new goes wrong.
    pub(super) fn heal(&mut self) {
        self.hostile = false;
        self.happenings.retain(|_, happening| !matches!(happening, Happening::Asked(_)));
    }

    pub(super) fn next_at(&self) -> Option<Duration> {
        self.happenings.keys().next().map(|&(at, _)| at)
    }

    pub(super) fn has_ready_template(&self, generation: Generation) -> bool {
        self.templates.get(&generation).is_some_and(|template| template.ready)
    }

    pub(super) fn templates(&self) -> Vec<Generation> {
        self.templates.keys().copied().collect()
    }

    pub(super) fn has_new_master(&self) -> bool {
        self.new_master.is_some()
    }

    pub(super) fn queued(&self) -> u32 {
        self.queued
    }

    pub(super) fn processes(&self) -> usize {
        self.processes.len()
    }

    /// Lets the next thing happen, and gives what the master sees of it.
    pub(super) fn let_happen(&mut self) -> Vec<Event> {
        let Some(((now, _), happening)) = self.happenings.pop_first() else {
            return Vec::new();
        };
        match happening {
            Happening::Looked => self.look_at_queues(now),
            Happening::TemplateReady(generation, life) => self.template_ready(now, generation, life),
            Happening::TemplateFails(generation, life) => {
                let words = "preload failed".to_owned();
                match self.is_life(generation, life) {
                    true => vec![Event::TemplateFailed { generation, words }],
                    false => Vec::new(),
                }
            }
            Happening::TemplateDies(generation, life) => {
                if !self.is_life(generation, life) {
                    return Vec::new();
                }
                self.end_template(now, generation);
                let words = "killed by signal 9".to_owned();
                vec![Event::TemplateDied { generation, words }]
            }
            Happening::Born(id) => self.born(now, id),
            Happening::Ready(id) => self.ready(now, id),
            Happening::Refuses(id) => self.refuses(now, id),
            Happening::Sticks(id) => vec![Event::WorkerStuck { id }],
            Happening::Dies(id, exit) => self.dies(now, id, exit),
            Happening::NeverBorn(id, cause) => match self.processes.remove(&id) {
                Some(_) => vec![Event::WorkerFailed { id, cause }],
                None => Vec::new(),
            },
            Happening::Demand(clients) => {
                self.demand = clients;
                if clients > 0 && std::mem::take(&mut self.awaited) { vec![Event::ClientWaits] } else { Vec::new() }
            }
            Happening::ClientWaits => vec![Event::ClientWaits],
            Happening::Echo(event) => vec![event],
            Happening::Asked(signal) => vec![Event::Signal(signal)],
            Happening::UpgradeReady(number) if self.new_master == Some(number) => {
                vec![Event::UpgradeReady { pid: 7 }]
            }
            Happening::UpgradeFails(number) if self.new_master == Some(number) => {
                self.new_master = None;
                vec![Event::UpgradeFailed { words: "exit code 3".to_owned() }]
            }
            Happening::UpgradeReady(_) | Happening::UpgradeFails(_) => Vec::new(),
        }
    }

    /// Does what the supervisor asks for.
    pub(super) fn carry_out(&mut self, now: Duration, action: &Action) {
        match *action {
            Action::StartTemplate { generation } => self.start_template(now, generation),
            Action::CloseTemplate { generation } => self.end_template(now, generation),
            Action::Fork { id, generation, .. } => self.fork(now, id, generation),
            Action::Drain { id } => {
                if let Some(process) = self.processes.get_mut(&id) {
                    process.draining = true;
                    if process.born && !process.stubborn {
                        self.plan_drained(now, id);
                    }
                }
            }
            Action::Kill { id, .. } => self.kill(now, id),
            Action::StartUpgrade => self.start_upgrade(now),
            Action::EndUpgrade => {
                let then = now + MS * (1 + self.random.below(50));
                self.plan(then, Happening::UpgradeFails(self.new_master.expect("there is a new master")));
            }
            Action::HandOver => self.new_master = None,
            Action::ShutGate => self.shut_gate(now),
            Action::LookAtQueues => {
                let then = now + MS * self.random.below(5);
                self.plan(then, Happening::Looked);
            }
            Action::AwaitClient if self.demand > 0 => self.plan(now + MS, Happening::ClientWaits),
            Action::AwaitClient => self.awaited = true,
            Action::Sample { .. }
            | Action::Retire { .. }
            | Action::CloseListeners
            | Action::Notice(_)
            | Action::Leave(_) => {}
        }
    }

    /// It fails more often than not, so that most lives go on after it; some hang.
    fn start_upgrade(&mut self, now: Duration) {
        self.count += 1;
        let number = self.count;
        self.new_master = Some(number);
        let then = now + MS * self.random.below(3_000);
        match self.random.below(10) {
            0..=3 => self.plan(then, Happening::UpgradeReady(number)),
            4..=7 => self.plan(then, Happening::UpgradeFails(number)),
            8 => {
                self.plan(then, Happening::UpgradeReady(number));
                self.plan(then, Happening::UpgradeReady(number));
            }
            _ => {}
        }
    }

    /// Workers that serve take clients from the queue between one look and the next; some are stuck for long.
    fn look_at_queues(&mut self, now: Duration) -> Vec<Event> {
        if let Some((_, completes)) = self.half_open.take_if(|(until, _)| *until <= now) {
            self.queued += u32::from(completes);
        }
        let event = Event::QueuesSeen { queued: self.queued > 0, half_open: self.half_open.is_some() };
        let serves = |process: &&Process| process.ready && !process.killed && !process.stubborn;
        let serving = self.processes.values().filter(serves).count() as u32;
        self.queued = self.queued.saturating_sub(self.random.below(1 + serving));
        vec![event]
    }

    fn shut_gate(&mut self, now: Duration) {
        self.queued = self.random.below(4) * 3;
        if self.random.below(3) == 0 {
            let completes = self.random.below(2) == 0;
            let longest = if completes { 1_400 } else { 10_000 };
            self.half_open = Some((now + MS * self.random.below(longest), completes));
        }
    }

    fn start_template(&mut self, now: Duration, generation: Generation) {
        self.count += 1;
        let life = self.count;
        let template = Template { life, ready: false, stuck: self.trouble(6) };
        self.templates.insert(generation, template);
        let then = now + MS * (1 + self.random.below(300));
        if self.trouble(15) {
            self.plan(then, Happening::TemplateFails(generation, life));
        } else if self.trouble(8) {
            self.plan(then, Happening::TemplateDies(generation, life));
        } else if !self.trouble(5) {
            self.plan(then, Happening::TemplateReady(generation, life));
        }
    }

    fn template_ready(&mut self, now: Duration, generation: Generation, life: u64) -> Vec<Event> {
        match self.templates.get_mut(&generation) {
            Some(template) if template.life == life => template.ready = true,
            _ => return Vec::new(),
        }
        if self.trouble(35) {
            let longest = if self.random.below(2) == 0 { 900 } else { 20_000 };
            let then = now + MS * self.random.below(longest);
            self.plan(then, Happening::TemplateDies(generation, life));
        }
        vec![Event::TemplateReady { generation }]
    }

    fn end_template(&mut self, now: Duration, generation: Generation) {
        let Some(ended) = self.templates.remove(&generation) else {
            return;
        };
        let unborn: Vec<_> = self
            .processes
            .iter()
            .filter(|(_, process)| process.template == ended.life && !process.born)
            .map(|(&id, _)| id)
            .collect();
        for id in unborn {
            let then = now + MS * self.random.below(5);
            let words = "the template is gone".to_owned();
            self.plan(then, Happening::NeverBorn(id, StartFailure::NoProcess { words }));
        }
    }

    fn fork(&mut self, now: Duration, id: WorkerId, generation: Generation) {
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

    fn born(&mut self, now: Duration, id: WorkerId) -> Vec<Event> {
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

    fn ready(&mut self, now: Duration, id: WorkerId) -> Vec<Event> {
        let Some(process) = self.processes.get_mut(&id) else {
            return Vec::new();
        };
        process.ready = true;
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

    fn refuses(&mut self, now: Duration, id: WorkerId) -> Vec<Event> {
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

    fn dies(&mut self, now: Duration, id: WorkerId, exit: Exit) -> Vec<Event> {
        let Some(process) = self.processes.remove(&id) else {
            return Vec::new();
        };
        // Without its parent nobody learns how it ended.
        let exit = match self.is_life(process.generation, process.template) {
            true => exit,
            false => Exit::Unknown,
        };
        self.plan_echo(now, id, exit);
        let served = process.ready && self.random.below(4) == 0;
        let words = None;
        let ended = Event::WorkerExited { id, exit, words };
        if served { vec![Event::WorkerServed { id }, ended] } else { vec![ended] }
    }

    fn kill(&mut self, now: Duration, id: WorkerId) {
        let slow = self.trouble(5);
        let Some(process) = self.processes.get_mut(&id) else {
            return;
        };
        process.killed = true;
        if process.born {
            let wait = if slow { 5000 } else { 20 };
            let then = now + MS * (1 + self.random.below(wait));
            self.plan(then, Happening::Dies(id, Exit::Signal(9)));
        }
    }

    fn plan_drained(&mut self, now: Duration, id: WorkerId) {
        let longest = if self.trouble(10) { 40_000 } else { 2_000 };
        let then = now + MS * (1 + self.random.below(longest));
        self.plan(then, Happening::Dies(id, Exit::Clean));
    }

    fn plan_echo(&mut self, now: Duration, id: WorkerId, exit: Exit) {
        let words = None;
        let echo = match self.random.below(12) {
            0 => Event::WorkerReady { id },
            1 => Event::WorkerForked { id, pid: 1 },
            2 => Event::WorkerExited { id, exit, words },
            3 => Event::WorkerFailed { id, cause: StartFailure::TimedOut },
            4 => Event::WorkerServed { id },
            _ => return,
        };
        let then = now + MS * self.random.below(2_000);
        self.plan(then, Happening::Echo(echo));
    }

    fn is_broken(&self, now: Duration) -> bool {
        now < self.broken_until
    }

    fn is_life(&self, generation: Generation, life: u64) -> bool {
        self.templates.get(&generation).is_some_and(|template| template.life == life)
    }

    /// Whether something goes wrong that does so in so many of a hundred cases.
    fn trouble(&mut self, percent: u32) -> bool {
        self.random.below(100) < percent && self.hostile
    }

    fn plan(&mut self, at: Duration, happening: Happening) {
        self.count += 1;
        self.happenings.insert((at, self.count), happening);
    }
}
