//! Invariants 7 and 8: a reload loses nobody, and a generation that fails never harms the one that serves.

use std::collections::hash_map::RandomState;
use std::fs;
use std::hash::BuildHasher;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use libtest_mimic::Trial;
use nix::sys::signal::Signal;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

use crate::fixtures::Orders;
use crate::support::load::Load;
use crate::support::processes::{children, descriptors, eventually};
use crate::support::program::copy_program;
use crate::support::{Launch, Server, signal_process};

pub fn tests() -> Vec<Trial> {
    trials!["reloads":
        invariant_7_five_reloads_under_load_lose_no_request,
        invariant_7_a_request_in_hand_outlives_the_reload,
        invariant_8_a_failing_preload_leaves_the_old_generation_serving,
        invariant_8_a_failing_start_leaves_the_old_generation_serving,
        invariant_8_a_start_that_dies_leaves_the_old_generation_serving,
        invariant_8_a_generation_that_fails_halfway_is_taken_back_slot_by_slot,
        invariant_8_a_missing_binary_leaves_the_old_generation_serving,
        invariant_8_a_binary_that_is_no_program_leaves_the_old_generation_serving,
        invariant_8_kill_9_of_the_new_template_leaves_the_old_generation_serving,
        after_a_failed_reload_the_next_one_succeeds,
        a_reload_picks_up_a_replaced_binary,
        a_crash_does_not_pick_up_a_replaced_binary,
        a_link_that_leads_to_another_version_is_followed_by_reload_and_upgrade,
        reloads_during_a_reload_become_one,
        invariant_7_25_reloads_at_random_gaps_under_load_lose_nothing_and_leave_nothing_behind,
        invariant_8_workers_that_die_young_leave_the_old_generation_serving,
        a_wider_surge_starts_more_successors_at_once,
        a_reload_while_the_workers_are_drained_brings_none_of_the_old_generation_back,
    ]
}

const FAILED: &str = "reload failed, the old generation stays";

fn reload(server: &Server, generation: u64) {
    server.signal(Signal::SIGHUP);
    server.log.wait("the reload", |record| record.is("reloaded") && record.u64("generation") == generation);
}

fn invariant_7_five_reloads_under_load_lose_no_request() {
    let mut server = Server::start(&["--workers", "4"]);
    let load = Load::start(&server.address(), 4);
    for generation in 2..=6 {
        reload(&server, generation);
        load.await_answers(50);
    }
    let tally = load.stop();
    assert_eq!(tally.lost, [""; 0], "of {} requests", tally.answered);
    assert_eq!(tally.closed_while_idle, 0, "whoever asks without pause is told before");
    assert!((1..=6).all(|generation| tally.generations.contains(&generation)), "{:?}", tally.generations);
    eventually("the old templates and workers are gone", || server.processes().len() == 1 + 1 + 4);
    server.assert_no_zombies();
    server.stop();
}

fn invariant_7_a_request_in_hand_outlives_the_reload() {
    let server = Server::start(&["--workers", "2", "--faults"]);
    let mut client = server.client();
    client.ask("/fault/sleep?ms=500").expect("a request");
    reload(&server, 2);
    assert_eq!(client.answer().expect("the answer").status, 200);
    // An old worker that drains has a last look at the queue.
    eventually("the new generation answers", || server.get("/").greeting().2 == 2);
}

/// A probe whose next generation fails like this; what the log says of it.
fn failing_reload(moment: &str, order: &str) -> String {
    let orders = Orders::new();
    let mut server = Launch::fixture("probe").args(["--workers", "3", "--arg"]).arg(orders.arg()).start();
    let (workers, template) = (server.workers(), server.template());
    orders.give(moment, order);
    server.signal(Signal::SIGHUP);
    let failed = server.log.wait("the failure", |record| record.is(FAILED));
    assert_eq!(failed.u64("generation"), 2);
    eventually("the new generation is gone", || children(server.pid) == [template]);
    assert_eq!(server.workers(), workers, "the old generation was harmed:\n{}", server.log.text());
    let who = server.client().exchange("who").expect("an answer");
    assert!(who.ends_with(" 1"), "{who}");
    server.assert_no_zombies();
    server.stop();
    let why = failed.str("why");
    assert_eq!(server.log.count(|record| record.says("why", &why)), 1, "it is said once:\n{}", server.log.text());
    why
}

fn invariant_8_a_failing_preload_leaves_the_old_generation_serving() {
    assert_eq!(failing_reload("preload", "fail the new index is torn"), "the preload failed: the new index is torn");
    assert!(failing_reload("preload", "panic at the new index").contains("at the new index"));
}

fn invariant_8_a_failing_start_leaves_the_old_generation_serving() {
    let why = failing_reload("start", "fail no new licence");
    assert_eq!(why, "the start of the worker of slot 0 failed: no new licence");
}

