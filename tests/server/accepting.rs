//! How workers come by their connections: one queue for all or one for each slot, and what they do when no descriptor is
//! left for one more.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use libtest_mimic::Trial;
use nix::sys::signal::Signal;

use crate::fixtures::Orders;
use crate::support::client::Client;
use crate::support::crowd::{Crowd, Habit};
use crate::support::load::Load;
use crate::support::log::Record;
use crate::support::processes::{cpu_time, descriptors, eventually, stat};
use crate::support::{Launch, Server, freeze, signal_process};

pub fn tests() -> Vec<Trial> {
    trials!["accepting":
        with_reuseport_each_worker_holds_the_socket_of_its_slot_and_no_other,
        with_reuseport_every_slot_is_reached_at_one_port_of_each_family,
        with_reuseport_unix_sockets_and_inherited_ones_stay_shared,
        with_reuseport_a_service_with_its_own_loop_serves_its_slots_queue,
        with_reuseport_the_clients_queued_at_a_killed_worker_are_served_by_its_successor,
        with_reuseport_kill_9_under_load_loses_what_was_in_hand_and_no_more,
        with_reuseport_reloads_under_load_lose_nothing,
        with_reuseport_more_and_fewer_workers_under_load_lose_nothing,
        with_reuseport_a_slot_whose_worker_cannot_start_gets_a_stand_in_until_it_can,
        with_reuseport_a_stand_in_that_dies_is_followed_by_another,
        with_reuseport_upgrades_under_load_lose_nothing_and_bind_nothing,
        with_reuseport_a_stop_under_load_loses_nobody,
        kept_connections_are_spread_over_the_workers,
        without_descriptors_a_worker_pauses_says_so_once_and_does_not_spin,
        the_place_of_a_client_that_leaves_is_given_to_the_next_at_once,
        without_descriptors_the_longest_idle_clients_make_room_for_new_ones,
        without_descriptors_answers_under_way_go_on,
        the_queue_of_a_full_worker_is_served_by_the_others,
        a_client_that_woke_a_worker_which_is_dead_by_then_is_served_by_another,
    ]
}

fn reuseport(workers: &str) -> Server {
    Server::start(&["--workers", workers, "--accept", "reuseport"])
}

fn sockets(pid: i32) -> BTreeSet<String> {
    descriptors(pid).into_values().filter(|target| target.starts_with("socket:")).collect()
}

/// The listening sockets: those that the master shares with its workers. (`/proc/net/tcp` would tell as well, but takes long
/// where thousands of connections are in TIME_WAIT.)
fn listening(server: &Server) -> BTreeSet<String> {
    let of_workers: BTreeSet<String> = server.workers().into_values().flat_map(sockets).collect();
    sockets(server.pid).intersection(&of_workers).cloned().collect()
}

/// Those of `sockets` that a process holds.
fn held(pid: i32, sockets: &BTreeSet<String>) -> BTreeSet<String> {
    self::sockets(pid).intersection(sockets).cloned().collect()
}

fn with_reuseport_each_worker_holds_the_socket_of_its_slot_and_no_other() {
    let server = reuseport("4");
    let assert_one_each = |count: usize| {
        let sockets = listening(&server);
        assert_eq!(sockets.len(), count);
        assert_eq!(held(server.pid, &sockets), sockets, "the master holds all");
        assert_eq!(held(server.template(), &sockets), BTreeSet::new(), "the template holds none");
        let workers = server.workers();
        let of_workers: Vec<_> = workers.values().map(|&pid| held(pid, &sockets)).collect();
        assert!(of_workers.iter().all(|own| own.len() == 1), "{of_workers:?}");
        let all: BTreeSet<_> = of_workers.into_iter().flatten().collect();
        assert_eq!(all.len(), workers.len(), "no two have the same");
    };
    assert_one_each(4);
    let before = held(server.workers()[&2], &listening(&server));
    let old = server.workers()[&2];
    signal_process(old, Signal::SIGKILL);
    let successor = server.successor(2, old);
    assert_eq!(held(successor, &listening(&server)), before, "the slot keeps its socket");
    server.signal(Signal::SIGTTIN);
    server.log.wait("a fifth worker", |record| record.is("worker ready") && record.u64("slot") == 4);
    assert_one_each(5);
    server.signal(Signal::SIGHUP);
    server.log.wait("a reload", |record| record.is("reloaded"));
    eventually("the old generation is gone", || server.processes().len() == 1 + 1 + 5);
    assert_one_each(5);
    assert_eq!(held(server.workers()[&2], &listening(&server)), before, "generations share it");
}

