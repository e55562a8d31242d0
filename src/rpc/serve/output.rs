//! What a process says: replies and events in the order in which they were made, several in one datagram where they come
//! faster than they are sent.

use std::cell::Cell;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::epoll::{Epoll, EpollEvent, EpollFlags};

use crate::proc::BoxError;
use crate::rpc::contract::{Encoded, Failed, Wording, encode_own, shortened};
use crate::rpc::error::Error;
use crate::rpc::lanes::Lanes;
use crate::rpc::options::LONGEST;
use crate::rpc::wire::{Batch, CallId, Kind, Outbox, Sent};
use crate::sys::clock::poll_timeout;
use crate::sys::seqpacket::{self, ASK_AGAIN};

/// Once so many bytes wait to be sent, whoever says more waits too.
const QUEUED: u64 = 4 << 20;

pub(super) struct Output {
    socket: OwnedFd,
    /// The longest message; known with the master's first word.
    limit: OnceLock<u64>,
    lanes: Arc<Lanes>,
    /// Whoever says something waits for room, but for a loop that must not.
    loop_: Option<Loop>,
    state: Mutex<State>,
    sent: Condvar,
}

/// A loop that waits for a socket together with other things, and never for room in it.
pub(crate) struct Loop {
    /// Watches the socket for what is wanted of it; the loop waits for this set.
    pub(crate) ready: Arc<Epoll>,
    /// Once so many bytes wait to be sent, no further event is taken.
    pub(crate) queued: u64,
}

#[derive(Default)]
struct State {
    outbox: Outbox,
    /// Events from before our first word, and their bytes.
    early: Vec<Encoded>,
    early_bytes: u64,
    greeted: bool,
    /// The kernel lacks something: it is asked again after [`ASK_AGAIN`], and not when there is room.
    lacking: bool,
    /// What a loop is told of, beside the end.
    watched_for: Option<EpollFlags>,
    /// Some thread is sending, without the lock; it sends what is added meanwhile too.
    sending: bool,
    /// Threads that wait for `sent`: without them its notification would be a system call after each reply for nothing.
    waiting: usize,
    /// There is nobody who could hear anything.
    gone: bool,
}

thread_local! {
    /// What this thread says is sent a moment later, by its own next [`Output::flush`].
    static HOLDING: Cell<bool> = const { Cell::new(false) };
}

/// Sets whether what this thread says is held until it flushes.
pub(super) fn hold(holding: bool) {
    HOLDING.set(holding);
}

impl Output {
    /// Of a process that does nothing else, and waits for room.
    pub(super) fn new(socket: OwnedFd) -> Arc<Output> {
        Arc::new(Output::of(socket, None))
    }

    /// Of a process with a loop, which is told when something has come, or when there is room for what is unsent.
    pub(super) fn in_loop(socket: OwnedFd, loop_: Loop) -> io::Result<Arc<Output>> {
        let output = Output::of(socket, Some(loop_));
        if let Some(Loop { ready, .. }) = &output.loop_ {
            ready.add(&output.socket, EpollEvent::new(EpollFlags::EPOLLIN, 0))?;
            output.state().watched_for = Some(EpollFlags::EPOLLIN);
        }
        Ok(Arc::new(output))
    }

    fn of(socket: OwnedFd, loop_: Option<Loop>) -> Output {
        let (limit, lanes, state, sent) = (OnceLock::new(), Arc::default(), Mutex::default(), Condvar::new());
        Output { socket, limit, lanes, loop_, state, sent }
    }

    pub(super) fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    pub(super) fn limit(&self) -> u64 {
        self.limit.get().copied().unwrap_or(LONGEST)
    }

