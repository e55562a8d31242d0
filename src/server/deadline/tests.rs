use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

use nix::poll::{PollTimeout, poll};
use nix::sys::signal::Signal;

use super::*;
use crate::server::testing::{child_of, is_child};

const AN_HOUR: Duration = Duration::from_secs(3600);

fn run_child(test: &str) -> ExitStatus {
    child_of(&format!("server::deadline::tests::{test}")).status().unwrap()
}

fn deadlines(timeout: Duration, kill_after: Duration) -> Deadlines {
    let request_timeout = Some(timeout);
    let config = WorkerConfig { request_timeout, request_kill_after: kill_after, ..Default::default() };
    Deadlines::new(&config).unwrap()
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
    let deadline = deadlines.of_request(now);
    deadlines.begin(deadline, now);
    assert_eq!(block(), Err(Errno::EINTR));
    assert!(Some(Monotonic::now()) >= deadline);
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
    deadlines.begin(Some(now), now);
    assert_eq!(block(), Err(Errno::EINTR));
    assert_eq!(block(), Err(Errno::EINTR));
}

#[test]
fn an_early_timer_is_set_again_for_what_is_left() {
    if !is_child() {
        assert!(run_child("an_early_timer_is_set_again_for_what_is_left").success());
        return;
    }
    let deadlines = deadlines(Duration::from_millis(40), AN_HOUR);
    let first = Monotonic::now();
    deadlines.begin(deadlines.of_request(first), first);
    deadlines.end();
    let second = first.after(Duration::from_millis(20));
    let deadline = deadlines.of_request(second);
    deadlines.begin(deadline, first);
    assert_eq!(block(), Err(Errno::EINTR), "the first request's timer");
    assert!(Some(Monotonic::now()) < deadline, "this machine is too busy for this test");
    assert_eq!(block(), Err(Errno::EINTR));
    assert!(Some(Monotonic::now()) >= deadline);
}

#[test]
fn nothing_comes_when_no_request_is_in_hand() {
    if !is_child() {
        assert!(run_child("nothing_comes_when_no_request_is_in_hand").success());
        return;
    }
    let deadlines = deadlines(Duration::from_millis(10), Duration::ZERO);
    let now = Monotonic::now();
    deadlines.begin(deadlines.of_request(now), now);
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
    deadlines.begin(deadlines.of_request(now), now);
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
    deadlines.begin(Monotonic::from_nanos(1), now);
    assert_eq!(block(), Err(Errno::EINTR));
    deadlines.end();
}
