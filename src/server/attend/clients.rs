//! Clients that leave before they have their answer.

use std::error::Error;
use std::time::Duration;
use std::{io, iter};

use slog::{debug, info, warn};

use super::Attendant;
use crate::server::abort::Aborted;
use crate::server::conn::Conn;
use crate::server::deadline::Begun;
use crate::server::service::{Next, Service};
use crate::sys::clock::Monotonic;

/// A client that leaves before its answer is noticed if that takes so long.
const LONG_ENOUGH_TO_GIVE_UP: Duration = Duration::from_millis(10);

impl<S: Service> Attendant<S> {
    // ---- clients that leave ----

    /// Whether the client has left without waiting for the answer that is about to be sent. It is asked for only where
    /// that takes long or a token has noticed it: nobody gives up at once, and a look costs a system call.
    pub(super) fn has_client_left(&self, conn: &Conn, request: Begun, next: Next) -> bool {
        let unanswered = conn.unsent() > 0;
        let suspected = self.in_hand.line.has_seen_end()
            || unanswered && request.since.after(LONG_ENOUGH_TO_GIVE_UP) <= Monotonic::now();
        // It has ended in the middle of its request, and the service has nothing to say to that.
        let incomplete = !conn.has_consumed() || next == Next::More;
        let broken_off = conn.has_ended() && incomplete && !unanswered;
        broken_off || suspected && conn.has_left()
    }

    /// Whether an error says that the client is gone, and it is: errors of the same kind may come from elsewhere.
    pub(super) fn is_client_gone(&self, error: &(dyn Error + 'static), conn: &Conn) -> bool {
        says_client_is_gone(error) && (conn.has_ended() || conn.peer_gone())
    }

    #[cold]
    #[inline(never)]
    pub(super) fn count_abort(&mut self, conn: &Conn, request: Begun) {
        self.aborted += 1;
        self.record.set_aborted(self.aborted);
        let elapsed = Monotonic::now().since(request.since);
        info!(self.log, "a request was aborted, its client is gone";
            "peer" => %conn.peer(), "label" => self.label(), "elapsed_ms" => elapsed.as_millis() as u64,
            "aborted" => self.aborted);
    }

    /// A client that went away between two requests is everyday life; anything else is worth a look.
    pub(super) fn report(&self, error: &(dyn Error + 'static), conn: &Conn) {
        if self.is_client_gone(error, conn) {
            debug!(self.log, "the client is gone"; "error" => %error);
        } else {
            warn!(self.log, "a request failed, the connection is closed";
                "error" => %error, "peer" => %conn.peer(), "label" => self.label());
        }
    }
}

/// Whether the error, or what it comes from, is of those that a client which leaves causes.
fn says_client_is_gone(error: &(dyn Error + 'static)) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
    let says = |error: &(dyn Error + 'static)| match error.downcast_ref::<io::Error>() {
        Some(error) => matches!(error.kind(), BrokenPipe | ConnectionAborted | ConnectionReset | UnexpectedEof),
        None => error.downcast_ref::<Aborted>().is_some_and(|why| why.is_by_client()),
    };
    iter::successors(Some(error), |&error| error.source()).any(says)
}
