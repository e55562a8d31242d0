//! The ways out.

use super::*;

#[test]
fn a_stop_shuts_the_gate_serves_the_queue_drains_then_kills_and_leaves_when_nobody_is_left() {
    let mut bench = Bench::serving(2);
    bench.stop();
    assert_eq!(bench.asked(), [Action::ShutGate, Action::LookAtQueues]);
    bench.nobody_waits();
    assert_eq!(bench.asked(), [Action::LookAtQueues, Action::CloseListeners, drain(1), drain(2)]);
    bench.exits(1, Exit::Clean);
    bench.wait(30 * SECOND - 11 * MS);
    assert_eq!(bench.asked(), [], "the time counts from the gate");
    bench.wait(MS);
    assert_eq!(bench.asked(), [kill(2, KillReason::NotDrained)]);
    bench.exits(2, Exit::Signal(9));
    assert_eq!(bench.asked(), [close(1), Action::Leave(Outcome::Stopped)]);
    bench.tell(Event::Boot);
    bench.signal(Signal::Reload);
    assert_eq!(bench.take(), [], "the end is the end");
}

#[test]
fn whoever_has_drained_and_is_not_reaped_is_not_said_to_have_missed_its_time() {
    let mut bench = Bench::serving(2);
    bench.stop();
    bench.nobody_waits();
    bench.take();
    bench.tell(Event::WorkerHungUp { id: WorkerId(1) });
    bench.wait(2 * SECOND);
    assert_eq!(bench.asked(), [kill(1, KillReason::HungUp)]);
    bench.wait(30 * SECOND - 2 * SECOND - 11 * MS);
    assert!(bench.asked().contains(&close(1)), "the template does not reap");
    bench.wait(MS);
    assert_eq!(bench.asked(), [kill(2, KillReason::NotDrained)]);
}

#[test]
fn a_stop_in_the_middle_of_a_reload_calls_it_off() {
    for signal in [Signal::Stop, Signal::DrainWorkers] {
        let mut bench = Bench::serving(1);
        bench.signal(Signal::Reload);
        bench.take();
        bench.signal(signal);
        let actions = bench.take();
        assert!(reload_called_off(&actions).is_some());
        assert_eq!(reload_failed(&actions), None, "whether the old generation stays is another matter");
    }
}

#[test]
fn readiness_goes_the_drain_delay_before_the_gate_and_the_workers_serve_on() {
    let mut bench = Bench::with(Policy { workers: 1, drain_delay: 5 * SECOND, ..Policy::default() });
    bench.tell(Event::Boot);
    assert!(!bench.supervisor.is_ready());
    bench.template_ready(1);
    bench.ready(1);
    bench.wait(60 * SECOND);
    bench.take();
    assert!(bench.supervisor.is_ready());
    bench.signal(Signal::Stop);
    assert!(!bench.supervisor.is_ready());
    bench.exits(1, Exit::Signal(11));
    assert_eq!(bench.asked(), [fork(2, 0, 1)], "somebody has to serve");
    bench.ready(2);
    for signal in [Signal::Stop, Signal::Reload, Signal::More, Signal::Fewer, Signal::DrainWorkers] {
        bench.signal(signal);
    }
    bench.wait(5 * SECOND - MS);
    assert_eq!(bench.asked(), []);
    bench.wait(MS);
    assert_eq!(bench.asked(), [Action::ShutGate, Action::LookAtQueues]);
    bench.signal(Signal::Stop);
    assert_eq!(bench.asked(), []);
}

#[test]
fn the_queue_is_served_before_the_listeners_close() {
    let mut bench = Bench::serving(1);
    bench.stop();
    bench.take();
    for seen in [(true, false), (false, true), (true, true), (false, false), (true, false), (false, false)] {
        bench.tell(queues_seen(seen.0, seen.1));
        assert_eq!(bench.asked(), [], "{seen:?}");
        bench.wait(10 * MS);
        assert_eq!(bench.asked(), [Action::LookAtQueues]);
    }
    bench.tell(queues_seen(false, false));
    assert_eq!(bench.asked(), [Action::CloseListeners, drain(1)]);
    bench.tell(queues_seen(true, true));
    assert_eq!(bench.asked(), [], "a late look");
}