/// The slots that answer so many connections.
fn slots_at(address: &str, connections: usize) -> BTreeSet<u64> {
    let answer = |_| Client::connect(address).and_then(|mut client| client.get("/")).expect(address);
    (0..connections).map(answer).map(|answer| answer.greeting().0).collect()
}

fn with_reuseport_every_slot_is_reached_at_one_port_of_each_family() {
    let both = ["--listen", "127.0.0.1:0", "--listen", "[::1]:0", "--workers", "3", "--accept", "reuseport"];
    let server = Launch::hatchery().args(both).spawn();
    server.await_serving();
    for address in server.addresses() {
        // The kernel spreads them by a hash of the client's port: not to meet one of three in 200 tries is out of the question.
        assert_eq!(slots_at(&address, 200), BTreeSet::from([0, 1, 2]), "{address}");
    }
}

fn with_reuseport_unix_sockets_and_inherited_ones_stay_shared() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let name = format!("unix:@hatchery-accepting-{}", std::process::id());
    let args = ["--workers", "3", "--accept", "reuseport", "--listen", "fd:3", "--listen", "127.0.0.1:0", "--listen"];
    let descriptor = std::os::fd::OwnedFd::from(listener);
    let server = Launch::hatchery().args(args).arg(&name).redirect("3<&0 </dev/null", descriptor).spawn();
    server.await_serving();
    let said = server.log.all(|record| record.is("listening"));
    let modes: Vec<String> = said.iter().map(|record| record.str("accept")).collect();
    assert_eq!(modes, ["shared", "reuseport", "shared"]);
    for address in server.addresses() {
        Client::connect(&address).and_then(|mut client| client.get("/")).expect(&address).greeting();
    }
    assert_eq!(listening(&server).len(), 1 + 3 + 1);
}

fn with_reuseport_a_service_with_its_own_loop_serves_its_slots_queue() {
    let server = Launch::fixture("own-loop").args(["--workers", "3", "--accept", "reuseport"]).start();
    let mut words = BTreeSet::new();
    for _ in 0..200 {
        words.insert(server.client().line().expect("a word"));
    }
    assert_eq!(words.len(), 3, "{words:?}");
}

/// So many clients of `GET /` who have asked and wait.
fn queued_at(server: &Server, count: usize) -> Vec<Client> {
    let mut clients: Vec<Client> = (0..count).map(|_| server.client()).collect();
    clients.iter_mut().for_each(|client| client.ask("/").expect("a request"));
    clients
}

fn with_reuseport_the_clients_queued_at_a_killed_worker_are_served_by_its_successor() {
    let server = reuseport("3");
    let old = server.workers()[&1];
    // It accepts nobody from now on, and has nobody in hand.
    freeze(old);
    let clients = queued_at(&server, 100);
    signal_process(old, Signal::SIGKILL);
    let successor = server.successor(1, old);
    let answers: Vec<_> =
        clients.into_iter().map(|mut client| client.answer().expect("an answer").greeting()).collect();
    // On a busy machine its successor may be late, and another worker has stood in.
    let stood_in = server.log.count(|record| record.is("standing in")) > 0;
    assert!(
        stood_in || answers.iter().any(|(slot, pid, _)| (*slot, *pid) == (1, successor)),
        "nobody was queued there"
    );
    assert!(answers.iter().all(|(_, pid, _)| *pid != old));
}

fn with_reuseport_kill_9_under_load_loses_what_was_in_hand_and_no_more() {
    const PAIRS: usize = 3;
    const KILLS: u64 = 10;
    let server = reuseport("3");
    let load = Load::start(&server.address(), PAIRS);
    for kill in 0..KILLS {
        let slot = kill % 3;
        let old = server.workers()[&slot];
        signal_process(old, Signal::SIGKILL);
        server.successor(slot, old);
        load.await_answers(50);
    }
    let tally = load.stop();
    // A killed worker has of each client one connection at most; with a queue lost, all that wait there would be lost too.
    assert!(tally.lost.len() as u64 <= KILLS * PAIRS as u64, "{:?}", tally.lost);
    assert!(tally.answered > 50 * KILLS);
    server.assert_no_zombies();
}

