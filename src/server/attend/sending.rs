//! Clients that do not take at once what is written for them.

use super::{Attendant, Outcome};
use crate::server::conn::Conn;
use crate::server::parked::{Sending, Then};
use crate::server::service::Service;

impl<S: Service> Attendant<S> {
    /// Sends more of what is unsent, and goes on when that was all.
    pub(in crate::server) fn send_on(&mut self, conn: &mut Conn, sending: Sending) -> Outcome {
        match conn.try_flush() {
            Ok(false) => return Outcome::Nothing,
            Ok(true) => {}
            Err(error) => {
                if sending.then.is_in_request() {
                    self.count_request();
                }
                if !sending.aborted && self.is_client_gone(&error, conn) {
                    self.record.set_label(&conn.take_label().unwrap_or_default());
                    self.count_abort(conn, sending.request);
                    self.record.set_label(b"");
                } else {
                    self.report(&error, conn);
                }
                return Outcome::Close;
            }
        }
        conn.borrow_buffers(&mut self.buffers);
        let outcome = match sending.then {
            Then::NextRequest => {
                conn.take_label();
                if conn.buffer().is_empty() { Outcome::Idle } else { self.serve_all(conn, None) }
            }
            Then::RestOfRequest => Outcome::Partial(sending.request),
            Then::RestOfAnswer => self.serve_all(conn, Some(sending.request)),
            Then::Close => Outcome::Close,
        };
        conn.return_buffers(&mut self.buffers);
        outcome
    }

    /// The client has not taken in time what was written.
    pub(in crate::server) fn time_out_sending(&mut self, conn: &mut Conn, sending: Sending) -> Outcome {
        match sending.then {
            Then::RestOfRequest => {
                self.time_out(conn, sending.request);
                return Outcome::Close;
            }
            Then::RestOfAnswer => self.count_request(),
            // A last look: a worker that was long busy has not seen how the client went on reading.
            Then::NextRequest | Then::Close => match self.send_on(conn, sending) {
                Outcome::Nothing => {}
                outcome => return outcome,
            },
        }
        self.record.set_label(&conn.take_label().unwrap_or_default());
        self.tell_timed_out(conn, sending.request.since, true);
        self.record.set_label(b"");
        Outcome::Close
    }
}
