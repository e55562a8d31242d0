//! A process as its master knows it: the conversation with it, what it has answered, how it ended.
//!
//! Every handle ([`Template`](super::Template), [`Process`](super::Process), [`Running`](super::Running)) holds
//! a node. Callers send from their own thread as far as the socket takes it; the [hub](super::hub) sends the
//! rest, receives the reports and wakes whoever waits (`traffic.rs`). A node holds the node of the process
//! that forked it, because that one reaps it and tells its end.
//!
//! Locks are taken from parent to child, never the other way.

mod state;
mod traffic;

use std::fmt;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use self::state::{Birth, Handover, Link, State};
use self::traffic::Afterwards;
use super::error::Error;
use super::exit::Exit;
use super::hub;
use super::message::{Command, ExecMessage};
use super::outbox::Fork;
use crate::sys::pidfd;

pub(crate) struct Node {
    /// The process that forked this one lives as long as somebody asks for this one's end, which it reports.
    /// None for a template that the master started itself.
    parent: Option<Arc<Node>>,
    state: Mutex<State>,
    changed: Condvar,
}

/// Called once: how the process ended, or why it never began.
pub(crate) type OnExit = Box<dyn FnOnce(Result<Exit, Error>) + Send>;

/// Called once, with the pid of the process that was born.
pub(crate) type OnBirth = Box<dyn FnOnce(i32) + Send>;

/// Called once, when the process has ended and nobody can tell yet how.
pub(crate) type OnGone = Box<dyn FnOnce() + Send>;

/// Called once, when everything before a sync has been carried out or has failed.
pub(crate) type OnSync = Box<dyn FnOnce(Result<(), Error>) + Send>;

/// A born process: its pid, and a descriptor of exactly that process until its end is known.
pub(crate) type Identity = (i32, Option<Arc<OwnedFd>>);

impl Node {
    fn new(parent: Option<Arc<Node>>, state: State) -> Arc<Node> {
        Arc::new(Node { parent, state: Mutex::new(state), changed: Condvar::new() })
    }

    /// The node of a process that this process has just started: it waits for its end itself.
    pub(crate) fn started(pid: i32, pidfd: OwnedFd, control: OwnedFd) -> Arc<Node> {
        let birth = Birth::Born((pid, Some(Arc::new(pidfd))));
        Node::new(None, State { link: Link::Open(control), birth, ..State::default() })
    }

