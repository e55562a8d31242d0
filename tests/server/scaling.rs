//! The number of workers follows the load: more while few are idle, fewer when they have not been needed for long, none
//! until a client comes.

use std::time::{Duration, Instant};

use libtest_mimic::Trial;
use nix::sys::signal::Signal;

use crate::fixtures::Orders;
use crate::support::client::Client;
use crate::support::load::Load;
use crate::support::log::Record;
use crate::support::{Launch, Server, signal_process};

pub fn tests() -> Vec<Trial> {
    trials!["scaling":
        dynamic_grows_while_too_few_are_idle_and_shrinks_slowly,
        ondemand_starts_from_none_at_the_first_client,
        ondemand_starts_from_none_at_the_first_client_of_a_unix_socket,
        ondemand_loses_no_request_while_workers_come_and_go,
        ondemand_answers_after_kill_9_of_the_template_without_workers,
        ondemand_reloads_without_workers,
        ondemand_stops_without_workers,
        ondemand_a_start_that_fails_ends_the_boot,
        where_the_load_decides_ttin_changes_nothing,
    ]
}

fn is_scaled_to(workers: u64) -> impl Fn(&Record) -> bool {
    move |record| record.is("scaled") && record.u64("workers") == workers
}

fn dynamic_grows_while_too_few_are_idle_and_shrinks_slowly() {
    let bounds = ["--scaling", "dynamic", "--min-workers", "2", "--max-workers", "7", "--spare-workers", "1-2"];
    let mut server = Launch::hatchery().args(bounds).args(["--faults"]).start();
    assert_eq!(server.workers().len(), 2);
    let lock = tempfile::NamedTempFile::new().expect("a file");
    lock.as_file().lock().expect("nobody else knows the file");
    let path = format!("/fault/flock?path={}&ms=0", lock.path().display());
    // Each asks as it comes: one worker could take several silent ones, and then keep all but one waiting.
    let mut clients: Vec<Client> = (0..6).map(|_| server.client_that_asks(&path)).collect();
    server.log.wait("all clients are served and one worker is to spare", is_scaled_to(7));
    lock.as_file().unlock().expect("it was held");
    for client in &mut clients {
        assert_eq!(client.answer().expect("an answer").status, 200);
    }
    let mark = server.log.mark();
    let scaled = |record: &Record| record.is("scaled");
    let fewer = server.log.wait_after(mark, "one is sent away", scaled);
    assert_eq!(fewer.u64("workers"), 6, "one at a time");
    let drained = server.log.wait_after(mark, "it goes", |record| record.is("worker drained"));
    assert_eq!(drained.u64("slot"), 6);
    assert_eq!(server.log.count(|record| record.is("worker exited")), 0, "{}", server.log.text());
    server.stop();
}

/// Without workers, after the one that proved the boot has left.
fn asleep(launch: Launch) -> (Server, i32) {
    let server = launch.args(["--scaling", "ondemand", "--max-workers", "4", "--worker-idle-timeout", "200ms"]).start();
    let template = server.template();
    await_sleep(&server, 0);
    (server, template)
}

#[track_caller]
fn await_sleep(server: &Server, mark: usize) {
    server.log.wait_after(mark, "none is wanted", is_scaled_to(0));
    server.log.wait_after(mark, "the last has left", |record| record.is("worker drained"));
    assert!(server.workers().is_empty());
}

#[track_caller]
fn first_answer(server: &Server, address: &str) {
    let began = Instant::now();
    let answer = Client::connect(address).and_then(|mut client| client.get("/")).expect("an answer");
    let took = began.elapsed();
    // Another slot comes first only where this one waits, because its fork has failed.
    let is_delayed = |record: &Record| record.is("slot delayed") && record.u64("slot") == 0;
    let slot = answer.greeting().0;
    assert!(slot == 0 || server.log.count(is_delayed) > 0, "slot {slot} came first\n{}", server.log.text());
    println!("the first answer took {took:?}");
    assert!(took < Duration::from_secs(2), "{took:?}\n{}", server.log.text());
}

fn ondemand_starts_from_none_at_the_first_client() {
    let (mut server, template) = asleep(Launch::hatchery());
    for _ in 0..3 {
        let mark = server.log.mark();
        first_answer(&server, &server.address());
        await_sleep(&server, mark);
    }
    assert_eq!(server.log.count(|record| record.is("template ready")), 1);
    assert!(crate::support::processes::is_alive(template));
    server.stop();
}

fn ondemand_starts_from_none_at_the_first_client_of_a_unix_socket() {
    let directory = tempfile::tempdir().expect("a directory");
    let address = format!("unix:{}", directory.path().join("socket").display());
    let (mut server, _) = asleep(Launch::hatchery().args(["--listen", &address]));
    first_answer(&server, &address);
    server.stop();
}

fn ondemand_loses_no_request_while_workers_come_and_go() {
    let (mut server, _) = asleep(Launch::hatchery());
    for _ in 0..3 {
        let mark = server.log.mark();
        let load = Load::start(&server.address(), 3);
        load.await_answers(200);
        let tally = load.stop();
        assert_eq!(tally.lost, [""; 0]);
        server.log.wait_after(mark, "none is wanted", is_scaled_to(0));
    }
    assert_eq!(server.log.count(|record| record.is("worker exited")), 0, "{}", server.log.text());
    server.stop();
}

fn ondemand_answers_after_kill_9_of_the_template_without_workers() {
    let (mut server, template) = asleep(Launch::hatchery());
    signal_process(template, Signal::SIGKILL);
    // At once: the next template may not be there yet.
    first_answer(&server, &server.address());
    server.log.wait("the loss was seen", |record| record.is("template lost"));
    server.log.wait_for_many(0, 2, "its successor", |record| record.is("template ready"));
    server.assert_no_zombies();
    server.stop();
}

fn ondemand_reloads_without_workers() {
    let (mut server, _) = asleep(Launch::hatchery());
    let mark = server.log.mark();
    server.signal(Signal::SIGHUP);
    server.log.wait("the reload", |record| record.is("reloaded"));
    server.log.wait_after(mark, "the new generation is proven", |record| record.is("worker ready"));
    assert_eq!(server.get("/").greeting().2, 2);
    server.stop();
}

fn ondemand_stops_without_workers() {
    let (mut server, _) = asleep(Launch::hatchery());
    server.stop();
}

fn ondemand_a_start_that_fails_ends_the_boot() {
    let orders = Orders::new();
    orders.give("start", "fail no licence for this machine");
    let launch = Launch::fixture("probe").args(["--listen", "127.0.0.1:0", "--scaling", "ondemand", "--arg"]);
    launch.arg(orders.arg()).fail().expect(3, &["no licence for this machine"]);
}

fn where_the_load_decides_ttin_changes_nothing() {
    let mut server = Server::start(&["--scaling", "dynamic"]);
    server.signal(Signal::SIGTTIN);
    server.log.wait("it says so", |record| record.is("a signal means nothing now"));
    assert_eq!(server.workers().len(), 2);
    server.stop();
}
