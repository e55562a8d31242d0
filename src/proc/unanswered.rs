//! Forks that were sent to a process and are not answered in full: decisions alone, without descriptor or clock.
//!
//! A birth is told with a pidfd. Where the master's descriptor table is full, the kernel drops it on its way (unix(7),
//! MSG_CTRUNC); the process that forked has the child unreaped and can open another. So the master asks again, until the
//! pidfd arrives, the child has ended, or patience has.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use super::message::Ticket;
use crate::sys::seqpacket::ASK_AGAIN;

/// Forks under way to one process at a time.
const AHEAD: usize = 64;

/// How often a pidfd is asked for again: for half a second, and longer only where the processes themselves get no processor.
const QUESTIONS: u32 = 100;

#[derive(Default)]
pub(super) struct Unanswered {
    forks: BTreeSet<Ticket>,
    /// Children that were born, and whose pidfds were lost on their way.
    born: BTreeMap<Ticket, Born>,
}

struct Born {
    pid: i32,
    questions: u32,
    /// None while an answer is under way.
    ask_at: Option<Instant>,
}

/// What is to be done about children whose pidfds were lost.
#[derive(Default, Debug, PartialEq, Eq)]
#[must_use]
pub(super) struct Due {
    /// Their pidfds are to be asked for again.
    pub(super) ask: Vec<Ticket>,
    /// There was no room for their pidfds however often it was asked: nobody can supervise them.
    pub(super) give_up: Vec<Ticket>,
}

impl Unanswered {
    pub(super) fn sent(&mut self, ticket: Ticket) {
        self.forks.insert(ticket);
    }

    /// Whether the next fork has to wait for an answer to an earlier one. While pidfds are asked for again, another
    /// fork's socket would take the place that one of them needs.
    pub(super) fn is_full(&self) -> bool {
        self.forks.len() >= AHEAD || !self.born.is_empty()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.forks.is_empty() && self.born.is_empty()
    }

    /// The fork was answered in full; comes back with the child's pid, if only its pidfd was still wanted.
    pub(super) fn handle_answer(&mut self, ticket: Ticket) -> Option<i32> {
        self.forks.remove(&ticket);
        self.born.remove(&ticket).map(|child| child.pid)
    }

    /// The child was born, but its pidfd did not arrive.
    pub(super) fn handle_lost_pidfd(&mut self, ticket: Ticket, pid: i32, now: Instant) {
        let ask_at = Some(now + ASK_AGAIN);
        if self.forks.remove(&ticket) {
            self.born.insert(ticket, Born { pid, questions: 0, ask_at });
        } else if let Some(child) = self.born.get_mut(&ticket) {
            child.ask_at = ask_at;
        }
    }

    /// What is due by now; each child is asked for once an answer.
    pub(super) fn poll_due(&mut self, now: Instant) -> Due {
        let mut due = Due::default();
        for (ticket, child) in &mut self.born {
            if child.ask_at.is_none_or(|at| at > now) {
                continue;
            }
            if child.questions == QUESTIONS {
                due.give_up.push(*ticket);
            } else {
                child.questions += 1;
                child.ask_at = None;
                due.ask.push(*ticket);
            }
        }
        for ticket in &due.give_up {
            self.born.remove(ticket);
        }
        due
    }

    /// When [`Unanswered::poll_due`] has something to say.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.born.values().filter_map(|child| child.ask_at).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(tickets: &[Ticket]) -> Due {
        Due { ask: tickets.to_vec(), ..Due::default() }
    }

    #[test]
    fn a_lost_pidfd_is_asked_for_again_once_an_answer() {
        let start = Instant::now();
        let mut unanswered = Unanswered::default();
        (1..=3).for_each(|ticket| unanswered.sent(ticket));
        assert_eq!(unanswered.handle_answer(1), None);
        unanswered.handle_lost_pidfd(2, 20, start);
        unanswered.handle_lost_pidfd(3, 30, start);
        assert_eq!(unanswered.next_due(), Some(start + ASK_AGAIN));
        assert_eq!(unanswered.poll_due(start), Due::default(), "at once there is no more room than before");
        assert_eq!(unanswered.poll_due(start + ASK_AGAIN), asked(&[2, 3]));
        assert_eq!((unanswered.poll_due(start + ASK_AGAIN * 200), unanswered.next_due()), (Due::default(), None));
        unanswered.handle_lost_pidfd(3, 30, start + ASK_AGAIN);
        assert_eq!(unanswered.handle_answer(2), Some(20));
        assert_eq!(unanswered.poll_due(start + ASK_AGAIN * 2), asked(&[3]));
        assert_eq!(unanswered.handle_answer(3), Some(30));
        assert!(unanswered.is_empty());
    }

    #[test]
    fn a_child_whose_pidfd_never_finds_room_is_given_up() {
        let start = Instant::now();
        let mut unanswered = Unanswered::default();
        unanswered.sent(7);
        let mut now = start;
        unanswered.handle_lost_pidfd(7, 70, now);
        for _ in 0..QUESTIONS {
            now += ASK_AGAIN;
            assert_eq!(unanswered.poll_due(now), asked(&[7]));
            unanswered.handle_lost_pidfd(7, 70, now);
        }
        let given_up = Due { give_up: vec![7], ..Due::default() };
        assert_eq!(unanswered.poll_due(now + ASK_AGAIN), given_up);
        assert!(unanswered.is_empty() && unanswered.next_due().is_none());
        unanswered.handle_lost_pidfd(7, 70, now);
        assert!(unanswered.is_empty(), "a late answer begins nothing anew");
    }

    #[test]
    fn no_fork_takes_the_place_that_a_pidfd_needs() {
        let mut unanswered = Unanswered::default();
        unanswered.sent(1);
        assert!(!unanswered.is_full());
        unanswered.handle_lost_pidfd(1, 10, Instant::now());
        assert!(unanswered.is_full());
        unanswered.handle_answer(1);
        assert!(!unanswered.is_full());
        (1..=AHEAD).for_each(|ticket| unanswered.sent(ticket as Ticket));
        assert!(unanswered.is_full());
    }
}
