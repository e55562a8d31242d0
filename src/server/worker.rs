//! The worker loop: accept, serve, park.
//!
//! One epoll set holds the listeners, the wish to drain and the parked connections. Whatever can be
//! done at once is tried before waiting: a connection just accepted is read from, and if its request
//! is there, it is served without ever entering the set. A connection enters the set when it is
//! first parked and leaves it by being closed; in between the set is not touched.
//!
//! A turn serves the connections that the worker has first, and then accepts: one more, or a few as long
//! as each is over at once. What a busy worker does not take stays in the queue for one that has less
//! to do.
//!
//! While the worker drains, a connection that has not been served yet stays for a moment, because
//! its client is about to send; parked ones that are between two requests have a last chance: a request that
//! comes before it is over is answered, with a word that it is the last if the protocol has one.

use std::io;
use std::mem;
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use slog::{info, warn};

use super::acceptor::Acceptor;
use super::attend::{Attendant, Outcome};
use super::cleanup::Cleanups;
use super::conn::{Buffers, Conn};
use super::deadline::Deadlines;
use super::drain::DrainNotice;
use super::in_hand::InHand;
use super::parked::{Guest, Key, Parked, Phase};
use super::service::{Result, Service, WorkerCx};
use crate::sys::clock::Monotonic;
use crate::sys::{crash, last_words};

/// So many connections that are over at once are accepted before the others get their turn.
const ACCEPTS_IN_A_ROW: usize = 8;
/// So many connections a worker that leaves still takes from a queue that others go on serving.
const LAST_ACCEPTS: usize = 16;
/// So many events are taken from the kernel at a time.
const EVENTS: usize = 32;
/// How long a listener is left alone after an accept that failed for want of something.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Such a failure is logged so often at most.
const COMPLAIN_EVERY: Duration = Duration::from_secs(60);

/// Runs the worker loop until the worker is drained.
pub(super) fn run<S: Service>(service: S, cx: WorkerCx) -> Result<()> {
    let mut worker = Worker::new(service, cx)?;
    while !(worker.attendant.draining && worker.parked.is_empty()) {
        worker.turn()?;
    }
    Ok(())
}

struct Worker<S> {
    attendant: Attendant<S>,
    notice: DrainNotice,
    listeners: Vec<Listener>,
    parked: Parked,
    connections: u64,
    epoll: Epoll,
}

struct Listener {
    acceptor: Acceptor,
    paused_until: Option<Monotonic>,
    complained: Option<Monotonic>,
}

