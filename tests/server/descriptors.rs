//! Invariant 3: a worker holds only an allow-listed set of descriptors, and what it starts holds none of them.
//! Invariant 6: of the shared memory a worker maps its own page only.

use std::collections::BTreeSet;
use std::fs::File;

use libtest_mimic::Trial;
use nix::sys::signal::Signal;

use crate::support::load::Load;
use crate::support::processes::{children, descriptors, eventually, is_alive, is_free, maps_of};
use crate::support::{Launch, Server, signal_process};

pub fn tests() -> Vec<Trial> {
    trials!["descriptors":
        invariant_3_a_worker_holds_only_the_allowed_descriptors,
        invariant_3_a_reload_and_a_respawn_leave_no_further_descriptor,
        invariant_3_a_careless_descriptor_of_the_masters_reaches_no_worker,
        invariant_3_a_subprocess_holds_no_socket_and_outlives_the_server_without_its_port,
        invariant_6_a_worker_maps_its_own_page_of_the_scoreboard_alone,
        invariant_6_kills_at_any_moment_under_load_harm_nobody_else,
    ]
}

/// What a descriptor is, without the number that makes it this one: `socket:[17]` is a `socket`.
fn kind(target: &str) -> &str {
    match target.split_once(":[") {
        Some((kind, number)) if number.starts_with(|first: char| first.is_ascii_digit()) => kind,
        _ => target,
    }
}

/// A worker's descriptors by kind, the first three aside.
fn kinds(pid: i32) -> Vec<String> {
    let mut kinds: Vec<_> =
        descriptors(pid).into_iter().filter(|(fd, _)| *fd > 2).map(|(_, target)| kind(&target).to_owned()).collect();
    kinds.sort_unstable();
    kinds
}

/// Two listeners; the socket to the master, the template's socket for last words, and the two ends of the pipe for
/// SIGTERM with a copy for its handler; one epoll for the loop and one for the wish to drain.
fn allowed() -> Vec<&'static str> {
    [vec!["anon_inode:[eventpoll]"; 2], vec!["socket"; 2 + 2 + 3]].concat()
}

fn assert_allowed(server: &Server) {
    for (slot, pid) in server.workers() {
        let held = descriptors(pid);
        let first: Vec<&str> = held.range(..3).map(|(_, target)| kind(target)).collect();
        assert_eq!(first, ["/dev/null", "/dev/null", "pipe"], "slot {slot}: {held:?}");
        assert_eq!(kinds(pid), allowed(), "slot {slot}: {held:?}");
    }
}

/// What a template has: what its workers are to have, the scoreboard, its conversation with the master, both ends of the
/// socket for last words, and the descriptor for its children's deaths. A pidfd that it has just passed on may still be there
/// for a moment.
fn assert_template(server: &Server) {
    let mut expected = vec!["/memfd:hatchery-scoreboard (deleted)".to_owned(), "anon_inode:[signalfd]".to_owned()];
    expected.extend(vec!["socket".to_owned(); 2 + 1 + 2]);
    expected.iter_mut().for_each(|target| kind(target).to_owned().clone_into(target));
    eventually("the template holds that and no more", || kinds(server.template()) == expected);
}

fn start() -> Server {
    let second = format!("unix:@hatchery-fds-{}-{:?}", std::process::id(), std::thread::current().id());
    Server::start(&["--workers", "3", "--listen", &second])
}

fn invariant_3_a_worker_holds_only_the_allowed_descriptors() {
    let server = start();
    assert_allowed(&server);
    assert_template(&server);
    // No worker holds another's socket: each is in two processes, and the pipes' ends in one.
    let sockets = |pid| -> BTreeSet<String> {
        descriptors(pid).into_values().filter(|target| kind(target) == "socket").collect()
    };
    let workers: Vec<_> = server.workers().into_values().collect();
    let shared: BTreeSet<_> = sockets(workers[0]).intersection(&sockets(workers[1])).cloned().collect();
    assert_eq!(shared.len(), 3, "two listeners and the socket for last words: {shared:?}");
}

