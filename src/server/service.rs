//! What a user writes: a [`Service`], and what it is given to work with.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};

use slog::Logger;

use super::abort::AbortToken;
use super::acceptor::Acceptor;
use super::cleanup::Cleanups;
use super::conn::Conn;
use super::deadline::Deadlines;
use super::drain::{DrainNotice, MasterLink};
use super::in_hand::InHand;
use super::last_words::LastWords;
use super::lock::{self, FileLock};
use super::scoreboard::Record;
use super::worker_config::{WorkerBirth, WorkerConfig};
use super::{Generation, Slot, worker};
use crate::sys::clock::Monotonic;

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

    /// Answers one request. It is called when at least one byte of the request is in
    /// [`Conn::buffer`], and may wait for the rest or, better, consume nothing and return
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
        Ok(Self { acceptors, config, birth, pid, notice, link, record, log })
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

/// What [`Service::serve`] is given, beside the connection.
#[derive(Debug)]
pub struct RequestCx<'a> {
    pub(super) config: &'a WorkerConfig,
    pub(super) birth: &'a WorkerBirth,
    pub(super) record: &'a Record,
    pub(super) pid: u32,
    pub(super) draining: bool,
    /// To ask whether that has changed; none in tests.
    pub(super) link: Option<&'a MasterLink>,
    pub(super) since: Monotonic,
    pub(super) deadlines: &'a Deadlines,
    pub(super) in_hand: &'static InHand,
    pub(super) cleanups: &'a Cleanups,
}

