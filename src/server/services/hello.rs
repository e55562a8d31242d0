//! `hello`: the service that answers HTTP with the worker's own coordinates.
//!
//! `GET /` says which worker it was. The answer stands ready, so a request costs its parsing and
//! one copy. With the argument `faults=true` there are the routes of [`faults`](super::faults) as
//! well, for tests of everything that can happen to a worker.

use std::io::{ErrorKind, Write};

use super::exchange::{Exchange, Intake, SLOW_HEAD};
use super::faults::{Fault, Faults};
use super::http::date::DateClock;
use super::http::last_words::last_words;
use super::http::response::{Answer, Prepared, Status};
use super::http::{self, Head, Parsed, Persistence, Refusal};
use crate::proc::caught::catch;
use crate::server::{BoxError, Conn, Fill, Next, PreloadCx, RequestCx, Result, Service, WorkerCx};

const METHODS: &str = "GET, HEAD";

/// The service `hello`.
#[derive(Debug)]
pub struct Hello {
    greeting: Prepared,
    date: DateClock,
    /// None: there are no such routes.
    faults: Option<Faults>,
}

impl Service for Hello {
    type Preload = ();

    fn preload(_: &PreloadCx) -> Result<()> {
        Ok(())
    }

    fn start((): &'static (), cx: &WorkerCx) -> Result<Self> {
        let faults = match cx.arg_opt("faults") {
            Some("true") => true,
            None | Some("false") => false,
            Some(other) => {
                return Err(format!("the argument faults is true or false, not {other:?}").into());
            }
        };
        let greeting = format!("hello from slot {} pid {} generation {}\n", cx.slot(), cx.pid(), cx.generation());
        Ok(Hello::new(greeting, faults))
    }

    fn serve(&mut self, conn: &mut Conn, cx: &mut RequestCx<'_>) -> Result<Next> {
        loop {
            conn.consume(http::leading_blank(conn.buffer()));
            if let Some(next) = self.answer(conn, cx)? {
                return Ok(next);
            }
            // The rest may have come since; if not, the connection waits for it without the worker.
            match conn.try_fill()? {
                Fill::Read(_) => {}
                Fill::Eof => return Ok(Next::Close),
                Fill::WouldBlock => return Ok(Next::Park),
            }
        }
    }
}

/// Who answers a request.
enum Route {
    Greeting,
    Fault(Fault),
    Nobody(Answer),
}

impl Hello {
    pub(super) fn new(greeting: String, faults: bool) -> Hello {
        let mut date = DateClock::new();
        Hello { greeting: Prepared::new(&Answer::ok(greeting), date.now()), date, faults: faults.then(Faults::default) }
    }

    /// Answers the request at the front of the buffer; none if it is not whole yet.
    fn answer(&mut self, conn: &mut Conn, cx: &mut RequestCx<'_>) -> Result<Option<Next>> {
        let head = match http::parse(conn.buffer()) {
            Ok(Parsed::Head(head)) => head,
            Ok(Parsed::Incomplete) if !conn.timed_out() => return Ok(None),
            Ok(Parsed::Incomplete) if conn.buffer().is_empty() => return Ok(Some(Next::Close)),
            Ok(Parsed::Incomplete) => return self.refuse(conn, SLOW_HEAD).map(Some),
            Err(refusal) => return self.refuse(conn, refusal).map(Some),
        };
        cx.label(head.label);
        cx.last_words(last_words(head.is_head()));
        let exchange = Exchange::new(&head, cx.draining());
        match self.route(&head) {
            Route::Nobody(answer) if exchange.asks_first() => self.decline(conn, &answer, exchange).map(Some),
            route => match exchange.take_message(conn)? {
                Intake::Whole => self.follow(route, conn, cx, exchange).map(Some),
                Intake::Incomplete => Ok(None),
                Intake::Gone => Ok(Some(Next::Close)),
                Intake::Refused(refusal) => self.refuse(conn, refusal).map(Some),
            },
        }
    }

