//! The supervisor's promises, one by one.

use std::time::Duration;

use super::*;
use crate::server::{Slot, WorkerId};

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

/// A supervisor, its clock, and everything it asked for since it was last looked at.
struct Bench {
    supervisor: Supervisor,
    now: Duration,
    actions: Vec<Action>,
}

impl Bench {
    fn new(workers: u32) -> Self {
        Self::with(Policy {
            workers,
            max_workers: 4,
            ..Policy::default()
        })
    }

    fn with(policy: Policy) -> Self {
        Self {
            supervisor: Supervisor::new(policy, 1),
            now: Duration::ZERO,
            actions: Vec::new(),
        }
    }

    /// Booted, with all workers ready for a minute; worker ids are 1 to `workers`, in the order of slots.
    fn serving(workers: u32) -> Self {
        let mut bench = Self::new(workers);
        bench.tell(Event::Boot);
        bench.template_ready(1);
        for id in 1..=u64::from(workers) {
            bench.ready(id);
        }
        bench.wait(60 * SECOND);
        bench.take();
        bench
    }

    fn tell(&mut self, event: Event) {
        self.supervisor.handle(self.now, event);
        while let Some(action) = self.supervisor.poll_action() {
            self.actions.push(action);
        }
    }

    /// Lets time pass, with a tick whenever one is due.
    fn wait(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(at) = self.supervisor.next_timer().filter(|&at| at <= end) {
            self.now = at;
            self.tell(Event::Tick);
        }
        self.now = end;
    }

    fn signal(&mut self, signal: Signal) {
        self.tell(Event::Signal(signal));
    }

    fn template_ready(&mut self, generation: u32) {
        let generation = Generation(generation);
        self.tell(Event::TemplateReady { generation });
    }

    fn template_fails(&mut self, generation: u32, words: &str) {
        self.tell(Event::TemplateFailed {
            generation: Generation(generation),
            words: words.into(),
        });
    }

    fn template_dies(&mut self, generation: u32) {
        self.tell(Event::TemplateDied {
            generation: Generation(generation),
            words: "killed by signal 9".into(),
        });
    }

    fn forked(&mut self, id: u64) {
        self.tell(Event::WorkerForked {
            id: WorkerId(id),
            pid: 1000 + id as i32,
        });
    }

    fn ready(&mut self, id: u64) {
        self.forked(id);
        self.tell(Event::WorkerReady { id: WorkerId(id) });
    }

    fn refuses(&mut self, id: u64, words: &str) {
        self.forked(id);
        self.tell(Event::WorkerFailed {
            id: WorkerId(id),
            cause: StartFailure::Refused {
                words: words.into(),
            },
        });
    }

    fn fork_refused(&mut self, id: u64) {
        self.tell(Event::WorkerFailed {
            id: WorkerId(id),
            cause: StartFailure::Resource {
                words: "EAGAIN".into(),
            },
        });
    }

    fn exits(&mut self, id: u64, exit: Exit) {
        self.tell(Event::WorkerExited {
            id: WorkerId(id),
            exit,
            words: None,
        });
    }

    fn take(&mut self) -> Vec<Action> {
        std::mem::take(&mut self.actions)
    }

    /// What was asked for, without the notices.
    fn asked(&mut self) -> Vec<Action> {
        let mut actions = self.take();
        actions.retain(|action| !matches!(action, Action::Notice(_)));
        actions
    }

    fn state(&self, id: u64) -> Option<WorkerState> {
        let mut workers = self.supervisor.workers();
        workers
            .find(|(worker, _)| worker.id == WorkerId(id))
            .map(|(_, state)| state)
    }
}

fn start(generation: u32) -> Action {
    Action::StartTemplate {
        generation: Generation(generation),
    }
}

fn close(generation: u32) -> Action {
    Action::CloseTemplate {
        generation: Generation(generation),
    }
}

fn fork(id: u64, slot: u32, generation: u32) -> Action {
    Action::Fork {
        id: WorkerId(id),
        slot: Slot(slot),
        generation: Generation(generation),
    }
}

fn drain(id: u64) -> Action {
    Action::Drain { id: WorkerId(id) }
}

