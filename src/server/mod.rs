//! The pre-fork server: listeners, the user's service, workers and their supervision.

mod ids;
mod message;
pub(crate) mod supervisor;

pub use ids::{Generation, Slot, WorkerId};
