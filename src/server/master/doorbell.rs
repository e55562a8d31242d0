//! While there is no worker, the master hears of the first client, and leaves it in the queue for the worker to come.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use crossbeam_channel::Sender;
use nix::sys::epoll::EpollFlags;

use super::event::Event;
use crate::proc::hub::{Hub, Source, Token};
use crate::server::listener::Listener;

/// A watch on all listeners; dropped, it rings no more.
#[derive(Debug)]
pub(super) struct Doorbell {
    /// Descriptors of our own: a listener may be closed in the meantime.
    watched: Vec<(Token, OwnedFd)>,
    _bell: Arc<Bell>,
}

#[derive(Debug)]
struct Bell(Sender<Event>);

impl Doorbell {
    /// Rings once for each listener on which a client waits or will.
    pub(super) fn hang(listeners: &[Listener], events: Sender<Event>) -> io::Result<Doorbell> {
        let bell = Arc::new(Bell(events));
        let source: Arc<dyn Source> = bell.clone();
        let hub = Hub::get()?;
        let mut doorbell = Doorbell { watched: Vec::new(), _bell: bell };
        for listener in listeners {
            let fd = listener.as_fd().try_clone_to_owned()?;
            // Once: the client stays in the queue until a worker takes it, and would ring all the while.
            let flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLONESHOT;
            let token = hub.watch(&fd, flags, Arc::downgrade(&source))?;
            doorbell.watched.push((token, fd));
        }
        Ok(doorbell)
    }
}

impl Drop for Doorbell {
    fn drop(&mut self) {
        if let Ok(hub) = Hub::get() {
            self.watched.iter().for_each(|(token, fd)| hub.forget(*token, fd));
        }
    }
}

impl Source for Bell {
    fn ready(self: Arc<Self>, _: Token, _: EpollFlags) {
        // Nobody listens any more: the server has ended.
        let _ = self.0.send(Event::ClientWaits);
    }
}
