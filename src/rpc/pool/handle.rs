//! What a master calls.

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;
use std::sync::{Arc, PoisonError};
use std::task::Waker;
use std::time::{Duration, Instant};

use super::core::Terms;
use super::keeper::Source;
use super::options::{InvalidOption, PoolOptions};
use super::pending::{PoolFuture, wait};
use super::report::{Statistics, Worker, WorkerExit};
use super::shell::{Caller, NewCall, Shared};
use crate::proc::hub::call_back;
use crate::proc::{self, Process, Template};
use crate::rpc::client::read;
use crate::rpc::codec::Codec;
use crate::rpc::contract::{Contract, Wording};
use crate::rpc::error::Error;
use crate::rpc::link::waiting::{park, thread_waker};
use crate::rpc::link::{Completion, in_callback};
use crate::rpc::pending::Slot;

/// Processes that are called like one function.
///
/// A call goes to a process that is free, or waits for one; calls begin in the order in which they were made. Processes are
/// started as they are needed, replaced when they die or have grown old, and leave when they have been idle for long: see
/// [`PoolOptions`]. A call that crashes its process, or that meets its [deadline](Prepared::deadline), costs that
/// process and whatever else it had in hand, and nothing more.
///
/// It is cheap to clone, and threads may share it. Replies and events are delivered on this crate's own threads, or on that of
/// a caller who waits for a reply at that time; so a callback must not wait, and [`call`](Pool::call) and
/// [`finish`](Pool::finish) refuse to in one.
///
/// Dropping the last clone takes nothing back: what was submitted is carried out, callbacks are called, and then
/// all processes leave, and the pool's own thread too. [`finish`](Pool::finish) waits for that.
///
/// ```no_run
/// use std::time::Duration;
/// use hatchery::proc::{Process, Registry};
/// use hatchery::rpc::{Cx, Entry, Pool, PoolOptions};
///
/// fn main() -> Result<(), Box<dyn std::error::Error>> {
///     let length = |(): &mut (), text: String, _: &Cx<()>| Ok(text.len() as u64);
///     hatchery::init(&Registry::new().rpc("length", Entry::new(|_| Ok(()), length)));
///
///     let options = PoolOptions::new().max(4).deadline(Duration::from_secs(5));
///     let pool: Pool<String, u64, ()> = Pool::new("length", options, Process::new)?;
///     println!("{}", pool.call(&"to be or not to be".to_owned())?);
///     println!("{:?}", pool.finish()?);
///     Ok(())
/// }
/// ```
pub struct Pool<Call, Reply, Event> {
    handle: Arc<Handle>,
    call: Wording<Call>,
    reply: Wording<Reply>,
    event: Wording<Event>,
    types: PhantomData<fn(Call, Event) -> Reply>,
}

/// What the clones of a pool share; the last one closes it.
struct Handle(Arc<Shared>);

