//! Workers and templates that die while the server serves; more of them, fewer, none.

use super::*;
use crate::server::supervisor::policy::Backoff;

#[test]
fn a_worker_that_served_well_is_replaced_in_the_same_step() {
    let mut bench = Bench::serving(3);
    bench.exits(2, Exit::Signal(11));
    assert_eq!(bench.asked(), [fork(4, 1, 1)]);
}

#[test]
fn a_worker_that_keeps_dying_young_waits_longer_each_time_and_holds_up_nobody_else() {
    let mut bench = Bench::serving(2);
    bench.exits(1, Exit::Code(1));
    bench.take();
    let mut last = Duration::ZERO;
    for failures in 1..8 {
        let id = 2 + u64::from(failures);
        bench.ready(id);
        bench.exits(id, Exit::Code(1));
        assert_eq!(bench.asked(), [], "not at once");
        let delay = bench.supervisor.next_timer().expect("a delay") - bench.now;
        let middle = 100 * MS * 2_u32.pow(failures - 1);
        assert!(delay >= middle.mul_f64(0.75) && delay <= middle.mul_f64(1.25));
        assert!(delay > last);
        last = delay;
        bench.wait(delay);
        assert_eq!(bench.asked(), [fork(id + 1, 0, 1)]);
    }
    bench.exits(2, Exit::Signal(9));
    assert_eq!(bench.asked(), [fork(11, 1, 1)], "the other slot is not delayed");
}

#[test]
fn a_life_that_served_well_makes_the_delay_small_again() {
    let mut bench = Bench::serving(1);
    bench.exits(1, Exit::Code(1));
    for id in 2..6 {
        bench.ready(id);
        bench.exits(id, Exit::Code(1));
        bench.wait(10 * SECOND);
    }
    bench.ready(6);
    bench.wait(SECOND);
    bench.exits(6, Exit::Code(1));
    bench.ready(7);
    bench.exits(7, Exit::Code(1));
    let delay = bench.supervisor.next_timer().expect("a delay") - bench.now;
    assert!(delay <= 125 * MS);
}

#[test]
fn later_start_failures_and_fork_refusals_are_tried_again_and_touch_no_healthy_worker() {
    let mut bench = Bench::serving(2);
    bench.exits(1, Exit::Signal(9));
    bench.take();
    bench.fork_refused(3);
    assert_eq!(bench.asked(), []);
    bench.wait(SECOND);
    assert_eq!(bench.asked(), [fork(4, 0, 1)]);
    bench.refuses(4, "no");
    bench.exits(4, Exit::Code(1));
    bench.wait(SECOND);
    assert_eq!(bench.asked(), [fork(5, 0, 1)]);
    bench.forked(5);
    bench.wait(30 * SECOND);
    assert_eq!(bench.asked().first(), Some(&kill(5, KillReason::NotReady)));
    assert_eq!(bench.state(2), Some(WorkerState::Ready));
}

#[test]
fn workers_go_on_when_their_template_dies_and_forks_wait_for_the_next_of_the_same_generation() {
    let mut bench = Bench::serving(2);
    bench.template_dies(1);
    assert_eq!(bench.asked(), [start(1)], "it had served well");
    bench.exits(1, Exit::Signal(9));
    assert_eq!(bench.asked(), []);
    bench.template_fails(1, "no memory");
    assert_eq!(bench.asked(), [close(1)]);
    bench.wait(125 * MS);
    assert_eq!(bench.asked(), [start(1)]);
    bench.template_ready(1);
    assert_eq!(bench.asked(), [fork(3, 0, 1)]);
    assert_eq!(bench.state(2), Some(WorkerState::Ready));
}

#[test]
fn a_fork_that_died_with_its_template_is_asked_for_again() {
    let mut bench = Bench::serving(1);
    bench.exits(1, Exit::Signal(9));
    bench.take();
    bench.template_dies(1);
    assert_eq!(bench.asked(), [kill(2, KillReason::TemplateLost), start(1)]);
    bench.fork_refused(2);
    bench.template_ready(1);
    assert_eq!(bench.asked(), [fork(3, 0, 1)]);
}