fn kill(id: u64, why: KillReason) -> Action {
    let id = WorkerId(id);
    Action::Kill { id, why }
}

fn boot_failed(words: &str) -> Action {
    Action::Leave(Outcome::BootFailed {
        words: words.into(),
    })
}

fn reload_failed(actions: &[Action]) -> Option<&str> {
    actions.iter().find_map(|action| match action {
        Action::Notice(Notice::ReloadFailed { words, .. }) => Some(words.as_str()),
        _ => None,
    })
}

#[test]
fn a_boot_starts_a_template_and_then_forks_every_slot() {
    let mut bench = Bench::new(2);
    bench.tell(Event::Boot);
    assert_eq!(bench.asked(), [start(1)]);
    bench.template_ready(1);
    assert_eq!(bench.asked(), [fork(1, 0, 1), fork(2, 1, 1)]);
    assert_eq!(bench.state(1), Some(WorkerState::Asked));
    bench.forked(1);
    assert_eq!(bench.state(1), Some(WorkerState::Starting));
}

#[test]
fn serving_is_said_once_when_all_slots_have_become_ready() {
    let mut bench = Bench::new(2);
    let serving = |bench: &mut Bench| {
        let said = |action: &&Action| matches!(action, Action::Notice(Notice::Serving { .. }));
        bench.take().iter().filter(said).count()
    };
    bench.tell(Event::Boot);
    bench.template_ready(1);
    bench.ready(1);
    assert_eq!(serving(&mut bench), 0);
    bench.ready(2);
    assert_eq!(serving(&mut bench), 1);
    assert_eq!(bench.supervisor.phase(), Phase::Serving);
    bench.exits(1, Exit::Signal(9));
    bench.wait(SECOND);
    bench.ready(3);
    assert_eq!(serving(&mut bench), 0);
}

#[test]
fn a_preload_that_fails_at_first_boot_ends_the_server_with_its_words() {
    let mut bench = Bench::new(2);
    bench.tell(Event::Boot);
    bench.take();
    bench.template_fails(1, "no such index");
    assert_eq!(
        bench.asked(),
        [
            close(1),
            Action::CloseListeners,
            boot_failed("no such index")
        ]
    );
}

#[test]
fn a_worker_that_refuses_at_first_boot_ends_the_server_with_its_words_once_all_are_gone() {
    let mut bench = Bench::new(2);
    bench.tell(Event::Boot);
    bench.template_ready(1);
    bench.ready(1);
    bench.forked(2);
    bench.take();
    bench.refuses(2, "the database said no");
    assert_eq!(
        bench.asked(),
        [
            Action::CloseListeners,
            kill(1, KillReason::BootFailed),
            kill(2, KillReason::BootFailed)
        ]
    );
    bench.exits(1, Exit::Signal(9));
    assert_eq!(bench.asked(), []);
    bench.exits(2, Exit::Code(1));
    assert_eq!(
        bench.asked(),
        [close(1), boot_failed("the database said no")]
    );
}

#[test]
fn a_worker_that_dies_before_it_is_ready_at_first_boot_ends_the_server() {
    let mut bench = Bench::new(1);
    bench.tell(Event::Boot);
    bench.template_ready(1);
    bench.forked(1);
    bench.take();
    bench.exits(1, Exit::Signal(11));
    assert_eq!(
        bench.asked(),
        [
            Action::CloseListeners,
            close(1),
            boot_failed("the worker of slot 0 was killed by signal 11 before it was ready")
        ]
    );
}

#[test]
fn a_worker_that_is_never_ready_at_first_boot_ends_the_server() {
    let mut bench = Bench::new(1);
    bench.tell(Event::Boot);
    bench.template_ready(1);
    bench.forked(1);
    bench.take();
    bench.wait(30 * SECOND);
    assert_eq!(
        bench.asked(),
        [kill(1, KillReason::NotReady), Action::CloseListeners]
    );
    bench.exits(1, Exit::Signal(9));
    let words = "the worker of slot 0 was not ready within 30s";
    assert_eq!(bench.asked(), [close(1), boot_failed(words)]);
}

