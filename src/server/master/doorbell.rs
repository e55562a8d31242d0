//! While there is no worker, the master hears of the first client, and leaves it in the queue for the worker to come.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use crossbeam_channel::Sender;
use nix::sys::epoll::EpollFlags;

use super::event::Event;
use crate::proc::hub::{Source, Token, Watch};
use crate::server::listener::Listener;

/// A watch on all listeners; dropped, it rings no more.
#[derive(Debug)]
pub(super) struct Doorbell {
    _bells: Vec<Watch<Bell>>,
}

#[derive(Debug)]
struct Bell {
    /// A descriptor of our own: the listener may be closed in the meantime.
    listener: OwnedFd,
    events: Sender<Event>,
}

impl Doorbell {
    /// Rings once for each listener on which a client waits or will.
    pub(super) fn hang(listeners: &[Listener], events: Sender<Event>) -> io::Result<Doorbell> {
        let hang_at = |listener: &Listener| {
            let bell = Bell { listener: listener.as_fd().try_clone_to_owned()?, events: events.clone() };
            // Once: the client stays in the queue until a worker takes it, and would ring all the while.
            Watch::new(bell, EpollFlags::EPOLLIN | EpollFlags::EPOLLONESHOT)
        };
        Ok(Doorbell { _bells: listeners.iter().map(hang_at).collect::<Result<_, _>>()? })
    }
}

impl AsFd for Bell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }
}

impl Source for Bell {
    fn ready(self: Arc<Self>, _: Token, _: EpollFlags) {
        // Nobody listens any more: the server has ended.
        let _ = self.events.send(Event::ClientWaits);
    }
}
