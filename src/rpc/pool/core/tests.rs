//! The policy, case by case.

use std::num::{NonZeroU32, NonZeroU64, NonZeroUsize};
use std::time::Duration;

use super::table::{Step, look_up};
use super::*;
use crate::machine::Backoff;

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

fn rules(max: usize, load: usize) -> Rules {
    Rules {
        min: 0,
        max: NonZeroUsize::new(max).expect("at least 1"),
        idle: 0,
        load: NonZeroUsize::new(load).expect("at least 1"),
        start: 100 * MS,
        stop: 10 * SECOND,
        start_within: 30 * SECOND,
        leave_within: 10 * SECOND,
        attempts: NonZeroU32::new(3).expect("at least 1"),
        backoff: Backoff { jitter_percent: 0, ..Backoff::default() },
        queue: NonZeroUsize::new(100).expect("at least 1"),
        queued_bytes: 1 << 20,
        calls: None,
        age: None,
        memory: None,
    }
}

struct Play {
    core: Core,
    now: Duration,
}

impl Play {
    fn new(rules: Rules) -> Play {
        Play { core: Core::new(rules, 7), now: Duration::ZERO }
    }

    fn actions(&mut self) -> Vec<Action> {
        std::iter::from_fn(|| self.core.poll_action()).collect()
    }

    fn hear(&mut self, event: Event) -> Vec<Action> {
        self.core.handle(self.now, event);
        self.actions()
    }

    fn call(&mut self, call: CallNumber) -> Vec<Action> {
        self.call_with(call, Terms::default())
    }

    fn call_with(&mut self, call: CallNumber, terms: Terms) -> Vec<Action> {
        self.hear(Event::Called { call, terms })
    }

    fn after(&mut self, time: Duration) -> Vec<Action> {
        self.now += time;
        self.core.handle_timeouts(self.now);
        self.actions()
    }

    fn ready(&mut self, worker: WorkerNumber) -> Vec<Action> {
        self.hear(Event::Ready { worker })
    }

    /// The process dies; what it has in hand was lost before.
    fn dies(&mut self, worker: WorkerNumber) -> Vec<Action> {
        let mut actions = self.hear(Event::Broken { worker });
        actions.extend(self.hear(Event::Exited { worker }));
        actions
    }
}

fn start(worker: WorkerNumber) -> Action {
    Action::Start { worker }
}

fn send(worker: WorkerNumber, call: CallNumber) -> Action {
    Action::Send { worker, call }
}

#[test]
fn the_first_process_is_started_by_the_first_call_and_others_after_the_delay() {
    let mut play = Play::new(rules(3, 1));
    assert_eq!(play.actions(), []);
    assert_eq!(play.call(1), [start(1)]);
    assert_eq!(play.call(2), []);
    assert_eq!(play.ready(1), [send(1, 1)]);
    assert_eq!(play.after(99 * MS), []);
    assert_eq!(play.after(MS), [start(2)]);
    // What starts will do.
    assert_eq!(play.after(SECOND), []);
    assert_eq!(play.call(3), []);
    assert_eq!(play.after(100 * MS), [start(3)]);
    assert_eq!(play.call(4), []);
    assert_eq!(play.after(SECOND), []);
    assert_eq!(play.ready(3), [send(3, 2)]);
    assert_eq!(play.hear(Event::Answered { call: 1, well: true }), [send(1, 3)]);
}

#[test]
fn a_delay_that_was_interrupted_begins_anew() {
    let mut play = Play::new(rules(3, 1));
    play.call(1);
    play.ready(1);
    play.call(2);
    assert_eq!(play.after(60 * MS), []);
    assert_eq!(play.hear(Event::Answered { call: 1, well: true }), [send(1, 2)]);
    play.call(3);
    assert_eq!(play.after(60 * MS), []);
    assert_eq!(play.after(40 * MS), [start(2)]);
}

#[test]
fn min_is_there_at_once_and_again_after_a_death() {
    let mut play = Play::new(Rules { min: 2, ..rules(3, 1) });
    assert_eq!(play.actions(), [start(1), start(2)]);
    play.ready(1);
    play.ready(2);
    play.after(2 * SECOND);
    assert_eq!(play.dies(1), [start(3), Action::Left { worker: 1, cause: Cause::Unasked }]);
    assert_eq!(play.core.statistics().restarts, 1);
}

