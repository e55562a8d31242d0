//! What a request leaves to be put in order when it has ended, whichever way it ended.

use std::cell::RefCell;
use std::fmt;

use crate::proc::caught::{Panic, catch};

/// The closures of the request in hand, in the order in which they came. Without any there is no memory of it.
#[derive(Default)]
pub(super) struct Cleanups(RefCell<Vec<Box<dyn FnOnce()>>>);

impl Cleanups {
    pub(super) fn add(&self, cleanup: impl FnOnce() + 'static) {
        self.0.borrow_mut().push(Box::new(cleanup));
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.borrow().is_empty()
    }

    /// Runs them, the last one first; each of them, even if another panics.
    pub(super) fn run(&self, mut panicked: impl FnMut(Panic)) {
        while let Some(cleanup) = self.last() {
            if let Err(panic) = catch(cleanup) {
                panicked(panic);
            }
        }
    }

    fn last(&self) -> Option<Box<dyn FnOnce()>> {
        self.0.borrow_mut().pop()
    }
}

impl fmt::Debug for Cleanups {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Cleanups").field(&self.0.borrow().len()).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use super::*;

    #[test]
    fn the_last_one_runs_first_and_each_runs_once() {
        let (cleanups, ran) = (Cleanups::default(), Rc::new(RefCell::new(Vec::new())));
        assert!(cleanups.is_empty());
        for number in 0..3 {
            let ran = Rc::clone(&ran);
            cleanups.add(move || ran.borrow_mut().push(number));
        }
        assert!(!cleanups.is_empty());
        for _ in 0..2 {
            cleanups.run(|panic| panic!("{panic}"));
            assert_eq!(*ran.borrow(), [2, 1, 0]);
            assert!(cleanups.is_empty());
        }
    }

    #[test]
    fn one_that_panics_keeps_no_other_from_running() {
        let (cleanups, ran) = (Cleanups::default(), Rc::new(RefCell::new(Vec::new())));
        for number in 0..4 {
            let ran = Rc::clone(&ran);
            cleanups.add(move || {
                ran.borrow_mut().push(number);
                assert!(number % 2 == 0, "no luck with {number}");
            });
        }
        let mut panics = Vec::new();
        cleanups.run(|panic| panics.push(panic.to_string()));
        assert_eq!(*ran.borrow(), [3, 2, 1, 0]);
        assert!(panics[0].starts_with("no luck with 3 (at "), "{panics:?}");
        assert!(panics[1].starts_with("no luck with 1 (at "), "{panics:?}");
        assert_eq!(panics.len(), 2);
    }
}
