//! What a user writes: a [`Service`], and what it is given to work with.

use std::cell::OnceCell;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::rc::Rc;

use slog::Logger;

use super::acceptor::Acceptor;
use super::conn::Conn;
use super::drain::{DrainNotice, MasterLink};
use super::offers::Offers;
use super::request_cx::RequestCx;
use super::scoreboard::Record;
use super::worker_config::{WorkerBirth, WorkerConfig};
use super::{Generation, Slot, worker};

pub use crate::proc::BoxError;

/// The result of a service's functions.
pub type Result<T, E = BoxError> = std::result::Result<T, E>;

/// What becomes of a connection after [`Service::serve`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
#[non_exhaustive]
pub enum Next {
    /// Keep it open; serve again when more has come. The request is over if something of it was consumed, and
    /// incomplete otherwise.
    Park,
    /// The request is incomplete, though something of it was consumed: serve again when more has come. What the service
    /// knows of it so far it leaves with [`Conn::keep_state`]. The deadline, the label and the count go on as for one
    /// request; at the deadline [`Conn::timed_out`] tells it. If no more can come, the connection is closed.
    More,
    /// Send what is unsent and serve again when the client has taken all of it. For a long answer, piece by piece (see
    /// [`Conn::has_room`]), and before something slow for which earlier answers are not to wait (see
    /// [`Service::ANSWERS_TOGETHER`]). At the deadline the connection is cut, since the answer has begun.
    Room,
    /// Send what is unsent and close it.
    Close,
}

/// A server's own part: what it preloads, and how it answers a request.
///
/// ```
/// use std::io::Write;
/// use hatchery::server::{Conn, Next, PreloadCx, RequestCx, Result, Service, WorkerCx};
///
/// struct Greeter { greeting: &'static str }
///
/// impl Service for Greeter {
///     type Preload = String;
///     fn preload(cx: &PreloadCx) -> Result<String> {
///         Ok(cx.arg_opt("greeting").unwrap_or("hello").to_owned())
///     }
///     fn start(greeting: &'static String, _: &WorkerCx) -> Result<Self> {
///         Ok(Greeter { greeting })
///     }
///     fn serve(&mut self, conn: &mut Conn, cx: &mut RequestCx) -> Result<Next> {
///         let Some(name) = conn.read_line(80)? else { return Ok(Next::Close) };
///         writeln!(conn, "{} {name}, here is slot {}", self.greeting, cx.slot())?;
///         Ok(Next::Park)
///     }
/// }
/// ```
pub trait Service: Sized + 'static {
    /// What the template builds once and all workers share, copy-on-write.
    type Preload: 'static;

    /// Whether answers to requests that come together (pipelined) may wait for each other and be sent in one go. As it
    /// stands they do not: what is finished is sent before the next request is served, however long that one takes and
    /// whatever becomes of its worker. That costs a system call for each such request. A service that answers all requests
    /// in no time sets it, and returns [`Next::Room`] while something is [`unsent`](Conn::unsent) before it does what may
    /// take time or end the process.
    const ANSWERS_TOGETHER: bool = false;

    /// Runs once in the template, before any worker is forked. It must start no thread.
    ///
    /// # Errors
    /// The server, or the reload, does not come up and says this error.
    fn preload(cx: &PreloadCx) -> Result<Self::Preload>;

    /// Runs once in each worker, before it accepts.
    ///
    /// # Errors
    /// The worker leaves with this error as its last report to the master.
    fn start(preload: &'static Self::Preload, cx: &WorkerCx) -> Result<Self>;

    /// Answers one request. It is called when at least one byte of the request is in [`Conn::buffer`] (and again, with more
    /// or nothing there, after [`Next::More`] and [`Next::Room`], or when the client's time or bytes are at their end), and may wait for the rest or, better, consume nothing and return
    /// [`Next::Park`]: then it is called again when more has come, and a slow sender holds nobody up. A long request is
    /// taken piece by piece in the same way, with [`Next::More`].
    ///
    /// What is written is sent as the client takes it, and a client that is slow to do so holds nobody up: the worker keeps up to
    /// a mebibyte of it, and serves others. A service that writes more than that without [`Next::Room`] waits for the client.
    /// All this ends at the request's deadline.
    ///
    /// # Errors
    /// What was written is sent, the connection closed, the error logged; the worker lives.
    fn serve(&mut self, conn: &mut Conn, cx: &mut RequestCx<'_>) -> Result<Next>;

    /// The worker's whole life. As it stands it is the worker loop, which calls
    /// [`serve`](Self::serve); a program with its own loop (an async runtime, an embedded
    /// interpreter) takes the listeners, the readiness and the drain notice from `cx` instead, and
    /// returns when drained.
    ///
    /// # Errors
    /// The worker ends with this error, and the master puts another in its place.
    fn run(self, cx: WorkerCx) -> Result<()> {
        worker::run(self, cx)
    }
}

/// An argument that a service asked for and nobody gave. Give it in [`Config::args`](super::Config::args), or to a
/// program with the flags of `hatchery serve` as `--arg NAME=VALUE`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
#[error("the service needs an argument named `{name}`, and none was given; give it as `--arg {name}=VALUE`")]
pub struct MissingArg {
    /// Its name.
    pub name: String,
}

/// What [`Service::preload`] is given.
#[derive(Debug, Clone)]
pub struct PreloadCx {
    config: WorkerConfig,
    generation: Generation,
}

impl PreloadCx {
    pub(crate) fn new(config: WorkerConfig, generation: Generation) -> Self {
        Self { config, generation }
    }

    /// The generation that is about to come.
    pub fn generation(&self) -> Generation {
        self.generation
    }
}

/// What a worker is made of; given to [`Service::start`] and [`Service::run`].
pub struct WorkerCx {
    pub(super) acceptors: Vec<Acceptor>,
    pub(super) config: WorkerConfig,
    pub(super) birth: WorkerBirth,
    pub(super) pid: u32,
    pub(super) notice: DrainNotice,
    pub(super) link: Rc<MasterLink>,
    pub(super) record: Record,
    /// What the master may call; made with the first offer.
    pub(super) offers: OnceCell<Box<Offers>>,
    pub(super) log: Logger,
}

impl fmt::Debug for WorkerCx {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WorkerCx")
            .field("birth", &self.birth)
            .field("pid", &self.pid)
            .field("acceptors", &self.acceptors)
            .finish_non_exhaustive()
    }
}

