//! One client of a service over a real socket pair, with the worker loop's rules for its
//! connection.

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use crate::server::testing::{Bench, conn_pair};
use crate::server::{Conn, Fill, Next, Service};

/// A client and the worker that serves it, in one thread: what is sent is served at once.
pub(super) struct Client<S> {
    pub(super) bench: Bench,
    pub(super) draining: bool,
    /// What each call of `serve` has left until its deadline.
    pub(super) left: Duration,
    pub(super) socket: UnixStream,
    /// Why the service gave the connection up, if it gave an error.
    pub(super) error: Option<String>,
    /// The worker was asked for a slow close.
    pub(super) lingered: bool,
    service: S,
    /// Something of a request is consumed, and more of it is to come.
    wants_more: bool,
    /// None: the worker has closed it.
    conn: Option<Conn>,
}

impl<S: Service> Client<S> {
    /// A client of a worker that has served others before.
    pub(super) fn of(bench: Bench, service: S) -> Self {
        let (conn, socket) = conn_pair();
        socket.set_nonblocking(true).expect("non-blocking");
        Client {
            bench,
            draining: false,
            left: Duration::from_secs(20),
            socket,
            error: None,
            lingered: false,
            service,
            wants_more: false,
            conn: Some(conn),
        }
    }

    /// Sends a piece, lets the worker do what it can without more, and gives what it answered.
    pub(super) fn say(&mut self, piece: impl AsRef<[u8]>) -> String {
        if self.conn.is_some() {
            let mut socket = &self.socket;
            socket.write_all(piece.as_ref()).expect("room in the socket");
        }
        self.serve()
    }

    /// Says that nothing more comes, and gives the last answers.
    pub(super) fn hang_up(&mut self) -> String {
        self.socket.shutdown(Shutdown::Write).expect("a socket");
        self.serve()
    }

    /// Lets the deadline of an incomplete request pass.
    pub(super) fn time_out(&mut self) -> String {
        if let Some(conn) = &mut self.conn {
            conn.time_out();
        }
        self.serve()
    }

    pub(super) fn is_closed(&self) -> bool {
        self.conn.is_none()
    }

    fn serve(&mut self) -> String {
        if let Some(mut conn) = self.conn.take() {
            if self.serve_until_parked(&mut conn) == Next::Park {
                self.conn = Some(conn);
            } else {
                self.lingered = conn.begin_linger();
            }
        }
        let mut heard = Vec::new();
        match self.socket.read_to_end(&mut heard) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            // The pair was closed with unread bytes in it.
            Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
            other => assert!(other.is_ok() && self.is_closed(), "{other:?}"),
        }
        String::from_utf8(heard).expect("answers in UTF-8")
    }

    fn serve_until_parked(&mut self, conn: &mut Conn) -> Next {
        let mut serve_again = conn.timed_out();
        let next = loop {
            if !serve_again {
                match conn.try_fill() {
                    Ok(Fill::Read(_)) => {}
                    Ok(Fill::WouldBlock) => break Next::Park,
                    Ok(Fill::Eof) if self.wants_more || !conn.buffer().is_empty() => {}
                    Ok(Fill::Eof) | Err(_) => break Next::Close,
                }
            }
            let mut cx = self.bench.request(self.draining, Some(self.left));
            conn.begin(self.bench.in_hand);
            let next = self.service.serve(conn, &mut cx);
            self.wants_more = matches!(next, Ok(Next::More));
            match next {
                Ok(Next::Park) => {
                    serve_again = conn.has_consumed() && !conn.buffer().is_empty();
                    conn.end();
                }
                Ok(Next::More) if conn.timed_out() || conn.has_ended() => break Next::Close,
                Ok(Next::More) => serve_again = false,
                Ok(Next::Room) => serve_again = conn.try_flush().expect("a client that reads"),
                Ok(Next::Close) => break Next::Close,
                Err(error) => {
                    self.error = Some(error.to_string());
                    break Next::Close;
                }
            }
        };
        // A client that is gone hears nothing.
        let _ = conn.flush();
        next
    }
}

/// What the fuzz targets do not ask for.
#[cfg(test)]
impl<S: Service> Client<S> {
    pub(super) fn new(service: S) -> Self {
        Client::of(Bench::new(), service)
    }

    /// How much is received and not consumed.
    pub(super) fn buffered(&self) -> usize {
        self.conn.as_ref().map_or(0, |conn| conn.buffer().len())
    }

    pub(super) fn label(&self) -> Vec<u8> {
        self.bench.board.read(0).expect("a record").label
    }
}
