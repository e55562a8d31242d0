//! Random lives of a pool: the core in a simulated world, with every promise checked after every step.
//!
//! A seed decides everything: the rules, who calls and how patiently, what each process does and when it dies. A life has
//! three acts. In the first the world is hostile. Then it heals, and every call must end and the staff come to rest. Last
//! the pool is closed, and must leave with no process behind. A failing seed is printed; `HATCHERY_SEED=<seed>` replays it alone,
//! with everything that was said.

mod demands;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::num::{NonZeroU32, NonZeroU64, NonZeroUsize};
use std::time::Duration;

use super::*;
use crate::machine::Backoff;

const LIVES: u64 = 600;
const STEPS: u32 = 300;
const MS: Duration = Duration::from_millis(1);

#[test]
fn random_lives_of_a_pool_keep_every_promise() {
    let seed = |name| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    if let Some(seed) = seed("HATCHERY_SEED") {
        World::new(seed, true).live();
        return;
    }
    let mut seen: BTreeMap<&'static str, u64> = BTreeMap::new();
    for seed in 0..seed("HATCHERY_SCHEDULES").unwrap_or(LIVES) {
        let _named = NameOnPanic(seed);
        for (what, times) in World::new(seed, false).live() {
            *seen.entry(what).or_default() += times;
        }
    }
    // A simulation in which something never happens proves nothing about it.
    for what in [
        "answered",
        "lost",
        "retried",
        "unsent",
        "timed out",
        "overdue",
        "no worker",
        "full",
        "given up",
        "impatient",
        "late start",
        "failed start",
        "late leaving",
        "idle left",
        "worn by calls",
        "worn by age",
        "worn by memory",
        "door",
        "successor",
        "recovered",
    ] {
        assert!(seen.get(what).is_some_and(|times| *times >= 20), "{what}: {:?} of {seen:?}", seen.get(what));
    }
}

struct NameOnPanic(u64);

impl Drop for NameOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("replay it with HATCHERY_SEED={}", self.0);
        }
    }
}

/// A process of the simulated world.
#[derive(Debug, Default)]
struct Process {
    ready: bool,
    dismissed: bool,
    killed: bool,
    /// The conversation has ended, and the core has heard so or not.
    broken: bool,
    in_hand: Vec<CallNumber>,
    handed: u64,
}

#[derive(Debug)]
struct SimCall {
    terms: Terms,
    /// Waits for a worker.
    waiting: bool,
    with: Option<(WorkerNumber, Duration)>,
    /// It was with a worker, or about to be.
    back: bool,
    /// Its caller has heard how it ended, or waits no longer.
    ended: bool,
    begun: u32,
    called_at: Duration,
}

struct World {
    core: Core,
    rules: Rules,
    random: Random,
    now: Duration,
    said: bool,
    calls: HashMap<CallNumber, SimCall>,
    open: BTreeSet<CallNumber>,
    last_call: CallNumber,
    crew: BTreeMap<WorkerNumber, Process>,
    last_failure: Option<Duration>,
    closed: bool,
    finished: bool,
    seen: BTreeMap<&'static str, u64>,
}

impl World {
    fn new(seed: u64, said: bool) -> World {
        let mut random = Random::new(seed);
        let max = 1 + random.below(5) as usize;
        let some = |random: &mut Random, value: u64| (random.below(3) == 0).then_some(value);
        let calls = some(&mut random, 7).and_then(NonZeroU64::new);
        let age = some(&mut random, 1).map(|_| 900 * MS);
        let memory = some(&mut random, 1000).and_then(NonZeroU64::new);
        let rules = Rules {
            min: random.below(max as u32 + 1) as usize,
            max: NonZeroUsize::new(max).expect("at least 1"),
            idle: random.below(max as u32 + 1) as usize,
            load: NonZeroUsize::new(1 + random.below(4) as usize).expect("at least 1"),
            start: random.below(3) * 40 * MS,
            stop: random.below(3) * 200 * MS,
            start_within: 500 * MS,
            leave_within: 300 * MS,
            attempts: NonZeroU32::new(1 + random.below(4)).expect("at least 1"),
            backoff: Backoff::default(),
            queue: NonZeroUsize::new(1 + random.below(12) as usize).expect("at least 1"),
            queued_bytes: 400,
            calls,
            age,
            memory,
        };
        let mut world = World {
            core: Core::new(rules.clone(), seed),
            rules,
            random,
            now: Duration::ZERO,
            said,
            calls: HashMap::new(),
            open: BTreeSet::new(),
            last_call: 0,
            crew: BTreeMap::new(),
            last_failure: None,
            closed: false,
            finished: false,
            seen: BTreeMap::new(),
        };
        world.carry_out();
        world
    }