impl Drop for Handle {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// A pool could not be opened.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// An option has a value that cannot be meant.
    #[error(transparent)]
    Option(#[from] InvalidOption),
    /// The pool's thread could not be started. EAGAIN: a limit on threads.
    #[error("cannot start the thread of a pool")]
    Thread(#[source] Arc<std::io::Error>),
}

impl Template {
    /// A pool of processes that are forked from this template and given to an RPC entry point. It ends with the pool.
    ///
    /// Should it die before, no further process can be made; [`Pool::of_templates`] makes another template then.
    ///
    /// # Errors
    /// Those of [`Pool::new`].
    pub fn pool<Call, Reply, Event>(
        mut self,
        entry: &str,
        options: PoolOptions<impl Codec<Call> + Codec<Reply> + Codec<Event>>,
    ) -> Result<Pool<Call, Reply, Event>, OpenError> {
        Pool::new(entry, options, move || self.fork())
    }
}

impl<Call, Reply, Event> Pool<Call, Reply, Event> {
    /// A pool of processes that come from `source`: [`Process::new`], or whatever forks a template and gives the process what its
    /// `init` wants. It is called on the pool's own thread, where it may take its time; meanwhile deadlines are not kept.
    ///
    /// It does not wait for a process.
    ///
    /// # Errors
    /// An option that cannot be meant; the pool's thread cannot be started.
    pub fn new<C>(
        entry: &str,
        options: PoolOptions<C>,
        source: impl FnMut() -> Result<Process, proc::Error> + Send + 'static,
    ) -> Result<Self, OpenError>
    where
        C: Codec<Call> + Codec<Reply> + Codec<Event>,
    {
        let shared = Shared::new(entry, Contract::of::<Call, Reply, Event, C>(), options.resolve()?);
        let source: Source = Box::new(source);
        Arc::clone(&shared).keep(source).map_err(|error| OpenError::Thread(Arc::new(error)))?;
        Ok(Pool {
            handle: Arc::new(Handle(shared)),
            call: Wording::of::<C>(),
            reply: Wording::of::<C>(),
            event: Wording::of::<C>(),
            types: PhantomData,
        })
    }

    /// A pool of processes that are forked from a template, which `make` makes when the first one is needed, and again
    /// should it have died.
    ///
    /// ```no_run
    /// # use hatchery::proc::Template;
    /// # use hatchery::rpc::{OpenError, Pool, PoolOptions};
    /// # fn open() -> Result<(), OpenError> {
    /// let pool: Pool<String, u64, ()> = Pool::of_templates("length", PoolOptions::new(), || {
    ///     let mut template = Template::spawn()?;
    ///     template.call("load_dictionary", ["words.txt"])?;
    ///     Ok(template)
    /// })?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// Those of [`Pool::new`].
    pub fn of_templates<C>(
        entry: &str,
        options: PoolOptions<C>,
        mut make: impl FnMut() -> Result<Template, proc::Error> + Send + 'static,
    ) -> Result<Self, OpenError>
    where
        C: Codec<Call> + Codec<Reply> + Codec<Event>,
    {
        let mut template: Option<Template> = None;
        Pool::new(entry, options, move || {
            let living = template.as_mut().filter(|template| template.try_wait().is_none());
            match living.map(Template::fork) {
                Some(Ok(process)) => Ok(process),
                _ => template.insert(make()?).fork(),
            }
        })
    }

    /// A call with terms of its own.
    ///
    /// ```no_run
    /// # use std::time::Duration;
    /// # fn calls(pool: &hatchery::rpc::Pool<String, u64, ()>) -> Result<(), hatchery::rpc::Error> {
    /// let page = "page 7".to_owned();
    /// let length = pool.prepare(&page).deadline(Duration::from_secs(2)).repeatable(2).label("page 7").call()?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn prepare<'a>(&'a self, call: &'a Call) -> Prepared<'a, Call, Reply, Event> {
        let terms = Terms { deadline: self.shared().deadline, ..Terms::default() };
        Prepared { pool: self, call, terms, label: None }
    }

    /// Calls, and waits for the reply, for a worker and for room in the queue.
    ///
    /// # Errors
    /// Each variant of [`Error`] but `TimedOut`, unless there is a [deadline](PoolOptions::deadline); `Full` only if the options
    /// [say so](PoolOptions::when_full).
    pub fn call(&self, call: &Call) -> Result<Reply, Error>
    where
        Reply: Send + 'static,
    {
        self.prepare(call).call()
    }

    /// As [`call`](Pool::call), for at most that long: see [`Prepared::timeout`].
    ///
    /// # Errors
    /// As `call`, and [`Error::TimedOut`].
    pub fn call_timeout(&self, call: &Call, patience: Duration) -> Result<Reply, Error>
    where
        Reply: Send + 'static,
    {
        self.prepare(call).timeout(patience).call()
    }

    /// Calls, without waiting; `callback` is called once, with the reply or an error.
    ///
    /// # Errors
    /// The call was not made and the callback will not be called: [`Error::Full`], [`Error::NoWorker`], [`Error::Finished`],
    /// [`Error::TooLong`], [`Error::Encode`], [`Error::System`].
    pub fn submit(&self, call: &Call, callback: impl FnOnce(Result<Reply, Error>) + Send + 'static) -> Result<(), Error>
    where
        Reply: 'static,
    {
        self.prepare(call).submit(callback)
    }

    /// Calls; the future gives the reply, in any runtime. The call is made at once, and not when the future is polled first.
    /// Dropping the future gives it up.
    ///
    /// While the queue is full it waits at its door with its encoded message, which no option bounds: who makes futures without end
    /// wants [`WhenFull::Refuse`](super::WhenFull::Refuse), or a bound of his own.
    pub fn call_async(&self, call: &Call) -> PoolFuture<Reply>
    where
        Reply: Send + 'static,
    {
        self.prepare(call).call_async()
    }

    /// Calls `handler` with each event, and the worker that it comes from. Events of one worker come in their order; those of
    /// several may come at the same time. Set it before the first call: what comes while there is none is dropped.
    ///
    /// It is let go when the pool has finished. A clone of the pool in it keeps the pool open until a
    /// [`finish`](Pool::finish).
    pub fn on_event(&self, handler: impl Fn(Worker, Event) + Send + Sync + 'static)
    where
        Event: 'static,
    {
        let event = self.event;
        let handler = Arc::new(move |worker: Worker, bytes: Cow<'_, [u8]>, fds| {
            let event = event.decode(bytes, fds)?;
            call_back(|| handler(worker, event));
            Ok(())
        });
        *self.shared().on_event.lock().unwrap_or_else(PoisonError::into_inner) = Some(handler);
    }

    /// Calls `handler` with the end of each worker, on the pool's own thread: who, how, why, and what it had in hand. The calls
    /// that were lost with it hear of it before, or are begun again.
    ///
    /// It is let go when the pool has finished, as that of [`on_event`](Pool::on_event) is.
    pub fn on_worker_exit(&self, handler: impl FnMut(WorkerExit) + Send + 'static) {
        *self.shared().on_exit.lock().unwrap_or_else(PoisonError::into_inner) = Some(Box::new(handler));
    }

    /// How the pool is, and what it has done.
    pub fn statistics(&self) -> Statistics {
        self.shared().statistics()
    }

    /// The workers that live, or are about to, in the order of their starting.
    pub fn workers(&self) -> Vec<Worker> {
        self.shared().workers()
    }

    /// Takes no further call, from clones neither, waits until all that were made have ended, and then until all
    /// processes have left.
    ///
    /// A handler that never returns keeps it waiting for ever, unless its call has a [deadline](Prepared::deadline).
    ///
    /// # Errors
    /// [`Error::InCallback`]; then this clone is dropped.
    pub fn finish(self) -> Result<Statistics, Error> {
        if in_callback() {
            return Err(Error::InCallback);
        }
        let shared = Arc::clone(self.shared());
        shared.close();
        loop {
            let mut state = shared.state();
            if state.finished {
                return Ok(state.core.statistics());
            }
            let waker: Waker = thread_waker();
            state.parked.push(waker);
            drop(state);
            park(None);
        }
    }

    fn shared(&self) -> &Arc<Shared> {
        &self.handle.0
    }
}

impl<Call, Reply, Event> Clone for Pool<Call, Reply, Event> {
    fn clone(&self) -> Self {
        Pool { handle: Arc::clone(&self.handle), ..*self }
    }
}

impl<Call, Reply, Event> fmt::Debug for Pool<Call, Reply, Event> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").field("statistics", &self.statistics()).finish_non_exhaustive()
    }
}

