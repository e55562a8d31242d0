//! Clients that leave before their answer: who is told, how soon, and that it harms nobody.

use std::fs::{self, File};
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd};
use std::time::{Duration, Instant};

use hatchery::server::{
    AbortToken, Aborted, Conn, FileLock, Next, PeerState, PreloadCx, RequestCx, Result, Service, WorkerCx,
};
use libtest_mimic::Trial;
use nix::fcntl::{FcntlArg, Flock, FlockArg, OFlag, fcntl};
use nix::sys::socket::{MsgFlags, recv};

use crate::fixtures::{Notes, Pencil};
use crate::support::client::Client;
use crate::support::processes::{cpu_time, eventually};
use crate::support::{Launch, Server};

pub fn tests() -> Vec<Trial> {
    trials!["aborts":
        a_token_flips_within_50_ms_of_the_clients_end_while_the_handler_computes,
        a_token_flips_at_the_deadline_and_the_client_is_still_answered,
        a_token_for_another_thread_flips_at_the_end_of_its_request,
        a_token_does_not_flip_for_bytes_that_come,
        bytes_that_come_do_not_make_calls_fail_while_there_is_a_token,
        a_token_leaves_nothing_behind_on_its_connection,
        a_look_tells_whether_the_client_is_gone_and_reads_nothing,
        a_request_whose_client_has_left_is_logged_and_counted,
        a_request_that_breaks_off_is_logged_and_counted,
        a_slow_request_that_is_answered_is_not_counted,
        an_error_that_only_looks_like_the_clients_is_the_services_own,
        a_client_that_is_gone_is_an_error_and_never_kills,
    ]
}

const ABORTED: &str = "a request was aborted, its client is gone";

/// A service of lines that says "at work" and then works until something ends it, which it notes.
pub struct Fixture {
    pencil: Pencil,
}

impl Service for Fixture {
    type Preload = ();

    fn preload(_: &PreloadCx) -> Result<()> {
        Ok(())
    }

    fn start((): &'static (), cx: &WorkerCx) -> Result<Fixture> {
        Ok(Fixture { pencil: Pencil::of(cx)? })
    }

    fn serve(&mut self, conn: &mut Conn, cx: &mut RequestCx<'_>) -> Result<Next> {
        let Some(line) = conn.read_line(4096)? else { return Ok(Next::Close) };
        let (order, word) = line.split_once(' ').unwrap_or((&line, ""));
        cx.label(order);
        match order {
            "pid" => writeln!(conn, "{}", cx.pid())?,
            "compute" => {
                let token = cx.abort_token()?;
                at_work(conn)?;
                let why = compute(token);
                self.pencil.note(&format!("{why:?} {}", cpu_time(cx.pid() as i32).as_millis()));
                writeln!(conn, "{why:?}")?;
                why.map_or(Ok(()), Err)?;
            }
            "elsewhere" => {
                let token = cx.abort_token()?;
                let pencil = self.pencil.clone();
                std::thread::spawn(move || pencil.note(&format!("{:?}", compute(token))));
                writeln!(conn, "the answer")?;
            }
            "bytes" => {
                let token = cx.abort_token()?;
                at_work(conn)?;
                while recv(conn.as_fd().as_raw_fd(), &mut [0; 1], MsgFlags::MSG_PEEK).is_err() {}
                writeln!(conn, "{:?}", token.aborted())?;
            }
            "lock" => {
                let _token = cx.abort_token()?;
                let file = File::open(word)?;
                at_work(conn)?;
                let locked = Flock::lock(file, FlockArg::LockExclusive).map(drop).map_err(|(_, error)| error);
                writeln!(conn, "{locked:?}")?;
            }
            "flags" => {
                let flags = |conn: &Conn| -> Result<bool> {
                    Ok(OFlag::from_bits_retain(fcntl(conn, FcntlArg::F_GETFL)?).contains(OFlag::O_ASYNC))
                };
                let before = flags(conn)?;
                let tokens = [cx.abort_token()?, cx.abort_token()?];
                writeln!(conn, "{before} {} {:?}", flags(conn)?, tokens.map(AbortToken::aborted))?;
            }
            "look" => {
                let buffered = conn.buffer().len();
                at_work(conn)?;
                let until = Instant::now() + Duration::from_secs(20);
                while !conn.peer_gone() && Instant::now() < until {}
                assert_eq!(conn.buffer().len(), buffered, "nothing is read");
                self.pencil.note(&format!("{:?}", conn.peer_state()));
                writeln!(conn, "the answer")?;
            }
            "elsewhere-broken" => Err(std::io::Error::from(std::io::ErrorKind::BrokenPipe))?,
            "flood" => loop {
                conn.write_all(&[b'x'; 100_000])?;
            },
            "raw-flood" => loop {
                // Neither MSG_NOSIGNAL nor anything else of ours protects this.
                match nix::unistd::write(conn.as_fd(), &[b'x'; 100_000]) {
                    Ok(_) | Err(nix::errno::Errno::EAGAIN) => {}
                    Err(error) => {
                        self.pencil.note(&format!("{error:?}"));
                        return Err(std::io::Error::from(error).into());
                    }
                }
            },
            other => panic!("there is no question {other:?}"),
        }
        Ok(Next::Park)
    }
}