#[test]
fn the_least_busy_gets_the_next_call_and_among_the_idle_the_last_used() {
    let mut play = Play::new(Rules { min: 2, ..rules(2, 2) });
    play.actions();
    play.ready(1);
    play.ready(2);
    let first = play.call(1);
    assert_eq!(play.call(2), [send(if first == [send(1, 1)] { 2 } else { 1 }, 2)]);
    let (one, two) = if first == [send(1, 1)] { (1, 2) } else { (2, 1) };
    play.hear(Event::Answered { call: 1, well: true });
    assert_eq!(play.call(3), [send(one, 3)]);
    play.hear(Event::Answered { call: 2, well: true });
    play.hear(Event::Answered { call: 3, well: true });
    assert_eq!(play.call(4), [send(one, 4)]);
    assert_eq!(play.call(5), [send(two, 5)]);
}

#[test]
fn idle_ones_leave_after_the_delay_the_longest_idle_first_down_to_idle_and_min() {
    let mut play = Play::new(Rules { min: 1, idle: 2, start: Duration::ZERO, ..rules(4, 1) });
    play.actions();
    for call in 1..=4 {
        play.call(call);
    }
    for worker in 1..=4 {
        play.ready(worker);
    }
    for call in 1..=4 {
        play.hear(Event::Answered { call, well: true });
        play.after(MS);
    }
    assert_eq!(play.after(9 * SECOND), []);
    let left: Vec<Action> = play.after(2 * SECOND);
    assert_eq!(left, [Action::Dismiss { worker: 1 }, Action::Dismiss { worker: 2 }]);
    assert_eq!(play.after(60 * SECOND).len(), 2, "those who do not leave are killed, and nobody else");
}

#[test]
fn a_deadline_kills_just_that_worker_and_its_repeatable_calls_go_to_others() {
    let mut play = Play::new(Rules { min: 2, ..rules(2, 2) });
    play.actions();
    play.ready(1);
    play.ready(2);
    let Some(&[Action::Send { worker, .. }]) =
        Some(play.call_with(1, Terms { deadline: Some(SECOND), ..Terms::default() }).as_slice())
            .map(|actions| <&[Action; 1]>::try_from(actions).expect("one action"))
    else {
        panic!("it is not sent")
    };
    play.call(2);
    // Both have one; this one goes to whoever was used last, or is the first: whichever, one of them has two.
    let repeatable = Terms { repeats: 1, ..Terms::default() };
    play.call_with(3, repeatable);
    play.call_with(4, repeatable);
    let due = play.after(SECOND);
    let end = Action::End { call: 1, why: NoReply::TimedOut { may_have_run: true } };
    assert_eq!(due, [end, Action::Kill { worker, late: Late::Call }]);
    assert_eq!(play.hear(Event::Lost { call: 1, may_have_run: true }), []);
    let third = if play.core.calls.contains_key(&3) { 3 } else { 4 };
    play.hear(Event::Lost { call: third, may_have_run: true });
    assert!(play.core.knows(third), "it waits for a worker again");
    assert_eq!(play.core.statistics().overdue, 1);
}

#[test]
fn a_worker_is_killed_and_counted_once_for_all_calls_that_meet_their_deadline() {
    let mut play = Play::new(rules(1, 2));
    play.call(1);
    play.ready(1);
    for call in 2..=3 {
        play.call_with(call, Terms { deadline: Some(SECOND), ..Terms::default() });
    }
    play.hear(Event::Answered { call: 1, well: true });
    let due = play.after(SECOND);
    assert_eq!(due.iter().filter(|action| matches!(action, Action::Kill { .. })).count(), 1, "{due:?}");
    assert_eq!((play.core.statistics().timed_out, play.core.statistics().overdue), (2, 1));
}

