//! Panics of the user's code, caught with their words and their place.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::fmt;
use std::panic::{self, AssertUnwindSafe, PanicHookInfo};
use std::sync::Once;

/// A panic that was caught.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Panic {
    message: String,
    location: String,
}

impl fmt::Display for Panic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (at {})", self.message, self.location)
    }
}

thread_local! {
    static CATCHING: Cell<bool> = const { Cell::new(false) };
    static LOCATION: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Makes ready for [`catch`], which does it by itself; in a template it is done once for all that are forked from it.
pub(crate) fn prepare() {
    // Only the hook is told where a panic happened. It passes on what happens outside of `catch`.
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let outer = panic::take_hook();
        panic::set_hook(Box::new(move |info| note_location(info, &*outer)));
    });
}

/// Runs `f`; a panic inside is an error. Nothing is printed: the caller logs it.
pub(crate) fn catch<T>(f: impl FnOnce() -> T) -> Result<T, Panic> {
    prepare();
    let outer = CATCHING.replace(true);
    // What `f` leaves half done is either dropped by its owner or belongs to a process that is about to end.
    let result = panic::catch_unwind(AssertUnwindSafe(f));
    CATCHING.set(outer);
    result.map_err(|payload| Panic { message: message(&*payload), location: LOCATION.take() })
}

fn note_location(info: &PanicHookInfo<'_>, outer: &dyn Fn(&PanicHookInfo<'_>)) {
    if CATCHING.get() {
        let location = info.location().map_or_else(String::new, ToString::to_string);
        LOCATION.set(location);
    } else {
        outer(info);
    }
}

fn message(payload: &(dyn Any + Send)) -> String {
    if let Some(words) = payload.downcast_ref::<&str>() {
        (*words).to_owned()
    } else if let Some(words) = payload.downcast_ref::<String>() {
        words.clone()
    } else {
        "a panic without words".to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_keeps_its_words_and_its_place() {
        let panic = catch(|| panic!("no {}", "luck")).unwrap_err();
        assert_eq!(panic.message, "no luck");
        assert!(panic.location.contains("caught.rs:"), "{}", panic.location);
        assert_eq!(catch(|| 3), Ok(3));
    }
}
