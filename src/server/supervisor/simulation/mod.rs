//! Random lives of a server: the supervisor in a simulated world, with every invariant checked after every step.
//!
//! A seed decides everything: the policy's numbers, what each process does, what the operator asks for, how late the
//! shell ticks and when the clock jumps. A life has three acts. In the first the world is hostile. Then it heals, and
//! the server must come to rest with every slot served by one generation. Last it is told to stop, and must leave
//! with no process behind.
//!
//! A failing seed is printed; `HATCHERY_SEED=<seed>` replays it alone, with everything that was said.
//! `HATCHERY_SCHEDULES=<n>` says how many lives to run.

mod agreement;
mod auditor;
mod consequences;
mod health;
mod state;
mod tickets;
mod world;

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use self::auditor::Auditor;
use self::world::World;
use super::{Action, Budget, Event, Limits, Phase, Policy, Scaling, Signal, Supervisor};
use crate::machine::Random;

const SCHEDULES: u64 = 6_000;
const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

/// Time enough for every timeout and the longest delay, one after the other.
const REST: Duration = Duration::from_secs(1200);

#[test]
fn random_lives_of_a_server_keep_every_invariant() {
    if let Some(seed) = number_from("HATCHERY_SEED") {
        Life::new(seed, true).live();
        return;
    }
    let schedules = number_from("HATCHERY_SCHEDULES").unwrap_or(SCHEDULES);
    let next = AtomicU64::new(0);
    let seen = Mutex::new(BTreeMap::new());
    let run = || {
        let mut mine = BTreeMap::new();
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= schedules {
                break;
            }
            let _named = NameOnPanic(seed);
            for (what, times) in Life::new(seed, false).live() {
                *mine.entry(what).or_insert(0) += times;
            }
        }
        let mut seen = seen.lock().expect("no life panics with the lock");
        for (what, times) in mine {
            *seen.entry(what).or_insert(0) += times;
        }
    };
    let threads = thread::available_parallelism().map_or(1, |count| count.get());
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(run);
        }
    });
    let seen = seen.into_inner().expect("no life panicked");
    println!("{schedules} lives: {seen:#?}");
    assert_the_lives_were_eventful(schedules, &seen);
}

/// A simulation in which nothing happens proves nothing.
fn assert_the_lives_were_eventful(schedules: u64, seen: &BTreeMap<String, u64>) {
    let awaited = [
        "Notice(Serving",
        "Notice(TemplateLost",
        "Notice(TemplateDelayed",
        "Notice(WorkerFailed",
        "Notice(SlotDelayed",
        "Notice(Short",
        "Notice(Relieved",
        "Notice(Degraded",
        "Notice(ProbeDelayed",
        "Notice(Recovered",
        "Notice(WornOut",
        "Notice(Scaled",
        "AwaitClient",
        "Notice(Reloaded",
        "Notice(ReloadFailed",
        "Notice(ReloadCalledOff",
        "Notice(ReloadQueued",
        "TellReload(Reloaded",
        "TellReload(RolledBack",
        "TellReload(CalledOff",
        "Notice(Paused",
        "Notice(Resumed",
        "Notice(Unready",
        "Notice(GateShut",
        "Notice(QueuesServed",
        "Notice(QueuesAbandoned",
        "Kill(NotReady",
        "Kill(NotDrained",
        "Kill(HungUp",
        "Kill(Stuck",
        "Kill(TemplateLost",
        "Kill(BootFailed",
        "Kill(AtOnce",
        "Leave(Stopped",
        "Leave(BootFailed",
        "Leave(Replaced",
        "Notice(UpgradeFailed",
        "Notice(UpgradeCalledOff",
        "Notice(Ignored",
    ];
    for what in awaited {
        let times = seen.get(what).copied().unwrap_or(0);
        assert!(times >= schedules / 200, "{what} was seen {times} times");
    }
}

fn number_from(variable: &str) -> Option<u64> {
    let value = std::env::var(variable).ok()?;
    Some(value.parse().expect("a number"))
}

/// Says which seed it was when a life breaks.
struct NameOnPanic(u64);

impl Drop for NameOnPanic {
    fn drop(&mut self) {
        if thread::panicking() {
            let seed = self.0;
            eprintln!("seed {seed} broke; HATCHERY_SEED={seed} replays it");
        }
    }
}

/// One server, its world, and who watches it.
struct Life {
    random: Random,
    now: Duration,
    supervisor: Supervisor,
    world: World,
    auditor: Auditor,
    seen: BTreeMap<String, u64>,
    aloud: bool,
}

