//! Reloads: rolled in slot by slot, or taken back.

use super::*;
use crate::server::status::ReloadOutcome;

#[test]
fn a_reload_drains_each_old_worker_only_when_its_successor_is_ready() {
    let mut bench = Bench::serving(2);
    bench.signal(Signal::Reload);
    assert_eq!(bench.asked(), [start(2)]);
    assert_eq!(bench.supervisor.incoming(), Some(Generation(2)));
    bench.template_ready(2);
    assert_eq!(bench.asked(), [fork(3, 0, 2)]);
    bench.ready(3);
    assert_eq!(bench.asked(), [drain(1), fork(4, 1, 2)]);
    assert_eq!(bench.supervisor.generation(), Generation(1));
    bench.ready(4);
    assert_eq!(bench.asked(), [drain(2), retire(1)]);
    assert_eq!(bench.supervisor.generation(), Generation(2));
    assert_eq!(bench.supervisor.incoming(), None);
    bench.exits(1, Exit::Clean);
    assert_eq!(bench.asked(), []);
    bench.exits(2, Exit::Clean);
    assert_eq!(bench.asked(), [close(1)], "nobody is left for it to reap");
}

#[test]
fn the_surge_is_as_wide_as_allowed() {
    let mut bench = Bench::with(Policy { workers: 3, max_surge: 2, ..Policy::default() });
    bench.tell(Event::Boot);
    bench.template_ready(1);
    (1..=3).for_each(|id| bench.ready(id));
    bench.signal(Signal::Reload);
    bench.take();
    bench.template_ready(2);
    assert_eq!(bench.asked(), [fork(4, 0, 2), fork(5, 1, 2)]);
    bench.ready(5);
    assert_eq!(bench.asked(), [drain(2), fork(6, 2, 2)]);
}

#[test]
fn a_new_template_that_fails_leaves_the_old_generation_as_it_is_and_says_why() {
    let mut bench = Bench::serving(2);
    bench.signal(Signal::Reload);
    bench.take();
    bench.template_fails(2, "the configuration is wrong");
    let actions = bench.take();
    assert_eq!(reload_failed(&actions), Some("the configuration is wrong"));
    assert_eq!(bench.supervisor.reload_failure(), Some("the configuration is wrong"));
    assert_eq!(says_why(&actions, "the configuration is wrong"), 1, "{actions:?}");
    assert!(actions.contains(&close(2)) && actions.contains(&retire(2)));
    assert_eq!(bench.supervisor.phase(), Phase::Serving);
    assert_eq!(bench.supervisor.generation(), Generation(1));
    bench.exits(1, Exit::Signal(9));
    assert_eq!(bench.asked(), [fork(3, 0, 1)], "the old template is still there");
}

#[test]
fn a_roll_that_fails_half_way_goes_back_to_the_old_generation_and_loses_no_seat() {
    let mut bench = Bench::serving(2);
    bench.signal(Signal::Reload);
    bench.template_ready(2);
    bench.ready(3);
    bench.exits(1, Exit::Clean);
    bench.take();
    bench.refuses(4, "no such table");
    let actions = bench.take();
    assert_eq!(reload_failed(&actions), Some("the start of the worker of slot 1 failed: no such table"));
    assert_eq!(says_why(&actions, "no such table"), 1, "{actions:?}");
    assert!(actions.contains(&fork(5, 0, 1)));
    assert!(!actions.contains(&drain(3)), "it serves until its successor is ready");
    bench.ready(5);
    assert_eq!(bench.asked(), [drain(3)]);
    bench.exits(4, Exit::Code(1));
    bench.exits(3, Exit::Clean);
    assert_eq!(bench.asked(), [close(2)]);
    assert_eq!(bench.state(2), Some(WorkerState::Ready));
}

#[test]
fn each_way_of_failing_takes_a_roll_back() {
    type Failure = fn(&mut Bench);
    let failures: [Failure; 6] = [
        |bench| bench.template_dies(2),
        |bench| bench.refuses(4, "no"),
        |bench| bench.fork_refused(4),
        |bench| bench.exits(4, Exit::Signal(11)),
        |bench| bench.exits(3, Exit::Signal(11)),
        |bench| {
            bench.forked(4);
            bench.wait(31 * SECOND);
        },
    ];
    for fail in failures {
        let mut bench = Bench::serving(2);
        bench.signal(Signal::Reload);
        bench.template_ready(2);
        bench.ready(3);
        bench.take();
        fail(&mut bench);
        let actions = bench.take();
        assert!(reload_failed(&actions).is_some());
        assert_eq!(bench.supervisor.generation(), Generation(1));
        assert!(!actions.contains(&drain(2)));
        assert!(actions.contains(&fork(5, 0, 1)));
    }
}

