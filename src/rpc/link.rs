//! The master's side of a conversation: what the books (`conversation.rs`) decide, carried out on a socket.
//!
//! Whoever calls sends from its own thread, as far as the socket takes it; the hub sends the rest. One at a time
//! receives and delivers: the hub, or a caller who waits for a reply anyway and so spares a thread's wake-up. What comes in
//! is delivered in its order, outside the lock.

mod delivering;
mod ending;
mod receiving;
mod sending;
mod state;
pub(super) mod waiting;
mod watching;

use std::borrow::Cow;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::task::Waker;
use std::time::Instant;

use nix::sys::epoll::EpollFlags;

pub(super) use self::delivering::{delivering, in_callback, wake_all};
use self::state::State;
use super::contract::{Contract, Encoded, Hello, PROTOCOL, Wording, encode_own};
use super::conversation::Ended;
use super::error::{Error, Lost};
use super::lanes::{Arrivals, Lanes};
use super::options::Limits;
use super::wire::{CallId, Kind, Outbox};
use crate::proc::hub::{Hub, call_back};
use crate::proc::{self, Running};

/// So many calls are sent one by one before they are gathered, until something is heard of the process again.
const SENT_SINGLY: u32 = 8;

/// What became of a call.
pub(super) enum Outcome<'a> {
    Reply { bytes: Cow<'a, [u8]>, fds: Vec<OwnedFd> },
    Failed(Error),
}

/// Called once with what became of a call; an error says that the reply cannot be decoded.
pub(super) type Completion = Box<dyn FnOnce(Outcome<'_>) -> Result<(), Lost> + Send>;

/// Called with each event; an error says that it cannot be decoded.
pub(super) type OnEvent = Box<dyn FnMut(Cow<'_, [u8]>, Vec<OwnedFd>) -> Result<(), String> + Send>;

/// Called once, when the process is ready for calls.
pub(super) type OnReady = Box<dyn FnOnce() + Send>;

/// Called once, when the conversation has ended, or only when it has ended in another way than by a finish.
pub(super) type OnError = Box<dyn FnOnce(Lost) + Send>;

pub(super) struct Link {
    myself: Weak<Link>,
    socket: OwnedFd,
    running: Arc<Running>,
    stake: Stake,
    hub: &'static Hub,
    ours: Contract,
    limits: Limits,
    /// For calls.
    lanes: Arc<Lanes>,
    /// For replies and events; whoever receives has them.
    arrivals: Mutex<Arrivals>,
    state: Mutex<State>,
    on_event: Mutex<Option<OnEvent>>,
    /// Told when the right to deliver is free again and somebody waits for it.
    delivered: Condvar,
}

/// What a conversation is to its process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stake {
    /// All that it does: when the conversation ends, so does the process.
    Whole,
    /// Something beside its work, which goes on without it.
    Part,
}

/// Whether a call may wait for others to travel with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Haste {
    AtOnce,
    Gather,
}

/// Why a call did not begin.
pub(super) enum Refused {
    /// There is no room now.
    Full(Completion, Encoded),
    /// There never will be; the message comes back.
    Never(Box<Error>, Encoded),
}

impl Link {
    pub(super) fn open(running: Running, ours: Contract, limits: Limits) -> Result<Arc<Link>, proc::Error> {
        let socket = running.socket()?;
        Link::over(socket, Arc::new(running), Stake::Whole, ours, limits)
    }