#[test]
fn a_handshake_that_is_never_completed_holds_up_the_stop_for_its_time_and_no_longer() {
    let mut bench = Bench::serving(1);
    bench.stop();
    for _ in 0..150 {
        bench.tell(queues_seen(false, true));
        bench.wait(10 * MS);
    }
    assert!(!bench.asked().contains(&Action::CloseListeners));
    bench.tell(queues_seen(false, true));
    bench.wait(10 * MS);
    bench.tell(queues_seen(false, true));
    assert!(bench.asked().contains(&Action::CloseListeners));
}

#[test]
fn behind_the_gate_a_worker_is_forked_if_somebody_waits_and_only_then() {
    let mut bench = Bench::serving(1);
    bench.stop();
    bench.take();
    bench.exits(1, Exit::Signal(9));
    assert_eq!(bench.asked(), [], "nobody waits, as far as is known");
    bench.tell(queues_seen(true, false));
    assert_eq!(bench.asked(), [fork(2, 0, 1)]);
    bench.ready(2);
    bench.nobody_waits();
    assert_eq!(bench.asked(), [Action::LookAtQueues, Action::CloseListeners, drain(2)]);
}

#[test]
fn a_stop_of_a_paused_server_serves_who_waits_and_forks_for_nobody_else() {
    for queued in [false, true] {
        let mut bench = Bench::serving(1);
        bench.signal(Signal::DrainWorkers);
        bench.exits(1, Exit::Clean);
        bench.take();
        bench.stop();
        bench.tell(queues_seen(queued, false));
        assert_eq!(bench.asked().contains(&fork(2, 0, 1)), queued);
    }
}

#[test]
fn a_queue_that_nobody_serves_in_time_is_given_up_and_its_workers_are_killed() {
    let mut bench = Bench::serving(1);
    bench.stop();
    bench.tell(queues_seen(true, false));
    bench.take();
    bench.wait(30 * SECOND);
    let actions = bench.take();
    assert!(actions.contains(&Action::Notice(Notice::QueuesAbandoned { queued: true })));
    assert!(actions.ends_with(&[Action::CloseListeners, drain(1)]), "{actions:?}");
    bench.wait(SECOND);
    assert_eq!(bench.asked(), [kill(1, KillReason::NotDrained)]);
}

#[test]
fn a_quick_stop_has_a_short_patience_also_with_those_who_drain_already() {
    let mut bench = Bench::serving(1);
    bench.stop();
    bench.nobody_waits();
    bench.take();
    bench.signal(Signal::Quit);
    bench.wait(SECOND);
    assert_eq!(bench.asked(), [kill(1, KillReason::NotDrained)]);
}

#[test]
fn a_quick_stop_waits_neither_for_the_drain_delay_nor_for_the_queue() {
    for gated in [false, true] {
        let mut bench = Bench::serving(1);
        bench.signal(Signal::Stop);
        if gated {
            bench.wait(Duration::ZERO);
        }
        bench.take();
        bench.signal(Signal::Quit);
        assert_eq!(bench.asked(), [Action::CloseListeners, drain(1)]);
        bench.tell(queues_seen(true, false));
        bench.wait(SECOND - MS);
        assert_eq!(bench.asked(), []);
        bench.wait(MS);
        assert_eq!(bench.asked(), [kill(1, KillReason::NotDrained)]);
    }
}

#[test]
fn two_quick_stops_kill_at_once() {
    let mut bench = Bench::serving(1);
    bench.signal(Signal::Quit);
    assert_eq!(bench.asked(), [Action::CloseListeners, drain(1)]);
    bench.signal(Signal::Quit);
    assert_eq!(bench.asked(), [kill(1, KillReason::AtOnce)]);
    bench.signal(Signal::Quit);
    assert_eq!(bench.asked(), []);
}

#[test]
fn a_stop_works_while_booting() {
    let mut bench = Bench::new(1);
    bench.tell(Event::Boot);
    bench.take();
    bench.stop();
    assert_eq!(bench.asked(), [Action::ShutGate, Action::LookAtQueues]);
    bench.nobody_waits();
    let asked = bench.asked();
    assert_eq!(asked[1..], [Action::CloseListeners, close(1), Action::Leave(Outcome::Stopped)]);
}

#[test]
fn a_stop_while_booting_serves_who_waits_already() {
    let mut bench = Bench::new(1);
    bench.tell(Event::Boot);
    bench.stop();
    bench.tell(queues_seen(true, false));
    bench.take();
    bench.template_ready(1);
    assert_eq!(bench.asked(), [fork(1, 0, 1)]);
    bench.ready(1);
    bench.nobody_waits();
    assert_eq!(bench.asked(), [Action::LookAtQueues, Action::CloseListeners, drain(1)]);
}