#[test]
fn a_template_that_no_longer_forks_is_replaced() {
    let mut bench = Bench::serving(2);
    bench.exits(1, Exit::Signal(9));
    bench.take();
    bench.wait(30 * SECOND);
    assert_eq!(bench.asked(), [close(1), kill(3, KillReason::TemplateLost), start(1)]);
    assert_eq!(bench.state(2), Some(WorkerState::Ready));
}

#[test]
fn a_template_that_does_not_reap_a_worker_which_hung_up_is_replaced() {
    let mut bench = Bench::serving(2);
    bench.tell(Event::WorkerHungUp { id: WorkerId(1) });
    bench.wait(2 * SECOND);
    assert_eq!(bench.asked(), [kill(1, KillReason::HungUp), fork(3, 0, 1)]);
    bench.wait(2 * SECOND);
    assert_eq!(bench.asked(), [close(1), kill(3, KillReason::TemplateLost), start(1)]);
    assert_eq!(bench.state(2), Some(WorkerState::Ready));
}

#[test]
fn a_slot_is_filled_as_soon_as_its_worker_is_gone_and_its_end_is_told_once() {
    let mut bench = Bench::serving(2);
    bench.tell(Event::WorkerGone { id: WorkerId(1) });
    assert_eq!(bench.asked(), [fork(3, 0, 1)]);
    bench.tell(Event::WorkerGone { id: WorkerId(1) });
    bench.ready(3);
    bench.wait(20 * SECOND);
    assert_eq!(bench.asked(), [], "nobody is blamed for it");
    bench.exits(1, Exit::Unknown);
    let ends = |action: &Action| matches!(action, Action::Notice(Notice::WorkerExited { was: WorkerState::Gone, .. }));
    assert_eq!(bench.take().iter().filter(|action| ends(action)).count(), 1);
    assert_eq!(bench.state(3), Some(WorkerState::Ready));
}

#[test]
fn one_that_is_gone_young_delays_its_slot_once() {
    let mut bench = Bench::serving(1);
    bench.exits(1, Exit::Signal(9));
    bench.ready(2);
    bench.take();
    bench.tell(Event::WorkerGone { id: WorkerId(2) });
    bench.exits(2, Exit::Unknown);
    let delays = |action: &Action| matches!(action, Action::Notice(Notice::SlotDelayed { .. }));
    let actions = bench.take();
    assert_eq!(actions.iter().filter(|action| delays(action)).count(), 1, "{actions:?}");
    bench.wait(SECOND);
    assert_eq!(bench.asked(), [fork(3, 0, 1)]);
}

#[test]
fn a_stop_waits_for_the_word_of_how_the_gone_have_ended() {
    let mut bench = Bench::serving(1);
    bench.tell(Event::WorkerGone { id: WorkerId(1) });
    bench.signal(Signal::Quit);
    bench.signal(Signal::Quit);
    bench.exits(2, Exit::Signal(9));
    assert!(!bench.asked().iter().any(|action| matches!(action, Action::Leave(_))));
    bench.exits(1, Exit::Unknown);
    assert!(bench.asked().iter().any(|action| matches!(action, Action::Leave(_))));
}

#[test]
fn a_worker_that_hung_up_and_is_reaped_at_once_costs_nobody_anything() {
    let mut bench = Bench::serving(2);
    bench.tell(Event::WorkerHungUp { id: WorkerId(1) });
    bench.exits(1, Exit::Signal(9));
    assert_eq!(bench.asked(), [fork(3, 0, 1)]);
    bench.wait(20 * SECOND);
    assert_eq!(bench.asked(), []);
}

#[test]
fn more_and_fewer_move_the_target_between_one_and_the_most() {
    let mut bench = Bench::serving(3);
    (0..3).for_each(|_| bench.signal(Signal::More));
    assert_eq!(bench.supervisor.target(), 4);
    assert_eq!(bench.asked(), [fork(4, 3, 1)]);
    (0..9).for_each(|_| bench.signal(Signal::Fewer));
    assert_eq!(bench.supervisor.target(), 1);
    assert_eq!(bench.asked(), [drain(4), drain(3), drain(2)]);
}

