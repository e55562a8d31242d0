//! Invariant 9: kill -9 of any one process leaves no orphan, no zombie and no held port; and what dies by itself is
//! replaced, at once where it had served well and with growing delays where it keeps dying.

use std::time::{Duration, Instant};

use libtest_mimic::Trial;
use nix::sys::signal::Signal;

use crate::fixtures::Orders;
use crate::support::client::Client;
use crate::support::load::Load;
use crate::support::log::Record;
use crate::support::processes::{eventually, is_alive, is_free, stat, within};
use crate::support::{Launch, Server, freeze, signal_process};

pub fn tests() -> Vec<Trial> {
    trials!["recovery":
        invariant_9_kill_9_of_the_master_frees_the_port_and_leaves_nobody,
        invariant_9_after_kill_9_of_the_master_a_request_in_hand_is_still_answered,
        invariant_9_after_kill_9_of_the_master_under_load_no_answer_breaks_off,
        invariant_9_kill_9_of_the_master_while_a_worker_drains_leaves_nobody,
        invariant_9_kill_9_of_the_master_in_the_middle_of_a_preload_frees_the_port,
        invariant_9_kill_9_of_the_master_in_the_middle_of_a_start_frees_the_port,
        invariant_9_kill_9_of_the_template_leaves_its_workers_serving,
        invariant_9_kill_9_of_template_and_worker_at_once_is_mended,
        whoever_fills_a_slot_is_let_in_soon_and_whoever_serves_is_one_of_many,
        a_slot_is_filled_though_nobody_reaps_its_dead_worker,
        invariant_9_kill_9_of_a_worker_fills_the_same_slot_and_touches_no_other,
        invariant_9_kill_9_of_master_during_a_reload_leaves_nobody,
        a_crash_loop_is_slowed_down_and_touches_no_healthy_worker,
        a_slot_that_failed_after_the_boot_recovers,
        term_to_one_worker_drains_it_and_another_follows,
    ]
}

fn invariant_9_kill_9_of_the_master_frees_the_port_and_leaves_nobody() {
    let mut server = Server::start(&["--workers", "4"]);
    let address = server.address();
    // Idle connections hold nobody.
    let mut idle = server.client();
    idle.get("/").expect("an answer");
    let before = server.processes();
    server.signal(Signal::SIGKILL);
    server.wait();
    // One that ends loses its environment, by which it is found, a moment before its descriptors; when it is dead it has neither.
    let took = within(Duration::from_secs(2), "all processes are gone", || {
        server.processes().is_empty() && !before.iter().any(|&pid| is_alive(pid))
    });
    assert!(is_free(&address), "the port is free");
    assert_eq!(idle.rest(), b"");
    println!("the last process was gone {took:?} after the master");
}

fn invariant_9_after_kill_9_of_the_master_a_request_in_hand_is_still_answered() {
    let mut server = Server::start(&["--workers", "2", "--faults"]);
    let mut client = server.client();
    client.ask("/fault/sleep?ms=700").expect("a request");
    await_busy(&server);
    server.signal(Signal::SIGKILL);
    server.wait();
    let answer = client.answer().expect("the answer");
    assert_eq!(answer.status, 200);
    assert_eq!(client.rest(), b"");
    within(Duration::from_secs(2), "all processes are gone", || server.processes().is_empty());
}

/// Waits until some worker is in the middle of a request: it sleeps in poll(2) rather than in epoll_wait(2).
fn await_busy(server: &Server) {
    eventually("a worker is busy", || {
        server.workers().into_values().any(|pid| {
            let call = std::fs::read_to_string(format!("/proc/{pid}/wchan")).unwrap_or_default();
            call.contains("poll_schedule_timeout") || call.contains("do_sys_poll") || call.contains("do_poll")
        })
    });
}

fn invariant_9_after_kill_9_of_the_master_under_load_no_answer_breaks_off() {
    let mut server = Server::start(&["--workers", "4"]);
    let mut kept: Vec<Client> = (0..8).map(|_| server.client()).collect();
    for client in &mut kept {
        client.get("/").expect("an answer");
    }
    let asked: Vec<_> = kept.iter_mut().map(|client| client.ask("/")).collect();
    server.signal(Signal::SIGKILL);
    server.wait();
    assert!(asked.iter().all(Result::is_ok));
    for mut client in kept {
        client.answer().expect("a request that had arrived is answered").greeting();
    }
    within(Duration::from_secs(2), "all processes are gone", || server.processes().is_empty());
}

