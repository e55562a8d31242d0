//! Who answers at a control socket: all clients on the hub's one thread, each by its [`Session`].
//!
//! A question goes to the master's [`Desk`]; the answer is written down and sent, as far as the socket takes it, on
//! the master's thread, which waits for nobody. A client's time is a reminder of the hub's, one for each client.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::epoll::EpollFlags;
use nix::sys::socket::{getsockopt, sockopt};
use nix::unistd::geteuid;
use slog::{Logger, debug, warn};

use super::protocol::{self, Answer, Refusal, Refused, Request};
use super::session::{Session, Turn};
use crate::proc::hub::{Hub, Source, Token, Watch};
use crate::server::{Asker, Attendant, Desk, Question, Reply};
use crate::sys::stream;

/// So many clients a control socket has at a time.
pub const MOST_CLIENTS: usize = 128;

/// So many reloads may be waited for, by clients who are there or have hung up.
const MOST_RELOADS: usize = 1024;

/// So many clients are let in before others have their turn.
const AT_ONCE: usize = 16;

/// How long nobody is let in when no descriptor is left.
const REST: Duration = Duration::from_secs(1);

/// Begins to answer at a listening socket.
pub(super) fn attend(socket: OwnedFd, desk: Desk, log: Logger) -> io::Result<Box<dyn Attendant>> {
    let room = Arc::new(Room { desk, log, state: Mutex::default() });
    let door = Watch::new(Door { socket, room: Arc::clone(&room) }, EpollFlags::EPOLLIN)?;
    Ok(Box::new(Doorkeeper { door: Mutex::new(Some(door)), _room: room }))
}

/// The door, as long as it is open, and who is in.
struct Doorkeeper {
    door: Mutex<Option<Watch<Door>>>,
    _room: Arc<Room>,
}

impl std::fmt::Debug for Doorkeeper {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Doorkeeper")
    }
}

impl Attendant for Doorkeeper {
    fn close_door(&self) {
        self.door.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}

/// The listening socket.
struct Door {
    socket: OwnedFd,
    room: Arc<Room>,
}

impl AsFd for Door {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Source for Door {
    fn ready(self: Arc<Self>, token: Token, events: EpollFlags) {
        let watch_for = |what| Hub::get().and_then(|hub| hub.change(token, &self.socket, what));
        // No event at all is the end of a rest.
        let let_in = if events.is_empty() { watch_for(EpollFlags::EPOLLIN) } else { self.room.let_in(self.as_fd()) };
        if let Err(error) = let_in {
            // Who waits would be told of again and again.
            warn!(self.room.log, "cannot let a client in at the control socket"; "why" => %error);
            let rest = watch_for(EpollFlags::empty());
            let again = rest.and_then(|()| Hub::get()?.remind(token, Instant::now() + REST));
            if let Err(error) = again {
                warn!(self.room.log, "the control socket is not looked after any more"; "why" => %error);
            }
        }
    }
}

/// All clients.
struct Room {
    desk: Desk,
    log: Logger,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    last: u64,
    clients: HashMap<u64, Client>,
    /// Reloads that have been asked for and have not ended.
    reloads: usize,
}

struct Client {
    watch: Watch<Guest>,
    asker: Asker,
    session: Session,
    /// What is watched for.
    awaited: EpollFlags,
    /// The reminder that is on its way.
    reminded: Option<Instant>,
}

/// A client's socket.
struct Guest {
    id: u64,
    socket: OwnedFd,
    room: Weak<Room>,
}

impl AsFd for Guest {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Source for Guest {
    fn ready(self: Arc<Self>, _: Token, events: EpollFlags) {
        if let Some(room) = self.room.upgrade() {
            room.attend(self.id, events);
        }
    }
}

impl Room {
    /// Lets in who waits at the door, a few at a time.
    fn let_in(self: &Arc<Self>, door: BorrowedFd<'_>) -> io::Result<()> {
        for _ in 0..AT_ONCE {
            let socket = match stream::accept(door) {
                Ok((socket, _)) => socket,
                Err(Errno::EAGAIN) => return Ok(()),
                Err(Errno::EINTR | Errno::ECONNABORTED) => continue,
                Err(errno) => return Err(errno.into()),
            };
            match asker_at(&socket) {
                Ok(asker) if may_speak(asker.uid, geteuid().as_raw()) => self.welcome(socket, asker),
                asker => self.send_away(&socket, asker.ok()),
            }
        }
        Ok(())
    }