#[test]
fn a_repeatable_call_is_repeated_so_often_and_no_more() {
    let mut play = Play::new(rules(1, 1));
    play.call_with(1, Terms { repeats: 2, ..Terms::default() });
    for worker in 1..=3 {
        assert_eq!(play.ready(worker), [send(worker, 1)]);
        let told = play.hear(Event::Lost { call: 1, may_have_run: true });
        let end = Action::End { call: 1, why: NoReply::Lost { may_have_run: true } };
        assert_eq!(told, if worker == 3 { vec![end] } else { vec![] });
        play.dies(worker);
    }
    assert_eq!((play.core.statistics().retried, play.core.statistics().lost), (2, 1));
    assert_eq!(play.core.statistics().failed_starts, 0, "a worker that was called was started well");
}

#[test]
fn what_was_never_sent_is_handed_to_another_without_asking() {
    let mut play = Play::new(Rules { min: 2, ..rules(2, 1) });
    play.actions();
    play.ready(1);
    play.ready(2);
    let sent = play.call(1);
    let (one, two) = if sent == [send(1, 1)] { (1, 2) } else { (2, 1) };
    let _ = one;
    assert_eq!(play.hear(Event::Unsent { call: 1 }), [send(two, 1)]);
}

#[test]
fn starts_that_fail_are_tried_again_after_growing_delays_and_then_told_to_the_callers() {
    let mut play = Play::new(rules(4, 1));
    play.call(1);
    play.call(2);
    assert_eq!(play.dies(1), [Action::Left { worker: 1, cause: Cause::Unasked }]);
    assert_eq!(play.after(99 * MS), []);
    assert_eq!(play.after(MS), [start(2)]);
    play.dies(2);
    assert_eq!(play.after(199 * MS), []);
    assert_eq!(play.after(MS), [start(3)]);
    let no_worker = NoReply::NoWorker { may_have_run: false };
    let told = play.dies(3);
    assert_eq!(told[..2], [1, 2].map(|call| Action::End { call, why: no_worker }));
    assert_eq!(play.core.refusal(), Some(Refusal::NoWorker));
    // Nobody has called since, so nobody is started.
    assert_eq!(play.after(60 * SECOND), []);
    play.core.handle_refused(play.now);
    assert_eq!(play.actions(), [start(4)]);
    play.ready(4);
    assert_eq!(play.core.refusal(), None);
    assert_eq!(play.call(3), [send(4, 3)]);
}

#[test]
fn a_process_that_does_not_become_ready_is_killed_and_has_failed() {
    let mut play = Play::new(rules(1, 1));
    play.call(1);
    // Its source may take its time.
    assert_eq!(play.after(60 * SECOND), []);
    assert_eq!(play.hear(Event::Made { worker: 1 }), []);
    assert_eq!(play.after(29 * SECOND), []);
    assert_eq!(play.after(SECOND), [Action::Kill { worker: 1, late: Late::Ready }]);
    assert_eq!(play.dies(1), [Action::Left { worker: 1, cause: Cause::Late(Late::Ready) }]);
    assert_eq!(play.core.statistics().failed_starts, 1);
    assert_eq!(play.after(100 * MS), [start(2)]);
}

#[test]
fn a_worker_gets_no_more_calls_than_it_may_and_its_successor_starts_meanwhile() {
    let mut play = Play::new(Rules { calls: NonZeroU64::new(3), min: 1, ..rules(2, 1) });
    play.actions();
    play.ready(1);
    for call in 1..=2 {
        assert_eq!(play.call(call), [send(1, call)]);
        play.hear(Event::Answered { call, well: true });
    }
    assert_eq!(play.call(3), [send(1, 3), start(2)]);
    assert_eq!(play.call(4), []);
    assert_eq!(play.ready(2), [send(2, 4)]);
    assert_eq!(play.hear(Event::Answered { call: 3, well: true }), [Action::Dismiss { worker: 1 }]);
    assert!(play.dies(1).contains(&Action::Left { worker: 1, cause: Cause::Calls }));
}

#[test]
fn a_worker_that_has_grown_old_serves_on_until_its_successor_is_ready() {
    let mut play = Play::new(Rules { age: Some(10 * SECOND), min: 1, ..rules(2, 1) });
    play.actions();
    play.ready(1);
    assert_eq!(play.after(10 * SECOND), [start(2)]);
    assert_eq!(play.call(1), [send(1, 1)]);
    assert_eq!(play.ready(2), []);
    assert_eq!(play.call(2), [send(2, 2)]);
    assert_eq!(play.hear(Event::Answered { call: 1, well: true }), [Action::Dismiss { worker: 1 }]);
}

