//! The pre-fork server: listeners, the user's service, workers and their supervision.

mod address;
mod bind_error;
mod config;
mod ids;
mod listener;
#[cfg(feature = "cli")]
mod logging;
mod message;
#[cfg_attr(not(test), expect(dead_code, reason = "written at the master's boot"))]
mod pid_file;
mod socket_file;
pub(crate) mod supervisor;

pub use address::{
    AbstractName, Address, AddressError, FIRST_INHERITED_FD, HostName, InheritedFd, SocketPath, UNIX_NAME_MAX,
};
pub use bind_error::BindError;
pub use config::{Config, LogFormat, LogLevel, ServiceName, UnknownWord, Workers, WorkersError};
pub use ids::{Generation, Slot, WorkerId};
#[cfg(feature = "cli")]
pub(crate) use listener::resolves;
pub use listener::{BACKLOG, Listener};
#[cfg(feature = "cli")]
pub use logging::stderr_logger;
pub use pid_file::PidFileError;
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