    fn welcome(self: &Arc<Self>, socket: OwnedFd, asker: Asker) {
        let mut state = self.state();
        if state.clients.len() >= MOST_CLIENTS {
            turn_away(&socket, Refusal::Busy, format!("{MOST_CLIENTS} clients are here already; try again later"));
            return;
        }
        state.last += 1;
        let id = state.last;
        let watch = Watch::new(Guest { id, socket, room: Arc::downgrade(self) }, EpollFlags::EPOLLIN);
        let session = Session::new(Instant::now());
        let client = watch.map(|watch| Client { watch, asker, session, awaited: EpollFlags::EPOLLIN, reminded: None });
        match client.and_then(|mut client| client.see_to_watch().map(|()| client)) {
            Ok(client) => drop(state.clients.insert(id, client)),
            Err(error) => warn!(self.log, "cannot let a client in at the control socket"; "why" => %error),
        }
    }

    fn send_away(&self, socket: &OwnedFd, asker: Option<Asker>) {
        debug!(self.log, "somebody was refused at the control socket"; "by_pid" => asker.map(|asker| asker.pid),
            "uid" => asker.map(|asker| asker.uid));
        let why = "only the user whom the server runs as, and root, may speak here".to_owned();
        turn_away(socket, Refusal::OtherUser, why);
    }

    /// Something happens at a client's socket, or its time may be over.
    fn attend(self: &Arc<Self>, id: u64, events: EpollFlags) {
        let now = Instant::now();
        let mut state = self.state();
        let Some(client) = state.clients.get_mut(&id) else {
            return;
        };
        client.receive(now);
        let request = client.go_on(now);
        let has_left = events.intersects(EpollFlags::EPOLLHUP | EpollFlags::EPOLLERR);
        // What it has asked before it left is done all the same.
        let asker = client.asker;
        self.keep_or_drop(&mut state, id, has_left);
        if let Some(request) = request {
            self.ask(state, id, request, asker);
        }
    }

    fn keep_or_drop(&self, state: &mut State, id: u64, has_left: bool) {
        let Some(client) = state.clients.get_mut(&id) else {
            return;
        };
        let is_done = match client.session.turn() {
            Turn::Over => true,
            Turn::Answering => has_left,
            Turn::Asking | Turn::Taking => false,
        };
        if is_done || client.see_to_watch().is_err() {
            state.clients.remove(&id);
        }
    }

    fn ask(self: &Arc<Self>, mut state: MutexGuard<'_, State>, id: u64, request: Request, asker: Asker) {
        let room = Arc::downgrade(self);
        match request {
            Request::Status => {
                drop(state);
                let answer = move |status| {
                    if let Some(room) = room.upgrade() {
                        room.answer(id, Answer::Status(status));
                    }
                };
                self.desk.ask(Question::Status(Reply::new(answer)));
            }
            Request::Reload if state.reloads >= MOST_RELOADS => {
                let why = format!("{MOST_RELOADS} reloads are waited for already; try again later");
                if let Some(client) = state.clients.get_mut(&id) {
                    let now = Instant::now();
                    client.session.refuse(Refused { reason: Refusal::Busy, why }, now);
                    client.go_on(now);
                }
                self.keep_or_drop(&mut state, id, false);
            }
            Request::Reload => {
                state.reloads += 1;
                drop(state);
                let answer = move |end| {
                    if let Some(room) = room.upgrade() {
                        room.state().reloads -= 1;
                        room.answer(id, Answer::Reload(end));
                    }
                };
                self.desk.ask(Question::Reload { asker, reply: Reply::new(answer) });
            }
        }
    }

