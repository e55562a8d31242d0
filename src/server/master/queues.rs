//! Who serves the queue of each slot, where each has its own: decisions only, for [`Effects`](super::effects::Effects) to
//! carry out.
//!
//! A queue whose slot has no ready worker gets a stand-in, a worker that accepts from it beside its own: not at once,
//! since a dead worker's successor mostly comes within milliseconds, but after [`PATIENCE`]. It stands down when the slot has
//! a ready worker again. A slot that was closed for good is never filled; so its queue, which the kernel still spreads
//! clients to, is served all the same.
//!
//! | what happens | the queue of its slot | the queues that it stands in for |
//! | --- | --- | --- |
//! | a worker is ready | its stand-in stands down | |
//! | a worker drains, or has ended, and the slot has no other | gets a stand-in after [`PATIENCE`] | get another at once |

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::mem;
use std::time::Duration;

use crate::server::{Slot, WorkerId};
use crate::sys::clock::Monotonic;

/// So long a queue waits for a worker of its own slot.
const PATIENCE: Duration = Duration::from_millis(100);

/// What a worker is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    /// Accept from the queues of this slot too.
    StandIn { worker: WorkerId, slot: Slot },
    /// Leave them to the slot's own worker.
    StandDown { worker: WorkerId, slot: Slot },
}

/// All queues and the workers that serve them. Without queues of the slots' own it is empty.
#[derive(Debug, Default)]
pub(super) struct Queues {
    queues: BTreeMap<Slot, Queue>,
    workers: BTreeMap<WorkerId, Serving>,
    /// The queues that nobody serves, by the moment at which they get a stand-in.
    unserved: BTreeSet<(Monotonic, Slot)>,
    /// The workers that may be asked, by how many they stand in for.
    helpers: BTreeSet<(usize, WorkerId)>,
    stand_downs: VecDeque<Order>,
}

#[derive(Debug, Default)]
struct Queue {
    /// How many ready workers of its own slot there are: two during a roll.
    own: u32,
    stand_in: Option<WorkerId>,
    /// Its place in `unserved`.
    due: Option<Monotonic>,
}

#[derive(Debug)]
struct Serving {
    slot: Slot,
    helps: bool,
    stands_in_for: BTreeSet<Slot>,
}

impl Queues {
    /// There is a queue for this slot from now on.
    pub(super) fn opened(&mut self, slot: Slot, now: Monotonic) {
        if let Entry::Vacant(vacant) = self.queues.entry(slot) {
            vacant.insert(Queue::default());
            self.wait_until(now.after(PATIENCE), slot);
        }
    }

    /// A worker accepts from the queue of this slot, its own.
    pub(super) fn ready(&mut self, worker: WorkerId, slot: Slot) {
        let serving = Serving { slot, helps: false, stands_in_for: BTreeSet::new() };
        if self.workers.contains_key(&worker) {
            return;
        }
        self.workers.insert(worker, serving);
        let queue = self.queues.entry(slot).or_default();
        queue.own += 1;
        if let Some(due) = queue.due.take() {
            self.unserved.remove(&(due, slot));
        }
        if let Some(stand_in) = queue.stand_in.take() {
            self.stand_downs.push_back(Order::StandDown { worker: stand_in, slot });
            self.change_load(stand_in, |slots| slots.remove(&slot));
        }
    }

    /// A ready worker can stand in for others.
    pub(super) fn can_help(&mut self, worker: WorkerId) {
        if let Some(serving) = self.workers.get_mut(&worker) {
            serving.helps = true;
            self.helpers.insert((serving.stands_in_for.len(), worker));
        }
    }

    /// A worker cannot stand in for anybody any more.
    pub(super) fn cannot_help(&mut self, worker: WorkerId, now: Monotonic) {
        if let Some(serving) = self.workers.get_mut(&worker) {
            self.helpers.remove(&(serving.stands_in_for.len(), worker));
            serving.helps = false;
            for slot in mem::take(&mut serving.stands_in_for) {
                self.lose_stand_in(slot, now);
            }
        }
    }