    /// The master has said how long a message may be.
    pub(super) fn set_limit(&self, limit: u64) {
        // It says so once.
        let _ = self.limit.set(limit);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn is_gone(&self) -> bool {
        self.state().gone
    }

    /// Says our first word, and then what was made before.
    pub(super) fn greet(&self, hello: Encoded) {
        let mut state = self.state();
        state.greeted = true;
        state.outbox.push(Kind::Hello, CallId::default(), hello, 0);
        let early = std::mem::take(&mut state.early);
        state.early_bytes = 0;
        // When they were made, nobody knew the limit.
        for event in early.into_iter().filter(|event| event.length <= self.limit()) {
            state.outbox.push(Kind::Event, CallId::default(), event, 0);
        }
        self.send(state);
    }

    /// Says an event: at once, or, in a loop, as soon as there is room.
    fn tell(&self, event: Encoded) -> Result<(), Error> {
        let mut state = self.state();
        if state.gone {
            return Ok(());
        }
        if let Some(Loop { queued, .. }) = &self.loop_ {
            if state.outbox.weight() + state.early_bytes >= *queued {
                return Err(Error::Full);
            }
            if !state.greeted {
                state.early_bytes += event.length;
                state.early.push(event);
                return Ok(());
            }
        }
        drop(state);
        self.say(Kind::Event, CallId::default(), event);
        Ok(())
    }

    /// Whether something waits for room, and whether for something else that the kernel lacks.
    pub(super) fn unsent(&self) -> Option<Unsent> {
        let state = self.state();
        match state.outbox.is_empty() {
            true => None,
            false if state.lacking => Some(Unsent::ForWant),
            false => Some(Unsent::ForRoom),
        }
    }

    /// The conversation is over for us. The other end hears it, and the loop nothing more.
    pub(super) fn leave(&self) {
        let mut state = self.state();
        state.gone = true;
        state.outbox.clear();
        state.early = Vec::new();
        if let Some(Loop { ready, .. }) = &self.loop_ {
            // It is there: the socket is still open.
            let _ = ready.delete(&self.socket);
        }
        seqpacket::shut(self.socket.as_fd());
    }

    /// Says something. It waits while the master does not listen, unless a loop sends the rest.
    pub(super) fn say(&self, kind: Kind, id: CallId, message: Encoded) {
        let mut state = self.state();
        if state.gone {
            return;
        }
        state.outbox.push(kind, id, message, 0);
        if !HOLDING.get() || state.outbox.has_full_batch() {
            self.send(state);
        }
    }

    /// Answers a call.
    pub(super) fn reply<Reply>(&self, id: CallId, wording: Wording<Reply>, reply: &Result<Reply, BoxError>) {
        match reply {
            Ok(reply) => match wording.encode(reply, self.limit(), &self.lanes) {
                Ok(message) => self.say(Kind::Reply, id, message),
                Err(error) => self.fail(id, Failed::Reply { words: words_of(&error) }),
            },
            Err(error) => self.fail(id, Failed::Handler { words: words_of(error.as_ref()) }),
        }
    }

    pub(super) fn fail(&self, id: CallId, failed: Failed) {
        self.say(Kind::Failed, id, encode_own(&failed));
    }

    /// Sends what was held.
    pub(super) fn flush(&self) {
        self.send(self.state());
    }

    fn send<'a>(&'a self, mut state: MutexGuard<'a, State>) {
        if state.sending {
            while self.loop_.is_none() && state.outbox.weight() > QUEUED && !state.gone {
                state.waiting += 1;
                state = self.sent.wait(state).unwrap_or_else(PoisonError::into_inner);
                state.waiting -= 1;
            }
            return;
        }
        state.sending = true;
        state.lacking = false;
        while let Some(mut batch) = state.outbox.pop() {
            drop(state);
            let sent = match &self.loop_ {
                None => self.send_waiting(&mut batch),
                Some(_) => batch.send(self.socket.as_fd()),
            };
            state = self.state();
            match sent {
                Sent::Whole => {}
                Sent::Never => {
                    state.gone = true;
                    state.outbox.clear();
                }
                // It was left meanwhile.
                Sent::NoRoom | Sent::Later if state.gone => {}
                unsent @ (Sent::NoRoom | Sent::Later) => {
                    state.lacking = matches!(unsent, Sent::Later);
                    state.outbox.unpop(batch);
                    break;
                }
            }
            if state.waiting > 0 {
                self.sent.notify_all();
            }
        }
        state.sending = false;
        self.update_loop(&mut state);
    }

    fn send_waiting(&self, batch: &mut Batch) -> Sent {
        loop {
            match batch.send(self.socket.as_fd()) {
                Sent::NoRoom => wait_for_room(self.socket.as_fd(), PollTimeout::NONE),
                Sent::Later => wait_for_room(self.socket.as_fd(), poll_timeout(ASK_AGAIN)),
                sent => return sent,
            }
        }
    }

    /// What has come waits while something is unsent: so replies never pile up.
    fn update_loop(&self, state: &mut State) {
        let Some(Loop { ready, .. }) = &self.loop_ else { return };
        let wanted = match (state.outbox.is_empty(), state.lacking) {
            (true, _) => EpollFlags::EPOLLIN,
            (false, false) => EpollFlags::EPOLLOUT,
            (false, true) => EpollFlags::empty(),
        };
        let changes = state.watched_for != Some(wanted);
        if changes && ready.modify(&self.socket, &mut EpollEvent::new(wanted, 0)).is_ok() {
            state.watched_for = Some(wanted);
        }
    }
}

/// For what a loop's unsent words wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unsent {
    /// The loop is told.
    ForRoom,
    /// It is told by nobody, and tries again.
    ForWant,
}

/// Waits until the socket takes more; with a limit, that long, since the socket is not what lacks.
fn wait_for_room(socket: BorrowedFd<'_>, limit: PollTimeout) {
    let events = if limit == PollTimeout::NONE { PollFlags::POLLOUT } else { PollFlags::empty() };
    // A signal only makes the next attempt come earlier.
    let _ = poll(&mut [PollFd::new(socket, events)], limit);
}

fn words_of(error: &(dyn std::error::Error + 'static)) -> String {
    shortened(crate::proc::words_of(error))
}

/// Where an entry point sends its events. It can be cloned and used from any thread, at any time.
pub struct Events<Event> {
    output: Arc<Output>,
    event: Wording<Event>,
}

impl<Event> Events<Event> {
    pub(super) fn new(output: &Arc<Output>, event: Wording<Event>) -> Events<Event> {
        Events { output: Arc::clone(output), event }
    }

    /// Sends an event. It arrives before the reply to a call that is answered afterwards. If the master is gone, the event
    /// is dropped.
    ///
    /// It waits while the master does not listen. Where the events are those of a server's worker that
    /// [offers](crate::server::WorkerCx::offer) them, it never waits: what the socket does not take is sent by the worker's
    /// loop, and beyond [a limit](crate::server::OfferOptions::max_queued) the event is refused.
    ///
    /// # Errors
    /// [`Error::TooLong`], [`Error::Encode`], [`Error::System`], and in a worker [`Error::Full`]: it was not sent.
    pub fn send(&self, event: &Event) -> Result<(), Error> {
        let message = self.event.encode(event, self.output.limit(), &self.output.lanes)?;
        self.output.tell(message)
    }
}

impl<Event> Clone for Events<Event> {
    fn clone(&self) -> Self {
        Events { output: Arc::clone(&self.output), event: self.event }
    }
}

impl<Event> fmt::Debug for Events<Event> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Events").finish_non_exhaustive()
    }
}
