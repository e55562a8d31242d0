//! When to look at a request that takes long: shortly before its soft deadline, to see what its worker waits for, and some
//! time after its hard one, at which its worker should have ended itself.
//!
//! It is pure: it sees the time and the requests in hand, and says what is to be done and when to look again.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::server::WorkerId;
use crate::sys::clock::Monotonic;

/// How long before the soft deadline a worker is looked at: later it would be seen in what the deadline made of it.
const AHEAD: Duration = Duration::from_millis(50);

/// How long a worker that was seen beyond its hard deadline may take to end itself: it is busy dying by then. It counts from
/// that look and not from the deadline, because what keeps the worker from running (a machine that stands still or is
/// overloaded) keeps the master from looking as well.
const GRACE: Duration = Duration::from_millis(500);

/// Requests that began since are found at the latest after this time, and after this part of the usual timeout.
const LONGEST_ROUND: Duration = Duration::from_secs(1);
const SHORTEST_ROUND: Duration = Duration::from_millis(25);
const ROUNDS_A_TIMEOUT: u32 = 4;

/// A request in hand that has deadlines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Request {
    pub(super) id: WorkerId,
    pub(super) started: Monotonic,
    pub(super) soft: Monotonic,
    pub(super) hard: Monotonic,
}

/// What is to be done about a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// Note what it waits for, in place of what was noted before: half of its time is over, or its soft deadline is near.
    Sample,
    /// Its own alarm has not ended it.
    GiveUp,
}

/// The requests that have been seen, and how far each was followed.
#[derive(Debug)]
pub(super) struct Watch {
    round: Duration,
    seen: BTreeMap<WorkerId, Seen>,
    next: Monotonic,
}

#[derive(Debug, Clone, Copy)]
struct Seen {
    started: Monotonic,
    /// It was sampled when half of its time was over.
    sampled_early: bool,
    /// It was sampled just before its deadline, or would have been if the look had not come too late.
    sampled: bool,
    overdue_since: Option<Monotonic>,
    given_up: bool,
}

impl Watch {
    /// A watch over a server whose requests have usually this timeout.
    pub(super) fn new(request_timeout: Option<Duration>, now: Monotonic) -> Watch {
        let round = request_timeout.map_or(LONGEST_ROUND, |timeout| timeout / ROUNDS_A_TIMEOUT);
        Watch { round: round.clamp(SHORTEST_ROUND, LONGEST_ROUND), seen: BTreeMap::new(), next: now }
    }

    /// When to look again.
    pub(super) fn next(&self) -> Monotonic {
        self.next
    }

