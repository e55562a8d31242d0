//! The pre-fork server: listeners, the user's service, workers and their supervision.
//!
//! - What a user writes is a [`Service`]. [`host`] makes entry points of it, and [`run`] runs the server that a [`Config`]
//!   describes.
//! - Workers may be called by the program that has the server, and tell it of events: counters, progress, notices. A service
//!   [offers](WorkerCx::offer) a function under a name, [`Server::on_offer`] hears of it, and an [`Offer`] that is accepted is a
//!   typed [`Client`](crate::rpc::Client). Slot, pid and generation say whose it is; each worker that comes offers anew, and what
//!   a worker has offered ends with it. Where nothing is offered it costs nothing.

mod abort;
mod acceptor;
mod address;
mod attend;
mod bind_error;
mod cleanup;
mod command;
mod config;
mod conn;
mod control_point;
mod deadline;
mod drain;
mod fleet_config;
#[cfg(any(all(test, feature = "cli"), feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod half_open;
mod hosting;
mod ids;
mod in_hand;
mod inheritance;
mod input;
mod last_words;
mod listener;
mod lock;
#[cfg(feature = "cli")]
mod logging;
mod master;
mod message;
mod offers;
mod parked;
mod pid_file;
mod request_cx;
mod scoreboard;
mod service;
pub mod services;
mod socket_file;
mod status;
mod supervisor;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod testing;
mod worker;
mod worker_config;

pub use abort::{AbortToken, Aborted, PeerState};
pub use acceptor::Acceptor;
pub use address::{
    AbstractName, Address, AddressError, FIRST_INHERITED_FD, HostName, InheritedFd, SocketPath, UNIX_NAME_MAX,
};
pub use bind_error::BindError;
pub use command::{Subprocess, WorkerCommand};
pub use config::{AcceptMode, Config, LogFormat, LogLevel, ServiceName, UnknownWord, Workers, WorkersError};
pub use conn::{Conn, Fill, Peer};
#[cfg(feature = "control")]
pub(crate) use control_point::Attendant;
pub use control_point::{ControlAddress, ControlAddressError, ControlPoint};
pub use fleet_config::{DynamicScaling, MemorySize, MemorySizeError, RestartBudget, Scaling, ScalingError};
#[cfg(feature = "cli")]
pub(crate) use hosting::host_as;
pub use hosting::{MakeLogger, host};
pub(crate) use ids::WorkerId;
pub use ids::{Generation, Slot};
#[cfg(feature = "cli")]
pub(crate) use inheritance::decline;
pub use last_words::LastWords;
#[cfg(feature = "cli")]
pub(crate) use listener::resolves;
pub use listener::{BACKLOG, Listener};
pub use lock::FileLock;
#[cfg(feature = "cli")]
pub use logging::stderr_logger;
#[cfg(feature = "control")]
pub(crate) use master::{Asker, Desk, Question, Reply};
pub use master::{Offer, RunError, Server, run};
pub use offers::{OfferError, OfferOptions};
pub use pid_file::PidFileError;
pub use request_cx::RequestCx;
pub use scoreboard::LABEL_BYTES;
pub use service::{BoxError, MissingArg, Next, PreloadCx, Result, Service, WorkerCx};
pub use status::{
    FleetHealth, LastReload, ReloadEnd, ReloadOutcome, ServerState, SlotStatus, Status, WorkerActivity, WorkerStatus,
};
