//! Clients that take their time, in either direction: they hold no worker, and lose nothing.

use std::io::{ErrorKind, Write};
use std::net::TcpStream;
use std::sync::LazyLock;
use std::time::Instant;

use libtest_mimic::Trial;
use nix::sys::signal::Signal;

use crate::support::client::{Answer, Client};
use crate::support::log::Record;
use crate::support::processes::eventually;
use crate::support::{Launch, PATIENCE, Server, signal_process};

pub fn tests() -> Vec<Trial> {
    trials!["slow_clients":
        clients_that_never_read_a_long_answer_hold_no_worker,
        clients_that_ask_on_and_never_read_hold_no_worker,
        clients_that_stall_in_a_long_body_hold_no_worker,
        a_client_that_never_reads_is_cut_at_its_deadline_and_told_once,
        a_client_that_leaves_in_the_middle_of_its_answer_is_counted_and_told_once,
        a_client_that_leaves_in_the_middle_of_its_body_is_counted_and_told_once,
        a_slow_reader_gets_its_whole_answer_across_a_reload,
        a_slow_reader_gets_its_whole_answer_across_a_stop,
        a_slow_reader_gets_its_whole_answer_from_a_worker_that_is_recycled,
        a_long_body_under_way_at_a_stop_is_received_and_answered,
        an_answer_under_way_is_cut_by_a_crash_and_gets_no_last_words,
        an_answer_of_a_service_of_ones_own_waits_for_its_reader_without_the_worker,
        finished_answers_do_not_wait_for_a_slow_request_behind_them,
        finished_answers_are_not_lost_with_a_worker_that_leaves_in_the_next_request,
    ]
}

/// Far more than the kernel keeps for a client that does not read.
const MUCH: usize = 16 << 20;

fn ask_for_much(server: &Server) -> Client {
    let mut client = server.client_that_asks(&format!("/fault/bytes?kb={}", MUCH / 1024));
    client.first_byte().expect("the answer has begun");
    client
}

/// What the answer is to be: each byte tells its place.
fn much() -> &'static [u8] {
    static MADE: LazyLock<Vec<u8>> = LazyLock::new(|| (0..MUCH).map(|place| b'!' + (place % 89) as u8).collect());
    &MADE
}

#[track_caller]
fn assert_is_much(answer: &Answer) {
    assert_eq!((answer.status, answer.body.len()), (200, MUCH));
    assert!(answer.body.as_bytes() == much(), "a byte is out of place");
}

/// As many honest clients as would need every worker.
fn honest_clients_are_answered(server: &Server) {
    for _ in 0..20 {
        server.get("/").greeting();
    }
}

fn clients_that_never_read_a_long_answer_hold_no_worker() {
    let server = Server::start(&["--workers", "2", "--faults", "--request-timeout", "10m"]);
    let slow: Vec<Client> = (0..8).map(|_| ask_for_much(&server)).collect();
    honest_clients_are_answered(&server);
    for mut client in slow {
        assert_is_much(&client.answer().expect("an answer"));
        // The connection is in step, too.
        client.get("/").expect("an answer").greeting();
    }
}

fn clients_that_ask_on_and_never_read_hold_no_worker() {
    const REQUEST: &str = "GET / HTTP/1.1\r\nHost: test\r\n\r\n";
    let server = Server::start(&["--workers", "2", "--request-timeout", "10m"]);
    let requests = REQUEST.repeat(1000);
    let mut askers: Vec<(TcpStream, usize)> = (0..6)
        .map(|_| {
            let stream = TcpStream::connect(server.address()).expect("a connection");
            stream.set_nonblocking(true).expect("a socket");
            (stream, 0)
        })
        .collect();
    let until = Instant::now() + PATIENCE;
    let mut idle_rounds = 0;
    while idle_rounds < 50 {
        assert!(Instant::now() < until, "more and more is taken from them");
        let before: usize = askers.iter().map(|(_, sent)| sent).sum();
        for (stream, sent) in &mut askers {
            loop {
                match stream.write(&requests.as_bytes()[*sent % requests.len()..]) {
                    Ok(count) => *sent += count,
                    Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                    Err(error) => panic!("{error}"),
                }
            }
        }
        server.get("/").greeting();
        let taken = askers.iter().map(|(_, sent)| sent).sum::<usize>() - before;
        idle_rounds = if taken == 0 { idle_rounds + 1 } else { 0 };
    }
    honest_clients_are_answered(&server);
    let (stream, sent) = askers.swap_remove(0);
    stream.set_nonblocking(false).expect("a socket");
    let mut reader = Client::over(stream).expect("a client");
    for _ in 0..sent / REQUEST.len() {
        reader.answer().expect("an answer for each request").greeting();
    }
}

