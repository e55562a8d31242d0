//! Pools: as many processes as there is work, each called like a function.
//!
//! The way of a call: it is encoded on its caller's thread and told to the [`core`], the pure state machine that decides who does
//! what, under the one lock of the [`shell`]. If a worker is free, it is sent on the spot. Replies come over each worker's
//! [link](super::link) and end their calls, and the next ones are handed out on the same occasion. The [`keeper`], a pool's one
//! thread, starts and ends processes and keeps time.

mod core;
mod handle;
mod keeper;
mod options;
mod pending;
mod report;
mod shell;

pub use self::core::{Cause, Late};
pub use self::handle::{OpenError, Pool, Prepared};
pub use self::options::{InvalidOption, PoolOptions, WhenFull};
pub use self::pending::PoolFuture;
pub use self::report::{InHand, Statistics, Worker, WorkerExit};
