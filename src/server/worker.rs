//! The worker loop: accept, serve, park.
//!
//! One epoll set holds the listeners, the wish to drain and the parked connections. Whatever can be
//! done at once is tried before waiting: a connection just accepted is read from, and if its request
//! is there, it is served without ever entering the set. A connection enters the set when it is
//! first parked and leaves it by being closed; in between the set is not touched, unless its client does not take
//! what it is sent: then the connection is watched for room to write, until all is sent.
//!
//! A turn serves the connections that the worker has first, answers the master's calls if the service has offered any, and
//! then accepts: one more, or a few as long as each is over at once. What a busy worker does not take stays in the queue
//! for one that has less to do.
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

mod accepting;
mod answering;
mod keeping;
mod token;

use std::os::fd::OwnedFd;

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use slog::{info, warn};

use self::accepting::{Complaints, Listener, Queue};
use self::token::Token;
use super::Slot;
use super::acceptor::Acceptor;
use super::attend::Attendant;
use super::cleanup::Cleanups;
use super::conn::Buffers;
use super::deadline::Deadlines;
use super::drain::DrainNotice;
use super::in_hand::InHand;
use super::message::{FromWorker, ToWorker};
use super::offers::Offers;
use super::parked::{Parked, Phase};
use super::service::{Result, Service, WorkerCx};
use crate::sys::clock::{Monotonic, poll_timeout};
use crate::sys::{crash, last_words};

/// So many events are taken from the kernel at a time.
const EVENTS: usize = 32;

/// Runs the worker loop until the worker is drained.
pub(super) fn run<S: Service>(service: S, cx: WorkerCx) -> Result<()> {
    let mut worker = Worker::new(service, cx)?;
    while !(worker.attendant.draining && worker.parked.is_empty()) {
        worker.turn()?;
    }
    worker.answer_last();
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
    /// What the master may call, if the service has offered anything.
    offers: Option<Box<Offers>>,
    /// There is more to answer than the last turn did.
    answers_due: Option<Monotonic>,
    epoll: Epoll,
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
            offers: cx.offers.into_inner(),
            answers_due: None,
            epoll,
        };
        if let Some(offers) = &worker.offers {
            worker.epoll.add(&**offers, Token::Offers.event(EpollFlags::EPOLLIN))?;
        }
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
                Token::Master => self.hear_the_end()?,
                Token::Parked(key) => self.revisit(key),
                Token::Offers => self.answers_due = Some(self.attendant.now),
                Token::Listener(_) => {}
            }
        }
        self.answer_some();
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
        let Some(next) = resumes.chain(self.parked.next_moment()).chain(self.answers_due).min() else {
            return EpollTimeout::NONE;
        };
        poll_timeout(next.since(self.attendant.now))
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
            return self.cannot_stand_in(slot);
        }
        for (fd, address) in fds.into_iter().zip(addresses) {
            self.listen(Acceptor::from_fd(fd, address)?, Queue::StoodInFor(slot))?;
        }
        info!(self.attendant.log, "standing in"; "for_slot" => slot.0);
        Ok(())
    }

    /// For want of descriptors. The master has another worker stand in, for all that this one stood in for, and asks it
    /// nothing more.
    fn cannot_stand_in(&mut self, slot: Slot) -> Result<()> {
        warn!(self.attendant.log, "cannot stand in, no descriptor is left"; "for_slot" => slot.0);
        self.say_of_queues(&FromWorker::CannotStandIn);
        let keys = self.keys_of(|listener| matches!(listener.queue, Queue::StoodInFor(_)));
        keys.into_iter().try_for_each(|key| self.leave(key))
    }

    fn stand_down(&mut self, slot: Slot) -> Result<()> {
        let keys = self.keys_of(|listener| listener.queue == Queue::StoodInFor(slot));
        info!(self.attendant.log, "standing down"; "for_slot" => slot.0);
        keys.into_iter().try_for_each(|key| self.leave(key))
    }

    /// Says something that matters only where slots have queues of their own.
    fn say_of_queues(&self, message: &FromWorker) {
        if self.listeners.iter().any(|listener| listener.queue == Queue::Own) && !self.attendant.link.try_say(message) {
            warn!(self.attendant.log, "the master does not listen"; "unsaid" => ?message);
        }
    }

    // ---- leaving ----

    fn begin_drain(&mut self) -> Result<()> {
        self.say_of_queues(&FromWorker::Leaving);
        info!(self.attendant.log, "draining"; "parked" => self.parked.len());
        self.attendant.draining = true;
        self.attendant.last_chance = Some(self.attendant.now.after(self.attendant.config.last_chance));
        self.attendant.record.set_state(self.attendant.resting_state());
        // From now on the notice is readable for ever, and what the master says does not matter; its end does.
        self.epoll.delete(&self.notice)?;
        self.epoll.add(&*self.attendant.link, Token::Master.event(EpollFlags::EPOLLIN))?;
        if self.attendant.link.is_gone() {
            self.become_orphan()?;
        }
        for key in self.keys_of(|_| true) {
            self.leave(key)?;
        }
        self.urge_guests();
        Ok(())
    }

    fn hear_the_end(&mut self) -> Result<()> {
        if self.attendant.link.is_gone() && !self.attendant.orphaned {
            info!(self.attendant.log, "the master is gone"; "parked" => self.parked.len());
            self.become_orphan()?;
            self.urge_guests();
        }
        Ok(())
    }

    fn become_orphan(&mut self) -> Result<()> {
        self.attendant.orphaned = true;
        self.attendant.last_chance = Some(self.attendant.now);
        Ok(self.epoll.delete(&*self.attendant.link)?)
    }

    /// Those that wait for a request have a moment more from now on, and without a master so have all others.
    fn urge_guests(&mut self) {
        for key in self.parked.keys() {
            self.revisit(key);
            match self.parked.get(key).map(|guest| guest.phase) {
                Some(phase @ (Phase::Fresh | Phase::Idle)) => self.parked.set_due(key, self.attendant.due(phase)),
                Some(phase) if self.attendant.orphaned => self.parked.set_due(key, self.attendant.due(phase)),
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests;
