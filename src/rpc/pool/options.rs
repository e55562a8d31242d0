//! What a pool may be told: what was written, and what is meant.

use std::fmt;
use std::marker::PhantomData;
use std::num::{NonZeroU32, NonZeroU64, NonZeroUsize};
use std::time::Duration;

use crate::machine::Backoff;
use crate::rpc::Postcard;
use crate::rpc::options::{LONGEST, Limits};

/// How a [`Pool`](super::Pool) is run.
///
/// Any value may be written; what cannot be meant is told by [`Pool::new`](super::Pool::new), with the option's name and the
/// value.
///
/// ```
/// use std::time::Duration;
/// use hatchery::rpc::PoolOptions;
///
/// let options = PoolOptions::new()
///     .min(1)
///     .max(4)
///     .deadline(Duration::from_secs(5))
///     .max_memory(256 << 20)
///     .queue(1_000);
/// # let _ = options;
/// ```
#[derive(Debug, Clone)]
pub struct PoolOptions<C = Postcard> {
    min: usize,
    max: usize,
    idle: usize,
    load: usize,
    start_delay: Duration,
    stop_delay: Duration,
    start_within: Duration,
    leave_within: Duration,
    start_attempts: u32,
    queue: usize,
    max_queued: u64,
    when_full: WhenFull,
    max_message: u64,
    max_calls: Option<u64>,
    max_age: Option<Duration>,
    max_memory: Option<u64>,
    deadline: Option<Duration>,
    codec: PhantomData<fn() -> C>,
}

/// What [`call`](super::Pool::call) and [`call_async`](super::Pool::call_async) do while the queue is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum WhenFull {
    /// They wait, in their order, for as long as the caller has patience. Each keeps its encoded message meanwhile; a
    /// `call_async` keeps no thread, so the number of those that wait is bounded by the caller alone.
    #[default]
    Wait,
    /// They end with [`Error::Full`](crate::rpc::Error::Full), as [`submit`](super::Pool::submit) always does.
    Refuse,
}

/// An option of a pool has a value that cannot be meant.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the option {key} of a pool is {value}: it must be {must_be}")]
#[non_exhaustive]
pub struct InvalidOption {
    /// The method of [`PoolOptions`].
    pub key: &'static str,
    /// What it was given.
    pub value: String,
    /// What it may be given.
    pub must_be: String,
}

/// The options in types that cannot be wrong, for the core.
#[derive(Debug, Clone)]
pub(super) struct Rules {
    pub(super) min: usize,
    pub(super) max: NonZeroUsize,
    pub(super) idle: usize,
    pub(super) load: NonZeroUsize,
    pub(super) start: Duration,
    pub(super) stop: Duration,
    pub(super) start_within: Duration,
    pub(super) leave_within: Duration,
    pub(super) attempts: NonZeroU32,
    pub(super) backoff: Backoff,
    pub(super) queue: NonZeroUsize,
    pub(super) queued_bytes: u64,
    pub(super) calls: Option<NonZeroU64>,
    pub(super) age: Option<Duration>,
    pub(super) memory: Option<NonZeroU64>,
}

/// The options in types that cannot be wrong.
#[derive(Debug, Clone)]
pub(super) struct Resolved {
    pub(super) rules: Rules,
    pub(super) when_full: WhenFull,
    pub(super) deadline: Option<Duration>,
    /// Of each worker's conversation.
    pub(super) limits: Limits,
}

impl PoolOptions {
    /// No process until there is a call, at most 8, one call at a time in each. A further process 100 ms after all have become
    /// busy, none that has been idle for 10 s. A queue of 65,536 calls and 256 MiB; messages of up to 64 MiB by
    /// [`Postcard`]. No deadline and no limits on a worker's life.
    pub fn new() -> PoolOptions {
        PoolOptions {
            min: 0,
            max: 8,
            idle: 0,
            load: 1,
            start_delay: Duration::from_millis(100),
            stop_delay: Duration::from_secs(10),
            start_within: Duration::from_secs(30),
            leave_within: Duration::from_secs(10),
            start_attempts: 4,
            queue: 1 << 16,
            max_queued: 256 << 20,
            when_full: WhenFull::Wait,
            max_message: 64 << 20,
            max_calls: None,
            max_age: None,
            max_memory: None,
            deadline: None,
            codec: PhantomData,
        }
    }
}

impl Default for PoolOptions {
    fn default() -> PoolOptions {
        PoolOptions::new()
    }
}

impl<C> PoolOptions<C> {
    /// Speaks with another codec. The processes' entry point must speak the same.
    #[must_use]
    pub fn codec<D>(self) -> PoolOptions<D> {
        let PoolOptions { min, max, idle, load, start_delay, stop_delay, start_within, leave_within, .. } = self;
        let PoolOptions { start_attempts, queue, max_queued, when_full, max_message, max_calls, .. } = self;
        let PoolOptions { max_age, max_memory, deadline, .. } = self;
        PoolOptions {
            min,
            max,
            idle,
            load,
            start_delay,
            stop_delay,
            start_within,
            leave_within,
            start_attempts,
            queue,
            max_queued,
            when_full,
            max_message,
            max_calls,
            max_age,
            max_memory,
            deadline,
            codec: PhantomData,
        }
    }

