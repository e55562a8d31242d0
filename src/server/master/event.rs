//! Everything that can happen to the master.

use std::os::fd::OwnedFd;

use super::desk::Question;
use super::worker::Unheard;
use crate::proc::{Error, Exit};
use crate::server::inheritance::FromNext;
use crate::server::listener::gate::Waiting;
use crate::server::message::FromWorker;
use crate::server::supervisor::StartFailure;
use crate::server::{Generation, WorkerId};

/// One event; all sources send into one channel.
#[derive(Debug)]
pub(super) enum Event {
    /// A signal came.
    Signal(i32),
    /// Somebody asks, at the control socket.
    Asked(Question),
    /// The queues of the listeners have been looked at.
    QueuesSeen(Waiting),
    /// A template's preload has ended well, or with these words.
    Preloaded { template: TemplateId, outcome: Result<(), String> },
    /// A template's process has ended.
    TemplateEnded { template: TemplateId, end: Result<Exit, Error> },
    /// A client waits on a listener, as the doorbell tells.
    ClientWaits,
    /// A worker's process exists.
    WorkerBorn { id: WorkerId, pid: i32 },
    /// A worker says something.
    WorkerSaid { id: WorkerId, message: FromWorker, unheard: Unheard },
    /// A worker lets itself be called over this socket.
    WorkerOffers { id: WorkerId, name: String, socket: OwnedFd },
    /// A worker has offered something that is refused for this reason.
    OfferRefused { id: WorkerId, why: &'static str },
    /// A worker has closed its socket.
    WorkerHungUp { id: WorkerId },
    /// A worker's process has ended; how, is told by the next event.
    WorkerGone { id: WorkerId },
    /// A worker's process has ended, or never came to be, for this reason.
    WorkerEnded { id: WorkerId, end: Result<Exit, StartFailure> },
    /// Something happens to the master that is to replace this one.
    NewMaster { pid: i32, what: NewMasterEvent },
    /// The master that was to replace this one could not be started.
    NoNewMaster { why: String },
    /// The master before this one leaves everything to this one.
    HandedOver(HandOver),
}

/// How a master hands over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum HandOver {
    /// It has said so.
    Said,
    /// It is gone.
    Gone,
}

/// What happens to a new master.
#[derive(Debug)]
pub(super) enum NewMasterEvent {
    /// It says something.
    Said(FromNext),
    /// It has closed the conversation.
    HungUp,
    /// Its process has ended.
    Ended(Exit),
}

/// One life of a generation's template: after a death the next one has the same generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TemplateId {
    pub(super) generation: Generation,
    pub(super) life: u32,
}
