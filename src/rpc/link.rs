//! The master's side of a conversation: what the books (`conversation.rs`) decide, carried out on a socket.
//!
//! Whoever calls sends from its own thread, as far as the socket takes it; the hub sends the rest. One at a time
//! receives and delivers: the hub, or a caller who waits for a reply anyway and so spares a thread's wake-up. What comes in
//! is delivered in its order, outside the lock.

mod receiving;
mod sending;
pub(super) mod waiting;

use std::cell::Cell;
use std::os::fd::{AsFd, OwnedFd};
use std::panic::{self, AssertUnwindSafe};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::Waker;
use std::time::{Duration, Instant};

use nix::libc;
use nix::sys::epoll::EpollFlags;

use super::contract::{Contract, Encoded, Hello, PROTOCOL, encode_own};
use super::conversation::{Conversation, Ended};
use super::error::{Error, Lost};
use super::options::Limits;
use super::wire::{CallId, Kind, Outbox};
use crate::proc::hub::{Hub, Source, Token};
use crate::proc::{self, Exit, Running};
use crate::sys::seqpacket;

/// So many calls are sent one by one before they are gathered, until something is heard of the process again.
const SENT_SINGLY: u32 = 8;

/// So long after the last waiting caller has gone, the hub takes the receiving up again if nothing else is outstanding.
const LINGER: Duration = Duration::from_millis(2);

/// A process that has closed its socket ends; so long is waited for that.
const END_WITHIN: Duration = Duration::from_secs(2);

/// So long after the kernel has lacked something it is asked again.
const ASK_AGAIN: Duration = Duration::from_millis(5);

/// What became of a call.
pub(super) enum Outcome<'a> {
    Reply { bytes: &'a [u8], fds: Vec<OwnedFd> },
    Failed(Error),
}

