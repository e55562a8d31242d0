//! The worker loop: accept, serve, park.
//!
//! One epoll set holds the listeners, the wish to drain and the parked connections. Whatever can be
//! done at once is tried before waiting: a connection just accepted is read from, and if its request
//! is there, it is served without ever entering the set. A connection enters the set when it is
//! first parked and leaves it by being closed; in between the set is not touched, unless its client does not take
//! what it is sent: then the connection is watched for room to write, until all is sent.
//!
//! A turn serves the connections that the worker has first, and then accepts: one more, or a few as long
//! as each is over at once. What a busy worker does not take stays in the queue for one that has less
//! to do.
//!
//! A connection that stays sends its listener to the end of the line: the kernel wakes the worker that has waited
//! there longest, and the next connection goes to another.
//!
//! Where no descriptor is left, the listener rests for a moment, in which other workers take the queue. Who still waits
//! there after that gets the place of the connection that has been idle longest.
//!
//! While the worker drains, a connection that has not been served yet stays for a moment, because
//! its client is about to send; parked ones that are between two requests have a last chance: a request that
//! comes before it is over is answered, with a word that it is the last if the protocol has one.

use std::io;
use std::os::fd::OwnedFd;
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use slog::{debug, info, warn};

use super::Slot;
use super::acceptor::Acceptor;
use super::attend::{Attendant, FIRST_BYTE_TIME, Outcome};
use super::cleanup::Cleanups;
use super::conn::{Buffers, Conn};
use super::deadline::Deadlines;
use super::drain::DrainNotice;
use super::in_hand::InHand;
use super::message::{FromWorker, ToWorker};
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
/// So many idle connections are looked at to make room for one.
const LAST_LOOKS: usize = 8;
/// How long a listener is left to the other workers after an accept that failed for want of something.
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
    listeners_ever: u32,
    complained: Complaints,
    parked: Parked,
    connections: u64,
    epoll: Epoll,
}

struct Listener {
    /// Under which the epoll set knows it.
    key: u32,
    acceptor: Acceptor,
    queue: Queue,
    paused_until: Option<Monotonic>,
    /// It has been left to the other workers, who did not empty the queue.
    others_had_their_chance: bool,
}

/// Who else accepts from a listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Queue {
    /// All workers.
    Shared,
    /// Nobody: it is this slot's.
    Own,
    /// Nobody: it is that slot's, which has no worker.
    StoodInFor(Slot),
}

/// When what recurs was said last.
#[derive(Default)]
struct Complaints {
    paused: Option<Monotonic>,
    shed: Option<Monotonic>,
}