impl Life {
    fn new(seed: u64, aloud: bool) -> Self {
        let mut random = Random::new(seed);
        let policy = Policy {
            workers: 1 + random.below(5),
            max_workers: 6,
            max_surge: 1 + random.below(2),
            budget: match random.below(4) {
                0 => None,
                _ => Some(Budget { restarts: 1 + random.below(8), window: SECOND * (1 + random.below(60)) }),
            },
            scaling: match random.below(4) {
                0 => {
                    Scaling::Dynamic { min: 1 + random.below(3), max: 3 + random.below(4), spare_min: 1, spare_max: 2 }
                }
                1 => Scaling::OnDemand { max: 1 + random.below(6), idle_timeout: SECOND * (1 + random.below(10)) },
                _ => Scaling::Static,
            },
            scale_every: MS * (100 + random.below(900)),
            growth_per_second: 1 + random.below(4),
            shrink_after: SECOND * (1 + random.below(5)),
            limits: Limits {
                requests: (random.below(3) == 0).then(|| 100 + u64::from(random.below(1000))),
                age: (random.below(3) == 0).then(|| SECOND * (5 + random.below(60))),
                memory: (random.below(3) == 0).then(|| 100 + u64::from(random.below(1000))),
            },
            drain_delay: MS * random.below(3) * 700,
            upgrade_timeout: MS * (500 + random.below(4000)),
            ..Policy::default()
        };
        Self {
            now: Duration::ZERO,
            supervisor: Supervisor::new(policy.clone(), random.next()),
            world: World::new(random.next()),
            auditor: Auditor::new(policy),
            random,
            seen: BTreeMap::new(),
            aloud,
        }
    }

    /// Lives it to its end, and gives what was seen how often.
    fn live(mut self) -> BTreeMap<String, u64> {
        // Most servers survive their boot.
        let hostile_boot = self.random.below(5) == 0;
        self.world.hostile = hostile_boot;
        self.world.plan_signals();
        self.world.plan_demand();
        self.tell(Event::Boot);
        if !hostile_boot {
            self.run_until(|life| life.supervisor.phase() != Phase::Booting, REST);
            self.world.hostile = true;
        }
        let horizon = SECOND * (5 + self.random.below(60));
        self.run_until(|_| false, horizon);

        self.world.heal();
        self.tell(Event::Signal(Signal::More));
        // What is recycled comes to rest only for moments.
        self.run_until(Self::is_at_rest, REST);
        if self.supervisor.phase() != Phase::Left {
            self.auditor.assert_at_rest(&self.supervisor, &self.world);
            self.tell(Event::Signal(self.last_signal()));
            self.run_until(|_| false, REST);
        }
        assert_eq!(self.supervisor.phase(), Phase::Left, "a stop must end");
        assert_eq!(self.supervisor.next_timer(), None);
        self.seen
    }

    fn is_at_rest(&self) -> bool {
        let has_left = self.supervisor.phase() == Phase::Left && self.supervisor.next_timer().is_none();
        has_left || self.auditor.is_at_rest(&self.supervisor, &self.world)
    }

    fn last_signal(&self) -> Signal {
        match self.supervisor.target() % 2 {
            0 => Signal::Stop,
            _ => Signal::Quit,
        }
    }

    /// Lets happen what happens, until `done` or for `time`.
    fn run_until(&mut self, done: impl Fn(&Self) -> bool, time: Duration) {
        let end = self.now + time;
        let mut steps = 0;
        loop {
            if done(self) {
                return;
            }
            let waiting = self.world.next_at().unwrap_or(Duration::MAX);
            let tick = self.supervisor.next_timer().unwrap_or(Duration::MAX);
            if waiting.min(tick) > end {
                break;
            }
            steps += 1;
            assert!(steps < 20_000, "it spins");
            if self.world.hostile && self.random.below(300) == 0 {
                self.now += SECOND * self.random.below(7200);
            }
            let tick = tick.saturating_add(MS * self.random.below(20)).max(self.now);
            // Reports that already wait are handed over before the tick.
            if waiting <= tick {
                self.now = self.now.max(waiting);
                for event in self.world.let_happen() {
                    self.tell(event);
                }
            } else {
                self.now = tick;
                self.tell(Event::Tick);
            }
        }
        self.now = self.now.max(end);
    }

    fn tell(&mut self, event: Event) {
        self.auditor.hear(self.now, &event);
        if self.aloud {
            println!("{:?} {event:?}", self.now);
        }
        self.supervisor.handle(self.now, event.clone());
        let mut actions = Vec::new();
        while let Some(action) = self.supervisor.poll_action() {
            if self.aloud {
                println!("    {action:?}");
            }
            actions.push(action);
        }
        self.auditor.read_notices(&actions);
        for action in &actions {
            self.auditor.check_action(action, &self.supervisor, &self.world);
            self.world.carry_out(self.now, action);
            self.note(action);
        }
        self.auditor.check_state(&actions, &self.supervisor, &self.world);
        if event == Event::Tick {
            // A clock that goes back is taken for one that stands still.
            self.supervisor.handle(self.now.saturating_sub(SECOND), Event::Tick);
            assert_eq!(self.supervisor.poll_action(), None);
        }
        for action in actions {
            if let Action::Sample { memory } = action {
                let load = self.world.look(self.now, memory);
                self.tell(Event::Sampled(load));
            }
        }
    }

    /// Counts notices, reasons to kill and outcomes by their names.
    fn note(&mut self, action: &Action) {
        let what = match action {
            Action::Kill { why, .. } => format!("Kill({why:?})"),
            Action::TellReload { end, .. } => format!("TellReload({:?}", end.outcome),
            Action::Notice(_) | Action::Leave(_) | Action::AwaitClient => format!("{action:?}"),
            _ => return,
        };
        let name = what.split([' ', ')']).next().unwrap_or_default();
        *self.seen.entry(name.to_owned()).or_insert(0) += 1;
    }
}
