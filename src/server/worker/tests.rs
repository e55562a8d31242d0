use std::io::{BufRead, BufReader, Read, Write};
use std::mem;
use std::net::{Shutdown, TcpListener, TcpStream, ToSocketAddrs};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::ExitStatusExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{Signal, raise};

use proptest::collection::vec;
use proptest::prelude::{ProptestConfig, prop_assert_eq, proptest};
use socket2::SockRef;

use super::*;
use crate::proc::{Channel, Received};
use crate::server::message::{FromWorker, ToWorker};
use crate::server::scoreboard::{Board, Snapshot};
use crate::server::service::{Next, PreloadCx, RequestCx};
use crate::server::testing::{self, child_of, is_child, worker_cx};
use crate::server::worker_config::WorkerConfig;

/// Answers each line; some lines ask for more.
struct Lines;

impl Service for Lines {
    type Preload = ();

    fn preload(_: &PreloadCx) -> Result<()> {
        Ok(())
    }

    fn start((): &'static (), _: &WorkerCx) -> Result<Self> {
        Ok(Self)
    }

    fn serve(&mut self, conn: &mut Conn, cx: &mut RequestCx<'_>) -> Result<Next> {
        if conn.timed_out() {
            conn.write_all(b"late\n")?;
            return Ok(Next::Close);
        }
        if !conn.buffer().contains(&b'\n') {
            if conn.buffer().starts_with(b"soon") {
                cx.deadline(Duration::from_millis(50))?;
            }
            return Ok(Next::Park);
        }
        let Some(line) = conn.read_line(80)? else {
            return Ok(Next::Close);
        };
        cx.label(&line);
        let draining = if cx.draining() { " (draining)" } else { "" };
        writeln!(conn, "{line}{draining}")?;
        match line.as_str() {
            "close" => Ok(Next::Close),
            "linger" => {
                conn.linger();
                Ok(Next::Close)
            }
            "fail" => Err("it failed".into()),
            "panic" => panic!("no luck"),
            "spin" => loop {
                std::hint::spin_loop();
            },
            // Holds the worker until the client sends one line more.
            "hold" => {
                let released = conn.read_line(80)?;
                writeln!(conn, "{}", released.unwrap_or_default())?;
                Ok(Next::Park)
            }
            _ => Ok(Next::Park),
        }
    }
}

/// A worker in a thread of this process, and the master's end of its socket.
struct TestWorker {
    address: String,
    /// Kept open, as the master does.
    _listener: TcpListener,
    board: Board,
    master: Channel<ToWorker, FromWorker>,
    thread: JoinHandle<Result<()>>,
}

fn config() -> WorkerConfig {
    let kill_after = Duration::from_secs(3600);
    let last_chance = Duration::ZERO;
    WorkerConfig { request_timeout: None, request_kill_after: kill_after, last_chance, ..Default::default() }
}

impl TestWorker {
    fn start(config: WorkerConfig) -> Self {
        Self::start_on("127.0.0.1:0", config)
    }

    fn start_on(address: impl ToSocketAddrs, config: WorkerConfig) -> Self {
        let listener = TcpListener::bind(address).unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let shared = listener.try_clone().unwrap();
        let acceptor = Acceptor::from_fd(shared.into(), address.clone()).unwrap();
        let board = Board::new(1).unwrap();
        let (master, thread) = spawn(acceptor, config, &board);
        Self { address, _listener: listener, board, master, thread }
    }

    fn client(&self) -> Client<TcpStream> {
        let socket = TcpStream::connect(&self.address).unwrap();
        // Pieces go out as they are sent, rather than with the next ACK.
        socket.set_nodelay(true).unwrap();
        Client::new(socket)
    }

    fn record(&self) -> Snapshot {
        self.board.read(0).unwrap()
    }

    fn ask_to_drain(&self) {
        self.master.send(&ToWorker::Drain, &[]).unwrap();
    }

    fn ends_well(self) {
        self.thread.join().unwrap().unwrap();
    }
}

fn spawn(
    acceptor: Acceptor,
    config: WorkerConfig,
    board: &Board,
) -> (Channel<ToWorker, FromWorker>, JoinHandle<Result<()>>) {
    let (link, master) = testing::link();
    let record = testing::record(board);
    let thread = thread::spawn(move || Lines.run(worker_cx(vec![acceptor], config, link, record)));
    assert!(matches!(master.recv(), Ok(Received::Message { message: FromWorker::Ready, .. })));
    (master, thread)
}

struct Client<S>(BufReader<S>);

