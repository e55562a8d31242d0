//! Serving one connection: request after request while there are any, until it is to be parked or
//! closed.

mod clients;
mod sending;

use std::ops::ControlFlow;
use std::rc::Rc;
use std::time::Duration;

use slog::{Logger, error, warn};

use super::cleanup::Cleanups;
use super::conn::{Buffers, Conn, Fill, Peer};
use super::deadline::{Begun, Deadlines};
use super::drain::MasterLink;
use super::in_hand::InHand;
use super::message::{FromWorker, TimedOut};
use super::parked::{Phase, Sending, Then};
use super::request_cx::RequestCx;
use super::scoreboard::{Record, WorkerState};
use super::service::{Next, Service};
use super::worker_config::{WorkerBirth, WorkerConfig};
use crate::proc::caught::catch;
use crate::sys::clock::Monotonic;

/// How long, and for how many bytes, a client may take to notice that everything is said.
const LINGER_TIME: Duration = Duration::from_secs(2);
const LINGER_BYTES: usize = 256 * 1024;
/// How long a draining worker waits for the first byte of a connection that it has accepted.
pub(super) const FIRST_BYTE_TIME: Duration = Duration::from_secs(1);
/// What both are for a worker without a master, which is to be away within a moment.
const ORPHANS_PATIENCE: Duration = Duration::from_millis(50);

/// The service, with all that a request needs.
pub(super) struct Attendant<S> {
    pub(super) service: S,
    pub(super) config: WorkerConfig,
    pub(super) birth: WorkerBirth,
    pub(super) pid: u32,
    pub(super) record: Record,
    pub(super) in_hand: &'static InHand,
    pub(super) link: Rc<MasterLink>,
    pub(super) deadlines: Deadlines,
    pub(super) cleanups: Cleanups,
    pub(super) buffers: Buffers,
    pub(super) requests: u64,
    pub(super) aborted: u64,
    pub(super) draining: bool,
    /// The worker drains because its master is gone.
    pub(super) orphaned: bool,
    /// While the worker drains: until when a connection between two requests is kept for one more.
    pub(super) last_chance: Option<Monotonic>,
    /// The time, read after the last thing that may have taken long.
    pub(super) now: Monotonic,
    pub(super) log: Logger,
}

/// How a connection stands when the attendant leaves it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Nothing had come.
    Nothing,
    /// Everything that came is answered.
    Idle,
    /// A request has begun to come.
    Partial(Begun),
    /// Its client has yet to take what was written.
    Sending(Sending),
    /// It is over.
    Close,
}

/// How a call of the service went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Served {
    Well(Next),
    /// It has failed because its client is gone.
    ClientLeft,
    /// It has failed or panicked, which is reported.
    Failed,
}

impl Served {
    /// What becomes of the connection.
    fn next(self) -> Next {
        match self {
            Self::Well(next) => next,
            Self::ClientLeft | Self::Failed => Next::Close,
        }
    }
}

impl<S: Service> Attendant<S> {
    /// Takes in what has come, and serves it. `begun` is the request of which a part came earlier, if
    /// there is one.
    pub(super) fn visit(&mut self, conn: &mut Conn, begun: Option<Begun>) -> Outcome {
        conn.borrow_buffers(&mut self.buffers);
        let outcome = match conn.try_fill() {
            Ok(Fill::Read(_)) => self.serve_all(conn, begun),
            Ok(Fill::WouldBlock) => Outcome::Nothing,
            Ok(Fill::Eof) if conn.buffer().is_empty() && begun.is_none() => Outcome::Close,
            Ok(Fill::Eof) => self.serve_all(conn, begun),
            Err(error) => {
                match begun {
                    Some(request) if self.is_client_gone(&error, conn) => {
                        self.count_request();
                        self.count_abort(conn, request);
                    }
                    _ => self.report(&error, conn),
                }
                Outcome::Close
            }
        };
        conn.return_buffers(&mut self.buffers);
        outcome
    }

    /// Lets the service say to the client that the rest of its request did not come in time.
    pub(super) fn time_out(&mut self, conn: &mut Conn, request: Begun) {
        conn.borrow_buffers(&mut self.buffers);
        conn.time_out();
        self.serve_all(conn, Some(request));
        conn.return_buffers(&mut self.buffers);
    }

