//! What a master calls.

use std::fmt;
use std::marker::PhantomData;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::codec::Codec;
use super::contract::{Contract, Wording};
use super::error::{Error, Lost};
use super::link::waiting::{park, thread_waker};
use super::link::{Completion, Haste, Link, Outcome, Refused, Stake, in_callback};
use super::options::Options;
use super::pending::{CallFuture, Slot};
use crate::proc::hub::call_back;
use crate::proc::{self, Exit, Process, Running};

/// A process that is called like a function.
///
/// Threads may share it. The process carries out the calls in the order in which they were made; its replies and events
/// are delivered in the order in which it made them, one at a time: on this crate's thread for calls, or on that of a
/// caller who waits for a reply at that time. So a callback must not wait, least of all for a lock that somebody holds
/// while he calls; [`call`](Client::call) and [`finish`](Client::finish) refuse to in one.
///
/// Dropping it lets the process carry out what was submitted, and then leave; callbacks are still called.
pub struct Client<Call, Reply, Event> {
    link: Arc<Link>,
    call: Wording<Call>,
    reply: Wording<Reply>,
    event: Wording<Event>,
    types: PhantomData<fn(Call, Event) -> Reply>,
}

impl Process {
    /// Gives the process to an RPC entry point ([`Registry::rpc`](crate::proc::Registry::rpc)), and calls it from now on.
    ///
    /// It does not wait for the process. That the entry point does not exist, that its `init` fails or that it speaks of
    /// other types is told by the first call.
    ///
    /// # Errors
    /// The process was not born or has ended; no descriptor is left.
    pub fn rpc<Call, Reply, Event>(
        self,
        entry: &str,
        options: Options<impl Codec<Call> + Codec<Reply> + Codec<Event>>,
    ) -> Result<Client<Call, Reply, Event>, proc::Error> {
        Client::open(self, entry, options)
    }
}

impl<Call, Reply, Event> Client<Call, Reply, Event> {
    fn open<C>(process: Process, entry: &str, options: Options<C>) -> Result<Self, proc::Error>
    where
        C: Codec<Call> + Codec<Reply> + Codec<Event>,
    {
        let link = Link::open(process.run(entry)?, Contract::of::<Call, Reply, Event, C>(), options.limits)?;
        Ok(Client::of::<C>(link))
    }

    /// Of a process that has other work too, and has sent the other end of its socket.
    pub(crate) fn of_part<C>(socket: OwnedFd, running: Arc<Running>, options: Options<C>) -> Result<Self, proc::Error>
    where
        C: Codec<Call> + Codec<Reply> + Codec<Event>,
    {
        let contract = Contract::of::<Call, Reply, Event, C>();
        let link = Link::over(socket, running, Stake::Part, contract, options.limits)?;
        Ok(Client::of::<C>(link))
    }

    fn of<C>(link: Arc<Link>) -> Self
    where
        C: Codec<Call> + Codec<Reply> + Codec<Event>,
    {
        let (call, reply, event) = (Wording::of::<C>(), Wording::of::<C>(), Wording::of::<C>());
        Client { link, call, reply, event, types: PhantomData }
    }

    /// Calls, and waits for the reply. Waits for room too, if as many calls are outstanding as the options allow.
    ///
    /// # Errors
    /// Each variant of [`Error`] but `Full` and `TimedOut`.
    pub fn call(&self, call: &Call) -> Result<Reply, Error>
    where
        Reply: Send + 'static,
    {
        self.call_until(call, None)
    }

    /// As [`call`](Client::call), for at most that long. Then the process is told that nobody waits any more, and a late
    /// reply goes nowhere.
    ///
    /// # Errors
    /// As `call`, and [`Error::TimedOut`].
    pub fn call_timeout(&self, call: &Call, patience: Duration) -> Result<Reply, Error>
    where
        Reply: Send + 'static,
    {
        // What is too far away for the clock is no deadline.
        self.call_until(call, Instant::now().checked_add(patience))
    }