impl<S> Client<S>
where
    S: Read,
    for<'a> &'a S: Write,
{
    fn new(socket: S) -> Self {
        Self(BufReader::new(socket))
    }

    fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.0.get_ref().write_all(bytes.as_ref()).unwrap();
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.0.read_line(&mut line).unwrap();
        line
    }

    fn ask(&mut self, line: &str) -> String {
        self.send(format!("{line}\n"));
        self.line()
    }

    fn sees_the_end(&mut self) {
        assert_eq!(self.0.read(&mut [0]).unwrap(), 0);
    }
}

#[test]
fn a_connection_is_parked_between_its_requests() {
    let worker = TestWorker::start(config());
    let (mut first, mut second) = (worker.client(), worker.client());
    for _ in 0..3 {
        assert_eq!(first.ask("one"), "one\n");
        assert_eq!(second.ask("two"), "two\n");
    }
    assert_eq!(first.ask("close"), "close\n");
    first.sees_the_end();
    assert_eq!(second.ask("two"), "two\n");
    let record = worker.record();
    assert_eq!((record.connections, record.parked, record.pid), (2, 1, std::process::id()));
    assert!(record.requests >= 7, "{}", record.requests);
}

#[test]
fn all_families_of_listeners_are_served() {
    let worker = TestWorker::start_on("[::1]:0", config());
    assert_eq!(worker.client().ask("six"), "six\n");

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let listener = UnixListener::bind(&path).unwrap();
    let acceptor = Acceptor::from_fd(listener.into(), "unix".to_owned()).unwrap();
    let (_master, _thread) = spawn(acceptor, config(), &Board::new(1).unwrap());
    let mut client = Client::new(UnixStream::connect(&path).unwrap());
    assert_eq!(client.ask("unix"), "unix\n");
    assert_eq!(client.ask("again"), "again\n");
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let worker = TestWorker::start(config());
    let mut client = worker.client();
    let lines: Vec<String> = (0..10_000).map(|n| format!("line {n}\n")).collect();
    let mut sender = client.0.get_ref().try_clone().unwrap();
    let all = lines.concat();
    let sending = thread::spawn(move || sender.write_all(all.as_bytes()).unwrap());
    for line in &lines {
        assert_eq!(&client.line(), line);
    }
    sending.join().unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(40) })]

    #[test]
    fn answers_do_not_depend_on_how_the_bytes_arrive(
        lines in vec("[a-z]{0,70}", 1..60),
        pieces in vec(1..200usize, 1..20),
    ) {
        // Some lines mean something to the service.
        let lines: Vec<String> = lines.iter().map(|line| format!("-{line}\n")).collect();
        let worker = TestWorker::start(config());
        let mut client = worker.client();
        let (all, mut sent) = (lines.concat(), 0);
        for piece in pieces.iter().cycle() {
            let end = all.len().min(sent + piece);
            client.send(&all[sent..end]);
            sent = end;
            if sent == all.len() {
                break;
            }
        }
        for line in &lines {
            prop_assert_eq!(&client.line(), line);
        }
        worker.ask_to_drain();
        client.sees_the_end();
        worker.ends_well();
    }
}

#[test]
fn slow_senders_hold_nobody_up() {
    let worker = TestWorker::start(config());
    let mut slow: Vec<_> = (0..50).map(|_| worker.client()).collect();
    for letter in ["s", "l", "o", "w"] {
        slow.iter_mut().for_each(|client| client.send(letter));
        assert_eq!(worker.client().ask("honest"), "honest\n");
    }
    for client in &mut slow {
        assert_eq!(client.ask(""), "slow\n");
    }
}

#[test]
fn an_incomplete_request_is_told_when_its_time_is_over() {
    let timeout = Duration::from_millis(50);
    let worker = TestWorker::start(WorkerConfig { request_timeout: Some(timeout), ..config() });
    let mut client = worker.client();
    client.send("never en");
    assert_eq!(client.line(), "late\n");
    client.sees_the_end();
}

#[test]
fn an_incomplete_request_keeps_the_deadline_that_it_was_given() {
    let worker = TestWorker::start(config());
    let mut client = worker.client();
    client.send("soon, but ne");
    assert_eq!(client.line(), "late\n");
    client.sees_the_end();
}

#[test]
fn a_request_that_waits_beyond_its_deadline_ends_and_the_worker_lives() {
    let timeout = Duration::from_millis(50);
    let worker = TestWorker::start(WorkerConfig { request_timeout: Some(timeout), ..config() });
    let mut client = worker.client();
    assert_eq!(client.ask("hold"), "hold\n");
    client.sees_the_end();
    assert_eq!(worker.client().ask("alive"), "alive\n");
}

