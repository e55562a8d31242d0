//! A node's traffic: letters out, reports in, and what each report changes.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use nix::sys::epoll::EpollFlags;

use super::{Birth, Handover, Identity, Link, Node, OnBirth, OnExit, OnGone, OnSync, State};
use crate::proc::channel::{self, Received};
use crate::proc::error::Error;
use crate::proc::exit::Exit;
use crate::proc::hub::{Hub, Source, Token, call_back};
use crate::proc::message::{Command, Frame, Report, Ticket};
use crate::proc::outbox::Sent;
use crate::proc::unanswered::Due;
use crate::sys::seqpacket::ASK_AGAIN;
use crate::sys::{pidfd, wait};

/// How long it is waited for somebody to reap a process that has ended and is nobody's here: then it can be told how.
const REAPED_WITHIN: Duration = Duration::from_secs(1);

/// What is to be done when no lock is held any more.
#[derive(Default)]
pub(super) struct Afterwards {
    births: Vec<(OnBirth, i32)>,
    syncs: Vec<(OnSync, Result<(), Error>)>,
    gone: Vec<OnGone>,
    ends: Vec<(OnExit, Result<Exit, Error>)>,
    /// Nodes that somebody waits for, who needs their locks when he is woken.
    changed: Vec<Arc<Node>>,
    /// Nodes that nothing may hold any more: dropping one locks others.
    done_with: Vec<Arc<Node>>,
}

impl Afterwards {
    fn done_with(&mut self, node: Option<Arc<Node>>) {
        self.done_with.extend(node);
    }

    /// Wakes whoever waits for a change of this node.
    pub(super) fn wake(&mut self, node: &Arc<Node>, state: &State) {
        if state.waiters + state.waiters_for_end > 0 {
            self.changed.push(Arc::clone(node));
        }
    }

    pub(super) fn carry_out(self) {
        for node in self.changed {
            node.changed.notify_all();
        }
        for (callback, pid) in self.births {
            call_back(|| callback(pid));
        }
        for (callback, outcome) in self.syncs {
            call_back(|| callback(outcome));
        }
        for callback in self.gone {
            call_back(callback);
        }
        for (callback, end) in self.ends {
            call_back(|| callback(end));
        }
    }
}

impl Source for Node {
    fn ready(self: Arc<Self>, token: Token, events: EpollFlags) {
        let mut after = Afterwards::default();
        let mut state = self.state();
        if state.exit_watched == Some(token) {
            self.see_exit(&mut state, token, events, &mut after);
        } else if state.watched.is_some_and(|(watched, _)| watched == token) {
            state.reminded &= !events.is_empty();
            if events.intersects(EpollFlags::EPOLLIN | EpollFlags::EPOLLHUP | EpollFlags::EPOLLERR) {
                self.receive_all(&mut state, &mut after);
            }
            self.ask_for_lost_pidfds(&mut state, &mut after);
            // Answers may have made room for further forks.
            if let Err(error) = self.send_all(&mut state, &mut after) {
                self.lose(&mut state, &error, &mut after);
            }
        }
        after.wake(&self, &state);
        drop(state);
        after.carry_out();
    }
}