impl RequestCx<'_> {
    /// Says what the request is about, for status and log: at most
    /// [`LABEL_BYTES`](super::LABEL_BYTES) bytes, the rest is cut. It lasts until the request ends.
    pub fn label(&self, label: impl AsRef<[u8]>) {
        self.record.set_label(label.as_ref());
    }

    /// Whether the worker is on its way out: the last request of this connection, say so if the
    /// protocol can. A request that has taken a millisecond or more looks anew each time, which costs a
    /// system call; so a long one asks when it begins to answer.
    pub fn draining(&self) -> bool {
        self.draining || self.link.is_some_and(|link| self.is_long() && link.wants_drain())
    }

    /// A wish to drain that comes during a short request is as well heard after it.
    fn is_long(&self) -> bool {
        Monotonic::now().since(self.since) >= Duration::from_millis(1)
    }

    /// Gives this request a deadline of its own: it must have ended `limit` after its first byte came.
    /// It replaces [`Config::request_timeout`](super::Config::request_timeout), shorter or longer,
    /// for whatever is left of the request, also where there is no such timeout. It costs no system
    /// call, but for a deadline that comes before all that were set lately.
    ///
    /// ```
    /// # use std::{io::Write, time::Duration};
    /// # use hatchery::server::{Conn, Next, RequestCx, Result};
    /// fn serve(conn: &mut Conn, cx: &mut RequestCx) -> Result<Next> {
    ///     cx.deadline(Duration::from_millis(200))?;
    ///     let Some(line) = conn.read_line(4096)? else { return Ok(Next::Close) };
    ///     writeln!(conn, "{line}")?;
    ///     Ok(Next::Park)
    /// }
    /// ```
    ///
    /// # Errors
    /// Those of timer_create(2), if it is the worker's first deadline at all: EAGAIN where the user
    /// may have no more signals pending (RLIMIT_SIGPENDING). What waits at the connection ends in
    /// time even so; what computes is not interrupted.
    pub fn deadline(&self, limit: Duration) -> io::Result<()> {
        Ok(self.deadlines.move_to(self.since.after(limit))?)
    }

    /// Pushes the deadline: the request must have ended `by` from now. For long answers that are sent
    /// piece by piece, where each piece earns the next one its time.
    ///
    /// # Errors
    /// Those of [`deadline`](Self::deadline).
    pub fn extend(&self, by: Duration) -> io::Result<()> {
        Ok(self.deadlines.move_to(Monotonic::now().after(by))?)
    }

    /// What the client is told if this request takes its worker with it: by a hard deadline, or by a crash (SIGSEGV,
    /// SIGBUS, SIGILL, SIGFPE, SIGABRT, a stack that overflows), of whichever thread. The bytes are sent as they are, and
    /// the connection is closed; so they are a whole answer, or what ends one.
    ///
    /// Nothing is said once a byte of the response was sent: then the connection is cut, so a client never reads two
    /// answers in one. Answers to earlier requests of the connection go out first. Without a call of this, or where the
    /// client's side takes no more, the connection is cut too. A handler for one of the signals that the service has
    /// installed itself stays in its place, and says nothing of this. It costs no system call.
    ///
    /// ```
    /// # use std::io::Write;
    /// # use hatchery::server::{Conn, LastWords, Next, RequestCx, Result};
    /// # fn serve(conn: &mut Conn, cx: &mut RequestCx) -> Result<Next> {
    /// cx.last_words(b"ERR the server has failed\n");
    /// cx.last_words(LastWords { deadline: b"ERR too slow\n", crash: b"ERR crashed\n" });
    /// # Ok(Next::Close)
    /// # }
    /// ```
    pub fn last_words(&self, words: impl Into<LastWords>) {
        self.in_hand.last_words.set(words.into().into());
    }

    /// When the request must have ended; none: whenever it likes.
    pub fn due(&self) -> Option<Instant> {
        self.deadlines.due().map(Monotonic::instant)
    }

    /// Whether the deadline has passed. From then on SIGALRM interrupts blocking calls every ten
    /// milliseconds. It may also come once too early, so code that sees EINTR asks here whether to
    /// give up or to call again.
    pub fn overdue(&self) -> bool {
        self.deadlines.due().is_some_and(|due| due <= Monotonic::now())
    }

    /// Leaves something to be done when the request has ended in any way that leaves the worker alive: a return, an
    /// error, a panic, a deadline that interrupts, a client that has gone. The last one left runs first. They run when
    /// the answer has been sent, as far as the client takes it (that to the next request of a client that sends several
    /// at once waits for them), and the ended request's deadline does not touch them: together they may take as long as a
    /// request may. One that panics is logged, and the others run.
    ///
    /// A call of [`serve`](Service::serve) that leaves its request incomplete ends what it has left here, too. Nothing
    /// runs when the worker dies: what must end even then belongs to the kernel, such as a [`lock`](Self::lock).
    ///
    /// ```
    /// # use hatchery::server::{Conn, Next, RequestCx, Result};
    /// fn serve(conn: &mut Conn, cx: &mut RequestCx<'_>) -> Result<Next> {
    ///     let draft = std::env::temp_dir().join(format!("draft-{}", cx.pid()));
    ///     let path = draft.clone();
    ///     cx.on_cleanup(move || drop(std::fs::remove_file(path)));
    ///     std::fs::write(&draft, conn.read_line(4096)?.unwrap_or_default())?;
    ///     // What follows may fail, panic or take too long: the draft will be gone.
    ///     Ok(Next::Park)
    /// }
    /// ```
    pub fn on_cleanup(&self, cleanup: impl FnOnce() + 'static) {
        self.cleanups.add(cleanup);
    }

    /// Waits for the lock on a file, at most until the deadline, and holds it alone; see [`FileLock`]. It is let go with
    /// its scope, and with the worker, however that ends.
    ///
    /// ```
    /// # use hatchery::server::{RequestCx, Result};
    /// # fn book(cx: &RequestCx<'_>) -> Result<()> {
    /// let _lock = cx.lock("/run/shop/stock.lock")?;
    /// // From here to the end of the function no other process has it.
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// `TimedOut` when the deadline has passed; else as for [`FileLock::exclusive`].
    pub fn lock(&self, path: impl AsRef<Path>) -> io::Result<FileLock> {
        lock::wait_for(path.as_ref(), File::lock, || self.in_time())
    }

    /// As [`lock`](Self::lock), but held together with all others that ask for it in this way.
    ///
    /// # Errors
    /// As for [`lock`](Self::lock).
    pub fn lock_shared(&self, path: impl AsRef<Path>) -> io::Result<FileLock> {
        lock::wait_for(path.as_ref(), File::lock_shared, || self.in_time())
    }

    /// A token that flips by itself when the work for this request is in vain: at the client's end (FIN or RST), at the
    /// request's deadline, at the latest when the request has ended.
    ///
    /// A request that does not ask for one pays nothing. The first token of a request costs a few system calls; from then on
    /// until the request ends, whatever comes from the client interrupts the worker's thread with SIGIO for a moment: calls
    /// that a signal makes fail even with SA_RESTART, such as poll(2) (signal(7)), may then give EINTR. The client's end is
    /// seen behind the bytes that came before it, if they fit into the socket's buffer.
    ///
    /// ```
    /// # use hatchery::server::{Conn, Next, RequestCx, Result};
    /// # use std::io::Write;
    /// fn serve(conn: &mut Conn, cx: &mut RequestCx<'_>) -> Result<Next> {
    ///     let abort = cx.abort_token()?;
    ///     let mut sum = 0u64;
    ///     for number in 0..1_000_000 {
    ///         abort.check()?; // costs one load
    ///         sum = sum.wrapping_mul(31).wrapping_add(number);
    ///     }
    ///     writeln!(conn, "{sum}")?;
    ///     Ok(Next::Park)
    /// }
    /// ```
    ///
    /// # Errors
    /// Those of sigaction(2) and fcntl(2); `NotConnected` if the service has put another connection in the request's place.
    pub fn abort_token(&self) -> io::Result<AbortToken> {
        let line = &self.in_hand.line;
        let watch = line.watch()?;
        if self.overdue() {
            line.note_deadline();
        }
        Ok(AbortToken::new(watch))
    }

    /// For code that a signal has interrupted: whether to go on.
    ///
    /// # Errors
    /// `TimedOut` when the deadline has passed.
    pub fn in_time(&self) -> io::Result<()> {
        match self.overdue() {
            true => Err(io::Error::new(io::ErrorKind::TimedOut, "the request's deadline has passed")),
            false => Ok(()),
        }
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
