//! The ways out.

use super::*;

#[test]
fn a_stop_drains_then_kills_and_leaves_when_nobody_is_left() {
    let mut bench = Bench::serving(2);
    bench.signal(Signal::Stop);
    assert_eq!(bench.asked(), [Action::CloseListeners, drain(1), drain(2)]);
    bench.exits(1, Exit::Clean);
    bench.wait(30 * SECOND);
    assert_eq!(bench.asked(), [kill(2, KillReason::NotDrained)]);
    bench.exits(2, Exit::Signal(9));
    assert_eq!(bench.asked(), [close(1), Action::Leave(Outcome::Stopped)]);
    bench.tell(Event::Boot);
    bench.signal(Signal::Reload);
    assert_eq!(bench.take(), [], "the end is the end");
}

#[test]
fn a_quick_stop_has_a_short_patience_also_with_those_who_drain_already() {
    let mut bench = Bench::serving(1);
    bench.signal(Signal::Stop);
    bench.take();
    bench.signal(Signal::Quit);
    bench.wait(SECOND);
    assert_eq!(bench.asked(), [kill(1, KillReason::NotDrained)]);
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
    bench.signal(Signal::Stop);
    assert_eq!(bench.asked(), [Action::CloseListeners, close(1), Action::Leave(Outcome::Stopped)]);
}

#[test]
fn a_stop_works_while_rolling() {
    let mut bench = Bench::serving(1);
    bench.signal(Signal::Reload);
    bench.template_ready(2);
    bench.forked(2);
    bench.take();
    bench.signal(Signal::Stop);
    assert_eq!(bench.asked(), [Action::CloseListeners, drain(1), drain(2)]);
    bench.exits(2, Exit::Clean);
    bench.exits(1, Exit::Clean);
    assert_eq!(bench.asked(), [close(2), close(1), Action::Leave(Outcome::Stopped)]);
}

#[test]
fn a_killed_worker_whose_end_never_comes_is_neither_forgotten_nor_killed_again() {
    let mut bench = Bench::serving(1);
    bench.signal(Signal::Stop);
    bench.wait(30 * SECOND);
    bench.take();
    bench.wait(2 * SECOND);
    assert_eq!(bench.asked(), [close(1)], "who should have reaped it is stuck");
    bench.wait(36_000 * SECOND);
    assert_eq!(bench.take(), []);
    assert_eq!(bench.supervisor.next_timer(), None);
    assert_eq!(bench.state(1), Some(WorkerState::Killed));
}