impl<S: Service> Worker<S> {
    fn new(service: S, cx: WorkerCx) -> Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        epoll.add(&cx.notice, Token::Notice.event(EpollFlags::EPOLLIN))?;
        let in_hand = InHand::of_worker();
        last_words::adopt(&in_hand.last_words);
        crash::install()?;
        let deadlines = Deadlines::new(&cx.config, in_hand, cx.record)?;
        let mut worker = Self {
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
            listeners: Vec::with_capacity(cx.acceptors.len()),
            listeners_ever: 0,
            complained: Complaints::default(),
            parked: Parked::default(),
            connections: 0,
            epoll,
        };
        for (index, acceptor) in cx.acceptors.into_iter().enumerate() {
            let listened = worker.attendant.config.listeners.get(index);
            let is_own = listened.is_some_and(|listened| listened.own);
            worker.listen(acceptor, if is_own { Queue::Own } else { Queue::Shared })?;
        }
        worker.notice.ready(&worker.attendant.record);
        worker.say_of_queues(&FromWorker::CanStandIn);
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
                Token::Notice => self.hear()?,
                Token::Parked(key) => self.revisit(key),
                Token::Listener(_) => {}
            }
        }
        for token in tokens {
            if let Token::Listener(key) = token {
                self.accept_some(key)?;
            }
        }
        self.handle_due();
        self.resume_listeners()?;
        if self.attendant.link.has_news() { self.hear() } else { Ok(()) }
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

    fn listen(&mut self, acceptor: Acceptor, queue: Queue) -> Result<(), Errno> {
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
    fn accept_some(&mut self, key: u32) -> Result<()> {
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

    fn park(&mut self, guest: Guest) {
        let due = self.attendant.due(guest.phase);
        let key = self.parked.insert(guest);
        self.count_parked();
        self.parked.set_due(key, due);
        let Some(guest) = self.parked.get(key) else {
            return;
        };
        let event = Token::Parked(key).event(guest.phase.interest());
        if let Err(error) = self.epoll.add(&guest.conn, event) {
            warn!(self.attendant.log, "cannot park a connection, it is closed"; "error" => %error);
            self.close(key);
        }
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

    fn resume_listeners(&mut self) -> Result<()> {
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

    // ---- parked connections ----

    /// Something has come for a parked connection.
    fn revisit(&mut self, key: Key) {
        let Some(guest) = self.parked.get(key) else {
            return;
        };
        let outcome = match &mut guest.phase {
            Phase::Fresh | Phase::Idle => self.attendant.visit(&mut guest.conn, None),
            Phase::Partial(request) => self.attendant.visit(&mut guest.conn, Some(*request)),
            Phase::Sending(sending) => self.attendant.send_on(&mut guest.conn, *sending),
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
            match guest.phase {
                Phase::Fresh | Phase::Idle => self.visit_last(key),
                Phase::Partial(request) => {
                    self.attendant.time_out(&mut guest.conn, request);
                    self.settle(key, Outcome::Close);
                }
                Phase::Sending(sending) => {
                    let outcome = self.attendant.time_out_sending(&mut guest.conn, sending);
                    self.settle(key, outcome);
                }
                Phase::Lingering { .. } => self.settle(key, Outcome::Close),
            }
        }
    }

    /// Closes a connection on which nothing comes. A last look: a worker that was long busy has not seen what came
    /// meanwhile.
    fn visit_last(&mut self, key: Key) {
        let Some(guest) = self.parked.get(key) else {
            return;
        };
        let outcome = match self.attendant.visit(&mut guest.conn, None) {
            Outcome::Nothing => Outcome::Close,
            served => served,
        };
        self.settle(key, outcome);
    }

    /// Keeps a parked connection or closes it, as its visit came out.
    fn settle(&mut self, key: Key, outcome: Outcome) {
        let Some(guest) = self.parked.get(key) else {
            return;
        };
        let before = guest.phase;
        match self.attendant.settle(&mut guest.conn, before, outcome) {
            None => self.close(key),
            Some(phase) => {
                guest.phase = phase;
                if phase.interest() != before.interest() {
                    let mut event = Token::Parked(key).event(phase.interest());
                    if let Err(error) = self.epoll.modify(&guest.conn, &mut event) {
                        warn!(self.attendant.log, "cannot watch a connection, it is closed"; "error" => %error);
                        return self.close(key);
                    }
                }
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
        // Now there is room for one.
        for listener in &mut self.listeners {
            listener.paused_until = listener.paused_until.map(|_| self.attendant.now);
        }
    }

    fn count_parked(&self) {
        self.attendant.record.set_parked(self.parked.len() as u64);
    }

    // ---- what the master says ----

    fn hear(&mut self) -> Result<()> {
        if self.attendant.draining {
            return Ok(());
        }
        if self.notice.asked() {
            return self.begin_drain();
        }
        for (order, fds) in self.attendant.link.take_orders() {
            match order {
                ToWorker::StandIn { slot, addresses } => self.stand_in(slot, addresses, fds)?,
                ToWorker::StandDown { slot } => self.stand_down(slot)?,
                ToWorker::Look => self.look_at_queues()?,
                ToWorker::Drain => {}
            }
        }
        Ok(())
    }

    fn look_at_queues(&mut self) -> Result<()> {
        let keys = self.keys_of(|listener| listener.queue == Queue::Shared && listener.paused_until.is_none());
        keys.into_iter().try_for_each(|key| self.accept_some(key))
    }

    fn stand_in(&mut self, slot: Slot, addresses: Vec<String>, fds: Vec<OwnedFd>) -> Result<()> {
        if fds.len() < addresses.len() {
            self.say_of_queues(&FromWorker::CannotStandIn);
        }
        for (fd, address) in fds.into_iter().zip(addresses) {
            self.listen(Acceptor::from_fd(fd, address)?, Queue::StoodInFor(slot))?;
        }
        info!(self.attendant.log, "standing in"; "for_slot" => slot.0);
        Ok(())
    }

    fn stand_down(&mut self, slot: Slot) -> Result<()> {
        let keys: Vec<_> = self.keys_of(|listener| listener.queue == Queue::StoodInFor(slot));
        info!(self.attendant.log, "standing down"; "for_slot" => slot.0);
        keys.into_iter().try_for_each(|key| self.leave(key))
    }

    /// Says something that matters only where slots have queues of their own.
    fn say_of_queues(&self, message: &FromWorker) {
        if self.listeners.iter().any(|listener| listener.queue == Queue::Own) && !self.attendant.link.try_say(message) {
            warn!(self.attendant.log, "the master does not listen"; "unsaid" => ?message);
        }
    }

    fn keys_of(&self, which: impl Fn(&Listener) -> bool) -> Vec<u32> {
        self.listeners.iter().filter(|listener| which(listener)).map(|listener| listener.key).collect()
    }

    // ---- leaving ----

    fn begin_drain(&mut self) -> Result<()> {
        self.say_of_queues(&FromWorker::Leaving);
        info!(self.attendant.log, "draining"; "parked" => self.parked.len());
        let orphaned = self.notice.is_orphaned();
        let last_chance = if orphaned { Duration::ZERO } else { self.attendant.config.last_chance };
        self.attendant.draining = true;
        self.attendant.orphaned = orphaned;
        self.attendant.last_chance = Some(self.attendant.now.after(last_chance));
        self.attendant.record.set_state(self.attendant.resting_state());
        self.epoll.delete(&self.notice)?;
        for key in self.keys_of(|_| true) {
            self.leave(key)?;
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

    /// Leaves a listener to others.
    fn leave(&mut self, key: u32) -> Result<()> {
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