#[test]
fn drained_workers_stay_away_until_a_reload_or_more() {
    let mut bench = Bench::serving(2);
    bench.signal(Signal::DrainWorkers);
    assert_eq!(bench.asked(), [drain(1), drain(2)]);
    bench.exits(1, Exit::Clean);
    bench.exits(2, Exit::Clean);
    bench.wait(600 * SECOND);
    assert_eq!(bench.asked(), []);
    bench.signal(Signal::More);
    assert_eq!(bench.asked(), [fork(3, 0, 1), fork(4, 1, 1)]);
    bench.ready(3);
    bench.signal(Signal::DrainWorkers);
    bench.take();
    bench.signal(Signal::Reload);
    assert_eq!(bench.asked(), [start(2)], "none of the old generation comes back for it");
    bench.template_ready(2);
    assert_eq!(bench.asked(), [fork(5, 0, 2), fork(6, 1, 2)]);
}

#[test]
fn a_reload_that_fails_while_the_workers_are_drained_leaves_them_drained() {
    let mut bench = Bench::serving(1);
    bench.signal(Signal::DrainWorkers);
    bench.exits(1, Exit::Clean);
    bench.signal(Signal::Reload);
    bench.signal(Signal::Reload);
    bench.take();
    bench.template_fails(2, "no index");
    let actions = bench.take();
    assert_eq!(reload_failed(&actions), Some("no index"));
    assert!(actions.contains(&start(3)), "the reload that waited");
    bench.template_fails(3, "still no index");
    assert_eq!(bench.supervisor.phase(), Phase::Paused);
    bench.take();
    bench.signal(Signal::More);
    assert_eq!(bench.asked(), [fork(2, 0, 1)]);
}

#[test]
fn late_and_double_reports_change_nothing() {
    let mut bench = Bench::serving(1);
    bench.exits(1, Exit::Signal(9));
    bench.ready(2);
    bench.take();
    bench.ready(1);
    bench.exits(1, Exit::Clean);
    bench.ready(2);
    bench.refuses(1, "no");
    bench.template_ready(1);
    bench.template_ready(7);
    assert_eq!(bench.take(), []);
    assert_eq!(bench.state(2), Some(WorkerState::Ready));
}

#[test]
fn readiness_may_be_heard_before_the_fork() {
    let mut bench = Bench::new(1);
    bench.tell(Event::Boot);
    bench.template_ready(1);
    bench.tell(Event::WorkerReady { id: WorkerId(1) });
    assert_eq!(bench.supervisor.phase(), Phase::Serving);
    bench.forked(1);
    assert_eq!(bench.state(1), Some(WorkerState::Ready));
    let (worker, _) = bench.supervisor.workers().next().expect("one worker");
    assert_eq!(worker.pid, Some(1001));
}

#[test]
fn no_delay_exceeds_its_cap_by_more_than_jitter() {
    let backoff = Backoff { cap: SECOND, ..Backoff::default() };
    let mut bench = Bench::with(Policy { workers: 1, backoff, budget: None, ..Policy::default() });
    bench.tell(Event::Boot);
    bench.template_ready(1);
    for id in 1..50 {
        bench.ready(id);
        bench.exits(id, Exit::Code(1));
        let delay = bench.supervisor.next_timer().expect("a delay") - bench.now;
        assert!(delay <= 1250 * MS);
        bench.wait(delay);
    }
}

#[test]
fn a_template_that_dies_while_the_workers_are_drained_is_there_when_they_are_wanted_again() {
    let mut bench = Bench::serving(1);
    bench.signal(Signal::DrainWorkers);
    bench.exits(1, Exit::Clean);
    bench.take();
    bench.template_dies(1);
    assert_eq!(bench.asked(), [start(1)]);
    bench.template_ready(1);
    assert_eq!(bench.asked(), []);
    bench.signal(Signal::More);
    assert_eq!(bench.asked(), [fork(2, 0, 1)]);
}

