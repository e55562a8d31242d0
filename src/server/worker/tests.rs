//! The worker loop over real sockets, in a thread of the test's own process.

mod counting;
mod deadlines;
mod leaving;
mod serving;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream, ToSocketAddrs};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::*;
use crate::proc::{Channel, Received};
use crate::server::conn::Conn;
use crate::server::message::{FromWorker, ToWorker};
use crate::server::request_cx::RequestCx;
use crate::server::scoreboard::{Board, Snapshot};
use crate::server::service::{Next, PreloadCx};
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
        if conn.take_state::<Flood>().is_some() {
            while conn.has_room() {
                conn.write_all(&[b'x'; 4096])?;
            }
            conn.keep_state(Flood);
            return Ok(Next::Room);
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
        let line = match line.strip_prefix("brief ") {
            Some(rest) => {
                cx.deadline(Duration::from_millis(50))?;
                rest.to_owned()
            }
            None => line,
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
            // Answers without end.
            "flood" => {
                conn.keep_state(Flood);
                Ok(Next::Room)
            }
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

/// An answer without end is under way.
struct Flood;

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