fn at_work(conn: &mut Conn) -> Result<()> {
    writeln!(conn, "at work")?;
    Ok(conn.flush()?)
}

/// Computes until the token flips, and makes no call but to look at the clock now and then.
fn compute(token: AbortToken) -> Option<Aborted> {
    let until = Instant::now() + Duration::from_secs(20);
    while !token.is_aborted() && Instant::now() < until {
        assert_eq!((0..10_000u64).map(std::hint::black_box).sum::<u64>(), 49_995_000);
    }
    token.aborted()
}

/// A server of one worker on TCP v4, v6 and a Unix socket, and what it notes.
struct Noting {
    server: Server,
    notes: Notes,
}

impl Noting {
    fn start(args: &[&str]) -> Noting {
        let notes = Notes::new();
        let socket = format!("unix:{}", notes.path_beside("socket").display());
        let launch =
            Launch::fixture("aborts").args(["--workers", "1", "--arg", &notes.arg()]).args(args.iter().copied());
        Noting { server: launch.args(["--listen", "[::1]:0", "--listen", &socket]).start(), notes }
    }

    /// Waits for the next note.
    #[track_caller]
    fn next_note(&self, before: usize) -> String {
        eventually("there is a note", || self.notes.lines().len() > before);
        self.notes.lines().remove(before)
    }

    /// A client at this address whose request is being worked at.
    fn at_work(&self, address: &str, line: &str) -> Client {
        let mut client = Client::connect(address).expect("it listens");
        assert_eq!(client.exchange(line).expect("the work begins"), "at work");
        client
    }

    fn pid(&self) -> String {
        self.server.client().exchange("pid").expect("an answer")
    }
}

/// How a client leaves.
#[derive(Debug, Clone, Copy)]
enum Leave {
    Close,
    Reset,
    HalfClose,
}

impl Leave {
    /// Leaves; gives the client if there is still somebody.
    fn leave(self, client: Client) -> Option<Client> {
        match self {
            Leave::Close => drop(client),
            Leave::Reset => client.reset(),
            Leave::HalfClose => {
                client.half_close();
                return Some(client);
            }
        }
        None
    }

    /// The ways there are, with what a look and a token say.
    fn all(address: &str) -> Vec<(Leave, PeerState, Aborted)> {
        let finished = (PeerState::Finished, Aborted::Finished);
        let gone = (PeerState::Gone, Aborted::Gone);
        let ways = match address.starts_with("unix:") {
            true => vec![(Leave::Close, gone), (Leave::HalfClose, finished)],
            false => vec![(Leave::Close, finished), (Leave::Reset, gone), (Leave::HalfClose, finished)],
        };
        ways.into_iter().map(|(way, (state, why))| (way, state, why)).collect()
    }
}

