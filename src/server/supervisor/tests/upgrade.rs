//! Upgrades of the master: the new one takes over when it serves, and harms nobody if it does not.

use super::super::table::Upgrade;
use super::*;

const PID: i32 = 77;

fn failed(actions: &[Action]) -> Option<&str> {
    actions.iter().find_map(|action| match action {
        Action::Notice(Notice::UpgradeFailed { words, .. }) => Some(words.as_str()),
        _ => None,
    })
}

fn called_off(actions: &[Action]) -> Option<&str> {
    actions.iter().find_map(|action| match action {
        Action::Notice(Notice::UpgradeCalledOff { words, .. }) => Some(words.as_str()),
        _ => None,
    })
}

fn ignored(actions: &[Action]) -> bool {
    actions == [Action::Notice(Notice::Ignored { signal: Signal::Upgrade })]
}

impl Bench {
    fn upgrading(workers: u32) -> Self {
        let mut bench = Self::serving(workers);
        bench.signal(Signal::Upgrade);
        assert_eq!(bench.asked(), [Action::StartUpgrade], "the workers are left alone");
        bench
    }

    fn upgrade_fails(&mut self, words: &str) {
        self.tell(Event::UpgradeFailed { words: words.to_owned() });
    }
}

#[test]
fn the_workers_drain_only_when_the_new_master_serves_and_the_last_one_ends_the_old_master() {
    let mut bench = Bench::upgrading(2);
    bench.tell(Event::UpgradeReady { pid: PID });
    assert_eq!(bench.asked(), [Action::HandOver, drain(1), drain(2)], "the listeners are not closed as if for good");
    bench.exits(1, Exit::Clean);
    bench.wait(30 * SECOND);
    assert_eq!(bench.asked(), [kill(2, KillReason::NotDrained)]);
    bench.exits(2, Exit::Signal(9));
    assert_eq!(bench.asked(), [close(1), Action::Leave(Outcome::Replaced { pid: PID })]);
}

#[test]
fn a_new_master_that_fails_changes_nothing_and_the_next_upgrade_may_come() {
    let mut bench = Bench::upgrading(2);
    bench.upgrade_fails("exit code 3: no index");
    let actions = bench.take();
    assert_eq!(failed(&actions), Some("exit code 3: no index"));
    assert_eq!(actions.len(), 1);
    assert_eq!(bench.supervisor.phase(), Phase::Serving);
    assert_eq!(bench.supervisor.next_timer(), None);
    bench.signal(Signal::Upgrade);
    assert_eq!(bench.asked(), [Action::StartUpgrade]);
}

#[test]
fn there_is_one_upgrade_at_a_time() {
    let mut bench = Bench::upgrading(1);
    bench.signal(Signal::Upgrade);
    assert!(ignored(&bench.take()));
    bench.wait(180 * SECOND);
    bench.take();
    bench.signal(Signal::Upgrade);
    assert!(ignored(&bench.take()), "the one before is killed and not yet gone");
    bench.upgrade_fails("signal SIGKILL");
    bench.signal(Signal::Upgrade);
    assert_eq!(bench.asked(), [Action::StartUpgrade]);
}

#[test]
fn a_new_master_that_never_serves_is_killed_and_its_failure_is_told_once() {
    let mut bench = Bench::upgrading(1);
    bench.wait(180 * SECOND);
    let actions = bench.take();
    assert_eq!(failed(&actions), Some("the new master did not serve within 180s"));
    assert!(actions.contains(&Action::EndUpgrade));
    bench.tell(Event::UpgradeReady { pid: PID });
    assert_eq!(bench.take(), [], "too late");
    bench.upgrade_fails("signal SIGKILL");
    assert_eq!(bench.take(), []);
    assert_eq!(bench.supervisor.upgrade_state(), Upgrade::Idle);
}

#[test]
fn a_stop_during_an_upgrade_ends_the_new_master_too_and_waits_for_its_end() {
    for signal in [Signal::Stop, Signal::Quit] {
        let mut bench = Bench::upgrading(1);
        bench.signal(signal);
        let actions = bench.take();
        assert_eq!(called_off(&actions), Some("the server was stopped"));
        assert_eq!(failed(&actions), None, "this master does not stay");
        assert!(actions.contains(&Action::EndUpgrade));
        if signal == Signal::Stop {
            assert!(!actions.contains(&drain(1)), "it serves the queue");
            bench.wait(Duration::ZERO);
            bench.nobody_waits();
        }
        assert_eq!(bench.state(1), Some(WorkerState::Draining));
        bench.take();
        bench.exits(1, Exit::Clean);
        assert_eq!(bench.asked(), [close(1)]);
        bench.tell(Event::UpgradeReady { pid: PID });
        bench.upgrade_fails("signal SIGKILL");
        assert_eq!(bench.asked(), [Action::Leave(Outcome::Stopped)]);
    }
}

#[test]
fn the_other_signals_mean_during_an_upgrade_what_they_always_mean() {
    let mut bench = Bench::upgrading(1);
    bench.signal(Signal::More);
    assert_eq!(bench.asked(), [fork(2, 1, 1)]);
    bench.ready(2);
    bench.signal(Signal::Reload);
    bench.template_ready(2);
    assert_eq!(bench.asked(), [start(2), fork(3, 0, 2)]);
    bench.tell(Event::UpgradeReady { pid: PID });
    assert_eq!(bench.asked(), [Action::HandOver, drain(1), drain(3), drain(2)]);
    bench.signal(Signal::Reload);
    assert_eq!(bench.take(), [], "it is on its way out");
}

#[test]
fn an_upgrade_is_started_from_any_phase_that_has_proven_itself() {
    let mut bench = Bench::new(1);
    bench.tell(Event::Boot);
    bench.take();
    bench.signal(Signal::Upgrade);
    assert!(ignored(&bench.take()), "while it boots itself");
    let ways: [fn(&mut Bench); 3] = [
        |bench| bench.signal(Signal::Reload),
        |bench| bench.signal(Signal::DrainWorkers),
        |bench| {
            bench.signal(Signal::DrainWorkers);
            bench.signal(Signal::Reload);
        },
    ];
    for way in ways {
        let mut bench = Bench::serving(1);
        way(&mut bench);
        bench.take();
        bench.signal(Signal::Upgrade);
        assert_eq!(bench.asked(), [Action::StartUpgrade]);
        let before = bench.supervisor.phase();
        bench.upgrade_fails("no");
        assert_eq!(bench.supervisor.phase(), before, "a failure leaves all as it was");
    }
}

#[test]
fn a_quick_stop_hastens_an_old_master_that_drains_and_it_still_counts_as_replaced() {
    let mut bench = Bench::upgrading(1);
    bench.tell(Event::UpgradeReady { pid: PID });
    bench.signal(Signal::Stop);
    bench.take();
    bench.signal(Signal::Quit);
    bench.wait(SECOND);
    assert_eq!(bench.asked(), [kill(1, KillReason::NotDrained)]);
    bench.exits(1, Exit::Signal(9));
    assert_eq!(bench.asked(), [close(1), Action::Leave(Outcome::Replaced { pid: PID })]);
}
