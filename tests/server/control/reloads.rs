//! Reloads that are asked for: the log, the status and the exit code tell how each ended, alike.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use hatchery::server::{Generation, ReloadOutcome, ServerState};
use libtest_mimic::Trial;
use nix::sys::signal::Signal;

use super::{Control, End, Place, RELOAD};
use crate::fixtures::Orders;
use crate::reloads::copy;
use crate::support::load::Load;
use crate::support::processes::{children, descriptors, eventually};
use crate::support::{Launch, Server, signal_process};

pub fn tests() -> Vec<Trial> {
    trials!["control":
        a_reload_ends_with_0_when_the_new_generation_serves,
        a_configuration_that_the_service_refuses_is_told_alike_by_log_status_and_exit_code,
        a_preload_that_panics_is_told_alike_by_log_status_and_exit_code,
        a_missing_binary_is_told_alike_by_log_status_and_exit_code,
        workers_that_die_young_are_told_alike_by_log_status_and_exit_code,
        a_worker_that_cannot_start_is_told_alike_by_log_status_and_exit_code,
        reloads_that_come_during_one_become_one_and_all_hear_its_outcome,
        a_reload_by_signal_is_seen_in_the_status,
        a_stop_calls_the_reload_off_and_who_waits_is_told,
        a_reload_of_a_server_that_leaves_is_called_off_at_once,
        an_interrupt_of_the_command_leaves_the_reload_running,
        a_reload_that_takes_longer_than_the_timeout_goes_on,
        a_server_that_dies_in_the_reload_leaves_its_outcome_unknown,
        where_no_server_answers_the_exit_code_is_4,
    ]
}

const FAILED: &str = "reload failed, the old generation stays";

fn probe(place: &Place, orders: &Orders) -> Server {
    place.launch(Launch::fixture("probe").args(["--workers", "2", "--arg"]).arg(orders.arg())).start()
}

fn who(server: &Server) -> String {
    server.client().exchange("who").expect("an answer")
}

/// The reload to the generation was rolled back, and the three who know of it say the same, which is given.
#[track_caller]
fn assert_told_alike(end: &End, server: &Server, control: &Control, generation: u32) -> String {
    let failed = server.log.wait("the failure", |record| record.is(FAILED));
    assert_eq!(failed.u64("generation"), u64::from(generation));
    let why = failed.str("why");
    assert_eq!((end.code, end.out.as_str()), (Some(1), ""), "{end:?}");
    assert_eq!(end.err, format!("error: the reload was rolled back, the old generation serves on: {why}\n"));
    let status = control.status();
    assert_eq!((status.state, status.generation, status.incoming), (ServerState::Serving, Generation(1), None));
    let last = status.last_reload.expect("there was one");
    assert_eq!(last.end.generation, Some(Generation(generation)));
    assert_eq!(last.end.outcome, ReloadOutcome::RolledBack { why: why.clone() });
    why
}

fn a_reload_ends_with_0_when_the_new_generation_serves() {
    let place = Place::new();
    let mut server = place.launch(Launch::hatchery().args(["--workers", "2"])).start();
    assert_eq!(place.control().status().last_reload, None);
    place.control().reload(&[]).end().expect(0, "generation 2 serves");
    server.log.wait("the reload", |record| record.is("reloaded"));
    let asked = server.log.wait("who asked", |record| record.is("reload asked for"));
    assert_eq!(asked.u64("uid"), u64::from(nix::unistd::getuid().as_raw()));
    let status = place.control().status();
    assert_eq!((status.state, status.generation), (ServerState::Serving, Generation(2)));
    let last = status.last_reload.expect("it was the first");
    assert_eq!((last.end.generation, last.end.outcome), (Some(Generation(2)), ReloadOutcome::Reloaded));
    server.stop();
}

/// A probe whose next generation fails like this; what all say of it.
fn failing(moment: &str, order: &str) -> String {
    let (place, orders) = (Place::new(), Orders::new());
    let mut server = probe(&place, &orders);
    let workers = server.workers();
    orders.give(moment, order);
    let why = assert_told_alike(&place.control().reload(&[]).end(), &server, &place.control(), 2);
    assert_eq!(server.workers(), workers, "the old generation was harmed");
    assert!(who(&server).ends_with(" 1"));
    server.stop();
    why
}

fn a_configuration_that_the_service_refuses_is_told_alike_by_log_status_and_exit_code() {
    assert_eq!(failing("preload", "fail there is no table `geo`"), "the preload failed: there is no table `geo`");
}

fn a_preload_that_panics_is_told_alike_by_log_status_and_exit_code() {
    assert!(failing("preload", "panic at the new index").contains("at the new index"));
}

fn a_worker_that_cannot_start_is_told_alike_by_log_status_and_exit_code() {
    let why = failing("start", "fail no new licence");
    assert_eq!(why, "the start of the worker of slot 0 failed: no new licence");
}