    /// The least processes, idle or not; started at once, and replaced at once. At most [`max`](PoolOptions::max).
    #[must_use]
    pub fn min(self, processes: usize) -> Self {
        PoolOptions { min: processes, ..self }
    }

    /// The most processes at any time, those included that are starting or leaving; at least 1.
    #[must_use]
    pub fn max(self, processes: usize) -> Self {
        PoolOptions { max: processes, ..self }
    }

    /// So many processes are kept idle for calls to come, if `max` allows; at most `max`.
    #[must_use]
    pub fn idle(self, processes: usize) -> Self {
        PoolOptions { idle: processes, ..self }
    }

    /// The most calls that are with one process at a time; at least 1.
    ///
    /// With 1 a crash costs one call. With more, calls travel while others are carried out, which counts for short
    /// ones, and an entry point with a [`Responder`](crate::rpc::Responder) may work on many; but all of them are lost
    /// together, and a process that carries out one call at a time may have another wait behind a long one.
    #[must_use]
    pub fn load(self, calls: usize) -> Self {
        PoolOptions { load: calls, ..self }
    }

    /// So long must all processes be busy, and calls wait, before a further process is started; and so on from process to
    /// process. With zero the pool grows as fast as it can. The first process, and those that `min` wants, do not wait.
    #[must_use]
    pub fn start_delay(self, delay: Duration) -> Self {
        PoolOptions { start_delay: delay, ..self }
    }

    /// A process that has been idle for so long leaves, unless `min` or `idle` wants it.
    #[must_use]
    pub fn stop_delay(self, delay: Duration) -> Self {
        PoolOptions { stop_delay: delay, ..self }
    }

    /// A process that is not ready so long after it came from its source is killed, and its start has failed; longer than zero.
    #[must_use]
    pub fn start_within(self, time: Duration) -> Self {
        PoolOptions { start_within: time, ..self }
    }

    /// A process that was told to leave and has not after so long is killed; longer than zero.
    #[must_use]
    pub fn leave_within(self, time: Duration) -> Self {
        PoolOptions { leave_within: time, ..self }
    }

    /// After so many starts that failed in a row, while no process serves, calls end with
    /// [`Error::NoWorker`](crate::rpc::Error::NoWorker); at least 1. Between two attempts the pool waits for 100 ms, 200 ms and so
    /// on up to 30 s, a quarter more or less.
    #[must_use]
    pub fn start_attempts(self, attempts: u32) -> Self {
        PoolOptions { start_attempts: attempts, ..self }
    }

    /// The most calls that wait for a process; at least 1. What was begun before and is to be repeated may come on top, and so do
    /// callers who wait for room, each with its encoded message: threads in [`call`](super::Pool::call), and any number of futures of
    /// [`call_async`](super::Pool::call_async). With [`WhenFull::Refuse`] there are none of those, and this bounds all.
    #[must_use]
    pub fn queue(self, calls: usize) -> Self {
        PoolOptions { queue: calls, ..self }
    }

    /// Once so many bytes wait in the queue, it is full; at least 1. What callers keep who wait for room comes on top, as at
    /// [`queue`](PoolOptions::queue).
    #[must_use]
    pub fn max_queued(self, bytes: u64) -> Self {
        PoolOptions { max_queued: bytes, ..self }
    }

    /// What callers who could wait do while the queue is full; by itself [`WhenFull::Wait`], which bounds no futures: see
    /// [`queue`](PoolOptions::queue).
    #[must_use]
    pub fn when_full(self, when_full: WhenFull) -> Self {
        PoolOptions { when_full, ..self }
    }

    /// The longest call, reply or event, in bytes; at most 4 GiB − 1.
    #[must_use]
    pub fn max_message(self, bytes: u64) -> Self {
        PoolOptions { max_message: bytes, ..self }
    }

    /// A process is handed no more than so many calls, up to a fifth less so that not all leave together; at least 1. Its
    /// successor may start while it carries out its last one.
    #[must_use]
    pub fn max_calls(self, calls: u64) -> Self {
        PoolOptions { max_calls: Some(calls), ..self }
    }

    /// A process that has been ready for so long is replaced, up to a fifth earlier; at least 1 ms. Where it would be missed it serves on
    /// until its successor is ready, if `max` allows for both.
    #[must_use]
    pub fn max_age(self, age: Duration) -> Self {
        PoolOptions { max_age: Some(age), ..self }
    }

