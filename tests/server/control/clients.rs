//! Clients of every kind: none of them harms the server or another, and who does nothing right is hung up on.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::sync::Barrier;
use std::time::Instant;

use hatchery::control;
use hatchery::server::ServerState;
use libtest_mimic::Trial;

use super::{Place, RELOAD, SOON, STATUS, all_of};
use crate::support::log::Record;
use crate::support::processes::{descriptors, eventually};
use crate::support::{Launch, PATIENCE, Server};

pub fn tests() -> Vec<Trial> {
    trials!["control":
        nonsense_is_refused_and_harms_nobody,
        one_connection_asks_as_often_as_it_likes,
        a_client_that_has_said_all_and_one_that_has_hung_up_are_told_apart,
        who_says_nothing_and_who_dribbles_is_hung_up_on_in_time,
        who_does_not_read_is_hung_up_on_and_others_are_answered,
        a_hundred_clients_at_once_are_all_answered,
        beyond_the_bound_clients_are_refused_and_let_in_again_later,
        without_a_descriptor_for_it_a_client_waits_and_nobody_spins,
    ]
}

fn start(place: &Place) -> Server {
    place.launch(Launch::hatchery().args(["--workers", "2"])).start()
}

fn nonsense_is_refused_and_harms_nobody() {
    let place = Place::new();
    let mut server = start(&place);
    let held = descriptors(server.pid).len();
    let long = b" ".repeat(1 << 20);
    let cases: [(&[u8], &str); 6] = [
        (b"GET / HTTP/1.1\r\n\r\n", "malformed"),
        (b"\n", "malformed"),
        (b"\xff\xfe\0\n", "malformed"),
        (b"{\"version\":1,\"request\":\"halt\"}\n", "malformed"),
        (b"{\"version\":2,\"request\":\"status\"}\n", "other_version"),
        (&long, "too_long"),
    ];
    for (words, reason) in cases {
        let heard = place.control().heard_after(words);
        assert!(heard.starts_with("{\"version\":1,\"answer\":\"refused\""), "{heard}");
        assert!(heard.ends_with('\n') && heard.contains(&format!("\"reason\":\"{reason}\"")), "{heard}");
        assert_eq!(heard.lines().count(), 1, "{heard}");
    }
    assert_eq!(place.control().status().state, ServerState::Serving);
    eventually("nothing of them is left", || descriptors(server.pid).len() <= held);
    server.get("/").greeting();
    server.stop();
}

fn one_connection_asks_as_often_as_it_likes() {
    let place = Place::new();
    let server = start(&place);
    let mut stream = place.control().connect();
    let mut lines = BufReader::new(stream.try_clone().expect("a descriptor")).lines();
    // Together, and one after the other.
    stream.write_all(&[STATUS, RELOAD, STATUS].concat()).expect("it listens");
    let mut next = || lines.next().expect("an answer").expect("a line");
    assert!(next().contains("\"generation\":1,"));
    assert!(next().contains("\"answer\":\"reload\",\"generation\":2,\"outcome\":\"reloaded\""));
    assert!(next().contains("\"generation\":2,"));
    for _ in 0..100 {
        stream.write_all(STATUS).expect("it listens");
        assert!(next().contains("\"answer\":\"status\""));
    }
    drop(server);
}

fn a_client_that_has_said_all_and_one_that_has_hung_up_are_told_apart() {
    let place = Place::new();
    let mut server = start(&place);
    let held = descriptors(server.pid).len();
    // As `nc -N` does: nothing more is said, and the answer is awaited.
    let mut stream = place.control().connect();
    stream.write_all(RELOAD).expect("it listens");
    stream.shutdown(std::net::Shutdown::Write).expect("it is ours");
    assert!(all_of(&mut stream).contains("\"outcome\":\"reloaded\""));
    // Who hangs up at once has asked all the same.
    let mut stream = place.control().connect();
    stream.write_all(RELOAD).expect("it listens");
    drop(stream);
    server.log.wait_for_many(0, 2, "the second reload", |record| record.is("reloaded"));
    eventually("nothing of them is left", || descriptors(server.pid).len() <= held);
    server.stop();
}