fn invariant_3_a_reload_and_a_respawn_leave_no_further_descriptor() {
    let server = start();
    let masters = descriptors(server.pid).len();
    for generation in 2..=4 {
        server.signal(Signal::SIGHUP);
        server.log.wait("a reload", |record| record.is("reloaded") && record.u64("generation") == generation);
        let (slot, worker) = server.workers().into_iter().next().expect("a worker");
        signal_process(worker, Signal::SIGKILL);
        server.successor(slot, worker);
        assert_allowed(&server);
        assert_template(&server);
    }
    eventually("the master holds what it held", || descriptors(server.pid).len() <= masters);
}

fn invariant_3_a_careless_descriptor_of_the_masters_reaches_no_worker() {
    let careless = tempfile::NamedTempFile::new().expect("a file");
    let stdin = File::open(careless.path()).expect("it is there");
    let server = Launch::hatchery().args(["--workers", "2"]).redirect("7<&0 </dev/null", stdin).start();
    let path = careless.path().to_str().expect("a path");
    let holds = |pid: i32| descriptors(pid).values().any(|target| target == path);
    assert!(holds(server.pid), "the master was to be careless");
    server.signal(Signal::SIGHUP);
    server.log.wait("the reload", |record| record.is("reloaded"));
    eventually("the old generation is gone", || server.processes().len() == 4);
    for pid in server.processes() {
        assert!(pid == server.pid || !holds(pid), "{pid}: {:?}", descriptors(pid));
    }
}

fn invariant_3_a_subprocess_holds_no_socket_and_outlives_the_server_without_its_port() {
    let mut server = Server::start(&["--workers", "2", "--faults"]);
    let body = server.get("/fault/spawn?ms=60000").body;
    let pid: i32 = body.trim().strip_prefix("spawned pid ").and_then(|pid| pid.parse().ok()).expect(&body);
    // The loader of its libraries has a file open for a moment.
    eventually("it holds nothing", || {
        let held = descriptors(pid);
        assert!(!held.values().any(|target| kind(target) == "socket"), "{held:?}");
        held.values().all(|target| target == "/dev/null")
    });
    let address = server.address();
    server.signal(Signal::SIGTERM);
    assert_eq!(server.wait().code(), Some(0));
    server.log.await_end();
    assert_eq!(server.processes(), [pid]);
    assert!(is_free(&address), "the port is free");
    assert!(is_alive(pid));
    signal_process(pid, Signal::SIGKILL);
}

fn invariant_6_a_worker_maps_its_own_page_of_the_scoreboard_alone() {
    let server = Server::start(&["--workers", "4"]);
    let mut offsets = BTreeSet::new();
    for (slot, pid) in server.workers() {
        let maps = maps_of(pid, "hatchery-scoreboard");
        let [line] = &maps[..] else { panic!("slot {slot}: {maps:?}") };
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (from, to) = fields[0].split_once('-').expect("a range");
        let length = u64::from_str_radix(to, 16).expect("hex") - u64::from_str_radix(from, 16).expect("hex");
        assert_eq!((length, fields[1]), (4096, "rw-s"), "{line}");
        assert!(offsets.insert(fields[2].to_owned()), "two workers share a page: {line}");
    }
    let masters = maps_of(server.pid, "hatchery-scoreboard");
    assert!(masters.iter().all(|line| line.contains(" r--s ")), "{masters:?}");
    assert_eq!(maps_of(server.template(), "hatchery-scoreboard"), [""; 0]);
}

fn invariant_6_kills_at_any_moment_under_load_harm_nobody_else() {
    let mut server = Server::start(&["--workers", "4"]);
    let load = Load::start(&server.address(), 4);
    // Each that is killed is in the middle of something else. Those that die soon are replaced with a growing
    // delay, so a few rounds are enough.
    for round in 0..5 {
        let victim = server.workers()[&0];
        load.await_answers(1 + round * 7);
        signal_process(victim, Signal::SIGKILL);
        server.successor(0, victim);
    }
    load.stop();
    for slot in 1..4 {
        assert_eq!(server.workers_ever(slot).len(), 1, "slot {slot} was harmed:\n{}", server.log.text());
    }
    let template = server.template();
    eventually("the template has its four workers", || children(template).len() == 4);
    server.assert_no_zombies();
    server.stop();
}
