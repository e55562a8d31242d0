//! How a worker leaves, and what becomes of its clients.

use std::mem;
use std::net::TcpListener;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, raise};

use super::*;
use crate::server::attend::FIRST_BYTE_TIME;

#[test]
fn a_drained_worker_closes_idle_connections_and_leaves() {
    let worker = TestWorker::start(config());
    let mut client = worker.client();
    assert_eq!(client.ask("one"), "one\n");
    worker.ask_to_drain();
    client.sees_the_end();
    worker.ends_well();
}

#[test]
fn a_worker_whose_master_is_gone_leaves() {
    let worker = TestWorker::start(config());
    let mut client = worker.client();
    assert_eq!(client.ask("one"), "one\n");
    let TestWorker { master, thread, .. } = worker;
    drop(master);
    client.sees_the_end();
    thread.join().unwrap().unwrap();
}

#[test]
fn a_worker_whose_master_is_gone_waits_for_no_client_without_end() {
    let worker = TestWorker::start(WorkerConfig { idle_timeout: None, ..config() });
    let (mut reader, mut writer) = (worker.client(), worker.client());
    assert_eq!(reader.ask("flood"), "flood\n");
    assert_eq!(writer.ask("one"), "one\n");
    writer.send("the beginning of");
    drop(worker.master);
    worker.thread.join().unwrap().unwrap();
}

/// Whatever it waits for at that moment.
#[test]
fn a_worker_that_drains_hears_its_masters_end() {
    let hour = Duration::from_secs(3600);
    let worker = TestWorker::start(WorkerConfig { last_chance: hour, request_timeout: Some(hour), ..config() });
    let (mut kept, mut reader, mut writer) = (worker.client(), worker.client(), worker.client());
    assert_eq!(reader.ask("flood"), "flood\n");
    assert_eq!(writer.ask("one"), "one\n");
    writer.send("the beginning of");
    assert_eq!(kept.ask("one"), "one\n");
    worker.ask_to_drain();
    while kept.ask("two") != "two (draining)\n" {}
    let TestWorker { master, thread, .. } = worker;
    drop(master);
    kept.sees_the_end();
    assert_eq!(writer.line(), "late\n");
    thread.join().unwrap().unwrap();
}

#[test]
fn a_worker_whose_master_is_gone_waits_only_a_moment_for_the_first_byte_of_a_client() {
    let is_away_at_once = || {
        let worker = TestWorker::start(config());
        let mut silent = worker.client();
        assert_eq!(worker.client().ask("one"), "one\n");
        let TestWorker { master, thread, .. } = worker;
        drop(master);
        let begun = Instant::now();
        silent.sees_the_end();
        thread.join().unwrap().unwrap();
        begun.elapsed() < FIRST_BYTE_TIME
    };
    // On a machine with much else to do, that may take longer once.
    assert!((0..5).any(|_| is_away_at_once()));
}

#[test]
fn draining_serves_what_is_in_hand_and_what_has_come() {
    let worker = TestWorker::start(config());
    let (mut parked, mut partial) = (worker.client(), worker.client());
    assert_eq!(parked.ask("one"), "one\n");
    assert_eq!(partial.ask("one"), "one\n");
    partial.send("par");
    let mut held = worker.client();
    assert_eq!(held.ask("hold"), "hold\n");
    // The worker is in `serve` now, so all of this comes before it hears of the drain.
    parked.send("two\n");
    worker.ask_to_drain();
    held.send("released\n");

    assert_eq!(held.line(), "released\n");
    held.sees_the_end();
    let answer = parked.line();
    assert!(answer == "two (draining)\n" || answer == "two\n", "{answer}");
    parked.sees_the_end();
    assert_eq!(partial.ask("tial"), "partial (draining)\n");
    partial.sees_the_end();
    worker.ends_well();
}