    /// The master answers a client, who may have left.
    fn answer(self: &Arc<Self>, id: u64, answer: Answer) {
        let line = protocol::write_answer(answer);
        let now = Instant::now();
        let mut state = self.state();
        let Some(client) = state.clients.get_mut(&id) else {
            return;
        };
        client.session.answer(line, now);
        let next = client.go_on(now);
        let asker = client.asker;
        self.keep_or_drop(&mut state, id, false);
        if let Some(request) = next {
            self.ask(state, id, request, asker);
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Client {
    /// Reads once what has come, if it is the client's turn to ask; what is left is told again.
    fn receive(&mut self, now: Instant) {
        self.session.handle_timeout(now);
        if self.session.turn() != Turn::Asking {
            return;
        }
        let mut bytes = [0; 1024];
        match stream::receive(self.watch.source().as_fd(), &mut bytes) {
            Ok(0) => self.session.handle_end_of_input(),
            Ok(count) => self.session.handle_input(&bytes[..count]),
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            Err(_) => self.session.handle_end_of_input(),
        }
    }

    /// Sends as far as the socket takes it, and gives the next question when its turn has come.
    fn go_on(&mut self, now: Instant) -> Option<Request> {
        loop {
            if let Some(request) = self.session.poll_request(now) {
                return Some(request);
            }
            if self.session.turn() != Turn::Taking {
                return None;
            }
            match stream::send(self.watch.source().as_fd(), self.session.poll_output()) {
                Ok(count) => self.session.handle_sent(count, now),
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return None,
                Err(_) => self.session.handle_broken(),
            }
        }
    }

    /// Has the hub watch for what is awaited now, and remind of the time.
    fn see_to_watch(&mut self) -> io::Result<()> {
        let awaited = match self.session.turn() {
            Turn::Asking => EpollFlags::EPOLLIN,
            Turn::Taking => EpollFlags::EPOLLOUT,
            // The client's end is told in any case.
            Turn::Answering | Turn::Over => EpollFlags::empty(),
        };
        if awaited != self.awaited {
            self.watch.change(awaited)?;
            self.awaited = awaited;
        }
        if self.reminded.is_some_and(|at| at <= Instant::now()) {
            self.reminded = None;
        }
        // Deadlines move on and never back: one that comes early is followed by another.
        if let (Some(deadline), None) = (self.session.deadline(), self.reminded) {
            self.watch.remind(deadline)?;
            self.reminded = Some(deadline);
        }
        Ok(())
    }
}

/// Who has connected, as the kernel tells (SO_PEERCRED, unix(7)).
fn asker_at(socket: &OwnedFd) -> nix::Result<Asker> {
    let peer = getsockopt(socket, sockopt::PeerCredentials)?;
    Ok(Asker { pid: peer.pid(), uid: peer.uid() })
}

/// Whether a process of that user may speak to a server of this one.
fn may_speak(user: u32, own: u32) -> bool {
    user == own || user == 0
}

/// Says why not to somebody who is not let in.
fn turn_away(socket: &OwnedFd, reason: Refusal, why: String) {
    // It is short, and the first that is said: there is room for it, or nobody to hear it.
    let _ = stream::send(socket.as_fd(), &protocol::write_answer(Answer::Refused(Refused { reason, why })));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_servers_own_user_and_root_may_speak_and_nobody_else() {
        assert!(may_speak(1000, 1000) && may_speak(0, 1000) && may_speak(0, 0));
        assert!(!may_speak(1001, 1000) && !may_speak(1000, 0) && !may_speak(65534, 0));
    }
}
