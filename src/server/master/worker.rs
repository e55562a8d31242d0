//! A worker as the master holds it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;
use nix::sys::epoll::EpollFlags;

use super::event::Event;
use crate::proc::hub::{Hub, Source, Token, Watch, forget};
use crate::proc::{Channel, Received, Running};
use crate::server::message::{FromWorker, ToWorker};
use crate::server::offers;
use crate::server::{Generation, Slot, WorkerId};
use crate::sys::seqpacket;

/// So many messages of one worker may wait for the master; no worker that means well has as many to say.
const MOST_UNHEARD: usize = 64;

/// How long nothing is heard of a worker that says more than the master takes.
const REST: Duration = Duration::from_millis(5);

/// The longest message of a worker, in bytes: what it says fits a datagram.
const LONGEST: u32 = seqpacket::MAX_BYTES as u32;

/// A worker's process and the conversation with it.
pub(super) struct Worker {
    /// Its page of the scoreboard.
    pub(super) record: u32,
    pub(super) slot: Slot,
    pub(super) generation: Generation,
    /// The slot whose own queues it serves, if there are such.
    pub(super) queue: Option<Slot>,
    /// It has said that it accepts connections.
    pub(super) ready: bool,
    pub(super) running: Arc<Running>,
    /// Known once it is born.
    pub(super) pid: Option<i32>,
    conversation: Option<Watch<Conversation>>,
    /// Wishes that came before the worker was born.
    drain_wished: bool,
    kill_wished: bool,
}

impl Worker {
    pub(super) fn new(
        running: Running,
        record: u32,
        slot: Slot,
        generation: Generation,
        queue: Option<Slot>,
    ) -> Worker {
        Worker {
            record,
            slot,
            generation,
            queue,
            ready: false,
            running: Arc::new(running),
            pid: None,
            conversation: None,
            drain_wished: false,
            kill_wished: false,
        }
    }

    /// The process exists; what was wished before is done now.
    pub(super) fn born(&mut self, id: WorkerId, pid: i32, events: &Sender<Event>) -> Result<(), String> {
        self.pid = Some(pid);
        if self.kill_wished {
            return self.kill();
        }
        let socket = self.running.socket().map_err(|error| error.to_string())?;
        let conversation = Conversation::new(id, Channel::new(socket), events.clone());
        let watched = Watch::new(conversation, EpollFlags::EPOLLIN).map_err(|error| error.to_string())?;
        self.conversation = Some(watched);
        if self.drain_wished { self.drain() } else { Ok(()) }
    }

    pub(super) fn drain(&mut self) -> Result<(), String> {
        match &self.conversation {
            // A full queue is that of a worker that reads nothing any more: its deadline comes.
            Some(conversation) => conversation
                .source()
                .channel
                .try_send(&ToWorker::Drain, &[])
                .map(drop)
                .map_err(|error| error.to_string()),
            None => {
                self.drain_wished = true;
                Ok(())
            }
        }
    }

    /// Hands over an order; false if the worker cannot be talked to now.
    pub(super) fn order(&self, order: &ToWorker, fds: &[OwnedFd]) -> bool {
        let conversation = self.conversation.as_ref();
        conversation.is_some_and(|held| held.source().channel.try_send(order, fds).is_ok_and(|sent| sent))
    }

    pub(super) fn kill(&mut self) -> Result<(), String> {
        self.kill_wished = true;
        if self.pid.is_none() {
            return Ok(());
        }
        self.running.kill(nix::libc::SIGKILL).map_err(|error| error.to_string())
    }

    /// What the worker has said and the hub has not yet passed on.
    pub(super) fn last_messages(&self) -> Vec<FromWorker> {
        let mut messages = Vec::new();
        if let Some(conversation) = &self.conversation {
            while let Ok(Received::Message { message, .. }) = conversation.source().channel.try_recv() {
                messages.push(message);
            }
        }
        messages
    }
}

/// The master's end of a worker's socket.
struct Conversation {
    id: WorkerId,
    channel: Channel<ToWorker, FromWorker>,
    /// How many offers have come.
    offers: AtomicUsize,
    /// How many messages the master has not dealt with yet.
    unheard: Arc<AtomicUsize>,
    events: Sender<Event>,
}