/// How many facts of these tell the reason.
fn says_why(actions: &[Action], why: &str) -> usize {
    actions.iter().filter(|action| format!("{action:?}").contains(why)).count()
}

#[test]
fn a_reload_that_succeeds_clears_the_failure_of_the_one_before() {
    let mut bench = Bench::serving(1);
    bench.signal(Signal::Reload);
    bench.template_fails(2, "no index");
    bench.signal(Signal::Reload);
    assert_eq!(bench.supervisor.reload_failure(), Some("no index"), "it is not mended yet");
    bench.template_ready(3);
    bench.ready(2);
    assert_eq!(bench.supervisor.generation(), Generation(3));
    assert_eq!(bench.supervisor.reload_failure(), None);
}

#[test]
fn reloads_during_a_roll_become_one_more() {
    let mut bench = Bench::serving(1);
    (0..25).for_each(|_| bench.signal(Signal::Reload));
    assert_eq!(bench.asked(), [start(2)]);
    bench.template_ready(2);
    bench.signal(Signal::Reload);
    bench.ready(2);
    assert_eq!(bench.asked(), [fork(2, 0, 2), drain(1), retire(1), start(3)]);
    bench.template_ready(3);
    bench.ready(3);
    bench.exits(1, Exit::Clean);
    bench.exits(2, Exit::Clean);
    assert_eq!(bench.asked(), [fork(3, 0, 3), drain(2), retire(2), close(1), close(2)]);
    assert_eq!(bench.supervisor.phase(), Phase::Serving);
}

#[test]
fn a_reload_during_the_first_boot_follows_it() {
    let mut bench = Bench::new(1);
    bench.tell(Event::Boot);
    bench.signal(Signal::Reload);
    bench.template_ready(1);
    assert_eq!(bench.asked(), [start(1), fork(1, 0, 1)]);
    bench.ready(1);
    assert_eq!(bench.asked(), [start(2)]);
}

#[test]
fn an_old_worker_that_does_not_drain_after_a_roll_is_killed() {
    let mut bench = Bench::serving(1);
    bench.signal(Signal::Reload);
    bench.template_ready(2);
    bench.ready(2);
    bench.take();
    bench.wait(30 * SECOND);
    assert_eq!(bench.asked(), [kill(1, KillReason::NotDrained)]);
}

#[test]
fn draining_the_workers_in_a_roll_takes_the_roll_back() {
    let mut bench = Bench::serving(1);
    bench.signal(Signal::Reload);
    bench.template_ready(2);
    bench.take();
    bench.signal(Signal::DrainWorkers);
    let actions = bench.take();
    assert_eq!(reload_called_off(&actions), Some("the workers were drained in the middle of it"));
    assert_eq!(reload_failed(&actions), None, "it is said once, and is nobody's fault");
    assert!(actions.contains(&drain(1)) && actions.contains(&drain(2)));
}

#[test]
fn a_reload_may_overtake_the_withdrawal_of_the_one_before() {
    let mut bench = Bench::serving(2);
    bench.signal(Signal::Reload);
    bench.template_ready(2);
    bench.ready(3);
    bench.exits(1, Exit::Clean);
    bench.refuses(4, "no");
    bench.signal(Signal::Reload);
    bench.take();
    bench.template_ready(3);
    assert_eq!(bench.asked(), [drain(5), fork(6, 0, 3)], "the way back is left for the way on");
    bench.ready(6);
    assert_eq!(bench.asked(), [drain(3), fork(7, 1, 3)]);
    bench.ready(7);
    assert_eq!(bench.supervisor.generation(), Generation(3));
}

const fn ticket(number: u64) -> ReloadTicket {
    ReloadTicket(number)
}

impl Bench {
    fn ask_reload(&mut self, number: u64) {
        self.tell(Event::ReloadAsked { ticket: ticket(number) });
    }

    /// Who was told what since the last look.
    fn told(&mut self) -> Vec<(u64, Option<u32>, ReloadOutcome)> {
        let told = |action| match action {
            Action::TellReload { ticket, end } => {
                Some((ticket.0, end.generation.map(|generation| generation.0), end.outcome))
            }
            _ => None,
        };
        self.take().into_iter().filter_map(told).collect()
    }
}

fn rolled_back(why: &str) -> ReloadOutcome {
    ReloadOutcome::RolledBack { why: why.into() }
}

fn called_off(why: &str) -> ReloadOutcome {
    ReloadOutcome::CalledOff { why: why.into() }
}

#[test]
fn who_asks_for_a_reload_is_told_when_the_new_generation_serves() {
    let mut bench = Bench::serving(1);
    bench.ask_reload(7);
    bench.template_ready(2);
    assert_eq!(bench.told(), []);
    bench.wait(SECOND);
    bench.ready(2);
    assert_eq!(bench.told(), [(7, Some(2), ReloadOutcome::Reloaded)]);
    let (end, at) = bench.supervisor.last_reload().expect("there was one");
    assert_eq!((end.took, *at), (SECOND, 61 * SECOND));
}

