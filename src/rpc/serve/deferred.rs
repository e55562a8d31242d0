//! Serving calls that are answered later.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, ThreadId};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};

use super::entry::{InitCx, Spoken};
use super::inbox::{self, Inbox};
use super::output::{Events, Output, hold};
use super::turn::{LONG, Pace, decode};
use crate::proc::{BoxError, RunCx};
use crate::rpc::contract::{Failed, Wording};
use crate::rpc::wire::CallId;

/// The duty to answer one call: from any thread or task, now or later.
///
/// Dropping it without an answer tells the caller so.
pub struct Responder<Reply> {
    flight: Arc<Flight>,
    call: CallId,
    cancelled: Arc<AtomicBool>,
    reply: Wording<Reply>,
    answered: bool,
}

/// The calls that are not answered yet.
struct Flight {
    output: Arc<Output>,
    unanswered: Mutex<Unanswered>,
    /// Written to when a call was answered and the serving thread waits for that.
    answered: EventFd,
    /// The serving thread.
    server: ThreadId,
}

#[derive(Default)]
struct Unanswered {
    calls: HashMap<CallId, Arc<AtomicBool>>,
    awaited: bool,
}

impl<Reply> Responder<Reply> {
    /// Answers the call. It waits while the master does not listen.
    pub fn answer(mut self, reply: Result<Reply, BoxError>) {
        self.flight.output.reply(self.call, self.reply, &reply);
        // Not before: the writing is the user's code, and may panic.
        self.answered = true;
    }

    /// Whether nobody waits for the answer any more. While as many calls are unanswered as the entry point allows, more than
    /// 1 MiB of further calls may hide a cancel.
    pub fn cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }
}

impl<Reply> Drop for Responder<Reply> {
    fn drop(&mut self) {
        // A panic of the handler ends the process, which its caller is told; one of another thread is that thread's alone.
        let ends_the_process = thread::panicking() && thread::current().id() == self.flight.server;
        if !self.answered && !ends_the_process {
            self.flight.output.fail(self.call, Failed::Unanswered);
        }
        let mut unanswered = self.flight.unanswered();
        unanswered.calls.remove(&self.call);
        if std::mem::take(&mut unanswered.awaited) {
            // An eventfd that was written to is readable, whatever its count.
            let _ = self.flight.answered.write(1);
        }
    }
}

impl<Reply> fmt::Debug for Responder<Reply> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Responder").field("call", &self.call).finish_non_exhaustive()
    }
}

impl Flight {
    fn unanswered(&self) -> MutexGuard<'_, Unanswered> {
        self.unanswered.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take_up(&self, call: CallId) -> Arc<AtomicBool> {
        let cancelled = Arc::new(AtomicBool::new(false));
        self.unanswered().calls.insert(call, Arc::clone(&cancelled));
        cancelled
    }

    fn cancel<'a>(&self, calls: impl IntoIterator<Item = &'a CallId>) {
        let unanswered = self.unanswered();
        for cancelled in calls.into_iter().filter_map(|call| unanswered.calls.get(call)) {
            cancelled.store(true, Ordering::Relaxed);
        }
    }

    /// Waits until at most so many calls are unanswered; meanwhile cancels are heard. False, if there is nobody any more who
    /// could hear an answer.
    fn wait_for(&self, most: usize, inbox: &mut Inbox) -> Result<bool, BoxError> {
        loop {
            let mut unanswered = self.unanswered();
            unanswered.awaited = unanswered.calls.len() > most;
            if !unanswered.awaited {
                return Ok(true);
            }
            drop(unanswered);
            // Whoever answers is not kept waiting for what this thread holds.
            self.output.flush();
            inbox.look_ahead()?;
            self.cancel(inbox.cancels());
            // That the master is gone is told in any case.
            let of_socket = if inbox.listens() { PollFlags::POLLIN } else { PollFlags::empty() };
            let answered = PollFd::new(self.answered.as_fd(), PollFlags::POLLIN);
            let mut fds = [answered, PollFd::new(self.output.socket(), of_socket)];
            match poll(&mut fds, PollTimeout::NONE) {
                Ok(_) if fds[0].any() == Some(true) => drop(self.answered.read()),
                Ok(_) if of_socket.is_empty() => return Ok(false),
                Ok(_) | Err(nix::Error::EINTR) => {}
                Err(errno) => return Err(io::Error::from(errno).into()),
            }
        }
    }
}

/// Serves until the client leaves and all is answered, or there is nobody who could hear an answer.
pub(super) fn serve<State, Call, Reply, Event>(
    cx: RunCx,
    spoken: Spoken<Call, Reply, Event>,
    in_flight: usize,
    init: &impl Fn(&mut InitCx) -> Result<State, BoxError>,
    handler: &impl Fn(&mut State, Call, Responder<Reply>, &Events<Event>),
) -> Result<(), BoxError> {
    let RunCx { socket, args, fds } = cx;
    let Some(mut inbox) = inbox::begin(socket, &spoken.contract)? else { return Ok(()) };
    let output = inbox.output().clone();
    let answered = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
    let flight = Arc::new(Flight {
        output: Arc::clone(&output),
        unanswered: Mutex::default(),
        answered,
        server: thread::current().id(),
    });
    let mut state = init(&mut InitCx { args, fds })?;
    inbox.greet(spoken.contract);
    let events = Events::new(&output, spoken.event);
    let mut pace = Pace::new(&output);
    loop {
        let is_heard = flight.wait_for(in_flight - 1, &mut inbox)?;
        pace.before_next(inbox.has_more());
        if output.is_gone() || !is_heard {
            return Ok(());
        }
        let Some(frame) = inbox.next_call(|call| flight.cancel([&call]))? else { break };
        let id = frame.id;
        let Some(call) = decode(&inbox, frame, spoken.call)? else { continue };
        let cancelled = flight.take_up(id);
        let responder =
            Responder { flight: Arc::clone(&flight), call: id, cancelled, reply: spoken.reply, answered: false };
        pace.begin(inbox.has_more());
        handler(&mut state, call, responder, &events);
        if pace.end() >= LONG {
            inbox.look_ahead()?;
            flight.cancel(inbox.cancels());
        }
    }
    hold(false);
    flight.wait_for(0, &mut inbox).map(drop)
}
