//! `hello`: the service that answers HTTP with the worker's own coordinates.
//!
//! `GET /` says which worker it was. The answer stands ready, so a request costs its parsing and
//! one copy. With the argument `faults=true` there are the routes of [`faults`](super::faults) as
//! well, for tests of everything that can happen to a worker.

use std::io::{ErrorKind, Write};

use super::exchange::{self, Exchange, Intake, SLOW_BODY, SLOW_HEAD};
use super::faults::{Fault, Faults, Filler, Reply};
use super::http::body::Body;
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

    /// Only a fault takes time, and it waits until nothing is unsent.
    const ANSWERS_TOGETHER: bool = true;

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
            let step = match conn.take_state() {
                Some(under_way) => self.go_on(under_way, conn, cx)?,
                None => self.begin(conn, cx)?,
            };
            let waiting = match step {
                Step::Over(next) => return Ok(next),
                Step::Wants(next) => next,
            };
            // The rest may have come since; if not, the connection waits for it without the worker.
            match conn.try_fill()? {
                Fill::Read(_) => {}
                Fill::Eof if waiting == Next::Park => return Ok(Next::Close),
                Fill::Eof | Fill::WouldBlock => return Ok(waiting),
            }
        }
    }
}

/// How far a call of `serve` has come.
enum Step {
    Over(Next),
    /// More of the request is needed; until then the connection waits so.
    Wants(Next),
}

/// A request that is not over when `serve` returns, though something of it was consumed.
enum UnderWay {
    /// Its body comes piece by piece.
    Body { exchange: Exchange, body: Body, route: Route },
    /// Its answer goes out piece by piece.
    Answer { exchange: Exchange, rest: Filler },
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

    /// Answers the request at the front of the buffer.
    fn begin(&mut self, conn: &mut Conn, cx: &RequestCx<'_>) -> Result<Step> {
        conn.consume(http::leading_blank(conn.buffer()));
        let head = match http::parse(conn.buffer()) {
            Ok(Parsed::Head(head)) => head,
            Ok(Parsed::Incomplete) if !conn.timed_out() => return Ok(Step::Wants(Next::Park)),
            Ok(Parsed::Incomplete) if conn.buffer().is_empty() => return Ok(Step::Over(Next::Close)),
            Ok(Parsed::Incomplete) => return self.refuse(conn, SLOW_HEAD),
            Err(refusal) => return self.refuse(conn, refusal),
        };
        cx.label(head.label);
        cx.last_words(last_words(head.is_head()));
        let exchange = Exchange::new(&head, cx.draining());
        match self.route(&head) {
            Route::Nobody(answer) if exchange.asks_first() => self.decline(conn, &answer, exchange),
            // It may take long, or the worker with it: earlier answers are not to wait for that.
            Route::Fault(_) if conn.unsent() > 0 => Ok(Step::Over(Next::Room)),
            route => {
                let intake = exchange.take_message(conn)?;
                self.receive(intake, route, conn, cx, exchange)
            }
        }
    }

    /// Goes on with a request of which something was consumed before.
    fn go_on(&mut self, under_way: UnderWay, conn: &mut Conn, cx: &RequestCx<'_>) -> Result<Step> {
        match under_way {
            UnderWay::Body { exchange, body, route } => {
                let exchange = if cx.draining() { exchange.closing() } else { exchange };
                cx.last_words(last_words(exchange.head_only));
                let intake = exchange::take_body(conn, body);
                self.receive(intake, route, conn, cx, exchange)
            }
            UnderWay::Answer { exchange, rest } => fill(rest, conn, cx, exchange).map(Step::Over),
        }
    }

    /// Answers a request if its body is whole.
    fn receive(
        &mut self,
        intake: Intake,
        route: Route,
        conn: &mut Conn,
        cx: &RequestCx<'_>,
        exchange: Exchange,
    ) -> Result<Step> {
        match intake {
            Intake::Whole => self.follow(route, conn, cx, exchange).map(Step::Over),
            Intake::UnderWay(_) if conn.timed_out() => self.refuse(conn, SLOW_BODY),
            Intake::UnderWay(body) => {
                conn.keep_state(UnderWay::Body { exchange, body, route });
                Ok(Step::Wants(Next::More))
            }
            Intake::Refused(refusal) => self.refuse(conn, refusal),
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
        match route {
            Route::Greeting => {
                let (how, head_only) = (exchange.persistence, exchange.head_only);
                conn.write_all(self.greeting.bytes(how, head_only, self.date.now()))?;
            }
            Route::Nobody(answer) => self.send(conn, &answer, exchange)?,
            Route::Fault(fault) => return self.commit(&fault, conn, cx, exchange),
        }
        Ok(exchange.next(conn, || cx.draining()))
    }

    /// The final answer spares a client that asked first its body. Whether it sends it all the same
    /// nobody knows, so the connection ends.
    fn decline(&mut self, conn: &mut Conn, answer: &Answer, exchange: Exchange) -> Result<Step> {
        self.send(conn, answer, exchange.closing())?;
        conn.linger();
        Ok(Step::Over(Next::Close))
    }

    /// Does what a fault route is there for. A deadline is answered 504, a panic 500; the error
    /// goes on to the worker loop, which logs it and lives.
    fn commit(&mut self, fault: &Fault, conn: &mut Conn, cx: &RequestCx<'_>, exchange: Exchange) -> Result<Next> {
        let Some(faults) = &mut self.faults else {
            return Ok(Next::Close);
        };
        if *fault == Fault::BreakOff {
            break_off(conn)?;
        }
        let (status, why, error): (_, _, BoxError) = match catch(|| faults.commit(fault, cx)) {
            Ok(Ok(reply)) => {
                // The worker may have begun to drain meanwhile, and then the client is told.
                let exchange = if cx.draining() { exchange.closing() } else { exchange };
                return self.reply(reply, conn, cx, exchange);
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

    fn reply(&mut self, reply: Reply, conn: &mut Conn, cx: &RequestCx<'_>, exchange: Exchange) -> Result<Next> {
        match reply {
            Reply::Words(text) => self.send(conn, &Answer::ok(text), exchange)?,
            Reply::Bytes(count) => {
                let head = Answer::ok(String::new()).head(count, exchange.persistence, self.date.now());
                conn.write_all(&head)?;
                if !exchange.head_only {
                    return fill(Filler::new(count), conn, cx, exchange);
                }
            }
        }
        Ok(exchange.next(conn, || cx.draining()))
    }

    /// Says why and ends the connection, slowly: what the client still sends must not reset it.
    fn refuse(&mut self, conn: &mut Conn, refusal: Refusal) -> Result<Step> {
        let answer = Answer::error(refusal.status, refusal.why);
        conn.write_all(&answer.to_bytes(Persistence::Close, self.date.now()))?;
        conn.linger();
        Ok(Step::Over(Next::Close))
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

/// Writes as much of an answer as its client has room for; the rest goes on when it has taken that.
fn fill(mut rest: Filler, conn: &mut Conn, cx: &RequestCx<'_>, exchange: Exchange) -> Result<Next> {
    if rest.write_to(conn)? {
        return Ok(exchange.next(conn, || cx.draining()));
    }
    conn.keep_state(UnderWay::Answer { exchange, rest });
    Ok(Next::Room)
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