impl<S: Service> Worker<S> {
    fn new(service: S, cx: WorkerCx) -> Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        epoll.add(&cx.notice, Token::Notice.event(EpollFlags::EPOLLIN))?;
        let in_hand = InHand::of_worker();
        last_words::adopt(&in_hand.last_words);
        crash::install()?;
        let deadlines = Deadlines::new(&cx.config, in_hand, cx.record)?;
        let worker = Self {
            attendant: Attendant {
                service,
                in_hand,
                deadlines,
                config: cx.config,
                birth: cx.birth,
                pid: cx.pid,
                record: cx.record,
                link: cx.link,
                buffers: Buffers::default(),
                cleanups: Cleanups::default(),
                requests: 0,
                aborted: 0,
                draining: false,
                orphaned: false,
                last_chance: None,
                now: Monotonic::now(),
                log: cx.log,
            },
            notice: cx.notice,
            listeners: cx.acceptors.into_iter().map(Listener::new).collect(),
            parked: Parked::default(),
            connections: 0,
            epoll,
        };
        for (index, listener) in (0..).zip(&worker.listeners) {
            worker.watch(index, &listener.acceptor)?;
        }
        worker.notice.ready(&worker.attendant.record);
        Ok(worker)
    }

    /// One wait, and all that it brought.
    fn turn(&mut self) -> Result<()> {
        let mut events = [EpollEvent::empty(); EVENTS];
        let count = match self.epoll.wait(&mut events, self.patience()) {
            Ok(count) => count,
            Err(Errno::EINTR) => 0,
            Err(error) => return Err(error.into()),
        };
        self.attendant.now = Monotonic::now();
        let tokens = events[..count].iter().map(|event| Token::from(event.data()));
        for token in tokens.clone() {
            match token {
                Token::Notice => self.begin_drain()?,
                Token::Parked(key) => self.revisit(key),
                Token::Listener(_) => {}
            }
        }
        for token in tokens {
            if let Token::Listener(index) = token {
                self.accept_some(index)?;
            }
        }
        self.handle_due();
        self.resume_listeners()
    }

    /// How long to wait for events.
    fn patience(&self) -> EpollTimeout {
        let resumes = self.listeners.iter().filter_map(|listener| listener.paused_until);
        let Some(next) = resumes.chain(self.parked.next_moment()).min() else {
            return EpollTimeout::NONE;
        };
        // Rounded up, or the last millisecond would be spent spinning.
        let millis = next.since(self.attendant.now).as_nanos().div_ceil(1_000_000);
        EpollTimeout::try_from(millis).unwrap_or(EpollTimeout::MAX)
    }

    // ---- accepting ----

    /// EPOLLEXCLUSIVE: a new connection wakes one waiting worker rather than all of them.
    fn watch(&self, index: u32, acceptor: &Acceptor) -> Result<(), Errno> {
        let flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLEXCLUSIVE;
        self.epoll.add(acceptor, Token::Listener(index).event(flags))
    }

    /// While each connection is served and closed at once, the worker holds nobody whom another worker
    /// could serve sooner, and goes on without asking epoll. A full queue thus costs one call of
    /// epoll_wait for several connections.
    fn accept_some(&mut self, index: u32) -> Result<()> {
        for _ in 0..ACCEPTS_IN_A_ROW {
            if self.accept(index)? != Taken::AndClosed {
                break;
            }
        }
        Ok(())
    }

    /// Takes one connection from the queue.
    fn accept(&mut self, index: u32) -> Result<Taken> {
        let Some(listener) = self.listeners.get(index as usize) else {
            return Ok(Taken::Nobody);
        };
        match listener.acceptor.accept() {
            Ok(Some(conn)) => return Ok(self.welcome(conn)),
            Ok(None) => {}
            Err(error) => self.pause(index, &error)?,
        }
        Ok(Taken::Nobody)
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

    fn park(&mut self, guest: Guest) {
        let due = self.attendant.due(guest.phase);
        let key = self.parked.insert(guest);
        self.count_parked();
        self.parked.set_due(key, due);
        let Some(guest) = self.parked.get(key) else {
            return;
        };
        let event = Token::Parked(key).event(EpollFlags::EPOLLIN);
        if let Err(error) = self.epoll.add(&guest.conn, event) {
            warn!(self.attendant.log, "cannot park a connection, it is closed"; "error" => %error);
            self.close(key);
        }
    }

    /// Descriptors or memory have run out. The queue keeps its clients; asking again at once would
    /// only spin.
    fn pause(&mut self, index: u32, error: &io::Error) -> Result<()> {
        let now = self.attendant.now;
        let listener = &mut self.listeners[index as usize];
        self.epoll.delete(&listener.acceptor)?;
        listener.paused_until = Some(now.after(ACCEPT_PAUSE));
        if listener.complained.is_none_or(|at| now.since(at) >= COMPLAIN_EVERY) {
            listener.complained = Some(now);
            warn!(self.attendant.log, "cannot accept, trying again every 100 ms";
                "listener" => listener.acceptor.address(), "error" => %error);
        }
        Ok(())
    }

    fn resume_listeners(&mut self) -> Result<()> {
        for index in 0..self.listeners.len() {
            let listener = &mut self.listeners[index];
            if listener.paused_until.is_some_and(|until| until <= self.attendant.now) {
                listener.paused_until = None;
                self.watch(index as u32, &self.listeners[index].acceptor)?;
            }
        }
        Ok(())
    }

    // ---- parked connections ----

    /// Something has come for a parked connection.
    fn revisit(&mut self, key: Key) {
        let Some(guest) = self.parked.get(key) else {
            return;
        };
        let outcome = match &mut guest.phase {
            Phase::Fresh | Phase::Idle => self.attendant.visit(&mut guest.conn, None),
            Phase::Partial(request) => self.attendant.visit(&mut guest.conn, Some(*request)),
            Phase::Lingering { left } => match guest.conn.drop_input(left) {
                true => Outcome::Nothing,
                false => Outcome::Close,
            },
        };
        self.settle(key, outcome);
    }

    /// Nothing, or not enough, has come in time.
    fn handle_due(&mut self) {
        while let Some(key) = self.parked.pop_due(self.attendant.now) {
            let Some(guest) = self.parked.get(key) else {
                continue;
            };
            let outcome = match guest.phase {
                // A last look: a worker that was long busy has not seen what came meanwhile.
                Phase::Fresh | Phase::Idle => match self.attendant.visit(&mut guest.conn, None) {
                    Outcome::Nothing => Outcome::Close,
                    served => served,
                },
                Phase::Partial(request) => {
                    self.attendant.time_out(&mut guest.conn, request);
                    Outcome::Close
                }
                Phase::Lingering { .. } => Outcome::Close,
            };
            self.settle(key, outcome);
        }
    }

    /// Keeps a parked connection or closes it, as its visit came out.
    fn settle(&mut self, key: Key, outcome: Outcome) {
        let Some(guest) = self.parked.get(key) else {
            return;
        };
        match self.attendant.settle(&mut guest.conn, guest.phase, outcome) {
            None => self.close(key),
            Some(phase) => {
                guest.phase = phase;
                if outcome != Outcome::Nothing {
                    self.parked.set_due(key, self.attendant.due(phase));
                }
            }
        }
    }

    /// Closing takes the connection out of the epoll set as well.
    fn close(&mut self, key: Key) {
        self.parked.remove(key);
        self.count_parked();
    }

    fn count_parked(&self) {
        self.attendant.record.set_parked(self.parked.len() as u64);
    }

    // ---- leaving ----

    fn begin_drain(&mut self) -> Result<()> {
        if self.attendant.draining || !self.notice.asked() {
            return Ok(());
        }
        info!(self.attendant.log, "draining"; "parked" => self.parked.len());
        let orphaned = self.notice.is_orphaned();
        let last_chance = if orphaned { Duration::ZERO } else { self.attendant.config.last_chance };
        self.attendant.draining = true;
        self.attendant.orphaned = orphaned;
        self.attendant.last_chance = Some(self.attendant.now.after(last_chance));
        self.attendant.record.set_state(self.attendant.resting_state());
        self.epoll.delete(&self.notice)?;
        // A connection that came a moment ago may have woken this worker and no other, and nobody
        // is woken for it again. So the queue is looked at once more before it is left to the others. Behind a
        // shut gate there may be no others, and the queue ends.
        for index in 0..self.listeners.len() {
            let most = if self.listeners[index].acceptor.is_shut() { usize::MAX } else { LAST_ACCEPTS };
            for _ in 0..most {
                if self.listeners[index].paused_until.is_some() || self.accept(index as u32)? == Taken::Nobody {
                    break;
                }
            }
        }
        for listener in mem::take(&mut self.listeners) {
            // Closing alone would not do: the master holds the same listener open.
            if listener.paused_until.is_none() {
                self.epoll.delete(&listener.acceptor)?;
            }
        }
        for key in self.parked.keys() {
            self.revisit(key);
            // Those that wait for a request have a moment more from now on, and without a master so have those that linger.
            match self.parked.get(key).map(|guest| guest.phase) {
                Some(phase @ (Phase::Fresh | Phase::Idle)) => self.parked.set_due(key, self.attendant.due(phase)),
                Some(phase @ Phase::Lingering { .. }) if orphaned => {
                    self.parked.set_due(key, self.attendant.due(phase));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

impl Listener {
    fn new(acceptor: Acceptor) -> Self {
        Self { acceptor, paused_until: None, complained: None }
    }
}

/// What an accept has brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Taken {
    Nobody,
    AndParked,
    AndClosed,
}

/// What an event is about, as the number that epoll keeps for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Token {
    Notice,
    Listener(u32),
    Parked(Key),
}

impl Token {
    /// In the low half, above all seats of parked connections.
    const NOTICE: u32 = u32::MAX;
    const LISTENER: u32 = u32::MAX - 1;

    fn event(self, flags: EpollFlags) -> EpollEvent {
        let (high, low) = match self {
            Self::Notice => (0, Self::NOTICE),
            Self::Listener(index) => (index, Self::LISTENER),
            Self::Parked(key) => (key.generation, key.index),
        };
        EpollEvent::new(flags, u64::from(high) << 32 | u64::from(low))
    }
}

impl From<u64> for Token {
    fn from(number: u64) -> Self {
        let (high, low) = ((number >> 32) as u32, number as u32);
        match low {
            Self::NOTICE => Self::Notice,
            Self::LISTENER => Self::Listener(high),
            index => Self::Parked(Key { index, generation: high }),
        }
    }
}

#[cfg(test)]
mod tests;
