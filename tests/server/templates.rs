//! Invariants 1, 2 and 4: who forks, and that nobody's standstill is the master's.

use libtest_mimic::Trial;
use nix::sys::signal::Signal;

use crate::fixtures::Orders;
use crate::support::processes::{children, descriptors, eventually, is_alive, stat};
use crate::support::{Launch, Server, freeze, signal_process};

pub fn tests() -> Vec<Trial> {
    trials!["templates":
        invariant_1_a_template_with_a_second_thread_refuses_to_fork_and_names_it,
        invariant_1_a_reload_to_a_template_with_a_second_thread_leaves_the_old_generation,
        invariant_2_workers_are_the_templates_children_and_the_template_the_masters_only_one,
        invariant_2_the_template_leads_a_process_group_of_its_own,
        invariant_4_a_stopped_worker_does_not_keep_the_master_from_replacing_others,
        invariant_4_a_stopped_template_does_not_keep_the_master_from_stopping,
        invariant_4_a_template_that_stands_still_is_replaced,
    ]
}

fn invariant_1_a_template_with_a_second_thread_refuses_to_fork_and_names_it() {
    let orders = Orders::new();
    orders.give("preload", "thread extra-hand");
    let failed = Launch::fixture("probe").args(["--listen", "127.0.0.1:0", "--arg"]).arg(orders.arg()).fail();
    failed.expect(3, &["cannot fork", "more than one thread", "extra-hand"]);
}

fn invariant_1_a_reload_to_a_template_with_a_second_thread_leaves_the_old_generation() {
    let orders = Orders::new();
    let server = Launch::fixture("probe").args(["--workers", "2", "--arg"]).arg(orders.arg()).start();
    let workers = server.workers();
    orders.give("preload", "thread extra-hand");
    server.signal(Signal::SIGHUP);
    let failed = server.log.wait("the failure", |record| record.is("reload failed, the old generation stays"));
    assert!(failed.str("why").contains("extra-hand"), "{}", failed.line);
    assert_eq!(server.workers(), workers);
}

fn invariant_2_workers_are_the_templates_children_and_the_template_the_masters_only_one() {
    let server = Server::start(&["--workers", "3"]);
    let template = server.template();
    assert_eq!(children(server.pid), [template]);
    let workers: Vec<i32> = server.workers().into_values().collect();
    let mut forked = children(template);
    forked.sort_unstable();
    let mut sorted = workers.clone();
    sorted.sort_unstable();
    assert_eq!(forked, sorted);
    server.signal(Signal::SIGHUP);
    server.log.wait("the reload", |record| record.is("reloaded"));
    eventually("the old template is gone", || children(server.pid).len() == 1);
    let next = server.template();
    assert_ne!(next, template);
    assert_eq!(children(server.pid), [next]);
    for worker in server.workers().into_values() {
        assert_eq!(stat(worker).expect("it is there").parent, next);
    }
}

fn invariant_2_the_template_leads_a_process_group_of_its_own() {
    let server = Server::start(&["--workers", "2"]);
    let template = server.template();
    let group = |pid: i32| stat(pid).expect("it is there").group;
    assert_eq!(group(template), template);
    assert_ne!(group(server.pid), template);
    for worker in server.workers().into_values() {
        assert_eq!(group(worker), template);
    }
    // No terminal's input either.
    assert_eq!(descriptors(template)[&0], "/dev/null");
}

fn invariant_4_a_stopped_worker_does_not_keep_the_master_from_replacing_others() {
    let mut server = Server::start(&["--workers", "3", "--graceful-timeout", "500ms"]);
    let workers = server.workers();
    freeze(workers[&0]);
    signal_process(workers[&1], Signal::SIGKILL);
    server.successor(1, workers[&1]);
    server.signal(Signal::SIGTTIN);
    server.log.wait("a fourth worker", |record| record.is("worker ready") && record.u64("slot") == 3);
    // It cannot drain, so it is killed when its time is over.
    server.stop();
    let killed = server.log.wait("its end", |record| {
        record.is_about("worker drained", workers[&0]) || record.is_about("worker exited", workers[&0])
    });
    assert!(killed.str("why").contains("signal 9"), "{}", killed.line);
}

fn invariant_4_a_stopped_template_does_not_keep_the_master_from_stopping() {
    let mut server = Server::start(&["--workers", "3"]);
    let template = server.template();
    let workers = server.workers();
    freeze(template);
    server.signal(Signal::SIGTTIN);
    server.log.wait("the master hears", |record| record.is("number of workers changed"));
    server.get("/").greeting();
    server.stop();
    assert!(!is_alive(template) && !workers.values().any(|&worker| is_alive(worker)));
    // They had drained in time; it is the template that does not tell.
    for killed in
        server.log.all(|record| record.is("killing a worker") && workers.values().any(|&pid| record.is_of(pid)))
    {
        assert_eq!(killed.str("why"), "it had closed its socket and its end was not reported");
    }
}

fn invariant_4_a_template_that_stands_still_is_replaced() {
    let server = Server::start(&["--workers", "3", "--start-timeout", "700ms"]);
    let template = server.template();
    let workers = server.workers();
    freeze(template);
    signal_process(workers[&0], Signal::SIGKILL);
    server.log.wait("the template is given up", |record| record.is("template lost"));
    server.successor(0, workers[&0]);
    assert_ne!(server.template(), template);
    assert!(is_alive(workers[&1]) && is_alive(workers[&2]));
    eventually("the old template is gone", || !is_alive(template));
    server.assert_no_zombies();
}