    fn call_until(&self, call: &Call, deadline: Option<Instant>) -> Result<Reply, Error>
    where
        Reply: Send + 'static,
    {
        if in_callback() {
            return Err(Error::InCallback);
        }
        let mut message = self.link.encode(self.call, call)?;
        let slot = Slot::new(thread_waker());
        let mut completion = slot.completion(self.reply);
        let id = loop {
            match self.link.begin(completion, message, Haste::AtOnce, None) {
                Ok(id) => break id,
                Err(Refused::Full(same_completion, same_message)) => {
                    (completion, message) = (same_completion, same_message);
                    if self.link.wait_for_room(thread_waker(), None) && !park(deadline) {
                        return Err(Error::TimedOut { may_have_run: false });
                    }
                }
                Err(Refused::Never(error, _)) => return Err(*error),
            }
        };
        self.link.wait_until(deadline, || slot.take()).unwrap_or_else(|| match self.link.cancel(id) {
            Some(ended) => Err(Error::TimedOut { may_have_run: ended.may_have_run }),
            // Its reply has come at the last moment.
            None => slot.take().unwrap_or(Err(Error::TimedOut { may_have_run: true })),
        })
    }

    /// Calls, without waiting; `callback` is called once, with the reply or an error. Calls that come faster than
    /// replies travel together.
    ///
    /// # Errors
    /// The call was not made and the callback will not be called: [`Error::Full`], [`Error::TooLong`],
    /// [`Error::Encode`], [`Error::System`], or [`Error::Lost`], if the conversation has ended before.
    pub fn submit(&self, call: &Call, callback: impl FnOnce(Result<Reply, Error>) + Send + 'static) -> Result<(), Error>
    where
        Reply: 'static,
    {
        self.submit_until(call, None, callback)
    }

    /// As [`submit`](Client::submit), but if there is no reply by then, the callback is called with
    /// [`Error::TimedOut`]. The process is told so, and a late reply goes nowhere.
    ///
    /// ```no_run
    /// # fn submit(parser: &hatchery::rpc::Client<String, u64, ()>) -> Result<(), hatchery::rpc::Error> {
    /// parser.submit_timeout(&"a long text".to_owned(), std::time::Duration::from_secs(2), |length| match length {
    ///     Ok(length) => println!("{length}"),
    ///     Err(error) => println!("{error}; it may have run: {}", error.may_have_run()),
    /// })
    /// # }
    /// ```
    ///
    /// # Errors
    /// As `submit`.
    pub fn submit_timeout(
        &self,
        call: &Call,
        patience: Duration,
        callback: impl FnOnce(Result<Reply, Error>) + Send + 'static,
    ) -> Result<(), Error>
    where
        Reply: 'static,
    {
        self.submit_until(call, Instant::now().checked_add(patience), callback)
    }

    fn submit_until(
        &self,
        call: &Call,
        deadline: Option<Instant>,
        callback: impl FnOnce(Result<Reply, Error>) + Send + 'static,
    ) -> Result<(), Error>
    where
        Reply: 'static,
    {
        let message = self.link.encode(self.call, call)?;
        let reply = self.reply;
        let completion: Completion = Box::new(move |outcome| {
            let (outcome, codec) = read(reply, outcome);
            call_back(|| callback(outcome));
            codec
        });
        match self.link.begin(completion, message, Haste::Gather, deadline) {
            Ok(_) => Ok(()),
            Err(Refused::Full(..)) => Err(Error::Full),
            Err(Refused::Never(error, _)) => Err(*error),
        }
    }

    /// Calls; the future gives the reply, in any runtime. The call is made at once, or as soon as there is room, if as
    /// many are outstanding as the options allow. Dropping the future cancels the call, and the process is told so.
    pub fn call_async(&self, call: &Call) -> CallFuture<Reply>
    where
        Reply: Send + 'static,
    {
        CallFuture::new(&self.link, self.link.encode(self.call, call), self.reply, None)
    }

    /// As [`call_async`](Client::call_async), but without a reply, or without room, by then the future gives
    /// [`Error::TimedOut`]. It needs no timer of a runtime.
    pub fn call_async_timeout(&self, call: &Call, patience: Duration) -> CallFuture<Reply>
    where
        Reply: Send + 'static,
    {
        let message = self.link.encode(self.call, call);
        CallFuture::new(&self.link, message, self.reply, Instant::now().checked_add(patience))
    }

    /// Calls `handler` with each event. Set it before the first call: what comes while there is none is dropped, and
    /// nothing is received before the first call or handler. It is let go when the conversation has ended.
    ///
    /// # Errors
    /// [`Error::System`]: the process's socket cannot be watched.
    pub fn on_event(&self, mut handler: impl FnMut(Event) + Send + 'static) -> Result<(), Error>
    where
        Event: 'static,
    {
        let event = self.event;
        self.link.set_on_event(Box::new(move |bytes, fds| {
            let event = event.decode(bytes, fds)?;
            call_back(|| handler(event));
            Ok(())
        }))
    }

    /// Calls `handler` once, if the conversation ends in any other way than by [`finish`](Client::finish) or a drop after
    /// which the process left with code 0. Every call that was outstanding has had its error by then. If it has ended,
    /// the handler is called at once.
    ///
    /// # Errors
    /// [`Error::System`]: the process's socket cannot be watched.
    pub fn on_error(&self, handler: impl FnOnce(Lost) + Send + 'static) -> Result<(), Error> {
        self.link.set_on_error(Box::new(handler))
    }

    /// How many calls are outstanding: begun, and neither answered nor cancelled.
    pub fn outstanding(&self) -> usize {
        self.link.outstanding()
    }

    /// Waits for all outstanding calls, and then for the process, which leaves. Its end comes back.
    ///
    /// A server's worker that has [offered](crate::server::WorkerCx::offer) the conversation does not leave: see
    /// [`close`](Client::close).
    ///
    /// # Errors
    /// The conversation ended otherwise than by the process's end; or [`Error::InCallback`], and then the client is dropped.
    pub fn finish(self) -> Result<Exit, Error> {
        match self.await_end()?.0 {
            Lost::Died(exit) => Ok(*exit),
            why => Err(Error::Lost { may_have_run: true, why }),
        }
    }

    /// Waits for all outstanding calls, and ends the conversation. A process of its own leaves then; a server's worker goes
    /// on with its work.
    ///
    /// # Errors
    /// The conversation ended otherwise, or the process with another code than 0; or [`Error::InCallback`], and then the
    /// client is dropped.
    pub fn close(self) -> Result<(), Error> {
        match self.await_end()? {
            (_, true) => Ok(()),
            (why, false) => Err(Error::Lost { may_have_run: true, why }),
        }
    }

    /// How all has ended, and whether as it was asked to.
    fn await_end(self) -> Result<(Lost, bool), Error> {
        if in_callback() {
            return Err(Error::InCallback);
        }
        self.link.close();
        let ended = || {
            let state = self.link.state();
            state.ended().map(|why| (why.clone(), state.finished_well()))
        };
        // It waits without a deadline.
        self.link.wait_until(None, ended).ok_or(Error::TimedOut { may_have_run: true })
    }
}

/// The outcome of a call in its own type; and how the conversation ends, if it cannot be decoded.
pub(super) fn read<Reply>(wording: Wording<Reply>, outcome: Outcome<'_>) -> (Result<Reply, Error>, Result<(), Lost>) {
    match outcome {
        Outcome::Reply { bytes, fds } => match wording.decode(bytes, fds) {
            Ok(reply) => (Ok(reply), Ok(())),
            Err(words) => {
                let why = Lost::Codec { words };
                (Err(Error::Lost { may_have_run: true, why: why.clone() }), Err(why))
            }
        },
        Outcome::Failed(error) => (Err(error), Ok(())),
    }
}

impl<Call, Reply, Event> Drop for Client<Call, Reply, Event> {
    fn drop(&mut self) {
        self.link.close();
    }
}

impl<Call, Reply, Event> fmt::Debug for Client<Call, Reply, Event> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("outstanding", &self.outstanding()).finish_non_exhaustive()
    }
}
