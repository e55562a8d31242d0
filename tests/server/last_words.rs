//! What a client hears from a worker that dies on its request, and what nobody hears.

use libtest_mimic::Trial;
use nix::sys::signal::Signal;

use crate::support::client::Client;
use crate::support::{Launch, Server, signal_process};

pub fn tests() -> Vec<Trial> {
    trials!["last_words":
        each_crash_is_answered_502_and_the_worker_dies_by_its_signal,
        a_request_that_computes_for_ever_is_answered_504_and_its_worker_dies_by_sigalrm,
        after_the_response_has_begun_the_connection_is_cut,
        an_answer_before_the_crash_goes_out_whole_and_the_words_follow,
        of_hundreds_of_answers_before_the_crash_none_is_lost,
        a_crash_outside_of_any_request_says_nothing_to_anybody,
        a_crash_on_one_request_says_nothing_to_other_clients,
        the_words_heed_head_and_http_1_0,
        over_a_unix_socket_they_are_said_too,
        a_service_of_ones_own_has_its_own_words_for_crash_and_deadline,
        a_crash_of_another_thread_of_the_worker_is_told_too,
        without_words_the_connection_is_cut,
        a_handler_that_the_service_installed_is_left_alone,
    ]
}

/// All that is left to read, as text.
fn rest(client: &mut Client) -> String {
    String::from_utf8(client.rest()).expect("text")
}

fn killed_by(server: &Server, pid: i32, signal: Signal) {
    let end = server.log.wait("its end", |record| record.is_about("worker exited", pid));
    assert_eq!(end.str("why"), format!("was killed by signal {}", signal as i32));
}

fn each_crash_is_answered_502_and_the_worker_dies_by_its_signal() {
    let server = Server::start(&["--workers", "2", "--faults"]);
    for (fault, signal) in [
        ("/fault/segv", Signal::SIGSEGV),
        ("/fault/bus", Signal::SIGBUS),
        ("/fault/ill", Signal::SIGILL),
        ("/fault/fpe", Signal::SIGFPE),
        ("/fault/abort", Signal::SIGABRT),
        ("/fault/overflow", Signal::SIGSEGV),
    ] {
        let mut client = server.client();
        let (slot, pid, _) = client.get("/").expect("an answer").greeting();
        let answer = client.get(fault).unwrap_or_else(|error| panic!("{fault}: {error}"));
        assert_eq!((answer.status, answer.closes), (502, true), "{fault}");
        assert_eq!(rest(&mut client), "", "{fault}");
        killed_by(&server, pid, signal);
        let request = server.log.wait("its request", |record| record.is_about("a worker died in a request", pid));
        assert_eq!(request.str("label"), format!("GET {fault}"));
        server.successor(slot, pid);
        server.get("/").greeting();
    }
}

fn a_request_that_computes_for_ever_is_answered_504_and_its_worker_dies_by_sigalrm() {
    let limits = ["--request-timeout", "100ms", "--request-kill-after", "50ms"];
    let server = Launch::hatchery().args(["--workers", "1", "--faults"]).args(limits).start();
    let mut client = server.client();
    let pid = client.get("/").expect("an answer").pid();
    let answer = client.get("/fault/spin?ms=600000").expect("an answer");
    assert_eq!((answer.status, answer.closes), (504, true));
    assert_eq!(rest(&mut client), "");
    killed_by(&server, pid, Signal::SIGALRM);
    assert_eq!(server.get("/").pid(), server.successor(0, pid));
}

fn after_the_response_has_begun_the_connection_is_cut() {
    let server = Server::start(&["--workers", "1", "--faults"]);
    let pid = server.get("/").pid();
    let mut client = server.client();
    client.ask("/fault/break-off").expect("a request");
    let received = rest(&mut client);
    assert!(received.starts_with("HTTP/1.1 200 ") && received.ends_with("to be"), "{received:?}");
    killed_by(&server, pid, Signal::SIGSEGV);

    let server = Launch::fixture("probe").args(["--workers", "1", "--request-kill-after", "20ms"]).start();
    let mut client = server.client();
    client.send("begin and spin within 50\n").expect("a question");
    assert_eq!(rest(&mut client), "it begins\n");
}

fn an_answer_before_the_crash_goes_out_whole_and_the_words_follow() {
    let limits = ["--request-timeout", "100ms", "--request-kill-after", "50ms"];
    for (fault, status) in [("/fault/segv", 502), ("/fault/spin?ms=600000", 504)] {
        let server = Launch::hatchery().args(["--workers", "1", "--faults"]).args(limits).start();
        let mut client = server.client();
        client.send(get("/") + &get(fault)).expect("two requests");
        client.answer().expect("the first answer").greeting();
        assert_eq!(client.answer().expect("the last words").status, status);
        assert_eq!(rest(&mut client), "");
    }
}

/// They are more than the worker keeps before it sends.
fn of_hundreds_of_answers_before_the_crash_none_is_lost() {
    let server = Server::start(&["--workers", "1", "--faults"]);
    for count in [110, 200, 300] {
        let mut client = server.client();
        client.send(get("/").repeat(count) + &get("/fault/abort") + &get("/")).expect("requests");
        for _ in 0..count {
            client.answer().expect("an answer").greeting();
        }
        assert_eq!(client.answer().expect("the last words").status, 502);
        assert_eq!(rest(&mut client), "");
    }
}

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: test\r\n\r\n")
}

