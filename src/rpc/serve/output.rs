//! What a process says: replies and events in the order in which they were made, several in one datagram where they come
//! faster than they are sent.

use std::cell::Cell;
use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::proc::BoxError;
use crate::rpc::contract::{Encoded, Failed, Wording, encode_own, shortened};
use crate::rpc::error::Error;
use crate::rpc::lanes::Lanes;
use crate::rpc::wire::{CallId, Kind, Outbox, Sent};

/// Once so many bytes wait to be sent, whoever says more waits too.
const QUEUED: u64 = 4 << 20;

/// How long after the kernel has lacked something it is asked again, in milliseconds.
const ASK_AGAIN_MS: u8 = 5;

pub(super) struct Output {
    socket: OwnedFd,
    limit: u64,
    lanes: Arc<Lanes>,
    state: Mutex<State>,
    sent: Condvar,
}

#[derive(Default)]
struct State {
    outbox: Outbox,
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
    pub(super) fn new(socket: OwnedFd, limit: u64) -> Arc<Output> {
        Arc::new(Output { socket, limit, lanes: Arc::default(), state: Mutex::default(), sent: Condvar::new() })
    }

    pub(super) fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    pub(super) fn limit(&self) -> u64 {
        self.limit
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn is_gone(&self) -> bool {
        self.state().gone
    }

    /// Says something. It waits while the master does not listen.
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
            Ok(reply) => match wording.encode(reply, self.limit, &self.lanes) {
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
            while state.outbox.weight() > QUEUED && !state.gone {
                state.waiting += 1;
                state = self.sent.wait(state).unwrap_or_else(PoisonError::into_inner);
                state.waiting -= 1;
            }
            return;
        }
        state.sending = true;
        while let Some(mut batch) = state.outbox.pop() {
            drop(state);
            let gone = loop {
                match batch.send(self.socket.as_fd()) {
                    Sent::Whole => break false,
                    Sent::NoRoom => wait_for_room(self.socket.as_fd(), PollTimeout::NONE),
                    Sent::Later => wait_for_room(self.socket.as_fd(), PollTimeout::from(ASK_AGAIN_MS)),
                    Sent::Never => break true,
                }
            };
            state = self.state();
            if gone {
                state.gone = true;
                state.outbox.clear();
            }
            if state.waiting > 0 {
                self.sent.notify_all();
            }
        }
        state.sending = false;
    }
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

    /// Sends an event. It arrives before the reply to a call that is answered afterwards. It waits while the master does
    /// not listen; if the master is gone, the event is dropped.
    ///
    /// # Errors
    /// [`Error::TooLong`], [`Error::Encode`], [`Error::System`]: it was not sent.
    pub fn send(&self, event: &Event) -> Result<(), Error> {
        let message = self.event.encode(event, self.output.limit, &self.output.lanes)?;
        self.output.say(Kind::Event, CallId::default(), message);
        Ok(())
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
