//! What a client of `hello` can rely on, over real socket pairs.

use std::thread;

use super::super::http::response::CONTINUE;
use super::super::testing::Client;
use super::*;
use crate::server::scoreboard::Board;
use crate::server::testing::{link, record, worker_cx};
use crate::server::worker_config::WorkerConfig;

pub(super) fn client() -> Client<Hello> {
    Client::new(Hello::new("hello\n".to_owned(), false))
}

fn faulty_client() -> Client<Hello> {
    Client::new(Hello::new("hello\n".to_owned(), true))
}

/// One response as far as it is the same at every hour: status, `Connection`, body.
pub(super) type Seen = (u16, Option<String>, String);

/// Takes responses apart by their lengths alone; what does not fit together is a desynchronised
/// connection.
pub(super) fn responses(mut text: &str, methods: &[&str]) -> Vec<Seen> {
    let mut seen = Vec::new();
    while !text.is_empty() {
        let (head, rest) = text.split_once("\r\n\r\n").expect("a head's end");
        let status = head.strip_prefix("HTTP/1.1 ").expect("a status line")[..3].parse().expect("a status");
        let field = |name: &str| {
            let mut fields = head.lines().filter_map(|line| line.split_once(": "));
            fields.find(|(key, _)| *key == name).map(|(_, value)| value.to_owned())
        };
        let length: usize = field("Content-Length").expect("a length").parse().expect("a number");
        let without_body = methods.get(seen.len()) == Some(&"HEAD");
        let (body, rest) = rest.split_at(if without_body { 0 } else { length });
        seen.push((status, field("Connection"), body.to_owned()));
        text = rest;
    }
    seen
}

fn statuses(text: &str) -> Vec<u16> {
    responses(text, &[]).into_iter().map(|(status, ..)| status).collect()
}

#[test]
fn get_answers_the_greeting_and_head_the_same_without_it() {
    let mut client = client();
    let get = client.say("GET / HTTP/1.1\r\nHost: h\r\n\r\n");
    assert_eq!(responses(&get, &[]), [(200, None, "hello\n".to_owned())]);
    let head = client.say("HEAD /?q HTTP/1.1\r\nHost: h\r\n\r\n");
    assert_eq!(head, get.strip_suffix("hello\n").expect("the body"));
    assert_eq!(client.label(), b"HEAD /");
    assert!(!client.is_closed());
}

#[test]
fn start_makes_the_greeting_of_the_workers_coordinates() {
    let (link, _master) = link();
    let board = Board::new(1).expect("a scoreboard");
    let cx = worker_cx(Vec::new(), WorkerConfig::default(), link, record(&board));
    let mut client = Client::new(Hello::start(&(), &cx).expect("started"));
    let expected = format!("hello from slot 0 pid {} generation 1\n", std::process::id());
    let answer = client.say("GET / HTTP/1.0\r\n\r\n");
    assert_eq!(responses(&answer, &[]), [(200, Some("close".to_owned()), expected)]);
}

#[test]
fn each_request_gets_its_status_and_the_connection_its_fate() {
    const OPEN: bool = false;
    const CLOSED: bool = true;
    for (request, expected, fate) in [
        ("GET / HTTP/1.1\r\nHost: h\r\n\r\n", &[200][..], OPEN),
        ("GET http://other/ HTTP/1.1\r\nHost: h\r\n\r\n", &[200], OPEN),
        ("GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n", &[200], CLOSED),
        ("GET / HTTP/1.0\r\n\r\n", &[200], CLOSED),
        ("GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", &[200], OPEN),
        ("\r\n\r\nGET / HTTP/1.1\r\nHost: h\r\n\r\n\r\n", &[200], OPEN),
        ("GET /x HTTP/1.1\r\nHost: h\r\n\r\n", &[404], OPEN),
        ("OPTIONS * HTTP/1.1\r\nHost: h\r\n\r\n", &[404], OPEN),
        ("GET /fault/panic HTTP/1.1\r\nHost: h\r\n\r\n", &[404], OPEN),
        ("DELETE / HTTP/1.1\r\nHost: h\r\n\r\n", &[405], OPEN),
        ("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nabc", &[405], OPEN),
        ("get / HTTP/1.1\r\nHost: h\r\n\r\n", &[501], OPEN),
        ("BREW /pot HTTP/1.1\r\nHost: h\r\n\r\n", &[501], OPEN),
        (
            "GET / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nGET\r\n0\r\n\r\nGET /x HTTP/1.1\r\nHost: h\r\n\r\n",
            &[200, 404],
            OPEN,
        ),
        ("GET / HTTP/1.1\r\n\r\nGET / HTTP/1.1\r\nHost: h\r\n\r\n", &[400], CLOSED),
        (
            "GET / HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            &[400],
            CLOSED,
        ),
        ("GET / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", &[400], CLOSED),
        ("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1048577\r\n\r\n", &[413], CLOSED),
        ("POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n100001\r\n", &[413], CLOSED),
        ("GET / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: gzip\r\n\r\n", &[501], CLOSED),
        ("CONNECT h:1 HTTP/1.1\r\nHost: h\r\n\r\n", &[501], CLOSED),
        ("GET / HTTP/3.0\r\n\r\n", &[505], CLOSED),
    ] {
        let mut client = client();
        let answer = client.say(request);
        assert_eq!(statuses(&answer), expected, "{request:?}");
        assert_eq!(client.is_closed(), fate, "{request:?}");
        let said_close = answer.contains("\r\nConnection: close\r\n");
        assert_eq!(said_close, fate, "{request:?} is told");
    }
}