/// The time is the worker's own, which computes all the while: on a machine that is busy with other things it may not run for
/// long, and then nobody could tell it anything. So each time counts, and not the best of some.
fn a_token_flips_within_50_ms_of_the_clients_end_while_the_handler_computes() {
    let noting = Noting::start(&[]);
    let worker = noting.server.workers()[&0];
    for address in noting.server.addresses() {
        for (leave, _, why) in Leave::all(&address) {
            for _ in 0..5 {
                let (client, before) = (noting.at_work(&address, "compute"), noting.notes.lines().len());
                let _stays = leave.leave(client);
                let left = cpu_time(worker).as_millis();
                let note = noting.next_note(before);
                let (words, flipped) = note.rsplit_once(' ').expect("why, and when");
                assert_eq!(words, format!("Some({why:?})"), "{address} {leave:?}");
                let took = flipped.parse::<u128>().expect("milliseconds").saturating_sub(left);
                assert!(took <= 50, "{address} {leave:?}: {took} ms");
            }
        }
    }
}

fn a_token_flips_at_the_deadline_and_the_client_is_still_answered() {
    let noting = Noting::start(&["--request-timeout", "200ms"]);
    let pid = noting.pid();
    let mut client = noting.at_work(&noting.server.address(), "compute");
    assert_eq!(client.line().expect("an answer"), "Some(Deadline)\n");
    assert_eq!(noting.pid(), pid);
    assert_eq!(noting.server.log.count(|record| record.is(ABORTED)), 0);
}

fn a_token_for_another_thread_flips_at_the_end_of_its_request() {
    let noting = Noting::start(&[]);
    let mut client = noting.server.client();
    assert_eq!(client.exchange("elsewhere").expect("an answer"), "the answer");
    assert_eq!(noting.next_note(0), "Some(Over)");
}

fn a_token_does_not_flip_for_bytes_that_come() {
    let noting = Noting::start(&[]);
    for address in noting.server.addresses() {
        let mut client = noting.at_work(&address, "bytes");
        client.send("pid\n").expect("a further request");
        assert_eq!(client.line().expect("an answer"), "None\n", "{address}");
        assert_eq!(client.line().expect("an answer").trim_end(), noting.pid(), "{address}: the bytes are not lost");
    }
}

fn bytes_that_come_do_not_make_calls_fail_while_there_is_a_token() {
    let noting = Noting::start(&[]);
    let path = noting.notes.path_beside("lock");
    let lock = FileLock::exclusive(&path).expect("a lock");
    let worker = noting.pid();
    let mut client = noting.at_work(&noting.server.address(), &format!("lock {}", path.display()));
    eventually("it waits for the lock", || {
        let locks = fs::read_to_string("/proc/locks").expect("/proc is mounted");
        locks.lines().any(|line| line.contains("->") && line.split_whitespace().any(|word| word == worker))
    });
    for byte in "pid\n".bytes() {
        client.send([byte]).expect("a byte");
    }
    drop(lock);
    assert_eq!(client.line().expect("an answer"), "Ok(())\n");
}

fn a_token_leaves_nothing_behind_on_its_connection() {
    let noting = Noting::start(&[]);
    let mut client = noting.server.client();
    for _ in 0..3 {
        assert_eq!(client.exchange("flags").expect("an answer"), "false true [None, None]");
    }
}

fn a_look_tells_whether_the_client_is_gone_and_reads_nothing() {
    let noting = Noting::start(&[]);
    for address in noting.server.addresses() {
        for (leave, state, _) in Leave::all(&address) {
            let (client, before) = (noting.at_work(&address, "look"), noting.notes.lines().len());
            let stays = leave.leave(client);
            assert_eq!(noting.next_note(before), format!("{state:?}"), "{address} {leave:?}");
            if let Some(mut client) = stays {
                assert_eq!(client.line().expect("one that has closed half is answered"), "the answer\n");
            }
        }
    }
}

