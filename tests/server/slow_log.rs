//! The slow log: each request that met its deadline leaves one record; and the backstop for those whose alarm is of no use.

use libtest_mimic::Trial;
use nix::sys::signal::Signal;

use crate::support::log::Record;
use crate::support::processes::eventually;
use crate::support::{Launch, Server, freeze, signal_process};

const TIMED_OUT: &str = "a request timed out";

pub fn tests() -> Vec<Trial> {
    trials!["slow_log":
        an_interrupted_request_is_told_with_what_its_worker_waited_for,
        a_request_that_killed_its_worker_is_told_with_its_call_stack,
        a_client_that_did_not_send_its_request_is_told,
        a_worker_that_stands_still_in_a_request_is_ended_by_the_master,
        a_worker_that_blocks_the_alarm_is_ended_by_the_master,
        an_idle_worker_that_stands_still_is_left_alone,
        a_request_in_time_leaves_no_record,
        a_crash_in_a_request_is_told_with_the_request_and_the_call_stack,
    ]
}

fn launch(args: &[&str]) -> Launch {
    Launch::hatchery().args(["--faults", "--request-timeout", "300ms"]).args(args)
}

fn timed_out(server: &Server, kind: &str) -> Record {
    let record = server.log.wait("the record", |record| record.is(TIMED_OUT) && record.str("kind") == kind);
    assert_eq!(record.u64("generation"), 1);
    assert_eq!(server.workers_ever(record.u64("slot")).first(), Some(&record.pid()));
    record
}

fn an_interrupted_request_is_told_with_what_its_worker_waited_for() {
    // Time enough for the master to look, at half time at the latest, on however busy a machine.
    let server = Launch::hatchery().args(["--workers", "2", "--faults", "--request-timeout", "4s"]).start();
    let mut client = server.client();
    client.ask("/fault/sleep?ms=60000").expect("a request");
    assert_eq!(client.answer().expect("an answer").status, 504);
    let record = timed_out(&server, "soft");
    assert_eq!(record.str("label"), "GET /fault/sleep");
    assert_eq!(record.str("peer"), client.local_address());
    assert!((4_000..20_000).contains(&record.u64("elapsed_ms")), "{}", record.line);
    let kernel = record.str("kernel");
    assert!(kernel.starts_with("state S, ") && kernel.contains("poll"), "{kernel}");
    assert_eq!(server.log.count(|record| record.is(TIMED_OUT)), 1);
}

fn a_request_that_killed_its_worker_is_told_with_its_call_stack() {
    let server = launch(&["--workers", "2", "--request-kill-after", "100ms"]).start();
    let mut client = server.client();
    client.ask("/fault/spin?ms=60000").expect("a request");
    let record = timed_out(&server, "hard");
    assert_eq!(record.str("label"), "GET /fault/spin");
    assert_eq!(record.str("peer"), client.local_address());
    assert!((400..20_000).contains(&record.u64("elapsed_ms")), "{}", record.line);
    let kernel = record.str("kernel");
    assert!(kernel.contains("running") || kernel.starts_with("state R"), "{kernel}");
    let stack = record.str("backtrace");
    assert!(stack.contains("faults") && stack.contains(".rs:"), "{stack}");
    assert!(!stack.contains("on_alarm"), "the handler itself is of no interest: {stack}");
    assert_eq!(server.log.count(|record| record.is(TIMED_OUT)), 1);
}

fn a_client_that_did_not_send_its_request_is_told() {
    let server = launch(&["--workers", "2"]).start();
    let mut client = server.client();
    client.send("GET / HT").expect("a part of a request");
    assert_eq!(client.answer().expect("an answer").status, 408);
    let record = timed_out(&server, "soft");
    assert_eq!(record.str("peer"), client.local_address());
    assert!(record.str("kernel").contains("waited for the client"), "{}", record.line);
}

fn a_worker_that_stands_still_in_a_request_is_ended_by_the_master() {
    let lock = tempfile::NamedTempFile::new().expect("a file");
    let mut server = launch(&["--workers", "1", "--request-kill-after", "100ms"]).start();
    let busy = server.workers()[&0];
    let mut client = server.client();
    client.ask(&format!("/fault/flock?path={}&ms=60000", lock.path().display())).expect("a request");
    eventually("the request is in hand", || match lock.as_file().try_lock() {
        Ok(()) => lock.as_file().unlock().is_err(),
        Err(_) => true,
    });
    freeze(busy);
    let record = timed_out(&server, "stuck");
    assert_eq!((record.pid(), record.str("label").as_str()), (busy, "GET /fault/flock"));
    assert!(record.str("kernel").starts_with("state T"), "{}", record.line);
    assert!(client.answer().is_err(), "nobody was left to answer");
    server.successor(record.u64("slot"), busy);
    server.assert_no_zombies();
    server.stop();
}

fn a_worker_that_blocks_the_alarm_is_ended_by_the_master() {
    let args = ["--workers", "2", "--request-timeout", "300ms", "--request-kill-after", "100ms"];
    let mut server = Launch::fixture("probe").args(args).start();
    let mut client = server.client();
    client.send("block-alarm\n").expect("a request");
    let record = timed_out(&server, "stuck");
    assert_eq!(record.str("peer"), client.local_address());
    let killed = server.log.wait("the reason", |record| record.is("killing a worker"));
    assert!(killed.str("why").contains("hard deadline"), "{}", killed.line);
    server.successor(record.u64("slot"), record.pid());
    server.stop();
}

fn an_idle_worker_that_stands_still_is_left_alone() {
    let server = launch(&["--workers", "2", "--request-kill-after", "100ms"]).start();
    let idle = server.workers()[&0];
    freeze(idle);
    // Another one's deadlines pass meanwhile, both of them.
    assert_eq!(server.client().get("/fault/spin?ms=60000").expect("an answer").status, 504);
    timed_out(&server, "hard");
    assert_eq!(server.workers_ever(0), [idle]);
    signal_process(idle, Signal::SIGCONT);
}

fn a_request_in_time_leaves_no_record() {
    let mut server = launch(&["--workers", "2"]).start();
    let mut client = server.client();
    for _ in 0..3 {
        assert_eq!(client.get("/fault/sleep?ms=50").expect("an answer").status, 200);
    }
    server.stop();
    assert_eq!(server.log.count(|record| record.is(TIMED_OUT)), 0);
}

fn a_crash_in_a_request_is_told_with_the_request_and_the_call_stack() {
    let server = launch(&["--workers", "2"]).start();
    let mut client = server.client();
    client.ask("/fault/segv").expect("a request");
    let record = server.log.wait("the record", |record| record.is("a worker died in a request"));
    assert_eq!(record.str("label"), "GET /fault/segv");
    assert_eq!(record.str("peer"), client.local_address());
    let stack = record.str("backtrace");
    assert!(stack.contains("faults") && stack.contains(".rs:"), "{stack}");
    assert_eq!(server.log.count(|record| record.is(TIMED_OUT)), 0);
}
