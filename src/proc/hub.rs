//! One thread that watches all descriptors of the master: conversations with processes, deaths, workers.
//!
//! It is started at first use, blocks all signals so that it takes none from the host program, and never
//! waits for anything but its epoll instance. Sources are held weakly unless asked otherwise: what nobody needs is
//! not watched.

use std::collections::HashMap;
use std::io;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::thread;

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use crate::sys::signals;

/// Something that wants to know when a descriptor is ready.
pub(crate) trait Source: Send + Sync {
    /// Called on the hub's thread, level-triggered; it must not wait for anything.
    fn ready(self: Arc<Self>, token: Token, events: EpollFlags);
}

/// A descriptor under watch; see [`Hub::watch`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Token(u64);

/// The poller of this process.
pub(crate) struct Hub {
    epoll: Epoll,
    sources: Mutex<Sources>,
}

#[derive(Default)]
struct Sources {
    next: u64,
    by_token: HashMap<u64, Held>,
}

/// How the hub holds a source.
pub(crate) enum Held {
    /// As long as somebody else does.
    Weakly(Weak<dyn Source>),
    /// Until it is forgotten.
    Strongly(Arc<dyn Source>),
}

impl Held {
    fn source(&self) -> Option<Arc<dyn Source>> {
        match self {
            Held::Weakly(source) => source.upgrade(),
            Held::Strongly(source) => Some(Arc::clone(source)),
        }
    }
}

impl Hub {
    /// The one hub of this process; its thread is started at the first call.
    pub(crate) fn get() -> io::Result<&'static Hub> {
        static HUB: OnceLock<Hub> = OnceLock::new();
        static STARTING: Mutex<()> = Mutex::new(());
        let _one_at_a_time = STARTING.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(hub) = HUB.get() {
            return Ok(hub);
        }
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let hub = HUB.get_or_init(|| Hub { epoll, sources: Mutex::default() });
        let mask = signals::block_all()?;
        let started = thread::Builder::new().name("hatchery-hub".into()).spawn(|| hub.run());
        signals::restore(&mask)?;
        started?;
        Ok(hub)
    }

    /// Watches a descriptor until [`Hub::forget`], or until it is closed.
    pub(crate) fn watch(&self, fd: impl AsFd, events: EpollFlags, source: Held) -> io::Result<Token> {
        let token = {
            let mut sources = self.sources();
            let token = sources.next;
            sources.next += 1;
            sources.by_token.insert(token, source);
            token
        };
        if let Err(errno) = self.epoll.add(fd, EpollEvent::new(events, token)) {
            self.sources().by_token.remove(&token);
            return Err(errno.into());
        }
        Ok(Token(token))
    }

    /// Waits for other events on a watched descriptor.
    pub(crate) fn change(&self, token: Token, fd: impl AsFd, events: EpollFlags) -> io::Result<()> {
        Ok(self.epoll.modify(fd, &mut EpollEvent::new(events, token.0))?)
    }

    /// Stops watching. An event that was on its way may still arrive if the source lives on.
    pub(crate) fn forget(&self, token: Token, fd: impl AsFd) {
        let held = self.sources().by_token.remove(&token.0);
        // Dropping a source may lock others, so not under our lock.
        drop(held);
        // It is not there any more only if its descriptor is closed, which is as good.
        let _ = self.epoll.delete(fd);
    }

    fn sources(&self) -> MutexGuard<'_, Sources> {
        self.sources.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&'static self) {
        let mut events = [EpollEvent::empty(); 64];
        loop {
            let count = match self.epoll.wait(&mut events, EpollTimeout::NONE) {
                Ok(count) => count,
                Err(nix::Error::EINTR) => 0,
                Err(errno) => panic!("the hub's own epoll instance is broken: {errno}"),
            };
            for event in &events[..count] {
                let source = self.sources().by_token.get(&event.data()).and_then(Held::source);
                if let Some(source) = source {
                    source.ready(Token(event.data()), event.events());
                }
            }
        }
    }
}