    /// What the connection waits for after a visit; none: it is to be closed.
    pub(super) fn settle(&mut self, conn: &mut Conn, before: Phase, mut outcome: Outcome) -> Option<Phase> {
        // After its last chance, a connection between two requests gets a last look and no more.
        while self.is_last_chance_over() && outcome == Outcome::Idle {
            outcome = match self.visit(conn, None) {
                Outcome::Nothing => Outcome::Close,
                served => served,
            };
        }
        match outcome {
            Outcome::Nothing if self.is_last_chance_over() && before == Phase::Idle => None,
            Outcome::Nothing => Some(before),
            Outcome::Idle => Some(Phase::Idle),
            Outcome::Partial(request) => Some(Phase::Partial(request)),
            Outcome::Sending(sending) => Some(Phase::Sending(sending)),
            Outcome::Close if matches!(before, Phase::Lingering { .. }) => None,
            Outcome::Close => conn.begin_linger().then_some(Phase::Lingering { left: LINGER_BYTES }),
        }
    }

    /// When a connection that has come into `phase` just now is due.
    pub(super) fn due(&self, phase: Phase) -> Option<Monotonic> {
        match phase {
            Phase::Fresh | Phase::Lingering { .. } if self.orphaned => Some(self.now.after(ORPHANS_PATIENCE)),
            Phase::Fresh if self.draining => Some(self.now.after(FIRST_BYTE_TIME)),
            Phase::Idle if self.draining => self.last_chance,
            Phase::Fresh | Phase::Idle => self.config.idle_timeout.map(|span| self.now.after(span)),
            Phase::Partial(request) => self.urged(request.due),
            // Without a deadline, a client that takes nothing more is idle as well.
            Phase::Sending(Sending { request, .. }) => {
                self.urged(request.due.or_else(|| self.config.idle_timeout.map(|span| self.now.after(span))))
            }
            Phase::Lingering { .. } => Some(self.now.after(LINGER_TIME)),
        }
    }

    /// Nobody ends a worker without a master, so it waits for no client that does nothing, whatever is its deadline.
    fn urged(&self, due: Option<Monotonic>) -> Option<Monotonic> {
        let soon = self.orphaned.then(|| self.now.after(LINGER_TIME));
        due.into_iter().chain(soon).min()
    }

    fn is_last_chance_over(&self) -> bool {
        self.last_chance.is_some_and(|end| end <= self.now)
    }

    fn serve_all(&mut self, conn: &mut Conn, begun: Option<Begun>) -> Outcome {
        let mut request = begun.unwrap_or_else(|| self.deadlines.request(self.now));
        self.record.set_state(WorkerState::Busy);
        let outcome = loop {
            match self.serve_one(conn, request) {
                ControlFlow::Continue(()) => request = self.deadlines.request(self.now),
                ControlFlow::Break(outcome) => break outcome,
            }
        };
        self.record.end_request();
        self.record.set_state(self.resting_state());
        outcome
    }

    pub(super) fn resting_state(&self) -> WorkerState {
        if self.draining { WorkerState::Draining } else { WorkerState::Idle }
    }

    /// One call of the service; to go on means that the next request has already come.
    fn serve_one(&mut self, conn: &mut Conn, request: Begun) -> ControlFlow<Outcome> {
        self.record.begin_request(request.since, conn.peer());
        if let Some(label) = conn.take_label() {
            self.record.set_label(&label);
        }
        conn.begin(self.in_hand);
        self.deadlines.begin(request, self.now);

        let served = self.call_service(conn, request);
        let mut then = what_then(served.next(), conn);
        let is_answered = !then.is_in_request();
        let mut aborted =
            served == Served::ClientLeft || is_answered && self.has_client_left(conn, request, served.next());
        let mut unsent = false;
        if !self.may_wait_for_more(conn, then) {
            match conn.try_flush() {
                Ok(all_is_sent) => unsent = !all_is_sent,
                Err(error) => {
                    aborted |= self.is_client_gone(&error, conn);
                    if !aborted && served != Served::Failed {
                        self.report(&error, conn);
                    }
                    then = Then::Close;
                }
            }
        }
        let is_over = is_answered || then == Then::Close;

        self.deadlines.end();
        if is_over {
            conn.end()
        } else {
            conn.set_aside()
        }
        // The service may have put another connection in this one's place.
        self.in_hand.end();
        self.now = Monotonic::now();
        let request = Begun { due: self.deadlines.due(), ..request };
        let is_late = request.due.is_some_and(|due| due <= self.now);
        if is_over && is_late {
            self.tell_timed_out(conn, request.since, conn.timed_out());
        }
        if aborted {
            self.count_abort(conn, request);
        }
        if !self.cleanups.is_empty() {
            self.clean_up(conn.peer());
        }
        if unsent || !is_over {
            conn.keep_label(self.record.label());
        }
        self.record.set_label(b"");
        if is_over {
            self.count_request();
        }
        match then {
            // It is late, which is told, and nobody waits for the client any more.
            _ if unsent && is_over && is_late => ControlFlow::Break(Outcome::Close),
            _ if unsent => ControlFlow::Break(Outcome::Sending(Sending { request, then, aborted })),
            Then::NextRequest if conn.buffer().is_empty() => ControlFlow::Break(Outcome::Idle),
            Then::NextRequest => ControlFlow::Continue(()),
            Then::RestOfRequest => ControlFlow::Break(Outcome::Partial(request)),
            // Others have their turn first.
            Then::RestOfAnswer => ControlFlow::Break(Outcome::Sending(Sending { request, then, aborted })),
            Then::Close => ControlFlow::Break(Outcome::Close),
        }
    }

