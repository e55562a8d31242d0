//! Many clients in one thread, who ask without pause until they are refused, and tell exactly what became of each request.
//!
//! A client whose connect(2) has not succeeded has been promised nothing: it may be refused once the server has been told to
//! stop. One that is connected counts on a whole answer. A reset, an end without an answer and half an answer are losses.
//! A kept connection that its server has closed before the next request is sent is no loss: each client has to look out for
//! that (RFC 9112, section 9.3.1), and takes another connection.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Instant;

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use socket2::{Domain, SockAddr, Socket, Type};

use super::{PATIENCE, processes};

/// What a client does after an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Habit {
    /// Each request has its own connection, which the server closes.
    ConnectionPerRequest,
    /// It asks again on the same connection until the server says that it closes it.
    KeepAlive,
}

/// The clients at work.
pub struct Crowd {
    shared: Arc<Shared>,
    thread: JoinHandle<Tally>,
}

#[derive(Default)]
struct Shared {
    answered: AtomicU64,
    may_be_refused: AtomicBool,
}

/// What became of their requests.
#[derive(Debug, Default)]
pub struct Tally {
    pub answered: u64,
    pub refused: u64,
    /// How often each thing happened that must not happen.
    pub lost: BTreeMap<String, u64>,
}

impl Crowd {
    /// Starts so many clients of `GET /` and waits until they are at work.
    pub fn start(address: &str, count: usize, habit: Habit) -> Crowd {
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("the limit");
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard).expect("up to the hard limit");
        let (shared, address) = (Arc::<Shared>::default(), address_of(address));
        let theirs = Arc::clone(&shared);
        let thread = std::thread::spawn(move || Desk::new(address, habit, count, theirs).run());
        let crowd = Crowd { shared, thread };
        crowd.await_answers(2 * count as u64);
        crowd
    }

    /// Waits for so many answers from now on.
    #[track_caller]
    pub fn await_answers(&self, count: u64) {
        let until = self.shared.answered.load(Ordering::Relaxed) + count;
        processes::eventually("the clients are answered", || {
            self.thread.is_finished() || self.shared.answered.load(Ordering::Relaxed) >= until
        });
    }

    /// From now on a refusal is a client's end, and no loss. To be said before the server is told.
    pub fn may_be_refused(&self) {
        self.shared.may_be_refused.store(true, Ordering::Relaxed);
    }

    /// Waits until every client has been refused.
    pub fn tally(self) -> Tally {
        self.thread.join().expect("the clients do not panic")
    }
}

fn address_of(address: &str) -> SockAddr {
    match address.strip_prefix("unix:") {
        Some(name) => SockAddr::unix(name.replacen('@', "\0", 1)).expect("a Unix address"),
        None => address.parse::<std::net::SocketAddr>().expect("an IP address").into(),
    }
}

struct Client {
    socket: Socket,
    connected: bool,
    /// Requests that were answered on this connection.
    answers: u64,
    received: Vec<u8>,
}

/// Where all clients are served from one epoll set.
struct Desk {
    address: SockAddr,
    habit: Habit,
    clients: Vec<Option<Client>>,
    epoll: Epoll,
    shared: Arc<Shared>,
    tally: Tally,
}

enum Turn {
    Wait,
    Answered { closes: bool },
}

