//! The pre-fork server: listeners, the user's service, workers and their supervision.

mod address;
mod ids;
mod message;

pub use address::{
    AbstractName, Address, AddressError, FIRST_INHERITED_FD, HostName, InheritedFd, SocketPath,
    UNIX_NAME_MAX,
};
pub use ids::{Generation, Slot, WorkerId};
