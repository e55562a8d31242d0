use std::io::{ErrorKind, Read};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork};

use super::*;
use crate::server::testing::{child_of, is_child};
use crate::sys::exec;

const WORDS: Words = Words { deadline: b"late", crash: b"crashed" };

fn socket() -> UnixStream {
    UnixStream::pair().unwrap().0
}

/// What would be said now, all of it in one; none: nothing.
fn said(words: &LastWords, cause: Cause) -> Option<String> {
    let speech = words.claim(cause)?;
    let mut said = Vec::new();
    speech.deliver(|part| {
        said.extend_from_slice(part);
        part.len()
    });
    Some(String::from_utf8(said).unwrap())
}

#[test]
fn each_cause_has_its_words_and_they_are_said_once() {
    for (cause, expected) in [(Cause::Deadline, "late"), (Cause::Crash, "crashed")] {
        let words = LastWords::default();
        words.open(socket().as_fd(), b"");
        words.set(WORDS);
        assert_eq!(said(&words, cause).as_deref(), Some(expected));
        assert_eq!(said(&words, cause), None, "twice");
    }
}

#[test]
fn nothing_is_said_without_a_request_without_words_and_once_the_response_has_begun() {
    let (words, socket) = (LastWords::default(), socket());
    let silent = || assert_eq!(said(&words, Cause::Crash), None);
    silent();
    words.set(WORDS);
    silent();
    words.open(socket.as_fd(), b"earlier");
    silent();
    words.set(WORDS);
    words.close();
    silent();
    words.set(WORDS);
    silent();
    words.resume(b"");
    silent();
    words.open(socket.as_fd(), b"");
    silent();
    words.set(WORDS);
    assert!(said(&words, Cause::Crash).is_some());
}

#[test]
fn the_next_request_has_none_of_the_last_ones_words() {
    let (words, socket) = (LastWords::default(), socket());
    words.open(socket.as_fd(), b"");
    words.set(WORDS);
    words.open(socket.as_fd(), b"");
    words.hush();
    words.resume(b"");
    assert_eq!(said(&words, Cause::Crash), None);
}

#[test]
fn earlier_answers_go_out_before_the_words() {
    let (words, socket) = (LastWords::default(), socket());
    words.open(socket.as_fd(), b"first, second, ");
    words.set(WORDS);
    assert_eq!(said(&words, Cause::Crash).as_deref(), Some("first, second, crashed"));
}

#[test]
fn while_earlier_answers_are_sent_nothing_is_said_and_then_only_what_is_left() {
    let (words, socket) = (LastWords::default(), socket());
    words.open(socket.as_fd(), b"first, second, ");
    words.set(WORDS);
    words.hush();
    assert_eq!(said(&words, Cause::Crash), None);
    words.resume(b"second, ");
    assert_eq!(said(&words, Cause::Crash).as_deref(), Some("second, crashed"));
}

#[test]
fn words_that_come_while_earlier_answers_are_sent_wait_for_their_end() {
    let (words, socket) = (LastWords::default(), socket());
    words.open(socket.as_fd(), b"first, ");
    words.hush();
    words.resume(b"");
    words.set(WORDS);
    assert_eq!(said(&words, Cause::Deadline).as_deref(), Some("late"));
}

#[test]
fn after_a_part_that_does_not_go_out_whole_there_is_nothing_more() {
    let speech = Speech { socket: -1, parts: [b"earlier", b"words"] };
    let mut sent = Vec::new();
    speech.deliver(|part| {
        sent.push(part.to_vec());
        part.len() - 1
    });
    assert_eq!(sent, [b"earlier"]);
}

#[test]
fn whoever_finds_the_words_being_spoken_never_goes_on() {
    let (words, socket) = (&*Box::leak(Box::<LastWords>::default()), socket());
    words.open(socket.as_fd(), b"");
    words.set(WORDS);
    assert!(words.claim(Cause::Crash).is_some());
    // The thread stays until the test process ends.
    let (went_on, goes_on) = mpsc::channel();
    thread::spawn(move || {
        words.close();
        let _ = went_on.send(());
    });
    let waited = goes_on.recv_timeout(Duration::from_millis(50));
    assert_eq!(waited, Err(mpsc::RecvTimeoutError::Timeout));
}

#[test]
fn a_forked_process_says_nothing_to_its_parents_client() {
    if !is_child() {
        let test = "sys::last_words::tests::a_forked_process_says_nothing_to_its_parents_client";
        assert!(child_of(test).status().unwrap().success());
        return;
    }
    let words = &*Box::leak(Box::<LastWords>::default());
    let (served, mut client) = UnixStream::pair().unwrap();
    client.set_nonblocking(true).unwrap();
    adopt(words);
    words.open(served.as_fd(), b"");
    words.set(WORDS);
    let mut heard = [0; 80];
    // SAFETY: the child makes async-signal-safe calls only.
    match unsafe { fork() }.unwrap() {
        ForkResult::Child => {
            speak(Cause::Crash);
            exec::leave(0);
        }
        ForkResult::Parent { child } => assert_eq!(waitpid(child, None).unwrap(), WaitStatus::Exited(child, 0)),
    }
    assert_eq!(client.read(&mut heard).unwrap_err().kind(), ErrorKind::WouldBlock);
    speak(Cause::Crash);
    assert_eq!(client.read(&mut heard).unwrap(), WORDS.crash.len());
    assert_eq!(client.read(&mut heard).unwrap(), 0, "the end");
}
