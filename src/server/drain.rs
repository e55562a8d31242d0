//! How a worker learns that it shall drain: the master asks, or is gone, or SIGTERM comes.
//!
//! The master's socket and a self-pipe for SIGTERM are the two sources. The pipe is written to when
//! the master asks as well, and never read, so "drain" once said stays readable for ever.

use std::cell::Cell;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::rc::Rc;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};

use super::message::{FromWorker, ToWorker};
use super::scoreboard::{Record, WorkerState};
use crate::proc::{Channel, Received};
use crate::sys::term;

/// A worker's socket to the master.
#[derive(Debug)]
pub(crate) struct MasterLink {
    channel: Channel<FromWorker, ToWorker>,
    is_gone: Cell<bool>,
}

impl MasterLink {
    pub(crate) fn new(channel: Channel<FromWorker, ToWorker>) -> Self {
        Self { channel, is_gone: Cell::new(false) }
    }

    /// Says that the worker accepts connections.
    fn ready(&self) -> io::Result<()> {
        self.channel.send(&FromWorker::Ready, &[])
    }

    /// Says something, if the master takes it without delay.
    pub(super) fn try_say(&self, message: &FromWorker) -> bool {
        self.channel.try_send(message, &[]).is_ok_and(|sent| sent)
    }

    /// The same as a look: what has come stays there. The master says nothing but this to a worker.
    pub(super) fn wants_drain(&self) -> bool {
        is_readable(&self.channel)
    }

    /// Whether the master has asked to drain or is gone; takes in what has come, and never waits.
    fn poll_drain(&self) -> bool {
        match self.channel.try_recv() {
            Ok(Received::Empty) => false,
            Ok(Received::Message { message: ToWorker::Drain, .. }) => true,
            // A conversation that makes no sense is as good as none.
            Ok(Received::Eof) | Err(_) => {
                self.is_gone.set(true);
                true
            }
        }
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
        sources.add(&link.channel, EpollEvent::new(EpollFlags::EPOLLIN, 0))?;
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
        if !self.asked.get() && (self.link.poll_drain() || is_readable(&self.pipe)) {
            self.ask();
        }
        self.asked.get()
    }

    /// Whether the worker drains because its master is gone: it is to leave soon.
    pub(super) fn is_orphaned(&self) -> bool {
        self.link.is_gone.get()
    }

    fn ask(&self) {
        self.asked.set(true);
        // A pipe that is full is readable already.
        let _ = (&self.pipe_end).write(&[0]);
    }
}

fn is_readable(fd: impl AsFd) -> bool {
    let mut fds = [PollFd::new(fd.as_fd(), PollFlags::POLLIN)];
    matches!(poll(&mut fds, PollTimeout::ZERO), Ok(1..))
}

impl AsFd for DrainNotice {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.sources.0.as_fd()
    }
}
