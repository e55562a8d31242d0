//! A server that cannot boot says why, in the words of what failed, and leaves nothing behind: exit code 3.

use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use libtest_mimic::Trial;
use nix::sys::signal::Signal;

use crate::fixtures::Orders;
use crate::support::processes::{eventually, is_free};
use crate::support::{Launch, Server};

pub fn tests() -> Vec<Trial> {
    trials!["boot":
        an_address_in_use_ends_the_boot_and_names_it,
        no_listener_is_left_when_a_later_address_fails,
        a_failing_preload_ends_the_boot_with_its_own_words,
        a_panicking_preload_ends_the_boot_with_its_own_words,
        a_template_that_exits_or_dies_in_its_preload_ends_the_boot,
        a_failing_start_ends_the_boot_within_two_seconds_with_its_own_words,
        a_panicking_start_ends_the_boot_with_its_own_words,
        a_start_that_exits_or_dies_ends_the_boot_and_says_how,
        one_failing_slot_of_many_ends_the_boot,
        a_boot_that_failed_leaves_the_port_free,
        a_hanging_start_does_not_keep_the_server_from_being_stopped,
        a_hanging_preload_does_not_keep_the_server_from_being_stopped,
        a_worker_that_is_never_ready_ends_the_boot,
        a_hundred_workers_boot_and_stop,
    ]
}

/// The end of a probe whose orders let it fail.
fn boot(orders: &[(&str, &str)]) -> crate::support::Failed {
    let directory = Orders::new();
    for (moment, order) in orders {
        directory.give(moment, order);
    }
    Launch::fixture("probe").args(["--listen", "127.0.0.1:0", "--workers", "4", "--arg"]).arg(directory.arg()).fail()
}

fn an_address_in_use_ends_the_boot_and_names_it() {
    let holder = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = holder.local_addr().expect("its address").to_string();
    let failed = Launch::hatchery().args(["--listen", &address]).fail();
    failed.expect(3, &[&address, "another process listens there"]);
    assert!(!failed.words.contains("\"listening\""), "{}", failed.words);
}

fn no_listener_is_left_when_a_later_address_fails() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("socket");
    let holder = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = holder.local_addr().expect("its address").to_string();
    let unix = format!("unix:{}", path.display());
    Launch::hatchery().args(["--listen", &unix, "--listen", &address]).fail().expect(3, &[&address]);
    assert!(!path.exists());
}

fn a_failing_preload_ends_the_boot_with_its_own_words() {
    boot(&[("preload", "fail the index is torn")])
        .expect(3, &["the server did not boot: the preload failed: the index is torn"]);
}

fn a_panicking_preload_ends_the_boot_with_its_own_words() {
    boot(&[("preload", "panic index out of everything")]).expect(3, &["index out of everything"]);
}

fn a_template_that_exits_or_dies_in_its_preload_ends_the_boot() {
    boot(&[("preload", "exit 9")]).expect(3, &["the template has ended", "9"]);
    boot(&[("preload", "kill-yourself")]).expect(3, &["the template has ended", "signal"]);
}

fn a_failing_start_ends_the_boot_within_two_seconds_with_its_own_words() {
    let began = Instant::now();
    boot(&[("start", "fail no licence for this machine")]).expect(3, &["no licence for this machine"]);
    let took = began.elapsed();
    assert!(took < Duration::from_secs(2), "it took {took:?}");
}

fn a_panicking_start_ends_the_boot_with_its_own_words() {
    boot(&[("start", "panic the engine has a hole")]).expect(3, &["the engine has a hole"]);
}

fn a_start_that_exits_or_dies_ends_the_boot_and_says_how() {
    boot(&[("start", "exit 7")]).expect(3, &["exited with code 7 before it was ready"]);
    boot(&[("start", "kill-yourself")]).expect(3, &["was killed by signal 9 before it was ready"]);
}

fn one_failing_slot_of_many_ends_the_boot() {
    boot(&[("start-3", "fail slot three has no seat")]).expect(3, &["slot three has no seat"]);
}

fn a_boot_that_failed_leaves_the_port_free() {
    let failed = boot(&[("start", "fail at once")]);
    let line = failed.words.lines().find(|line| line.contains("\"listening\"")).expect("it had listened");
    let address = serde_json::from_str::<serde_json::Value>(line).expect("JSON")["address"].to_string();
    let address = address.trim_matches('"');
    assert!(TcpStream::connect(address).is_err());
    assert!(is_free(address), "the port is free");
}

fn stop_in_the_middle_of(moment: &str) {
    let orders = Orders::new();
    orders.give(moment, "hang");
    let launch = Launch::fixture("probe").args(["--listen", "127.0.0.1:0", "--graceful-timeout", "300ms", "--arg"]);
    let mut server = launch.arg(orders.arg()).spawn();
    eventually("it hangs", || orders.obeyed(moment));
    server.stop_by(Signal::SIGTERM);
}

fn a_hanging_start_does_not_keep_the_server_from_being_stopped() {
    stop_in_the_middle_of("start");
}

fn a_hanging_preload_does_not_keep_the_server_from_being_stopped() {
    stop_in_the_middle_of("preload");
}

fn a_worker_that_is_never_ready_ends_the_boot() {
    let orders = Orders::new();
    orders.give("start-1", "hang");
    let launch = Launch::fixture("probe").args(["--listen", "127.0.0.1:0", "--start-timeout", "300ms", "--arg"]);
    launch.arg(orders.arg()).fail().expect(3, &["the worker of slot 1 was not ready within 300ms"]);
}

fn a_hundred_workers_boot_and_stop() {
    let mut server = Server::start(&["--workers", "100"]);
    assert_eq!(server.workers().len(), 100);
    server.get("/").greeting();
    server.stop();
}