impl Desk {
    fn new(address: SockAddr, habit: Habit, count: usize, shared: Arc<Shared>) -> Desk {
        let clients = (0..count).map(|_| None).collect();
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).expect("an epoll set");
        Desk { address, habit, clients, epoll, shared, tally: Tally::default() }
    }

    fn run(mut self) -> Tally {
        let mut idle: Vec<usize> = (0..self.clients.len()).collect();
        let mut at_work = 0;
        let mut last_event = Instant::now();
        loop {
            for index in std::mem::take(&mut idle) {
                match self.connect(index) {
                    Ok(()) => at_work += 1,
                    Err(error) if error.kind() == ErrorKind::WouldBlock => idle.push(index),
                    Err(error) => self.not_connected(&error),
                }
            }
            if at_work == 0 && idle.is_empty() {
                return self.tally;
            }
            let mut events = [EpollEvent::empty(); 64];
            // Whoever found a full Unix queue tries again.
            let patience = if idle.is_empty() { EpollTimeout::from(100_u16) } else { EpollTimeout::from(1_u16) };
            let count = self.epoll.wait(&mut events, patience).unwrap_or(0);
            if count > 0 {
                last_event = Instant::now();
            } else if last_event.elapsed() > PATIENCE {
                *self.tally.lost.entry("waits without end".to_owned()).or_default() += at_work as u64;
                return self.tally;
            }
            for event in &events[..count] {
                let index = event.data() as usize;
                if let Some(again) = self.serve(index) {
                    self.clients[index] = None;
                    at_work -= 1;
                    if again {
                        idle.push(index);
                    }
                }
            }
        }
    }

    fn connect(&mut self, index: usize) -> io::Result<()> {
        let socket = Socket::new(self.address.domain(), Type::STREAM.nonblocking(), None)?;
        match socket.connect(&self.address) {
            Err(error) if error.raw_os_error() != Some(nix::libc::EINPROGRESS) => return Err(error),
            _ => {}
        }
        if self.address.domain() != Domain::UNIX {
            socket.set_tcp_nodelay(true)?;
        }
        let flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT | EpollFlags::EPOLLET;
        self.epoll.add(socket.as_fd(), EpollEvent::new(flags, index as u64))?;
        self.clients[index] = Some(Client { socket, connected: false, answers: 0, received: Vec::new() });
        Ok(())
    }

    /// Goes on with a client; when its connection is over, whether it takes another.
    fn serve(&mut self, index: usize) -> Option<bool> {
        let client = self.clients[index].as_mut()?;
        if !client.connected {
            match client.socket.take_error() {
                Ok(None) if client.socket.peer_addr().is_err() => return None,
                Ok(None) => {}
                Ok(Some(error)) | Err(error) => {
                    self.not_connected(&error);
                    return Some(false);
                }
            }
            client.connected = true;
            if let Err(error) = client.ask(self.habit) {
                return Some(self.lose(index, &error));
            }
        }
        loop {
            let client = self.clients[index].as_mut()?;
            match client.receive() {
                Ok(Turn::Wait) => return None,
                Ok(Turn::Answered { closes }) => {
                    self.tally.answered += 1;
                    self.shared.answered.fetch_add(1, Ordering::Relaxed);
                    if closes || client.was_closed() {
                        return Some(true);
                    }
                    if let Err(error) = client.ask(self.habit) {
                        return Some(self.lose(index, &error));
                    }
                }
                Err(error) => return Some(self.lose(index, &error)),
            }
        }
    }

    fn not_connected(&mut self, error: &io::Error) {
        let refused = matches!(error.kind(), ErrorKind::ConnectionRefused | ErrorKind::NotFound);
        if refused && self.shared.may_be_refused.load(Ordering::Relaxed) {
            self.tally.refused += 1;
        } else {
            *self.tally.lost.entry(format!("not connected: {error}")).or_default() += 1;
        }
    }

    fn lose(&mut self, index: usize, error: &io::Error) -> bool {
        if let Some(client) = &self.clients[index] {
            let where_ = format!("answer {} after {} bytes: {error}", client.answers + 1, client.received.len());
            *self.tally.lost.entry(where_).or_default() += 1;
        }
        !self.shared.may_be_refused.load(Ordering::Relaxed)
    }
}

impl Client {
    fn ask(&mut self, habit: Habit) -> io::Result<()> {
        let close = if habit == Habit::KeepAlive { "" } else { "Connection: close\r\n" };
        self.socket.write_all(format!("GET / HTTP/1.1\r\nHost: test\r\n{close}\r\n").as_bytes())
    }

    /// The server has ended the connection in good order, between two requests.
    fn was_closed(&self) -> bool {
        matches!(self.socket.peek(&mut [MaybeUninit::uninit()]), Ok(0))
    }

    fn receive(&mut self) -> io::Result<Turn> {
        loop {
            if let Some((length, closes)) = whole(&self.received)? {
                self.received.drain(..length);
                self.answers += 1;
                return Ok(Turn::Answered { closes });
            }
            let mut bytes = [0; 2048];
            match self.socket.read(&mut bytes) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(count) => self.received.extend_from_slice(&bytes[..count]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(Turn::Wait),
                Err(error) => return Err(error),
            }
        }
    }
}

/// The length of the whole greeting at the front, and whether the connection ends with it.
fn whole(bytes: &[u8]) -> io::Result<Option<(usize, bool)>> {
    let text = str::from_utf8(bytes).map_err(|error| io::Error::new(ErrorKind::InvalidData, error))?;
    let Some((head, body)) = text.split_once("\r\n\r\n") else {
        return Ok(None);
    };
    let bad = || io::Error::new(ErrorKind::InvalidData, format!("no greeting: {text:?}"));
    let field = |name: &str| head.lines().find_map(|line| line.strip_prefix(name));
    let length: usize = field("Content-Length: ").and_then(|value| value.parse().ok()).ok_or_else(bad)?;
    let Some(body) = body.get(..length) else {
        return Ok(None);
    };
    if !(head.starts_with("HTTP/1.1 200 ") && body.starts_with("hello from slot ") && body.ends_with('\n')) {
        return Err(bad());
    }
    Ok(Some((head.len() + 4 + length, field("Connection: ") == Some("close"))))
}
