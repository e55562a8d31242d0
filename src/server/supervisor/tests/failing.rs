//! Crash loops: three causes told apart, a budget, and the way back.

use super::*;
use crate::machine::Backoff;
use crate::server::supervisor::table::Health;

fn notices(actions: Vec<Action>) -> Vec<Notice> {
    let notice = |action| if let Action::Notice(notice) = action { Some(notice) } else { None };
    actions.into_iter().filter_map(notice).collect()
}

/// Serving with this budget, and the worker of each slot just lost after a good life.
fn bereft(workers: u32, restarts: u32) -> Bench {
    let mut bench =
        Bench::with(Policy { workers, budget: Some(Budget { restarts, window: 60 * SECOND }), ..Policy::default() });
    bench.tell(Event::Boot);
    bench.template_ready(1);
    (1..=u64::from(workers)).for_each(|id| bench.ready(id));
    bench.wait(60 * SECOND);
    (1..=u64::from(workers)).for_each(|id| bench.exits(id, Exit::Signal(9)));
    bench
}

#[test]
fn each_cause_is_counted_for_itself() {
    let mut bench = bereft(1, 100);
    bench.refuses(2, "no");
    bench.exits(2, Exit::Code(1));
    bench.wait(SECOND);
    bench.ready(3);
    bench.exits(3, Exit::Code(1));
    bench.wait(SECOND);
    bench.forked(4);
    bench.exits(4, Exit::Signal(11));
    let delayed = |notice| match notice {
        Notice::SlotDelayed { failures, .. } => Some((failures.never_ready, failures.died_young)),
        _ => None,
    };
    let counted: Vec<_> = notices(bench.take()).into_iter().filter_map(delayed).collect();
    assert_eq!(counted, [(1, 0), (1, 1), (2, 1)]);
}

#[test]
fn a_short_life_with_an_answered_request_is_a_good_one() {
    let mut bench = bereft(1, 3);
    bench.take();
    for id in 2..100 {
        bench.ready(id);
        bench.served(id);
        bench.exits(id, Exit::Signal(11));
        assert_eq!(bench.asked(), [fork(id + 1, 0, 1)], "at once");
    }
}

#[test]
fn a_shortage_is_no_slots_fault_and_all_wait_for_one_delay() {
    let mut bench = bereft(3, 2);
    bench.take();
    for id in [4, 5, 6] {
        bench.fork_refused(id);
    }
    let notices = notices(bench.take());
    let short: Vec<_> = notices.iter().filter(|notice| matches!(notice, Notice::Short { .. })).collect();
    assert!(matches!(short[..], [Notice::Short { tries: 1, .. }]), "{notices:?}");
    assert!(!notices.iter().any(|notice| matches!(notice, Notice::SlotDelayed { .. })));
    assert_eq!(bench.supervisor.health(), Health::Short);
    bench.wait(250 * MS);
    assert_eq!(bench.asked(), [fork(7, 0, 1)], "one is tried");
    bench.fork_refused(7);
    bench.wait(299 * MS);
    assert_eq!(bench.asked(), [], "the next waits longer");
    bench.wait(201 * MS);
    assert_eq!(bench.asked(), [fork(8, 1, 1)], "and sits elsewhere");
    bench.forked(8);
    assert_eq!(bench.asked(), [fork(9, 0, 1), fork(10, 2, 1)], "it exists, so there is room");
    assert_eq!(bench.supervisor.health(), Health::Sound);
}

#[test]
fn a_shortage_at_the_first_boot_ends_it() {
    let mut bench = Bench::new(1);
    bench.tell(Event::Boot);
    bench.template_ready(1);
    bench.take();
    bench.fork_refused(1);
    assert_eq!(bench.asked(), [Action::CloseListeners, close(1), boot_failed("EAGAIN")]);
}

/// Degraded, with worker 2 ready in slot 1 and nobody in slots 0 and 2.
fn degraded() -> Bench {
    let mut bench = Bench::with(Policy {
        workers: 3,
        budget: Some(Budget { restarts: 4, window: 60 * SECOND }),
        ..Policy::default()
    });
    bench.tell(Event::Boot);
    bench.template_ready(1);
    (1..=3).for_each(|id| bench.ready(id));
    bench.wait(60 * SECOND);
    bench.exits(1, Exit::Signal(9));
    bench.exits(3, Exit::Signal(9));
    bench.take();
    for ids in [[4, 5], [6, 7]] {
        for id in ids {
            bench.ready(id);
            bench.exits(id, Exit::Code(1));
        }
        if ids == [4, 5] {
            bench.wait(SECOND);
        }
    }
    bench
}

#[test]
fn a_spent_budget_keeps_the_healthy_and_tries_one_worker_at_a_time() {
    let mut bench = degraded();
    let told = notices(bench.take());
    let failures = Failures { never_ready: 0, died_young: 4 };
    assert!(told.contains(&Notice::Degraded { ready: 1, failures, window: 60 * SECOND }), "{told:?}");
    assert_eq!(bench.supervisor.health(), Health::Degraded);
    bench.wait(749 * MS);
    assert_eq!(bench.asked(), []);
    bench.wait(501 * MS);
    assert_eq!(bench.asked(), [fork(8, 0, 1)]);
    bench.refuses(8, "no");
    bench.exits(8, Exit::Code(1));
    bench.wait(1499 * MS);
    assert_eq!(bench.asked(), []);
    bench.wait(1001 * MS);
    assert_eq!(bench.asked(), [fork(9, 2, 1)], "the next sits elsewhere");
    assert_eq!(bench.state(2), Some(WorkerState::Ready));
}

