//! Entry points that serve calls, and their registering.

use std::marker::PhantomData;
use std::os::fd::OwnedFd;

use super::deferred::{self, Responder};
use super::output::Events;
use super::turn::{self, Cx};
use crate::proc::{BoxError, Registry, RunCx};
use crate::rpc::codec::{Codec, Postcard};
use crate::rpc::contract::{Contract, Wording};

/// What an entry point's `init` works with, once, before the first call.
#[derive(Debug)]
#[non_exhaustive]
pub struct InitCx {
    /// All arguments that were sent to the process, and those inherited from its templates, in order.
    pub args: Vec<Vec<u8>>,
    /// All descriptors that were sent to the process, and those inherited from its templates, in order; it may take them.
    pub fds: Vec<OwnedFd>,
}

impl InitCx {
    /// The argument at `index`, as text.
    ///
    /// # Errors
    /// There is no such argument, or it is not UTF-8.
    pub fn arg_str(&self, index: usize) -> Result<&str, BoxError> {
        crate::proc::text_at(&self.args, index)
    }
}

/// Functions that serve the calls of a [`Client`](crate::rpc::Client), to be registered with [`Registry::rpc`].
///
/// `init` is run once in the process and makes the state with which the handler works. An error of it, or a panic of either,
/// ends the process with these words as its [`failure`](crate::proc::Exit::failure); an error that the handler returns is
/// that call's alone.
pub struct Entry<Call, Reply, Event, C = Postcard> {
    serve: Serve<Call, Reply, Event>,
    codec: PhantomData<fn() -> C>,
}

/// All of a process's life.
type Serve<Call, Reply, Event> = Box<dyn Fn(RunCx, Spoken<Call, Reply, Event>) -> Result<(), BoxError>>;

/// What an entry point speaks.
pub(super) struct Spoken<Call, Reply, Event> {
    pub(super) contract: Contract,
    pub(super) call: Wording<Call>,
    pub(super) reply: Wording<Reply>,
    pub(super) event: Wording<Event>,
}