/// A message that the master has not dealt with, until this is dropped.
#[derive(Debug)]
pub(super) struct Unheard(Arc<AtomicUsize>);

impl Unheard {
    fn one_of(count: &Arc<AtomicUsize>) -> Unheard {
        count.fetch_add(1, Ordering::Relaxed);
        Unheard(Arc::clone(count))
    }
}

impl Drop for Unheard {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl AsFd for Conversation {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.channel.as_fd()
    }
}

impl Source for Conversation {
    fn ready(self: Arc<Self>, token: Token, events: EpollFlags) {
        // No event at all is the end of a rest.
        if events.is_empty() && self.watch_for(token, EpollFlags::EPOLLIN).is_err() {
            return self.hang_up(token);
        }
        // Others have their turn however much one worker says.
        for _ in 0..MOST_UNHEARD {
            if self.unheard.load(Ordering::Relaxed) >= MOST_UNHEARD {
                // What the worker says meanwhile fills its socket, and then it waits.
                if self.rest(token).is_err() {
                    self.hang_up(token);
                }
                return;
            }
            match self.channel.try_recv() {
                Ok(Received::Message { message: FromWorker::Offer { name }, fds, .. }) => {
                    if let Some(event) = self.admit(name, fds) {
                        let _ = self.events.send(event);
                    }
                }
                Ok(Received::Message { message, .. }) => {
                    // Nobody listens any more: the server has ended.
                    let unheard = Unheard::one_of(&self.unheard);
                    let _ = self.events.send(Event::WorkerSaid { id: self.id, message, unheard });
                }
                Ok(Received::Empty) => return,
                // Its end, or nonsense: there is nothing more to hear. Its process is watched elsewhere.
                Ok(Received::Eof) | Err(_) => return self.hang_up(token),
            }
        }
    }
}

impl Conversation {
    fn new(id: WorkerId, channel: Channel<ToWorker, FromWorker>, events: Sender<Event>) -> Conversation {
        let channel = channel.max_message(LONGEST);
        Conversation { id, channel, offers: AtomicUsize::new(0), unheard: Arc::default(), events }
    }

    fn watch_for(&self, token: Token, events: EpollFlags) -> io::Result<()> {
        Hub::get()?.change(token, self, events)
    }

    fn rest(&self, token: Token) -> io::Result<()> {
        // Not even a hangup is told more than once (epoll_ctl(2)).
        self.watch_for(token, EpollFlags::EPOLLONESHOT)?;
        Hub::get()?.remind(token, Instant::now() + REST)
    }

    fn hang_up(&self, token: Token) {
        forget(token, self);
        let _ = self.events.send(Event::WorkerHungUp { id: self.id });
    }

    /// What becomes of an offer. It is decided here, so that whatever a worker sends, few of its descriptors wait for the master;
    /// and what is refused after the first that is too many, is refused without a word.
    fn admit(&self, name: String, fds: Vec<OwnedFd>) -> Option<Event> {
        let before = self.offers.fetch_add(1, Ordering::Relaxed);
        let refused = |why| Event::OfferRefused { id: self.id, why };
        if before >= offers::MOST {
            return (before == offers::MOST).then(|| refused("it has made as many as it may"));
        }
        if !offers::is_name(&name) {
            return Some(refused("its name is none"));
        }
        match <[OwnedFd; 1]>::try_from(fds) {
            Ok([socket]) if seqpacket::is_one(socket.as_fd()) => {
                Some(Event::WorkerOffers { id: self.id, name, socket })
            }
            _ => Some(refused("it came without its socket")),
        }
    }
}

#[cfg(test)]
mod tests {
    use crossbeam_channel::{Receiver, unbounded};

    use super::*;
    const SOON: Duration = Duration::from_secs(30);

    /// What the master hears of a worker that sends this, all in one go; and that its descriptors are closed.
    fn heard(messages: impl IntoIterator<Item = (FromWorker, Vec<OwnedFd>)>) -> Vec<Event> {
        let (here, there) = Channel::pair().expect("a pair");
        let (events, inbox): (_, Receiver<Event>) = unbounded();
        let conversation = Arc::new(Conversation::new(WorkerId(7), here, events));
        let source: Arc<dyn Source> = conversation.clone();
        let hub = Hub::get().expect("a hub");
        // Watched for nothing: the test calls it.
        let token = hub.watch(&*conversation, EpollFlags::EPOLLONESHOT, Arc::downgrade(&source)).expect("watched");
        for (message, fds) in messages {
            assert!(there.try_send(&message, &fds).expect("sent"), "more than the socket takes");
        }
        conversation.ready(token, EpollFlags::EPOLLIN);
        inbox.try_iter().collect()
    }

