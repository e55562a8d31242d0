//! What takes too long.

use std::os::unix::process::ExitStatusExt;
use std::time::Duration;

use nix::sys::signal::Signal;

use super::*;

#[test]
fn an_incomplete_request_is_told_when_its_time_is_over() {
    let timeout = Duration::from_millis(50);
    let worker = TestWorker::start(WorkerConfig { request_timeout: Some(timeout), ..config() });
    let mut client = worker.client();
    client.send("never en");
    assert_eq!(client.line(), "late\n");
    client.sees_the_end();
}

#[test]
fn an_incomplete_request_keeps_the_deadline_that_it_was_given() {
    let worker = TestWorker::start(config());
    let mut client = worker.client();
    client.send("soon, but ne");
    assert_eq!(client.line(), "late\n");
    client.sees_the_end();
}

#[test]
fn a_request_that_waits_beyond_its_deadline_ends_and_the_worker_lives() {
    let timeout = Duration::from_millis(50);
    let worker = TestWorker::start(WorkerConfig { request_timeout: Some(timeout), ..config() });
    let mut client = worker.client();
    assert_eq!(client.ask("hold"), "hold\n");
    client.sees_the_end();
    assert_eq!(worker.client().ask("alive"), "alive\n");
}

#[test]
fn a_request_that_spins_beyond_its_deadline_takes_the_worker_with_it() {
    if !is_child() {
        let test = "a_request_that_spins_beyond_its_deadline_takes_the_worker_with_it";
        let status = child_of(&format!("server::worker::tests::deadlines::{test}")).status().unwrap();
        assert_eq!(status.signal(), Some(Signal::SIGALRM as i32));
        return;
    }
    let millis = Duration::from_millis;
    let config = WorkerConfig { request_timeout: Some(millis(20)), request_kill_after: millis(30), ..config() };
    let worker = TestWorker::start(config);
    // Many requests before it, so that the one timer has been pending since another's time.
    for _ in 0..100 {
        assert_eq!(worker.client().ask("quick"), "quick\n");
    }
    worker.client().ask("spin");
    unreachable!("the process has died");
}

#[test]
fn an_idle_connection_is_closed_in_time() {
    let timeout = Duration::from_millis(50);
    let worker = TestWorker::start(WorkerConfig { idle_timeout: Some(timeout), ..config() });
    let (mut fresh, mut served) = (worker.client(), worker.client());
    assert_eq!(served.ask("one"), "one\n");
    served.sees_the_end();
    fresh.sees_the_end();
}

#[test]
fn without_a_deadline_a_client_that_takes_nothing_is_idle() {
    let timeout = Duration::from_millis(50);
    let worker = TestWorker::start(WorkerConfig { idle_timeout: Some(timeout), ..config() });
    let mut client = worker.client();
    assert_eq!(client.ask("flood"), "flood\n");
    worker.ask_to_drain();
    worker.ends_well();
}
