//! A worker as the master holds it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use crossbeam_channel::Sender;
use nix::sys::epoll::EpollFlags;

use super::event::Event;
use crate::proc::hub::{Source, Token, Watch, forget};
use crate::proc::{Channel, Received, Running};
use crate::server::message::{FromWorker, ToWorker};
use crate::server::{Generation, Slot, WorkerId};

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
    running: Running,
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
            running,
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
        let conversation = Conversation { id, channel: Channel::new(socket), events: events.clone() };
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
    events: Sender<Event>,
}

impl AsFd for Conversation {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.channel.as_fd()
    }
}

impl Source for Conversation {
    fn ready(self: Arc<Self>, token: Token, _: EpollFlags) {
        loop {
            match self.channel.try_recv() {
                Ok(Received::Message { message, .. }) => {
                    // Nobody listens any more: the server has ended.
                    let _ = self.events.send(Event::WorkerSaid { id: self.id, message });
                }
                Ok(Received::Empty) => return,
                // Its end, or nonsense: there is nothing more to hear. Its process is watched elsewhere.
                Ok(Received::Eof) | Err(_) => {
                    forget(token, &*self);
                    let _ = self.events.send(Event::WorkerHungUp { id: self.id });
                    return;
                }
            }
        }
    }
}
