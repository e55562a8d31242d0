//! Accepting, and what is done where no descriptor is left for it.

use std::io;
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::epoll::EpollFlags;
use slog::{debug, warn};

use super::Worker;
use super::token::Token;
use crate::server::Slot;
use crate::server::acceptor::Acceptor;
use crate::server::attend::{FIRST_BYTE_TIME, Outcome};
use crate::server::conn::Conn;
use crate::server::message::FromWorker;
use crate::server::parked::{Guest, Phase};
use crate::server::service::{Result, Service};
use crate::sys::clock::Monotonic;

/// So many connections that are over at once are accepted before the others get their turn.
const ACCEPTS_IN_A_ROW: usize = 8;
/// So many connections a worker that leaves still takes from a queue that others go on serving.
const LAST_ACCEPTS: usize = 16;
/// So many idle connections are looked at to make room for one.
const LAST_LOOKS: usize = 8;
/// How long a listener is left to the other workers after an accept that failed for want of something.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Such a failure is logged so often at most.
const COMPLAIN_EVERY: Duration = Duration::from_secs(60);

/// A listener in the epoll set.
pub(super) struct Listener {
    /// Under which the epoll set knows it.
    pub(super) key: u32,
    pub(super) acceptor: Acceptor,
    pub(super) queue: Queue,
    /// Until then it is not in the set.
    pub(super) paused_until: Option<Monotonic>,
    /// It has been left to the other workers, who did not empty the queue.
    others_had_their_chance: bool,
}

/// Who else accepts from a listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Queue {
    /// All workers.
    Shared,
    /// Nobody: it is this slot's.
    Own,
    /// Nobody: it is that slot's, which has no worker.
    StoodInFor(Slot),
}

/// When what recurs was said last.
#[derive(Default)]
pub(super) struct Complaints {
    paused: Option<Monotonic>,
    shed: Option<Monotonic>,
}

/// What an accept has brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Taken {
    Nobody,
    AndParked,
    AndClosed,
}

impl<S: Service> Worker<S> {
    // ---- accepting ----

    pub(super) fn listen(&mut self, acceptor: Acceptor, queue: Queue) -> Result<(), Errno> {
        self.listeners_ever += 1;
        let listener = Listener {
            key: self.listeners_ever,
            acceptor,
            queue,
            paused_until: None,
            others_had_their_chance: queue != Queue::Shared,
        };
        self.watch(&listener)?;
        self.listeners.push(listener);
        Ok(())
    }

    /// EPOLLEXCLUSIVE: a new connection wakes one waiting worker rather than all of them.
    fn watch(&self, listener: &Listener) -> Result<(), Errno> {
        let flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLEXCLUSIVE;
        self.epoll.add(&listener.acceptor, Token::Listener(listener.key).event(flags))
    }

    /// While each connection is served and closed at once, the worker holds nobody whom another worker
    /// could serve sooner, and goes on without asking epoll. A full queue thus costs one call of
    /// epoll_wait for several connections.
    pub(super) fn accept_some(&mut self, key: u32) -> Result<()> {
        for _ in 0..ACCEPTS_IN_A_ROW {
            match self.accept(key)? {
                Taken::AndClosed => {}
                Taken::AndParked => return self.step_back(key),
                Taken::Nobody => break,
            }
        }
        Ok(())
    }

    /// Lets the other workers go first when the next connection comes: the kernel wakes whoever has been in its list
    /// longest, who would else collect the connections that stay.
    fn step_back(&self, key: u32) -> Result<()> {
        if let Some(listener) = self.listeners.iter().find(|listener| listener.key == key)
            && listener.queue == Queue::Shared
        {
            self.epoll.delete(&listener.acceptor)?;
            self.watch(listener)?;
        }
        Ok(())
    }

    /// Takes one connection from the queue.
    fn accept(&mut self, key: u32) -> Result<Taken> {
        let Some(index) = self.listeners.iter().position(|listener| listener.key == key) else {
            return Ok(Taken::Nobody);
        };
        match self.listeners[index].acceptor.accept() {
            Ok(Some(conn)) => Ok(self.welcome(conn)),
            Ok(None) => Ok(Taken::Nobody),
            Err(error) => self.accept_in_want(index, &error),
        }
    }

    /// Descriptors or memory have run out. The queue keeps its clients; asking again at once would only spin.
    #[cold]
    #[inline(never)]
    fn accept_in_want(&mut self, index: usize, error: &io::Error) -> Result<Taken> {
        // EMFILE comes before the kernel looks into the queue, where perhaps nobody waits.
        for _ in 0..LAST_LOOKS {
            let listener = &self.listeners[index];
            if !listener.acceptor.has_queue() {
                return Ok(Taken::Nobody);
            }
            if !listener.others_had_their_chance || !self.shed() {
                break;
            }
            if let Ok(taken) = self.listeners[index].acceptor.accept() {
                return Ok(taken.map_or(Taken::Nobody, |conn| self.welcome(conn)));
            }
        }
        self.pause(index, error)?;
        Ok(Taken::Nobody)
    }