fn invariant_8_a_start_that_dies_leaves_the_old_generation_serving() {
    assert!(failing_reload("start", "kill-yourself").contains("killed by signal 9"));
}

fn invariant_8_a_generation_that_fails_halfway_is_taken_back_slot_by_slot() {
    let orders = Orders::new();
    let mut server = Launch::fixture("probe").args(["--workers", "3", "--arg"]).arg(orders.arg()).start();
    let (workers, template) = (server.workers(), server.template());
    orders.give("start-2", "exit 5");
    server.signal(Signal::SIGHUP);
    let failed = server.log.wait("the failure", |record| record.is(FAILED));
    assert!(failed.str("why").contains("exited with code 5"), "{}", failed.line);
    // Slots 0 and 1 had the new generation already; the old template forks their successors.
    eventually("only the old generation is left", || {
        children(server.pid) == [template] && children(template).len() == 3 && server.workers().len() == 3
    });
    assert_eq!(server.workers()[&2], workers[&2]);
    assert!(server.client().exchange("who").expect("an answer").ends_with(" 1"));
    server.stop();
}

/// A copy of a program that can be replaced.
pub fn copy(directory: &Path, program: &Path) -> PathBuf {
    let (copy, beside) = (directory.join("server"), directory.join("server.new"));
    copy_program(program, &beside);
    fs::rename(beside, &copy).expect("a copy in its place");
    copy
}

fn invariant_8_a_missing_binary_leaves_the_old_generation_serving() {
    let directory = tempfile::tempdir().expect("a directory");
    let program = copy(directory.path(), Path::new(env!("CARGO_BIN_EXE_hatchery")));
    let server = Launch::program(&program).args(["--workers", "2"]).start();
    let workers = server.workers();
    fs::remove_file(&program).expect("it was there");
    server.signal(Signal::SIGHUP);
    let failed = server.log.wait("the failure", |record| record.is(FAILED));
    let why = failed.str("why");
    assert!(why.contains(program.to_str().expect("a path")) && why.contains("No such file"), "{why}");
    assert_eq!(server.workers(), workers);
    // Crash recovery needs no path: the old executable is held open.
    signal_process(workers[&0], Signal::SIGKILL);
    server.successor(0, workers[&0]);
    signal_process(server.template(), Signal::SIGKILL);
    server.log.wait_for_many(0, 2, "a new template", |record| record.is("template ready"));
    assert_eq!(server.get("/").greeting().2, 1);
}

fn invariant_8_a_binary_that_is_no_program_leaves_the_old_generation_serving() {
    let directory = tempfile::tempdir().expect("a directory");
    let program = copy(directory.path(), Path::new(env!("CARGO_BIN_EXE_hatchery")));
    let server = Launch::program(&program).args(["--workers", "2"]).start();
    let workers = server.workers();
    copy(directory.path(), Path::new("/etc/hostname"));
    server.signal(Signal::SIGHUP);
    let why = server.log.wait("the failure", |record| record.is(FAILED)).str("why");
    assert!(why.contains("os error"), "the kernel's own words are missing: {why}");
    assert_eq!(server.workers(), workers);
    let mark = server.log.mark();
    let script = directory.path().join("script");
    fs::write(&script, "#!/bin/sh\nexec true\n").expect("a file");
    copy(directory.path(), &script);
    server.signal(Signal::SIGHUP);
    let why = server.log.wait_after(mark, "the failure", |record| record.is(FAILED)).str("why");
    assert!(why.contains("is a script"), "{why}");
    let mark = server.log.mark();
    fs::remove_file(&program).expect("it was there");
    mkfifo(&program, Mode::S_IRWXU).expect("a pipe");
    server.signal(Signal::SIGHUP);
    server.log.wait_after(mark, "the failure", |record| record.is(FAILED));
    // A program that is no template of ours: it ends, or does nothing.
    copy(directory.path(), Path::new("/bin/true"));
    server.signal(Signal::SIGHUP);
    server.log.wait_for_many(0, 4, "the failure", |record| record.is(FAILED));
    assert_eq!(server.workers(), workers);
    copy(directory.path(), Path::new(env!("CARGO_BIN_EXE_hatchery")));
    server.signal(Signal::SIGHUP);
    server.log.wait("the reload", |record| record.is("reloaded"));
}

fn invariant_8_kill_9_of_the_new_template_leaves_the_old_generation_serving() {
    let orders = Orders::new();
    let mut server = Launch::fixture("probe").args(["--workers", "2", "--arg"]).arg(orders.arg()).start();
    let (workers, template) = (server.workers(), server.template());
    orders.give("preload", "hang");
    server.signal(Signal::SIGHUP);
    let others = || children(server.pid).into_iter().filter(|&pid| pid != template).collect::<Vec<_>>();
    eventually("a new template", || others().len() == 1);
    signal_process(others()[0], Signal::SIGKILL);
    let failed = server.log.wait("the failure", |record| record.is(FAILED));
    assert!(failed.str("why").contains("SIGKILL"), "{}", failed.line);
    assert_eq!(server.workers(), workers);
    server.assert_no_zombies();
    server.stop();
}

