//! The pre-fork server: listeners, the user's service, workers and their supervision.

mod acceptor;
mod attend;
mod caught;
mod conn;
mod deadline;
pub(crate) mod drain;
mod ids;
mod input;
mod message;
mod parked;
pub(crate) mod scoreboard;
mod service;
pub mod services;
#[cfg(test)]
pub(crate) mod testing;
mod worker;
pub(crate) mod worker_config;

pub use acceptor::Acceptor;
pub use conn::{Conn, Fill, Peer};
pub use ids::{Generation, Slot, WorkerId};
pub use scoreboard::{LABEL_BYTES, Snapshot, WorkerState};
pub use service::{BoxError, MissingArg, Next, PreloadCx, RequestCx, Result, Service, WorkerCx};