/// Called once with what became of a call; an error says that the reply cannot be decoded.
pub(super) type Completion = Box<dyn FnOnce(Outcome<'_>) -> Result<(), Lost> + Send>;

/// Called with each event; an error says that it cannot be decoded.
pub(super) type OnEvent = Box<dyn FnMut(&[u8], Vec<OwnedFd>) -> Result<(), String> + Send>;

/// Called once, when the conversation has ended in another way than by a finish.
pub(super) type OnError = Box<dyn FnOnce(Lost) + Send>;

pub(super) struct Link {
    myself: Weak<Link>,
    socket: OwnedFd,
    running: Arc<Running>,
    hub: &'static Hub,
    ours: Contract,
    limits: Limits,
    state: Mutex<State>,
    on_event: Mutex<Option<OnEvent>>,
}

pub(super) struct State {
    books: Conversation<Completion>,
    outbox: Outbox,
    /// Somebody is sending, without the lock.
    sending: bool,
    no_room: bool,
    /// The kernel lacks something; the hub tries again then.
    send_after: Option<Instant>,
    unsendable: bool,
    sent_singly: u32,
    flush_asked: bool,
    /// Somebody receives and delivers, without the lock.
    receiving: bool,
    /// The hub does not receive: a caller does, or has done so a moment ago and is likely to come back.
    hub_rests: bool,
    watch: Option<(Token, EpollFlags)>,
    /// Since the last look of the hub.
    called_since: bool,
    look_at: Option<Instant>,
    /// Callers who want to receive, or wait for the end.
    parked: Vec<Waker>,
    /// Callers who found no room.
    for_room: Vec<Waker>,
    /// No further call will come: the process is told so when all is sent.
    closing: bool,
    told_closing: bool,
    /// The process's end of the socket is closed; its end should follow.
    eof: Option<Instant>,
    exit: Option<Result<Exit, proc::Error>>,
    end: Option<Lost>,
    /// Everybody has been told of the end.
    end_told: bool,
    on_error: Option<OnError>,
    /// A link whose client was dropped lives on until the process has finished.
    keep: Option<Arc<Link>>,
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
    Never(Box<Error>),
}

thread_local! {
    static IN_CALLBACK: Cell<bool> = const { Cell::new(false) };
}

/// Whether this thread is inside a callback, where it must not wait.
pub(super) fn in_callback() -> bool {
    IN_CALLBACK.get()
}

/// Calls a user's callback. A panic has been printed by its hook; it is the callback's own, and everybody else is served on.
pub(super) fn call_back(callback: impl FnOnce()) {
    let _ = panic::catch_unwind(AssertUnwindSafe(callback));
}

/// Runs what calls callbacks.
fn delivering<T>(deliver: impl FnOnce() -> T) -> T {
    let outer = IN_CALLBACK.replace(true);
    let delivered = deliver();
    IN_CALLBACK.set(outer);
    delivered
}

impl Link {
    pub(super) fn open(running: Running, ours: Contract, limits: Limits) -> Result<Arc<Link>, proc::Error> {
        let hub = Hub::get().map_err(|error| proc::Error::system("watch the process", error))?;
        let socket = running.socket()?;
        let mut outbox = Outbox::default();
        let hello = Hello { protocol: PROTOCOL, contract: ours.clone(), limit: limits.message };
        outbox.push(Kind::Hello, CallId::default(), encode_own(&hello), 0);
        let link = Arc::new_cyclic(|myself| Link {
            myself: Weak::clone(myself),
            socket,
            running: Arc::new(running),
            hub,
            ours,
            limits,
            state: Mutex::new(State::new(limits.outstanding, outbox)),
            on_event: Mutex::new(None),
        });
        // It starts the process's `init`, and fits into the empty socket.
        drop(link.flush(link.state()));
        Ok(link)
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn message_limit(&self) -> u64 {
        self.limits.message
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
        drop(state);
        let myself = Weak::clone(&self.myself);
        self.running.on_exit(move |exit| {
            if let Some(link) = myself.upgrade() {
                link.see_exit(exit);
            }
        });
        Ok(())
    }

    pub(super) fn begin(&self, completion: Completion, message: Encoded, haste: Haste) -> Result<CallId, Refused> {
        let mut state = self.state();
        if state.watch.is_none() && state.end.is_none() {
            drop(state);
            self.start().map_err(|error| Refused::Never(Box::new(error)))?;
            state = self.state();
        }
        if let Some(why) = &state.end {
            return Err(Refused::Never(Box::new(Error::Lost { may_have_run: false, why: why.clone() })));
        }
        if state.outbox.weight() >= self.limits.queued {
            return Err(Refused::Full(completion, message));
        }
        let (id, number) = match state.books.begin(completion) {
            Ok(begun) => begun,
            Err(completion) => return Err(Refused::Full(completion, message)),
        };
        state.outbox.push(Kind::Call, id, message, number);
        self.send_soon(state, haste);
        Ok(id)
    }

    /// Wakes this one when a call may begin that could not; false, if it may by now.
    pub(super) fn wait_for_room(&self, waker: Waker) -> bool {
        let mut state = self.state();
        let full = state.end.is_none() && (!state.books.has_room() || state.outbox.weight() >= self.limits.queued);
        if full {
            state.for_room.push(waker);
            self.let_hub_receive(&mut state);
        }
        full
    }

    /// The call is not waited for any more, and the process is told so. None, if it has ended before.
    pub(super) fn cancel(&self, id: CallId) -> Option<Ended<()>> {
        let mut state = self.state();
        let Ended { token, may_have_run } = state.books.cancel(id)?;
        let wakers = std::mem::take(&mut state.for_room);
        state.outbox.push(Kind::Cancel, id, Encoded::default(), 0);
        self.send_soon(state, Haste::AtOnce);
        drop(token);
        wakers.into_iter().for_each(Waker::wake);
        Some(Ended { token: (), may_have_run })
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
                state.on_error = Some(handler);
                drop(state);
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

    /// The end of all: every call ends, each once, in the order in which they were made.
    fn end(&self, why: Lost) {
        let mut state = self.state();
        if state.end.is_some() {
            return;
        }
        let calls = state.books.end();
        let lost_none = calls.is_empty();
        state.end = Some(why.clone());
        state.outbox.clear();
        let on_error = state.on_error.take().filter(|_| !(lost_none && state.finished_well()));
        let keep = state.keep.take();
        let gone = state.exit.is_some();
        self.update_watch(&mut state);
        drop(state);
        seqpacket::shut(self.socket.as_fd());
        if !gone {
            self.kill();
        }
        delivering(|| {
            for Ended { token, may_have_run } in calls {
                // An outcome that is no reply has nothing to decode.
                let _ = token(Outcome::Failed(Error::Lost { may_have_run, why: why.clone() }));
            }
            if let Some(on_error) = on_error {
                call_back(|| on_error(why));
            }
        });
        let mut state = self.state();
        state.end_told = true;
        let parked = std::mem::take(&mut state.parked);
        let for_room = std::mem::take(&mut state.for_room);
        drop(state);
        parked.into_iter().chain(for_room).for_each(Waker::wake);
        drop(keep);
    }

    /// What runs in the process is not to be trusted any more.
    fn kill(&self) {
        let running = Arc::clone(&self.running);
        // On the hub's thread its birth must not be waited for.
        self.running.on_birth(move |_| {
            // It may have ended by itself, which is as good.
            let _ = running.kill(libc::SIGKILL);
        });
    }

    fn see_exit(&self, exit: Result<Exit, proc::Error>) {
        let mut state = self.state();
        state.exit = Some(exit);
        if state.eof.is_some() {
            drop(state);
            return self.end_by_exit();
        }
        state.hub_rests = false;
        self.update_watch(&mut state);
        drop(state);
        // Its children may still hold the socket. What it has said itself is there, and is received before the end.
        seqpacket::shut(self.socket.as_fd());
    }

    fn end_by_exit(&self) {
        let exit = self.state().exit.clone();
        match exit {
            Some(Ok(exit)) => self.end(Lost::Died(Box::new(exit))),
            Some(Err(error)) => self.end(Lost::NeverBorn(Box::new(error))),
            None => {}
        }
    }

    /// Watches for what is wanted of the hub at this moment.
    fn update_watch(&self, state: &mut State) {
        let Some((token, before)) = state.watch else { return };
        if state.end.is_some() {
            self.hub.forget(token, self.socket.as_fd());
            state.watch = None;
            return;
        }
        let mut events = EpollFlags::empty();
        if !state.hub_rests && state.eof.is_none() {
            events |= EpollFlags::EPOLLIN;
        }
        if state.no_room && !state.outbox.is_empty() {
            events |= EpollFlags::EPOLLOUT;
        }
        if events.is_empty() {
            // A hangup is told even to who asks for nothing: this once, and not over and over.
            events = EpollFlags::EPOLLONESHOT;
        }
        if events != before && self.hub.change(token, self.socket.as_fd(), events).is_ok() {
            state.watch = Some((token, events));
        }
    }

    /// Has the hub look after this link then.
    fn remind(&self, state: &State, at: Instant) {
        if let Some((token, _)) = state.watch {
            // The hub's own eventfd always takes a further 1.
            let _ = self.hub.remind(token, at);
        }
    }
}

impl State {
    fn new(outstanding: usize, outbox: Outbox) -> State {
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
            hub_rests: false,
            watch: None,
            called_since: false,
            look_at: None,
            parked: Vec::new(),
            for_room: Vec::new(),
            closing: false,
            told_closing: false,
            eof: None,
            exit: None,
            end: None,
            end_told: false,
            on_error: None,
            keep: None,
        }
    }

    /// Whether the process has left as it was asked to.
    fn finished_well(&self) -> bool {
        self.told_closing && matches!(&self.end, Some(Lost::Died(exit)) if exit.success())
    }

    fn is_idle(&self) -> bool {
        self.books.outstanding() == 0
    }

    /// How all has ended, once everybody has been told.
    pub(super) fn ended(&self) -> Option<&Lost> {
        self.end.as_ref().filter(|_| self.end_told)
    }
}

impl Source for Link {
    fn ready(self: Arc<Self>, _: Token, events: EpollFlags) {
        let mut state = self.state();
        if events.is_empty() {
            let late = self.look_after(&mut state);
            if let Some(why) = late {
                drop(state);
                return self.end(why);
            }
        }
        if events.contains(EpollFlags::EPOLLOUT) {
            state.no_room = false;
        }
        let mut state = self.flush(state);
        let arrived = events.intersects(EpollFlags::EPOLLIN | EpollFlags::EPOLLHUP | EpollFlags::EPOLLERR);
        if arrived && !state.receiving && state.eof.is_none() && state.end.is_none() {
            state.receiving = true;
            drop(state);
            self.receive_some();
            state = self.state();
            state.receiving = false;
        }
        self.update_watch(&mut state);
        let parked = std::mem::take(&mut state.parked);
        drop(state);
        parked.into_iter().for_each(Waker::wake);
    }
}

impl Link {
    /// What was to be done by now.
    fn look_after(&self, state: &mut State) -> Option<Lost> {
        let now = Instant::now();
        state.flush_asked = false;
        if state.send_after.is_some_and(|at| at <= now) {
            state.send_after = None;
        }
        if state.look_at.is_some_and(|at| at <= now) {
            state.look_at = None;
            if std::mem::take(&mut state.called_since) {
                self.look_later(state);
            } else if !state.receiving {
                state.hub_rests = false;
            }
        }
        let overdue = state.eof.is_some_and(|since| since + END_WITHIN <= now) && state.exit.is_none();
        overdue.then(|| Lost::Protocol { words: "it closed its socket and did not end".to_owned() })
    }

    /// Somebody waits for what comes in, and not by receiving it.
    fn let_hub_receive(&self, state: &mut State) {
        if !state.receiving {
            state.hub_rests = false;
            self.update_watch(state);
        }
    }

    fn look_later(&self, state: &mut State) {
        if state.look_at.is_none() {
            let at = Instant::now() + LINGER;
            state.look_at = Some(at);
            self.remind(state, at);
        }
    }
}