    /// A conversation over this socket, whose other end the process has.
    pub(super) fn over(
        socket: OwnedFd,
        running: Arc<Running>,
        stake: Stake,
        ours: Contract,
        limits: Limits,
    ) -> Result<Arc<Link>, proc::Error> {
        let hub = Hub::of_calls().map_err(|error| proc::Error::system("watch the process", error))?;
        let mut outbox = Outbox::default();
        let hello = Hello { protocol: PROTOCOL, contract: ours.clone(), limit: limits.message };
        outbox.push(Kind::Hello, CallId::default(), encode_own(&hello), 0);
        let link = Arc::new_cyclic(|myself| Link {
            myself: Weak::clone(myself),
            socket,
            running,
            stake,
            hub,
            ours,
            limits,
            lanes: Arc::default(),
            arrivals: Mutex::default(),
            state: Mutex::new(State::new(limits.outstanding, outbox)),
            on_event: Mutex::new(None),
            delivered: Condvar::new(),
        });
        // It starts the process's `init`, and fits into the empty socket.
        drop(link.flush(link.state()));
        Ok(link)
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// For calls.
    pub(super) fn lanes(&self) -> &Arc<Lanes> {
        &self.lanes
    }

    /// Writes a call.
    pub(super) fn encode<Call>(&self, wording: Wording<Call>, call: &Call) -> Result<Encoded, Error> {
        wording.encode(call, self.limits.message, &self.lanes)
    }

    /// Nothing is received before somebody wants to hear it.
    fn start(&self) -> Result<(), Error> {
        let mut state = self.state();
        if state.watch.is_some() || state.end.is_some() {
            return Ok(());
        }
        let source: Weak<Link> = Weak::clone(&self.myself);
        let token = self.hub.watch(self.socket.as_fd(), EpollFlags::EPOLLIN, source);
        let token = token.map_err(|error| Error::system("watch the process's socket", error))?;
        state.watch = Some((token, EpollFlags::EPOLLIN));
        if let Some(at) = state.send_after {
            // It was the first word that could not be sent, when there was nobody yet to be reminded.
            self.remind(&state, at);
        }
        drop(state);
        let myself = Weak::clone(&self.myself);
        self.running.on_exit(move |exit| {
            if let Some(link) = myself.upgrade() {
                link.see_exit(exit);
            }
        });
        Ok(())
    }

    /// A call begins. With a deadline, its completion hears of [`Error::TimedOut`] then.
    pub(super) fn begin(
        &self,
        completion: Completion,
        message: Encoded,
        haste: Haste,
        deadline: Option<Instant>,
    ) -> Result<CallId, Refused> {
        let mut state = self.state();
        if state.watch.is_none() && state.end.is_none() {
            drop(state);
            if let Err(error) = self.start() {
                return Err(Refused::Never(Box::new(error), message));
            }
            state = self.state();
        }
        if let Some(why) = &state.end {
            let error = Error::Lost { may_have_run: false, why: why.clone() };
            return Err(Refused::Never(Box::new(error), message));
        }
        if state.outbox.weight() >= self.limits.queued {
            return Err(Refused::Full(completion, message));
        }
        let (id, number) = match state.books.begin(completion, deadline) {
            Ok(begun) => begun,
            Err(completion) => return Err(Refused::Full(completion, message)),
        };
        state.outbox.push(Kind::Call, id, message, number);
        if deadline.is_some() {
            self.watch_deadlines(&mut state);
        }
        self.send_soon(state, haste);
        Ok(id)
    }

    /// Wakes this one when a call may begin that could not, and at the deadline; false, if it may by now.
    pub(super) fn wait_for_room(&self, waker: Waker, deadline: Option<Instant>) -> bool {
        let mut state = self.state();
        let full = state.end.is_none() && (!state.books.has_room() || state.outbox.weight() >= self.limits.queued);
        if full {
            state.for_room.push(waker);
            state.room_due = state.room_due.into_iter().chain(deadline).min();
            self.watch_deadlines(&mut state);
            self.let_hub_receive(&mut state);
        }
        full
    }

    /// The call is not waited for any more, and the process is told so. None, if it has ended before.
    pub(super) fn cancel(&self, id: CallId) -> Option<Ended<()>> {
        let mut state = self.state();
        let Ended { token, may_have_run } = state.books.cancel(id)?;
        let wakers = state.take_for_room();
        state.outbox.push(Kind::Cancel, id, Encoded::default(), 0);
        self.send_soon(state, Haste::AtOnce);
        drop(token);
        wake_all(wakers);
        Some(Ended { token: (), may_have_run })
    }

    /// The process is told that nobody waits for the call any more; its end is heard of all the same.
    pub(super) fn discourage(&self, id: CallId) {
        let mut state = self.state();
        state.outbox.push(Kind::Cancel, id, Encoded::default(), 0);
        self.send_soon(state, Haste::AtOnce);
    }

    pub(super) fn running(&self) -> &Running {
        &self.running
    }

    /// Calls `handler` once, when the process has said its first word, which it does after its `init`. Set it, and the
    /// one for the end, before the one for events, with which the hub begins to listen.
    pub(super) fn set_on_ready(&self, handler: impl FnOnce() + Send + 'static) {
        self.state().on_ready = Some(Box::new(handler));
    }

    /// Calls `handler` once, however the conversation ends, after every outstanding call has heard of it.
    pub(super) fn set_on_end(&self, handler: impl FnOnce(Lost) + Send + 'static) {
        self.state().on_end = Some(Box::new(handler));
    }

    pub(super) fn set_on_event(&self, handler: OnEvent) -> Result<(), Error> {
        *self.on_event.lock().unwrap_or_else(PoisonError::into_inner) = Some(handler);
        self.start()
    }

    pub(super) fn set_on_error(&self, handler: OnError) -> Result<(), Error> {
        let mut state = self.state();
        match state.end.clone() {
            Some(why) if !state.finished_well() => {
                drop(state);
                delivering(|| call_back(|| handler(why)));
                Ok(())
            }
            Some(_) => Ok(()),
            None => {
                let before = state.on_error.replace(handler);
                drop(state);
                call_back(|| drop(before));
                self.start()
            }
        }
    }

    pub(super) fn outstanding(&self) -> usize {
        self.state().books.outstanding()
    }

    /// No further call will come.
    pub(super) fn close(&self) {
        // ENOSPC: nobody watches, so the process's end is not awaited either; it is told all the same.
        let watched = self.start().is_ok();
        let mut state = self.state();
        state.closing = true;
        if state.end.is_none() && watched {
            state.keep = self.myself.upgrade();
        }
        state.hub_rests = false;
        let mut state = self.flush(state);
        self.update_watch(&mut state);
    }
}