    /// A worker accepts no more, from whatever queue.
    pub(super) fn leaves(&mut self, worker: WorkerId, now: Monotonic) {
        self.cannot_help(worker, now);
        let Some(serving) = self.workers.remove(&worker) else {
            return;
        };
        if let Some(queue) = self.queues.get_mut(&serving.slot) {
            queue.own -= 1;
            if queue.own == 0 {
                self.wait_until(now.after(PATIENCE), serving.slot);
            }
        }
    }

    /// When to call [`poll`](Self::poll) again.
    pub(super) fn next_due(&self) -> Option<Monotonic> {
        // Without a helper there is nobody to ask.
        self.helpers.first().and(self.unserved.first()).map(|(due, _)| *due)
    }

    /// What is to be done now.
    #[must_use]
    pub(super) fn poll(&mut self, now: Monotonic) -> Option<Order> {
        if let Some(order) = self.stand_downs.pop_front() {
            return Some(order);
        }
        let &(due, slot) = self.unserved.first().filter(|(due, _)| *due <= now)?;
        let &(_, worker) = self.helpers.first()?;
        self.unserved.remove(&(due, slot));
        let queue = self.queues.get_mut(&slot)?;
        queue.due = None;
        queue.stand_in = Some(worker);
        self.change_load(worker, |slots| slots.insert(slot));
        Some(Order::StandIn { worker, slot })
    }

    fn lose_stand_in(&mut self, slot: Slot, now: Monotonic) {
        if let Some(queue) = self.queues.get_mut(&slot) {
            queue.stand_in = None;
            self.wait_until(now, slot);
        }
    }

    fn wait_until(&mut self, due: Monotonic, slot: Slot) {
        if let Some(queue) = self.queues.get_mut(&slot) {
            queue.due = Some(due);
            self.unserved.insert((due, slot));
        }
    }

