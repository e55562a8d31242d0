//! What the test binaries share.

pub mod scenario;

use std::error::Error;
use std::panic;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use libtest_mimic::Trial;

/// How a test ended.
pub type Outcome = Result<(), Box<dyn Error>>;

/// The longest that any test may take, on a machine that is busy with other things too.
const LIMIT: Duration = Duration::from_secs(60);

/// A test that fails when it hangs.
pub fn test(name: &'static str, body: fn() -> Outcome) -> Trial {
    Trial::test(name, move || {
        let (tell, told) = mpsc::channel();
        thread::Builder::new().name(name.to_owned()).spawn(move || {
            let outcome = panic::catch_unwind(body).unwrap_or_else(|_| Err("it panicked, see above".into()));
            // Nobody listens any more if it took too long.
            let _ = tell.send(outcome.map_err(|error| words_of(error.as_ref())));
        })?;
        match told.recv_timeout(LIMIT) {
            Ok(outcome) => Ok(outcome?),
            Err(_) => Err(format!("it hangs: no end after {LIMIT:?}").into()),
        }
    })
}

/// An error and its sources in one line.
pub fn words_of(error: &(dyn Error + 'static)) -> String {
    let mut words = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        words = format!("{words}: {cause}");
        source = cause.source();
    }
    words
}
