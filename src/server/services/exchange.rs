//! One HTTP exchange over a connection: the body received and dropped, the answer sent, the connection kept or ended.
//!
//! A body that is small is left in the connection's buffer until all of it is there, so whoever sends it slowly holds no
//! worker; a larger one is received under the request's deadline.

use std::io::{self, ErrorKind, Write};

use super::http::body::{Body, Framing};
use super::http::response::{CONTINUE, Status};
use super::http::{Head, MAX_HEAD, Persistence, Refusal};
use crate::server::{Conn, Next};

/// Up to this many bytes of a message wait in the buffer of a parked connection.
const PARKED_MESSAGE: usize = MAX_HEAD;

/// The refusal of a head that did not end before the deadline.
pub(super) const SLOW_HEAD: Refusal = Refusal::new(
    Status::RequestTimeout,
    "the request took too long to arrive",
);
const SLOW_BODY: Refusal = Refusal::new(Status::RequestTimeout, "the body took too long to arrive");

/// The part of a head that the exchange needs after the head is gone from the buffer.
#[derive(Debug, Clone, Copy)]
pub(super) struct Exchange {
    head_length: usize,
    framing: Framing,
    expects_continue: bool,
    /// What becomes of the connection.
    pub persistence: Persistence,
    /// The request is a HEAD: the response goes without its body.
    pub head_only: bool,
}

/// How far the body has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Intake {
    /// The whole message is received, and gone from the buffer.
    Whole,
    /// Nothing is consumed: to be tried again when more has come.
    Incomplete,
    /// The client left in the middle.
    Gone,
    /// The client's fault, or too slow.
    Refused(Refusal),
}

impl Exchange {
    /// The exchange that begins with this head.
    pub(super) fn new(head: &Head<'_>, draining: bool) -> Exchange {
        Exchange {
            head_length: head.length,
            framing: head.framing,
            expects_continue: head.expects_continue,
            persistence: if draining {
                Persistence::Close
            } else {
                head.persistence
            },
            head_only: head.is_head(),
        }
    }

    /// Whether the client asks, before it sends the body, if the request will be taken at all.
    pub(super) fn asks_first(&self) -> bool {
        self.expects_continue && self.framing != Framing::None
    }

    /// Takes the message off the connection.
    ///
    /// # Errors
    /// Those of [`Conn::fill`], but for the deadline, which is a refusal.
    #[inline]
    pub(super) fn take_message(&self, conn: &mut Conn) -> io::Result<Intake> {
        if self.framing == Framing::None {
            conn.consume(self.head_length);
            return Ok(Intake::Whole);
        }
        self.take_body(conn)
    }

    fn take_body(&self, conn: &mut Conn) -> io::Result<Intake> {
        let mut body = Body::new(self.framing);
        let here = match body.advance(&conn.buffer()[self.head_length..]) {
            Ok(progress) => progress,
            Err(refusal) => return Ok(Intake::Refused(refusal)),
        };
        if !here.done {
            if conn.timed_out() {
                return Ok(Intake::Refused(SLOW_BODY));
            }
            if !self.expects_continue && self.may_wait_parked(conn.buffer().len()) {
                return Ok(Intake::Incomplete);
            }
        }
        conn.consume(self.head_length + here.used);
        if here.done {
            return Ok(Intake::Whole);
        }
        if self.expects_continue && here.used == 0 {
            conn.write_all(CONTINUE)?;
        }
        receive_rest(conn, body)
    }

    fn may_wait_parked(&self, received: usize) -> bool {
        match self.framing {
            Framing::None => true,
            Framing::Length(length) => self.head_length as u64 + length <= PARKED_MESSAGE as u64,
            Framing::Chunked => received <= PARKED_MESSAGE,
        }
    }

    /// What the worker does with the connection, once the answer is written.
    pub(super) fn next(&self, conn: &mut Conn, draining: bool) -> Next {
        if self.persistence != Persistence::Close {
            return Next::Park;
        }
        // A client that was not told before may have more under way, which would reset the connection.
        if draining || !conn.buffer().is_empty() {
            conn.linger();
        }
        Next::Close
    }
}

fn receive_rest(conn: &mut Conn, mut body: Body) -> io::Result<Intake> {
    loop {
        match conn.fill() {
            Ok(0) => return Ok(Intake::Gone),
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::TimedOut => {
                return Ok(Intake::Refused(SLOW_BODY));
            }
            Err(error) => return Err(error),
        }
        match body.advance(conn.buffer()) {
            Ok(progress) => {
                conn.consume(progress.used);
                if progress.done {
                    return Ok(Intake::Whole);
                }
            }
            Err(refusal) => return Ok(Intake::Refused(refusal)),
        }
    }
}