impl Node {
    /// Sends what can be sent now; the hub sends the rest.
    pub(super) fn send_all(self: &Arc<Self>, state: &mut State, after: &mut Afterwards) -> Result<(), Error> {
        let (now, mut limited) = (Instant::now(), false);
        let wants_room = loop {
            let Link::Open(socket) = &state.link else {
                return Ok(());
            };
            match state.outbox.send_next(socket.as_fd(), now) {
                Ok(Sent::Letter) => {}
                Ok(Sent::Fork(fork, socket)) => fork.child.born_into(socket, after),
                Ok(Sent::ForkFailed(fork, error)) => {
                    state.children.remove(&fork.ticket);
                    fork.child.never_born(&error, after);
                }
                Ok(Sent::Empty | Sent::WaitForAnswer) => break false,
                Ok(Sent::WaitForRoom) => break true,
                Ok(Sent::WaitForLimit) => {
                    limited = true;
                    break false;
                }
                Err(error) => {
                    let error = match error.kind() {
                        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => {
                            Error::Gone { operation: "send instructions to the process", exit: None }
                        }
                        _ => Error::system("send instructions to the process", error),
                    };
                    self.lose(state, &error, after);
                    return Ok(());
                }
            }
        };
        let unsent = !state.outbox.is_empty();
        state.unsent = unsent.then(|| Arc::clone(self));
        if state.handover == Handover::OnceSent && !unsent {
            state.set_free();
        } else if unsent || state.tickets > 0 {
            // A process that was never asked anything says nothing that the hub must hear.
            self.watch(state, wants_room)?;
            let ask_at = limited.then_some(now + ASK_AGAIN).or_else(|| state.outbox.unanswered().next_due());
            if let (Some(at), Some((token, _)), false) = (ask_at, state.watched, state.reminded) {
                Hub::get()
                    .and_then(|hub| hub.remind(token, at))
                    .map_err(|error| Error::system("wait for room on the way to the process", error))?;
                state.reminded = true;
            }
        }
        Ok(())
    }

    /// Asks for the pidfds again that found no room here, or gives up those that found none for too long.
    fn ask_for_lost_pidfds(self: &Arc<Self>, state: &mut State, after: &mut Afterwards) {
        let Due { ask, give_up } = state.outbox.unanswered().poll_due(Instant::now());
        for ticket in &give_up {
            if let Some(child) = state.children.remove(ticket).and_then(|child| child.upgrade()) {
                child.never_born(&lost_pidfd(), after);
            }
        }
        let ask = (!ask.is_empty()).then_some(Command::Retell { tickets: ask });
        let give_up = (!give_up.is_empty()).then_some(Command::Kill { tickets: give_up });
        for command in [ask, give_up].into_iter().flatten() {
            // A short command needs no descriptor, so nothing keeps it from being queued.
            let _ = state.outbox.push_first(command);
        }
    }

    fn watch(self: &Arc<Self>, state: &mut State, wants_room: bool) -> Result<(), Error> {
        let Link::Open(socket) = &state.link else {
            return Ok(());
        };
        let events = if wants_room { EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT } else { EpollFlags::EPOLLIN };
        let watched = Hub::get().and_then(|hub| match state.watched {
            Some((token, before)) if before == events => Ok(token),
            Some((token, _)) => hub.change(token, socket, events).map(|()| token),
            None => hub.watch(socket, events, self.as_source()),
        });
        let token = watched.map_err(|error| Error::system("watch the process's socket", error))?;
        state.watched = Some((token, events));
        if self.parent.is_none() {
            // Nobody else tells its end; an early template is not watched before there is something to wait for.
            self.watch_exit(state)?;
        }
        Ok(())
    }

    fn as_source(self: &Arc<Self>) -> Weak<dyn Source> {
        let weak: Weak<Node> = Arc::downgrade(self);
        weak
    }

    /// The fork that makes this process is on its way: here is our end of its socket.
    fn born_into(self: &Arc<Self>, socket: OwnedFd, after: &mut Afterwards) {
        let mut state = self.state();
        state.link = Link::Open(socket);
        if let Err(error) = self.send_all(&mut state, after) {
            self.lose(&mut state, &error, after);
        }
        after.wake(self, &state);
    }

    /// There will be no such process.
    fn never_born(self: &Arc<Self>, error: &Error, after: &mut Afterwards) {
        let mut state = self.state();
        state.birth = Birth::Failed(error.clone());
        after.done_with(state.awaited.take());
        after.ends.extend(state.on_exit.drain(..).map(|callback| (callback, Err(error.clone()))));
        self.lose(&mut state, error, after);
        after.wake(self, &state);
    }