    fn live(mut self) -> BTreeMap<&'static str, u64> {
        for _ in 0..STEPS {
            self.hostile_step();
            self.audit();
        }
        self.heal(2_000);
        self.come_to_rest();
        self.closed = true;
        self.hear(Event::Closed);
        self.heal(500);
        assert!(self.finished, "it does not finish: {:?}", self.core);
        assert!(self.crew.is_empty() && self.open.is_empty());
        self.seen
    }

    fn saw(&mut self, what: &'static str) {
        *self.seen.entry(what).or_default() += 1;
    }

    fn hear(&mut self, event: Event) {
        if self.said {
            eprintln!("{:?} {event:?}", self.now);
        }
        self.core.handle(self.now, event);
        self.carry_out();
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
        // What comes of it may be due at once.
        for _ in 0..10 {
            self.core.handle_timeouts(self.now);
            self.carry_out();
            if self.core.poll_timeout().is_none_or(|at| at > self.now) {
                return;
            }
        }
        panic!("its timers run out without end: {:?}", self.core);
    }

    fn pick(&mut self, among: &[u64]) -> Option<u64> {
        (!among.is_empty()).then(|| among[self.random.below(among.len() as u32) as usize])
    }

    fn those(&self, which: impl Fn(&Process) -> bool) -> Vec<WorkerNumber> {
        self.crew.iter().filter(|(_, process)| which(process)).map(|(&number, _)| number).collect()
    }

    fn hostile_step(&mut self) {
        match self.random.below(20) {
            0..=6 => self.call(),
            7 => {
                let open: Vec<_> = self.open.iter().copied().collect();
                if let Some(call) = self.pick(&open) {
                    self.give_up(call);
                }
            }
            8..=11 => self.answer_one(),
            12 => {
                let starting = self.those(|process| !process.ready && !process.broken);
                if let Some(worker) = self.pick(&starting) {
                    self.break_off(worker);
                }
            }
            13 | 14 => self.make_one_ready(),
            15 => {
                let ready = self.those(|process| process.ready && !process.broken);
                if let Some(worker) = self.pick(&ready) {
                    self.break_off(worker);
                }
            }
            16 => {
                let gone = self.those(|process| process.broken || process.killed || process.dismissed);
                if let Some(worker) = self.pick(&gone) {
                    self.exit(worker);
                }
            }
            _ => {
                let time = [1, 5, 30, 120, 700][self.random.below(5) as usize] * MS;
                self.pass(time);
            }
        }
    }

    fn call(&mut self) {
        let sometimes = |random: &mut Random, time: u32| (random.below(4) == 0).then(|| time * MS);
        let terms = Terms {
            bytes: u64::from(self.random.below(100)),
            patience: sometimes(&mut self.random, 250),
            deadline: sometimes(&mut self.random, 150),
            repeats: self.random.below(3),
        };
        let waits = self.random.below(2) == 0;
        match self.core.refusal() {
            Some(Refusal::Full) if waits => self.saw("door"),
            None => {}
            Some(why) => {
                self.saw(if why == Refusal::Full { "full" } else { "no worker" });
                self.core.handle_refused(self.now);
                return self.carry_out();
            }
        }
        self.last_call += 1;
        let call = self.last_call;
        let sim =
            SimCall { terms, waiting: true, with: None, back: false, ended: false, begun: 0, called_at: self.now };
        self.calls.insert(call, sim);
        self.open.insert(call);
        self.hear(Event::Called { call, terms });
    }

    fn give_up(&mut self, call: CallNumber) {
        let sim = self.calls.get_mut(&call).expect("it was made");
        sim.ended = true;
        sim.waiting = false;
        self.open.remove(&call);
        if self.random.below(2) == 0 {
            self.saw("given up");
            self.hear(Event::GivenUp { call });
        } else {
            self.saw("impatient");
            self.hear(Event::Impatient { call });
        }
    }

    fn answer_one(&mut self) {
        let busy = self.those(|process| !process.in_hand.is_empty() && !process.broken && !process.killed);
        let Some(worker) = self.pick(&busy) else { return };
        let among = self.crew[&worker].in_hand.clone();
        let Some(call) = self.pick(&among) else { return };
        self.crew.get_mut(&worker).expect("it lives").in_hand.retain(|other| *other != call);
        let sim = self.calls.get_mut(&call).expect("it was made");
        sim.with = None;
        if !std::mem::replace(&mut sim.ended, true) {
            self.open.remove(&call);
            self.saw("answered");
        }
        let well = self.random.below(5) > 0;
        self.hear(Event::Answered { call, well });
    }

    fn make_one_ready(&mut self) {
        let starting = self.those(|process| !process.ready && !process.broken && !process.killed);
        if let Some(worker) = self.pick(&starting) {
            self.crew.get_mut(&worker).expect("it lives").ready = true;
            if self.core.is_stuck() {
                self.saw("recovered");
            }
            self.hear(Event::Ready { worker });
        }
    }

    /// The conversation ends, in any way.
    fn break_off(&mut self, worker: WorkerNumber) {
        let process = self.crew.get_mut(&worker).expect("it lives");
        process.broken = true;
        let failed = !process.ready && !process.dismissed && !process.killed;
        let in_hand = std::mem::take(&mut process.in_hand);
        if failed {
            self.last_failure = Some(self.now);
            self.saw("failed start");
        }
        let unsent_from = self.random.below(in_hand.len() as u32 + 2) as usize;
        for (index, call) in in_hand.into_iter().enumerate() {
            let may_have_run = index < unsent_from;
            let sim = self.calls.get_mut(&call).expect("it was made");
            sim.with = None;
            sim.waiting = !sim.ended && sim.terms.repeats > 0;
            sim.back = true;
            self.hear(Event::Lost { call, may_have_run });
        }
        self.hear(Event::Broken { worker });
    }

    fn exit(&mut self, worker: WorkerNumber) {
        let process = self.crew.get(&worker).expect("it lives");
        if !process.broken {
            self.break_off(worker);
        }
        self.crew.remove(&worker);
        self.hear(Event::Exited { worker });
    }

    /// All processes do what they should, and nobody calls.
    fn heal(&mut self, steps: u32) {
        for _ in 0..steps {
            for worker in self.those(|_| true) {
                let Some(process) = self.crew.get(&worker) else { continue };
                if process.killed || process.broken || process.dismissed {
                    self.exit(worker);
                } else if !process.ready {
                    self.make_one_ready();
                }
            }
            self.answer_one();
            self.audit();
            self.pass(20 * MS);
            let calm = self.open.is_empty() && self.crew.values().all(|process| process.in_hand.is_empty());
            if self.finished || (calm && !self.closed) {
                return;
            }
        }
    }

    fn come_to_rest(&mut self) {
        assert!(self.open.is_empty(), "calls have not ended: {:?} {:?}", self.open, self.core);
        let least = self.rules.min.max(self.rules.idle);
        // Those who grow old come and go: there is a moment at which all are there, and nobody else.
        let rests = (0..2_500).any(|_| {
            self.heal(1);
            self.core.count(Phase::Serving) == least && self.crew.len() == least
        });
        assert!(rests, "{least} are to be there: {:?}", self.core);
    }
}
