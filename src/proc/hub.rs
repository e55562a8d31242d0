//! One thread that watches the descriptors of the master: conversations with processes, deaths, workers; and another for
//! calls to processes and what comes of them, which is told to a program's own code: if that waits, only calls wait for it.
//!
//! Each is started at first use, blocks all signals so that it takes none from the host program, and by itself
//! waits for nothing but its epoll instance. Sources are held weakly: what nobody needs is not watched.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::panic::{self, AssertUnwindSafe};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::thread;
use std::time::Instant;

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::sys::clock::poll_timeout;
use crate::sys::{promptness, signals, wait};

/// Something that wants to know when a descriptor is ready.
pub(crate) trait Source: Send + Sync {
    /// Called on the hub's thread, level-triggered; it must not wait for anything.
    fn ready(self: Arc<Self>, token: Token, events: EpollFlags);
}

/// A descriptor under watch; see [`Hub::watch`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Token(u64);

/// A source and its descriptor under watch, until this is dropped.
#[derive(Debug)]
pub(crate) struct Watch<S: AsFd> {
    source: Arc<S>,
    token: Token,
}

impl<S: Source + AsFd + 'static> Watch<S> {
    pub(crate) fn new(source: S, events: EpollFlags) -> io::Result<Watch<S>> {
        let source = Arc::new(source);
        let held: Arc<dyn Source> = source.clone();
        let token = Hub::get()?.watch(&*source, events, Arc::downgrade(&held))?;
        Ok(Watch { source, token })
    }
}

impl<S: AsFd> Watch<S> {
    pub(crate) fn source(&self) -> &S {
        &self.source
    }

    /// Waits for other events.
    #[cfg_attr(not(feature = "control"), expect(dead_code, reason = "whose clients change is behind that feature"))]
    pub(crate) fn change(&self, events: EpollFlags) -> io::Result<()> {
        Hub::get()?.change(self.token, &*self.source, events)
    }

    /// Calls the source at that time, with no events, unless it is not watched any more by then.
    #[cfg_attr(
        not(feature = "control"),
        expect(dead_code, reason = "whose clients have their time is behind that feature")
    )]
    pub(crate) fn remind(&self, at: Instant) -> io::Result<()> {
        Hub::get()?.remind(self.token, at)
    }
}

impl<S: AsFd> Drop for Watch<S> {
    fn drop(&mut self) {
        forget(self.token, &*self.source);
    }
}

/// Stops watching, if there is a hub at all.
pub(crate) fn forget(token: Token, fd: impl AsFd) {
    if let Ok(hub) = Hub::get() {
        hub.forget(token, fd);
    }
}

/// A poller of this process.
pub(crate) struct Hub {
    epoll: Epoll,
    waker: EventFd,
    sources: Mutex<Sources>,
}

#[derive(Default)]
struct Sources {
    next: u64,
    by_token: HashMap<u64, Weak<dyn Source>>,
    /// Few at a time: when to call whom though nothing happens.
    reminders: Vec<(Instant, Token)>,
    /// Children of this process that are to end and that nobody asks for any more.
    children_left: HashMap<u64, Arc<OwnedFd>>,
}

impl Sources {
    fn next_token(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// Takes the reminders whose time has come.
    fn due(&mut self) -> Vec<Token> {
        let now = Instant::now();
        self.reminders.extract_if(.., |(at, _)| *at <= now).map(|(_, token)| token).collect()
    }

    fn until_next(&self) -> EpollTimeout {
        match self.reminders.iter().map(|(at, _)| *at).min() {
            Some(at) => poll_timeout(at.saturating_duration_since(Instant::now())),
            None => EpollTimeout::NONE,
        }
    }
}

/// The token of the hub's own eventfd.
const WAKER: u64 = 0;

static OF_PROCESSES: Lazy = Lazy::named("hatchery-hub");
static OF_CALLS: Lazy = Lazy::named("hatchery-calls");

/// A hub that is started at its first use.
struct Lazy {
    hub: OnceLock<Hub>,
    is_running: Mutex<bool>,
    thread: &'static str,
}

/// Children that were left before there was a hub: an early template may be dropped before the first thread.
static LEFT: Mutex<Vec<Arc<OwnedFd>>> = Mutex::new(Vec::new());

/// Reaps a child of this process when it ends, so that it leaves no zombie. Starts no thread.
pub(crate) fn reap_when_ended(pidfd: Arc<OwnedFd>) {
    match OF_PROCESSES.hub.get() {
        Some(hub) => hub.reap_when_ended(pidfd),
        None => LEFT.lock().unwrap_or_else(PoisonError::into_inner).push(pidfd),
    }
}

/// Calls a user's callback. A panic has been printed by its hook; it is the callback's own, and the thread, mostly a
/// hub's, goes on for all others.
pub(crate) fn call_back(callback: impl FnOnce()) {
    let _ = panic::catch_unwind(AssertUnwindSafe(callback));
}

impl Lazy {
    const fn named(thread: &'static str) -> Lazy {
        Lazy { hub: OnceLock::new(), is_running: Mutex::new(false), thread }
    }