    fn receive_all(self: &Arc<Self>, state: &mut State, after: &mut Afterwards) {
        let mut buffer = Vec::new();
        // What comes after a handover that is not announced is the user's.
        while state.handover != Handover::OnceSent {
            let Link::Open(socket) = &state.link else {
                return;
            };
            match channel::receive::<Frame<Report>>(socket.as_fd(), &mut buffer) {
                Ok(Received::Message { message, fds, .. }) => {
                    let mut fds = fds.into_iter();
                    for report in message {
                        self.handle(state, report, &mut fds, after);
                    }
                }
                Ok(Received::Empty) => return,
                Ok(Received::Eof) => {
                    let gone = Error::Gone { operation: "fork", exit: None };
                    return self.lose(state, &gone, after);
                }
                Err(error) => {
                    let error = Error::system("understand the process's report", error);
                    return self.lose(state, &error, after);
                }
            }
        }
    }

    fn handle(
        self: &Arc<Self>,
        state: &mut State,
        report: Report,
        fds: &mut impl Iterator<Item = OwnedFd>,
        after: &mut Afterwards,
    ) {
        match report {
            Report::Forked { ticket, pid } => {
                match (state.children.get(&ticket).and_then(Weak::upgrade), fds.next()) {
                    // Until it can be supervised it is not born.
                    (Some(_), None) => {
                        return state.outbox.unanswered().handle_lost_pidfd(ticket, pid, Instant::now());
                    }
                    (Some(child), pidfd) => child.born(&mut child.state(), (pid, pidfd.map(Arc::new)), after),
                    (None, _) => {}
                }
                state.outbox.unanswered().handle_answer(ticket);
            }
            Report::Lived { ticket, pid, exit } => {
                state.outbox.unanswered().handle_answer(ticket);
                end_of_child(state, ticket, Some(pid), &exit, after);
            }
            Report::ForkFailed { ticket, failure } => {
                state.outbox.unanswered().handle_answer(ticket);
                if let Some(child) = state.children.remove(&ticket).and_then(|child| child.upgrade()) {
                    child.never_born(&failure.into(), after);
                }
            }
            Report::Exited { ticket, exit } => {
                let unborn = state.outbox.unanswered().handle_answer(ticket);
                end_of_child(state, ticket, unborn, &exit, after);
            }
            // Nobody asked for it.
            Report::Synced { ticket, .. } if ticket > state.tickets => {}
            Report::Synced { ticket, outcome } => match state.on_sync.remove(&ticket) {
                Some(callback) => after.syncs.push((callback, outcome.map_err(Error::from))),
                None => drop(state.syncs.insert(ticket, outcome)),
            },
            // Who it is was known before: a process that says otherwise would have others killed in its place.
            Report::Identity { .. } if !matches!(state.birth, Birth::Awaited) => {}
            Report::Identity { pid } => {
                state.birth = match fds.next() {
                    Some(pidfd) => Birth::Born((pid, Some(Arc::new(pidfd)))),
                    None => Birth::Failed(lost_pidfd()),
                };
            }
            Report::TakenOver => {
                state.set_free();
                // From now on nobody reports its children's ends.
                state.watch_children(&lost_pidfd(), after);
            }
        }
    }

    fn born(self: &Arc<Self>, state: &mut State, identity: Identity, after: &mut Afterwards) {
        if matches!(state.birth, Birth::Awaited) {
            after.births.extend(state.on_birth.drain(..).map(|callback| (callback, identity.0)));
            state.birth = Birth::Born(identity);
        }
        // Whoever waits for the end would be woken for nothing.
        if state.waiters > 0 {
            after.wake(self, state);
        }
    }

    fn ended(self: &Arc<Self>, state: &mut State, exit: &Exit, after: &mut Afterwards) {
        if state.exit.is_none() {
            state.exit = Some(exit.clone());
            state.on_gone.clear();
            after.done_with(state.awaited.take());
            after.ends.extend(state.on_exit.drain(..).map(|callback| (callback, Ok(exit.clone()))));
        }
        state.unwatch_exit();
        after.wake(self, state);
    }

