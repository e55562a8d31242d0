//! What a panic said and where, for the master instead of for standard error.

use std::any::Any;
use std::cell::RefCell;
use std::panic;
use std::thread;

thread_local! {
    static PLACE: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// From here on a panic of the calling thread is not printed but kept for [`take`].
///
/// For processes whose panics are reported to their master: printing would say it twice. A panic of another
/// thread, which user code may start later, is reported to nobody and so still printed.
pub(crate) fn keep() {
    let reported = thread::current().id();
    let print = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        if thread::current().id() != reported {
            return print(info);
        }
        let place = info.location().map(|place| format!("{}:{}", place.file(), place.line()));
        PLACE.with_borrow_mut(|kept| *kept = place);
    }));
}

/// The words of a panic that was caught: its message and, if [`keep`] was called before, its place.
pub(crate) fn take(payload: &(dyn Any + Send)) -> String {
    let message = payload
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| payload.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "(not a text)".to_owned());
    match PLACE.with_borrow_mut(Option::take) {
        Some(place) => format!("{message} ({place})"),
        None => message,
    }
}
