//! Serving one call at a time.

use std::cell::RefCell;
use std::fmt;
use std::rc::Rc;
use std::time::{Duration, Instant};

use super::entry::{InitCx, Spoken};
use super::inbox::{self, Inbox};
use super::output::{Events, Output, hold};
use crate::proc::{BoxError, RunCx};
use crate::rpc::contract::Wording;
use crate::rpc::wire::{CallId, Frame};

/// What a handler knows of the call in hand.
pub struct Cx<Event> {
    /// Where its events go.
    pub events: Events<Event>,
    pub(super) inbox: Rc<RefCell<Inbox>>,
    pub(super) call: CallId,
}

impl<Event> Cx<Event> {
    /// Whether nobody waits for this call's reply any more: it was cancelled, or its client is gone. It takes a system
    /// call. More than 1 MiB of further calls behind this one may hide a cancel.
    pub fn cancelled(&self) -> bool {
        let mut inbox = self.inbox.borrow_mut();
        // What is wrong with the conversation is told by the next call.
        let _ = inbox.look_ahead();
        inbox.cancels().contains(&self.call) || inbox.is_left()
    }
}

impl<Event> fmt::Debug for Cx<Event> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cx").field("call", &self.call).finish_non_exhaustive()
    }
}

/// Serves until the client leaves.
pub(super) fn serve<State, Call, Reply, Event>(
    cx: RunCx,
    spoken: Spoken<Call, Reply, Event>,
    init: &impl Fn(&mut InitCx) -> Result<State, BoxError>,
    handler: &impl Fn(&mut State, Call, &Cx<Event>) -> Result<Reply, BoxError>,
) -> Result<(), BoxError> {
    let RunCx { socket, args, fds } = cx;
    let Some(inbox) = inbox::begin(socket, &spoken.contract)? else { return Ok(()) };
    let output = inbox.output().clone();
    let inbox = Rc::new(RefCell::new(inbox));
    let mut state = init(&mut InitCx { args, fds })?;
    inbox.borrow().greet(spoken.contract);
    let events = Events::new(&output, spoken.event);
    let mut cx = Cx { events, inbox: Rc::clone(&inbox), call: CallId::default() };
    let mut pace = Pace::new(&output);
    loop {
        pace.before_next(inbox.borrow().has_more());
        if output.is_gone() {
            return Ok(());
        }
        let Some(frame) = inbox.borrow_mut().next_call(drop)? else { return Ok(()) };
        cx.call = frame.id;
        let Some(call) = decode(&inbox.borrow(), frame, spoken.call)? else { continue };
        pace.begin(inbox.borrow().has_more());
        let reply = handler(&mut state, call, &cx);
        hold(true);
        output.reply(cx.call, spoken.reply, &reply);
        if pace.end() >= LONG {
            inbox.borrow_mut().look_ahead()?;
        }
    }
}

/// The call in a frame; none, if its descriptors were lost, which was told.
pub(super) fn decode<Call>(inbox: &Inbox, frame: Frame, wording: Wording<Call>) -> Result<Option<Call>, BoxError> {
    let Frame { id, message, fds, .. } = frame;
    let Some(bytes) = inbox.message(message) else {
        inbox.lost(id);
        return Ok(None);
    };
    wording.decode(bytes, fds).map(Some).map_err(|words| inbox.refuse(words))
}

/// A handler that has taken so long is followed by a look for cancels.
pub(super) const LONG: Duration = Duration::from_millis(1);

/// A handler that takes less is quick.
const QUICK: Duration = Duration::from_micros(20);

/// Replies of so many handlers in a row, all of them quick, may be held.
const STREAK: u32 = 16;

/// No longer than this are replies held, unless the next handler is slow for the first time.
const HELD: Duration = Duration::from_micros(50);

/// When replies are sent: each at once, or, where many quick calls came together, many together.
///
/// A held reply may be delayed by a handler that is suddenly slow, and is lost if it kills the process: then its caller is told
/// that its call may have run. So only those are held whose calls came with further ones, after a row of quick handlers, and
/// the work of at most 50 µs.
pub(super) struct Pace<'a> {
    output: &'a Output,
    streak: u32,
    begun: Instant,
    held_since: Instant,
    waited: bool,
}

impl<'a> Pace<'a> {
    pub(super) fn new(output: &'a Output) -> Pace<'a> {
        let now = Instant::now();
        Pace { output, streak: 0, begun: now, held_since: now, waited: true }
    }

    /// Before the next frame is waited for or taken.
    pub(super) fn before_next(&mut self, has_more: bool) {
        self.waited |= !has_more;
        if !has_more || self.streak < STREAK || self.begun - self.held_since > HELD {
            self.output.flush();
            self.held_since = self.begun;
        }
    }

    /// A handler is about to run.
    pub(super) fn begin(&mut self, has_more: bool) {
        hold(has_more && self.streak >= STREAK);
        if std::mem::take(&mut self.waited) {
            self.begun = Instant::now();
            self.held_since = self.begun;
        }
    }

    /// A handler has run; so long it took.
    pub(super) fn end(&mut self) -> Duration {
        hold(true);
        let now = Instant::now();
        let took = now - self.begun;
        self.streak = if took < QUICK { self.streak.saturating_add(1) } else { 0 };
        self.begun = now;
        took
    }
}

impl Drop for Pace<'_> {
    /// A panic of one handler does not take the replies of others with it.
    fn drop(&mut self) {
        hold(false);
        self.output.flush();
    }
}
