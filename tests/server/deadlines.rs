//! What takes too long: requests, their senders, their readers, and connections without a request.

use std::time::{Duration, Instant};

use libtest_mimic::Trial;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::support::client::Client;
use crate::support::{Launch, Server};

pub fn tests() -> Vec<Trial> {
    trials!["deadlines":
        a_sleeping_request_gets_504_and_its_worker_lives_on,
        a_slow_head_gets_408,
        a_stalled_body_beyond_the_buffer_gets_408_and_its_worker_lives_on,
        five_hundred_dribbling_clients_keep_nobody_from_being_answered,
        five_hundred_clients_that_never_end_are_all_told_408,
        a_client_that_never_reads_holds_no_worker_beyond_the_deadline,
        a_request_may_set_a_deadline_of_its_own_with_and_without_one_for_all,
        a_long_answer_goes_on_while_each_piece_extends_the_deadline,
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

fn a_slow_head_gets_408() {
    let server = Server::start(&["--workers", "1", "--request-timeout", "200ms"]);
    let mut client = server.client();
    client.send("GET / HT").expect("a part of a request");
    assert_eq!(client.answer().expect("an answer").status, 408);
    assert_eq!(client.rest(), b"");
}

fn a_stalled_body_beyond_the_buffer_gets_408_and_its_worker_lives_on() {
    let server = Server::start(&["--workers", "1", "--request-timeout", "200ms"]);
    let pid = server.get("/").pid();
    let mut client = server.client();
    client.send("POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 100000\r\n\r\n").expect("a head");
    client.send("x".repeat(70_000)).expect("a part of the body");
    assert_eq!(client.answer().expect("an answer").status, 408);
    assert_eq!(server.get("/").pid(), pid);
}

fn five_hundred_dribbling_clients_keep_nobody_from_being_answered() {
    let server = Server::start(&["--workers", "4"]);
    let mut dribblers = dribblers(&server);
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

fn five_hundred_clients_that_never_end_are_all_told_408() {
    let server = Server::start(&["--workers", "4", "--request-timeout", "1s"]);
    let workers = server.workers();
    let mut dribblers = dribblers(&server);
    for client in &mut dribblers {
        client.send("GET / HTTP/1.1\r\nHo").expect("a part of a request");
    }
    server.get("/").greeting();
    for client in &mut dribblers {
        assert_eq!(client.answer().expect("an answer").status, 408);
    }
    assert_eq!(server.workers(), workers);
}

/// Five hundred connections at once.
fn dribblers(server: &Server) -> Vec<Client> {
    make_room_for_descriptors();
    (0..500).map(|_| server.client()).collect()
}

/// Often a process may have 1,024 descriptors unless it asks for more, and other tests have theirs beside.
fn make_room_for_descriptors() {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("a limit");
    setrlimit(Resource::RLIMIT_NOFILE, soft.max(hard.min(4096)), hard).expect("as far as it may");
}

fn a_client_that_never_reads_holds_no_worker_beyond_the_deadline() {
    let server = Launch::fixture("probe").args(["--workers", "1", "--request-timeout", "300ms"]).start();
    let who = server.client().exchange("who").expect("an answer");
    let mut client = server.client();
    client.send("much 64\n").expect("a question");
    assert_eq!(server.client().exchange("who").expect("an answer"), who);
    let told = server.log.wait("the log says so", |record| record.is("a request failed, the connection is closed"));
    assert!(told.str("label").starts_with("much"), "{}", told.line);
    let received = client.rest().len();
    assert!(received < 64 << 20, "the answer went out whole");
}

fn a_request_may_set_a_deadline_of_its_own_with_and_without_one_for_all() {
    for for_all in ["off", "30s", "200ms"] {
        let server = Launch::fixture("probe").args(["--workers", "1", "--request-timeout", for_all]).start();
        let mut client = server.client();
        let who = client.exchange("who").expect("an answer");
        assert_eq!(client.exchange("within 50 for 60000").expect("an answer"), "late", "{for_all}");
        assert_eq!(client.exchange("within 60000 for 400").expect("an answer"), "in time", "{for_all}");
        assert_eq!(client.exchange("who").expect("an answer"), who);
    }
    let args = ["--workers", "1", "--request-timeout", "off", "--request-kill-after", "50ms"];
    let server = Launch::fixture("probe").args(args).start();
    let pid = server.workers()[&0];
    assert!(server.client().exchange("spin within 50").is_err());
    let end = server.log.wait("its end", |record| record.is_about("worker exited", pid));
    assert_eq!(end.str("why"), "was killed by signal 14");
}

fn a_long_answer_goes_on_while_each_piece_extends_the_deadline() {
    let server = Launch::fixture("probe").args(["--workers", "1", "--request-timeout", "500ms"]).start();
    let mut client = server.client();
    client.send("pieces 9 every 100 extending 3000\n").expect("a question");
    for piece in 0..9 {
        assert_eq!(client.line().expect("a piece"), format!("piece {piece}\n"));
    }
    assert!(client.line().expect("its end").starts_with("end"));
    client.send("pieces 9 every 100 extending 0\n").expect("a question");
    assert_eq!(client.line().expect("its end"), "late\n");
}

fn an_idle_connection_is_closed_in_its_time() {
    let server = Server::start(&["--workers", "1", "--idle-timeout", "200ms"]);
    let mut client = server.client();
    client.get("/").expect("an answer");
    assert_eq!(client.rest(), b"");
}