    fn count_request(&mut self) {
        self.requests += 1;
        self.record.set_requests(self.requests);
    }

    /// Whether what is written may wait for the answer to the next request, which has come already.
    fn may_wait_for_more(&self, conn: &Conn, then: Then) -> bool {
        let goes_on = then == Then::NextRequest && !conn.buffer().is_empty();
        goes_on && S::ANSWERS_TOGETHER && !conn.has_much_unsent()
    }

    fn call_service(&mut self, conn: &mut Conn, request: Begun) -> Served {
        let mut cx = RequestCx {
            config: &self.config,
            birth: &self.birth,
            record: &self.record,
            pid: self.pid,
            draining: self.draining,
            link: Some(&self.link),
            since: request.since,
            deadlines: &self.deadlines,
            in_hand: self.in_hand,
            cleanups: &self.cleanups,
        };
        match catch(|| self.service.serve(conn, &mut cx)) {
            Ok(Ok(next)) => return Served::Well(next),
            Ok(Err(error)) if self.is_client_gone(&*error, conn) => return Served::ClientLeft,
            Ok(Err(error)) => self.report(&*error, conn),
            Err(panic) => {
                conn.forget_response();
                error!(self.log, "the service panicked, the connection is closed";
                    "panic" => %panic, "peer" => %conn.peer(), "label" => self.label());
            }
        }
        Served::Failed
    }

    /// The request is over, and so is its deadline: the cleanups have the time of a request of their own.
    fn clean_up(&mut self, peer: Peer) {
        self.record.begin_request(self.now, peer);
        self.deadlines.begin_beside(self.now);
        self.cleanups.run(|panic| error!(self.log, "a cleanup panicked"; "panic" => %panic, "label" => self.label()));
        self.deadlines.end();
        self.now = Monotonic::now();
    }

    /// The request has met its deadline: the master, which knows what held it up, writes that down.
    #[cold]
    #[inline(never)]
    fn tell_timed_out(&self, conn: &Conn, since: Monotonic, parked: bool) {
        let request = TimedOut {
            started: since.nanos(),
            elapsed: self.now.since(since),
            label: self.record.label(),
            peer: conn.peer().to_string(),
            parked,
        };
        if !self.link.try_say(&FromWorker::TimedOut(request)) {
            warn!(self.log, "a request timed out, and the master does not listen";
                "peer" => %conn.peer(), "label" => self.label());
        }
    }

    fn label(&self) -> String {
        String::from_utf8_lossy(&self.record.label()).into_owned()
    }
}

/// What becomes of a connection after a call of the service.
fn what_then(next: Next, conn: &Conn) -> Then {
    // At its deadline, and after its client's end, a request is not waited for.
    let is_last_call = conn.has_ended() || conn.timed_out();
    match next {
        Next::Close => Then::Close,
        Next::Room if conn.timed_out() => Then::Close,
        Next::Room => Then::RestOfAnswer,
        Next::Park if conn.has_consumed() || conn.buffer().is_empty() => Then::NextRequest,
        Next::Park | Next::More if is_last_call => Then::Close,
        Next::Park | Next::More => Then::RestOfRequest,
    }
}