    fn get(&'static self) -> io::Result<&'static Hub> {
        let mut is_running = self.is_running.lock().unwrap_or_else(PoisonError::into_inner);
        let hub = match self.hub.get() {
            Some(hub) if *is_running => return Ok(hub),
            // Its thread could not be started then.
            Some(hub) => hub,
            None => {
                let hub = Hub::new()?;
                self.hub.get_or_init(|| hub)
            }
        };
        let mask = signals::block_all()?;
        let thread = thread::Builder::new().name(self.thread.into()).spawn(|| hub.run());
        signals::restore(&mask)?;
        thread?;
        *is_running = true;
        Ok(hub)
    }
}

impl Hub {
    /// The hub of this process's processes, signals and all else that the crate itself answers for.
    pub(crate) fn get() -> io::Result<&'static Hub> {
        let hub = OF_PROCESSES.get()?;
        let left = std::mem::take(&mut *LEFT.lock().unwrap_or_else(PoisonError::into_inner));
        left.into_iter().for_each(|pidfd| hub.reap_when_ended(pidfd));
        Ok(hub)
    }

    /// The hub of calls to processes: nothing but such a call may depend on it.
    pub(crate) fn of_calls() -> io::Result<&'static Hub> {
        OF_CALLS.get()
    }

    fn new() -> io::Result<Hub> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let waker = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        epoll.add(&waker, EpollEvent::new(EpollFlags::EPOLLIN, WAKER))?;
        Ok(Hub { epoll, waker, sources: Mutex::default() })
    }

    /// Calls the source at that time, with no events; the watch goes on.
    pub(crate) fn remind(&self, token: Token, at: Instant) -> io::Result<()> {
        self.sources().reminders.push((at, token));
        self.waker.write(1)?;
        Ok(())
    }

    fn reap_when_ended(&self, pidfd: Arc<OwnedFd>) {
        let mut sources = self.sources();
        let token = sources.next_token();
        // ENOSPC or ENOMEM: it stays a zombie until this process ends; there is nobody to tell.
        if self.epoll.add(pidfd.as_fd(), EpollEvent::new(EpollFlags::EPOLLIN, token)).is_ok() {
            sources.children_left.insert(token, pidfd);
        }
    }

    /// Watches a descriptor until [`Hub::forget`], or until it is closed.
    pub(crate) fn watch(&self, fd: impl AsFd, events: EpollFlags, source: Weak<dyn Source>) -> io::Result<Token> {
        let token = {
            let mut sources = self.sources();
            let token = sources.next_token();
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
        let mut sources = self.sources();
        sources.by_token.remove(&token.0);
        sources.reminders.retain(|(_, whom)| *whom != token);
        drop(sources);
        // It is not there any more only if its descriptor is closed, which is as good.
        let _ = self.epoll.delete(fd);
    }

    fn sources(&self) -> MutexGuard<'_, Sources> {
        self.sources.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&'static self) {
        // Everybody waits for it, and its own work takes microseconds.
        promptness::be_prompt();
        let mut events = [EpollEvent::empty(); 64];
        loop {
            let due = self.sources().due();
            for token in due {
                self.tell(token, EpollFlags::empty());
            }
            let timeout = self.sources().until_next();
            let count = match self.epoll.wait(&mut events, timeout) {
                Ok(count) => count,
                Err(nix::Error::EINTR) => 0,
                Err(errno) => panic!("the hub's own epoll instance is broken: {errno}"),
            };
            for event in &events[..count] {
                self.tell(Token(event.data()), event.events());
            }
        }
    }

    fn tell(&self, token: Token, events: EpollFlags) {
        if token.0 == WAKER {
            // It has woken us, which is all it is for.
            let _ = self.waker.read();
            return;
        }
        let mut sources = self.sources();
        if let Some(pidfd) = sources.children_left.get(&token.0) {
            if !matches!(wait::reap_by_pidfd(pidfd.as_fd()), Ok(None)) {
                let _ = self.epoll.delete(pidfd.as_fd());
                sources.children_left.remove(&token.0);
            }
            return;
        }
        let source = sources.by_token.get(&token.0).and_then(Weak::upgrade);
        drop(sources);
        if let Some(source) = source {
            source.ready(token, events);
        }
    }
}