fn a_missing_binary_is_told_alike_by_log_status_and_exit_code() {
    let (place, control) = (Place::new(), Place::new());
    let program = copy(place.directory(), Path::new(env!("CARGO_BIN_EXE_hatchery")));
    let mut server = control.launch(Launch::program(&program).args(["--workers", "2"])).start();
    let (workers, load) = (server.workers(), Load::start(&server.address(), 2));
    fs::remove_file(&program).expect("it was there");
    let end = control.control().reload(&[]).end();
    load.await_answers(20);
    let why = assert_told_alike(&end, &server, &control.control(), 2);
    assert!(why.contains(program.to_str().expect("a path")) && why.contains("No such file"), "{why}");
    let tally = load.stop();
    assert_eq!(tally.lost, [""; 0], "of {} requests", tally.answered);
    assert!(tally.generations.iter().all(|generation| *generation == 1), "{:?}", tally.generations);
    assert_eq!(server.workers(), workers);
    server.stop();
}

fn workers_that_die_young_are_told_alike_by_log_status_and_exit_code() {
    let (place, orders) = (Place::new(), Orders::new());
    let mut server = probe(&place, &orders);
    let (worker, template) = (server.workers()[&1], server.template());
    orders.give("start-1", "wait");
    let mark = server.log.mark();
    let asked = place.control().reload(&[]);
    let young = server.log.wait_after(mark, "the first of the new generation", |record| record.is("worker ready"));
    eventually("the roll is under way", || orders.obeyed("start-1"));
    let status = place.control().status();
    assert_eq!((status.state, status.incoming), (ServerState::Reloading, Some(Generation(2))));
    signal_process(young.pid(), Signal::SIGKILL);
    let why = assert_told_alike(&asked.end(), &server, &place.control(), 2);
    assert!(why.contains("the worker of slot 0 was killed by signal 9"), "{why}");
    orders.take_back("start-1");
    eventually("only the old generation is left", || {
        children(server.pid) == [template] && children(template).len() == 2 && server.workers().len() == 2
    });
    assert_eq!(server.workers()[&1], worker);
    assert!(who(&server).ends_with(" 1"));
    server.stop();
}

fn reloads_that_come_during_one_become_one_and_all_hear_its_outcome() {
    const LATER: usize = 7;
    let (place, orders) = (Place::new(), Orders::new());
    let mut server = probe(&place, &orders);
    let asked_for = |times: usize| {
        server.log.wait_for_many(0, times, "who asked", |record| record.is("reload asked for"));
    };
    orders.give("preload", "wait");
    let first = place.control().reload(&[]);
    eventually("the first is under way", || orders.obeyed("preload"));
    let later: Vec<_> = (0..LATER).map(|_| place.control().reload(&[])).collect();
    asked_for(1 + LATER);
    server.signal(Signal::SIGHUP);
    orders.take_back("preload");
    first.end().expect(0, "generation 2 serves");
    for end in later.into_iter().map(super::Asked::end) {
        end.expect(0, "generation 3 serves");
    }
    // The next ones fail, and all hear of that, too.
    orders.give("preload", "wait");
    let first = place.control().reload(&[]);
    eventually("the third is under way", || place.control().status().incoming == Some(Generation(4)));
    let later: Vec<_> = (0..LATER).map(|_| place.control().reload(&[])).collect();
    asked_for(2 + 2 * LATER);
    orders.give("start", "fail torn");
    orders.take_back("preload");
    for asked in later.into_iter().chain([first]) {
        let why = "the start of the worker of slot 0 failed: torn";
        asked.end().expect(1, &format!("the reload was rolled back, the old generation serves on: {why}\n"));
    }
    assert_eq!(server.log.count(|record| record.is("reloading")), 4, "{}", server.log.text());
    server.stop();
}

fn a_reload_by_signal_is_seen_in_the_status() {
    let (place, orders) = (Place::new(), Orders::new());
    let mut server = probe(&place, &orders);
    orders.give("preload", "fail torn");
    server.signal(Signal::SIGHUP);
    let failed = server.log.wait("the failure", |record| record.is(FAILED));
    assert_eq!(failed.str("why"), "the preload failed: torn");
    let shown = End::of(place.control().command("status", &[]).output().expect("the command runs"));
    assert_eq!(shown.code, Some(0));
    assert!(
        shown.out.contains("generation 2 was rolled back") && shown.out.contains(" ago: the preload failed: torn\n"),
        "{shown:?}"
    );
    orders.take_back("preload");
    server.signal(Signal::SIGHUP);
    server.log.wait("the reload", |record| record.is("reloaded"));
    let last = place.control().status().last_reload.expect("there were two");
    assert_eq!((last.end.generation, last.end.outcome), (Some(Generation(3)), ReloadOutcome::Reloaded));
    server.stop();
}