fn after_a_failed_reload_the_next_one_succeeds() {
    let orders = Orders::new();
    let server = Launch::fixture("probe").args(["--workers", "2", "--arg"]).arg(orders.arg()).start();
    orders.give("start", "fail not yet");
    server.signal(Signal::SIGHUP);
    server.log.wait("the failure", |record| record.is(FAILED));
    orders.take_back("start");
    reload(&server, 3);
    eventually("the new generation answers", || server.client().exchange("who").expect("an answer").ends_with(" 3"));
}

/// A server of which a copy of this binary then takes the place: it says something else.
pub fn with_replaced_binary() -> (tempfile::TempDir, Server) {
    let directory = tempfile::tempdir().expect("a directory");
    let this = std::env::current_exe().expect("a path");
    let program = copy(directory.path(), &this);
    let server = Launch::fixture("probe").with_program(&program).args(["--workers", "2"]).start();
    assert_eq!(version(&server), "1");
    copy(directory.path(), &next_version(directory.path()));
    (directory, server)
}

/// The next version of this binary, in a file of that directory.
fn next_version(directory: &Path) -> PathBuf {
    let mut bytes = fs::read(std::env::current_exe().expect("a path")).expect("it can be read");
    let mark = crate::fixtures::VERSION.as_bytes();
    let at = bytes.windows(mark.len()).position(|window| window == mark).expect("the mark is in the image");
    bytes[at + mark.len() - 1] = b'2';
    let next = directory.join("next");
    fs::write(&next, bytes).expect("the next version");
    fs::set_permissions(&next, fs::Permissions::from_mode(0o755)).expect("it is ours");
    next
}

pub fn version(server: &Server) -> String {
    let answer = server.client().exchange("version").expect("an answer");
    answer.rsplit(' ').next().expect("a word").to_owned()
}

fn a_reload_picks_up_a_replaced_binary() {
    let (_directory, server) = with_replaced_binary();
    reload(&server, 2);
    eventually("the new version answers", || version(&server) == "2");
}

fn a_crash_does_not_pick_up_a_replaced_binary() {
    let (_directory, server) = with_replaced_binary();
    let mark = server.log.mark();
    signal_process(server.template(), Signal::SIGKILL);
    server.log.wait_after(mark, "a new template", |record| record.is("template ready"));
    for (slot, worker) in server.workers() {
        signal_process(worker, Signal::SIGKILL);
        server.successor(slot, worker);
    }
    assert_eq!(version(&server), "1");
}

fn a_link_that_leads_to_another_version_is_followed_by_reload_and_upgrade() {
    let directory = tempfile::tempdir().expect("a directory");
    let (link, beside) = (directory.path().join("current"), directory.path().join("current.new"));
    let lead_to = |version: &Path| {
        symlink(version, &beside).and_then(|()| fs::rename(&beside, &link)).expect("a link in its place");
    };
    let (first, second) = (std::env::current_exe().expect("a path"), next_version(directory.path()));
    lead_to(&first);
    let mut server = Launch::fixture("probe").with_program(&link).args(["--workers", "2"]).start();
    assert_eq!(version(&server), "1");
    lead_to(&second);
    reload(&server, 2);
    eventually("the second version answers", || version(&server) == "2");
    lead_to(&first);
    server.upgrade();
    assert_eq!(version(&server), "1");
    server.stop();
}

fn reloads_during_a_reload_become_one() {
    let mut server = Server::start(&["--workers", "3"]);
    for _ in 0..10 {
        server.signal(Signal::SIGHUP);
    }
    server.log.wait("the first reload", |record| record.is("reloaded"));
    server.signal(Signal::SIGHUP);
    eventually("one generation is left and in its seats", || {
        let generations: Vec<u64> =
            server.log.all(|record| record.is("reloading")).iter().map(|record| record.u64("generation")).collect();
        let done = server.log.count(|record| record.is("reloaded"));
        done == generations.len() && done >= 2 && children(server.pid).len() == 1
    });
    assert!(server.log.count(|record| record.is("reloading")) <= 3, "{}", server.log.text());
    server.stop();
}

/// The gaps between the reloads come from this seed; `HATCHERY_SEED=<seed>` repeats them.
fn seed() -> u64 {
    let given = std::env::var("HATCHERY_SEED").ok().map(|seed| seed.parse().expect("a number"));
    let seed = given.unwrap_or_else(|| RandomState::new().hash_one(()));
    println!("HATCHERY_SEED={seed} repeats the gaps");
    seed
}