    fn change_load(&mut self, worker: WorkerId, change: impl FnOnce(&mut BTreeSet<Slot>) -> bool) {
        if let Some(serving) = self.workers.get_mut(&worker) {
            self.helpers.remove(&(serving.stands_in_for.len(), worker));
            change(&mut serving.stands_in_for);
            if serving.helps {
                self.helpers.insert((serving.stands_in_for.len(), worker));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::{any, prop_assert, prop_assert_eq, proptest};

    use super::*;

    fn at(ms: u64) -> Monotonic {
        Monotonic::from_nanos(1 + ms * 1_000_000).expect("not zero")
    }

    /// Slots 0, 1, … each with one ready worker of the same number, that helps.
    fn fleet(slots: u32) -> Queues {
        let mut queues = Queues::default();
        for slot in 0..slots {
            queues.opened(Slot(slot), at(0));
            queues.ready(WorkerId(slot.into()), Slot(slot));
            queues.can_help(WorkerId(slot.into()));
        }
        queues
    }

    fn orders(queues: &mut Queues, now: Monotonic) -> Vec<Order> {
        std::iter::from_fn(|| queues.poll(now)).collect()
    }

    #[test]
    fn a_successor_that_comes_soon_finds_no_stand_in() {
        let mut queues = fleet(2);
        queues.leaves(WorkerId(1), at(0));
        assert_eq!(orders(&mut queues, at(99)), []);
        assert_eq!(queues.next_due(), Some(at(100)));
        queues.ready(WorkerId(7), Slot(1));
        assert_eq!((orders(&mut queues, at(200)), queues.next_due()), (vec![], None));
    }

    #[test]
    fn a_queue_without_a_worker_gets_a_stand_in_until_it_has_one() {
        let (worker, slot) = (WorkerId(0), Slot(1));
        let mut queues = fleet(2);
        queues.leaves(WorkerId(1), at(0));
        assert_eq!(orders(&mut queues, at(100)), [Order::StandIn { worker, slot }]);
        queues.ready(WorkerId(7), slot);
        assert_eq!(orders(&mut queues, at(100)), [Order::StandDown { worker, slot }]);
    }

    #[test]
    fn in_a_roll_the_first_to_leave_leaves_nobody_waiting() {
        let mut queues = fleet(1);
        queues.ready(WorkerId(7), Slot(0));
        queues.leaves(WorkerId(0), at(0));
        assert_eq!((orders(&mut queues, at(500)), queues.next_due()), (vec![], None));
    }

    #[test]
    fn a_stand_in_that_leaves_is_followed_by_another_at_once() {
        let mut queues = fleet(3);
        queues.leaves(WorkerId(2), at(0));
        assert_eq!(orders(&mut queues, at(100)), [Order::StandIn { worker: WorkerId(0), slot: Slot(2) }]);
        queues.leaves(WorkerId(0), at(300));
        assert_eq!(orders(&mut queues, at(300)), [Order::StandIn { worker: WorkerId(1), slot: Slot(2) }]);
        assert_eq!(orders(&mut queues, at(400)), [Order::StandIn { worker: WorkerId(1), slot: Slot(0) }]);
    }

    #[test]
    fn who_stands_in_for_few_is_asked_first_and_who_cannot_never() {
        let mut queues = fleet(6);
        queues.opened(Slot(6), at(0));
        queues.ready(WorkerId(6), Slot(6));
        for worker in 0..4 {
            queues.leaves(WorkerId(worker), at(worker));
        }
        let asked: Vec<_> = orders(&mut queues, at(200))
            .into_iter()
            .map(|order| match order {
                Order::StandIn { worker, .. } => worker.0,
                Order::StandDown { .. } => panic!("nobody has come back"),
            })
            .collect();
        assert_eq!(asked, [4, 5, 4, 5]);
        queues.leaves(WorkerId(4), at(300));
        queues.leaves(WorkerId(5), at(300));
        assert_eq!((orders(&mut queues, at(900)), queues.next_due()), (vec![], None), "worker 6 does not help");
    }

    proptest! {
        /// Whatever happens: after their time every queue is served by its own workers alone, or by one stand-in that is ready.
        #[test]
        fn no_queue_is_left_alone_while_somebody_could_serve_it(
            steps in vec((0_u32..6, any::<bool>(), 0_u64..300), 1..80),
        ) {
            let mut queues = Queues::default();
            let mut ready: BTreeMap<WorkerId, Slot> = BTreeMap::new();
            let mut stand_ins: BTreeMap<Slot, WorkerId> = BTreeMap::new();
            let (mut now, mut born) = (0, 0);
            for (slot, comes, span) in steps {
                queues.opened(Slot(slot), at(now));
                if comes {
                    born += 1;
                    queues.ready(WorkerId(born), Slot(slot));
                    queues.can_help(WorkerId(born));
                    ready.insert(WorkerId(born), Slot(slot));
                } else if let Some((&worker, _)) = ready.iter().find(|(_, own)| **own == Slot(slot)) {
                    queues.leaves(worker, at(now));
                    ready.remove(&worker);
                    stand_ins.retain(|_, stand_in| *stand_in != worker);
                }
                now += span;
                for order in orders(&mut queues, at(now)) {
                    match order {
                        Order::StandIn { worker, slot } => {
                            prop_assert!(ready.contains_key(&worker));
                            prop_assert_eq!(stand_ins.insert(slot, worker), None);
                        }
                        Order::StandDown { worker, slot } => prop_assert_eq!(stand_ins.remove(&slot), Some(worker)),
                    }
                }
            }
            for order in orders(&mut queues, at(now + 100)) {
                if let Order::StandIn { worker, slot } = order {
                    prop_assert_eq!(stand_ins.insert(slot, worker), None);
                }
            }
            for slot in queues.queues.keys() {
                let has_own = ready.values().any(|own| own == slot);
                prop_assert!(ready.is_empty() || has_own != stand_ins.contains_key(slot), "{slot:?}");
            }
        }
    }
}