    /// Closes the connection that has been idle longest, after a last look at it. False if there is none.
    fn shed(&mut self) -> bool {
        let Some(key) = self.parked.longest_idle(self.due_of_silent()) else {
            return false;
        };
        if is_time_to_say(&mut self.complained.shed, self.attendant.now) {
            warn!(self.attendant.log, "no room for new clients, closing idle connections";
                "parked" => self.parked.len());
        }
        self.visit_last(key);
        true
    }

    /// Fresh connections that are due by then have been silent for so long that a draining worker would not wait for them
    /// either.
    fn due_of_silent(&self) -> Option<Monotonic> {
        let left = self.attendant.config.idle_timeout?.checked_sub(FIRST_BYTE_TIME)?;
        Some(self.attendant.now.after(left))
    }

    /// The handshake wakes this worker before the client has had the time to send, so the first read
    /// mostly finds nothing. Giving up the processor once lets a client on the same core send, and
    /// costs next to nothing where nobody wants it; parking, waiting and being woken again would cost
    /// more than the request itself. Whoever is still silent then is parked: with 16 clients at work
    /// that is one connection in ten to thirty. At worst, with others that compute on this core, their
    /// time slice comes first; the connections that the worker had before have been served by then.
    fn welcome(&mut self, mut conn: Conn) -> Taken {
        self.connections += 1;
        self.attendant.record.set_connections(self.connections);
        let mut outcome = self.attendant.visit(&mut conn, None);
        if outcome == Outcome::Nothing {
            thread::yield_now();
            self.attendant.now = Monotonic::now();
            outcome = self.attendant.visit(&mut conn, None);
        }
        let Some(phase) = self.attendant.settle(&mut conn, Phase::Fresh, outcome) else {
            return Taken::AndClosed;
        };
        self.park(Guest { conn, phase });
        Taken::AndParked
    }

    fn pause(&mut self, index: usize, error: &io::Error) -> Result<()> {
        let now = self.attendant.now;
        let listener = &mut self.listeners[index];
        self.epoll.delete(&listener.acceptor)?;
        listener.paused_until = Some(now.after(ACCEPT_PAUSE));
        // Who waits there has woken this worker and no other.
        if listener.queue == Queue::Shared && !self.attendant.link.try_say(&FromWorker::Full) {
            debug!(self.attendant.log, "the master does not listen");
        }
        if is_time_to_say(&mut self.complained.paused, now) {
            warn!(self.attendant.log, "cannot accept, trying again every 100 ms";
                "listener" => listener.acceptor.address(), "error" => %error, "parked" => self.parked.len());
        }
        Ok(())
    }

    pub(super) fn resume_listeners(&mut self) -> Result<()> {
        for index in 0..self.listeners.len() {
            let listener = &mut self.listeners[index];
            if listener.paused_until.is_some_and(|until| until <= self.attendant.now) {
                listener.paused_until = None;
                listener.others_had_their_chance = true;
                self.watch(&self.listeners[index])?;
            }
        }
        Ok(())
    }

    pub(super) fn keys_of(&self, which: impl Fn(&Listener) -> bool) -> Vec<u32> {
        self.listeners.iter().filter(|listener| which(listener)).map(|listener| listener.key).collect()
    }

    /// Leaves a listener to others.
    pub(super) fn leave(&mut self, key: u32) -> Result<()> {
        // A connection that came a moment ago may have woken this worker and no other, and nobody
        // is woken for it again. So the queue is looked at once more before it is left to the others. Behind a
        // shut gate there may be no others, and the queue ends.
        let is_shut = self.listeners.iter().any(|of| of.key == key && of.acceptor.is_shut());
        for _ in 0..if is_shut { usize::MAX } else { LAST_ACCEPTS } {
            let is_paused = self.listeners.iter().any(|of| of.key == key && of.paused_until.is_some());
            if is_paused || self.accept(key)? == Taken::Nobody {
                break;
            }
        }
        if let Some(index) = self.listeners.iter().position(|listener| listener.key == key) {
            let listener = self.listeners.swap_remove(index);
            // Closing alone would not do: the master holds the same listener open.
            if listener.paused_until.is_none() {
                self.epoll.delete(&listener.acceptor)?;
            }
        }
        Ok(())
    }
}

/// Whether to say now what recurs; then it counts as said.
fn is_time_to_say(said: &mut Option<Monotonic>, now: Monotonic) -> bool {
    let is_time = said.is_none_or(|at| now.since(at) >= COMPLAIN_EVERY);
    if is_time {
        *said = Some(now);
    }
    is_time
}