    fn route(&self, head: &Head<'_>) -> Route {
        let taken = matches!(head.method, "GET" | "HEAD");
        match (head.path, &self.faults) {
            ("/", _) if taken => Route::Greeting,
            _ if !head.method_is_known() => {
                Route::Nobody(Answer::error(Status::NotImplemented, "the method is not known here"))
            }
            ("/", _) => Route::Nobody(Answer::not_allowed(METHODS)),
            (path, Some(_)) => match Fault::parse(path, head.query) {
                None => not_found(),
                Some(_) if !taken => Route::Nobody(Answer::not_allowed(METHODS)),
                Some(Ok(fault)) => Route::Fault(fault),
                Some(Err(bad)) => Route::Nobody(Answer::error(Status::BadRequest, &bad.to_string())),
            },
            _ => not_found(),
        }
    }

    /// Answers a request that is taken off the connection.
    fn follow(&mut self, route: Route, conn: &mut Conn, cx: &RequestCx<'_>, exchange: Exchange) -> Result<Next> {
        let exchange = match route {
            Route::Greeting => {
                let (how, head_only) = (exchange.persistence, exchange.head_only);
                conn.write_all(self.greeting.bytes(how, head_only, self.date.now()))?;
                exchange
            }
            Route::Nobody(answer) => {
                self.send(conn, &answer, exchange)?;
                exchange
            }
            Route::Fault(fault) => self.commit(&fault, conn, cx, exchange)?,
        };
        Ok(exchange.next(conn, || cx.draining()))
    }

    /// The final answer spares a client that asked first its body. Whether it sends it all the same
    /// nobody knows, so the connection ends.
    fn decline(&mut self, conn: &mut Conn, answer: &Answer, exchange: Exchange) -> Result<Next> {
        self.send(conn, answer, exchange.closing())?;
        conn.linger();
        Ok(Next::Close)
    }

    /// Does what a fault route is there for. A deadline is answered 504, a panic 500; the error
    /// goes on to the worker loop, which logs it and lives. Gives the exchange as the client was told of it: the
    /// worker may have begun to drain meanwhile.
    fn commit(&mut self, fault: &Fault, conn: &mut Conn, cx: &RequestCx<'_>, exchange: Exchange) -> Result<Exchange> {
        let Some(faults) = &mut self.faults else {
            return Ok(exchange);
        };
        if *fault == Fault::BreakOff {
            break_off(conn)?;
        }
        let (status, why, error): (_, _, BoxError) = match catch(|| faults.commit(fault, cx)) {
            Ok(Ok(text)) => {
                let exchange = if cx.draining() { exchange.closing() } else { exchange };
                self.send(conn, &Answer::ok(text), exchange)?;
                return Ok(exchange);
            }
            Ok(Err(error)) => {
                let late = error.kind() == ErrorKind::TimedOut;
                let status = if late { Status::GatewayTimeout } else { Status::InternalError };
                (status, error.to_string(), error.into())
            }
            // Where it happened is for the log, not for the client.
            Err(panic) => {
                let words = format!("the route panicked: {panic}");
                (Status::InternalError, "the route panicked".to_owned(), words.into())
            }
        };
        self.send(conn, &Answer::error(status, &why), exchange.closing())?;
        conn.linger();
        Err(error)
    }

    /// Says why and ends the connection, slowly: what the client still sends must not reset it.
    fn refuse(&mut self, conn: &mut Conn, refusal: Refusal) -> Result<Next> {
        let answer = Answer::error(refusal.status, refusal.why);
        conn.write_all(&answer.to_bytes(Persistence::Close, self.date.now()))?;
        conn.linger();
        Ok(Next::Close)
    }

    fn send(&mut self, conn: &mut Conn, answer: &Answer, exchange: Exchange) -> Result<()> {
        let bytes = answer.to_bytes(exchange.persistence, self.date.now());
        let body = if exchange.head_only { answer.text.len() } else { 0 };
        conn.write_all(&bytes[..bytes.len() - body])?;
        Ok(())
    }
}

/// Begins an answer, of which the worker will not live to send the rest.
fn break_off(conn: &mut Conn) -> Result<()> {
    conn.write_all(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 1000\r\n\r\nto be")?;
    Ok(conn.flush()?)
}

fn not_found() -> Route {
    Route::Nobody(Answer::error(Status::NotFound, "there is nothing at this path"))
}

#[cfg(test)]
mod deadline_tests;
#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests;
