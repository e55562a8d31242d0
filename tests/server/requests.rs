//! Requests that go wrong: those that take too long, and those that take their worker with them.

use std::time::{Duration, Instant};

use libtest_mimic::Trial;

use crate::fixtures::Orders;
use crate::support::client::Client;
use crate::support::{Launch, Server};

pub fn tests() -> Vec<Trial> {
    trials!["requests":
        a_sleeping_request_gets_504_and_its_worker_lives_on,
        a_spinning_request_takes_its_worker_which_is_replaced,
        a_slow_head_gets_408,
        fifty_dribbling_clients_keep_nobody_from_being_answered,
        a_panic_is_answered_500_and_the_worker_lives_on,
        a_panic_in_a_service_of_ones_own_closes_the_connection_only,
        a_worker_that_crashes_is_replaced_and_the_log_says_all,
        an_idle_connection_is_closed_in_its_time,
    ]
}

fn a_sleeping_request_gets_504_and_its_worker_lives_on() {
    let server = Server::start(&["--workers", "1", "--faults", "--request-timeout", "200ms"]);
    let pid = server.get("/").pid();
    assert_eq!(server.get("/fault/sleep?ms=60000").status, 504);
    assert_eq!(server.get("/").pid(), pid);
    assert_eq!(server.workers_ever(0), [pid]);
}

fn a_spinning_request_takes_its_worker_which_is_replaced() {
    let server = Server::start(&["--workers", "1", "--faults", "--request-timeout", "200ms"]);
    let pid = server.get("/").pid();
    let mut client = server.client();
    client.ask("/fault/spin?ms=60000").expect("a request");
    let end = server.log.wait("its end", |record| record.is_about("worker exited", pid));
    assert_eq!(end.str("why"), "was killed by signal 14");
    assert!(client.answer().is_err());
    assert_eq!(server.get("/").pid(), server.successor(0, pid));
}

fn a_slow_head_gets_408() {
    let server = Server::start(&["--workers", "1", "--request-timeout", "200ms"]);
    let mut client = server.client();
    client.send("GET / HT").expect("a part of a request");
    assert_eq!(client.answer().expect("an answer").status, 408);
    assert_eq!(client.rest(), b"");
}

fn fifty_dribbling_clients_keep_nobody_from_being_answered() {
    let server = Server::start(&["--workers", "4"]);
    let mut dribblers: Vec<Client> = (0..50).map(|_| server.client()).collect();
    for byte in "GET / HTTP/1.1\r\n".bytes() {
        for client in &mut dribblers {
            client.send([byte]).expect("a byte");
        }
        let began = Instant::now();
        server.get("/").greeting();
        assert!(began.elapsed() < Duration::from_secs(5), "an honest client waited {:?}", began.elapsed());
    }
    for client in &mut dribblers {
        client.send("Host: test\r\n\r\n").expect("the rest");
        client.answer().expect("a slow request is answered too").greeting();
    }
}

fn a_panic_is_answered_500_and_the_worker_lives_on() {
    let server = Server::start(&["--workers", "1", "--faults"]);
    let pid = server.get("/").pid();
    assert_eq!(server.get("/fault/panic").status, 500);
    assert_eq!(server.get("/").pid(), pid);
    let told = server.log.wait("the log says so", |record| record.line.contains("asked for by /fault/panic"));
    assert_eq!((told.u64("slot"), told.pid(), told.u64("generation")), (0, pid, 1));
    assert_eq!(told.str("label"), "GET /fault/panic");
}

fn a_panic_in_a_service_of_ones_own_closes_the_connection_only() {
    let orders = Orders::new();
    let server = Launch::fixture("probe").args(["--workers", "1", "--arg"]).arg(orders.arg()).start();
    let mut other = server.client();
    let who = other.exchange("who").expect("an answer");
    assert!(server.client().exchange("panic").is_err());
    assert_eq!(other.exchange("who").expect("an answer"), who);
    server.log.wait("the log says so", |record| record.line.contains("as ordered"));
}

fn a_worker_that_crashes_is_replaced_and_the_log_says_all() {
    for (fault, why) in [
        ("/fault/segv", "was killed by signal 11"),
        ("/fault/abort", "was killed by signal 6"),
        ("/fault/exit?code=7", "exited with code 7"),
        ("/fault/exit?code=0", "exited with code 0"),
    ] {
        let server = Server::start(&["--workers", "2", "--faults"]);
        let mut client = server.client();
        let (slot, pid, _) = client.get("/").expect("an answer").greeting();
        client.ask(fault).expect("a request");
        assert_eq!(client.rest(), b"", "{fault}: the connection is cut");
        let exited = server.log.wait("its end", |record| record.is_about("worker exited", pid));
        assert_eq!((exited.str("why"), exited.u64("slot"), exited.u64("generation")), (why.to_owned(), slot, 1));
        let request = server.log.wait("its request", |record| record.is_about("a worker died in a request", pid));
        let path = fault.split('?').next().expect("a path");
        assert!(request.str("label").starts_with(&format!("GET {path}")), "{}", request.line);
        server.successor(slot, pid);
        server.get("/").greeting();
    }
}

fn an_idle_connection_is_closed_in_its_time() {
    let server = Server::start(&["--workers", "1", "--idle-timeout", "200ms"]);
    let mut client = server.client();
    client.get("/").expect("an answer");
    assert_eq!(client.rest(), b"");
}