    /// A process of which so many bytes are resident, or up to a fifth less, is replaced as at
    /// [`max_age`](PoolOptions::max_age); at least 1. What it shares with its template counts (`/proc/PID/statm`). It is looked at
    /// within 100 ms after a call.
    #[must_use]
    pub fn max_memory(self, bytes: u64) -> Self {
        PoolOptions { max_memory: Some(bytes), ..self }
    }

    /// The deadline of each call that has none of its own; see [`Prepared::deadline`](super::Prepared::deadline). Longer than zero.
    #[must_use]
    pub fn deadline(self, time: Duration) -> Self {
        PoolOptions { deadline: Some(time), ..self }
    }

    /// What is meant.
    ///
    /// # Errors
    /// The first option that cannot be meant.
    pub(super) fn resolve(&self) -> Result<Resolved, InvalidOption> {
        let max = NonZeroUsize::new(self.max).ok_or_else(|| invalid("max", self.max, "at least 1"))?;
        let up_to_max = |key, value: usize| {
            if value <= self.max { Ok(value) } else { Err(invalid(key, value, format!("at most max, which is {max}"))) }
        };
        let time = |key, value: Duration| {
            if value.is_zero() { Err(invalid(key, "0 s", "longer than zero")) } else { Ok(value) }
        };
        let bytes = |key, value: u64| NonZeroU64::new(value).ok_or_else(|| invalid(key, value, "at least 1"));
        let age = |value: Duration| match value.as_millis() {
            0 => Err(invalid("max_age", format!("{value:?}"), "at least 1 ms")),
            _ => Ok(value),
        };
        let rules = Rules {
            min: up_to_max("min", self.min)?,
            max,
            idle: up_to_max("idle", self.idle)?,
            load: NonZeroUsize::new(self.load).ok_or_else(|| invalid("load", self.load, "at least 1"))?,
            start: self.start_delay,
            stop: self.stop_delay,
            start_within: time("start_within", self.start_within)?,
            leave_within: time("leave_within", self.leave_within)?,
            attempts: NonZeroU32::new(self.start_attempts)
                .ok_or_else(|| invalid("start_attempts", self.start_attempts, "at least 1"))?,
            backoff: Backoff::default(),
            queue: NonZeroUsize::new(self.queue).ok_or_else(|| invalid("queue", self.queue, "at least 1"))?,
            queued_bytes: bytes("max_queued", self.max_queued)?.get(),
            calls: self.max_calls.map(|calls| bytes("max_calls", calls)).transpose()?,
            age: self.max_age.map(age).transpose()?,
            memory: self.max_memory.map(|memory| bytes("max_memory", memory)).transpose()?,
        };
        let deadline = self.deadline.map(|deadline| time("deadline", deadline)).transpose()?;
        if self.max_message > LONGEST {
            return Err(invalid("max_message", self.max_message, format!("at most {LONGEST}")));
        }
        // How much is with a worker is for the pool to say.
        let limits = Limits { outstanding: usize::MAX, queued: u64::MAX, message: self.max_message };
        Ok(Resolved { rules, when_full: self.when_full, deadline, limits })
    }
}

fn invalid(key: &'static str, value: impl fmt::Display, must_be: impl Into<String>) -> InvalidOption {
    InvalidOption { key, value: value.to_string(), must_be: must_be.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_option_that_cannot_be_meant_names_itself_its_value_and_what_would_be_right() {
        let new = PoolOptions::new;
        for (options, words) in [
            (new().max(0), "the option max of a pool is 0: it must be at least 1"),
            (new().max(3).min(4), "the option min of a pool is 4: it must be at most max, which is 3"),
            (new().idle(9), "the option idle of a pool is 9: it must be at most max, which is 8"),
            (new().load(0), "the option load of a pool is 0: it must be at least 1"),
            (
                new().start_within(Duration::ZERO),
                "the option start_within of a pool is 0 s: it must be longer than zero",
            ),
            (
                new().leave_within(Duration::ZERO),
                "the option leave_within of a pool is 0 s: it must be longer than zero",
            ),
            (new().start_attempts(0), "the option start_attempts of a pool is 0: it must be at least 1"),
            (new().queue(0), "the option queue of a pool is 0: it must be at least 1"),
            (new().max_queued(0), "the option max_queued of a pool is 0: it must be at least 1"),
            (
                new().max_message(1 << 32),
                "the option max_message of a pool is 4294967296: it must be at most 4294967295",
            ),
            (new().max_calls(0), "the option max_calls of a pool is 0: it must be at least 1"),
            (new().max_age(Duration::from_micros(9)), "the option max_age of a pool is 9µs: it must be at least 1 ms"),
            (new().max_memory(0), "the option max_memory of a pool is 0: it must be at least 1"),
            (new().deadline(Duration::ZERO), "the option deadline of a pool is 0 s: it must be longer than zero"),
        ] {
            assert_eq!(options.resolve().expect_err(words).to_string(), words);
        }
        new().resolve().expect("what stands there by itself can be meant");
    }
}