    /// Looks at all requests in hand.
    pub(super) fn look(
        &mut self,
        now: Monotonic,
        requests: impl IntoIterator<Item = Request>,
    ) -> Vec<(WorkerId, Step)> {
        let mut before = std::mem::take(&mut self.seen);
        let mut next = now.after(self.round);
        let mut steps = Vec::new();
        for request in requests {
            let mut seen = before.remove(&request.id).filter(|seen| seen.started == request.started).unwrap_or(Seen {
                started: request.started,
                sampled_early: false,
                sampled: false,
                overdue_since: None,
                given_up: false,
            });
            let left = request.soft.since(now);
            let early = (request.soft.since(request.started) / 2).max(AHEAD);
            let (is_near, is_late) = (left <= AHEAD, now >= request.soft);
            // Whoever looks too late sees the worker in what the deadline has made of it: the earlier sample tells more.
            let is_due = match (is_near, seen.sampled_early) {
                (true, true) => !seen.sampled && !is_late,
                (true, false) => true,
                (false, sampled) => left <= early && !sampled,
            };
            if is_due {
                steps.push((request.id, Step::Sample));
            }
            seen.sampled_early |= left <= early;
            seen.sampled |= is_near;
            if now < request.hard {
                seen.overdue_since = None;
            } else if now >= seen.overdue_since.get_or_insert(now).after(GRACE) && !seen.given_up {
                seen.given_up = true;
                steps.push((request.id, Step::GiveUp));
            }
            if !seen.sampled {
                // Further away than that, or it would have been sampled.
                let until = if seen.sampled_early { AHEAD } else { early };
                next = next.min(now.after(left.saturating_sub(until)));
            } else if !seen.given_up {
                next = next.min(seen.overdue_since.map_or(request.hard, |since| since.after(GRACE)));
            }
            self.seen.insert(request.id, seen);
        }
        self.next = next;
        steps
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: WorkerId = WorkerId(7);

    fn at(millis: u64) -> Monotonic {
        Monotonic::from_nanos(1_000_000_000 + millis * 1_000_000).expect("not zero")
    }

    fn request(started: u64, soft: u64, hard: u64) -> Request {
        Request { id: ID, started: at(started), soft: at(soft), hard: at(hard) }
    }

    /// Looks whenever the watch wants to, and gives the steps with their times.
    fn live(watch: &mut Watch, until: u64, request: impl Fn(u64) -> Option<Request>) -> Vec<(u64, Step)> {
        let mut now = 0;
        let mut steps = Vec::new();
        while now <= until {
            let found = watch.look(at(now), request(now));
            steps.extend(found.into_iter().map(|(_, step)| (now, step)));
            let next = watch.next().since(at(0)).as_nanos().div_ceil(1_000_000) as u64;
            assert!(next > now, "the watch spins at {now}");
            now = next;
        }
        steps
    }

    #[test]
    fn a_request_is_sampled_at_half_time_and_just_before_its_soft_deadline_and_given_up_after_its_hard_one() {
        let mut watch = Watch::new(Some(Duration::from_secs(2)), at(0));
        let steps = live(&mut watch, 9_000, |_| Some(request(0, 2_000, 4_000)));
        assert_eq!(steps, [(1_000, Step::Sample), (1_950, Step::Sample), (4_500, Step::GiveUp)]);
    }

    #[test]
    fn a_request_that_begins_between_two_looks_is_found_in_time() {
        for started in (0..3_000).step_by(37) {
            let mut watch = Watch::new(Some(Duration::from_millis(400)), at(0));
            let request = |now| (now >= started).then(|| request(started, started + 400, started + 600));
            let steps = live(&mut watch, 9_000, request);
            assert_eq!(steps.len(), 3, "{steps:?}");
            assert!(steps[0].0.abs_diff(started + 200) <= 1, "{steps:?}");
            assert!(steps[1].0.abs_diff(started + 350) <= 1, "{steps:?}");
        }
    }

    #[test]
    fn the_next_request_of_the_same_worker_is_another_one() {
        let mut watch = Watch::new(None, at(0));
        let steps = live(&mut watch, 20_000, |now| {
            let started = now / 5_000 * 5_000;
            Some(request(started, started + 2_000, started + 3_000))
        });
        let samples = steps.iter().filter(|(_, step)| *step == Step::Sample).count();
        assert_eq!((samples, steps.len()), (8, 12), "{steps:?}");
    }

    #[test]
    fn a_deadline_that_was_moved_is_followed() {
        let mut watch = Watch::new(Some(Duration::from_secs(1)), at(0));
        let steps = live(&mut watch, 9_000, |now| {
            let later = if now < 700 { 0 } else { 3_000 };
            Some(request(0, 1_000 + later, 2_000 + later))
        });
        assert_eq!(steps, [(500, Step::Sample), (3_950, Step::Sample), (5_500, Step::GiveUp)]);
    }

    #[test]
    fn a_worker_gets_its_grace_even_where_the_master_looks_late() {
        let mut watch = Watch::new(Some(Duration::from_secs(2)), at(0));
        let late = Some(request(0, 400, 600));
        assert_eq!(watch.look(at(5_000), late), [(ID, Step::Sample)]);
        assert_eq!(watch.next(), at(5_500));
        assert!(watch.look(at(5_499), late).is_empty());
        assert_eq!(watch.look(at(5_500), late), [(ID, Step::GiveUp)]);
    }

    #[test]
    fn a_look_that_comes_after_the_deadline_does_not_replace_an_earlier_sample() {
        let mut watch = Watch::new(Some(Duration::from_secs(2)), at(0));
        let request = Some(request(0, 2_000, 9_000));
        assert_eq!(watch.look(at(1_200), request), [(ID, Step::Sample)]);
        assert_eq!(watch.look(at(2_001), request), []);
        assert_eq!(watch.next(), at(2_501), "there is nothing more to see before the hard deadline");
    }

    #[test]
    fn an_idle_server_is_looked_at_once_a_second() {
        let mut watch = Watch::new(Some(Duration::from_secs(30)), at(0));
        assert!(watch.look(at(0), None).is_empty());
        assert_eq!(watch.next(), at(1_000));
    }
}
