//! What a worker's service offers to the master: functions that the master may call, and events.
//!
//! Each offer is a conversation of its own (`rpc::attended`) over a socket of which the master gets the other end. One epoll set
//! holds them all: it is what the worker loop, or a service's own, waits for. Nothing of this exists before the first offer.

use std::cell::{Cell, RefCell};
use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::epoll::{Epoll, EpollCreateFlags};
use slog::{Logger, debug, error, warn};

use super::drain::MasterLink;
use super::message::FromWorker;
use super::service::{Result, WorkerCx};
use crate::proc::words_of;
use crate::rpc::attended::{self, Attended, Seen};
use crate::rpc::{Codec, Cx, Events, Loop, Postcard};
use crate::sys::seqpacket::{self, ASK_AGAIN};

/// The most offers of one worker.
pub(super) const MOST: usize = 8;

/// The longest name of an offer, in bytes.
pub(super) const LONGEST_NAME: usize = 64;

/// So many calls of one offer are answered before others have their turn.
const CALLS_A_TURN: usize = 16;

/// So many calls a worker that leaves still answers.
const LAST_CALLS: usize = 1024;

/// How long a worker that leaves waits for a master that does not listen.
const LAST_PATIENCE: Duration = Duration::from_millis(200);

/// How a worker deals with an offer of its; see [`WorkerCx::offer`].
///
/// ```
/// use hatchery::rpc::Octets;
/// use hatchery::server::OfferOptions;
///
/// let options = OfferOptions::new().codec::<Octets>().max_queued(64 << 10);
/// # let _ = options;
/// ```
#[derive(Debug)]
pub struct OfferOptions<C = Postcard> {
    queued: u64,
    codec: PhantomData<fn() -> C>,
}

impl OfferOptions {
    /// [`Postcard`], and 1 MiB of events that wait.
    pub fn new() -> OfferOptions {
        OfferOptions { queued: 1 << 20, codec: PhantomData }
    }
}

impl Default for OfferOptions {
    fn default() -> OfferOptions {
        OfferOptions::new()
    }
}

impl<C> OfferOptions<C> {
    /// Speaks with another codec. The master must speak the same.
    #[must_use]
    pub fn codec<D>(self) -> OfferOptions<D> {
        OfferOptions { queued: self.queued, codec: PhantomData }
    }

    /// Once this many bytes wait to be sent, because the master does not listen or has not accepted the offer yet, no further
    /// event is taken; at least 1.
    #[must_use]
    pub fn max_queued(mut self, bytes: u64) -> OfferOptions<C> {
        self.queued = bytes.max(1);
        self
    }
}

/// A worker could not offer anything.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OfferError {
    /// The name is empty, longer than 64 bytes, or has control characters in it.
    #[error("an offer's name has 1 to {LONGEST_NAME} bytes and no control character: {name:?}")]
    Name {
        /// The name.
        name: String,
    },
    /// The worker has made as many offers as one may, which is 8. One offer can have many kinds of calls: let their type be an enum.
    #[error("a worker can make no more than {MOST} offers")]
    TooMany,
    /// The master does not listen to its workers just now: many messages of this worker wait.
    #[error("the master does not take the offer")]
    NotTaken,
    /// A system call failed. EMFILE: an offer needs one descriptor, a worker's first one two.
    #[error("cannot {operation}")]
    System {
        /// What was tried.
        operation: &'static str,
        /// What the kernel says.
        #[source]
        source: io::Error,
    },
}

impl OfferError {
    fn system(operation: &'static str) -> impl FnOnce(io::Error) -> OfferError {
        move |source| OfferError::System { operation, source }
    }
}

