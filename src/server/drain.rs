//! How a worker learns that it shall drain: the master asks, or is gone, or SIGTERM comes.
//!
//! The master's socket and a self-pipe for SIGTERM are the two sources. The pipe is written to when
//! the master asks as well, and never read, so "drain" once said stays readable for ever.

use std::cell::{Cell, RefCell};
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::rc::Rc;

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};

use super::message::{FromWorker, ToWorker};
use super::scoreboard::{Record, WorkerState};
use crate::proc::{Channel, Received};
use crate::sys::stream::is_readable;
use crate::sys::term;

/// A worker's socket to the master.
#[derive(Debug)]
pub(crate) struct MasterLink {
    channel: Channel<FromWorker, ToWorker>,
    is_gone: Cell<bool>,
    /// The wish to drain has come.
    drain: Cell<bool>,
    /// What else has come, with its descriptors.
    orders: RefCell<Vec<(ToWorker, Vec<OwnedFd>)>>,
}

impl MasterLink {
    pub(crate) fn new(channel: Channel<FromWorker, ToWorker>) -> Self {
        Self { channel, is_gone: Cell::new(false), drain: Cell::new(false), orders: RefCell::default() }
    }

    /// Says that the worker accepts connections.
    fn ready(&self) -> io::Result<()> {
        self.channel.send(&FromWorker::Ready, &[])
    }

    /// Says something, if the master takes it without delay.
    pub(super) fn try_say(&self, message: &FromWorker) -> bool {
        self.channel.try_send(message, &[]).is_ok_and(|sent| sent)
    }

    /// As [`try_say`](Self::try_say), with descriptors.
    ///
    /// # Errors
    /// Those of sendmsg(2).
    pub(super) fn try_pass(&self, message: &FromWorker, fds: &[OwnedFd]) -> io::Result<bool> {
        self.channel.try_send(message, fds)
    }

    /// Whether the master has asked to drain or is gone; takes in what has come, and never waits.
    pub(super) fn wants_drain(&self) -> bool {
        if !self.drain.get() {
            self.take_in();
        }
        self.drain.get()
    }

    /// Whether the master is gone; takes in what has come, and never waits.
    pub(super) fn is_gone(&self) -> bool {
        self.take_in();
        self.is_gone.get()
    }

    fn take_in(&self) {
        while !self.is_gone.get() {
            match self.channel.try_recv() {
                Ok(Received::Empty) => return,
                Ok(Received::Message { message: ToWorker::Drain, .. }) => self.drain.set(true),
                // Who leaves takes no orders, nor keeps what came with them.
                Ok(Received::Message { .. }) if self.drain.get() => {}
                Ok(Received::Message { message, fds, .. }) => self.orders.borrow_mut().push((message, fds)),
                // A conversation that makes no sense is as good as none.
                Ok(Received::Eof) | Err(_) => {
                    self.is_gone.set(true);
                    self.drain.set(true);
                }
            }
        }
    }

    /// Whether something was taken in, perhaps in the middle of a request: the socket does not tell of it again.
    pub(super) fn has_news(&self) -> bool {
        self.drain.get() || !self.orders.borrow().is_empty()
    }

    /// What has come, but for the wish to drain, since this was asked the last time.
    pub(super) fn take_orders(&self) -> Vec<(ToWorker, Vec<OwnedFd>)> {
        self.orders.take()
    }
}

impl AsFd for MasterLink {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.channel.as_fd()
    }
}

/// Both sources of the wish to drain, as one.
pub(crate) struct DrainNotice {
    link: Rc<MasterLink>,
    pipe: UnixStream,
    pipe_end: UnixStream,
    /// Holds the link and the pipe: readable when one of them is.
    sources: Epoll,
    said_ready: Cell<bool>,
    asked: Cell<bool>,
}

impl DrainNotice {
    /// Takes the link over and SIGTERM with it. To be called in the worker, after the fork: a pipe
    /// made before it would be shared by all workers.
    pub(crate) fn new(link: Rc<MasterLink>) -> io::Result<Self> {
        let (pipe, pipe_end) = UnixStream::pair()?;
        pipe_end.set_nonblocking(true)?;
        let sources = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        sources.add(&*link, EpollEvent::new(EpollFlags::EPOLLIN, 0))?;
        sources.add(&pipe, EpollEvent::new(EpollFlags::EPOLLIN, 1))?;
        term::write_to(pipe_end.try_clone()?.into())?;
        Ok(Self { link, pipe, pipe_end, sources, said_ready: Cell::new(false), asked: Cell::new(false) })
    }

    /// Tells the master, the first time, that the worker accepts connections.
    pub(super) fn ready(&self, record: &Record) {
        if self.said_ready.replace(true) {
            return;
        }
        record.set_state(WorkerState::Idle);
        if self.link.ready().is_err() {
            self.ask();
        }
    }

    /// Whether the worker shall drain.
    pub(super) fn asked(&self) -> bool {
        if !self.asked.get() && (self.link.wants_drain() || is_readable(self.pipe.as_fd())) {
            self.ask();
        }
        self.asked.get()
    }

    fn ask(&self) {
        self.asked.set(true);
        // A pipe that is full is readable already.
        let _ = (&self.pipe_end).write(&[0]);
    }
}

impl AsFd for DrainNotice {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.sources.0.as_fd()
    }
}