/// A request with a body of a megabyte, in two pieces.
fn long_bodies() -> [(String, String); 2] {
    let head = |framing: &str| format!("POST / HTTP/1.1\r\nHost: test\r\n{framing}\r\n\r\n");
    let (first, second) = ("x".repeat(200_000), "x".repeat(800_000));
    [
        (head("Content-Length: 1000000") + &first, second.clone()),
        (head("Transfer-Encoding: chunked") + "f4240\r\n" + &first, second + "\r\n0\r\n\r\n"),
    ]
}

fn clients_that_stall_in_a_long_body_hold_no_worker() {
    let server = Server::start(&["--workers", "2", "--request-timeout", "10m"]);
    for (first, second) in long_bodies() {
        let mut slow: Vec<Client> = (0..8).map(|_| server.client()).collect();
        for client in &mut slow {
            client.send(&first).expect("a part of a request");
        }
        honest_clients_are_answered(&server);
        for client in &mut slow {
            client.send(&second).expect("the rest");
            let answer = client.answer().expect("an answer");
            assert_eq!((answer.status, answer.closes), (405, false));
            client.get("/").expect("an answer").greeting();
        }
    }
}

const ABORTED: &str = "a request was aborted, its client is gone";

fn timed_out(record: &Record) -> bool {
    record.is("a request timed out")
}

fn a_client_that_never_reads_is_cut_at_its_deadline_and_told_once() {
    let server = Server::start(&["--workers", "1", "--faults", "--request-timeout", "500ms"]);
    let pid = server.get("/").pid();
    let mut client = ask_for_much(&server);
    let told = server.log.wait("the slow log", timed_out);
    assert_eq!((told.str("kind"), told.str("label")), ("soft".to_owned(), "GET /fault/bytes".to_owned()));
    assert_eq!(told.str("peer"), client.local_address());
    assert!(told.str("kernel").contains("waited for the client"), "{}", told.line);
    assert!((500..20_000).contains(&told.u64("elapsed_ms")), "{}", told.line);
    let received = client.rest();
    assert!(received.starts_with(b"HTTP/1.1 200 ") && received.len() < MUCH, "{} bytes", received.len());
    assert_eq!(server.get("/").pid(), pid);
    assert_eq!(server.workers_ever(0), [pid]);
    assert_eq!(server.log.count(timed_out), 1);
    assert_eq!(server.log.count(|record| record.is("a request failed, the connection is closed")), 0);
}

fn a_client_that_leaves_in_the_middle_of_its_answer_is_counted_and_told_once() {
    let server = Server::start(&["--workers", "1", "--faults", "--request-timeout", "10m"]);
    let client = ask_for_much(&server);
    let address = client.local_address().to_owned();
    client.reset();
    let told = server.log.wait("it is told", |record| record.is(ABORTED));
    assert_eq!((told.str("label"), told.str("peer")), ("GET /fault/bytes".to_owned(), address));
    assert_eq!(told.u64("aborted"), 1);
    server.get("/").greeting();
    assert_eq!(server.log.count(|record| record.is(ABORTED)), 1);
}

fn a_client_that_leaves_in_the_middle_of_its_body_is_counted_and_told_once() {
    let server = Server::start(&["--workers", "1", "--request-timeout", "10m"]);
    for ((first, _), count) in long_bodies().into_iter().zip(1..) {
        let mut client = server.client();
        client.send(first).expect("a part of a request");
        // Another client is served after it, so the worker has begun with the body.
        server.get("/").greeting();
        client.half_close();
        assert_eq!(client.rest(), b"");
        let told = server.log.wait("it is told", |record| record.is(ABORTED) && record.u64("aborted") == count);
        assert_eq!((told.str("label").as_str(), told.str("peer").as_str()), ("POST /", client.local_address()));
        assert_eq!(server.log.count(|record| record.is(ABORTED)), count as usize);
    }
}

fn is_draining(record: &Record) -> bool {
    record.is("draining")
}

fn a_slow_reader_gets_its_whole_answer_across_a_reload() {
    let mut server = Server::start(&["--workers", "1", "--faults"]);
    let mut client = ask_for_much(&server);
    server.signal(Signal::SIGHUP);
    server.log.wait("the reload", |record| record.is("reloaded"));
    server.log.wait("the old worker drains", is_draining);
    // An old worker that drains has a last look at the queue.
    eventually("the new generation answers", || server.get("/").greeting().2 == 2);
    assert_is_much(&client.answer().expect("the whole answer"));
    server.stop();
}