    /// The node of a process whose conversation came from elsewhere; it is asked who it is.
    pub(crate) fn adopted(control: OwnedFd, deadline: Instant) -> Result<Arc<Node>, Error> {
        // The question counts as a ticket: an answer is expected.
        let node = Node::new(None, State { link: Link::Open(control), tickets: 1, ..State::default() });
        node.push("ask the process who it is", Command::Identify, Vec::new())?;
        node.identity(Some(deadline))?;
        node.watch_own_exit()?;
        Ok(node)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn give_arg(self: &Arc<Self>, arg: Vec<u8>) -> Result<(), Error> {
        let operation = "send an argument";
        let mut state = self.state();
        state.usable(operation)?.outbox.give_arg(arg).map_err(|error| Error::system(operation, error))?;
        self.send_letters(state)
    }

    pub(crate) fn give_fd(self: &Arc<Self>, fd: OwnedFd) -> Result<(), Error> {
        let operation = "send a descriptor";
        let mut state = self.state();
        state.usable(operation)?.outbox.give_fd(fd).map_err(|error| Error::system(operation, error))?;
        self.send_letters(state)
    }

    /// Sends the letters that are full; what is gathered for the next one waits for a command.
    fn send_letters(self: &Arc<Self>, state: MutexGuard<'_, State>) -> Result<(), Error> {
        if state.outbox.is_empty() { Ok(()) } else { self.send(state) }
    }

    pub(crate) fn push(
        self: &Arc<Self>,
        operation: &'static str,
        command: Command,
        fds: Vec<OwnedFd>,
    ) -> Result<(), Error> {
        let mut state = self.state();
        state.usable(operation)?.outbox.push(command, fds).map_err(|error| Error::system(operation, error))?;
        self.send(state)
    }

    pub(crate) fn fork(self: &Arc<Self>) -> Result<Arc<Node>, Error> {
        let operation = "fork";
        let mut state = self.state();
        let ticket = state.usable(operation)?.next_ticket();
        let child = Node::new(Some(Arc::clone(self)), State { has_parent: true, ..State::default() });
        let fork = Fork { ticket, child: Arc::clone(&child) };
        state.outbox.push_fork(fork).map_err(|error| Error::system(operation, error))?;
        state.children.insert(ticket, Arc::downgrade(&child));
        self.send(state)?;
        Ok(child)
    }

    /// Gives the process to an entry point, and its socket to the user.
    pub(crate) fn run(self: &Arc<Self>, name: &str) -> Result<(), Error> {
        let operation = "run an entry point";
        let mut state = self.state();
        let announce = state.usable(operation)?.tickets > 0;
        let command = Command::Run { name: name.to_owned(), announce };
        state.outbox.push(command, Vec::new()).map_err(|error| Error::system(operation, error))?;
        state.handover = if announce { Handover::OnceAnnounced } else { Handover::OnceSent };
        self.send(state)
    }

    /// Lets the process become another program; its conversation ends with it.
    pub(crate) fn exec(self: &Arc<Self>, message: ExecMessage, fds: Vec<OwnedFd>) -> Result<(), Error> {
        let operation = "execute a program";
        let mut state = self.state();
        let command = Command::Exec(Box::new(message));
        let answers = state.usable(operation)?.tickets > 0;
        state.outbox.push(command, fds).map_err(|error| Error::system(operation, error))?;
        // Answers that are under way are still heard; the end of the conversation follows them.
        state.handover = if answers { Handover::OnceAnnounced } else { Handover::OnceSent };
        self.send(state)
    }

    /// Waits until everything that was sent has been carried out, or one of it has failed.
    pub(crate) fn sync(self: &Arc<Self>, deadline: Option<Instant>) -> Result<(), Error> {
        let operation = "carry out the instructions";
        let ticket = self.state().usable(operation)?.next_ticket();
        self.push(operation, Command::Sync { ticket }, Vec::new())?;
        self.wait(operation, deadline, |state| {
            if !state.syncs.contains_key(&ticket) {
                return state.gone(operation).map(Err);
            }
            // Earlier outcomes are those of syncs that nobody waited for to the end; the first failure counts.
            let later = state.syncs.split_off(&(ticket + 1));
            let outcomes = std::mem::replace(&mut state.syncs, later);
            Some(outcomes.into_values().find(Result::is_err).unwrap_or(Ok(())).map_err(Error::from))
        })
    }

    /// Calls back once everything that was sent has been carried out, or one of it has failed, or the process is gone.
    pub(crate) fn on_sync(self: &Arc<Self>, callback: OnSync) -> Result<(), Error> {
        let operation = "carry out the instructions";
        let ticket = {
            let mut state = self.state();
            let ticket = state.usable(operation)?.next_ticket();
            state.on_sync.insert(ticket, callback);
            ticket
        };
        self.push(operation, Command::Sync { ticket }, Vec::new())
    }

    pub(crate) fn identity(&self, deadline: Option<Instant>) -> Result<Identity, Error> {
        let operation = "learn the process's pid";
        self.wait(operation, deadline, |state| match &state.birth {
            Birth::Born(identity) => Some(Ok(identity.clone())),
            Birth::Failed(error) => Some(Err(error.clone())),
            Birth::Awaited => state.gone(operation).map(Err),
        })
    }

    /// The error of an operation that needs the process alive.
    pub(crate) fn ended_before(&self, operation: &'static str) -> Error {
        Error::Gone { operation, exit: self.state().exit.clone().map(Box::new) }
    }

    /// Sends a signal to the process; one that has ended is no error.
    pub(crate) fn kill(&self, signal: i32) -> Result<(), Error> {
        let (_, Some(process)) = self.identity(None)? else {
            return Ok(());
        };
        match pidfd::send_signal(process.as_fd(), signal) {
            Err(error) if error.raw_os_error() != Some(nix::libc::ESRCH) => {
                Err(Error::system("send a signal to the process", error))
            }
            _ => Ok(()),
        }
    }

    pub(crate) fn exit(&self, deadline: Option<Instant>) -> Result<Exit, Error> {
        let operation = "see the process end";
        let check = |state: &mut State| {
            state.end().or_else(|| match state.birth {
                Birth::Awaited => state.gone(operation).map(Err),
                _ => None,
            })
        };
        self.wait_among(|state| &mut state.waiters_for_end, operation, deadline, check)
    }

    /// The end, if it is known by now.
    pub(crate) fn exit_now(self: &Arc<Self>) -> Option<Result<Exit, Error>> {
        let mut state = self.state();
        if self.parent.is_none()
            && let Err(error) = self.watch_exit(&mut state)
        {
            return Some(Err(error));
        }
        state.end()
    }

    /// Watches the end of a process that nobody reports on.
    pub(crate) fn watch_own_exit(self: &Arc<Self>) -> Result<(), Error> {
        self.watch_exit(&mut self.state())
    }

    /// What was the master's in the memory that an early template has inherited.
    pub(crate) fn close_inherited(&self) {
        let mut state = self.state();
        state.link = Link::Closed;
        if let Birth::Born((_, pidfd)) = &mut state.birth {
            *pidfd = None;
        }
    }

    /// Calls back once, when the process is born; never, if it is not.
    pub(crate) fn on_birth(&self, callback: OnBirth) {
        let mut state = self.state();
        match state.birth {
            Birth::Born((pid, _)) => {
                drop(state);
                callback(pid);
            }
            Birth::Awaited => state.on_birth.push(callback),
            Birth::Failed(_) => {}
        }
    }

    /// Calls back once, if the end is seen before it is known.
    pub(crate) fn on_gone(&self, callback: OnGone) {
        let mut state = self.state();
        if state.exit.is_none() {
            state.on_gone.push(callback);
        }
    }

    /// Calls back once, on the hub's thread or, if the end is known already, at once.
    ///
    /// Somebody must hold the node until then: see [`Node::live_until_end`].
    pub(crate) fn on_exit(self: &Arc<Self>, callback: OnExit) {
        let mut state = self.state();
        match state.end() {
            Some(end) => {
                drop(state);
                callback(end);
            }
            None => {
                if self.parent.is_none()
                    && let Err(error) = self.watch_exit(&mut state)
                {
                    drop(state);
                    return callback(Err(error));
                }
                state.on_exit.push(callback);
            }
        }
    }

    /// Keeps the node, and with it the process that reports its end, until that end.
    pub(crate) fn live_until_end(self: &Arc<Self>) {
        let mut state = self.state();
        if state.end().is_none() {
            state.awaited = Some(Arc::clone(self));
        }
    }

    /// The user's socket, once it is free.
    pub(crate) fn take_socket(&self, deadline: Option<Instant>) -> Result<OwnedFd, Error> {
        let operation = "take the process's socket";
        self.wait(operation, deadline, |state| match std::mem::replace(&mut state.link, Link::Taken) {
            Link::Free(socket) => Some(Ok(socket)),
            Link::Taken => Some(Err(Error::SocketTaken { operation })),
            other => {
                state.link = other;
                match (&state.birth, &state.link) {
                    (Birth::Failed(error), _) => Some(Err(error.clone())),
                    // Its end may be told before what it has said itself: that it was taken over, or nothing more.
                    (_, Link::Open(_)) => None,
                    _ => state.gone(operation).map(Err),
                }
            }
        })
    }

    /// Closes the user's socket, now or as soon as it is free, unless it was taken.
    pub(crate) fn close_socket(&self) {
        let mut state = self.state();
        state.socket_unwanted = true;
        if matches!(state.link, Link::Free(_)) {
            state.link = Link::Closed;
        }
    }

    /// The conversation itself, to be passed on; nothing is under way on it after a sync.
    pub(crate) fn take_conversation(self: &Arc<Self>, deadline: Instant) -> Result<OwnedFd, Error> {
        let operation = "pass the process on";
        self.sync(Some(deadline))?;
        let mut state = self.state();
        state.usable(operation)?.unwatch();
        match std::mem::replace(&mut state.link, Link::Taken) {
            Link::Open(socket) => {
                // From now on nobody tells us its children's ends.
                let mut after = Afterwards::default();
                state.watch_children(&traffic::lost_pidfd(), &mut after);
                drop(state);
                after.carry_out();
                Ok(socket)
            }
            other => {
                state.link = other;
                Err(Error::Gone { operation, exit: state.exit.clone().map(Box::new) })
            }
        }
    }

    /// Waits until `check` has an answer.
    fn wait<T>(
        &self,
        operation: &'static str,
        deadline: Option<Instant>,
        check: impl FnMut(&mut State) -> Option<Result<T, Error>>,
    ) -> Result<T, Error> {
        self.wait_among(|state| &mut state.waiters, operation, deadline, check)
    }

    /// Waits until `check` has an answer, counted among those who are woken for the same changes.
    fn wait_among<T>(
        &self,
        waiters: fn(&mut State) -> &mut usize,
        operation: &'static str,
        deadline: Option<Instant>,
        mut check: impl FnMut(&mut State) -> Option<Result<T, Error>>,
    ) -> Result<T, Error> {
        let mut state = self.state();
        loop {
            if let Some(answer) = check(&mut state) {
                return answer;
            }
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            if left.is_some_and(|left| left.is_zero()) {
                return Err(Error::TimedOut { operation });
            }
            *waiters(&mut state) += 1;
            state = match left {
                Some(left) => self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0,
                None => self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
            };
            *waiters(&mut state) -= 1;
        }
    }

    /// Sends what can be sent now, and does what follows from it once no lock is held.
    fn send(self: &Arc<Self>, mut state: MutexGuard<'_, State>) -> Result<(), Error> {
        let mut after = Afterwards::default();
        let sent = self.send_all(&mut state, &mut after);
        after.wake(self, &state);
        drop(state);
        after.carry_out();
        sent
    }
}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pid = match &self.state().birth {
            Birth::Born((pid, _)) => Some(*pid),
            _ => None,
        };
        f.debug_struct("Node").field("pid", &pid).finish_non_exhaustive()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        state.unwatch();
        let pidfd = match &mut state.birth {
            Birth::Born((_, pidfd)) if self.parent.is_none() => pidfd.clone(),
            _ => None,
        };
        state.unwatch_exit();
        if let Some(pidfd) = pidfd {
            // Our own child, which ends now that its conversation is closed.
            state.link = Link::Closed;
            hub::reap_when_ended(pidfd);
        }
    }
}
