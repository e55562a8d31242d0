//! The log: each line one whole record, however many processes write.

use std::collections::BTreeSet;
use std::io::{self, PipeWriter};
use std::process::Stdio;

use libtest_mimic::Trial;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::signal::Signal;

use crate::support::client::Client;
use crate::support::log::Record;
use crate::support::processes::eventually;
use crate::support::{Launch, Server, signal_process};

pub fn tests() -> Vec<Trial> {
    trials!["logs":
        every_line_is_one_record_in_a_storm_of_deaths,
        the_lifecycle_is_told_with_its_fields,
        below_the_level_nothing_is_said,
        a_log_that_cannot_be_written_stops_nobody,
        a_log_that_nobody_reads_stops_nobody,
    ]
}

fn assert_whole(record: &Record) {
    let fields = record.fields.as_ref().unwrap_or_else(|| panic!("no record: {:?}", record.line));
    for field in ["ts", "level", "msg"] {
        assert!(fields[field].is_string(), "no {field}: {}", record.line);
    }
}

fn every_line_is_one_record_in_a_storm_of_deaths() {
    let mut server = Server::start(&["--workers", "24", "--faults"]);
    for round in 1..=4 {
        let workers = server.workers();
        // Workers that panic and drain write by themselves, while the master tells of those that die.
        let mut panicking: Vec<_> = (0..16).map(|_| server.client()).collect();
        for client in &mut panicking {
            client.ask("/fault/panic").expect("a request");
        }
        for (index, &pid) in workers.values().enumerate() {
            signal_process(pid, if index % 2 == 0 { Signal::SIGTERM } else { Signal::SIGKILL });
        }
        server.log.wait_for_many(0, 24 * (round + 1), "all are back", |record| record.is("worker ready"));
    }
    server.stop();
    let records = server.log.all(|_| true);
    let writers: BTreeSet<i32> = server.log.all(|record| record.is("draining")).iter().map(Record::pid).collect();
    assert!(writers.len() > 24, "{writers:?}");
    records.iter().for_each(assert_whole);
}

fn the_lifecycle_is_told_with_its_fields() {
    let mut server = Server::start(&["--workers", "2"]);
    server.signal(Signal::SIGHUP);
    server.log.wait("the reload", |record| record.is("reloaded"));
    server.stop();
    let first = |message: &str| server.log.wait(message, |record| record.is(message));
    let ready = first("worker ready");
    assert_eq!(ready.u64("generation"), 1);
    assert!(ready.u64("slot") < 2 && ready.pid() > 0 && ready.u64("took_ms") < 20_000);
    assert_eq!(first("serving").u64("workers"), 2);
    assert_eq!(first("reloading").u64("generation"), 2);
    assert_eq!(first("reloaded").u64("generation"), 2);
    let of_the_first = |record: &Record| record.is("worker drained") && record.u64("generation") == 1;
    let drained = server.log.wait_for_many(0, 2, "the first generation's ends", of_the_first);
    assert!(drained.iter().all(|record| record.str("why") == "exited with code 0"), "{drained:?}");
    first("stopping");
    assert!(first("stopped").u64("took_ms") > 0);
    server.log.all(|_| true).iter().for_each(assert_whole);
}

/// A server that says nothing of its own, so it is known by answering.
fn start_silent(launch: Launch) -> (tempfile::TempDir, Server) {
    let directory = tempfile::tempdir().expect("a directory");
    let address = format!("unix:{}", directory.path().join("socket").display());
    let server = launch.args(["--workers", "2", "--faults", "--listen", &address]).spawn();
    eventually("it answers", || Client::connect(&address).and_then(|mut client| client.get("/")).is_ok());
    assert_eq!(Client::connect(&address).and_then(|mut client| client.get("/fault/panic")).expect("it").status, 500);
    (directory, server)
}

fn below_the_level_nothing_is_said() {
    let (_directory, mut server) = start_silent(Launch::hatchery().args(["--log-level", "critical"]));
    server.stop();
    assert_eq!(server.log.text(), "");
}

fn a_log_that_cannot_be_written_stops_nobody() {
    for nowhere in ["2>/dev/full", "2>&-"] {
        let (_directory, mut server) = start_silent(Launch::hatchery().redirect(nowhere, Stdio::null()));
        server.signal(Signal::SIGHUP);
        server.signal(Signal::SIGTERM);
        assert_eq!(server.wait().code(), Some(0), "{nowhere}");
        eventually("nobody is left", || server.processes().is_empty());
    }
}

fn a_log_that_nobody_reads_stops_nobody() {
    let (_reader, writer) = io::pipe().expect("a pipe");
    fill(&writer);
    let (_directory, mut server) = start_silent(Launch::hatchery().redirect("2>&0", writer));
    server.stop();
}

/// Until nothing more fits; a writer that comes later waits for a reader.
fn fill(pipe: &PipeWriter) {
    fcntl(pipe, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).expect("non-blocking");
    while nix::unistd::write(pipe, &[b'x'; 4096]).is_ok() {}
    while nix::unistd::write(pipe, b"x").is_ok() {}
    fcntl(pipe, FcntlArg::F_SETFL(OFlag::empty())).expect("blocking");
}