#[test]
fn a_405_says_which_methods_the_route_takes() {
    assert!(client().say("PUT / HTTP/1.1\r\nHost: h\r\n\r\n").contains("\r\nAllow: GET, HEAD\r\n"));
    let fault = "POST /fault/sleep?ms=1 HTTP/1.1\r\nHost: h\r\n\r\n";
    assert!(faulty_client().say(fault).contains("\r\nAllow: GET, HEAD\r\n"));
}

#[test]
fn keep_alive_is_said_to_a_1_0_client_only() {
    let answer = client().say("GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
    assert_eq!(responses(&answer, &[])[0].1.as_deref(), Some("keep-alive"));
}

#[test]
fn a_refused_client_reads_its_answer_because_the_close_is_slow() {
    let mut client = client();
    client.say("GET / HTTP/1.1\r\n\r\n and more");
    assert!(client.is_closed() && client.lingered);
}

#[test]
fn a_draining_worker_answers_and_says_close() {
    let mut client = client();
    client.draining = true;
    let answer = client.say("GET / HTTP/1.1\r\nHost: h\r\n\r\n");
    assert_eq!(responses(&answer, &[]), [(200, Some("close".to_owned()), "hello\n".to_owned())]);
    assert!(client.is_closed() && client.lingered);
}

#[test]
fn a_slow_head_holds_no_worker_and_ends_in_408() {
    let mut client = client();
    for byte in "GET / HTTP/1.1\r\nHo".bytes() {
        assert_eq!(client.say([byte]), "");
    }
    assert!(!client.is_closed());
    let answer = client.time_out();
    assert_eq!(statuses(&answer), [408]);
    assert!(client.is_closed() && client.lingered);
}

#[test]
fn a_client_that_said_nothing_is_told_nothing() {
    let mut silent = client();
    assert_eq!(silent.time_out(), "");
    assert!(silent.is_closed());
    let mut blank = client();
    blank.say("\r\n\r\n");
    assert_eq!(blank.time_out(), "");
    assert!(blank.is_closed());
}

#[test]
fn a_small_slow_body_holds_no_worker_and_ends_in_408() {
    for head in ["Content-Length: 10\r\n\r\n", "Transfer-Encoding: chunked\r\n\r\na\r\n"] {
        let mut client = client();
        assert_eq!(client.say(format!("POST / HTTP/1.1\r\nHost: h\r\n{head}")), "");
        assert_eq!(client.say("12345"), "");
        assert!(!client.is_closed());
        assert_eq!(statuses(&client.time_out()), [408]);
        assert!(client.is_closed() && client.lingered);
    }
}

#[test]
fn a_large_slow_body_holds_no_worker_nor_memory_and_ends_in_408() {
    for (head, more) in [
        ("Content-Length: 1000000\r\n\r\n", "x".repeat(10_000)),
        ("Transfer-Encoding: chunked\r\n\r\n", format!("2710\r\n{}\r\n", "x".repeat(10_000))),
    ] {
        let mut client = client();
        assert_eq!(client.say(format!("POST / HTTP/1.1\r\nHost: h\r\n{head}")), "");
        for _ in 0..20 {
            assert_eq!(client.say(&more), "");
            assert_eq!(client.buffered(), 0);
        }
        assert_eq!(client.label(), b"POST /");
        assert_eq!(statuses(&client.time_out()), [408]);
        assert!(client.is_closed() && client.lingered);
    }
}

#[test]
fn a_body_that_was_under_way_leaves_the_connection_in_step_and_is_told_of_a_drain() {
    for draining in [false, true] {
        let mut client = client();
        let head = "GET / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nGE";
        assert_eq!(client.say(head), "");
        client.draining = draining;
        assert_eq!(
            statuses(&client.say("T\r\n0\r\n\r\nGET /x HTTP/1.1\r\nHost: h\r\n\r\n")).len(),
            2 - usize::from(draining)
        );
        assert_eq!(client.is_closed(), draining);
    }
}

#[test]
fn bytes_are_sent_with_their_length_and_each_in_its_place() {
    let mut client = faulty_client();
    let answer = client.say("GET /fault/bytes?kb=100 HTTP/1.1\r\nHost: h\r\n\r\n");
    let expected: String = (0..100 * 1024).map(|place| char::from(b'!' + (place % 89) as u8)).collect();
    assert_eq!(responses(&answer, &[]), [(200, None, expected)]);
    let head = client.say("HEAD /fault/bytes?kb=100 HTTP/1.1\r\nHost: h\r\n\r\n");
    assert!(head.contains("\r\nContent-Length: 102400\r\n") && head.ends_with("\r\n\r\n"), "{head}");
    assert!(!client.is_closed());
}

#[test]
fn a_client_that_leaves_in_the_middle_is_told_nothing() {
    for part in [
        "GET / HT",
        "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 10\r\n\r\n123",
        "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n1",
    ] {
        let mut client = client();
        assert_eq!(client.say(part), "");
        assert_eq!(client.hang_up(), "");
        assert!(client.is_closed());
    }
}

#[test]
fn requests_before_a_half_close_are_answered() {
    let mut client = client();
    let request = "GET / HTTP/1.1\r\nHost: h\r\n\r\n";
    let answers = client.say(request.repeat(3)) + &client.hang_up();
    assert_eq!(statuses(&answers), [200; 3]);
}

#[test]
fn a_client_that_waits_for_100_continue_gets_it_once_and_holds_no_worker() {
    let head = "GET / HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\n";
    for (framing, body) in [
        ("Content-Length: 5\r\n\r\n", ["1", "234", "5"]),
        ("Transfer-Encoding: chunked\r\n\r\n", ["1\r", "\nx\r\n0", "\r\n\r\n"]),
    ] {
        let mut client = client();
        assert_eq!(client.say(&head[..20]), "");
        assert_eq!(client.say(&head[20..]), "");
        assert_eq!(client.say(framing), std::str::from_utf8(CONTINUE).expect("text"));
        let answers = body.map(|piece| client.say(piece)).concat();
        assert_eq!(statuses(&answers), [200]);
        assert!(!client.is_closed());
    }
}

#[test]
fn a_client_that_gets_100_continue_and_sends_nothing_ends_in_408() {
    let head = "GET / HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n";
    let mut client = client();
    assert!(client.say(head).starts_with("HTTP/1.1 100 "));
    assert_eq!(statuses(&client.time_out()), [408]);
}

#[test]
fn no_100_continue_where_the_body_is_there_or_the_answer_is_final() {
    let mut eager = client();
    let answer = eager.say("GET / HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n12345");
    assert_eq!(statuses(&answer), [200]);
    assert!(!eager.is_closed());
    let mut refused = client();
    let answer = refused.say("POST / HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n");
    assert_eq!(statuses(&answer), [405]);
    assert!(refused.is_closed() && refused.lingered);
}

#[test]
fn bodies_up_to_the_limit_leave_the_connection_in_step() {
    let body = "x".repeat(1024 * 1024);
    let sized = format!("GET / HTTP/1.1\r\nHost: h\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    let chunks = format!("80000;a=b\r\n{}\r\n", &body[..0x80000]).repeat(2);
    let chunked = format!("GET / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n{chunks}0\r\nT: r\r\n\r\n");
    let stream = [&sized, &chunked, &sized, "GET /x HTTP/1.1\r\nHost: h\r\n\r\n"].concat();
    let mut client = client();
    let mut socket = client.socket.try_clone().expect("a second handle");
    let sender = thread::spawn(move || {
        for piece in stream.as_bytes().chunks(7001) {
            let mut rest = piece;
            while !rest.is_empty() {
                match socket.write(rest) {
                    Ok(count) => rest = &rest[count..],
                    Err(error) if error.kind() == ErrorKind::WouldBlock => thread::yield_now(),
                    Err(error) => panic!("{error}"),
                }
            }
        }
    });
    let mut answers = String::new();
    while statuses(&answers).len() < 4 {
        answers += &client.say("");
    }
    sender.join().expect("all is sent");
    assert_eq!(statuses(&answers), [200, 200, 200, 404]);
}

#[test]
fn a_fault_that_panics_answers_500_and_the_words_are_for_the_log() {
    let mut client = faulty_client();
    let answer = client.say("GET /fault/panic HTTP/1.1\r\nHost: h\r\n\r\n");
    let text = "500 Internal Server Error: the route panicked\n".to_owned();
    assert_eq!(responses(&answer, &[]), [(500, Some("close".to_owned()), text)]);
    assert!(client.is_closed() && client.lingered);
    let error = client.error.expect("an error for the log");
    assert!(error.contains("asked for by /fault/panic (at src"), "{error}");
}

#[test]
fn a_faults_bad_parameter_is_named_and_the_connection_goes_on() {
    let mut client = faulty_client();
    let answer = client.say("GET /fault/leak?mb=2048 HTTP/1.1\r\nHost: h\r\n\r\n");
    let (status, _, text) = &responses(&answer, &[])[0];
    assert_eq!((*status, client.is_closed()), (400, false));
    assert!(text.contains("mb: a number from 0 to 1024"), "{text}");
    assert_eq!(statuses(&client.say("GET /fault/sleep?ms=1 HTTP/1.1\r\nHost: h\r\n\r\n")), [200]);
    assert_eq!(statuses(&client.say("GET /fault/nothing HTTP/1.1\r\nHost: h\r\n\r\n")), [404]);
}