fn a_crash_outside_of_any_request_says_nothing_to_anybody() {
    let server = Server::start(&["--workers", "1", "--faults"]);
    for signal in [Signal::SIGSEGV, Signal::SIGABRT, Signal::SIGALRM] {
        let mut parked: Vec<Client> = (0..3).map(|_| server.client()).collect();
        let pid = parked.iter_mut().map(|client| client.get("/").expect("an answer").pid()).max().expect("a pid");
        parked[2].send("GET / HT").expect("a part of a request");
        signal_process(pid, signal);
        if signal == Signal::SIGALRM {
            // Without a request in hand it means nothing.
            assert_eq!(parked[0].get("/").expect("an answer").pid(), pid);
            continue;
        }
        for client in &mut parked {
            assert_eq!(rest(client), "");
        }
        killed_by(&server, pid, signal);
        server.successor(0, pid);
    }
}

fn a_crash_on_one_request_says_nothing_to_other_clients() {
    let server = Server::start(&["--workers", "1", "--faults"]);
    let mut others: Vec<Client> = (0..3).map(|_| server.client()).collect();
    for client in &mut others {
        client.get("/").expect("an answer");
    }
    assert_eq!(server.get("/fault/segv").status, 502);
    for client in &mut others {
        assert_eq!(rest(client), "");
    }
}

fn the_words_heed_head_and_http_1_0() {
    let server = Server::start(&["--workers", "1", "--faults"]);
    let mut client = server.client();
    client.send("HEAD /fault/segv HTTP/1.1\r\nHost: test\r\n\r\n").expect("a request");
    let head = rest(&mut client);
    assert!(head.starts_with("HTTP/1.1 502 ") && head.contains("\r\nContent-Length: "), "{head:?}");
    assert_eq!(head.find("\r\n\r\n"), Some(head.len() - 4), "{head:?}");
    let mut client = server.client();
    client.send("GET /fault/segv HTTP/1.0\r\nConnection: keep-alive\r\n\r\n").expect("a request");
    let answer = client.answer().expect("the last words");
    assert_eq!((answer.status, answer.closes), (502, true));
    assert!(answer.body.starts_with("502 "), "{answer:?}");
    assert_eq!(rest(&mut client), "");
}

fn over_a_unix_socket_they_are_said_too() {
    let folder = tempfile::tempdir().expect("a folder");
    let address = format!("unix:{}/socket", folder.path().display());
    let server = Launch::hatchery().args(["--workers", "1", "--faults", "--listen"]).arg(&address).spawn();
    server.await_serving();
    let mut client = Client::connect(&address).expect("a connection");
    client.send(get("/") + &get("/fault/segv")).expect("requests");
    client.answer().expect("an answer").greeting();
    assert_eq!(client.answer().expect("the last words").status, 502);
    assert_eq!(rest(&mut client), "");
}

fn a_service_of_ones_own_has_its_own_words_for_crash_and_deadline() {
    let server = Launch::fixture("probe").args(["--workers", "1", "--request-kill-after", "20ms"]).start();
    for (order, words, signal) in [
        ("say crashed or late and crash", "crashed\n", Signal::SIGSEGV),
        ("say crashed or late and spin", "late\n", Signal::SIGALRM),
    ] {
        let pid = *server.workers().values().next().expect("a worker");
        let mut client = server.client();
        client.exchange("who").expect("an answer");
        client.send(format!("{order}\n")).expect("an order");
        assert_eq!(rest(&mut client), words, "{order}");
        killed_by(&server, pid, signal);
        server.successor(0, pid);
    }
}

fn a_crash_of_another_thread_of_the_worker_is_told_too() {
    let server = Launch::fixture("probe").args(["--workers", "1"]).start();
    let mut client = server.client();
    client.send("say crashed or late and abort-in-a-thread\n").expect("an order");
    assert_eq!(rest(&mut client), "crashed\n");
}

fn without_words_the_connection_is_cut() {
    let server = Launch::fixture("probe").args(["--workers", "1"]).start();
    let pid = server.workers()[&0];
    let mut client = server.client();
    client.send("crash\n").expect("an order");
    assert_eq!(rest(&mut client), "");
    killed_by(&server, pid, Signal::SIGSEGV);
}

fn a_handler_that_the_service_installed_is_left_alone() {
    for moment in ["preload", "start"] {
        let handler = format!("heeds-bus-from={moment}");
        let server = Launch::fixture("probe").args(["--workers", "1", "--arg"]).arg(handler).start();
        let pid = server.workers()[&0];
        let mut client = server.client();
        assert_eq!(client.exchange("bus-signals").expect("an answer"), "0");
        client.send("say crashed or late and raise-bus\n").expect("an order");
        assert_eq!(client.line().expect("an answer"), "it passed\n", "{moment}");
        assert_eq!(client.exchange("bus-signals").expect("an answer"), "1");
        client.send("say crashed or late and crash\n").expect("an order");
        assert_eq!(rest(&mut client), "crashed\n");
        killed_by(&server, pid, Signal::SIGSEGV);
    }
}
