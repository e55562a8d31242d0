//! What the pure state machines share: the supervisor of a server and the core of a pool.

mod backoff;
mod random;
mod timers;

pub(crate) use backoff::Backoff;
pub(crate) use random::Random;
pub(crate) use timers::Timers;

/// A seed that differs between two programs that start together, which are not to try again together.
pub(crate) fn seed() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(std::process::id())
}
