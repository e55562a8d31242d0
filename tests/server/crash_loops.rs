//! Workers that keep failing: each cause is told apart, the healthy ones serve on, nothing spins, and when the cause is
//! gone the server is as before.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::time::Instant;

use libtest_mimic::Trial;
use nix::sys::signal::Signal;
use nix::unistd::Uid;

use crate::fixtures::Orders;
use crate::support::log::Record;
use crate::support::processes::{cpu_time, stat};
use crate::support::program::copy_program;
use crate::support::{Launch, Server, signal_process};

pub fn tests() -> Vec<Trial> {
    trials!["crash_loops":
        a_start_that_fails_and_a_life_too_short_are_told_apart,
        a_worker_that_dies_after_an_answer_is_replaced_at_once_however_young,
        a_limit_on_processes_delays_all_slots_and_blames_none,
        a_spent_restart_budget_keeps_the_healthy_workers_spins_not_and_is_recovered_from,
        a_reload_ends_a_degraded_state,
    ]
}

fn is_delayed(record: &Record) -> bool {
    record.is("slot delayed")
}

fn a_start_that_fails_and_a_life_too_short_are_told_apart() {
    let orders = Orders::new();
    let server = Launch::fixture("probe").args(["--workers", "2", "--arg"]).arg(orders.arg()).start();
    let workers = server.workers();
    orders.give("start-1", "exit 3");
    signal_process(workers[&1], Signal::SIGKILL);
    server.log.wait("two starts that failed", |record| is_delayed(record) && record.u64("never_ready") == 2);
    orders.take_back("start-1");
    let ready = server.successor(1, workers[&1]);
    let counts = |record: &Record| (record.u64("never_ready"), record.u64("died_young"));
    let before = counts(server.log.all(is_delayed).last().expect("there were some"));
    signal_process(ready, Signal::SIGKILL);
    let young = server.log.wait("a short life", |record| is_delayed(record) && record.u64("died_young") > before.1);
    assert_eq!(counts(&young), (before.0, before.1 + 1));
    assert_eq!(young.u64("slot"), 1);
    assert_eq!(server.workers()[&0], workers[&0]);
}

fn a_worker_that_dies_after_an_answer_is_replaced_at_once_however_young() {
    let server = Server::start(&["--workers", "1"]);
    let mut pid = server.workers()[&0];
    for _ in 0..10 {
        let mut client = server.client();
        // It has counted the first when it answers the second.
        for _ in 0..2 {
            assert_eq!(client.get("/").expect("an answer").pid(), pid);
        }
        signal_process(pid, Signal::SIGKILL);
        pid = server.successor(0, pid);
    }
    // The very first life may have been too short only because it did not answer; none of these was.
    assert_eq!(server.log.count(is_delayed), 0, "{}", server.log.text());
}

/// An ordinary user, whom root becomes: limits on processes do not hold for root.
const ORDINARY: [&str; 7] = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", "--"];

/// The command as an ordinary user.
fn ordinary() -> (Launch, tempfile::TempDir) {
    let directory = tempfile::tempdir().expect("a directory");
    let program = env!("CARGO_BIN_EXE_hatchery");
    if !Uid::effective().is_root() {
        return (Launch::program(program), directory);
    }
    // Where the program lies, nobody but root may be able to look.
    let copy = directory.path().join("hatchery");
    copy_program(program, &copy);
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).expect("its owner may");
    (Launch::program(ORDINARY[0]).args(&ORDINARY[1..]).arg(copy), directory)
}

