//! A load that accounts for every request: closed-loop clients, a connection for each request.
//!
//! A request is lost when no whole answer with status 200 comes: the connection is refused, reset, cut or silent. Once
//! the server is told to stop, a refusal is as it should be, and its client leaves; what breaks after connect(2) has
//! returned is lost all the same.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle, sleep};
use std::time::{Duration, Instant};

use socket2::SockRef;

use super::Result;

const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
/// A request that takes longer is lost.
const PATIENCE: Duration = Duration::from_secs(10);
/// Who is refused does not try again at once.
const AFTER_REFUSAL: Duration = Duration::from_millis(1);

/// What became of the requests.
#[derive(Debug, Default)]
pub struct Tally {
    pub answered: u64,
    /// Refused while the server was supposed to serve.
    pub refused: u64,
    /// Reset after connect(2) had returned.
    pub reset: u64,
    /// Ended before a whole answer had come.
    pub cut: u64,
    /// Without an answer for ten seconds.
    pub silent: u64,
    /// A whole answer, but not 200.
    pub failed: u64,
    /// The time of each request, from before its connect(2) to its end of any kind; the shortest first, once all are there.
    waits: Vec<Duration>,
}

impl Tally {
    pub fn lost(&self) -> u64 {
        self.refused + self.reset + self.cut + self.silent + self.failed
    }

    pub fn longest_wait(&self) -> Duration {
        self.waits.last().copied().unwrap_or_default()
    }

    /// The wait that one request in so many exceeds.
    pub fn wait_of_one_in(&self, requests: usize) -> Duration {
        let beyond = self.waits.len() / requests;
        self.waits.iter().rev().nth(beyond).copied().unwrap_or_default()
    }

    fn add(&mut self, end: End, wait: Duration) {
        self.waits.push(wait);
        *match end {
            End::Answered => &mut self.answered,
            End::Refused => &mut self.refused,
            End::Reset => &mut self.reset,
            End::Cut => &mut self.cut,
            End::Silent => &mut self.silent,
            End::Failed => &mut self.failed,
        } += 1;
    }

    fn merge(&mut self, other: Tally) {
        self.answered += other.answered;
        self.refused += other.refused;
        self.reset += other.reset;
        self.cut += other.cut;
        self.silent += other.silent;
        self.failed += other.failed;
        self.waits.extend(other.waits);
    }
}

/// How one request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Answered,
    Refused,
    Reset,
    Cut,
    Silent,
    Failed,
}

/// Clients at work. Dropping them ends them.
pub struct Clients {
    wishes: Arc<Wishes>,
    threads: Vec<JoinHandle<io::Result<Tally>>>,
}

#[derive(Default)]
struct Wishes {
    may_be_refused: AtomicBool,
    over: AtomicBool,
}

impl Clients {
    pub fn start(count: usize, address: SocketAddr) -> Clients {
        let wishes = Arc::new(Wishes::default());
        let start_one = |_| {
            let wishes = Arc::clone(&wishes);
            thread::spawn(move || wishes.follow(address))
        };
        let threads = (0..count).map(start_one).collect();
        Clients { wishes, threads }
    }

    /// From now on a refused client leaves without a loss: the server is about to be told to stop.
    pub fn may_be_refused(&self) {
        self.wishes.may_be_refused.store(true, Ordering::SeqCst);
    }

    /// Lets each client finish its request, and gives what became of all.
    ///
    /// # Errors
    /// A request could not even be tried, for want of a port or a descriptor here.
    pub fn end(mut self) -> Result<Tally> {
        self.wishes.over.store(true, Ordering::SeqCst);
        let mut tally = Tally::default();
        for thread in self.threads.drain(..) {
            let one = thread.join().map_err(|_| "a client panicked")?;
            tally.merge(one.map_err(|error| format!("a client cannot go on: {error}"))?);
        }
        tally.waits.sort_unstable();
        Ok(tally)
    }
}

impl Drop for Clients {
    fn drop(&mut self) {
        self.wishes.over.store(true, Ordering::SeqCst);
    }
}

impl Wishes {
    fn follow(&self, address: SocketAddr) -> io::Result<Tally> {
        let mut tally = Tally::default();
        while !self.over.load(Ordering::SeqCst) {
            let begin = Instant::now();
            let end = ask(address, PATIENCE)?;
            if end == End::Refused {
                if self.may_be_refused.load(Ordering::SeqCst) {
                    break;
                }
                sleep(AFTER_REFUSAL);
            }
            tally.add(end, begin.elapsed());
        }
        Ok(tally)
    }
}