impl<Call: 'static, Reply: 'static, Event: 'static> Entry<Call, Reply, Event> {
    /// A handler that carries out one call at a time and returns its reply.
    ///
    /// ```
    /// use hatchery::proc::Registry;
    /// use hatchery::rpc::{Cx, Entry};
    ///
    /// let registry = Registry::new().rpc("count", Entry::new(
    ///     |_| Ok(0),
    ///     |so_far: &mut u64, word: String, cx: &Cx<String>| {
    ///         *so_far += 1;
    ///         cx.events.send(&format!("saw {word}"))?;
    ///         Ok(*so_far)
    ///     },
    /// ));
    /// # let _ = registry;
    /// ```
    pub fn new<State: 'static>(
        init: impl Fn(&mut InitCx) -> Result<State, BoxError> + 'static,
        handler: impl Fn(&mut State, Call, &Cx<Event>) -> Result<Reply, BoxError> + 'static,
    ) -> Entry<Call, Reply, Event> {
        Entry::of(move |cx, spoken| turn::serve(cx, spoken, &init, &handler))
    }

    /// A handler that gets a [`Responder`] with each call, and may answer later: from any thread or task, in any order. At most
    /// `in_flight` calls are unanswered at a time, at least 1; the others wait in the socket.
    ///
    /// A master that is gone, killed perhaps, hears no answer: then the process ends, whatever is unanswered, and its threads with it.
    ///
    /// ```
    /// use hatchery::proc::Registry;
    /// use hatchery::rpc::{Entry, Events, Responder};
    ///
    /// let registry = Registry::new().rpc("length", Entry::deferred(
    ///     64,
    ///     |_| Ok(()),
    ///     |_: &mut (), text: String, responder: Responder<u64>, _: &Events<()>| {
    ///         std::thread::spawn(move || responder.answer(Ok(text.len() as u64)));
    ///     },
    /// ));
    /// # let _ = registry;
    /// ```
    pub fn deferred<State: 'static>(
        in_flight: usize,
        init: impl Fn(&mut InitCx) -> Result<State, BoxError> + 'static,
        handler: impl Fn(&mut State, Call, Responder<Reply>, &Events<Event>) + 'static,
    ) -> Entry<Call, Reply, Event> {
        Entry::of(move |cx, spoken| deferred::serve(cx, spoken, in_flight.max(1), &init, &handler))
    }

    /// A handler that is an async function, driven by a tokio runtime on the process's one thread (feature `tokio`). At most
    /// `in_flight` calls are unanswered at a time, at least 1; they are answered in any order. The future need not be `Send`.
    /// `init` runs inside the runtime.
    ///
    /// A cancel does not end the future, which may ask [`AsyncCx::cancelled`](super::AsyncCx::cancelled) or wait for
    /// [`AsyncCx::until_cancelled`](super::AsyncCx::until_cancelled). One that panics leaves its call alone unanswered.
    /// While the master does not listen, replies and events hold up the whole thread. If it is gone, killed perhaps, the process
    /// ends within about a second, whatever is unanswered.
    ///
    /// ```
    /// use std::rc::Rc;
    /// use hatchery::proc::Registry;
    /// use hatchery::rpc::{AsyncCx, Entry};
    ///
    /// let registry = Registry::new().rpc("later", Entry::tokio(
    ///     64,
    ///     |_| Ok("after all"),
    ///     |words: Rc<&str>, text: String, cx: AsyncCx<()>| async move {
    ///         tokio::task::yield_now().await;
    ///         if cx.cancelled() { Err("nobody waits")? }
    ///         Ok(format!("{text} {words}"))
    ///     },
    /// ));
    /// # let _ = registry;
    /// ```
    #[cfg(feature = "tokio")]
    pub fn tokio<State: 'static, Answer>(
        in_flight: usize,
        init: impl Fn(&mut InitCx) -> Result<State, BoxError> + 'static,
        handler: impl Fn(std::rc::Rc<State>, Call, super::AsyncCx<Event>) -> Answer + 'static,
    ) -> Entry<Call, Reply, Event>
    where
        Answer: Future<Output = Result<Reply, BoxError>> + 'static,
    {
        Entry::of(move |cx, spoken| super::runtime::serve(cx, spoken, in_flight.max(1), &init, &handler))
    }

    fn of(serve: impl Fn(RunCx, Spoken<Call, Reply, Event>) -> Result<(), BoxError> + 'static) -> Self {
        Entry { serve: Box::new(serve), codec: PhantomData }
    }
}

impl<Call, Reply, Event, C> Entry<Call, Reply, Event, C> {
    /// Speaks with another codec than [`Postcard`]. Its clients must speak the same.
    #[must_use]
    pub fn codec<D>(self) -> Entry<Call, Reply, Event, D> {
        Entry { serve: self.serve, codec: PhantomData }
    }
}

impl<Call, Reply, Event, C> std::fmt::Debug for Entry<Call, Reply, Event, C> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Entry").finish_non_exhaustive()
    }
}

impl Registry {
    /// Registers functions that serve calls; a process is given to them by [`Process::rpc`](crate::proc::Process::rpc).
    ///
    /// # Panics
    /// If the name is taken: two functions under one name are a mistake in the program.
    #[must_use]
    pub fn rpc<Call, Reply, Event, C>(self, name: impl Into<String>, entry: Entry<Call, Reply, Event, C>) -> Registry
    where
        Call: 'static,
        Reply: 'static,
        Event: 'static,
        C: Codec<Call> + Codec<Reply> + Codec<Event>,
    {
        self.run(name, move |cx| {
            let spoken = Spoken {
                contract: Contract::of::<Call, Reply, Event, C>(),
                call: Wording::of::<C>(),
                reply: Wording::of::<C>(),
                event: Wording::of::<C>(),
            };
            (entry.serve)(cx, spoken)
        })
    }
}
