//! A worker's side of one connection for tests: a real socket pair, and the worker loop's rules for one client.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use crate::server::scoreboard::{Board, Record};
use crate::server::worker_config::{WorkerBirth, WorkerConfig};
use crate::server::{Conn, Fill, Generation, Next, RequestCx, Service, Slot, WorkerId};
use crate::sys::clock::Monotonic;

/// What the contexts of one worker are made of.
pub(super) struct Worker {
    config: WorkerConfig,
    birth: WorkerBirth,
    record: Record,
    pub draining: bool,
    pub request_timeout: Duration,
}

impl Worker {
    pub(super) fn new() -> Worker {
        let birth = WorkerBirth {
            slot: Slot(3),
            generation: Generation(7),
            id: WorkerId(1),
            record: 0,
        };
        let board = Board::new(1).expect("a scoreboard");
        Worker {
            record: Record::map(board.as_fd(), &birth, 42).expect("its record"),
            config: WorkerConfig {
                args: BTreeMap::new(),
                ..WorkerConfig::default()
            },
            birth,
            draining: false,
            request_timeout: Duration::from_secs(20),
        }
    }

    pub(super) fn label(&self) -> Vec<u8> {
        self.record.label()
    }

    pub(super) fn deadline(&self) -> Monotonic {
        Monotonic::now().after(self.request_timeout)
    }

    pub(super) fn request(&self, deadline: Monotonic) -> RequestCx<'_> {
        RequestCx {
            config: &self.config,
            birth: &self.birth,
            record: &self.record,
            pid: 42,
            draining: self.draining,
            deadline: Some(deadline),
        }
    }
}

/// One client of a service, with its worker.
pub(super) struct Client<S> {
    pub worker: Worker,
    pub service: S,
    /// None: the worker has closed it.
    pub conn: Option<Conn>,
    socket: UnixStream,
    /// Whether the worker asked for a slow close.
    pub lingered: bool,
    pub error: Option<String>,
}

impl<S: Service> Client<S> {
    pub(super) fn new(service: S) -> Client<S> {
        let (socket, other) = UnixStream::pair().expect("a socket pair");
        socket.set_nonblocking(true).expect("non-blocking");
        Client {
            worker: Worker::new(),
            service,
            conn: Some(Conn::from_fd(other.into()).expect("a connection")),
            socket,
            lingered: false,
            error: None,
        }
    }

    /// Sends a piece, lets the worker do what it can, and gives what it answered.
    pub(super) fn say(&mut self, piece: impl AsRef<[u8]>) -> String {
        let mut heard = Vec::new();
        // A slow close of the worker's would take what is sent after its answer.
        for part in piece.as_ref().chunks(32 * 1024) {
            if self.conn.is_some() {
                self.socket.write_all(part).expect("room in the socket");
            }
            self.serve_what_is_there(false);
            self.hear(&mut heard);
        }
        String::from_utf8_lossy(&heard).into_owned()
    }

    /// Sends the end of all input, and gives the worker's last answers.
    pub(super) fn hang_up(&mut self) -> String {
        self.socket
            .shutdown(std::net::Shutdown::Write)
            .expect("a connected socket");
        let mut heard = Vec::new();
        self.serve_what_is_there(false);
        self.hear(&mut heard);
        String::from_utf8_lossy(&heard).into_owned()
    }

    /// The deadline of an incomplete request passes.
    pub(super) fn time_out(&mut self) -> String {
        let mut heard = Vec::new();
        self.serve_what_is_there(true);
        self.hear(&mut heard);
        String::from_utf8_lossy(&heard).into_owned()
    }

    pub(super) fn is_closed(&self) -> bool {
        self.conn.is_none()
    }

    fn hear(&mut self, heard: &mut Vec<u8>) {
        match self.socket.read_to_end(heard) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
            other => assert!(
                other.is_ok() && self.conn.is_none(),
                "{other:?} on an open connection"
            ),
        }
    }

    fn serve_what_is_there(&mut self, timed_out: bool) {
        let Some(mut conn) = self.conn.take() else {
            return;
        };
        if self.serve(&mut conn, timed_out) == Next::Park {
            self.conn = Some(conn);
        } else {
            self.lingered = conn.lingers();
        }
    }

    fn serve(&mut self, conn: &mut Conn, timed_out: bool) -> Next {
        let mut more = !conn.buffer().is_empty() && timed_out;
        let next = loop {
            if !more {
                match conn.try_fill() {
                    Ok(Fill::Read(_)) => {}
                    Ok(Fill::WouldBlock) => break Next::Park,
                    Ok(Fill::Eof) if !conn.buffer().is_empty() => {}
                    Ok(Fill::Eof) | Err(_) => break Next::Close,
                }
            }
            let deadline = self.worker.deadline();
            conn.begin(Some(deadline), timed_out);
            match self.service.serve(conn, &mut self.worker.request(deadline)) {
                Ok(Next::Park) => more = conn.has_consumed() && !conn.buffer().is_empty(),
                Ok(Next::Close) => break Next::Close,
                Err(error) => {
                    self.error = Some(error.to_string());
                    break Next::Close;
                }
            }
        };
        let _ = conn.flush();
        next
    }
}
