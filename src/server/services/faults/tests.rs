//! Faults as they are written in a target, and what they do to a process.

use std::fs;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::process::ExitStatusExt;
use std::process::{ExitStatus, Stdio};

use nix::sys::signal::kill;
use nix::unistd::Pid;

use super::*;
use crate::server::testing::{Bench, child_of, conn_pair, is_child};

#[test]
fn a_fault_is_parsed_with_its_numbers_in_range() {
    let ms = Duration::from_millis;
    for (path, query, fault) in [
        ("/fault/sleep", "ms=0", Fault::Sleep(ms(0))),
        ("/fault/spin", "x=y&ms=600000", Fault::Spin(ms(600_000))),
        ("/fault/panic", "", Fault::Panic),
        ("/fault/segv", "", Fault::Raise(Signal::SIGSEGV)),
        ("/fault/bus", "", Fault::Raise(Signal::SIGBUS)),
        ("/fault/ill", "", Fault::Raise(Signal::SIGILL)),
        ("/fault/fpe", "", Fault::Raise(Signal::SIGFPE)),
        ("/fault/break-off", "", Fault::BreakOff),
        ("/fault/overflow", "", Fault::Overflow),
        ("/fault/abort", "", Fault::Abort),
        ("/fault/exit", "code=255", Fault::Exit(255)),
        ("/fault/leak", "mb=1024", Fault::Leak(1024)),
        ("/fault/spawn", "ms=5&ms=6", Fault::Spawn(ms(5))),
    ] {
        assert_eq!(Fault::parse(path, query), Some(Ok(fault)), "{path}?{query}");
    }
    let flock = Fault::Flock { path: "/tmp/a b%".into(), hold: ms(7) };
    assert_eq!(Fault::parse("/fault/flock", "path=/tmp/a%20b%25&ms=7"), Some(Ok(flock)));
}

#[test]
fn a_bad_number_is_named_with_its_range() {
    for (path, query, words) in [
        ("/fault/sleep", "", "ms: a number from 0 to 600000"),
        ("/fault/sleep", "ms=", "ms: a number from 0 to 600000"),
        ("/fault/sleep", "ms=+1", "ms: a number from 0 to 600000"),
        ("/fault/spin", "ms=600001", "ms: a number from 0 to 600000"),
        ("/fault/spin", "ms=99999999999999999999", "ms: a number from 0 to 600000"),
        ("/fault/exit", "code=256", "code: a number from 0 to 255"),
        ("/fault/exit", "code=-1", "code: a number from 0 to 255"),
        ("/fault/leak", "mb=1025", "mb: a number from 0 to 1024"),
        ("/fault/flock", "ms=1", "path: the absolute path"),
        ("/fault/flock", "path=here&ms=1", "path: the absolute path"),
        ("/fault/flock", "path=/a%2&ms=1", "path: the absolute path"),
        ("/fault/flock", "path=/a%00&ms=1", "path: the absolute path"),
        ("/fault/flock", "path=/a%+1&ms=1", "path: the absolute path"),
        ("/fault/flock", "path=/a", "ms: a number from 0 to 600000"),
        ("/fault/spawn", "ms=x", "ms: a number from 0 to 600000"),
    ] {
        match Fault::parse(path, query) {
            Some(Err(bad)) => assert!(bad.to_string().starts_with(words), "{bad}"),
            other => panic!("{path}?{query} gives {other:?}"),
        }
    }
}

#[test]
fn other_paths_are_no_faults() {
    for path in ["/", "/fault", "/fault/", "/fault/sleep/", "/faults/panic", "/fault/Panic"] {
        assert_eq!(Fault::parse(path, "ms=1"), None, "{path}");
    }
}

#[test]
fn segv_ends_the_process_by_its_signal() {
    let fate = fate_of("segv_ends_the_process_by_its_signal", "/fault/segv");
    assert_eq!(fate.signal(), Some(Signal::SIGSEGV as i32), "{fate}");
}

#[test]
fn abort_ends_the_process_by_its_signal() {
    let fate = fate_of("abort_ends_the_process_by_its_signal", "/fault/abort");
    assert_eq!(fate.signal(), Some(Signal::SIGABRT as i32), "{fate}");
}

#[test]
fn exit_ends_the_process_with_its_code() {
    let fate = fate_of("exit_ends_the_process_with_its_code", "/fault/exit?code=77");
    assert_eq!(fate.code(), Some(77), "{fate}");
}

/// Commits the fault in a process of its own, in which this test runs again.
fn fate_of(test: &str, target: &str) -> ExitStatus {
    if is_child() {
        let survived = commit(target);
        panic!("survived with {survived:?}");
    }
    let mut child = child_of(&format!("server::services::faults::tests::{test}"));
    let quiet = child.stdout(Stdio::null()).stderr(Stdio::null());
    quiet.status().expect("a process")
}

fn commit(target: &str) -> io::Result<String> {
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let fault = Fault::parse(path, query).expect("a fault").expect("in range");
    Faults::default().commit(&fault, &Bench::new().request(false, None)).map(words)
}

fn words(reply: Reply) -> String {
    match reply {
        Reply::Words(words) => words,
        Reply::Bytes(_) => panic!("there are to be words"),
    }
}

#[test]
fn sleep_and_spin_last_as_long_as_they_are_told() {
    for target in ["/fault/sleep?ms=30", "/fault/spin?ms=30"] {
        let begun = Instant::now();
        commit(target).expect("an answer");
        assert!(begun.elapsed() >= Duration::from_millis(30), "{target}");
    }
}

#[test]
fn a_leak_is_kept() {
    let mut faults = Faults::default();
    let bench = Bench::new();
    for _ in 0..2 {
        let answer = faults.commit(&Fault::Leak(1), &bench.request(false, None));
        assert_eq!(answer.map(words).expect("an answer"), "leaked 1 MiB\n");
    }
    assert_eq!(faults.leaked.iter().map(Vec::len).sum::<usize>(), 2 << 20);
}

#[test]
fn a_lock_is_held_by_one_and_let_go_afterwards() {
    let folder = tempfile::tempdir().expect("a folder");
    let target = format!("/fault/flock?path={}/lock&ms=40", folder.path().display());
    let begun = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| commit(&target).expect("the lock"));
        }
    });
    assert!(begun.elapsed() >= Duration::from_millis(80), "both held it at once");
    let error = commit("/fault/flock?path=/nowhere/lock&ms=1").expect_err("no such folder");
    assert!(error.to_string().starts_with("cannot lock /nowhere/lock: "), "{error}");
}

#[test]
fn a_spawned_process_lives_on_and_holds_no_connection() {
    let (conn, _client) = conn_pair();
    let own = format!("/proc/self/fd/{}", conn.as_fd().as_raw_fd());
    let connection = fs::read_link(own).expect("a link");
    let answer = commit("/fault/spawn?ms=20000").expect("an answer");
    let pid = answer.strip_prefix("spawned pid ").expect("a pid").trim_end();
    let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).expect("a live process");
    for descriptor in descriptors {
        let path = descriptor.expect("an entry").path();
        let target = fs::read_link(&path).expect("a link");
        assert_ne!(target, connection);
    }
    drop(conn);
    let pid = Pid::from_raw(pid.parse().expect("a number"));
    kill(pid, Signal::SIGKILL).expect("still alive");
}
