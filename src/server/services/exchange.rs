//! One HTTP exchange over a connection: the body received and dropped, the connection kept or
//! ended.
//!
//! A body that is not there yet is waited for without the worker, however long it is: what has come is dropped at once, and
//! the connection keeps how far the body is.

use std::io::{self, Write};

use super::http::body::{Body, Framing};
use super::http::response::{CONTINUE, Status};
use super::http::{Head, Persistence, Refusal};
use crate::server::{Conn, Next};

/// The refusal of a head that did not end before the deadline.
pub(super) const SLOW_HEAD: Refusal = Refusal::new(Status::RequestTimeout, "the request took too long to arrive");
/// The refusal of a body that did not.
pub(super) const SLOW_BODY: Refusal = Refusal::new(Status::RequestTimeout, "the body took too long to arrive");

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
#[derive(Debug)]
pub(super) enum Intake {
    /// The whole message is received, and gone from the buffer.
    Whole,
    /// More is to come; what was received is gone from the buffer.
    UnderWay(Body),
    /// The client's fault.
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

    /// Takes what has come of the message off the connection, and asks for the rest if the client waits to be asked.
    ///
    /// # Errors
    /// Those of writing.
    #[inline]
    pub(super) fn take_message(&self, conn: &mut Conn) -> io::Result<Intake> {
        conn.consume(self.head_length);
        if self.framing == Framing::None {
            return Ok(Intake::Whole);
        }
        let is_last_call = conn.has_ended() || conn.timed_out();
        let asks = self.expects_continue && conn.buffer().is_empty() && !is_last_call;
        let intake = take_body(conn, Body::new(self.framing));
        if asks && matches!(intake, Intake::UnderWay(_)) {
            conn.write_all(CONTINUE)?;
        }
        Ok(intake)
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

/// Takes what has come of a body off the connection.
pub(super) fn take_body(conn: &mut Conn, mut body: Body) -> Intake {
    match body.advance(conn.buffer()) {
        Ok(progress) => {
            conn.consume(progress.used);
            if progress.done { Intake::Whole } else { Intake::UnderWay(body) }
        }
        Err(refusal) => Intake::Refused(refusal),
    }
}
