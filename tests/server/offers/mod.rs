//! What workers offer to the master: calls, events, and what becomes of them when workers come and go.

mod harness;
mod program;
mod services;

use std::collections::BTreeSet;

use libtest_mimic::Trial;
use nix::sys::signal::Signal;

use crate::support::log::Record;
use crate::support::processes::{descriptors, eventually, is_alive};
use crate::support::signal_process;

use self::harness::{Program, ask_line, key_of};
pub use self::program::program;

pub fn tests() -> Vec<Trial> {
    trials!["offers":
        the_master_calls_a_counter_in_every_worker_and_sums,
        progress_arrives_in_the_order_in_which_it_was_made_in_the_middle_of_a_request,
        events_and_replies_arrive_in_the_order_in_which_they_were_made,
        events_from_before_the_master_accepted_are_not_lost,
        a_call_waits_for_the_request_in_hand_and_is_answered_after_it,
        a_call_whose_deadline_passes_during_a_request_is_never_begun,
        clients_are_served_while_the_master_calls_without_pause,
        an_error_or_a_panic_of_a_handler_is_its_calls_alone,
        a_handler_that_never_ends_meets_the_deadline_of_requests,
        kill_9_of_a_worker_ends_each_outstanding_call_once_and_says_how,
        a_worker_that_follows_another_offers_anew,
        after_a_reload_both_generations_are_told_apart_and_the_old_ones_end,
        a_graceful_stop_answers_the_calls_that_were_made,
        invariant_9_kill_9_of_a_master_that_has_called_leaves_nobody,
        a_declined_offer_does_its_worker_no_harm,
        a_client_that_is_closed_or_dropped_leaves_the_worker_serving,
        a_master_of_other_types_is_told_so_and_the_worker_serves_on,
        a_worker_that_speaks_nonsense_ends_its_own_conversation_alone,
        a_worker_that_closes_its_conversation_and_lives_on_is_left_alone,
        events_beyond_the_limit_are_refused_and_those_before_arrive,
        a_worker_makes_no_more_than_eight_offers,
        a_server_that_wants_no_offers_declines_them,
        a_service_with_its_own_loop_answers_too,
        a_handler_of_offers_that_waits_holds_up_no_server,
        a_callback_that_waits_holds_up_no_server,
        invariant_3_an_offer_costs_a_descriptor_and_the_first_an_epoll_too,
    ]
}

// ---- calls and events ----

fn the_master_calls_a_counter_in_every_worker_and_sums() {
    let mut program = Program::start(&[("HATCHERY_WORKERS", "3")]);
    let offered = program.offers("counters", 3);
    let slots: BTreeSet<u64> = offered.iter().map(|offer| offer.u64("slot")).collect();
    assert_eq!(slots, BTreeSet::from([0, 1, 2]));
    let pids: BTreeSet<i32> = offered.iter().map(Record::pid).collect();
    assert_eq!(pids, program.server.workers().into_values().collect());
    assert!(offered.iter().all(|offer| offer.u64("generation") == 1));
    for _ in 0..20 {
        ask_line(&mut program.server.client(), "count");
    }
    program.order("sum");
    assert_eq!(program.server.log.wait("the sum", |record| record.is("sum")).u64("sum"), 20);
    program.server.stop();
}

fn progress_arrives_in_the_order_in_which_it_was_made_in_the_middle_of_a_request() {
    let mut program = Program::offering("counters");
    let key = program.key("counters");
    let mut client = program.server.client();
    assert_eq!(ask_line(&mut client, "progress counters 100"), "half");
    let mut expected: Vec<String> = (0..100).map(|step| format!("step {step}")).collect();
    // The request is not over before the client's next line.
    assert_eq!(program.wait_for("event", &key, 100), expected);
    assert_eq!(ask_line(&mut client, "go on"), "released");
    expected.push("done".to_owned());
    assert_eq!(program.wait_for("event", &key, 101), expected);
    program.server.stop();
}

fn events_and_replies_arrive_in_the_order_in_which_they_were_made() {
    let mut program = Program::offering("counters");
    let key = program.key("counters");
    for _ in 0..3 {
        program.submit(&key, "tell:2");
    }
    program.wait_for("outcome", &key, 3);
    let heard = program.server.log.all(|record| record.is("event") || record.is("outcome"));
    let words: Vec<String> = heard.iter().map(|record| record.str("words")).collect();
    assert_eq!(words, ["told 0", "told 1", "0"].repeat(3));
    program.server.stop();
}

fn events_from_before_the_master_accepted_are_not_lost() {
    let program = Program::offering("early");
    assert_eq!(program.wait_for("event", &program.key("early"), 3), ["0", "1", "2"]);
}