/// The worker waits for a client whose request is incomplete, who has 30 seconds for it.
fn invariant_9_kill_9_of_the_master_while_a_worker_drains_leaves_nobody() {
    let mut server = Server::start(&["--workers", "1"]);
    let mut client = server.client();
    let (_, old, _) = client.get("/").expect("an answer").greeting();
    client.send(b"GET / HT").expect("a part of a request");
    server.signal(Signal::SIGHUP);
    server.log.wait("the old worker leaves", |record| record.is_about("draining", old));
    assert!(is_alive(old), "somebody waits for the client");
    server.signal(Signal::SIGKILL);
    server.wait();
    within(Duration::from_secs(5), "all processes are gone", || server.processes().is_empty());
    assert_eq!(client.answer().expect("a word that it took too long").status, 408);
}

/// Kills the master of a server that hangs in this moment of its boot.
fn kill_in_the_middle_of(moment: &str) {
    let orders = Orders::new();
    orders.give(moment, "hang");
    let mut server = Launch::fixture("probe").args(["--listen", "127.0.0.1:0", "--arg"]).arg(orders.arg()).spawn();
    server.log.wait("it listens", |record| record.is("listening"));
    eventually("it hangs", || orders.obeyed(moment));
    let address = server.address();
    server.signal(Signal::SIGKILL);
    server.wait();
    // Other slots are still being filled: a worker may be born behind the look at `/proc`, and ends as well.
    within(Duration::from_secs(2), "all processes are gone and the port is free", || {
        server.processes().is_empty() && is_free(&address)
    });
    assert!(server.processes().is_empty());
}

fn invariant_9_kill_9_of_the_master_in_the_middle_of_a_preload_frees_the_port() {
    kill_in_the_middle_of("preload");
}

fn invariant_9_kill_9_of_the_master_in_the_middle_of_a_start_frees_the_port() {
    kill_in_the_middle_of("start");
}

fn invariant_9_kill_9_of_the_template_leaves_its_workers_serving() {
    let mut server = Server::start(&["--workers", "3"]);
    let (template, workers) = (server.template(), server.workers());
    let load = Load::start(&server.address(), 2);
    let mark = server.log.mark();
    signal_process(template, Signal::SIGKILL);
    server.log.wait_after(mark, "the loss of the template", |record| record.is("template lost"));
    server.log.wait_after(mark, "a new template", |record| record.is("template ready"));
    load.await_answers(50);
    let tally = load.stop();
    assert_eq!(tally.lost, [""; 0]);
    assert_eq!(tally.closed_while_idle, 0);
    assert_eq!(server.workers(), workers);
    signal_process(workers[&1], Signal::SIGKILL);
    let successor = server.successor(1, workers[&1]);
    assert_ne!(server.template(), template);
    let ready = server.log.wait("it", |record| record.is_about("worker ready", successor));
    assert_eq!(ready.u64("generation"), 1, "a crash is no reload");
    server.assert_no_zombies();
    server.stop();
}

fn invariant_9_kill_9_of_template_and_worker_at_once_is_mended() {
    let mut server = Server::start(&["--workers", "4"]);
    for _ in 0..3 {
        let (template, workers) = (server.template(), server.workers());
        signal_process(workers[&2], Signal::SIGKILL);
        signal_process(template, Signal::SIGKILL);
        server.successor(2, workers[&2]);
        // The next round's template is that of the newest worker.
        server.get("/").greeting();
        server.assert_no_zombies();
    }
    server.stop();
}

/// The slice of the processor that a thread asks for, in nanoseconds; none where the kernel does not show it.
fn slice(thread: &str) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{thread}/sched")).ok()?;
    let line = text.lines().find(|line| line.starts_with("se.slice"))?;
    line.rsplit(':').next()?.trim().parse().ok()
}

/// With a short slice a thread that wakes up comes before those who compute (Linux 6.12 and later).
fn whoever_fills_a_slot_is_let_in_soon_and_whoever_serves_is_one_of_many() {
    let mut server = Server::start(&["--workers", "2"]);
    if let (Some(ordinary), true) = (slice("thread-self"), kernel() >= (6, 12)) {
        for prompt in [server.pid, server.template()] {
            let slice = slice(&prompt.to_string()).expect("it shows this thread's");
            assert!(slice < ordinary, "{slice} of {ordinary}");
        }
        for worker in server.workers().into_values() {
            assert_eq!(slice(&worker.to_string()), Some(ordinary));
        }
    }
    server.stop();
}