#[test]
fn at_max_a_worn_worker_leaves_before_its_successor_comes() {
    let mut play = Play::new(Rules { memory: NonZeroU64::new(1000), min: 1, ..rules(1, 1) });
    play.actions();
    play.ready(1);
    play.call(1);
    play.hear(Event::Answered { call: 1, well: true });
    assert_eq!(play.after(100 * MS), [Action::Measure { workers: vec![1] }]);
    assert_eq!(play.hear(Event::Measured { worker: 1, resident: 799 }), []);
    assert_eq!(play.hear(Event::Measured { worker: 1, resident: 1000 }), [Action::Dismiss { worker: 1 }]);
    assert_eq!(play.call(2), []);
    assert_eq!(play.dies(1), [Action::Left { worker: 1, cause: Cause::Memory }, start(2)]);
    assert_eq!(play.ready(2), [send(2, 2)]);
    // A worker at rest is not looked at.
    assert_eq!(play.after(60 * SECOND), []);
}

#[test]
fn a_full_queue_is_told_and_whoever_waits_at_its_door_comes_in_order() {
    let mut play = Play::new(Rules { queue: NonZeroUsize::new(2).expect("at least 1"), ..rules(1, 1) });
    play.call(1);
    play.call(2);
    assert_eq!(play.core.refusal(), Some(Refusal::Full));
    play.call(3);
    let statistics = play.core.statistics();
    assert_eq!((statistics.queued, statistics.waiting), (2, 1));
    assert_eq!(play.ready(1), [send(1, 1)]);
    assert_eq!(play.core.statistics().waiting, 0);
    assert_eq!(play.hear(Event::Answered { call: 1, well: true }), [send(1, 2)]);
    assert_eq!(play.hear(Event::Answered { call: 2, well: true }), [send(1, 3)]);
}

#[test]
fn a_call_that_was_given_up_keeps_its_worker_busy_until_that_has_answered() {
    let mut play = Play::new(rules(1, 1));
    play.call(1);
    play.ready(1);
    play.call_with(2, Terms { patience: Some(SECOND), ..Terms::default() });
    assert_eq!(play.hear(Event::GivenUp { call: 1 }), [Action::Discourage { call: 1 }]);
    let end = Action::End { call: 2, why: NoReply::TimedOut { may_have_run: false } };
    assert_eq!(play.after(SECOND), [end]);
    play.call(3);
    assert_eq!(play.hear(Event::Answered { call: 1, well: false }), [send(1, 3)]);
}

#[test]
fn a_closed_pool_does_all_calls_and_then_everybody_leaves() {
    let mut play = Play::new(Rules { min: 2, ..rules(2, 1) });
    play.actions();
    play.ready(1);
    play.call(1);
    play.call(2);
    assert_eq!(play.hear(Event::Closed), []);
    assert_eq!(play.core.refusal(), Some(Refusal::Closed));
    assert_eq!(play.hear(Event::Answered { call: 1, well: true }), [send(1, 2)]);
    let leave = [Action::Dismiss { worker: 1 }, Action::Dismiss { worker: 2 }];
    let mut told = play.hear(Event::Answered { call: 2, well: true });
    told.sort_by_key(|action| format!("{action:?}"));
    assert_eq!(told, leave);
    play.dies(1);
    assert_eq!(play.dies(2).last(), Some(&Action::Finished));
    assert_eq!(play.after(SECOND), []);
}

#[test]
fn nothing_that_happens_to_a_worker_is_missing_from_the_table() {
    use Phase::{Draining, Ending, Leaving, Serving, Starting};
    for phase in [Starting, Serving, Draining, Leaving, Ending] {
        assert_eq!(look_up(phase, Cue::Exited), Step::Remove);
        let takes_calls = look_up(phase, Cue::Worn) == Step::Drain;
        assert_eq!(takes_calls, phase == Serving, "only who serves is drained");
        let killed = [Cue::Late, Cue::Overdue].into_iter().any(|cue| look_up(phase, cue) == Step::Kill);
        assert_eq!(killed, phase != Ending, "whoever is late can be killed, once");
    }
}