fn a_request_whose_client_has_left_is_logged_and_counted() {
    let folder = tempfile::tempdir().expect("a folder");
    let socket = format!("unix:{}", folder.path().join("socket").display());
    let server = Server::start(&["--workers", "1", "--faults", "--listen", "[::1]:0", "--listen", &socket]);
    let pid = server.get("/").pid();
    let mut count = 0;
    for address in server.addresses() {
        for leave in [Leave::Close, Leave::Reset] {
            if matches!(leave, Leave::Reset) && address.starts_with("unix:") {
                continue;
            }
            let mut client = Client::connect(&address).expect("it listens");
            client.ask("/fault/sleep?ms=100").expect("a request");
            leave.leave(client);
            count += 1;
            let told = server.log.wait("it is logged", |record| record.is(ABORTED) && record.u64("aborted") == count);
            assert_eq!((told.str("label"), told.pid(), told.u64("slot")), ("GET /fault/sleep".to_owned(), pid, 0));
            assert!((100..20_000).contains(&told.u64("elapsed_ms")), "{}", told.line);
            let peer = told.str("peer");
            assert!(address.starts_with("unix:") == (peer == "unix") && peer != "gone", "{}", told.line);
        }
    }
    assert_eq!(server.get("/").pid(), pid);
    assert_eq!(server.log.count(|record| record.is(ABORTED)) as u64, count);
}

fn a_request_that_breaks_off_is_logged_and_counted() {
    let server = Server::start(&["--workers", "1"]);
    for (count, leave) in [(1, Leave::Close), (2, Leave::Reset)] {
        let mut client = server.client();
        client.get("/").expect("an answer");
        client.send("GET / HTTP/1.1\r\nHo").expect("a part of a request");
        leave.leave(client);
        server.log.wait("it is logged", |record| record.is(ABORTED) && record.u64("aborted") == count);
    }
}

fn a_slow_request_that_is_answered_is_not_counted() {
    let folder = tempfile::tempdir().expect("a folder");
    let socket = format!("unix:{}", folder.path().join("socket").display());
    let server = Server::start(&["--workers", "1", "--faults", "--listen", &socket]);
    for address in server.addresses() {
        let mut client = Client::connect(&address).expect("it listens");
        assert_eq!(client.get("/fault/sleep?ms=50").expect("an answer").status, 200);
        if address.starts_with("unix:") {
            // Here it is certain that the client still reads.
            client.ask("/fault/sleep?ms=50").expect("a request");
            client.half_close();
            assert_eq!(client.answer().expect("an answer").status, 200);
        }
    }
    // One of a worker's records comes after the other.
    let mut client = server.client();
    client.ask("/fault/sleep?ms=100").expect("a request");
    drop(client);
    let told = server.log.wait("this one is", |record| record.is(ABORTED));
    assert_eq!(told.u64("aborted"), 1);
}

fn an_error_that_only_looks_like_the_clients_is_the_services_own() {
    let noting = Noting::start(&[]);
    assert!(noting.server.client().exchange("elsewhere-broken").is_err());
    noting.server.log.wait("it is told", |record| record.is("a request failed, the connection is closed"));
    assert_eq!(noting.server.log.count(|record| record.is(ABORTED)), 0);
}

fn a_client_that_is_gone_is_an_error_and_never_kills() {
    let noting = Noting::start(&[]);
    let pid = noting.pid();
    let mut count = 0;
    for address in noting.server.addresses() {
        for order in ["flood", "raw-flood"] {
            let mut client = Client::connect(&address).expect("it listens");
            client.send(format!("{order}\n")).expect("a request");
            client.first_byte().expect("it has begun");
            drop(client);
            count += 1;
            let told =
                noting.server.log.wait("it is logged", |record| record.is(ABORTED) && record.u64("aborted") == count);
            assert_eq!(told.str("label"), order);
        }
    }
    for words in noting.notes.lines() {
        assert!(["EPIPE", "ECONNRESET"].contains(&words.as_str()), "{words}");
    }
    assert_eq!(noting.pid(), pid);
}
