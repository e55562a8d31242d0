//! A process that other code has taken over.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::error::Error;
use super::exit::Exit;
use super::node::Node;
use super::process::clone_pidfd;

/// A process that runs an entry point or another program.
///
/// Dropping the handle leaves the process alone: it goes on, and its socket is closed here unless it was taken.
#[derive(Debug)]
pub struct Running {
    pub(super) node: Arc<Node>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.node.close_socket();
    }
}

impl Running {
    /// The process's id; waits until it is born.
    ///
    /// # Errors
    /// Why it was not born.
    pub fn pid(&self) -> Result<i32, Error> {
        Ok(self.node.identity(None)?.0)
    }

    /// A descriptor of exactly this process (pidfd_open(2)): readable once it has ended.
    ///
    /// # Errors
    /// As [`pid`](Running::pid); EMFILE; or the process is known to have ended.
    pub fn pidfd(&self) -> Result<OwnedFd, Error> {
        clone_pidfd(&self.node)
    }

    /// The master's end of the process's socket (`SOCK_SEQPACKET`); it can be taken once.
    ///
    /// It waits until the process's earlier answers have come in; a process that was only forked, given
    /// arguments and run has none, and its socket is there at once.
    ///
    /// # Errors
    /// The process was not born or has ended before, or the socket was taken.
    pub fn socket(&self) -> Result<OwnedFd, Error> {
        self.node.take_socket(None)
    }

    /// Sends a signal (signal(7)) to exactly this process. One that has ended is no error.
    ///
    /// # Errors
    /// It was not born; EPERM, if it runs as another user; EINVAL, if there is no such signal.
    pub fn kill(&self, signal: i32) -> Result<(), Error> {
        self.node.kill(signal)
    }

    /// Waits for the process's end.
    ///
    /// # Errors
    /// The process was never born, and why.
    pub fn wait(&self) -> Result<Exit, Error> {
        self.node.exit(None)
    }

    /// As [`wait`](Running::wait), for at most that long.
    ///
    /// # Errors
    /// As `wait`, and [`Error::TimedOut`].
    pub fn wait_timeout(&self, patience: Duration) -> Result<Exit, Error> {
        self.node.exit(Some(Instant::now() + patience))
    }

    /// The process's end, if it has come; an error, if the process was never born.
    pub fn try_wait(&self) -> Option<Result<Exit, Error>> {
        self.node.exit_now()
    }

    /// Calls `callback` once with the process's pid when it is born. From then on neither [`pid`](Running::pid) nor
    /// [`socket`](Running::socket) of a process that was only forked, given arguments and run has to wait.
    ///
    /// It is called on this crate's thread for processes, so it must not wait: let it send to a channel.
    pub fn on_birth(&self, callback: impl FnOnce(i32) + Send + 'static) {
        self.node.on_birth(Box::new(callback));
    }

    /// Calls `callback` once if the process is seen to have ended before anybody can tell how: its parent is gone, and
    /// whoever has it now has not reaped it. What [`on_exit`](Running::on_exit) was given is called within a second
    /// of that.
    ///
    /// It is called on this crate's thread for processes, so it must not wait: let it send to a channel.
    pub(crate) fn on_gone(&self, callback: impl FnOnce() + Send + 'static) {
        self.node.on_gone(Box::new(callback));
    }

    /// Calls `callback` once with the process's end, or with the reason why it was never born.
    ///
    /// It is called on this crate's thread for processes, so it must not wait: while it does, nobody else is told anything. Let it
    /// send to a channel.
    pub fn on_exit(&self, callback: impl FnOnce(Result<Exit, Error>) + Send + 'static) {
        self.node.on_exit(Box::new(callback));
        self.node.live_until_end();
    }
}