#[test]
fn while_draining_a_kept_connection_has_a_last_chance() {
    let worker = TestWorker::start(WorkerConfig { last_chance: Duration::from_secs(3600), ..config() });
    let (mut kept, mut gone) = (worker.client(), worker.client());
    assert_eq!(kept.ask("one"), "one\n");
    assert_eq!(gone.ask("one"), "one\n");
    let mut held = worker.client();
    assert_eq!(held.ask("hold"), "hold\n");
    worker.ask_to_drain();
    held.send("released\n");
    held.line();
    drop(held);
    assert_eq!(kept.ask("two"), "two (draining)\n");
    assert_eq!(kept.ask("close"), "close (draining)\n");
    kept.sees_the_end();
    // Nobody is left to wait for.
    drop(gone);
    worker.ends_well();
}

#[test]
fn the_last_chance_of_a_kept_connection_ends() {
    let worker = TestWorker::start(WorkerConfig { last_chance: Duration::from_millis(50), ..config() });
    let mut kept = worker.client();
    assert_eq!(kept.ask("one"), "one\n");
    worker.ask_to_drain();
    kept.sees_the_end();
    worker.ends_well();
}

#[test]
fn without_a_master_there_is_no_last_chance() {
    let worker = TestWorker::start(WorkerConfig { last_chance: Duration::from_secs(3600), ..config() });
    let mut kept = worker.client();
    assert_eq!(kept.ask("one"), "one\n");
    let TestWorker { master, thread, .. } = worker;
    drop(master);
    kept.sees_the_end();
    thread.join().unwrap().unwrap();
}

#[test]
fn a_connection_accepted_while_draining_gets_its_first_answer() {
    let worker = TestWorker::start(config());
    let mut held = worker.client();
    assert_eq!(held.ask("hold"), "hold\n");
    let mut queued = worker.client();
    worker.ask_to_drain();
    held.send("released\n");
    held.line();
    held.sees_the_end();
    assert_eq!(queued.ask("first"), "first (draining)\n");
    queued.sees_the_end();
    worker.ends_well();
}

#[test]
fn an_accepted_connection_that_stays_silent_ends_the_drain_late_but_surely() {
    let worker = TestWorker::start(config());
    let mut silent = worker.client();
    assert_eq!(worker.client().ask("one"), "one\n");
    worker.ask_to_drain();
    silent.sees_the_end();
    worker.ends_well();
}

/// One worker after the other, as in a reload, while clients come without pause.
#[test]
fn nobody_is_lost_or_forgotten_while_workers_are_replaced() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let worker = || {
        let shared = listener.try_clone().unwrap();
        let acceptor = Acceptor::from_fd(shared.into(), address.to_string()).unwrap();
        spawn(acceptor, config(), &Board::new(1).unwrap())
    };
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let clients = [(); 4].map(|()| {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    let socket = TcpStream::connect(address).unwrap();
                    // One that nobody was woken for would wait for ever.
                    socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
                    let answer = Client::new(socket).ask("close");
                    assert!(answer.starts_with("close"), "{answer}");
                }
            })
        });
        let mut old = worker();
        for _ in 0..100 {
            let new = worker();
            let (master, thread) = mem::replace(&mut old, new);
            master.send(&ToWorker::Drain, &[]).unwrap();
            thread.join().unwrap().unwrap();
        }
        // The last worker goes when its master's end does: not before the clients have ended.
        done.store(true, Ordering::Relaxed);
        for client in clients {
            client.join().unwrap();
        }
        drop(old);
    });
}

#[test]
fn sigterm_drains() {
    if !is_child() {
        let status = child_of("server::worker::tests::leaving::sigterm_drains").status().unwrap();
        assert!(status.success(), "{status}");
        return;
    }
    let worker = TestWorker::start(config());
    let mut client = worker.client();
    assert_eq!(client.ask("one"), "one\n");
    raise(Signal::SIGTERM).unwrap();
    client.sees_the_end();
    worker.ends_well();
}