#[test]
fn a_stop_while_rolling_withdraws_the_new_generation() {
    let mut bench = Bench::serving(1);
    bench.signal(Signal::Reload);
    bench.template_ready(2);
    bench.forked(2);
    bench.take();
    bench.signal(Signal::Stop);
    assert_eq!(bench.asked(), [retire(2), drain(2)]);
    bench.exits(2, Exit::Clean);
    assert_eq!(bench.asked(), [close(2)]);
    bench.wait(Duration::ZERO);
    bench.take();
    bench.nobody_waits();
    assert_eq!(bench.asked(), [Action::LookAtQueues, Action::CloseListeners, drain(1)]);
    bench.exits(1, Exit::Clean);
    assert_eq!(bench.asked(), [close(1), Action::Leave(Outcome::Stopped)]);
}

#[test]
fn a_killed_worker_whose_end_never_comes_is_neither_forgotten_nor_killed_again() {
    let mut bench = Bench::serving(1);
    bench.stop();
    bench.nobody_waits();
    bench.wait(30 * SECOND);
    bench.take();
    bench.wait(2 * SECOND);
    assert_eq!(bench.asked(), [close(1)], "who should have reaped it is stuck");
    bench.wait(36_000 * SECOND);
    assert_eq!(bench.take(), []);
    assert_eq!(bench.supervisor.next_timer(), None);
    assert_eq!(bench.state(1), Some(WorkerState::Killed));
}

#[test]
fn a_template_that_dies_while_the_server_leaves_is_followed_by_another() {
    for gated in [false, true] {
        let mut bench = Bench::with(Policy { workers: 1, drain_delay: 600 * SECOND, ..Policy::default() });
        bench.tell(Event::Boot);
        bench.template_ready(1);
        bench.ready(1);
        bench.wait(60 * SECOND);
        bench.signal(Signal::Stop);
        if gated {
            bench.wait(600 * SECOND);
            bench.tell(queues_seen(true, false));
        }
        bench.take();
        bench.template_dies(1);
        assert_eq!(bench.asked(), [start(1)], "gated: {gated}");
        bench.template_dies(1);
        bench.exits(1, Exit::Signal(9));
        assert_eq!(bench.asked(), [], "after a delay");
        bench.wait(SECOND);
        assert!(bench.asked().contains(&start(1)));
        bench.template_ready(1);
        assert_eq!(bench.asked(), [fork(2, 0, 1)], "somebody has to serve");
    }
}

#[test]
fn the_longer_a_queue_takes_the_less_often_it_is_looked_at() {
    let mut bench = Bench::serving(1);
    bench.stop();
    let mut looks = 0;
    while bench.now < 80 * SECOND {
        if bench.asked().contains(&Action::LookAtQueues) {
            looks += 1;
            bench.tell(queues_seen(true, false));
        }
        bench.wait(10 * MS);
    }
    assert!((60..160).contains(&looks), "{looks} looks in 20 s");
    bench.nobody_waits();
    assert!(bench.asked().contains(&Action::CloseListeners), "the second empty look follows the first at once");
}

#[test]
fn whoever_fails_while_the_server_is_on_its_way_out_is_followed_after_a_delay() {
    let mut bench = Bench::with(Policy { workers: 1, drain_delay: 60 * SECOND, ..Policy::default() });
    bench.tell(Event::Boot);
    bench.template_ready(1);
    bench.ready(1);
    bench.wait(60 * SECOND);
    bench.signal(Signal::Stop);
    bench.exits(1, Exit::Signal(11));
    bench.take();
    bench.ready(2);
    bench.exits(2, Exit::Signal(11));
    assert_eq!(bench.asked(), [], "it died young");
    bench.wait(SECOND);
    assert_eq!(bench.asked(), [fork(3, 0, 1)]);
    bench.refuses(3, "no licence");
    bench.exits(3, Exit::Code(1));
    assert_eq!(bench.asked(), [], "it was never ready");
    bench.wait(SECOND);
    assert_eq!(bench.asked(), [fork(4, 0, 1)]);
    bench.fork_refused(4);
    assert_eq!(bench.asked(), [], "nobody can be forked");
    bench.wait(SECOND);
    assert_eq!(bench.asked(), [fork(5, 0, 1)]);
}
