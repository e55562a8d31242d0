//! A world of processes that hang, fail, die and answer late, and of an operator who asks for anything at any moment.

mod clients;
mod operator;
mod templates;
mod workers;

use std::collections::BTreeMap;
use std::time::Duration;

use self::templates::Template;
use self::workers::Process;
use super::super::{Action, Event, Exit, ReloadTicket, Signal, StartFailure};
use super::MS;
use crate::machine::Random;
use crate::server::{Generation, WorkerId};

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
    /// It closes its socket; it may end soon, or never.
    HangsUp(WorkerId),
    Dies(WorkerId, Exit),
    /// It has ended before, and now somebody has reaped it.
    Reaped(WorkerId),
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

    /// From now on nothing new goes wrong.
    pub(super) fn heal(&mut self) {
        self.hostile = false;
        self.happenings.retain(|_, happening| !matches!(happening, Happening::Asked(_)));
    }

    pub(super) fn next_at(&self) -> Option<Duration> {
        self.happenings.keys().next().map(|&(at, _)| at)
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
            Happening::HangsUp(id) => self.hangs_up(now, id),
            Happening::Dies(id, exit) => self.dies(now, id, exit),
            Happening::Reaped(id) => vec![Event::WorkerExited { id, exit: Exit::Unknown, words: None }],
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
            Happening::Asked(Signal::Reload) if self.random.below(2) == 0 => {
                self.count += 1;
                vec![Event::ReloadAsked { ticket: ReloadTicket(self.count) }]
            }
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
                    self.may_hang_up(now, id);
                }
            }
            Action::Kill { id, .. } => self.kill(now, id),
            Action::StartUpgrade => self.start_upgrade(now),
            Action::EndUpgrade => {
                let then = now + MS * (1 + self.random.below(2_000));
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
            | Action::TellReload { .. }
            | Action::Notice(_)
            | Action::Leave(_) => {}
        }
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