/// Numbers below `limit` out of a seed (splitmix64).
fn numbers_below(limit: u64, mut seed: u64) -> impl Iterator<Item = u64> {
    std::iter::repeat_with(move || {
        seed = seed.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (seed ^ (seed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (mixed ^ (mixed >> 31)) % limit
    })
}

fn invariant_7_25_reloads_at_random_gaps_under_load_lose_nothing_and_leave_nothing_behind() {
    let mut server = Server::start(&["--workers", "4"]);
    let held = |pid: i32| descriptors(pid).len();
    let (master, template) = (held(server.pid), held(server.template()));
    let worker = server.workers().into_values().map(held).max().expect("a worker");
    let load = Load::start(&server.address(), 3);
    for gap in numbers_below(25, seed()).take(25) {
        // The gap is what is tested: it falls into any moment of the roll before.
        std::thread::sleep(Duration::from_millis(gap));
        server.signal(Signal::SIGHUP);
    }
    let last = || {
        let began = server.log.all(|record| record.is("reloading")).last().map(|record| record.u64("generation"));
        let ended = server.log.all(|record| record.is("reloaded")).last().map(|record| record.u64("generation"));
        began.filter(|_| began == ended)
    };
    // A reload that was queued may begin at any moment, and the condition then holds again after it.
    let one_is_left = || last().is_some() && server.processes().len() == 1 + 1 + 4;
    eventually("one generation is left", one_is_left);
    load.await_answers(50);
    let tally = load.stop();
    assert_eq!(tally.lost, [""; 0], "of {} requests", tally.answered);
    eventually("the last one answers", || one_is_left() && last() == Some(server.get("/").greeting().2));
    assert_eq!(server.log.count(|record| record.is(FAILED)), 0);
    server.assert_no_zombies();
    eventually("nobody holds more than before", || {
        held(server.pid) <= master
            && held(server.template()) <= template
            && server.workers().into_values().all(|pid| held(pid) <= worker)
    });
    server.stop();
    println!("{} answered by generations {:?}", tally.answered, tally.generations);
}

fn invariant_8_workers_that_die_young_leave_the_old_generation_serving() {
    let orders = Orders::new();
    let mut server = Launch::fixture("probe").args(["--workers", "3", "--arg"]).arg(orders.arg()).start();
    let (workers, template) = (server.workers(), server.template());
    orders.give("start-1", "wait");
    let mark = server.log.mark();
    server.signal(Signal::SIGHUP);
    let young = server.log.wait_after(mark, "the first of the new generation", |record| record.is("worker ready"));
    eventually("the roll is under way", || orders.obeyed("start-1"));
    signal_process(young.pid(), Signal::SIGKILL);
    let failed = server.log.wait("the failure", |record| record.is(FAILED));
    assert!(failed.str("why").contains("the worker of slot 0 was killed by signal 9"), "{}", failed.line);
    orders.take_back("start-1");
    eventually("only the old generation is left", || {
        children(server.pid) == [template] && children(template).len() == 3 && server.workers().len() == 3
    });
    assert_eq!((server.workers()[&1], server.workers()[&2]), (workers[&1], workers[&2]));
    assert!(server.client().exchange("who").expect("an answer").ends_with(" 1"));
    server.assert_no_zombies();
    server.stop();
}

fn a_wider_surge_starts_more_successors_at_once() {
    let orders = Orders::new();
    let args = ["--workers", "4", "--max-surge", "3", "--arg"];
    let mut server = Launch::fixture("probe").args(args).arg(orders.arg()).start();
    let (workers, template) = (server.workers(), server.template());
    orders.give("start", "wait");
    server.signal(Signal::SIGHUP);
    let successors = || {
        let others = children(server.pid).into_iter().filter(|&pid| pid != template);
        others.flat_map(children).count()
    };
    eventually("three are starting", || successors() == 3);
    // A fourth would have been forked with them, in the same step.
    assert_eq!((successors(), server.workers()), (3, workers));
    orders.take_back("start");
    server.log.wait("the reload", |record| record.is("reloaded"));
    server.stop();
}

fn a_reload_while_the_workers_are_drained_brings_none_of_the_old_generation_back() {
    let mut server = Launch::hatchery().args(["--workers", "2"]).in_background().start();
    server.signal(Signal::SIGWINCH);
    server.log.wait_for_many(0, 2, "the workers' ends", |record| record.is("worker drained"));
    let mark = server.log.mark();
    reload(&server, 2);
    assert_eq!(server.get("/").greeting().2, 2);
    server.stop();
    let ready = server.log.all(|record| record.is("worker ready")).split_off(2);
    assert!(ready.iter().all(|record| record.u64("generation") == 2), "{}", server.log.text());
    assert_eq!(server.log.wait_after(mark, "it", |record| record.is("reloading")).u64("generation"), 2);
}