fn with_reuseport_reloads_under_load_lose_nothing() {
    let server = reuseport("3");
    let load = Load::start(&server.address(), 3);
    for generation in 2..=6 {
        server.signal(Signal::SIGHUP);
        server.log.wait("a reload", |record| record.is("reloaded") && record.u64("generation") == generation);
        load.await_answers(50);
    }
    assert_eq!(load.stop().lost, [""; 0], "{}", server.log.text());
    assert_eq!(listening(&server).len(), 3, "generations share the sockets");
}

fn with_reuseport_more_and_fewer_workers_under_load_lose_nothing() {
    let server = reuseport("2");
    let load = Load::start(&server.address(), 3);
    for _ in 0..3 {
        let mark = server.log.mark();
        server.signal(Signal::SIGTTIN);
        server.log.wait_after(mark, "one more", |record| record.is("worker ready") && record.u64("slot") == 2);
        load.await_answers(50);
        server.signal(Signal::SIGTTOU);
        server.log.wait_after(mark, "one fewer", |record| record.is("worker drained"));
        server
            .log
            .wait_after(mark, "its queue is served", |record| record.is("standing in") && record.u64("for_slot") == 2);
        load.await_answers(200);
    }
    assert_eq!(load.stop().lost, [""; 0], "{}", server.log.text());
    assert_eq!(listening(&server).len(), 3, "a slot's socket is bound once and stays");
    assert_eq!(slots_at(&server.address(), 50), BTreeSet::from([0, 1]));
}

fn with_reuseport_a_slot_whose_worker_cannot_start_gets_a_stand_in_until_it_can() {
    let orders = Orders::new();
    let server =
        Launch::fixture("probe").args(["--workers", "3", "--accept", "reuseport", "--arg"]).arg(orders.arg()).start();
    let queues = listening(&server);
    assert_eq!(queues.len(), 3);
    let old = server.workers()[&1];
    orders.give("start-1", "fail the disk is full");
    // At the boot there may have been one for a slot whose worker took long.
    let mark = server.log.mark();
    signal_process(old, Signal::SIGKILL);
    let stands_in = |record: &Record| record.is("standing in") && record.u64("for_slot") == 1;
    let stand_in = server.log.wait_after(mark, "a stand-in", stands_in).pid();
    assert_eq!(held(stand_in, &queues).len(), 2, "{}", server.log.text());
    for _ in 0..100 {
        let who = server.client().exchange("who").expect("every queue is served");
        assert!(!who.starts_with("1 "), "{who}");
    }
    orders.take_back("start-1");
    server.log.wait("its end", |record| record.is_about("standing down", stand_in));
    eventually("it has let go of the socket", || held(stand_in, &queues).len() == 1);
    let slots: BTreeSet<_> = (0..200).map(|_| server.client().exchange("who").expect("an answer")).collect();
    assert_eq!(slots.len(), 3, "{slots:?}");
}

fn with_reuseport_a_stand_in_that_dies_is_followed_by_another() {
    let server = reuseport("3");
    server.signal(Signal::SIGTTOU);
    // A killed worker's own slot may get one too, if its successor takes long.
    let stands_in = |record: &Record| record.is("standing in") && record.u64("for_slot") == 2;
    for _ in 0..3 {
        let stand_in = server.log.all(stands_in).last().map(|record| record.pid());
        let mark = server.log.mark();
        if let Some(pid) = stand_in {
            signal_process(pid, Signal::SIGKILL);
        }
        let next = server.log.wait_after(mark, "a stand-in", stands_in);
        assert_ne!(Some(next.pid()), stand_in);
        let answers = queued_at(&server, 50).into_iter().map(|mut client| client.answer().expect("an answer"));
        assert!(answers.map(|answer| answer.greeting().0).all(|slot| slot < 2));
    }
}