#[test]
fn a_request_that_spins_beyond_its_deadline_takes_the_worker_with_it() {
    if !is_child() {
        let test = "a_request_that_spins_beyond_its_deadline_takes_the_worker_with_it";
        let status = child_of(&format!("server::worker::tests::{test}")).status().unwrap();
        assert_eq!(status.signal(), Some(Signal::SIGALRM as i32));
        return;
    }
    let millis = Duration::from_millis;
    let config = WorkerConfig { request_timeout: Some(millis(20)), request_kill_after: millis(30), ..config() };
    let worker = TestWorker::start(config);
    // Many requests before it, so that the one timer has been pending since another's time.
    for _ in 0..100 {
        assert_eq!(worker.client().ask("quick"), "quick\n");
    }
    worker.client().ask("spin");
    unreachable!("the process has died");
}

#[test]
fn an_idle_connection_is_closed_in_time() {
    let timeout = Duration::from_millis(50);
    let worker = TestWorker::start(WorkerConfig { idle_timeout: Some(timeout), ..config() });
    let (mut fresh, mut served) = (worker.client(), worker.client());
    assert_eq!(served.ask("one"), "one\n");
    served.sees_the_end();
    fresh.sees_the_end();
}

#[test]
fn a_lingering_close_lets_the_client_read_its_answer() {
    let worker = TestWorker::start(config());
    let mut client = worker.client();
    client.send("linger\n");
    client.send(vec![b'x'; 100_000]);
    assert_eq!(client.line(), "linger\n");
    client.sees_the_end();
    // Still no reset: the worker goes on dropping what comes.
    client.send(vec![b'x'; 100_000]);
    client.0.get_ref().shutdown(Shutdown::Write).unwrap();
    assert!(client.0.get_ref().take_error().unwrap().is_none());
}

#[test]
fn a_panic_closes_the_connection_and_the_worker_lives() {
    let worker = TestWorker::start(config());
    let mut client = worker.client();
    client.send("before\npanic\n");
    assert_eq!(client.line(), "before\n");
    client.sees_the_end();
    assert_eq!(worker.client().ask("alive"), "alive\n");
}

#[test]
fn after_an_error_what_was_written_is_sent() {
    let worker = TestWorker::start(config());
    let mut client = worker.client();
    assert_eq!(client.ask("fail"), "fail\n");
    client.sees_the_end();
    assert_eq!(worker.client().ask("alive"), "alive\n");
}

#[test]
fn a_client_that_goes_away_harms_nobody() {
    let worker = TestWorker::start(config());
    for _ in 0..100 {
        let mut gone = worker.client();
        gone.send("one\ntwo\n");
        SockRef::from(gone.0.get_ref()).set_linger(Some(Duration::ZERO)).unwrap();
    }
    assert_eq!(worker.client().ask("alive"), "alive\n");
}

#[test]
fn a_drained_worker_closes_idle_connections_and_leaves() {
    let worker = TestWorker::start(config());
    let mut client = worker.client();
    assert_eq!(client.ask("one"), "one\n");
    worker.ask_to_drain();
    client.sees_the_end();
    worker.ends_well();
}

#[test]
fn a_worker_whose_master_is_gone_leaves() {
    let worker = TestWorker::start(config());
    let mut client = worker.client();
    assert_eq!(client.ask("one"), "one\n");
    let TestWorker { master, thread, .. } = worker;
    drop(master);
    client.sees_the_end();
    thread.join().unwrap().unwrap();
}

#[test]
fn draining_serves_what_is_in_hand_and_what_has_come() {
    let worker = TestWorker::start(config());
    let (mut parked, mut partial) = (worker.client(), worker.client());
    assert_eq!(parked.ask("one"), "one\n");
    assert_eq!(partial.ask("one"), "one\n");
    partial.send("par");
    let mut held = worker.client();
    assert_eq!(held.ask("hold"), "hold\n");
    // The worker is in `serve` now, so all of this comes before it hears of the drain.
    parked.send("two\n");
    worker.ask_to_drain();
    held.send("released\n");

    assert_eq!(held.line(), "released\n");
    held.sees_the_end();
    let answer = parked.line();
    assert!(answer == "two (draining)\n" || answer == "two\n", "{answer}");
    parked.sees_the_end();
    assert_eq!(partial.ask("tial"), "partial (draining)\n");
    partial.sees_the_end();
    worker.ends_well();
}