fn a_call_waits_for_the_request_in_hand_and_is_answered_after_it() {
    let mut program = Program::offering("counters");
    let key = program.key("counters");
    let (mut client, _) = program.hold();
    program.submit(&key, "count");
    assert_eq!(program.all("outcome", &key), [""; 0]);
    assert_eq!(ask_line(&mut client, "go on"), "released");
    // The request has counted at its end.
    assert_eq!(program.wait_for("outcome", &key, 1), ["1"]);
    program.server.stop();
}

fn a_call_whose_deadline_passes_during_a_request_is_never_begun() {
    let mut program = Program::offering("counters");
    let key = program.key("counters");
    let (mut client, _) = program.hold();
    let words = program.ask(&format!("call {key} tell:1 within-ms 20")).str("words");
    assert!(words.contains("not answered in time"), "{words}");
    assert_eq!(ask_line(&mut client, "go on"), "released");
    program.is_counted(&key, 1);
    assert_eq!(program.all("event", &key), [""; 0], "the call has run");
    program.server.stop();
}

fn clients_are_served_while_the_master_calls_without_pause() {
    let mut program = Program::offering("counters");
    let key = program.key("counters");
    program.order(&format!("call-without-pause {key} 3000"));
    let mut client = program.server.client();
    for _ in 0..100 {
        ask_line(&mut client, "count");
    }
    assert_eq!(program.wait_for("outcome", &key, 1), ["1"], "a call has failed");
    program.is_counted(&key, 100);
    program.server.stop();
}

fn an_error_or_a_panic_of_a_handler_is_its_calls_alone() {
    let mut program = Program::offering("counters");
    let key = program.key("counters");
    assert_eq!(program.ask(&format!("call {key} fail")).str("words"), "as ordered");
    let words = program.ask(&format!("call {key} panic")).str("words");
    assert!(words.contains("the handler panicked: as ordered"), "{words}");
    program.server.log.wait("the panic", |record| record.is("the handler of an offer panicked"));
    program.is_counted(&key, 0);
    assert_eq!(program.server.workers_ever(0).len(), 1);
    program.server.stop();
}

fn a_handler_that_never_ends_meets_the_deadline_of_requests() {
    let mut program = Program::start(&[("HATCHERY_REQUEST_TIMEOUT_MS", "100")]);
    let offered = program.offers("counters", 1).remove(0);
    let words = program.ask(&format!("call {} spin", key_of(&offered))).str("words");
    assert!(words.contains("SIGALRM"), "{words}");
    program.server.successor(0, offered.pid());
    let next = key_of(&program.offers("counters", 2)[1]);
    program.is_counted(&next, 0);
    program.server.stop();
}

// ---- workers come and go ----

