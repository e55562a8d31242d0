//! Workers that have reached a limit: followed first, never together, and kept where every worker is needed.

use super::*;
use crate::server::supervisor::table::Health;

/// Serving with these limits for a moment.
fn bench(workers: u32, limits: Limits) -> Bench {
    let mut bench = Bench::with(Policy { workers, limits, ..Policy::default() });
    bench.tell(Event::Boot);
    bench.template_ready(1);
    (1..=u64::from(workers)).for_each(|id| bench.ready(id));
    bench.take();
    bench
}

fn by_requests(workers: u32) -> Bench {
    bench(workers, Limits { requests: Some(1000), ..Limits::default() })
}

/// Answers the look at the workers with so many requests for each.
fn sampled(bench: &mut Bench, requests: &[(u64, u64)]) {
    let sample =
        |&(id, requests)| WorkerLoad { id: WorkerId(id), requests, busy: false, parked: false, resident: None };
    bench.tell(Event::Sampled(Load { workers: requests.iter().map(sample).collect(), queue: 0 }));
}

fn worn(actions: &[Action]) -> usize {
    actions.iter().filter(|action| matches!(action, Action::Notice(Notice::WornOut { .. }))).count()
}

#[test]
fn the_successor_of_a_worn_worker_is_ready_before_it_drains() {
    let mut bench = by_requests(2);
    bench.wait(SECOND);
    assert_eq!(bench.asked(), [Action::Sample { memory: false }]);
    sampled(&mut bench, &[(1, 1000), (2, 799)]);
    assert_eq!(bench.asked(), [fork(3, 0, 1)]);
    assert_eq!(bench.state(1), Some(WorkerState::Ready));
    bench.ready(3);
    assert_eq!(bench.asked(), [drain(1)]);
    bench.exits(1, Exit::Clean);
    assert_eq!(bench.asked(), []);
}

#[test]
fn workers_are_looked_at_only_where_a_limit_needs_it() {
    let mut unlimited = Bench::serving(2);
    assert_eq!(unlimited.supervisor.next_timer(), None);
    unlimited.wait(3600 * SECOND);
    assert_eq!(unlimited.asked(), []);
    let mut aging = bench(2, Limits { age: Some(3600 * SECOND), ..Limits::default() });
    aging.wait(2879 * SECOND);
    assert_eq!(aging.asked(), [], "age needs no look");
    let mut large = bench(2, Limits { memory: Some(1 << 30), ..Limits::default() });
    large.wait(10 * SECOND);
    assert_eq!(large.asked(), vec![Action::Sample { memory: true }; 10], "once a second");
}

#[test]
fn those_that_are_worn_out_together_are_followed_one_by_one() {
    let mut bench = by_requests(3);
    sampled(&mut bench, &[(1, 5000), (2, 5000), (3, 5000)]);
    let actions = bench.take();
    assert_eq!(worn(&actions), 3);
    assert!(actions.contains(&fork(4, 0, 1)) && !actions.contains(&fork(5, 1, 1)));
    bench.ready(4);
    assert_eq!(bench.asked(), [drain(1), fork(5, 1, 1)]);
    bench.ready(5);
    assert_eq!(bench.asked(), [drain(2), fork(6, 2, 1)]);
    bench.ready(6);
    assert_eq!(bench.asked(), [drain(3)]);
}

#[test]
fn limits_differ_from_worker_to_worker_and_none_is_above_the_policys() {
    let mut random = Random::new(7);
    let limits = Limits { requests: Some(1000), age: Some(1000 * SECOND), memory: Some(1 << 30) };
    let own: Vec<Limits> = (0..100).map(|_| limits.for_one(&mut random)).collect();
    for own in &own {
        assert!((800..=1000).contains(&own.requests.expect("a limit")));
        assert!((800 * SECOND..=1000 * SECOND).contains(&own.age.expect("a limit")));
        assert!(((1 << 30) / 5 * 4..=1 << 30).contains(&own.memory.expect("a limit")));
    }
    let different: std::collections::BTreeSet<_> = own.iter().map(|own| own.age).collect();
    assert!(different.len() > 90);
    let smallest = Limits { requests: Some(1), age: Some(MS), memory: Some(1) };
    assert_eq!(smallest.for_one(&mut random), smallest);
}

