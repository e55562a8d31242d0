use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

use nix::poll::{PollTimeout, poll};
use nix::sys::signal::Signal;

use super::*;
use crate::server::scoreboard::Board;
use crate::server::testing::{child_of, is_child, record};

const AN_HOUR: Duration = Duration::from_secs(3600);

fn run_child(test: &str) -> ExitStatus {
    child_of(&format!("server::deadline::tests::{test}")).status().unwrap()
}

fn deadlines(timeout: Duration, kill_after: Duration) -> Deadlines {
    let request_timeout = Some(timeout);
    let config = WorkerConfig { request_timeout, request_kill_after: kill_after, ..Default::default() };
    Deadlines::new(&config, InHand::of_worker(), record(&Board::new(1).unwrap())).unwrap()
}

fn at_once(now: Monotonic) -> Begun {
    Begun { since: now, due: Monotonic::from_nanos(1) }
}

/// A call that would block for an hour.
fn block() -> Result<i32, Errno> {
    poll(&mut [], PollTimeout::try_from(3_600_000).unwrap())
}

#[test]
fn a_blocking_call_is_interrupted_at_the_deadline() {
    if !is_child() {
        assert!(run_child("a_blocking_call_is_interrupted_at_the_deadline").success());
        return;
    }
    let deadlines = deadlines(Duration::from_millis(30), AN_HOUR);
    let now = Monotonic::now();
    let request = deadlines.request(now);
    deadlines.begin(request, now);
    assert_eq!(block(), Err(Errno::EINTR));
    assert!(Some(Monotonic::now()) >= request.due);
}

#[test]
fn a_signal_before_the_blocking_call_is_not_the_last() {
    if !is_child() {
        assert!(run_child("a_signal_before_the_blocking_call_is_not_the_last").success());
        return;
    }
    let deadlines = deadlines(Duration::ZERO, AN_HOUR);
    let now = Monotonic::now();
    // Overdue from the start, so the first signal comes within `begin`.
    deadlines.begin(at_once(now), now);
    assert_eq!(block(), Err(Errno::EINTR));
    assert_eq!(block(), Err(Errno::EINTR));
}

#[test]
fn an_early_timer_is_set_again_for_what_is_left() {
    if !is_child() {
        assert!(run_child("an_early_timer_is_set_again_for_what_is_left").success());
        return;
    }
    let deadlines = deadlines(Duration::from_millis(400), AN_HOUR);
    let first = Monotonic::now();
    deadlines.begin(deadlines.request(first), first);
    deadlines.end();
    let second = first.after(Duration::from_secs(1));
    let request = deadlines.request(second);
    deadlines.begin(request, first);
    assert_eq!(block(), Err(Errno::EINTR), "the first request's timer");
    assert!(Some(Monotonic::now()) < request.due, "this machine is too busy for this test");
    assert_eq!(block(), Err(Errno::EINTR));
    assert!(Some(Monotonic::now()) >= request.due);
}

#[test]
fn nothing_comes_when_no_request_is_in_hand() {
    if !is_child() {
        assert!(run_child("nothing_comes_when_no_request_is_in_hand").success());
        return;
    }
    let deadlines = deadlines(Duration::from_millis(10), Duration::ZERO);
    let now = Monotonic::now();
    deadlines.begin(deadlines.request(now), now);
    deadlines.end();
    assert_eq!(block(), Err(Errno::EINTR), "what was pending fires once");
    assert_eq!(poll(&mut [], 100u8), Ok(0));
}

#[test]
fn a_request_that_spins_dies_by_sigalrm() {
    if !is_child() {
        let status = run_child("a_request_that_spins_dies_by_sigalrm");
        assert_eq!(status.signal(), Some(Signal::SIGALRM as i32));
        return;
    }
    let deadlines = deadlines(Duration::from_millis(10), Duration::from_millis(30));
    let now = Monotonic::now();
    deadlines.begin(deadlines.request(now), now);
    loop {
        std::hint::spin_loop();
    }
}

#[test]
fn a_request_that_comes_late_in_hand_has_the_grace_still() {
    if !is_child() {
        let status = run_child("a_request_that_comes_late_in_hand_has_the_grace_still");
        assert!(status.success());
        return;
    }
    let deadlines = deadlines(Duration::from_millis(10), AN_HOUR);
    let now = Monotonic::now();
    deadlines.begin(at_once(now), now);
    assert_eq!(block(), Err(Errno::EINTR));
    deadlines.end();
}

#[test]
fn a_deadline_of_a_requests_own_needs_no_timeout_for_all() {
    if !is_child() {
        assert!(run_child("a_deadline_of_a_requests_own_needs_no_timeout_for_all").success());
        return;
    }
    let config = WorkerConfig { request_timeout: None, request_kill_after: AN_HOUR, ..Default::default() };
    let deadlines = Deadlines::new(&config, InHand::of_worker(), record(&Board::new(1).unwrap())).unwrap();
    let now = Monotonic::now();
    deadlines.begin(deadlines.request(now), now);
    assert!(deadlines.alarm.get().is_none(), "a timer for nothing");
    let due = now.after(Duration::from_millis(30));
    deadlines.move_to(due).unwrap();
    assert_eq!(block(), Err(Errno::EINTR));
    assert!(Monotonic::now() >= due);
    deadlines.end();
    deadlines.begin(deadlines.request(now), now);
    assert_eq!(deadlines.due(), None, "the next request has none");
    assert_eq!(block(), Err(Errno::EINTR), "what was pending fires once");
    assert_eq!(poll(&mut [], 50u8), Ok(0));
}

#[test]
fn an_earlier_deadline_sets_the_timer_forward_and_a_later_one_keeps_it_off() {
    if !is_child() {
        let test = "an_earlier_deadline_sets_the_timer_forward_and_a_later_one_keeps_it_off";
        assert!(run_child(test).success());
        return;
    }
    let deadlines = deadlines(AN_HOUR, Duration::ZERO);
    let now = Monotonic::now();
    deadlines.begin(deadlines.request(now), now);
    deadlines.move_to(now.after(Duration::from_millis(30))).unwrap();
    // Moved away in time: with no grace the signal would kill.
    deadlines.move_to(now.after(AN_HOUR)).unwrap();
    assert_eq!(block(), Err(Errno::EINTR), "the earlier moment's timer");
    assert_eq!(poll(&mut [], 50u8), Ok(0));
}

#[test]
fn a_moved_deadline_kills_when_its_own_grace_is_over() {
    if !is_child() {
        let status = run_child("a_moved_deadline_kills_when_its_own_grace_is_over");
        assert_eq!(status.signal(), Some(Signal::SIGALRM as i32));
        return;
    }
    let deadlines = deadlines(AN_HOUR, Duration::from_millis(20));
    let now = Monotonic::now();
    deadlines.begin(deadlines.request(now), now);
    deadlines.move_to(now.after(Duration::from_millis(10))).unwrap();
    loop {
        std::hint::spin_loop();
    }
}
