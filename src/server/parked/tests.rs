use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::server::testing::conn_pair;

fn guest() -> Guest {
    Guest { conn: conn_pair().0, phase: Phase::Idle }
}

fn at(nanos: u64) -> Monotonic {
    Monotonic::from_nanos(nanos).unwrap()
}

#[test]
fn a_key_goes_nowhere_once_its_guest_has_left() {
    let mut parked = Parked::default();
    let first = parked.insert(guest());
    assert!(parked.remove(first).is_some());
    let second = parked.insert(guest());
    assert_eq!(first.index, second.index, "the seat is used again");
    assert!(parked.get(first).is_none());
    assert!(parked.remove(first).is_none());
    parked.set_due(first, Some(at(1)));
    assert_eq!(parked.pop_due(at(9)), None);
    assert_eq!((parked.len(), parked.keys()), (1, vec![second]));
}

#[test]
fn a_busy_connection_touches_the_heap_once() {
    let mut parked = Parked::default();
    for _ in 0..100 {
        let key = parked.insert(guest());
        for moment in 0..100 {
            parked.set_due(key, Some(at(60 + moment)));
        }
        parked.remove(key);
    }
    assert_eq!(parked.moments.len(), 1);
}

#[derive(Debug, Clone)]
enum Step {
    Insert(u64),
    Remove(usize),
    SetDue(usize, Option<u64>),
    Pass(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (1..50u64).prop_map(Step::Insert),
        any::<usize>().prop_map(Step::Remove),
        (any::<usize>(), prop::option::of(1..50u64)).prop_map(|(who, left)| Step::SetDue(who, left)),
        (0..20u64).prop_map(Step::Pass),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn exactly_those_are_due_whose_moment_has_come(steps in vec(step(), 1..100)) {
        let mut parked = Parked::default();
        let mut model: Vec<(Key, Option<u64>)> = Vec::new();
        let mut now = 1;
        for step in steps {
            match step {
                Step::Insert(left) => {
                    let key = parked.insert(guest());
                    parked.set_due(key, Some(at(now + left)));
                    model.push((key, Some(now + left)));
                }
                Step::Remove(who) if !model.is_empty() => {
                    let (key, _) = model.swap_remove(who % model.len());
                    prop_assert!(parked.remove(key).is_some());
                }
                Step::SetDue(who, left) if !model.is_empty() => {
                    let index = who % model.len();
                    let due = left.map(|left| now + left);
                    model[index].1 = due;
                    parked.set_due(model[index].0, due.map(at));
                }
                Step::Remove(_) | Step::SetDue(..) => {}
                Step::Pass(nanos) => now += nanos,
            }
            let mut due = Vec::new();
            while let Some(key) = parked.pop_due(at(now)) {
                due.push(key.index);
            }
            let mut expected = Vec::new();
            for (key, moment) in &mut model {
                if moment.is_some_and(|moment| moment <= now) {
                    *moment = None;
                    expected.push(key.index);
                }
            }
            due.sort_unstable();
            expected.sort_unstable();
            prop_assert_eq!(due, expected);
            let next = parked.next_moment().map(Monotonic::nanos);
            let first = model.iter().filter_map(|(_, moment)| *moment).min();
            prop_assert!(first.is_none() || next <= first, "woken too late");
            prop_assert_eq!(parked.len(), model.len());
        }
    }
}
