//! `hello` in the worker loop with a deadline, each time in a process of its own: the alarm is the
//! process's, and may kill it.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::process::ExitStatusExt;
use std::process::{ExitStatus, Stdio};
use std::thread;
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::server::scoreboard::Board;
use crate::server::services::Hello;
use crate::server::testing::{child_of, is_child, link, record, worker_cx};
use crate::server::worker_config::WorkerConfig;
use crate::server::{Acceptor, Service};

#[test]
fn a_blocked_handler_and_slow_senders_time_out_and_the_worker_lives() {
    if is_child() {
        return serve(timely, Duration::from_secs(20));
    }
    let fate = fate_of("a_blocked_handler_and_slow_senders_time_out_and_the_worker_lives");
    assert!(fate.success(), "{fate}");
}

#[test]
fn a_spinning_handler_takes_its_worker_with_it_by_sigalrm() {
    if is_child() {
        return serve(spinning, Duration::from_millis(100));
    }
    let fate = fate_of("a_spinning_handler_takes_its_worker_with_it_by_sigalrm");
    assert_eq!(fate.signal(), Some(Signal::SIGALRM as i32), "{fate}");
}

fn fate_of(test: &str) -> ExitStatus {
    let mut child = child_of(&format!("server::services::hello::deadline_tests::{test}"));
    let quiet = child.stdout(Stdio::null()).stderr(Stdio::null());
    quiet.status().expect("a process")
}

/// Runs the worker loop in this thread against a client in another.
fn serve(client: fn(SocketAddr), request_kill_after: Duration) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address");
    let acceptor = Acceptor::from_fd(listener.into(), address.to_string()).expect("an acceptor");
    let config = WorkerConfig {
        request_timeout: Some(Duration::from_millis(100)),
        request_kill_after,
        args: [("faults".to_owned(), "true".to_owned())].into(),
        ..WorkerConfig::default()
    };
    let (link, master) = link();
    let board = Board::new(1).expect("a scoreboard");
    let cx = worker_cx(vec![acceptor], config, link, record(&board));
    // The master's end is the client's to drop: then the worker drains, and its loop ends.
    let client = thread::spawn(move || {
        client(address);
        drop(master);
    });
    let hello = Hello::start(&(), &cx).expect("started");
    hello.run(cx).expect("drained");
    client.join().expect("what the client expects");
}

fn timely(address: SocketAddr) {
    let sleep = "GET /fault/sleep?ms=20000 HTTP/1.1\r\nHost: h\r\n\r\n";
    assert!(exchange(address, sleep).starts_with("HTTP/1.1 504 "));
    assert!(exchange(address, "GET / HTTP/1.1\r\nHo").starts_with("HTTP/1.1 408 "));
    let small_body = "GET / HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\n123";
    assert!(exchange(address, small_body).starts_with("HTTP/1.1 408 "));
    let large_body = format!("GET / HTTP/1.1\r\nHost: h\r\nContent-Length: 99999\r\n\r\n{}", "x".repeat(70_000));
    assert!(exchange(address, &large_body).starts_with("HTTP/1.1 408 "));
    assert!(exchange(address, "GET / HTTP/1.0\r\n\r\n").starts_with("HTTP/1.1 200 "));
}

fn spinning(address: SocketAddr) {
    exchange(address, "GET /fault/spin?ms=20000 HTTP/1.1\r\nHost: h\r\n\r\n");
}

/// Says something on a new connection and gives all that is answered until the worker closes it.
fn exchange(address: SocketAddr, words: &str) -> String {
    let mut stream = TcpStream::connect(address).expect("a connection");
    stream.write_all(words.as_bytes()).expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer and a close");
    answer
}