#[test]
fn while_draining_a_kept_connection_has_a_last_chance() {
    let worker = TestWorker::start(WorkerConfig { last_chance: Duration::from_secs(3600), ..config() });
    let (mut kept, mut gone) = (worker.client(), worker.client());
    assert_eq!(kept.ask("one"), "one\n");
    assert_eq!(gone.ask("one"), "one\n");
    let mut held = worker.client();
    assert_eq!(held.ask("hold"), "hold\n");
    worker.ask_to_drain();
    held.send("released\n");
    held.line();
    drop(held);
    assert_eq!(kept.ask("two"), "two (draining)\n");
    assert_eq!(kept.ask("close"), "close (draining)\n");
    kept.sees_the_end();
    // Nobody is left to wait for.
    drop(gone);
    worker.ends_well();
}

#[test]
fn the_last_chance_of_a_kept_connection_ends() {
    let worker = TestWorker::start(WorkerConfig { last_chance: Duration::from_millis(50), ..config() });
    let mut kept = worker.client();
    assert_eq!(kept.ask("one"), "one\n");
    worker.ask_to_drain();
    kept.sees_the_end();
    worker.ends_well();
}

#[test]
fn without_a_master_there_is_no_last_chance() {
    let worker = TestWorker::start(WorkerConfig { last_chance: Duration::from_secs(3600), ..config() });
    let mut kept = worker.client();
    assert_eq!(kept.ask("one"), "one\n");
    let TestWorker { master, thread, .. } = worker;
    drop(master);
    kept.sees_the_end();
    thread.join().unwrap().unwrap();
}

#[test]
fn a_connection_accepted_while_draining_gets_its_first_answer() {
    let worker = TestWorker::start(config());
    let mut held = worker.client();
    assert_eq!(held.ask("hold"), "hold\n");
    let mut queued = worker.client();
    worker.ask_to_drain();
    held.send("released\n");
    held.line();
    held.sees_the_end();
    assert_eq!(queued.ask("first"), "first (draining)\n");
    queued.sees_the_end();
    worker.ends_well();
}

#[test]
fn an_accepted_connection_that_stays_silent_ends_the_drain_late_but_surely() {
    let worker = TestWorker::start(config());
    let mut silent = worker.client();
    assert_eq!(worker.client().ask("one"), "one\n");
    worker.ask_to_drain();
    silent.sees_the_end();
    worker.ends_well();
}

/// One worker after the other, as in a reload, while clients come without pause.
#[test]
fn nobody_is_lost_or_forgotten_while_workers_are_replaced() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let worker = || {
        let shared = listener.try_clone().unwrap();
        let acceptor = Acceptor::from_fd(shared.into(), address.to_string()).unwrap();
        spawn(acceptor, config(), &Board::new(1).unwrap())
    };
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let clients = [(); 4].map(|()| {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    let socket = TcpStream::connect(address).unwrap();
                    // One that nobody was woken for would wait for ever.
                    socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
                    let answer = Client::new(socket).ask("close");
                    assert!(answer.starts_with("close"), "{answer}");
                }
            })
        });
        let mut old = worker();
        for _ in 0..100 {
            let new = worker();
            let (master, thread) = mem::replace(&mut old, new);
            master.send(&ToWorker::Drain, &[]).unwrap();
            thread.join().unwrap().unwrap();
        }
        // The last worker goes when its master's end does: not before the clients have ended.
        done.store(true, Ordering::Relaxed);
        for client in clients {
            client.join().unwrap();
        }
        drop(old);
    });
}

#[test]
fn sigterm_drains() {
    if !is_child() {
        let status = child_of("server::worker::tests::sigterm_drains").status().unwrap();
        assert!(status.success(), "{status}");
        return;
    }
    let worker = TestWorker::start(config());
    let mut client = worker.client();
    assert_eq!(client.ask("one"), "one\n");
    raise(Signal::SIGTERM).unwrap();
    client.sees_the_end();
    worker.ends_well();
}

#[test]
fn without_descriptors_the_worker_waits_and_loses_nobody() {
    if !is_child() {
        let test = "server::worker::tests::without_descriptors_the_worker_waits_and_loses_nobody";
        let status = child_of(test).status().unwrap();
        assert!(status.success(), "{status}");
        return;
    }
    let worker = TestWorker::start(config());
    let mut first = worker.client();
    assert_eq!(first.ask("one"), "one\n");
    let mut second = worker.client();
    assert_eq!(second.ask("hold"), "hold\n");
    let mut third = worker.client();
    third.send("three\n");
    // From now on no descriptor can be made; those that are open stay.
    setrlimit(Resource::RLIMIT_NOFILE, 3, 1024).unwrap();
    second.send("released\n");
    assert_eq!(second.line(), "released\n");
    // Parked connections are served while the accept waits.
    assert_eq!(first.ask("two"), "two\n");
    assert_eq!(worker.record().connections, 2);
    setrlimit(Resource::RLIMIT_NOFILE, 1024, 1024).unwrap();
    assert_eq!(third.line(), "three\n");
}