#[test]
fn a_thousand_workers_cost_each_event_little() {
    let mut bench = Bench::with(Policy { workers: 1000, ..Policy::default() });
    bench.tell(Event::Boot);
    bench.template_ready(1);
    let begun = std::time::Instant::now();
    (1..=1000).for_each(|id| bench.ready(id));
    assert_eq!(bench.supervisor.phase(), Phase::Serving);
    // Some 15 ms; looking over every seat at every event took 700 times as long.
    assert!(begun.elapsed() < 3 * SECOND);
}

#[test]
fn a_worker_that_its_own_alarm_does_not_end_is_killed_and_replaced() {
    let mut bench = Bench::serving(2);
    bench.tell(Event::WorkerStuck { id: WorkerId(1) });
    assert_eq!(bench.asked(), [kill(1, KillReason::Stuck), fork(3, 0, 1)]);
    bench.tell(Event::WorkerStuck { id: WorkerId(1) });
    assert_eq!(bench.asked(), []);
}

#[test]
fn a_template_that_tells_nothing_of_a_worker_which_was_ready_and_hung_up_is_replaced() {
    let mut bench = Bench::new(1);
    bench.tell(Event::Boot);
    bench.template_ready(1);
    bench.tell(Event::WorkerReady { id: WorkerId(1) });
    bench.wait(60 * SECOND);
    bench.take();
    bench.tell(Event::WorkerHungUp { id: WorkerId(1) });
    bench.wait(2 * SECOND);
    assert_eq!(bench.asked(), [close(1), kill(1, KillReason::TemplateLost), start(1)]);
}

#[test]
fn a_worker_that_hung_up_has_no_more_time_because_its_readiness_is_heard_after_that() {
    let mut bench = Bench::new(1);
    bench.tell(Event::Boot);
    bench.template_ready(1);
    bench.forked(1);
    bench.tell(Event::WorkerHungUp { id: WorkerId(1) });
    bench.tell(Event::WorkerReady { id: WorkerId(1) });
    bench.take();
    bench.wait(2 * SECOND);
    assert_eq!(bench.asked(), [kill(1, KillReason::HungUp), fork(2, 0, 1)]);
}

#[test]
fn a_worker_that_hung_up_has_no_more_time_because_it_is_drained_after_that() {
    let mut bench = Bench::serving(2);
    bench.tell(Event::WorkerHungUp { id: WorkerId(2) });
    bench.signal(Signal::Fewer);
    assert_eq!(bench.asked(), [drain(2)]);
    bench.wait(2 * SECOND);
    assert_eq!(bench.asked(), [kill(2, KillReason::HungUp)]);
}

#[test]
fn a_worker_that_has_left_before_it_was_killed_has_drained() {
    for (exit, was) in [(Exit::Clean, WorkerState::Draining), (Exit::Signal(9), WorkerState::Killed)] {
        let mut bench = Bench::serving(2);
        bench.signal(Signal::Fewer);
        bench.tell(Event::WorkerHungUp { id: WorkerId(2) });
        // Its template is slow to tell.
        bench.wait(2 * SECOND);
        assert_eq!(bench.asked(), [drain(2), kill(2, KillReason::HungUp)]);
        bench.exits(2, exit);
        let ends = bench.take().into_iter().filter_map(|action| match action {
            Action::Notice(Notice::WorkerExited { was, .. }) => Some(was),
            _ => None,
        });
        assert_eq!(ends.collect::<Vec<_>>(), [was]);
    }
}

#[test]
fn while_the_workers_are_drained_fewer_can_be_wished_for() {
    let mut bench = Bench::serving(3);
    bench.signal(Signal::DrainWorkers);
    (1..=3).for_each(|id| bench.exits(id, Exit::Clean));
    bench.signal(Signal::Fewer);
    bench.take();
    bench.signal(Signal::More);
    assert_eq!(bench.asked(), [fork(4, 0, 1), fork(5, 1, 1)]);
}

#[test]
fn a_template_that_dies_while_the_next_one_preloads_for_drained_workers_is_followed() {
    let mut bench = Bench::serving(1);
    bench.signal(Signal::DrainWorkers);
    bench.exits(1, Exit::Clean);
    bench.signal(Signal::Reload);
    bench.take();
    bench.template_dies(1);
    assert_eq!(bench.asked(), [start(1)]);
}