#[test]
fn workers_that_began_together_do_not_reach_their_age_together() {
    let mut bench = bench(4, Limits { age: Some(1000 * SECOND), ..Limits::default() });
    bench.wait(799 * SECOND);
    assert_eq!(bench.asked(), []);
    let mut forks = Vec::new();
    for _ in 0..201 {
        bench.wait(SECOND);
        let mut asked = bench.asked();
        while let Some(action) = asked.pop() {
            match action {
                Action::Fork { id, .. } => {
                    forks.push(bench.now);
                    bench.ready(id.0);
                }
                Action::Drain { id } => bench.exits(id.0, Exit::Clean),
                other => panic!("{other:?}"),
            }
            asked.extend(bench.asked());
        }
    }
    assert_eq!(forks.len(), 4);
    assert!(forks.windows(2).all(|pair| pair[1] > pair[0]), "{forks:?}");
}

#[test]
fn nobody_is_recycled_in_a_roll_and_what_was_under_way_is_taken_back() {
    let mut bench = by_requests(2);
    sampled(&mut bench, &[(1, 1000)]);
    assert_eq!(bench.asked(), [fork(3, 0, 1)]);
    bench.signal(Signal::Reload);
    bench.template_ready(2);
    assert_eq!(bench.asked(), [start(2), drain(3), fork(4, 0, 2)]);
    bench.exits(3, Exit::Clean);
    bench.ready(4);
    assert_eq!(bench.asked(), [drain(1), fork(5, 1, 2)]);
    sampled(&mut bench, &[(4, 1000)]);
    assert_eq!(bench.asked(), [], "not now");
    bench.ready(5);
    assert_eq!(bench.asked(), [drain(2), retire(1), fork(6, 0, 2)], "but as soon as the roll is over");
}

#[test]
fn a_successor_that_fails_leaves_the_worn_worker_serving() {
    let mut bench = by_requests(1);
    bench.wait(10 * SECOND);
    sampled(&mut bench, &[(1, 1000)]);
    bench.take();
    bench.refuses(2, "no");
    bench.exits(2, Exit::Code(1));
    assert_eq!(bench.asked(), []);
    assert_eq!(bench.state(1), Some(WorkerState::Ready));
    bench.wait(125 * MS);
    assert_eq!(bench.asked(), [fork(3, 0, 1)]);
}

#[test]
fn nobody_is_recycled_while_the_fleet_is_degraded() {
    let mut bench = Bench::with(Policy {
        workers: 2,
        limits: Limits { age: Some(100 * SECOND), ..Limits::default() },
        budget: Some(Budget { restarts: 1, window: SECOND }),
        ..Policy::default()
    });
    bench.tell(Event::Boot);
    bench.template_ready(1);
    (1..=2).for_each(|id| bench.ready(id));
    bench.exits(2, Exit::Code(1));
    bench.take();
    assert_eq!(bench.supervisor.health(), Health::Degraded);
    for _ in 0..200 {
        bench.wait(SECOND);
        for action in bench.asked() {
            let Action::Fork { id, slot, .. } = action else { panic!("{action:?}") };
            assert_eq!(slot, Slot(1));
            bench.refuses(id.0, "no");
            bench.exits(id.0, Exit::Code(1));
        }
    }
    assert_eq!(bench.state(1), Some(WorkerState::Ready));
    bench.wait(40 * SECOND);
    let Some(Action::Fork { id, .. }) = bench.asked().last().cloned() else { panic!("no try") };
    bench.ready(id.0);
    bench.wait(SECOND);
    assert_eq!(bench.asked(), [], "it recovers first");
    bench.wait(SECOND);
    assert_eq!(bench.asked(), [fork(id.0 + 1, 0, 1)]);
}

#[test]
fn small_limits_are_spread_as_large_ones_are() {
    let mut random = Random::new(7);
    let limits = Limits { requests: Some(50), ..Limits::default() };
    let own: Vec<_> = (0..200).filter_map(|_| limits.for_one(&mut random).requests).collect();
    assert_eq!((own.iter().min(), own.iter().max()), (Some(&40), Some(&50)));
    let of_one = Limits { requests: Some(1), ..Limits::default() }.for_one(&mut random);
    assert_eq!(of_one.requests, Some(1), "never none at all");
}
