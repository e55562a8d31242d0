//! Serving calls by futures, on a tokio runtime of the process's one thread.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::fmt;
use std::future::{Future, poll_fn};
use std::io;
use std::os::fd::OwnedFd;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::unix::AsyncFd;
use tokio::runtime;
use tokio::sync::Notify;
use tokio::task::{LocalSet, spawn_local, yield_now};
use tokio::time::timeout;

use super::entry::{InitCx, Spoken};
use super::inbox::{self, Inbox};
use super::output::{Events, Output, hold};
use super::turn::decode;
use crate::proc::{BoxError, RunCx};
use crate::rpc::contract::Failed;
use crate::rpc::wire::CallId;
use crate::sys::async_watch;

/// While nothing is read of the socket, it is so often looked whether anybody still waits for the replies.
const LOOK_FOR_MASTER: Duration = Duration::from_secs(1);

/// What a handler that is a future knows of its call; see [`Entry::tokio`](crate::rpc::Entry::tokio).
pub struct AsyncCx<Event> {
    /// Where its events go.
    pub events: Events<Event>,
    cancel: Rc<Cancel>,
}

impl<Event> AsyncCx<Event> {
    /// Whether nobody waits for this call's reply any more.
    pub fn cancelled(&self) -> bool {
        self.cancel.came.get()
    }

    /// Ends when nobody waits for this call's reply any more: the other arm of a `select!`.
    pub async fn until_cancelled(&self) {
        while !self.cancelled() {
            self.cancel.told.notified().await;
        }
    }
}

impl<Event> fmt::Debug for AsyncCx<Event> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AsyncCx").field("cancelled", &self.cancelled()).finish_non_exhaustive()
    }
}

#[derive(Default)]
struct Cancel {
    came: Cell<bool>,
    told: Notify,
}

/// The calls that are not answered yet.
#[derive(Default)]
struct Flight {
    calls: RefCell<HashMap<CallId, Rc<Cancel>>>,
    /// A call was answered, or something is to be sent.
    news: Notify,
}

impl Flight {
    fn take_up(&self, call: CallId) -> Rc<Cancel> {
        let cancel = Rc::new(Cancel::default());
        self.calls.borrow_mut().insert(call, Rc::clone(&cancel));
        cancel
    }

    fn unanswered(&self) -> usize {
        self.calls.borrow().len()
    }

    fn cancel<'a>(&self, cancelled: impl IntoIterator<Item = &'a CallId>) {
        let calls = self.calls.borrow();
        for cancel in cancelled.into_iter().filter_map(|call| calls.get(call)) {
            cancel.came.set(true);
            cancel.told.notify_waiters();
        }
    }
}

/// The duty to answer a call, until its future is done; one that panics leaves it unanswered.
struct Duty {
    flight: Rc<Flight>,
    output: Arc<Output>,
    call: CallId,
    answered: bool,
}

impl Duty {
    fn fulfil(&mut self) {
        self.answered = true;
    }
}

impl Drop for Duty {
    fn drop(&mut self) {
        if !self.answered {
            hold(false);
            self.output.fail(self.call, Failed::Unanswered);
        }
        self.flight.calls.borrow_mut().remove(&self.call);
        self.flight.news.notify_one();
    }
}

/// Serves until the client leaves and all is answered, or there is nobody who could hear an answer.
pub(super) fn serve<State, Call, Reply, Event, Answer>(
    cx: RunCx,
    spoken: Spoken<Call, Reply, Event>,
    in_flight: usize,
    init: &impl Fn(&mut InitCx) -> Result<State, BoxError>,
    handler: &impl Fn(Rc<State>, Call, AsyncCx<Event>) -> Answer,
) -> Result<(), BoxError>
where
    Reply: 'static,
    Answer: Future<Output = Result<Reply, BoxError>> + 'static,
{
    let RunCx { socket, args, fds } = cx;
    let Some(inbox) = inbox::begin(socket, &spoken.contract)? else { return Ok(()) };
    let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
    LocalSet::new().block_on(&runtime, async {
        let state = Rc::new(init(&mut InitCx { args, fds })?);
        inbox.greet(spoken.contract.clone());
        let server = Server { output: inbox.output().clone(), inbox, spoken, in_flight, flight: Rc::default() };
        server.run(&state, handler).await
    })
}

struct Server<Call, Reply, Event> {
    inbox: Inbox,
    output: Arc<Output>,
    spoken: Spoken<Call, Reply, Event>,
    in_flight: usize,
    flight: Rc<Flight>,
}

impl<Call, Reply: 'static, Event> Server<Call, Reply, Event> {
    async fn run<State, Answer>(
        mut self,
        state: &Rc<State>,
        handler: &impl Fn(Rc<State>, Call, AsyncCx<Event>) -> Answer,
    ) -> Result<(), BoxError>
    where
        Answer: Future<Output = Result<Reply, BoxError>> + 'static,
    {
        let socket = async_watch::readable(self.output.socket().try_clone_to_owned()?)?;
        loop {
            // To its end: what tokio has told of the socket, it tells once.
            let heard_all = self.inbox.look_ahead()?;
            self.flight.cancel(self.inbox.cancels());
            while self.flight.unanswered() < self.in_flight {
                let flight = &self.flight;
                let Some(frame) = self.inbox.take_arrived(|call| flight.cancel([&call]))? else { break };
                let id = frame.id;
                let Some(call) = decode(&self.inbox, frame, self.spoken.call)? else { continue };
                let events = Events::new(&self.output, self.spoken.event);
                let answer = handler(Rc::clone(state), call, AsyncCx { events, cancel: self.flight.take_up(id) });
                self.answer_by(id, answer);
            }
            self.output.flush();
            let is_done = self.inbox.is_over() && self.flight.unanswered() == 0;
            let is_left = || !self.inbox.listens() && self.inbox.is_left();
            if is_done || self.output.is_gone() || is_left() {
                return Ok(());
            }
            if heard_all || !self.inbox.listens() {
                self.wait(&socket).await?;
            } else {
                // What is still in the socket tokio has told already; but the futures have their turn.
                yield_now().await;
            }
        }
    }

    /// Polls the future beside all others; what it says is sent when the thread turns to the socket again.
    fn answer_by(&self, id: CallId, answer: impl Future<Output = Result<Reply, BoxError>> + 'static) {
        let (output, flight, wording) = (Arc::clone(&self.output), Rc::clone(&self.flight), self.spoken.reply);
        let mut duty = Duty { flight: Rc::clone(&flight), output: Arc::clone(&output), call: id, answered: false };
        spawn_local(async move {
            let mut answer = pin!(answer);
            poll_fn(|cx| {
                hold(true);
                let polled = answer.as_mut().poll(cx).map(|reply| {
                    output.reply(id, wording, &reply);
                    // Not before: the writing is the user's code, and may panic.
                    duty.fulfil();
                });
                hold(false);
                flight.news.notify_one();
                polled
            })
            .await;
        });
    }

    /// Waits until there is something to hear, or to say.
    async fn wait(&self, socket: &AsyncFd<OwnedFd>) -> io::Result<()> {
        let mut news = pin!(self.flight.news.notified());
        if !self.inbox.listens() {
            // Of a socket that was closed in one direction tokio does not tell when it is in the other.
            let _ = timeout(LOOK_FOR_MASTER, news).await;
            return Ok(());
        }
        poll_fn(|cx: &mut Context<'_>| {
            if let Poll::Ready(ready) = socket.poll_read_ready(cx) {
                return Poll::Ready(ready.map(|mut ready| ready.clear_ready()));
            }
            news.as_mut().poll(cx).map(Ok)
        })
        .await
    }
}