/// This process has the orphans of a template that is dead, and never reaps them.
fn a_slot_is_filled_though_nobody_reaps_its_dead_worker() {
    let mut server = Server::start(&["--workers", "2"]);
    // Only where the kernel would tell how it ended (Linux 6.15) is that worth waiting for, so the order of the two may be any.
    let comes_first = (0..5).any(|_| {
        let (template, dead) = (server.template(), server.workers()[&1]);
        server.get("/").greeting();
        freeze(template);
        signal_process(dead, Signal::SIGKILL);
        signal_process(template, Signal::SIGKILL);
        let next = server.successor(1, dead);
        let told = server.log.wait("its end is told", |record| record.is_about("worker exited", dead));
        assert_eq!(told.str("why"), "is gone, and nobody saw how");
        assert_eq!(stat(dead).map(|stat| stat.state), Some('Z'), "nobody has reaped it");
        let of_both = |record: &Record| record.is_about("worker ready", next) || record.is_about("worker exited", dead);
        server.log.all(of_both)[0].is("worker ready")
    });
    assert!(comes_first || kernel() < (6, 15));
    server.stop();
}

/// The kernel's version.
fn kernel() -> (u32, u32) {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").expect("/proc is mounted");
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|number| number.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

fn invariant_9_kill_9_of_a_worker_fills_the_same_slot_and_touches_no_other() {
    let mut server = Server::start(&["--workers", "4"]);
    let before = server.workers();
    let began = Instant::now();
    signal_process(before[&2], Signal::SIGKILL);
    let successor = server.successor(2, before[&2]);
    let took = began.elapsed();
    let mut expected = before.clone();
    expected.insert(2, successor);
    assert_eq!(server.workers(), expected);
    let died = server.log.wait("its death", |record| record.is_about("worker exited", before[&2]));
    assert_eq!(died.str("why"), "was killed by signal 9");
    assert_eq!((died.u64("slot"), died.u64("generation")), (2, 1));
    println!("the successor was ready {took:?} after the kill");
    server.assert_no_zombies();
    server.stop();
}

fn invariant_9_kill_9_of_master_during_a_reload_leaves_nobody() {
    let mut server = Server::start(&["--workers", "8"]);
    let address = server.address();
    server.signal(Signal::SIGHUP);
    server.log.wait("the middle of the reload", |record| record.is("worker drained"));
    server.signal(Signal::SIGKILL);
    server.wait();
    // A worker may be born behind the look at `/proc`, and ends as well.
    within(Duration::from_secs(2), "all processes are gone and the port is free", || {
        server.processes().is_empty() && is_free(&address)
    });
}

fn a_crash_loop_is_slowed_down_and_touches_no_healthy_worker() {
    let orders = Orders::new();
    let server = Launch::fixture("probe").args(["--workers", "3", "--arg"]).arg(orders.arg()).start();
    let healthy = server.workers();
    orders.give("start-1", "exit 3");
    signal_process(healthy[&1], Signal::SIGKILL);
    let delays = server.log.wait_for_many(0, 5, "delays", |record| record.is("slot delayed"));
    let delays: Vec<u64> =
        delays.iter().filter(|record| record.u64("slot") == 1).map(|record| record.u64("delay_ms")).collect();
    assert!(delays.len() >= 5, "another slot was delayed:\n{}", server.log.text());
    // Each doubles the last, jitter of a quarter either way: two steps later it is longer for certain.
    for window in delays.windows(3) {
        assert!(window[2] > window[0], "{delays:?}");
    }
    for slot in [0, 2] {
        assert_eq!(server.workers()[&slot], healthy[&slot]);
    }
    assert!(server.client().exchange("who").is_ok());
}

fn a_slot_that_failed_after_the_boot_recovers() {
    let orders = Orders::new();
    let server = Launch::fixture("probe").args(["--workers", "2", "--arg"]).arg(orders.arg()).start();
    let old = server.workers()[&0];
    orders.give("start-0", "fail the disk is full");
    signal_process(old, Signal::SIGKILL);
    let failed = server.log.wait("its words", |record| record.is("worker not started"));
    assert_eq!(failed.str("why"), "the disk is full");
    orders.take_back("start-0");
    server.successor(0, old);
}

fn term_to_one_worker_drains_it_and_another_follows() {
    let server = Server::start(&["--workers", "2", "--faults"]);
    let mut client = server.client();
    let pid = client.get("/").expect("an answer").pid();
    let slot = server.workers().into_iter().find(|(_, worker)| *worker == pid).expect("a worker").0;
    client.ask("/fault/sleep?ms=300").expect("a request");
    await_busy(&server);
    signal_process(pid, Signal::SIGTERM);
    let answer = client.answer().expect("the request in hand is answered");
    assert_eq!(answer.status, 200);
    assert_eq!(client.rest(), b"");
    server.successor(slot, pid);
    let end = server.log.wait("its end", |record| record.is_about("worker exited", pid));
    assert_eq!(end.str("why"), "exited with code 0");
    assert!(!is_alive(pid));
}
