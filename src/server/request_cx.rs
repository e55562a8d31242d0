//! What a request may ask of its worker: a deadline, cleanups, locks, subprocesses, last words.

use std::fs::File;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use super::abort::AbortToken;
use super::cleanup::Cleanups;
use super::deadline::Deadlines;
use super::drain::MasterLink;
use super::in_hand::InHand;
use super::last_words::LastWords;
use super::lock::{self, FileLock};
use super::scoreboard::Record;
use super::worker_config::{WorkerBirth, WorkerConfig};
use crate::sys::clock::Monotonic;

/// What [`Service::serve`](super::Service::serve) is given, beside the connection.
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
    /// A call of [`serve`](super::Service::serve) that leaves its request incomplete ends what it has left here, too. Nothing
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