/// A call that is about to be made, with terms of its own; see [`Pool::prepare`].
#[must_use = "nothing is called before one of the last three methods"]
pub struct Prepared<'a, Call, Reply, Event> {
    pool: &'a Pool<Call, Reply, Event>,
    call: &'a Call,
    terms: Terms,
    label: Option<String>,
}

impl<Call, Reply, Event> Prepared<'_, Call, Reply, Event> {
    /// How long the caller waits, from the calling on. Then the call ends with [`Error::TimedOut`]; it does not run if it has
    /// not begun, and its handler is told if it has. A handler that does not ask goes on, and its worker is busy until then.
    pub fn timeout(mut self, patience: Duration) -> Self {
        self.terms.patience = Some(patience);
        self
    }

    /// How long the call may be with a worker, from the handing over on. Then it ends with [`Error::TimedOut`], and that worker
    /// is killed and replaced. Other calls that it had in hand end with [`Error::Lost`], or are begun again if they are
    /// repeatable.
    ///
    /// With a [load](PoolOptions::load) over 1 it includes the time for which the call waits behind another one in the same worker.
    pub fn deadline(mut self, time: Duration) -> Self {
        self.terms.deadline = Some(time);
        self
    }

    /// It does no harm if the call runs more than once, wholly or in part: if its worker ends before it has answered,
    /// the call is begun again in another, up to so many times. A deadline is not tried twice.
    pub fn repeatable(mut self, times: u32) -> Self {
        self.terms.repeats = times;
        self
    }

    /// How the call is named in [`WorkerExit::in_hand`].
    pub fn label(mut self, label: impl Into<String>) -> Self {
        self.label = Some(label.into());
        self
    }

    /// See [`Pool::call`].
    ///
    /// # Errors
    /// As there.
    pub fn call(mut self) -> Result<Reply, Error>
    where
        Reply: Send + 'static,
    {
        if in_callback() {
            return Err(Error::InCallback);
        }
        // The caller looks at the clock himself. What is too far away for it is no deadline.
        let deadline = self.terms.patience.take().and_then(|patience| Instant::now().checked_add(patience));
        let shared = Arc::clone(self.pool.shared());
        let slot = Slot::new(thread_waker());
        let call = self.encode(|pool| slot.completion(pool.reply))?;
        let begun = shared.begin(call, Caller::Waits)?;
        wait(&shared, &slot, &begun, deadline)
    }

    /// See [`Pool::submit`].
    ///
    /// # Errors
    /// As there.
    pub fn submit(self, callback: impl FnOnce(Result<Reply, Error>) + Send + 'static) -> Result<(), Error>
    where
        Reply: 'static,
    {
        let shared = self.pool.shared();
        let call = self.encode(|pool| {
            let reply = pool.reply;
            Box::new(move |outcome| {
                let (outcome, codec) = read(reply, outcome);
                call_back(|| callback(outcome));
                codec
            })
        })?;
        shared.begin(call, Caller::Leaves).map(drop)
    }

    /// See [`Pool::call_async`].
    pub fn call_async(self) -> PoolFuture<Reply>
    where
        Reply: Send + 'static,
    {
        let shared = Arc::clone(self.pool.shared());
        let slot = Slot::new(Waker::noop().clone());
        let call = self.encode(|pool| slot.completion(pool.reply));
        let begun = call.and_then(|call| shared.begin(call, Caller::Polls));
        PoolFuture::new(&shared, slot, begun)
    }

    fn encode(self, completion: impl FnOnce(&Pool<Call, Reply, Event>) -> Completion) -> Result<NewCall, Error> {
        let Prepared { pool, call, mut terms, label } = self;
        let parcel = pool.call.pack(call, pool.shared().limits.message)?;
        terms.bytes = parcel.length();
        Ok(NewCall { completion: completion(pool), parcel, terms, label })
    }
}

impl<Call, Reply, Event> fmt::Debug for Prepared<'_, Call, Reply, Event> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Prepared").field("terms", &self.terms).field("label", &self.label).finish_non_exhaustive()
    }
}