    fn offer(name: &str, fds: Vec<OwnedFd>) -> (FromWorker, Vec<OwnedFd>) {
        (FromWorker::Offer { name: name.to_owned() }, fds)
    }

    #[test]
    fn of_a_flood_of_offers_eight_come_through_and_one_is_told_of() {
        let (one, other) = seqpacket::pair().expect("a pair");
        let heard = heard((0..100).map(|_| offer("again", vec![one.try_clone().expect("a copy")])));
        let offers = heard.iter().filter(|event| matches!(event, Event::WorkerOffers { .. })).count();
        assert_eq!((offers, heard.len()), (8, 9), "{heard:?}");
        assert!(matches!(heard[8], Event::OfferRefused { id: WorkerId(7), .. }));
        drop((heard, one));
        // Nobody holds a copy any more.
        assert!(matches!(seqpacket::receive(other.as_fd(), &mut Vec::new()), Ok(None)));
    }

    #[test]
    fn what_a_worker_says_without_end_waits_in_its_own_socket() {
        const MESSAGES: usize = 10_000;
        let (here, there) = Channel::<ToWorker, FromWorker>::pair().expect("a pair");
        let (events, inbox): (_, Receiver<Event>) = unbounded();
        let _watch = Watch::new(Conversation::new(WorkerId(7), here, events), EpollFlags::EPOLLIN).expect("watched");
        let worker = std::thread::spawn(move || {
            (0..MESSAGES).try_for_each(|_| there.send(&FromWorker::Full, &[])).expect("sent in the end");
        });
        let mut unheard = Vec::new();
        for _ in 0..MESSAGES {
            unheard.push(inbox.recv_timeout(SOON).expect("the next message"));
            assert!(matches!(unheard.last(), Some(Event::WorkerSaid { .. })));
            if unheard.len() == MOST_UNHEARD {
                assert!(inbox.is_empty(), "more than {MOST_UNHEARD} wait");
                unheard.clear();
            }
        }
        unheard.clear();
        assert!(matches!(inbox.recv_timeout(SOON), Ok(Event::WorkerHungUp { .. })));
        worker.join().expect("the worker's thread");
    }

    #[test]
    fn a_message_longer_than_any_that_a_worker_says_ends_its_conversation() {
        let (here, there) = Channel::<ToWorker, FromWorker>::pair().expect("a pair");
        let (events, inbox): (_, Receiver<Event>) = unbounded();
        let _watch = Watch::new(Conversation::new(WorkerId(7), here, events), EpollFlags::EPOLLIN).expect("watched");
        let name = "x".repeat(LONGEST as usize + 1);
        there.send(&FromWorker::Offer { name }, &[]).expect("sent");
        assert!(matches!(inbox.recv_timeout(SOON), Ok(Event::WorkerHungUp { .. })));
    }

    #[test]
    fn an_offer_that_makes_no_sense_is_refused_and_the_conversation_goes_on() {
        let socket = || seqpacket::pair().expect("a pair").0;
        let (pipe, _writer) = std::io::pipe().expect("a pipe");
        let nonsense = [
            offer("", vec![socket()]),
            offer(&"x".repeat(65), vec![socket()]),
            offer("a\nb", vec![socket()]),
            offer("none", Vec::new()),
            offer("two", vec![socket(), socket()]),
            offer("a pipe", vec![pipe.into()]),
            (FromWorker::Ready, vec![socket()]),
            offer("good", vec![socket()]),
        ];
        let heard = heard(nonsense);
        let [refused @ .., Event::WorkerSaid { message: FromWorker::Ready, .. }, Event::WorkerOffers { name, .. }] =
            &heard[..]
        else {
            panic!("{heard:?}")
        };
        assert_eq!((refused.len(), name.as_str()), (6, "good"));
        assert!(refused.iter().all(|event| matches!(event, Event::OfferRefused { .. })), "{refused:?}");
    }
}