fn who_says_nothing_and_who_dribbles_is_hung_up_on_in_time() {
    let place = Place::new();
    let server = start(&place);
    let mut silent = place.control().connect();
    let mut dribbling = place.control().connect();
    let dribble = dribbling.try_clone().expect("a descriptor");
    let began = Instant::now();
    let dribbler = std::thread::spawn(move || {
        // The pace of it is what is tested.
        while (&dribble).write_all(b" ").is_ok() {
            std::thread::sleep(control::PATIENCE / 100);
        }
    });
    for stream in [&mut silent, &mut dribbling] {
        let heard = all_of(stream);
        assert!(heard.contains("\"reason\":\"too_slow\""), "{heard}");
    }
    let took = began.elapsed();
    assert!(took >= control::PATIENCE.mul_f32(0.9) && took < SOON, "{took:?}");
    dribbler.join().expect("it has ended with its connection");
    drop(server);
}

fn who_does_not_read_is_hung_up_on_and_others_are_answered() {
    let place = Place::new();
    let mut server = start(&place);
    let held = descriptors(server.pid).len();
    let deaf: Vec<UnixStream> = (0..8).map(|_| place.control().connect()).collect();
    let askers: Vec<_> = deaf
        .iter()
        .map(|stream| {
            let mut stream = stream.try_clone().expect("a descriptor");
            // It asks until its own socket takes no more, and then until it is shut.
            std::thread::spawn(move || while stream.write_all(STATUS).is_ok() {})
        })
        .collect();
    eventually("they are hung up on, and others are answered meanwhile", || {
        place.control().status();
        askers.iter().all(std::thread::JoinHandle::is_finished)
    });
    eventually("nothing of them is left", || descriptors(server.pid).len() <= held);
    drop(deaf);
    server.get("/").greeting();
    server.stop();
}

fn a_hundred_clients_at_once_are_all_answered() {
    const CLIENTS: usize = 100;
    let place = Place::new();
    let mut server = start(&place);
    let held = descriptors(server.pid).len();
    let (address, start) = (place.control().address(), Barrier::new(CLIENTS));
    std::thread::scope(|scope| {
        for _ in 0..CLIENTS {
            scope.spawn(|| {
                start.wait();
                let status = control::status(&address, Some(PATIENCE)).expect("a status");
                assert_eq!(status.workers, 2);
            });
        }
    });
    eventually("nothing of them is left", || descriptors(server.pid).len() <= held);
    server.stop();
}

fn beyond_the_bound_clients_are_refused_and_let_in_again_later() {
    let place = Place::new();
    let mut server = start(&place);
    // Each is answered once, so that it is known to be in.
    let mut inside: Vec<BufReader<UnixStream>> = Vec::new();
    for _ in 0..control::MOST_CLIENTS {
        let mut stream = BufReader::new(place.control().connect());
        stream.get_mut().write_all(STATUS).expect("it listens");
        stream.read_line(&mut String::new()).expect("an answer");
        inside.push(stream);
    }
    for _ in 0..20 {
        let heard = place.control().heard_after(STATUS);
        assert!(heard.contains("\"reason\":\"busy\""), "{heard}");
    }
    drop(inside);
    eventually("there is room again", || control::status(&place.control().address(), Some(PATIENCE)).is_ok());
    server.stop();
}

/// What prlimit(1) says to this about the descriptors of a process.
fn limit_of_descriptors(pid: i32, args: &[&str]) -> String {
    let output =
        Command::new("prlimit").args(["--pid", &pid.to_string()]).args(args).output().expect("util-linux is there");
    assert!(output.status.success(), "{output:?}");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

fn without_a_descriptor_for_it_a_client_waits_and_nobody_spins() {
    let place = Place::new();
    let mut server = start(&place);
    let soft = limit_of_descriptors(server.pid, &["--nofile", "--output=SOFT", "--noheadings"]);
    limit_of_descriptors(server.pid, &["--nofile=1:"]);
    let mut stream = place.control().connect();
    stream.write_all(STATUS).expect("it is queued");
    let began = Instant::now();
    let is_told = |record: &Record| record.is("cannot let a client in at the control socket");
    let told = server.log.wait_for_many(0, 3, "three tries", is_told);
    assert!(told[0].str("why").contains("os error 24"), "{}", told[0].line);
    // Between two tries there is a rest of a second.
    assert!(began.elapsed().as_millis() > 1_500 && server.log.count(is_told) <= 4, "{}", server.log.text());
    limit_of_descriptors(server.pid, &[&format!("--nofile={soft}:")]);
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).expect("an answer");
    assert!(line.contains("\"answer\":\"status\""), "{line}");
    server.stop();
}
