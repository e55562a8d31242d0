//! The ways to stop: what is in hand is finished where there is time, and what has no time left is killed.

use std::time::{Duration, Instant};

use libtest_mimic::Trial;
use nix::sys::signal::Signal;

use crate::support::client::Client;
use crate::support::processes::eventually;
use crate::support::{PATIENCE, Server};

pub fn tests() -> Vec<Trial> {
    trials!["stops":
        term_answers_the_request_in_hand_and_then_ends,
        term_closes_idle_connections,
        term_answers_what_has_come_on_kept_connections,
        a_worker_that_outlasts_the_graceful_timeout_is_killed,
        int_gives_less_time_than_term,
        a_second_quick_stop_ends_at_once,
        term_during_a_reload_ends_cleanly,
        a_second_term_changes_nothing,
    ]
}

/// A client in the middle of a request of this length.
fn busy(server: &Server, path: &str) -> Client {
    let before: usize = server.workers().values().map(|&pid| sockets(pid)).sum();
    let mut client = server.client();
    client.ask(path).expect("a request");
    eventually("a worker has the request", || {
        server.workers().values().map(|&pid| sockets(pid)).sum::<usize>() > before
    });
    client
}

fn sockets(pid: i32) -> usize {
    crate::support::processes::descriptors(pid).values().filter(|target| target.starts_with("socket:")).count()
}

fn term_answers_the_request_in_hand_and_then_ends() {
    let mut server = Server::start(&["--workers", "2", "--faults"]);
    let mut client = busy(&server, "/fault/sleep?ms=3000");
    server.signal(Signal::SIGTERM);
    server.log.wait("the workers are asked to drain", |record| record.is("queues served"));
    let answer = client.answer().expect("the answer");
    assert_eq!(answer.status, 200);
    assert!(answer.closes, "it was asked for before the stop and answered after it began");
    assert_eq!(client.rest(), b"");
    assert_eq!(server.wait().code(), Some(0));
    assert_eq!(server.log.count(|record| record.is("killing a worker")), 0);
}

fn term_closes_idle_connections() {
    let mut server = Server::start(&["--workers", "2"]);
    let mut idle: Vec<Client> = (0..20).map(|_| server.client()).collect();
    for client in &mut idle {
        assert!(!client.get("/").expect("an answer").closes);
    }
    let began = Instant::now();
    server.stop();
    assert!(began.elapsed() < Duration::from_secs(5), "idle clients held it up for {:?}", began.elapsed());
    for mut client in idle {
        assert_eq!(client.rest(), b"");
    }
}

fn term_answers_what_has_come_on_kept_connections() {
    let mut server = Server::start(&["--workers", "1", "--faults"]);
    let mut kept: Vec<Client> = (0..8).map(|_| server.client()).collect();
    for client in &mut kept {
        client.get("/").expect("an answer");
    }
    // While the only worker sleeps, more requests come in, and then the wish to stop.
    let mut sleeper = busy(&server, "/fault/sleep?ms=500");
    for client in &mut kept {
        client.ask("/").expect("a request");
    }
    server.signal(Signal::SIGTERM);
    assert_eq!(sleeper.answer().expect("the answer").status, 200);
    for mut client in kept {
        client.answer().expect("what had come is answered").greeting();
    }
    assert_eq!(server.wait().code(), Some(0));
}

fn a_worker_that_outlasts_the_graceful_timeout_is_killed() {
    let mut server = Server::start(&["--workers", "2", "--faults", "--graceful-timeout", "300ms"]);
    let mut client = busy(&server, "/fault/sleep?ms=60000");
    let began = Instant::now();
    server.stop();
    assert!(began.elapsed() >= Duration::from_millis(300));
    assert!(began.elapsed() < PATIENCE / 4, "it took {:?}", began.elapsed());
    assert!(client.answer().is_err());
    let killed = server.log.wait("the reason", |record| record.is("killing a worker"));
    assert_eq!(killed.str("why"), "it had not drained in time");
}

fn int_gives_less_time_than_term() {
    let mut server = Server::start(&["--workers", "2", "--faults"]);
    let mut client = busy(&server, "/fault/sleep?ms=60000");
    let began = Instant::now();
    server.stop_by(Signal::SIGINT);
    assert!(began.elapsed() < PATIENCE / 2, "it took {:?}", began.elapsed());
    assert!(client.answer().is_err());
}

fn a_second_quick_stop_ends_at_once() {
    let mut server = Server::start(&["--workers", "2", "--faults"]);
    let _client = busy(&server, "/fault/sleep?ms=60000");
    // Two signals of one number could come in as one.
    server.signal(Signal::SIGINT);
    server.stop_by(Signal::SIGQUIT);
    let killed = server.log.wait("the reason", |record| record.is("killing a worker"));
    assert_eq!(killed.str("why"), "the operator asked to stop at once");
}

fn term_during_a_reload_ends_cleanly() {
    let mut server = Server::start(&["--workers", "8"]);
    server.signal(Signal::SIGHUP);
    server.log.wait("the middle of it", |record| record.is("worker drained"));
    server.stop();
    assert!(!server.log.text().contains("the old generation stays"), "nothing stays");
}

fn a_second_term_changes_nothing() {
    let mut server = Server::start(&["--workers", "2", "--faults"]);
    let mut client = busy(&server, "/fault/sleep?ms=500");
    server.signal(Signal::SIGTERM);
    server.log.wait("it begins to stop", |record| record.is("stopping"));
    server.signal(Signal::SIGTERM);
    assert_eq!(client.answer().expect("the answer").status, 200);
    assert_eq!(server.wait().code(), Some(0));
}