impl WorkerCx {
    /// Lets the master call this worker: for its counters, to have it load something anew. The [`Events`] that come back go to
    /// the master too: progress, notices. It gets the offer by [`Server::on_offer`](super::Server::on_offer), which has
    /// the whole example; a master that does not want it does the worker no harm, and events are dropped then.
    ///
    /// - `handler` carries out one call after the other in the worker's thread, between requests: while one is served,
    ///   calls wait. What it shares with the service is in an [`Rc`](std::rc::Rc). It has the time of a request
    ///   ([`Config::request_timeout`](super::Config::request_timeout)), whose deadline interrupts it and then ends the worker.
    ///   Its error, or panic, is that call's alone.
    /// - Events are sent at once, also in the middle of a request. Where the master does not listen they wait here, up to
    ///   [a limit](OfferOptions::max_queued), beyond which they are refused ([`Error::Full`](crate::rpc::Error::Full)): nothing here waits for the
    ///   master. They wait until the master accepts the offer, too; those that are longer than it allows are dropped then.
    /// - Events and replies arrive in the order in which they were made. At its end a worker answers who has called by
    ///   then, up to 1,024 calls; whoever calls later, and everybody after a crash, hears [how it ended](crate::rpc::Lost::Died).
    ///
    /// Offer in [`start`](super::Service::start): the worker loop serves what was offered by then. A service with a
    /// loop of its own calls [`answer_offers`](Self::answer_offers). An offer costs one descriptor, a worker's first one two.
    ///
    /// # Errors
    /// [`OfferError`]. A master that is gone is no error: [`draining`](Self::draining) says so.
    pub fn offer<Call, Reply, Event, C>(
        &self,
        name: &str,
        options: OfferOptions<C>,
        handler: impl FnMut(Call, &Cx<Event>) -> Result<Reply> + 'static,
    ) -> Result<Events<Event>, OfferError>
    where
        Call: 'static,
        Reply: 'static,
        Event: 'static,
        C: Codec<Call> + Codec<Reply> + Codec<Event>,
    {
        if !is_name(name) {
            return Err(OfferError::Name { name: name.to_owned() });
        }
        let offers = match self.offers.get() {
            Some(offers) => offers,
            None => {
                let offers = Offers::new().map_err(OfferError::system("make an epoll instance for the offers"))?;
                self.offers.get_or_init(|| Box::new(offers))
            }
        };
        let open = |socket, loop_| attended::open::<_, _, _, C>(socket, loop_, handler);
        offers.add(&self.link, name, options.queued, open)
    }

    /// For a service with a loop of its own ([`run`](super::Service::run)): a descriptor that is readable when
    /// [`answer_offers`](Self::answer_offers) has something to do. Nothing is to be read from it. None, where nothing was
    /// offered.
    pub fn offers_fd(&self) -> Option<BorrowedFd<'_>> {
        self.offers.get().map(|offers| offers.as_fd())
    }

    /// For a service with a loop of its own: answers some of the calls that have come, and sends events that have waited. It
    /// never waits itself. Call it when [`offers_fd`](Self::offers_fd) is readable; and after the time that comes back, which may be
    /// zero: then more has come than it has answered. Before the service returns, it answers whoever has called by then.
    ///
    /// Deadlines are the service's own concern here.
    ///
    /// ```no_run
    /// # use hatchery::server::{Result, WorkerCx};
    /// # use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    /// fn run(cx: &WorkerCx) -> Result<()> {
    ///     let mut again = None;
    ///     while !cx.draining() {
    ///         let mut fds = vec![PollFd::new(cx.drain_fd(), PollFlags::POLLIN)];
    ///         fds.extend(cx.offers_fd().map(|fd| PollFd::new(fd, PollFlags::POLLIN)));
    ///         // … and the listeners, and the connections.
    ///         poll(&mut fds, again.map_or(Ok(PollTimeout::NONE), PollTimeout::try_from)?)?;
    ///         again = cx.answer_offers();
    ///     }
    ///     cx.answer_offers();
    ///     Ok(())
    /// }
    /// ```
    pub fn answer_offers(&self) -> Option<Duration> {
        self.offers.get()?.attend(self.log(), |_, serve| serve())
    }
}

/// Whether an offer may have this name.
pub(super) fn is_name(name: &str) -> bool {
    (1..=LONGEST_NAME).contains(&name.len()) && !name.contains(char::is_control)
}

/// All offers of a worker.
pub(super) struct Offers {
    ready: Arc<Epoll>,
    offered: RefCell<Vec<Offered>>,
    ever: Cell<usize>,
}

struct Offered {
    name: String,
    conversation: Box<dyn Attended>,
}

impl Offers {
    fn new() -> io::Result<Offers> {
        let ready = Arc::new(Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?);
        Ok(Offers { ready, offered: RefCell::default(), ever: Cell::new(0) })
    }

