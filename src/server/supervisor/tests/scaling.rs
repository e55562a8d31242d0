//! How the number of workers follows the load.

use super::*;

const DYNAMIC: Scaling = Scaling::Dynamic { min: 2, max: 40, spare_min: 1, spare_max: 3 };
const ON_DEMAND: Scaling = Scaling::OnDemand { max: 8, idle_timeout: Duration::from_secs(10) };

/// A supervisor whose workers are ready as soon as they are forked, and gone as soon as they are to drain.
struct Fleet {
    bench: Bench,
    /// Requests in hand, and clients that wait, of which each worker takes one.
    clients: usize,
    awaited: u32,
}

impl Fleet {
    fn new(scaling: Scaling) -> Self {
        let mut bench = Bench::with(Policy { scaling, ..Policy::default() });
        bench.tell(Event::Boot);
        bench.template_ready(1);
        let mut fleet = Self { bench, clients: 0, awaited: 0 };
        fleet.obey();
        fleet
    }

    fn obey(&mut self) {
        loop {
            let asked = self.bench.asked();
            if asked.is_empty() {
                return;
            }
            for action in asked {
                match action {
                    Action::Fork { id, .. } => self.bench.ready(id.0),
                    Action::Drain { id } => self.bench.exits(id.0, Exit::Clean),
                    Action::Sample { .. } => self.look(),
                    Action::AwaitClient => self.awaited += 1,
                    Action::StartTemplate { generation } => self.bench.template_ready(generation.0),
                    _ => {}
                }
            }
        }
    }

    fn look(&mut self) {
        let ready: Vec<_> = self.bench.supervisor.workers().map(|(worker, _)| worker.id).collect();
        let look_at =
            |(index, &id)| WorkerLoad { id, requests: 0, busy: index < self.clients, parked: false, resident: None };
        let workers = ready.iter().enumerate().map(look_at).collect();
        let queue = self.clients.saturating_sub(ready.len()) as u32;
        self.bench.tell(Event::Sampled(Load { workers, queue }));
    }

    fn workers(&self) -> u32 {
        self.bench.supervisor.target()
    }

    /// The number of workers after each tenth of a second.
    fn run(&mut self, tenths: u32) -> Vec<u32> {
        let step = |_| {
            self.bench.wait(100 * MS);
            self.obey();
            self.workers()
        };
        (0..tenths).map(step).collect()
    }
}

#[test]
fn growth_doubles_up_to_the_limit_per_second() {
    let mut fleet = Fleet::new(DYNAMIC);
    assert_eq!(fleet.workers(), 2);
    fleet.clients = 1000;
    assert_eq!(fleet.run(12), [3, 5, 9, 17, 33, 34, 34, 34, 34, 34, 35, 37], "32 a second");
    assert_eq!(fleet.run(20).last(), Some(&40), "and never more than the most");
}

#[test]
fn growth_stops_as_soon_as_enough_are_idle() {
    let mut fleet = Fleet::new(DYNAMIC);
    fleet.clients = 6;
    let numbers = fleet.run(20);
    assert_eq!(numbers.last(), Some(&7), "six and one to spare: {numbers:?}");
    fleet.clients = 0;
    fleet.run(10);
    fleet.clients = 7;
    assert_eq!(fleet.run(1), [8], "the first step is a small one again");
}

#[test]
fn it_shrinks_by_one_at_a_time_and_slowly_to_the_least() {
    let mut fleet = Fleet::new(DYNAMIC);
    fleet.clients = 9;
    fleet.run(20);
    assert_eq!(fleet.workers(), 10);
    fleet.clients = 0;
    assert_eq!(fleet.run(49).last(), Some(&10), "not at once");
    assert_eq!(fleet.run(3).last(), Some(&9));
    assert_eq!(fleet.run(48).last(), Some(&9));
    assert_eq!(fleet.run(3).last(), Some(&8));
    fleet.run(2000);
    assert_eq!(fleet.workers(), 3, "three idle ones are not too many");
}

#[test]
fn bursts_do_not_make_it_flap() {
    let mut fleet = Fleet::new(DYNAMIC);
    let mut moves = 0;
    let mut before = fleet.workers();
    for _ in 0..60 {
        for clients in [12, 0] {
            fleet.clients = clients;
            for workers in fleet.run(10) {
                moves += u32::from(workers != before);
                before = workers;
            }
        }
    }
    assert_eq!(before, 13);
    assert!(moves <= 5, "{moves} moves in 60 bursts");
}

#[test]
fn a_busy_worker_is_never_sent_away() {
    let mut fleet = Fleet::new(DYNAMIC);
    fleet.clients = 5;
    fleet.run(20);
    assert_eq!(fleet.workers(), 6);
    let last = fleet.bench.supervisor.workers().last().expect("some").0.id;
    for _ in 0..300 {
        fleet.bench.wait(100 * MS);
        fleet.bench.take();
        let workers = fleet.bench.supervisor.workers().map(|(worker, _)| WorkerLoad {
            id: worker.id,
            requests: 0,
            busy: worker.id == last,
            parked: false,
            resident: None,
        });
        let workers = workers.collect();
        fleet.bench.tell(Event::Sampled(Load { workers, queue: 0 }));
        assert_eq!(fleet.bench.asked(), []);
    }
    fleet.clients = 0;
    assert_eq!(fleet.run(2).last(), Some(&5), "as soon as it is idle");
}

