//! Requests that go wrong: those that panic, and those that take their worker with them.

use libtest_mimic::Trial;

use crate::fixtures::Orders;
use crate::support::{Launch, Server};

pub fn tests() -> Vec<Trial> {
    trials!["requests":
        a_panic_is_answered_500_and_the_worker_lives_on,
        a_panic_in_a_service_of_ones_own_closes_the_connection_only,
        a_worker_that_leaves_in_a_request_is_replaced_and_the_log_says_all,
    ]
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

fn a_worker_that_leaves_in_a_request_is_replaced_and_the_log_says_all() {
    for (fault, why) in [("/fault/exit?code=7", "exited with code 7"), ("/fault/exit?code=0", "exited with code 0")] {
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