fn with_reuseport_upgrades_under_load_lose_nothing_and_bind_nothing() {
    let mut server = reuseport("3");
    let (sockets, masters) = (listening(&server), descriptors(server.pid).len());
    let load = Load::start(&server.address(), 2);
    for _ in 0..3 {
        server.upgrade();
        load.await_answers(50);
        eventually("the master holds what the first one held", || descriptors(server.pid).len() <= masters);
    }
    let tally = load.stop();
    assert_eq!(tally.lost, [""; 0], "{}", server.log.text());
    assert_eq!(listening(&server), sockets);
}

fn with_reuseport_a_stop_under_load_loses_nobody() {
    let mut server = reuseport("4");
    // A slot without a worker is served to the end as well.
    server.signal(Signal::SIGTTOU);
    server.log.wait("a stand-in", |record| record.is("standing in"));
    let crowd = Crowd::start(&server.address(), 100, Habit::ConnectionPerRequest);
    crowd.may_be_refused();
    server.stop();
    let tally = crowd.tally();
    assert!(tally.lost.is_empty(), "{tally:?}\n{}", server.log.text());
}

fn kept_connections_are_spread_over_the_workers() {
    let server = Server::start(&["--workers", "4"]);
    let mut held = BTreeMap::new();
    let mut kept = Vec::new();
    // Each comes when all workers wait: else whoever has the processor may be faster than the one who was woken.
    let all_wait = || server.workers().values().all(|&pid| stat(pid).is_some_and(|stat| stat.state == 'S'));
    for _ in 0..40 {
        eventually("all workers wait", all_wait);
        let mut client = server.client();
        *held.entry(client.get("/").expect("an answer").pid()).or_insert(0_u32) += 1;
        kept.push(client);
    }
    assert!(held.len() == 4 && held.values().all(|count| (8..=12).contains(count)), "they take turns: {held:?}");
}

/// A server of one worker, or two, whose worker of slot 0 has few descriptors.
fn with_few_descriptors(orders: &Orders, args: &[&str]) -> Server {
    orders.give("start-0", "descriptors 30");
    let server = Launch::fixture("probe").args(args).args(["--request-timeout", "off", "--arg"]).arg(orders.arg());
    server.start()
}

/// Clients in the middle of a request, so many that the worker of slot 0 has no room for another: the last few wait in the
/// queue.
fn fill(server: &Server) -> Vec<Client> {
    let is_full = |record: &Record| record.is(FULL) && record.u64("slot") == 0;
    let mut clients = Vec::new();
    // On a busy machine they may come faster than they are accepted.
    while server.log.count(is_full) == 0 && clients.len() < 500 {
        let mut client = server.client();
        client.send("wh").expect("half a request");
        clients.push(client);
    }
    server.log.wait("it is full", is_full);
    clients
}

const FULL: &str = "cannot accept, trying again every 100 ms";

fn without_descriptors_a_worker_pauses_says_so_once_and_does_not_spin() {
    let orders = Orders::new();
    let server = with_few_descriptors(&orders, &["--workers", "1"]);
    let worker = server.workers()[&0];
    let clients = fill(&server);
    let (began, before) = (Instant::now(), cpu_time(worker));
    // What a worker without work costs is a rate, so some time has to pass: ten tries of the worker.
    eventually("a second has passed", || began.elapsed() >= Duration::from_secs(1));
    let used = cpu_time(worker) - before;
    assert!(used < began.elapsed() / 5, "{used:?} in {:?}", began.elapsed());
    assert_eq!(server.log.count(|record| record.is(FULL)), 1);
    // Each leaves when it is answered, and so makes room for those who wait.
    for mut client in clients {
        assert_eq!(client.exchange("o").expect("nobody is lost").split(' ').next(), Some("0"));
    }
    assert_eq!(server.workers()[&0], worker);
    assert_eq!(server.log.count(|record| record.is(FULL)), 1);
}

