//! The process's side: entry points that serve calls.

mod deferred;
mod entry;
mod inbox;
mod output;
mod turn;

pub use deferred::Responder;
pub use entry::{Entry, InitCx};
pub use output::Events;
pub use turn::Cx;
