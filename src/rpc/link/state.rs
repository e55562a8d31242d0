//! What the holders of a link share, under its lock.

use std::sync::Arc;
use std::task::Waker;
use std::time::Instant;

use nix::sys::epoll::EpollFlags;

use super::{Completion, Link, OnError, OnReady};
use crate::proc::hub::Token;
use crate::proc::{self, Exit};
use crate::rpc::conversation::{Conversation, Ended};
use crate::rpc::error::Lost;
use crate::rpc::wire::Outbox;

pub(in crate::rpc) struct State {
    pub(super) books: Conversation<Completion>,
    pub(super) outbox: Outbox,
    /// Somebody is sending, without the lock.
    pub(super) sending: bool,
    pub(super) no_room: bool,
    /// The kernel lacks something; the hub tries again then.
    pub(super) send_after: Option<Instant>,
    pub(super) unsendable: bool,
    pub(super) sent_singly: u32,
    pub(super) flush_asked: bool,
    /// Somebody receives and delivers, without the lock.
    pub(super) receiving: bool,
    /// Somebody calls callbacks, without the lock: one at a time.
    pub(super) delivering: bool,
    /// Somebody else waits until he may.
    pub(super) delivery_awaited: bool,
    /// Calls that nobody waits for any more since their deadline, to be told so by whoever delivers.
    pub(super) overdue: Vec<Ended<Completion>>,
    /// For the earliest deadline the hub is reminded then.
    pub(super) reminded_for: Option<Instant>,
    /// The hub does not receive: a caller does, or has done so a moment ago and is likely to come back.
    pub(super) hub_rests: bool,
    pub(super) watch: Option<(Token, EpollFlags)>,
    /// Since the last look of the hub.
    pub(super) called_since: bool,
    pub(super) look_at: Option<Instant>,
    /// Callers who want to receive, or wait for the end.
    pub(super) parked: Vec<Waker>,
    /// Callers who found no room.
    pub(super) for_room: Vec<Waker>,
    /// When the first of them waits no longer, if that is for the hub to tell.
    pub(super) room_due: Option<Instant>,
    /// No further call will come: the process is told so when all is sent.
    pub(super) closing: bool,
    pub(super) told_closing: bool,
    /// The process's end of the socket is closed; its end should follow.
    pub(super) eof: Option<Instant>,
    pub(super) exit: Option<Result<Exit, proc::Error>>,
    pub(super) end: Option<Lost>,
    /// Everybody has been told of the end.
    pub(super) end_told: bool,
    pub(super) on_error: Option<OnError>,
    pub(super) on_ready: Option<OnReady>,
    pub(super) on_end: Option<OnError>,
    /// A link whose client was dropped lives on until the process has finished.
    pub(super) keep: Option<Arc<Link>>,
}

impl State {
    pub(super) fn new(outstanding: usize, outbox: Outbox) -> State {
        State {
            books: Conversation::new(outstanding),
            outbox,
            sending: false,
            no_room: false,
            send_after: None,
            unsendable: false,
            sent_singly: 0,
            flush_asked: false,
            receiving: false,
            delivering: false,
            delivery_awaited: false,
            overdue: Vec::new(),
            reminded_for: None,
            hub_rests: false,
            watch: None,
            called_since: false,
            look_at: None,
            parked: Vec::new(),
            for_room: Vec::new(),
            room_due: None,
            closing: false,
            told_closing: false,
            eof: None,
            exit: None,
            end: None,
            end_told: false,
            on_error: None,
            on_ready: None,
            on_end: None,
            keep: None,
        }
    }

    /// Whether the process has left, or has left the conversation, as it was asked to.
    pub(in crate::rpc) fn finished_well(&self) -> bool {
        let is_good = match &self.end {
            Some(Lost::Died(exit)) => exit.success(),
            Some(Lost::Left) => true,
            _ => false,
        };
        self.told_closing && is_good
    }

    /// How the process has ended, if that is known.
    pub(super) fn lost_by_exit(&self) -> Option<Lost> {
        Some(match self.exit.clone()? {
            Ok(exit) => Lost::Died(Box::new(exit)),
            Err(error) => Lost::NeverBorn(Box::new(error)),
        })
    }

    pub(super) fn is_idle(&self) -> bool {
        self.books.outstanding() == 0
    }

    /// How all has ended, once everybody has been told.
    pub(in crate::rpc) fn ended(&self) -> Option<&Lost> {
        self.end.as_ref().filter(|_| self.end_told)
    }

    /// Those who wait for room, to be woken without the lock.
    pub(super) fn take_for_room(&mut self) -> Vec<Waker> {
        self.room_due = None;
        std::mem::take(&mut self.for_room)
    }
}
