//! Recycling: a worker that has reached a limit is followed by another, and nobody notices.

use libtest_mimic::Trial;

use crate::support::Server;
use crate::support::load::Load;
use crate::support::log::Record;

pub fn tests() -> Vec<Trial> {
    trials!["recycling":
        after_so_many_requests_workers_are_followed_and_none_is_lost,
        at_their_age_workers_are_followed_one_by_one_and_none_is_lost,
        a_worker_that_has_grown_too_large_is_followed,
        requests_wear_a_worker_out_however_they_end,
    ]
}

fn is_worn(record: &Record) -> bool {
    record.is("worker worn out")
}

/// They go one by one, and none before its successor is ready: never is more than one successor in the making, and beside it
/// there are as many workers as there are to be, or one more. Those that drain do not count: they give their idle clients a
/// last chance, and meanwhile others are followed.
#[track_caller]
fn assert_followed_one_by_one(server: &Server, workers: usize) {
    let (mut in_the_making, mut serving) = (0, 0);
    let mut full = false;
    for record in server.log.all(|_| true) {
        if record.is("worker asked for") {
            in_the_making += 1;
        } else if record.is("worker ready") {
            in_the_making -= 1;
            serving += 1;
        } else if record.is("worker told to drain") {
            serving -= 1;
        }
        full |= serving == workers;
        if full {
            assert!(serving >= workers, "fewer than {workers} at {}", record.line);
            assert!(serving <= workers + 1 && in_the_making <= 1, "more than one successor at {}", record.line);
        }
        if record.is("stopping") {
            return;
        }
    }
    panic!("the server was not stopped");
}

/// Recycles under load until so many were followed.
fn recycle_under_load(flag: &str, limit: &str, count: usize, why: &str) {
    let mut server = Server::start(&["--workers", "3", "--log-level", "debug", flag, limit]);
    let load = Load::start(&server.address(), 4);
    let worn = server.log.wait_for_many(0, count, "workers are worn out", is_worn);
    assert!(worn.iter().all(|record| record.str("why").contains(why)), "{}", worn[0].line);
    server.log.wait_for_many(0, count - 1, "they drain", |record| record.is("worker drained"));
    let tally = load.stop();
    assert_eq!(tally.lost, [""; 0]);
    assert_eq!(server.log.count(|record| record.is("worker exited")), 0, "{}", server.log.text());
    server.stop();
    assert_followed_one_by_one(&server, 3);
}

fn after_so_many_requests_workers_are_followed_and_none_is_lost() {
    recycle_under_load("--max-requests", "50", 6, "requests");
}

fn at_their_age_workers_are_followed_one_by_one_and_none_is_lost() {
    recycle_under_load("--max-age", "500ms", 9, "served for");
}

fn a_worker_that_has_grown_too_large_is_followed() {
    let mut server = Server::start(&["--workers", "2", "--faults", "--max-memory", "100MiB"]);
    let before = server.workers();
    let mut client = server.client();
    let (slot, pid, _) = client.get("/").expect("an answer").greeting();
    assert_eq!(client.get("/fault/leak?mb=120").expect("an answer").status, 200);
    let worn = server.log.wait("it is seen", is_worn);
    assert_eq!((worn.u64("slot"), worn.pid()), (slot, pid));
    assert!(worn.str("why").contains("memory"), "{}", worn.line);
    server.successor(slot, pid);
    server.log.wait("it drains", |record| record.is_about("worker drained", pid));
    for (other, pid) in before.into_iter().filter(|(other, _)| *other != slot) {
        assert_eq!(server.workers()[&other], pid, "the other is left alone");
    }
    assert_eq!(server.log.count(is_worn), 1);
    server.stop();
}

/// If one of them were not counted, the limit would not be reached. It is so small that no worker's own is below it.
fn requests_wear_a_worker_out_however_they_end() {
    let args = ["--workers", "1", "--faults", "--request-timeout", "300ms", "--max-requests", "4"];
    let mut server = Server::start(&args);
    let pid = server.workers()[&0];
    // It panics, meets its deadline, is never whole, has lost its client: the answers, as far as there is somebody.
    assert_eq!(server.get("/fault/panic").status, 500);
    assert_eq!(server.get("/fault/sleep?ms=60000").status, 504);
    let mut slow = server.client();
    slow.send("GET / HT").expect("a part of a request");
    assert_eq!(slow.answer().expect("a word that it took too long").status, 408);
    let mut gone = server.client();
    gone.send("GET / HT").expect("a part of a request");
    drop(gone);
    let worn = server.log.wait("it is worn out", is_worn);
    assert_eq!((worn.pid(), worn.str("why")), (pid, "it has answered 4 requests".to_owned()));
    server.successor(0, pid);
    server.stop();
}
