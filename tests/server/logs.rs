//! The log: each line one whole record, however many processes write.

use std::collections::BTreeSet;
use std::io::{self, PipeWriter};

use libtest_mimic::Trial;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::signal::Signal;

use crate::support::log::Record;
use crate::support::{Server, signal_process};

pub fn tests() -> Vec<Trial> {
    trials!["logs":
        every_line_is_one_record_in_a_storm_of_deaths,
        the_lifecycle_is_told_with_its_fields,
        below_the_level_nothing_is_said,
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
    let drained = first("worker drained");
    assert_eq!((drained.str("why").as_str(), drained.u64("generation")), ("exited with code 0", 1));
    first("stopping");
    assert!(first("stopped").u64("took_ms") > 0);
    server.log.all(|_| true).iter().for_each(assert_whole);
}

fn below_the_level_nothing_is_said() {
    // Not to be waited for by its log: it is silent.
    let directory = tempfile::tempdir().expect("a directory");
    let address = format!("unix:{}", directory.path().join("socket").display());
    let launch = crate::support::Launch::hatchery();
    let mut server = launch.args(["--workers", "2", "--log-level", "error", "--listen", &address]).spawn();
    crate::support::processes::eventually("it answers", || {
        crate::support::client::Client::connect(&address).and_then(|mut client| client.get("/")).is_ok()
    });
    server.stop();
    assert_eq!(server.log.text(), "");
}

fn a_log_that_nobody_reads_stops_nobody() {
    let (_reader, writer) = io::pipe().expect("a pipe");
    fill(&writer);
    let directory = tempfile::tempdir().expect("a directory");
    let address = format!("unix:{}", directory.path().join("socket").display());
    let launch = crate::support::Launch::hatchery().redirect("2>&0", writer);
    let mut server = launch.args(["--workers", "2", "--listen", &address]).spawn();
    crate::support::processes::eventually("it answers", || {
        crate::support::client::Client::connect(&address).and_then(|mut client| client.get("/")).is_ok()
    });
    server.stop();
}

/// Until nothing more fits; a writer that comes later waits for a reader.
fn fill(pipe: &PipeWriter) {
    fcntl(pipe, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).expect("non-blocking");
    while nix::unistd::write(pipe, &[b'x'; 4096]).is_ok() {}
    while nix::unistd::write(pipe, b"x").is_ok() {}
    fcntl(pipe, FcntlArg::F_SETFL(OFlag::empty())).expect("blocking");
}