/// What prlimit(1) says to this about a process of the ordinary user's.
fn prlimit(pid: i32, args: &[&str]) -> String {
    let pid = pid.to_string();
    let words = [&["prlimit", "--pid", &pid], args].concat();
    let words = if Uid::effective().is_root() { [&ORDINARY[..], &words].concat() } else { words };
    let output = Command::new(words[0]).args(&words[1..]).output().expect("util-linux is there");
    assert!(output.status.success(), "{output:?}");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

fn a_limit_on_processes_delays_all_slots_and_blames_none() {
    let (launch, _directory) = ordinary();
    let mut server = launch.args(["--workers", "3"]).start();
    let workers = server.workers();
    let template = server.template();
    prlimit(template, &["--nproc=1:"]);
    for slot in [0, 1] {
        signal_process(workers[&slot], Signal::SIGKILL);
    }
    let is_short = |record: &Record| record.is("too little is left to fork workers, waiting");
    let tries = server.log.wait_for_many(0, 3, "three tries", is_short);
    assert_eq!(tries.iter().map(|record| record.u64("tries")).collect::<Vec<_>>(), [1, 2, 3]);
    let failed = server.log.wait("a failure", |record| record.is("worker not started"));
    assert!(failed.str("why").contains("EAGAIN") || failed.str("why").contains("os error 11"), "{}", failed.line);
    // Both slots asked once each, and after that there was one try at a time.
    assert!(server.log.count(|record| record.is("worker not started")) <= 5, "{}", server.log.text());
    // What was killed may have been young, but no slot is to blame for what could not be forked.
    let blamed = |record: &Record| is_delayed(record) && record.u64("never_ready") > 0;
    assert_eq!(server.log.count(blamed), 0, "{}", server.log.text());
    assert_eq!(server.get("/").pid(), workers[&2]);
    assert_eq!(server.template(), template);
    let mark = server.log.mark();
    let hard = prlimit(template, &["--nproc", "--output=HARD", "--noheadings"]);
    prlimit(template, &[&format!("--nproc={hard}:")]);
    server.log.wait_after(mark, "relief", |record| record.is("workers can be forked again"));
    for slot in [0, 1] {
        server.successor(slot, workers[&slot]);
    }
    server.stop();
}

/// Two of three workers killed, and no other starts; the budget is spent.
fn degraded(orders: &Orders) -> Server {
    let args = ["--workers", "3", "--restart-budget", "5/1m", "--arg"];
    let server = Launch::fixture("probe").args(args).arg(orders.arg()).start();
    let workers = server.workers();
    orders.give("start", "fail the database is gone");
    for slot in [0, 1] {
        signal_process(workers[&slot], Signal::SIGKILL);
    }
    let degraded = server
        .log
        .wait("the budget is spent", |record| record.is("degraded: too many workers failed, trying one at a time"));
    assert_eq!((degraded.u64("ready"), degraded.u64("failures")), (1, 5));
    // Those that were killed may count among them.
    assert!(degraded.u64("never_ready") >= 3, "{}", degraded.line);
    server
}

fn a_spent_restart_budget_keeps_the_healthy_workers_spins_not_and_is_recovered_from() {
    let orders = Orders::new();
    let mut server = degraded(&orders);
    let before = server.workers();
    assert_eq!(before.keys().copied().collect::<Vec<_>>(), [2]);
    let template = stat(before[&2]).expect("the healthy worker is there").parent;
    let (began, cpu) = (Instant::now(), cpu_time(server.pid) + cpu_time(template));
    let failed = server.log.count(|record| record.is("worker not started"));
    let tries = server.log.wait_for_many(0, 3, "tries", |record| record.is("next try delayed"));
    assert!(tries[1].u64("delay_ms") > tries[0].u64("delay_ms"));
    let used = cpu_time(server.pid) + cpu_time(template) - cpu;
    assert!(used < began.elapsed() / 2, "{used:?} of {:?}", began.elapsed());
    assert!(server.log.count(|record| record.is("worker not started")) <= failed + 3, "{}", server.log.text());
    let who = server.client().exchange("who").expect("an answer");
    assert_eq!(who.split(' ').nth(1), Some(before[&2].to_string().as_str()));
    let mark = server.log.mark();
    orders.take_back("start");
    server.log.wait_after(mark, "it recovers", |record| record.is("recovered"));
    server.log.wait_for_many(mark, 2, "both slots are filled", |record| record.is("worker ready"));
    assert_eq!(server.workers().len(), 3);
    assert_eq!(server.workers()[&2], before[&2]);
    server.stop();
}

fn a_reload_ends_a_degraded_state() {
    let orders = Orders::new();
    let mut server = degraded(&orders);
    orders.take_back("start");
    server.signal(Signal::SIGHUP);
    server.log.wait("the reload", |record| record.is("reloaded"));
    assert_eq!(server.workers().len(), 3);
    server.stop();
}