fn the_place_of_a_client_that_leaves_is_given_to_the_next_at_once() {
    const ROUNDS: usize = 10;
    let orders = Orders::new();
    let server = with_few_descriptors(&orders, &["--workers", "1"]);
    let worker = server.workers()[&0];
    let mut clients = fill(&server);
    // Further ones, who wait in the queue for a place.
    clients.extend((0..3 * ROUNDS).map(|_| server.client()));
    let mut first_come = clients.into_iter();
    let mut round = || {
        let before = sockets(worker);
        drop(first_come.next());
        eventually("another has the place", || sockets(worker).difference(&before).next().is_some());
    };
    // With a pause each time it would be a second. Other tests may keep the processors busy for a while.
    let mut tries = (0..3).map(|_| {
        let began = Instant::now();
        (0..ROUNDS).for_each(|_| round());
        began.elapsed()
    });
    assert!(tries.any(|took| took < Duration::from_millis(500)), "there is a pause each time");
}

fn without_descriptors_the_longest_idle_clients_make_room_for_new_ones() {
    let orders = Orders::new();
    let server = with_few_descriptors(&orders, &["--workers", "1"]);
    let mut clients: Vec<Client> = (0..60).map(|_| server.client()).collect();
    for client in &mut clients {
        assert!(client.exchange("who").expect("nobody is lost").starts_with("0 "));
    }
    assert_eq!(server.log.count(|record| record.is("no room for new clients, closing idle connections")), 1);
    assert_eq!(clients[0].rest(), b"", "whoever has been idle longest goes first");
    let last = clients.last_mut().expect("sixty");
    assert!(last.exchange("who").expect("the newest stays").starts_with("0 "));
}

fn without_descriptors_answers_under_way_go_on() {
    const MEBIBYTES: usize = 12;
    let orders = Orders::new();
    let server = with_few_descriptors(&orders, &["--workers", "1"]);
    // More than the kernel keeps: the worker waits for them to read.
    let mut readers: Vec<Client> = (0..3).map(|_| server.client()).collect();
    for reader in &mut readers {
        reader.send("much 1\n".repeat(MEBIBYTES)).expect("questions");
        reader.first_byte().expect("the first answer has begun");
    }
    // Whoever is idle goes for a new client; those who are sent to do not.
    let mut idle: Vec<Client> = (0..30).map(|_| server.client()).collect();
    for client in &mut idle {
        assert!(client.exchange("who").expect("nobody is lost").starts_with("0 "));
    }
    server.log.wait("idle ones have gone", |record| record.is("no room for new clients, closing idle connections"));
    // And nobody is idle any more: the worker accepts nobody, and goes on with them.
    let in_hand = fill(&server);
    for mut reader in readers {
        let is_whole = |answers: &[u8]| answers.iter().filter(|&&byte| byte == b'x').count() == MEBIBYTES << 20;
        reader.half_close();
        assert!(is_whole(&reader.rest()), "an answer is cut");
    }
    for mut client in in_hand {
        assert!(client.exchange("o").expect("nobody is lost").starts_with("0 "));
    }
}

fn the_queue_of_a_full_worker_is_served_by_the_others() {
    let orders = Orders::new();
    let server = with_few_descriptors(&orders, &["--workers", "2"]);
    let _in_hand = fill(&server);
    for _ in 0..50 {
        // One that was left to the full worker would wait for ever: nobody there makes room.
        assert!(server.client().exchange("who").expect("nobody is lost").starts_with("1 "));
    }
}

/// Each round the worker that is woken for the client is killed before it has accepted, or else the next round may see that.
fn a_client_that_woke_a_worker_which_is_dead_by_then_is_served_by_another() {
    let mut served = 0;
    for _ in 0..6 {
        let orders = Orders::new();
        let server = Launch::fixture("probe").args(["--workers", "2", "--arg"]).arg(orders.arg()).start();
        // Nobody follows whoever dies from now on.
        orders.give("start-0", "hang");
        orders.give("start-1", "hang");
        // Whoever keeps a client goes to the end of the line.
        let mut kept = server.client();
        let who = kept.exchange("who").expect("an answer");
        let workers = server.workers();
        let (_, &next) = workers.iter().find(|(_, pid)| !who.contains(&format!(" {pid} "))).expect("another worker");
        let mut client = server.client();
        signal_process(next, Signal::SIGKILL);
        match client.exchange("who") {
            Ok(answer) => {
                assert_eq!(answer, who);
                served += 1;
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => panic!("it was forgotten"),
            // The dead one had accepted it.
            Err(_) => {}
        }
    }
    println!("{served} of 6 clients were served by the other worker");
}
