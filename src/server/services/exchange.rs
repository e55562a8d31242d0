//! One HTTP exchange over a connection: the body received and dropped, the connection kept or
//! ended.
//!
//! A body that is not there yet is waited for without the worker: what has come stays in the buffer
//! of the parked connection, and is looked at again when there is more. Only a body that has
//! already sent much is received by the worker, under the request's deadline.

use std::io::{self, ErrorKind, Write};

use super::http::body::{Body, Framing};
use super::http::response::{CONTINUE, Status};
use super::http::{Head, MAX_HEAD, Persistence, Refusal};
use crate::server::{Conn, Next};

/// So much of a message of known length may wait in the buffer of a parked connection.
const PARKED_LENGTH: usize = 4 * MAX_HEAD;
/// So much of a chunked one: it is read from its beginning each time that more has come.
const PARKED_CHUNKS: usize = MAX_HEAD;

/// The refusal of a head that did not end before the deadline.
pub(super) const SLOW_HEAD: Refusal = Refusal::new(Status::RequestTimeout, "the request took too long to arrive");
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
            persistence: if draining { Persistence::Close } else { head.persistence },
            head_only: head.is_head(),
        }
    }

    /// Whether the client asks, before it sends the body, if the request will be taken at all.
    pub(super) fn asks_first(&self) -> bool {
        self.expects_continue && self.framing != Framing::None
    }

    /// The same exchange, but the last of its connection.
    pub(super) fn closing(self) -> Exchange {
        let persistence = Persistence::Close;
        Exchange { persistence, ..self }
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
        if here.done {
            conn.consume(self.head_length + here.used);
            return Ok(Intake::Whole);
        }
        if conn.timed_out() {
            return Ok(Intake::Refused(SLOW_BODY));
        }
        // Once only: the next call comes with a part of the body, or with its end.
        if self.expects_continue && conn.buffer().len() == self.head_length && !conn.has_ended() {
            conn.write_all(CONTINUE)?;
        }
        if self.may_wait_parked(conn.buffer().len()) {
            return Ok(Intake::Incomplete);
        }
        conn.consume(self.head_length + here.used);
        receive_rest(conn, body)
    }

    fn may_wait_parked(&self, received: usize) -> bool {
        match self.framing {
            Framing::None | Framing::Length(_) => received < PARKED_LENGTH,
            Framing::Chunked => received < PARKED_CHUNKS,
        }
    }

    /// What the worker does with the connection, once the answer is written.
    pub(super) fn next(&self, conn: &mut Conn, draining: impl FnOnce() -> bool) -> Next {
        if self.persistence != Persistence::Close {
            return Next::Park;
        }
        // A client that was not told before may have more under way, which would reset the
        // connection.
        if draining() || !conn.buffer().is_empty() {
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