fn a_stop_calls_the_reload_off_and_who_waits_is_told() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let (place, orders) = (Place::new(), Orders::new());
        let mut server = probe(&place, &orders);
        orders.give("preload", "wait");
        let (first, second) = (place.control().reload(&[]), place.control().reload(&[]));
        server.log.wait_for_many(0, 2, "who asked", |record| record.is("reload asked for"));
        eventually("the reload is under way", || orders.obeyed("preload"));
        server.stop_by(signal);
        first.end().expect(1, "the reload was called off: the server stops\n");
        second.end().expect(1, "the reload was called off: the server stops\n");
        let called_off = server.log.wait("it in the log", |record| record.is("reload called off"));
        assert_eq!(called_off.str("why"), "the server stops");
        assert!(!place.path.exists());
    }
}

fn a_reload_of_a_server_that_leaves_is_called_off_at_once() {
    let place = Place::new();
    let mut server = place.launch(Launch::hatchery().args(["--workers", "2", "--faults"])).start();
    let mut client = server.client_that_asks("/fault/sleep?ms=2000");
    eventually("the request is in hand", || {
        let status = place.control().status();
        status.slots.iter().flat_map(|slot| &slot.workers).any(|worker| worker.request_ms.is_some())
    });
    server.signal(Signal::SIGTERM);
    server.log.wait("it leaves", |record| record.is("stopping"));
    assert_eq!(place.control().status().state, ServerState::Stopping);
    place.control().reload(&[]).end().expect(1, "the reload was called off: the server stops\n");
    assert_eq!(client.answer().expect("the answer").status, 200);
    assert_eq!(server.wait().code(), Some(0));
}

fn an_interrupt_of_the_command_leaves_the_reload_running() {
    // A background job's program ignores the signal, and so would what it starts; a handler is not passed on (execve(2)).
    let always = Arc::new(AtomicBool::new(true));
    signal_hook::flag::register_conditional_default(Signal::SIGINT as i32, always).expect("a handler");
    let (place, orders) = (Place::new(), Orders::new());
    let mut server = probe(&place, &orders);
    orders.give("preload", "wait");
    let asked = place.control().reload(&[]);
    eventually("the reload is under way", || orders.obeyed("preload"));
    let held = descriptors(server.pid).len();
    signal_process(asked.pid(), Signal::SIGINT);
    assert_eq!(asked.end().code, None, "it dies by the signal");
    eventually("nothing of it is left", || descriptors(server.pid).len() < held);
    orders.take_back("preload");
    server.log.wait("the reload", |record| record.is("reloaded"));
    eventually("the new generation answers", || who(&server).ends_with(" 2"));
    server.stop();
}

fn a_reload_that_takes_longer_than_the_timeout_goes_on() {
    let (place, orders) = (Place::new(), Orders::new());
    let mut server = probe(&place, &orders);
    orders.give("preload", "wait");
    let end = place.control().reload(&["--timeout", "300ms"]).end();
    end.expect(5, "has not answered within 300ms");
    orders.take_back("preload");
    server.log.wait("the reload", |record| record.is("reloaded"));
    place.control().reload(&["--timeout", "1m"]).end().expect(0, "generation 3 serves");
    server.stop();
}

fn a_server_that_dies_in_the_reload_leaves_its_outcome_unknown() {
    let (place, orders) = (Place::new(), Orders::new());
    let mut server = probe(&place, &orders);
    orders.give("preload", "hang");
    let asked = place.control().reload(&[]);
    eventually("the reload is under way", || orders.obeyed("preload"));
    server.signal(Signal::SIGKILL);
    server.wait();
    asked.end().expect(5, "how the reload ends is not known");
    eventually("nobody is left", || server.processes().is_empty());
}

fn where_no_server_answers_the_exit_code_is_4() {
    let place = Place::new();
    let missing = || place.control().reload(&[]).end();
    missing().expect(4, "no server answers at unix:");
    missing().expect(4, "No such file");
    drop(std::os::unix::net::UnixListener::bind(&place.path).expect("a dead server's socket"));
    missing().expect(4, "Connection refused");
    let status = End::of(place.control().command("status", &["--json"]).output().expect("the command runs"));
    assert_eq!((status.code, status.out.as_str()), (Some(4), ""));
    // Something else listens there.
    fs::remove_file(&place.path).expect("it was there");
    let other = std::os::unix::net::UnixListener::bind(&place.path).expect("a socket");
    let asked = place.control().reload(&[]);
    let (mut stream, _) = other.accept().expect("the command");
    let mut question = vec![0; RELOAD.len()];
    std::io::Read::read_exact(&mut stream, &mut question).expect("its question");
    assert_eq!(question, RELOAD);
    std::io::Write::write_all(&mut stream, b"HTTP/1.1 400 Bad Request\r\n\r\n").expect("it listens");
    asked.end().expect(4, "no server of this kind");
}
