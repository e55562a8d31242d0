//! What the template builds is built once and shared; what must differ between workers does.

use std::collections::BTreeMap;

use libtest_mimic::Trial;
use nix::sys::signal::Signal;

use crate::fixtures::Orders;
use crate::support::{Launch, Server, signal_process};

pub fn tests() -> Vec<Trial> {
    trials!["preloads":
        the_preload_runs_once_for_each_generation,
        a_lost_templates_successor_preloads_the_same_generation_again,
        workers_share_what_was_preloaded_at_one_address,
        workers_do_not_share_the_keys_of_their_hash_maps,
    ]
}

fn start(orders: &Orders) -> Server {
    Launch::fixture("probe").args(["--workers", "4", "--arg"]).arg(orders.arg()).start()
}

fn the_preload_runs_once_for_each_generation() {
    let orders = Orders::new();
    let server = start(&orders);
    let old = server.workers()[&0];
    signal_process(old, Signal::SIGKILL);
    server.successor(0, old);
    assert_eq!(orders.preloads(), ["1"]);
    server.signal(Signal::SIGHUP);
    server.log.wait("the reload", |record| record.is("reloaded"));
    assert_eq!(orders.preloads(), ["1", "2"]);
}

fn a_lost_templates_successor_preloads_the_same_generation_again() {
    let orders = Orders::new();
    let server = start(&orders);
    signal_process(server.template(), Signal::SIGKILL);
    server.log.wait_for_many(0, 2, "a new template", |record| record.is("template ready"));
    assert_eq!(orders.preloads(), ["1", "1"]);
}

/// What each of the workers answers, by pid. Those that were met are killed, so that others are.
fn answers(server: &Server, question: &str) -> BTreeMap<i32, String> {
    let mut answers = BTreeMap::new();
    while answers.len() < 4 {
        let mut client = server.client();
        let who = client.exchange("who").expect("an answer");
        let [slot, pid] = who.split(' ').take(2).collect::<Vec<_>>()[..] else { panic!("{who}") };
        let pid = pid.parse().expect("a pid");
        answers.insert(pid, client.exchange(question).expect("an answer"));
        signal_process(pid, Signal::SIGKILL);
        server.successor(slot.parse().expect("a slot"), pid);
    }
    answers
}

fn workers_share_what_was_preloaded_at_one_address() {
    let orders = Orders::new();
    let tables = answers(&start(&orders), "table");
    let first = tables.values().next().expect("an answer");
    assert!(first.starts_with("0x") && first.ends_with(" 100000"), "{first}");
    assert!(tables.values().all(|table| table == first), "{tables:?}");
    assert_eq!(orders.preloads(), ["1"]);
}

fn workers_do_not_share_the_keys_of_their_hash_maps() {
    let orders = Orders::new();
    let hashes = answers(&start(&orders), "random");
    let different: std::collections::BTreeSet<_> = hashes.values().collect();
    assert_eq!(different.len(), hashes.len(), "{hashes:?}");
}