    /// The conversation is over: what was not sent never will be, and the children's ends are seen from here.
    fn lose(self: &Arc<Self>, state: &mut State, why: &Error, after: &mut Afterwards) {
        state.unwatch();
        state.unsent = None;
        state.link = match std::mem::replace(&mut state.link, Link::Closed) {
            Link::Taken => Link::Taken,
            _ => Link::Closed,
        };
        after.syncs.extend(state.on_sync.drain().map(|(_, callback)| (callback, Err(why.clone()))));
        for fork in state.outbox.abandon() {
            state.children.remove(&fork.ticket);
            fork.child.never_born(why, after);
        }
        state.watch_children(why, after);
        state.children.clear();
    }

    /// Watches the process's end from here, where nobody is there to report it.
    pub(super) fn watch_exit(self: &Arc<Self>, state: &mut State) -> Result<(), Error> {
        if let (Birth::Born((_, Some(pidfd))), None, None) = (&state.birth, &state.exit, state.exit_watched) {
            let watched = Hub::get().and_then(|hub| hub.watch(pidfd.as_fd(), EpollFlags::EPOLLIN, self.as_source()));
            state.exit_watched = Some(watched.map_err(|error| Error::system("watch for the process's end", error))?);
        }
        Ok(())
    }

    /// The pidfd says that the process has ended.
    fn see_exit(self: &Arc<Self>, state: &mut State, token: Token, events: EpollFlags, after: &mut Afterwards) {
        let Birth::Born((_, Some(pidfd))) = &state.birth else {
            return;
        };
        let exit = match wait::reap_by_pidfd(pidfd.as_fd()) {
            Ok(Some(reaped)) => Exit::from_reaped(&reaped, None),
            Ok(None) => return,
            // Not a child of this process: its own parent, or init, reaps it, and then the kernel can tell.
            Err(_) => match pidfd::exit_status(pidfd.as_fd()) {
                Ok(None) if events == EpollFlags::EPOLLIN => {
                    // That it is reaped is a hangup (Linux 6.9). A parent that does not reap is not waited for.
                    let changed = Hub::get().and_then(|hub| {
                        hub.change(token, pidfd.as_fd(), EpollFlags::empty())?;
                        hub.remind(token, Instant::now() + REAPED_WITHIN)
                    });
                    if changed.is_ok() {
                        after.gone.append(&mut state.on_gone);
                        return;
                    }
                    Exit::seen_from_afar(None)
                }
                status => Exit::seen_from_afar(status.unwrap_or(None)),
            },
        };
        self.ended(state, &exit, after);
    }
}

/// A child has ended, before its birth was told if its pid comes along.
fn end_of_child(state: &mut State, ticket: Ticket, unborn: Option<i32>, exit: &Exit, after: &mut Afterwards) {
    if let Some(child) = state.children.remove(&ticket).and_then(|child| child.upgrade()) {
        let mut state = child.state();
        if let Some(pid) = unborn {
            child.born(&mut state, (pid, None), after);
        }
        child.ended(&mut state, exit, after);
    }
}

/// There was no room for it here.
pub(super) fn lost_pidfd() -> Error {
    Error::system("receive the process's pidfd", io::Error::from_raw_os_error(nix::libc::EMFILE))
}

impl State {
    /// The children's ends are seen from here, because their parent will not tell them. Those whose births were not
    /// told in full never will be, for that reason.
    pub(super) fn watch_children(&self, why_not_born: &Error, after: &mut Afterwards) {
        for child in self.children.values().filter_map(Weak::upgrade) {
            let mut state = child.state();
            if matches!(state.birth, Birth::Awaited) {
                drop(state);
                child.never_born(why_not_born, after);
            } else if child.watch_exit(&mut state).is_err() {
                // ENOSPC or ENOMEM: without a watch the end would never be seen, so it counts as seen.
                child.ended(&mut state, &Exit::seen_from_afar(None), after);
            }
        }
    }

    /// The socket is the user's from now on.
    fn set_free(&mut self) {
        self.unwatch();
        self.link = match std::mem::replace(&mut self.link, Link::Closed) {
            Link::Open(_) if self.socket_unwanted => Link::Closed,
            Link::Open(socket) => Link::Free(socket),
            other => other,
        };
    }
}
