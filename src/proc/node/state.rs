//! What a master knows of one process.

use std::collections::{BTreeMap, HashMap};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Weak};

use nix::sys::epoll::EpollFlags;

use super::{Identity, Node, OnBirth, OnExit, OnGone, OnSync};
use crate::proc::error::Error;
use crate::proc::exit::Exit;
use crate::proc::failure::Failure;
use crate::proc::hub::{Hub, Token};
use crate::proc::message::Ticket;
use crate::proc::outbox::Outbox;

#[derive(Default)]
pub(super) struct State {
    pub(super) link: Link,
    /// The hub's watch over the link, and for which events.
    pub(super) watched: Option<(Token, EpollFlags)>,
    /// The hub is to call again, whether or not anything comes.
    pub(super) reminded: bool,
    pub(super) outbox: Outbox,
    /// The last ticket given out; 0 if the process was never asked for an answer.
    pub(super) tickets: Ticket,
    pub(super) children: HashMap<Ticket, Weak<Node>>,
    pub(super) syncs: BTreeMap<Ticket, Result<(), Failure>>,
    pub(super) on_sync: HashMap<Ticket, OnSync>,
    pub(super) handover: Handover,
    /// Another process forks it, and answers how that went or ends.
    pub(super) has_parent: bool,
    /// Nobody is left to take the socket.
    pub(super) socket_unwanted: bool,
    pub(super) birth: Birth,
    pub(super) exit: Option<Exit>,
    /// The hub's watch over the pidfd.
    pub(super) exit_watched: Option<Token>,
    /// Threads in [`Node::wait`] that are to be woken at every change …
    pub(super) waiters: usize,
    /// … and those for whom the birth changes nothing.
    pub(super) waiters_for_end: usize,
    pub(super) on_birth: Vec<OnBirth>,
    pub(super) on_gone: Vec<OnGone>,
    pub(super) on_exit: Vec<OnExit>,
    /// A node that still has something to send lives on without handles …
    pub(super) unsent: Option<Arc<Node>>,
    /// … and so does one whose end somebody wants to be told.
    pub(super) awaited: Option<Arc<Node>>,
}

/// The master's end of the conversation.
#[derive(Default)]
pub(super) enum Link {
    /// The fork that makes this process was not sent yet.
    #[default]
    Unborn,
    Open(OwnedFd),
    /// An entry point has the process: the socket is the user's.
    Free(OwnedFd),
    Taken,
    Closed,
}

/// Whether the process was given to other code, and when its socket is free for the user.
#[derive(Default, PartialEq, Eq, Clone, Copy)]
pub(super) enum Handover {
    #[default]
    No,
    /// Nothing is to come from the process before the user's own messages: free once all is sent.
    OnceSent,
    /// Answers may still be on their way: free once the process says so.
    OnceAnnounced,
}

/// What is known of the process's beginning.
#[derive(Default)]
pub(super) enum Birth {
    #[default]
    Awaited,
    Born(Identity),
    Failed(Error),
}

impl State {
    pub(super) fn next_ticket(&mut self) -> Ticket {
        self.tickets += 1;
        self.tickets
    }

    /// This state, if instructions can still be sent to the process.
    pub(super) fn usable(&mut self, operation: &'static str) -> Result<&mut State, Error> {
        match (&self.birth, &self.link, self.handover) {
            (Birth::Failed(error), ..) => Err(error.clone()),
            (_, Link::Unborn | Link::Open(_), Handover::No) => Ok(self),
            _ => Err(Error::Gone { operation, exit: self.exit.clone().map(Box::new) }),
        }
    }

    /// The error of whoever waits for a process that will say nothing more.
    pub(super) fn gone(&self, operation: &'static str) -> Option<Error> {
        // Of a process that was there the exit comes soon, and makes the better error.
        let is_gone = match &self.birth {
            Birth::Failed(error) => return Some(error.clone()),
            // What it has said before is still read: its end, told by its parent, may come in first. The end of the
            // conversation follows, since nobody but the process itself holds its end.
            Birth::Born(_) => self.exit.is_some() && !(matches!(self.link, Link::Open(_)) && self.watched.is_some()),
            // Its socket may be closed before the process that was to fork it says why.
            Birth::Awaited => self.exit.is_some() || (matches!(self.link, Link::Closed) && !self.has_parent),
        };
        is_gone.then(|| Error::Gone { operation, exit: self.exit.clone().map(Box::new) })
    }

    /// How it ended, or why it never began.
    pub(super) fn end(&self) -> Option<Result<Exit, Error>> {
        match (&self.exit, &self.birth) {
            (Some(exit), _) => Some(Ok(exit.clone())),
            (None, Birth::Failed(error)) => Some(Err(error.clone())),
            (None, _) => None,
        }
    }

    pub(super) fn unwatch(&mut self) {
        self.reminded = false;
        // In this order: a program that has watched nothing must not get the hub's thread by a drop.
        if let (Some((token, _)), Link::Open(socket)) = (self.watched.take(), &self.link)
            && let Ok(hub) = Hub::get()
        {
            hub.forget(token, socket);
        }
    }

    /// What was needed to see the end is needed no more.
    pub(super) fn unwatch_exit(&mut self) {
        let (token, Birth::Born((_, pidfd))) = (self.exit_watched.take(), &mut self.birth) else {
            return;
        };
        if let (Some(token), Some(pidfd)) = (token, pidfd.take())
            && let Ok(hub) = Hub::get()
        {
            hub.forget(token, pidfd.as_fd());
        }
    }
}