fn a_slow_reader_gets_its_whole_answer_across_a_stop() {
    let mut server = Server::start(&["--workers", "1", "--faults"]);
    let mut client = ask_for_much(&server);
    server.signal(Signal::SIGTERM);
    server.log.wait("the worker drains", is_draining);
    assert_is_much(&client.answer().expect("the whole answer"));
    assert_eq!(client.rest(), b"");
    assert_eq!(server.wait().code(), Some(0), "{}", server.log.text());
}

fn a_slow_reader_gets_its_whole_answer_from_a_worker_that_is_recycled() {
    let mut server = Server::start(&["--workers", "1", "--faults", "--max-requests", "20"]);
    let pid = server.get("/").pid();
    let mut client = ask_for_much(&server);
    eventually("its worker drains", || {
        server.get("/").greeting();
        server.log.count(|record| record.is_about("draining", pid)) > 0
    });
    assert_is_much(&client.answer().expect("the whole answer"));
    server.log.wait("the worker leaves", |record| record.is_about("worker drained", pid));
    server.stop();
}

fn a_long_body_under_way_at_a_stop_is_received_and_answered() {
    for (first, second) in long_bodies() {
        let mut server = Server::start(&["--workers", "1"]);
        let mut client = server.client();
        client.get("/").expect("an answer").greeting();
        client.send(first).expect("a part of a request");
        // Another client is served after it, so the worker has begun with the body.
        server.get("/").greeting();
        server.signal(Signal::SIGTERM);
        server.log.wait("the worker drains", is_draining);
        client.send(second).expect("the rest");
        let answer = client.answer().expect("an answer");
        assert_eq!((answer.status, answer.closes), (405, true));
        assert_eq!(client.rest(), b"");
        // Until it leaves, the worker drops what it still sends.
        drop(client);
        assert_eq!(server.wait().code(), Some(0), "{}", server.log.text());
    }
}

fn an_answer_under_way_is_cut_by_a_crash_and_gets_no_last_words() {
    let server = Server::start(&["--workers", "1", "--faults", "--request-timeout", "10m"]);
    let mut slow = ask_for_much(&server);
    assert_eq!(server.get("/fault/segv").status, 502);
    let received = slow.rest();
    let begins = received.windows(4).position(|four| four == b"\r\n\r\n").expect("a head's end") + 4;
    let body = &received[begins..];
    assert!(body.len() < MUCH);
    assert!(much().starts_with(body), "other bytes follow");
}

/// It writes in the plainest way.
fn an_answer_of_a_service_of_ones_own_waits_for_its_reader_without_the_worker() {
    let server = Launch::fixture("probe").args(["--workers", "1", "--request-timeout", "10m"]).start();
    let who = server.client().exchange("who").expect("an answer");
    let mut slow: Vec<Client> = (0..8).map(|_| server.client()).collect();
    for client in &mut slow {
        // Each answer fits into what is kept for one connection. Together they do not fit into the kernel.
        client.send("much 1\n".repeat(12)).expect("questions");
        client.first_byte().expect("the first answer has begun");
    }
    assert_eq!(server.client().exchange("who").expect("an answer"), who);
    for mut client in slow {
        client.half_close();
        assert!(client.rest().iter().filter(|&&byte| byte == b'x').count() == 12 << 20);
    }
}

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: test\r\n\r\n")
}

fn finished_answers_do_not_wait_for_a_slow_request_behind_them() {
    let server = Server::start(&["--workers", "1", "--faults", "--request-timeout", "10m"]);
    let mut client = server.client();
    client.send(get("/").repeat(3) + &get("/fault/sleep?ms=600000")).expect("requests");
    for _ in 0..3 {
        client.answer().expect("an answer").greeting();
    }
    signal_process(server.workers()[&0], Signal::SIGKILL);
    let server = Launch::fixture("probe").args(["--workers", "1"]).start();
    let mut client = server.client();
    client.send("who\nwithin 600000 for 600000\n").expect("questions");
    client.line().expect("an answer");
    signal_process(server.workers()[&0], Signal::SIGKILL);
}

fn finished_answers_are_not_lost_with_a_worker_that_leaves_in_the_next_request() {
    let server = Server::start(&["--workers", "1", "--faults", "--request-timeout", "10m"]);
    let mut client = server.client();
    client.send(get("/").repeat(3) + &get("/fault/exit?code=7")).expect("requests");
    for _ in 0..3 {
        client.answer().expect("an answer").greeting();
    }
    assert_eq!(client.rest(), b"");
    let mut client = server.client();
    client.send(get("/") + &get("/fault/spin?ms=600000")).expect("requests");
    let pid = client.answer().expect("an answer").pid();
    signal_process(pid, Signal::SIGKILL);
    assert_eq!(client.rest(), b"");
}
