//! The process's side: entry points that serve calls.

mod deferred;
mod entry;
mod inbox;
mod output;
#[cfg(feature = "tokio")]
mod runtime;
mod turn;

pub use deferred::Responder;
pub use entry::{Entry, InitCx};
pub use output::Events;
#[cfg(feature = "tokio")]
pub use runtime::AsyncCx;
pub use turn::Cx;