/// One request.
///
/// # Errors
/// It was not the server's doing that it could not be made.
fn ask(address: SocketAddr, patience: Duration) -> io::Result<End> {
    let mut connection = match TcpStream::connect_timeout(&address, patience) {
        Ok(connection) => connection,
        Err(error) => {
            return match error.kind() {
                ErrorKind::ConnectionRefused => Ok(End::Refused),
                ErrorKind::ConnectionReset => Ok(End::Reset),
                ErrorKind::TimedOut => Ok(End::Silent),
                _ => Err(error),
            };
        }
    };
    connection.set_read_timeout(Some(patience))?;
    let mut answer = Vec::with_capacity(1024);
    let ended = connection.write_all(REQUEST).and_then(|()| connection.read_to_end(&mut answer));
    // What came counts: a reset that follows a whole answer harms nobody.
    Ok(match (whole(&answer), ended.map_err(|error| error.kind())) {
        (Some(200), _) => End::Answered,
        (Some(_), _) => End::Failed,
        (None, Ok(_)) => End::Cut,
        (None, Err(ErrorKind::WouldBlock | ErrorKind::TimedOut)) => End::Silent,
        (None, Err(_)) => End::Reset,
    })
}

/// The status of an answer, if all of it is there.
fn whole(answer: &[u8]) -> Option<u16> {
    let text = std::str::from_utf8(answer).ok()?;
    let (head, body) = text.split_once("\r\n\r\n")?;
    let status = head.strip_prefix("HTTP/1.")?.get(2..5)?.parse().ok()?;
    let mut fields = head.lines().filter_map(|line| line.split_once(':'));
    let length = fields.find(|(name, _)| name.eq_ignore_ascii_case("content-length"));
    let length = length.map_or(Ok(body.len()), |(_, value)| value.trim().parse());
    (length.ok()? == body.len()).then_some(status)
}

/// Clients that call a loss an answer measure nothing: each kind of end is made on purpose once, and has to be told as
/// what it is.
///
/// # Errors
/// One was not.
pub fn check_the_clients() -> Result<()> {
    const WHOLE: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi";
    let bad_servers: [(&str, End, Answering); 8] = [
        ("answers", End::Answered, |mut client| client.write_all(WHOLE)),
        ("answers and resets", End::Answered, |mut client| {
            client.write_all(WHOLE)?;
            // The answer is out of reach once the reset is there.
            client.set_read_timeout(Some(Duration::from_millis(100)))?;
            let _ = client.read(&mut [0; 1]);
            reset(client)
        }),
        ("resets at once", End::Reset, reset),
        ("resets in the middle", End::Reset, |mut client| {
            client.write_all(&WHOLE[..30])?;
            reset(client)
        }),
        ("says nothing", End::Cut, |_| Ok(())),
        ("breaks off in the middle", End::Cut, |mut client| client.write_all(&WHOLE[..WHOLE.len() - 1])),
        ("hangs", End::Silent, |mut client| client.read_to_end(&mut Vec::new()).map(|_| ())),
        ("fails", End::Failed, |mut client| {
            client.write_all(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n")
        }),
    ];
    for (name, expected, answering) in bad_servers {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        let server = thread::spawn(move || answer_one(&listener, answering));
        let end = ask(address, Duration::from_millis(500))?;
        server.join().map_err(|_| "a bad server panicked")??;
        told(name, expected, end)?;
    }
    let nobody = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    told("is not there", End::Refused, ask(nobody, PATIENCE)?)
}

type Answering = fn(TcpStream) -> io::Result<()>;

fn answer_one(listener: &TcpListener, answering: Answering) -> io::Result<()> {
    let (mut client, _) = listener.accept()?;
    // Bytes that nobody has read would make a reset of every close.
    client.read_exact(&mut [0; REQUEST.len()])?;
    answering(client)
}

/// Closes with a reset (SO_LINGER of zero, socket(7)).
fn reset(client: TcpStream) -> io::Result<()> {
    SockRef::from(&client).set_linger(Some(Duration::ZERO))
}

fn told(name: &str, expected: End, end: End) -> Result<()> {
    if end == expected {
        return Ok(());
    }
    Err(format!("the clients are wrong: a server that {name} is told as {end:?} and not as {expected:?}").into())
}