#[test]
fn who_asks_for_a_reload_that_fails_is_told_why_in_the_words_of_the_log() {
    let mut bench = Bench::serving(2);
    bench.ask_reload(7);
    bench.template_ready(2);
    bench.ready(3);
    bench.refuses(4, "no such table");
    let why = "the start of the worker of slot 1 failed: no such table";
    assert_eq!(bench.told(), [(7, Some(2), rolled_back(why))]);
    assert_eq!(bench.supervisor.reload_failure(), Some(why));
}

#[test]
fn who_asks_during_a_reload_is_told_the_end_of_the_one_after_it_however_it_was_begun() {
    let mut bench = Bench::serving(1);
    bench.signal(Signal::Reload);
    bench.ask_reload(1);
    bench.ask_reload(2);
    bench.signal(Signal::Reload);
    bench.template_fails(2, "torn");
    assert_eq!(bench.told(), [], "that one had begun before");
    bench.ask_reload(3);
    bench.template_fails(3, "torn again");
    assert_eq!(bench.told(), [(1, Some(3), rolled_back("torn again")), (2, Some(3), rolled_back("torn again"))]);
    bench.template_ready(4);
    bench.ready(2);
    assert_eq!(bench.told(), [(3, Some(4), ReloadOutcome::Reloaded)]);
    assert_eq!(bench.supervisor.reload_failure(), None);
}

#[test]
fn who_asks_during_the_first_boot_is_told_the_end_of_the_reload_that_follows_it() {
    let mut bench = Bench::new(1);
    bench.tell(Event::Boot);
    bench.ask_reload(1);
    bench.template_ready(1);
    bench.ready(1);
    assert_eq!(bench.told(), []);
    bench.template_ready(2);
    bench.ready(2);
    assert_eq!(bench.told(), [(1, Some(2), ReloadOutcome::Reloaded)]);
}

#[test]
fn whatever_ends_the_server_calls_the_reloads_off_and_whoever_waits_is_told() {
    let replaced = "a new master takes this one's place";
    type End = fn(&mut Bench);
    let ends: [(End, &str); 4] = [
        (|bench| bench.signal(Signal::Stop), "the server stops"),
        (|bench| bench.signal(Signal::Quit), "the server stops"),
        (|bench| bench.tell(Event::UpgradeReady { pid: 7 }), replaced),
        (|bench| bench.signal(Signal::DrainWorkers), "the workers were drained"),
    ];
    for (end, why) in ends {
        let mut bench = Bench::serving(2);
        bench.signal(Signal::Upgrade);
        bench.ask_reload(1);
        bench.template_ready(2);
        bench.ask_reload(2);
        bench.take();
        end(&mut bench);
        let actions = bench.actions.clone();
        assert!(reload_called_off(&actions).is_some_and(|words| words.starts_with(why)), "{actions:?}");
        let told = bench.told();
        let [
            (1, Some(2), ReloadOutcome::CalledOff { why: first }),
            (2, None, ReloadOutcome::CalledOff { why: second }),
        ] = told.as_slice()
        else {
            panic!("{told:?}");
        };
        assert!(first.starts_with(why) && second.starts_with(why), "{told:?}");
    }
}

#[test]
fn who_asks_while_the_server_leaves_is_told_so_at_once() {
    let mut bench = Bench::serving(1);
    bench.stop();
    bench.take();
    bench.ask_reload(1);
    assert_eq!(bench.told(), [(1, None, called_off("the server stops"))]);
    bench.nobody_waits();
    bench.exits(1, Exit::Clean);
    bench.take();
    bench.ask_reload(2);
    assert_eq!(bench.told(), [(2, None, called_off("the server stops"))], "at its very end, too");
}

#[test]
fn a_boot_that_fails_calls_off_the_reload_that_was_to_follow_it() {
    let mut bench = Bench::new(1);
    bench.tell(Event::Boot);
    bench.ask_reload(1);
    bench.template_fails(1, "no index");
    let actions = bench.actions.clone();
    assert_eq!(bench.told(), [(1, None, called_off("the server stops"))]);
    assert_eq!(actions.last(), Some(&boot_failed("no index")), "the end is the last word");
}

#[test]
fn the_workers_are_drained_and_who_asks_for_a_reload_has_them_filled_again() {
    let mut bench = Bench::serving(1);
    bench.signal(Signal::DrainWorkers);
    bench.take();
    bench.ask_reload(1);
    bench.template_ready(2);
    bench.ready(2);
    assert_eq!(bench.told(), [(1, Some(2), ReloadOutcome::Reloaded)]);
}
