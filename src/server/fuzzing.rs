//! The messages of master, worker and next master, for the fuzz targets.

use super::inheritance::{FromNext, ToNext};
use super::message::{FromWorker, ToWorker};
use super::worker_config::{WorkerBirth, WorkerConfig};
use crate::proc::fuzzing::message;

/// A datagram with a message of one of these types.
pub(crate) fn message_of(kind: u8, datagram: &[u8]) {
    match kind {
        0 => message::<ToWorker>(datagram),
        1 => message::<FromWorker>(datagram),
        2 => message::<WorkerConfig>(datagram),
        3 => message::<WorkerBirth>(datagram),
        4 => message::<ToNext>(datagram),
        _ => message::<FromNext>(datagram),
    }
}