    /// Opens a conversation and passes its other end to the master.
    fn add<Opened>(
        &self,
        link: &MasterLink,
        name: &str,
        queued: u64,
        open: impl FnOnce(OwnedFd, Loop) -> io::Result<(Box<dyn Attended>, Opened)>,
    ) -> Result<Opened, OfferError> {
        if self.ever.get() >= MOST {
            return Err(OfferError::TooMany);
        }
        let (here, there) = seqpacket::pair().map_err(OfferError::system("make a socket pair for an offer"))?;
        let loop_ = Loop { ready: Arc::clone(&self.ready), queued };
        let (conversation, events) = open(here, loop_).map_err(OfferError::system("watch an offer's socket"))?;
        match link.try_pass(&FromWorker::Offer { name: name.to_owned() }, &[there]) {
            Ok(true) => {}
            Ok(false) => return Err(OfferError::NotTaken),
            // The other end is closed with our copy, which is heard as the end of the conversation.
            Err(error) if matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset) => {}
            Err(error) => return Err(OfferError::system("pass an offer to the master")(error)),
        }
        self.ever.set(self.ever.get() + 1);
        self.offered.borrow_mut().push(Offered { name: name.to_owned(), conversation });
        Ok(events)
    }

    /// Serves each offer for a while, every call inside `around`. After the time that comes back there is more to do.
    pub(super) fn attend(&self, log: &Logger, mut around: impl FnMut(&str, &mut dyn FnMut())) -> Option<Duration> {
        // A handler may come by here, or offer something more.
        let mut offered = self.offered.take();
        let mut again: Option<Duration> = None;
        offered.retain_mut(|offered| {
            let mut calls = CALLS_A_TURN;
            let after = match offered.serve(&mut calls, log, &mut around) {
                Left::Nothing => return true,
                Left::Over => return false,
                Left::More => Duration::ZERO,
                Left::Want => ASK_AGAIN,
            };
            again = Some(again.map_or(after, |before| before.min(after)));
            true
        });
        let mut now = self.offered.borrow_mut();
        offered.append(&mut now);
        *now = offered;
        again
    }

    /// Answers who has called by now, and sends what waits as far as the master takes it.
    pub(super) fn finish(&self, log: &Logger, mut around: impl FnMut(&str, &mut dyn FnMut())) {
        let until = Instant::now() + LAST_PATIENCE;
        for mut offered in self.offered.take() {
            let mut calls = LAST_CALLS;
            while let Left::Want | Left::Nothing = offered.serve(&mut calls, log, &mut around)
                && offered.conversation.is_unsent()
                && self.has_room_by(until)
            {}
        }
    }

    fn has_room_by(&self, until: Instant) -> bool {
        let left = until.saturating_duration_since(Instant::now());
        // In between the kernel is asked for what it lacked.
        let patience = PollTimeout::try_from(left.min(ASK_AGAIN));
        let _ = poll(&mut [PollFd::new(self.as_fd(), PollFlags::POLLIN)], patience.unwrap_or(PollTimeout::ZERO));
        !left.is_zero()
    }
}

/// What is left to do with an offer.
enum Left {
    Nothing,
    More,
    Want,
    Over,
}

impl Offered {
    /// Serves so many calls at most.
    fn serve(&mut self, calls: &mut usize, log: &Logger, around: &mut impl FnMut(&str, &mut dyn FnMut())) -> Left {
        while *calls > 0 {
            *calls -= 1;
            match self.conversation.look() {
                Seen::Call => around(&self.name, &mut || {
                    if let Err(panic) = self.conversation.serve() {
                        error!(log, "the handler of an offer panicked"; "offer" => &self.name, "panic" => %panic);
                    }
                }),
                Seen::Nothing => return Left::Nothing,
                Seen::Want => return Left::Want,
                Seen::Over(why) => {
                    match why {
                        Some(why) => {
                            warn!(log, "an offer is over"; "offer" => &self.name, "why" => words_of(why.as_ref()))
                        }
                        None => debug!(log, "an offer is over"; "offer" => &self.name),
                    }
                    return Left::Over;
                }
            }
        }
        Left::More
    }
}

impl Drop for Offered {
    fn drop(&mut self) {
        self.conversation.leave();
    }
}

impl AsFd for Offers {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.ready.0.as_fd()
    }
}