impl WorkerCx {
    /// A worker's context, made in the worker after the fork.
    ///
    /// # Errors
    /// Those of making a socket pair and an epoll instance.
    pub(crate) fn new(
        acceptors: Vec<Acceptor>,
        config: WorkerConfig,
        birth: WorkerBirth,
        link: MasterLink,
        record: Record,
        log: Logger,
    ) -> io::Result<Self> {
        let link = Rc::new(link);
        let notice = DrainNotice::new(Rc::clone(&link))?;
        let pid = std::process::id();
        Ok(Self { acceptors, config, birth, pid, notice, link, record, offers: OnceCell::new(), log })
    }

    /// The listeners, in the order in which they were configured. They are non-blocking, and shared
    /// with other workers (with [`AcceptMode::Reuseport`](super::AcceptMode::Reuseport), only during a roll): a connection
    /// seen waiting may be gone when it is accepted.
    pub fn listeners(&self) -> &[Acceptor] {
        &self.acceptors
    }

    /// Tells the master that this worker accepts connections. Only the first call does anything. A
    /// master that is gone is no error: [`draining`](Self::draining) says so.
    pub fn ready(&self) {
        self.notice.ready(&self.record);
    }

    /// Whether the master has asked this worker to drain, or is gone, or the worker got SIGTERM.
    pub fn draining(&self) -> bool {
        self.notice.asked()
    }

    /// A descriptor that is readable from the moment at which [`draining`](Self::draining) is true.
    /// Nothing is to be read from it.
    pub fn drain_fd(&self) -> BorrowedFd<'_> {
        self.notice.as_fd()
    }

    /// The worker's log; its records carry slot, pid and generation.
    pub fn log(&self) -> &Logger {
        &self.log
    }
}

/// The service's arguments, as every context gives them.
macro_rules! gives_arguments {
    ($cx:ty) => {
        impl $cx {
            /// The service's argument of that name.
            ///
            /// # Errors
            /// [`MissingArg`] names it.
            pub fn arg(&self, name: &str) -> Result<&str> {
                let missing = || MissingArg { name: name.to_owned() };
                Ok(self.arg_opt(name).ok_or_else(missing)?)
            }

            /// The service's argument of that name, where it was given.
            pub fn arg_opt(&self, name: &str) -> Option<&str> {
                self.config.args.get(name).map(String::as_str)
            }
        }
    };
}

/// Which worker it is, as the contexts of a worker tell it.
macro_rules! tells_the_worker {
    ($cx:ty) => {
        impl $cx {
            /// The slot that this worker fills.
            pub fn slot(&self) -> Slot {
                self.birth.slot
            }

            /// This worker's generation.
            pub fn generation(&self) -> Generation {
                self.birth.generation
            }

            /// This worker's process id.
            pub fn pid(&self) -> u32 {
                self.pid
            }
        }
    };
}

gives_arguments!(PreloadCx);
gives_arguments!(WorkerCx);
gives_arguments!(RequestCx<'_>);
tells_the_worker!(WorkerCx);
tells_the_worker!(RequestCx<'_>);