#[test]
fn on_demand_the_last_leaves_after_its_timeout_and_the_first_client_brings_one_back_at_once() {
    let mut fleet = Fleet::new(ON_DEMAND);
    assert_eq!((fleet.workers(), fleet.awaited), (1, 0), "the boot proves itself");
    fleet.run(95);
    assert_eq!(fleet.workers(), 1);
    fleet.run(10);
    assert_eq!((fleet.workers(), fleet.awaited), (0, 1));
    assert_eq!(fleet.bench.supervisor.next_timer(), None, "the server sleeps");
    fleet.bench.wait(3600 * SECOND);
    assert_eq!(fleet.bench.take(), []);
    fleet.bench.tell(Event::ClientWaits);
    let first = fleet.bench.supervisor.workers().next().expect("a worker").0.id;
    assert_eq!(fleet.bench.asked(), [fork(first.0, 0, 1)]);
    fleet.bench.ready(first.0);
    fleet.clients = 8;
    assert_eq!(fleet.run(4), [2, 4, 8, 8]);
    fleet.clients = 0;
    fleet.run(120);
    assert_eq!((fleet.workers(), fleet.awaited), (0, 2));
}

#[test]
fn on_demand_a_worker_with_open_connections_stays() {
    let mut fleet = Fleet::new(ON_DEMAND);
    let id = fleet.bench.supervisor.workers().next().expect("a worker").0.id;
    for _ in 0..200 {
        fleet.bench.wait(100 * MS);
        let workers = vec![WorkerLoad { id, requests: 1, busy: false, parked: true, resident: None }];
        fleet.bench.tell(Event::Sampled(Load { workers, queue: 0 }));
    }
    assert_eq!(fleet.workers(), 1);
}

#[test]
fn a_client_that_comes_while_there_is_no_template_is_served_when_there_is_one() {
    let mut fleet = Fleet::new(ON_DEMAND);
    fleet.run(120);
    fleet.bench.template_dies(1);
    assert_eq!(fleet.bench.asked(), [start(1)]);
    fleet.bench.tell(Event::ClientWaits);
    assert_eq!(fleet.bench.asked(), []);
    fleet.bench.template_ready(1);
    assert_eq!(fleet.bench.asked(), [fork(2, 0, 1)]);
}

#[test]
fn on_demand_a_reload_proves_itself_with_one_worker() {
    let mut fleet = Fleet::new(ON_DEMAND);
    fleet.run(120);
    fleet.bench.signal(Signal::Reload);
    assert_eq!(fleet.bench.asked(), [start(2)]);
    fleet.bench.template_ready(2);
    assert_eq!(fleet.bench.asked(), [fork(2, 0, 2)]);
    fleet.bench.refuses(2, "no");
    assert!(reload_failed(&fleet.bench.take()).is_some());
    assert_eq!(fleet.bench.supervisor.generation(), Generation(1));
}

#[test]
fn on_demand_a_boot_waits_for_its_template_and_its_first_worker() {
    let mut bench = Bench::with(Policy { scaling: ON_DEMAND, ..Policy::default() });
    bench.tell(Event::Boot);
    assert_eq!(bench.supervisor.phase(), Phase::Booting);
    bench.template_ready(1);
    bench.take();
    bench.refuses(1, "no");
    bench.exits(1, Exit::Code(1));
    let failed = boot_failed("the start of the worker of slot 0 failed: no");
    assert_eq!(bench.asked(), [Action::CloseListeners, kill(1, KillReason::BootFailed), close(1), failed]);
}

#[test]
fn more_and_fewer_move_nothing_where_the_load_decides() {
    let mut fleet = Fleet::new(DYNAMIC);
    fleet.bench.take();
    for signal in [Signal::More, Signal::Fewer] {
        fleet.bench.signal(signal);
        assert_eq!(fleet.bench.take(), [Action::Notice(Notice::Ignored { signal })]);
    }
}

#[test]
fn a_slot_that_waits_for_its_delay_is_no_spare_worker() {
    let scaling = Scaling::Dynamic { min: 2, max: 40, spare_min: 1, spare_max: 3 };
    let mut bench = Bench::with(Policy { scaling, budget: None, ..Policy::default() });
    bench.tell(Event::Boot);
    bench.template_ready(1);
    bench.ready(1);
    bench.ready(2);
    // The second slot's next worker has to wait for long.
    for id in 2..12 {
        bench.exits(id, Exit::Signal(11));
        while !bench.take().contains(&fork(id + 1, 1, 1)) {
            bench.wait(SECOND);
        }
        bench.forked(id + 1);
    }
    bench.exits(12, Exit::Signal(11));
    bench.take();
    let busy = |id| WorkerLoad { id: WorkerId(id), requests: 0, busy: true, parked: false, resident: None };
    bench.tell(Event::Sampled(Load { workers: vec![busy(1)], queue: 1 }));
    assert_eq!(bench.asked(), [fork(13, 2, 1)]);
    bench.tell(Event::Sampled(Load { workers: vec![busy(1)], queue: 1 }));
    assert_eq!(bench.asked(), [], "the one under way is");
}