#[test]
fn a_preload_that_hangs_at_first_boot_ends_the_server() {
    let mut bench = Bench::new(1);
    bench.tell(Event::Boot);
    bench.take();
    bench.wait(120 * SECOND);
    let words = "the template did not end its preload within 120s";
    assert_eq!(
        bench.asked(),
        [close(1), Action::CloseListeners, boot_failed(words)]
    );
}

#[test]
fn a_worker_that_served_well_is_replaced_in_the_same_step() {
    let mut bench = Bench::serving(3);
    bench.exits(2, Exit::Signal(11));
    assert_eq!(bench.asked(), [fork(4, 1, 1)]);
}

#[test]
fn a_worker_that_keeps_dying_young_waits_longer_each_time_and_holds_up_nobody_else() {
    let mut bench = Bench::serving(2);
    bench.exits(1, Exit::Code(1));
    bench.take();
    let mut last = Duration::ZERO;
    for failures in 1..8 {
        let id = 2 + u64::from(failures);
        bench.ready(id);
        bench.exits(id, Exit::Code(1));
        assert_eq!(bench.asked(), [], "not at once");
        let delay = bench.supervisor.next_timer().expect("a delay") - bench.now;
        let middle = 100 * MS * 2_u32.pow(failures - 1);
        assert!(delay >= middle.mul_f64(0.75) && delay <= middle.mul_f64(1.25));
        assert!(delay > last);
        last = delay;
        bench.wait(delay);
        assert_eq!(bench.asked(), [fork(id + 1, 0, 1)]);
    }
    bench.exits(2, Exit::Signal(9));
    assert_eq!(
        bench.asked(),
        [fork(11, 1, 1)],
        "the other slot is not delayed"
    );
}

#[test]
fn a_life_that_served_well_makes_the_delay_small_again() {
    let mut bench = Bench::serving(1);
    bench.exits(1, Exit::Code(1));
    for id in 2..6 {
        bench.ready(id);
        bench.exits(id, Exit::Code(1));
        bench.wait(10 * SECOND);
    }
    bench.ready(6);
    bench.wait(SECOND);
    bench.exits(6, Exit::Code(1));
    bench.ready(7);
    bench.exits(7, Exit::Code(1));
    let delay = bench.supervisor.next_timer().expect("a delay") - bench.now;
    assert!(delay <= 125 * MS);
}

#[test]
fn later_start_failures_and_fork_refusals_are_tried_again_and_touch_no_healthy_worker() {
    let mut bench = Bench::serving(2);
    bench.exits(1, Exit::Signal(9));
    bench.take();
    bench.fork_refused(3);
    assert_eq!(bench.asked(), []);
    bench.wait(SECOND);
    assert_eq!(bench.asked(), [fork(4, 0, 1)]);
    bench.refuses(4, "no");
    bench.exits(4, Exit::Code(1));
    bench.wait(SECOND);
    assert_eq!(bench.asked(), [fork(5, 0, 1)]);
    bench.forked(5);
    bench.wait(30 * SECOND);
    assert_eq!(bench.asked().first(), Some(&kill(5, KillReason::NotReady)));
    assert_eq!(bench.state(2), Some(WorkerState::Ready));
}

#[test]
fn workers_go_on_when_their_template_dies_and_forks_wait_for_the_next_of_the_same_generation() {
    let mut bench = Bench::serving(2);
    bench.template_dies(1);
    assert_eq!(bench.asked(), [start(1)], "it had served well");
    bench.exits(1, Exit::Signal(9));
    assert_eq!(bench.asked(), []);
    bench.template_fails(1, "no memory");
    assert_eq!(bench.asked(), [close(1)]);
    bench.wait(125 * MS);
    assert_eq!(bench.asked(), [start(1)]);
    bench.template_ready(1);
    assert_eq!(bench.asked(), [fork(3, 0, 1)]);
    assert_eq!(bench.state(2), Some(WorkerState::Ready));
}

#[test]
fn a_fork_that_died_with_its_template_is_asked_for_again() {
    let mut bench = Bench::serving(1);
    bench.exits(1, Exit::Signal(9));
    bench.take();
    bench.template_dies(1);
    assert_eq!(bench.asked(), [kill(2, KillReason::TemplateLost), start(1)]);
    bench.fork_refused(2);
    bench.template_ready(1);
    assert_eq!(bench.asked(), [fork(3, 0, 1)]);
}