fn kill_9_of_a_worker_ends_each_outstanding_call_once_and_says_how() {
    let mut program = Program::offering("counters");
    let key = program.key("counters");
    let (_client, pid) = program.hold();
    for _ in 0..3 {
        program.submit(&key, "count");
    }
    signal_process(pid, Signal::SIGKILL);
    let ended = program.wait_for("ended", &key, 1);
    program.server.successor(0, pid);
    program.key("counters");
    let outcomes = program.all("outcome", &key);
    assert_eq!(outcomes.len(), 3, "each once: {outcomes:?}");
    for words in outcomes.iter().chain(&ended) {
        assert!(words.contains("SIGKILL"), "{words}");
    }
    assert_eq!(program.all("ended", &key).len(), 1);
    // It is known before it is called.
    let words = program.ask(&format!("call {key} count"));
    assert!(words.line.contains("SIGKILL") && words.line.contains(r#""may_have_run":false"#), "{}", words.line);
    program.server.stop();
}

fn a_worker_that_follows_another_offers_anew() {
    let mut program = Program::start(&[("HATCHERY_WORKERS", "2")]);
    let first = program.offers("counters", 2).remove(0);
    signal_process(first.pid(), Signal::SIGKILL);
    let successor = program.server.successor(first.u64("slot"), first.pid());
    let next = program.offers("counters", 3).remove(2);
    assert_eq!((next.u64("slot"), next.pid()), (first.u64("slot"), successor));
    program.is_counted(&key_of(&next), 0);
    program.server.stop();
}

fn after_a_reload_both_generations_are_told_apart_and_the_old_ones_end() {
    let mut program = Program::start(&[("HATCHERY_WORKERS", "2")]);
    let old = program.offers("counters", 2);
    // An old worker that is still at work can still be called when it is through.
    let (mut client, busy) = program.hold();
    program.server.signal(Signal::SIGHUP);
    let all = program.offers("counters", 4);
    assert_eq!(all.iter().map(|offer| offer.u64("generation")).collect::<Vec<_>>(), [1, 1, 2, 2]);
    for offer in &all[2..] {
        program.is_counted(&key_of(offer), 0);
    }
    program.submit(&format!("counters@{busy}"), "count");
    assert_eq!(ask_line(&mut client, "go on"), "released");
    drop(client);
    assert_eq!(program.wait_for("outcome", &format!("counters@{busy}"), 1), ["1"]);
    for offer in &old {
        let words = program.wait_for("ended", &key_of(offer), 1).remove(0);
        assert!(words.contains("code 0"), "{words}");
    }
    assert!(all[2..].iter().all(|offer| program.all("ended", &key_of(offer)).is_empty()));
    program.server.stop();
}

fn a_graceful_stop_answers_the_calls_that_were_made() {
    let mut program = Program::offering("counters");
    let key = program.key("counters");
    let (client, pid) = program.hold();
    for _ in 0..100 {
        program.submit(&key, "count");
    }
    program.server.signal(Signal::SIGTERM);
    program.server.log.wait("the drain", |record| record.is("worker told to drain"));
    assert!(is_alive(pid));
    // With its only client, the worker has no reason any more to stay.
    drop(client);
    assert_eq!(program.wait_for("outcome", &key, 100), vec!["1"; 100]);
    assert_eq!(program.server.wait().code(), Some(0));
    program.server.log.await_end();
    assert_eq!(program.all("outcome", &key).len(), 100);
}

fn invariant_9_kill_9_of_a_master_that_has_called_leaves_nobody() {
    let mut program = Program::start(&[("HATCHERY_WORKERS", "2"), ("HATCHERY_OFFERS", "counters,quiet")]);
    let keys: Vec<String> = program.offers("counters", 2).iter().map(key_of).collect();
    let (client, pid) = program.hold();
    for key in &keys {
        program.submit(key, "count");
    }
    signal_process(program.server.pid, Signal::SIGKILL);
    assert!(is_alive(pid), "a request in hand is still answered");
    drop(client);
    eventually("nobody is left", || program.server.processes().is_empty());
}

// ---- offers that come to nothing ----

fn a_declined_offer_does_its_worker_no_harm() {
    let mut program = Program::offering("declined,counters");
    let pid = program.offers("declined", 1)[0].pid();
    let mut client = program.server.client();
    // Its events go nowhere.
    assert_eq!(ask_line(&mut client, "progress declined 1000"), "half");
    assert_eq!(ask_line(&mut client, "go on"), "released");
    assert_eq!(ask_line(&mut client, "count"), pid.to_string());
    let key = program.key("counters");
    program.is_counted(&key, 1);
    program.server.stop();
}

fn a_client_that_is_closed_or_dropped_leaves_the_worker_serving() {
    let mut program = Program::offering("one,two,counters");
    let [one, two, key] = ["one", "two", "counters"].map(|name| program.key(name));
    program.is_counted(&one, 0);
    program.order(&format!("close {one}"));
    assert_eq!(program.wait_for("closed", &one, 1), ["closed"]);
    program.order(&format!("drop {two}"));
    ask_line(&mut program.server.client(), "count");
    program.is_counted(&key, 1);
    for over in [&one, &two] {
        assert_eq!(program.all("ended", over), [""; 0], "it ended as it was asked to");
    }
    assert_eq!(program.server.workers_ever(0).len(), 1);
    program.server.stop();
}

fn a_master_of_other_types_is_told_so_and_the_worker_serves_on() {
    let mut program = Program::offering("wrong,counters");
    let words = program.wait_for("outcome", &program.key("wrong"), 1).remove(0);
    assert!(words.contains("do not agree"), "{words}");
    let key = program.key("counters");
    ask_line(&mut program.server.client(), "count");
    program.is_counted(&key, 1);
    assert_eq!(program.server.workers_ever(0).len(), 1);
    program.server.stop();
}

fn a_worker_that_speaks_nonsense_ends_its_own_conversation_alone() {
    let mut program = Program::offering("nonsense,counters");
    let words = program.wait_for("ended", &program.key("nonsense"), 1).remove(0);
    assert!(words.contains("broke the protocol"), "{words}");
    let key = program.key("counters");
    ask_line(&mut program.server.client(), "count");
    program.is_counted(&key, 1);
    assert_eq!(program.server.workers_ever(0).len(), 1);
    program.server.stop();
}

fn a_worker_that_closes_its_conversation_and_lives_on_is_left_alone() {
    let mut program = Program::offering("shut,counters");
    let shut = program.key("shut");
    program.submit(&shut, "count");
    // Its end would be awaited for ten seconds.
    for kind in ["outcome", "ended"] {
        let words = program.wait_for(kind, &shut, 1).remove(0);
        assert!(words.contains("has closed the conversation"), "{words}");
    }
    let key = program.key("counters");
    program.is_counted(&key, 0);
    assert_eq!(program.server.workers_ever(0).len(), 1);
    program.server.stop();
}

fn events_beyond_the_limit_are_refused_and_those_before_arrive() {
    let mut program = Program::offering("quiet,counters");
    let (quiet, key) = (program.key("quiet"), program.key("counters"));
    // Its greeting is there, or it would send nothing.
    program.is_counted(&key, 0);
    let mut client = program.server.client();
    let answer = ask_line(&mut client, "flood quiet");
    let (taken, refused) = answer.split_once(' ').expect("a number");
    let taken: usize = taken.parse().expect("a number");
    assert!(refused.contains("no room"), "{refused}");
    // The socket's buffer and 64 KiB, and not without end.
    assert!((64..10_000).contains(&taken), "{taken}");
    program.is_counted(&key, 0);
    program.order(&format!("listen {quiet}"));
    let events = program.wait_for("event", &quiet, taken);
    for (number, event) in events.iter().enumerate() {
        assert!(event.starts_with(&format!("{number} ")), "{number}: {event}");
    }
    // Now there is room again.
    assert_eq!(ask_line(&mut client, "progress quiet 1"), "half");
    assert_eq!(program.wait_for("event", &quiet, taken + 1)[taken], "step 0");
    assert_eq!(ask_line(&mut client, "go on"), "released");
    program.server.stop();
}

fn a_worker_makes_no_more_than_eight_offers() {
    let mut program = Program::offering("1,2,3,4,5,6,7,8,9,10");
    for name in ["9", "10"] {
        program.server.log.wait("the error", |record| record.is("too many") && record.says("offer", name));
    }
    let key = program.key("8");
    program.is_counted(&key, 0);
    assert_eq!(program.server.log.count(|record| record.is("offered")), 8);
    program.server.stop();
}

fn a_server_that_wants_no_offers_declines_them() {
    let mut program = Program::start(&[("HATCHERY_PROGRAM", "declines-all")]);
    let mut client = program.server.client();
    assert_eq!(ask_line(&mut client, "progress counters 1000"), "half");
    assert_eq!(ask_line(&mut client, "go on"), "released");
    program.server.stop();
}

fn a_service_with_its_own_loop_answers_too() {
    let mut program = Program::start(&[("HATCHERY_SERVICE", "own-loop")]);
    let key = program.key("counters");
    program.is_counted(&key, 0);
    program.server.client().line().expect("a word");
    assert_eq!(program.wait_for("event", &key, 1), ["a client has come"]);
    program.is_counted(&key, 1);
    for _ in 0..40 {
        program.submit(&key, "count");
    }
    assert_eq!(program.wait_for("outcome", &key, 42).len(), 42);
    program.server.stop();
    let ended = program.wait_for("ended", &key, 1).remove(0);
    assert!(ended.contains("code 0"), "{ended}");
}

fn a_handler_of_offers_that_waits_holds_up_no_server() {
    let mut program = Program::start(&[("HATCHERY_PROGRAM", "waits"), ("HATCHERY_WORKERS", "2")]);
    let before = descriptors(program.server.pid).len();
    for _ in 0..3 {
        let (slot, pid) = program.server.workers().pop_first().expect("a worker");
        signal_process(pid, Signal::SIGKILL);
        program.server.successor(slot, pid);
    }
    // What the dead have offered does not wait any more, but for the one that the handler has.
    eventually("their offers are closed", || descriptors(program.server.pid).len() <= before + 1);
    ask_line(&mut program.server.client(), "count");
    program.server.stop();
}

fn a_callback_that_waits_holds_up_no_server() {
    let variables = [("HATCHERY_PROGRAM", "callback-waits"), ("HATCHERY_OFFERS", "early"), ("HATCHERY_WORKERS", "2")];
    let mut program = Program::start(&variables);
    program.server.log.wait("a callback", |record| record.is("a callback waits"));
    let (slot, pid) = program.server.workers().pop_first().expect("a worker");
    signal_process(pid, Signal::SIGKILL);
    program.server.successor(slot, pid);
    program.server.signal(Signal::SIGHUP);
    program.server.log.wait("a reload", |record| record.is("reloaded"));
    ask_line(&mut program.server.client(), "count");
    program.server.stop();
}

fn invariant_3_an_offer_costs_a_descriptor_and_the_first_an_epoll_too() {
    let held = |names: &[(&str, &str)]| {
        let program = Program::start(names);
        let (_, pid) = program.server.workers().pop_first().expect("a worker");
        let kinds = |kind: &str| descriptors(pid).values().filter(|target| target.contains(kind)).count();
        (kinds("eventpoll"), kinds("socket:"))
    };
    // As `descriptors.rs` allows it, with one listener.
    assert_eq!(held(&[("HATCHERY_OFFERS", "one")]), (2 + 1, 1 + 2 + 3 + 1));
    assert_eq!(held(&[("HATCHERY_OFFERS", "one,two,three")]), (2 + 1, 1 + 2 + 3 + 3));
}
