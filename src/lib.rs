//! Pre-fork multi-process servers, and the typed process layer beneath them.
//!
//! - A server: implement [`server::Service`], and let `main` be `hatchery::serve::<MyService>()`, which has every flag of
//!   the command `hatchery serve` (feature `cli`, on by default). A program with a command line of its own fills a
//!   [`server::Config`] and calls [`server::run`].
//! - A running server asked and told what to do: [`control`] (feature `control`, on by default).
//! - Processes alone: [`proc::Template`] and [`proc::Process`], after [`init`].
//! - A process that is called like a function, and pools of them: [`rpc`].
//!
//! The folders are layers; each imports only those above it in this list: `sys`, [`proc`], [`rpc`], [`server`], [`control`],
//! `cli`.

mod machine;
mod sys;

pub mod proc;
pub mod rpc;
pub mod server;

#[cfg(feature = "control")]
pub mod control;

#[cfg(feature = "cli")]
pub mod cli;

#[cfg(any(all(test, feature = "cli"), feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;

#[cfg(feature = "cli")]
pub use cli::serve;
/// The crate of the log, in the version that [`server::run`] and [`server::WorkerCx::log`] speak: a program that logs with it
/// needs no dependency of its own, whose version might be another.
pub use slog;
pub use sys::kernel::KernelTooOld;

/// Makes this process a template if it was spawned as one, and returns in every other process.
///
/// Call it first in `main`, before any thread is started and any descriptor is opened: a template is a fresh
/// image of this same program, and this call is where it learns so. In a template it never returns. A template that
/// cannot start (there are threads already, or its master is of another version) says so on standard error and exits
/// with code 70.
///
/// ```
/// use hatchery::proc::Registry;
///
/// fn main() {
///     let registry = Registry::new().run("worker", |_cx| Ok(()));
///     hatchery::init(&registry);
///     // The master goes on here; a template never comes to this line.
/// }
/// ```
pub fn init(registry: &proc::Registry) {
    proc::initialise(registry);
}

/// The examples of the README.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