#[test]
fn a_template_that_no_longer_forks_is_replaced() {
    let mut bench = Bench::serving(2);
    bench.exits(1, Exit::Signal(9));
    bench.take();
    bench.wait(30 * SECOND);
    assert_eq!(
        bench.asked(),
        [close(1), kill(3, KillReason::TemplateLost), start(1)]
    );
    assert_eq!(bench.state(2), Some(WorkerState::Ready));
}

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
    assert_eq!(bench.asked(), [drain(2)]);
    assert_eq!(bench.supervisor.generation(), Generation(2));
    assert_eq!(bench.supervisor.incoming(), None);
    bench.exits(1, Exit::Clean);
    assert_eq!(bench.asked(), []);
    bench.exits(2, Exit::Clean);
    assert_eq!(bench.asked(), [close(1)], "nobody is left for it to reap");
}

#[test]
fn the_surge_is_as_wide_as_allowed() {
    let mut bench = Bench::with(Policy {
        workers: 3,
        max_surge: 2,
        ..Policy::default()
    });
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
    assert!(actions.contains(&close(2)));
    assert_eq!(bench.supervisor.phase(), Phase::Serving);
    assert_eq!(bench.supervisor.generation(), Generation(1));
    bench.exits(1, Exit::Signal(9));
    assert_eq!(
        bench.asked(),
        [fork(3, 0, 1)],
        "the old template is still there"
    );
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
    assert_eq!(reload_failed(&actions), Some("no such table"));
    assert!(actions.contains(&fork(5, 0, 1)));
    assert!(
        !actions.contains(&drain(3)),
        "it serves until its successor is ready"
    );
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

#[test]
fn reloads_during_a_roll_become_one_more() {
    let mut bench = Bench::serving(1);
    (0..25).for_each(|_| bench.signal(Signal::Reload));
    assert_eq!(bench.asked(), [start(2)]);
    bench.template_ready(2);
    bench.signal(Signal::Reload);
    bench.ready(2);
    assert_eq!(bench.asked(), [fork(2, 0, 2), drain(1), start(3)]);
    bench.template_ready(3);
    bench.ready(3);
    bench.exits(1, Exit::Clean);
    bench.exits(2, Exit::Clean);
    assert_eq!(bench.asked(), [fork(3, 0, 3), drain(2), close(1), close(2)]);
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
fn more_and_fewer_move_the_target_between_one_and_the_most() {
    let mut bench = Bench::serving(3);
    (0..3).for_each(|_| bench.signal(Signal::More));
    assert_eq!(bench.supervisor.target(), 4);
    assert_eq!(bench.asked(), [fork(4, 3, 1)]);
    (0..9).for_each(|_| bench.signal(Signal::Fewer));
    assert_eq!(bench.supervisor.target(), 1);
    assert_eq!(bench.asked(), [drain(4), drain(3), drain(2)]);
}

#[test]
fn drained_workers_stay_away_until_a_reload_or_more() {
    let mut bench = Bench::serving(2);
    bench.signal(Signal::DrainWorkers);
    assert_eq!(bench.asked(), [drain(1), drain(2)]);
    bench.exits(1, Exit::Clean);
    bench.exits(2, Exit::Clean);
    bench.wait(600 * SECOND);
    assert_eq!(bench.asked(), []);
    bench.signal(Signal::More);
    assert_eq!(bench.asked(), [fork(3, 0, 1), fork(4, 1, 1)]);
    bench.ready(3);
    bench.signal(Signal::DrainWorkers);
    bench.take();
    bench.signal(Signal::Reload);
    assert_eq!(
        bench.asked(),
        [start(2), fork(5, 0, 1), fork(6, 1, 1)],
        "the old generation serves while the new one preloads"
    );
}

#[test]
fn draining_the_workers_in_a_roll_takes_the_roll_back() {
    let mut bench = Bench::serving(1);
    bench.signal(Signal::Reload);
    bench.template_ready(2);
    bench.take();
    bench.signal(Signal::DrainWorkers);
    let actions = bench.take();
    assert!(reload_failed(&actions).is_some());
    assert!(actions.contains(&drain(1)) && actions.contains(&drain(2)));
}

#[test]
fn a_stop_drains_then_kills_and_leaves_when_nobody_is_left() {
    let mut bench = Bench::serving(2);
    bench.signal(Signal::Stop);
    assert_eq!(bench.asked(), [Action::CloseListeners, drain(1), drain(2)]);
    bench.exits(1, Exit::Clean);
    bench.wait(30 * SECOND);
    assert_eq!(bench.asked(), [kill(2, KillReason::NotDrained)]);
    bench.exits(2, Exit::Signal(9));
    assert_eq!(bench.asked(), [close(1), Action::Leave(Outcome::Stopped)]);
    bench.tell(Event::Boot);
    bench.signal(Signal::Reload);
    assert_eq!(bench.take(), [], "the end is the end");
}

#[test]
fn a_quick_stop_has_a_short_patience_also_with_those_who_drain_already() {
    let mut bench = Bench::serving(1);
    bench.signal(Signal::Stop);
    bench.take();
    bench.signal(Signal::Quit);
    bench.wait(SECOND);
    assert_eq!(bench.asked(), [kill(1, KillReason::NotDrained)]);
}

#[test]
fn two_quick_stops_kill_at_once() {
    let mut bench = Bench::serving(1);
    bench.signal(Signal::Quit);
    assert_eq!(bench.asked(), [Action::CloseListeners, drain(1)]);
    bench.signal(Signal::Quit);
    assert_eq!(bench.asked(), [kill(1, KillReason::AtOnce)]);
    bench.signal(Signal::Quit);
    assert_eq!(bench.asked(), []);
}

#[test]
fn a_stop_works_while_booting() {
    let mut bench = Bench::new(1);
    bench.tell(Event::Boot);
    bench.take();
    bench.signal(Signal::Stop);
    assert_eq!(
        bench.asked(),
        [
            Action::CloseListeners,
            close(1),
            Action::Leave(Outcome::Stopped)
        ]
    );
}

#[test]
fn a_stop_works_while_rolling() {
    let mut bench = Bench::serving(1);
    bench.signal(Signal::Reload);
    bench.template_ready(2);
    bench.forked(2);
    bench.take();
    bench.signal(Signal::Stop);
    assert_eq!(bench.asked(), [Action::CloseListeners, drain(1), drain(2)]);
    bench.exits(2, Exit::Clean);
    bench.exits(1, Exit::Clean);
    assert_eq!(
        bench.asked(),
        [close(2), close(1), Action::Leave(Outcome::Stopped)]
    );
}

#[test]
fn a_killed_worker_whose_end_never_comes_is_neither_forgotten_nor_killed_again() {
    let mut bench = Bench::serving(1);
    bench.signal(Signal::Stop);
    bench.wait(30 * SECOND);
    bench.take();
    bench.wait(36_000 * SECOND);
    assert_eq!(bench.take(), []);
    assert_eq!(bench.supervisor.next_timer(), None);
    assert_eq!(bench.state(1), Some(WorkerState::Killed));
}

#[test]
fn late_and_double_reports_change_nothing() {
    let mut bench = Bench::serving(1);
    bench.exits(1, Exit::Signal(9));
    bench.ready(2);
    bench.take();
    bench.ready(1);
    bench.exits(1, Exit::Clean);
    bench.ready(2);
    bench.refuses(1, "no");
    bench.template_ready(1);
    bench.template_ready(7);
    assert_eq!(bench.take(), []);
    assert_eq!(bench.state(2), Some(WorkerState::Ready));
}

#[test]
fn readiness_may_be_heard_before_the_fork() {
    let mut bench = Bench::new(1);
    bench.tell(Event::Boot);
    bench.template_ready(1);
    bench.tell(Event::WorkerReady { id: WorkerId(1) });
    assert_eq!(bench.supervisor.phase(), Phase::Serving);
    bench.forked(1);
    assert_eq!(bench.state(1), Some(WorkerState::Ready));
    let (worker, _) = bench.supervisor.workers().next().expect("one worker");
    assert_eq!(worker.pid, Some(1001));
}