#[test]
fn where_the_fleets_own_delay_begins_that_of_a_slot_ends_also_if_it_was_forgiven() {
    let long = Backoff { first: 60 * SECOND, cap: 60 * SECOND, ..Backoff::default() };
    let mut bench = Bench::with(Policy {
        workers: 2,
        limits: Limits { requests: Some(1000), ..Limits::default() },
        backoff: long,
        budget: Some(Budget { restarts: 2, window: 60 * SECOND }),
        ..Policy::default()
    });
    bench.tell(Event::Boot);
    bench.template_ready(1);
    (1..=2).for_each(|id| bench.ready(id));
    let worn = WorkerLoad { id: WorkerId(1), requests: 1000, busy: false, parked: false, resident: None };
    bench.tell(Event::Sampled(Load { workers: vec![worn], queue: 0 }));
    bench.refuses(3, "no");
    bench.exits(3, Exit::Code(1));
    bench.exits(1, Exit::Signal(9));
    bench.exits(2, Exit::Code(1));
    assert_eq!(bench.supervisor.health(), Health::Degraded);
    bench.take();
    bench.wait(1250 * MS);
    assert_eq!(bench.asked(), [fork(4, 0, 1)], "slot 0 would wait for 45 s at least");
}

#[test]
fn a_degraded_server_forks_rarely_however_long_it_lasts() {
    let mut bench = degraded();
    bench.take();
    let mut forks = 0;
    for _ in 0..3600 {
        bench.wait(SECOND);
        for action in bench.asked() {
            if let Action::Fork { id, .. } = action {
                forks += 1;
                bench.refuses(id.0, "no");
                bench.exits(id.0, Exit::Code(1));
            }
        }
    }
    assert!((3600 / 38..3600 / 22 + 10).contains(&forks), "{forks} in an hour");
}

#[test]
fn a_degraded_server_recovers_when_a_try_serves_well() {
    let mut bench = degraded();
    bench.wait(1250 * MS);
    bench.take();
    bench.ready(8);
    bench.wait(999 * MS);
    assert_eq!(bench.asked(), [], "not yet");
    bench.wait(MS);
    let actions = bench.take();
    assert!(actions.contains(&fork(9, 2, 1)));
    assert!(notices(actions).iter().any(|notice| matches!(notice, Notice::Recovered { .. })));
    assert_eq!(bench.supervisor.health(), Health::Sound);
    bench.ready(9);
    bench.exits(9, Exit::Code(1));
    assert_eq!(bench.supervisor.health(), Health::Sound, "what was before is forgotten");
}

#[test]
fn a_degraded_server_recovers_at_once_when_a_try_has_answered_a_request() {
    let mut bench = degraded();
    bench.wait(1250 * MS);
    bench.take();
    bench.ready(8);
    bench.served(8);
    assert_eq!(bench.asked(), [fork(9, 2, 1)]);
}

#[test]
fn a_reload_of_a_degraded_server_begins_anew() {
    let mut bench = degraded();
    bench.signal(Signal::Reload);
    assert_eq!(bench.supervisor.health(), Health::Degraded, "the old generation is what it was");
    bench.take();
    bench.template_ready(2);
    assert_eq!(bench.supervisor.health(), Health::Sound);
    assert_eq!(bench.asked(), [fork(8, 0, 2), fork(9, 1, 2), fork(10, 2, 2)]);
}

#[test]
fn a_degraded_server_of_which_nobody_is_missing_any_more_is_sound() {
    let mut bench = degraded();
    bench.signal(Signal::Fewer);
    bench.signal(Signal::Fewer);
    assert_eq!(bench.supervisor.health(), Health::Degraded, "slot 0 is empty");
    bench.wait(1250 * MS);
    bench.ready(8);
    bench.wait(SECOND);
    assert_eq!(bench.supervisor.health(), Health::Sound);
}

#[test]
fn failures_that_are_long_past_do_not_count() {
    let mut bench = bereft(1, 3);
    for id in 2..30 {
        bench.ready(id);
        bench.exits(id, Exit::Code(1));
        bench.wait(31 * SECOND);
    }
    assert_eq!(bench.supervisor.health(), Health::Sound);
}

#[test]
fn without_a_budget_nobody_is_ever_degraded() {
    let mut bench = Bench::with(Policy { workers: 1, budget: None, ..Policy::default() });
    bench.tell(Event::Boot);
    bench.template_ready(1);
    for id in 1..100 {
        bench.ready(id);
        bench.exits(id, Exit::Code(1));
        bench.wait(60 * SECOND);
    }
    assert_eq!(bench.supervisor.health(), Health::Sound);
}
