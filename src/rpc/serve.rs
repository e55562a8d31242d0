//! The process's side: entry points that serve calls.

pub(crate) mod attended;
mod deferred;

mod entry;
mod inbox;
mod output;
#[cfg(feature = "tokio")]
mod runtime;
#[cfg(test)]
mod tests;
mod turn;

pub use deferred::Responder;
pub use entry::{Entry, InitCx};
pub use output::Events;
pub(crate) use output::Loop;
#[cfg(feature = "tokio")]
pub use runtime::AsyncCx;
pub use turn::Cx;
