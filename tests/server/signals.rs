//! What the operator's signals change: more workers, fewer, none for now.

use std::time::{Duration, Instant};

use libtest_mimic::Trial;
use nix::sys::signal::Signal;

use crate::fixtures::Orders;
use crate::support::client::Client;
use crate::support::processes::{eventually, is_alive, stat};
use crate::support::{Launch, Server, signal_process};

pub fn tests() -> Vec<Trial> {
    trials!["signals":
        ttin_adds_a_worker_in_the_next_slot,
        ttou_drains_the_worker_of_the_highest_slot,
        ttou_never_takes_the_last_worker,
        a_service_that_has_let_go_of_its_context_has_its_time_to_leave,
        winch_drains_the_workers_and_keeps_the_listeners_until_ttin,
        the_terminals_interrupt_does_not_reach_the_workers,
        a_resized_window_changes_nothing,
        usr1_means_nothing_and_harms_nobody,
        signals_blocked_by_whoever_started_the_server_are_heard,
    ]
}

fn ttin_adds_a_worker_in_the_next_slot() {
    let mut server = Server::start(&["--workers", "2"]);
    let before = server.workers();
    server.signal(Signal::SIGTTIN);
    let ready = server.log.wait("a third", |record| record.is("worker ready") && record.u64("slot") == 2);
    let mut expected = before;
    expected.insert(2, ready.pid());
    assert_eq!(server.workers(), expected);
    server.stop();
}

fn ttou_drains_the_worker_of_the_highest_slot() {
    let mut server = Server::start(&["--workers", "3"]);
    let before = server.workers();
    server.signal(Signal::SIGTTOU);
    let drained = server.log.wait("its end", |record| record.is("worker drained"));
    assert_eq!((drained.u64("slot"), drained.pid()), (2, before[&2]));
    assert_eq!(drained.str("why"), "exited with code 0");
    server.get("/").greeting();
    assert!(is_alive(before[&0]) && is_alive(before[&1]));
    server.stop();
}

fn ttou_never_takes_the_last_worker() {
    let mut server = Server::start(&["--workers", "2"]);
    for count in 1..=4 {
        server.signal(Signal::SIGTTOU);
        // One after the other: signals that wait are one signal.
        server.log.wait_for_many(0, count, "the signal", |record| record.is("number of workers changed"));
    }
    server.log.wait("its end", |record| record.is("worker drained"));
    server.get("/").greeting();
    assert_eq!(server.workers().len(), 1);
    server.stop();
}

fn winch_drains_the_workers_and_keeps_the_listeners_until_ttin() {
    let mut server = Launch::hatchery().args(["--workers", "2"]).in_background().start();
    server.signal(Signal::SIGWINCH);
    server.log.wait_for_many(0, 2, "the workers' ends", |record| record.is("worker drained"));
    // The kernel takes the connection, and the client waits for who serves it.
    let mut client = Client::connect(&server.address()).expect("somebody still listens");
    client.ask("/").expect("the kernel takes it");
    assert!(server.workers().is_empty());
    server.signal(Signal::SIGTTIN);
    client.answer().expect("an answer at last").greeting();
    server.log.wait_for_many(0, 4, "the workers are back", |record| record.is("worker ready"));
    server.stop();
}

fn usr1_means_nothing_and_harms_nobody() {
    let mut server = Server::start(&["--workers", "1"]);
    let before = server.workers();
    server.signal(Signal::SIGUSR1);
    let ignored = server.log.wait("the signal", |record| record.is("a signal means nothing now"));
    assert_eq!(ignored.str("signal"), "ReopenLogs");
    server.get("/").greeting();
    assert_eq!(server.workers(), before);
    server.stop();
}

fn a_service_that_has_let_go_of_its_context_has_its_time_to_leave() {
    let orders = Orders::new();
    orders.give("leave", "wait");
    let mut server = Launch::fixture("own-loop").args(["--workers", "2", "--arg"]).arg(orders.arg()).start();
    let leaving = server.workers()[&1];
    server.signal(Signal::SIGTTOU);
    eventually("it leaves", || orders.obeyed("leave"));
    // For one that is taken for dead that would be the end.
    let began = Instant::now();
    eventually("some time has passed", || began.elapsed() > Duration::from_millis(2500));
    assert!(is_alive(leaving), "{}", server.log.text());
    orders.take_back("leave");
    server.log.wait("its end", |record| record.is_about("worker drained", leaving));
    server.stop();
}

fn the_terminals_interrupt_does_not_reach_the_workers() {
    let server = Server::start(&["--workers", "2"]);
    let workers = server.workers();
    // A terminal signals the group that it has put in the foreground: the master's.
    let group = |pid: i32| stat(pid).expect("it is there").group;
    for &pid in workers.values().chain([&server.template()]) {
        assert_ne!(group(pid), group(server.pid));
    }
    // A worker asked to drain by itself is not the server's end either.
    signal_process(workers[&0], Signal::SIGTERM);
    server.successor(0, workers[&0]);
    server.get("/").greeting();
}

fn a_resized_window_changes_nothing() {
    let directory = tempfile::tempdir().expect("a directory");
    let address = format!("unix:{}", directory.path().join("socket").display());
    let pid_file = directory.path().join("pid");
    let program = env!("CARGO_BIN_EXE_hatchery");
    let command = format!("exec {program} --workers 2 --listen {address} --pid-file {}", pid_file.display());
    // In a terminal of its own, in whose foreground it is; what else is given to the shell is not for it.
    let in_a_terminal = ["-c", r#"exec script -qec "$0" /dev/null"#, &command];
    let mut server = Launch::program("/bin/sh").args(in_a_terminal).spawn();
    eventually("it answers", || Client::connect(&address).and_then(|mut client| client.get("/")).is_ok());
    let master: i32 = std::fs::read_to_string(pid_file).expect("a pid file").trim().parse().expect("a pid");
    eventually("both workers are there", || server.processes().len() >= 5);
    let before = server.processes();
    signal_process(master, Signal::SIGWINCH);
    // Had the workers been drained, this would bring them back, and no third.
    signal_process(master, Signal::SIGTTIN);
    eventually("a third worker is there", || server.processes().len() == before.len() + 1);
    assert!(before.iter().all(|&pid| is_alive(pid)));
    signal_process(master, Signal::SIGTERM);
    assert_eq!(server.wait().code(), Some(0));
}

fn signals_blocked_by_whoever_started_the_server_are_heard() {
    let mut server = Launch::fixture("deaf").args(["--workers", "2"]).start();
    server.signal(Signal::SIGHUP);
    server.log.wait("the reload", |record| record.is("reloaded"));
    server.stop();
}
