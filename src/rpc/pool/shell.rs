//! What the core decides, carried out: calls handed to workers under the one lock, all else by the keeper.
//!
//! Whoever brings an event (a caller, the hub with a reply) hands calls out on the spot, since a conversation takes
//! them without waiting and their order is kept by the lock. Whatever may take longer, or calls a user's code that is not told a
//! reply, is an [`Order`] to the [keeper](super::keeper).

use std::borrow::Cow;
use std::collections::{HashMap, VecDeque};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::task::Waker;
use std::time::{Duration, Instant};

use super::core::{Action, CallNumber, Cause, Core, Event, Late, NoReply, Refusal, Terms, WorkerNumber};
use super::options::{Resolved, WhenFull};
use super::report::{InHand, Statistics, Worker, WorkerExit};
use crate::proc::{self, Exit};
use crate::rpc::contract::{Contract, Parcel};
use crate::rpc::error::{Error, Lost};
use crate::rpc::link::{Completion, Haste, Link, Outcome, Refused};
use crate::rpc::options::Limits;
use crate::rpc::wire::CallId;

/// Called with each event of a worker; an error says that it cannot be decoded.
pub(super) type OnEvent = Arc<dyn Fn(Worker, Cow<'_, [u8]>, Vec<OwnedFd>) -> Result<(), String> + Send + Sync>;

/// Called with the end of each worker.
pub(super) type OnExit = Box<dyn FnMut(WorkerExit) + Send>;

pub(super) struct Shared {
    pub(super) myself: Weak<Shared>,
    pub(super) entry: String,
    pub(super) contract: Contract,
    pub(super) limits: Limits,
    when_full: WhenFull,
    pub(super) deadline: Option<Duration>,
    began: Instant,
    state: Mutex<State>,
    /// Told when the keeper has something to do before it would look by itself.
    pub(super) keeper: Condvar,
    pub(super) on_event: Mutex<Option<OnEvent>>,
    pub(super) on_exit: Mutex<Option<OnExit>>,
}

pub(super) struct State {
    pub(super) core: Core,
    calls: HashMap<CallNumber, Record>,
    last_call: CallNumber,
    pub(super) members: HashMap<WorkerNumber, Member>,
    pub(super) orders: VecDeque<Order>,
    /// The keeper sleeps, and until when; for good, if that is not said.
    pub(super) asleep: Option<Option<Duration>>,
    /// Why the last start failed.
    pub(super) last_failure: Option<Lost>,
    pub(super) finished: bool,
    pub(super) parked: Vec<Waker>,
}

/// A call that has not been settled with its worker, or has none yet.
struct Record {
    /// Whoever waits for it.
    completion: Option<Completion>,
    /// Until it is sent, and for good if it may be sent again.
    parcel: Parcel,
    repeatable: bool,
    label: Option<String>,
    sent: Option<Sent>,
    /// How it was lost with an earlier worker.
    lost: Option<Lost>,
}

struct Sent {
    worker: WorkerNumber,
    link: Arc<Link>,
    id: CallId,
    at: Duration,
}

/// A worker's process.
#[derive(Default)]
pub(super) struct Member {
    pub(super) pid: Arc<OnceLock<i32>>,
    pub(super) link: Option<Arc<Link>>,
    /// It has run its `init`.
    pub(super) ready: bool,
    pub(super) end: Option<Lost>,
    pub(super) exit: Option<Result<Exit, proc::Error>>,
    in_hand: Vec<(CallNumber, InHand)>,
}

/// What the keeper is to do.
pub(super) enum Order {
    Start(WorkerNumber),
    Kill(WorkerNumber, Late),
    Dismiss(WorkerNumber),
    Measure(Vec<WorkerNumber>),
    End(Completion, Box<Error>),
    Left(WorkerNumber, Cause),
    Finished,
}

/// A call to be made.
pub(super) struct NewCall {
    pub(super) completion: Completion,
    pub(super) parcel: Parcel,
    pub(super) terms: Terms,
    pub(super) label: Option<String>,
}

/// What a caller does meanwhile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Caller {
    /// He sleeps until there is a reply, and may receive it himself.
    Waits,
    /// He has a future.
    Polls,
    /// He goes on.
    Leaves,
}

/// A call that was taken.
pub(super) struct Begun {
    pub(super) number: CallNumber,
    /// Where its reply is to come from, if a worker has it already.
    pub(super) link: Option<Arc<Link>>,
}

impl Shared {
    pub(super) fn new(entry: &str, contract: Contract, resolved: Resolved) -> Arc<Shared> {
        let Resolved { rules, when_full, deadline, limits } = resolved;
        let state = State {
            core: Core::new(rules, crate::machine::seed()),
            calls: HashMap::new(),
            last_call: 0,
            members: HashMap::new(),
            orders: VecDeque::new(),
            asleep: None,
            last_failure: None,
            finished: false,
            parked: Vec::new(),
        };
        let shared = Arc::new_cyclic(|myself| Shared {
            myself: Weak::clone(myself),
            entry: entry.to_owned(),
            contract,
            limits,
            when_full,
            deadline,
            began: Instant::now(),
            state: Mutex::new(state),
            keeper: Condvar::new(),
            on_event: Mutex::new(None),
            on_exit: Mutex::new(None),
        });
        shared.carry_out(&mut shared.state(), None);
        shared
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn now(&self) -> Duration {
        self.began.elapsed()
    }

    pub(super) fn statistics(&self) -> Statistics {
        self.state().core.statistics()
    }

    pub(super) fn workers(&self) -> Vec<Worker> {
        let state = self.state();
        let alive = |(&number, member): (&u64, &Member)| {
            member.exit.is_none().then(|| Worker { number, pid: member.pid.get().copied() })
        };
        let mut workers: Vec<Worker> = state.members.iter().filter_map(alive).collect();
        workers.sort_by_key(|worker| worker.number);
        workers
    }

    pub(super) fn begin(&self, call: NewCall, caller: Caller) -> Result<Begun, Error> {
        let mut state = self.state();
        match state.core.refusal() {
            Some(Refusal::Full) if caller != Caller::Leaves && self.when_full == WhenFull::Wait => {}
            None => {}
            Some(Refusal::Closed) => return Err(Error::Finished),
            Some(why) => {
                state.core.handle_refused(self.now());
                self.carry_out(&mut state, None);
                return Err(if why == Refusal::Full { Error::Full } else { state.no_worker(false) });
            }
        }
        state.last_call += 1;
        let number = state.last_call;
        let NewCall { completion, parcel, terms, label } = call;
        let repeatable = terms.repeats > 0;
        let completion = Some(completion);
        let record = Record { completion, parcel, repeatable, label, sent: None, lost: None };
        state.calls.insert(number, record);
        state.core.handle(self.now(), Event::Called { call: number, terms });
        self.carry_out(&mut state, (caller == Caller::Waits).then_some(number));
        let sent = state.calls.get(&number).and_then(|record| record.sent.as_ref());
        Ok(Begun { number, link: sent.map(|sent| Arc::clone(&sent.link)) })
    }

    /// Its caller does not want it any more. Whether it may have run; none, if it has ended before.
    pub(super) fn give_up(&self, number: CallNumber) -> Option<bool> {
        self.abandon(number, Event::GivenUp { call: number })
    }

    /// As [`give_up`](Shared::give_up), of a caller who would have wanted it earlier.
    pub(super) fn lose_patience(&self, number: CallNumber) -> Option<bool> {
        self.abandon(number, Event::Impatient { call: number })
    }

    fn abandon(&self, number: CallNumber, why: Event) -> Option<bool> {
        let mut state = self.state();
        let record = state.calls.get_mut(&number)?;
        let completion = record.completion.take()?;
        let may_have_run = record.sent.is_some() || state.core.begun_before(number);
        self.hear(&mut state, why);
        state.forget_if_over(number);
        drop(state);
        // It is the caller's own code.
        drop(completion);
        Some(may_have_run)
    }

    pub(super) fn close(&self) {
        self.hear(&mut self.state(), Event::Closed);
    }

    /// Something has happened.
    pub(super) fn hear(&self, state: &mut State, event: Event) {
        state.core.handle(self.now(), event);
        self.carry_out(state, None);
    }

    /// Carries out what the core has decided. `urgent` is a call whose caller is about to wait for its reply himself.
    pub(super) fn carry_out(&self, state: &mut State, urgent: Option<CallNumber>) {
        while let Some(action) = state.core.poll_action() {
            match action {
                Action::Send { worker, call } => {
                    let haste = if urgent == Some(call) { Haste::AtOnce } else { Haste::Gather };
                    self.send(state, worker, call, haste);
                }
                Action::Discourage { call } => {
                    if let Some(Sent { link, id, .. }) = state.calls.get(&call).and_then(|record| record.sent.as_ref())
                    {
                        link.discourage(*id);
                    }
                }
                Action::End { call, why } => state.end(call, why),
                Action::Start { worker } => {
                    state.members.insert(worker, Member::default());
                    state.orders.push_back(Order::Start(worker));
                }
                Action::Kill { worker, late } => {
                    if late == Late::Ready {
                        state.last_failure = Some(Lost::Killed { late });
                    }
                    state.orders.push_back(Order::Kill(worker, late));
                }
                Action::Dismiss { worker } => state.orders.push_back(Order::Dismiss(worker)),
                Action::Measure { workers } => state.orders.push_back(Order::Measure(workers)),
                Action::Left { worker, cause } => state.orders.push_back(Order::Left(worker, cause)),
                Action::Finished => state.orders.push_back(Order::Finished),
            }
        }
        if let Some(until) = state.asleep {
            let next = state.core.poll_timeout();
            let sooner = next.is_some_and(|next| until.is_none_or(|until| next < until));
            if sooner || !state.orders.is_empty() {
                state.asleep = None;
                self.keeper.notify_one();
            }
        }
    }

    /// Hands a call to a worker.
    fn send(&self, state: &mut State, worker: WorkerNumber, call: CallNumber, haste: Haste) {
        let Some(link) = state.members.get(&worker).and_then(|member| member.link.clone()) else { return };
        let (Some(record), Some(shared)) = (state.calls.get_mut(&call), self.myself.upgrade()) else { return };
        let message =
            if record.repeatable { record.parcel.copy(link.lanes()) } else { record.parcel.hand_over(link.lanes()) };
        let message = match message {
            Ok(message) => message,
            Err(error) => {
                // Where it could not be begun again, how it was lost is what its caller has to know.
                let may_have_run = state.core.begun_before(call);
                let error = record.lost.take().map_or(error, |why| Error::Lost { may_have_run, why });
                if let Some(completion) = record.completion.take() {
                    state.orders.push_back(Order::End(completion, Box::new(error)));
                }
                state.calls.remove(&call);
                return state.core.handle(self.now(), Event::Answered { call, well: false });
            }
        };
        // From here on its deadline counts.
        let at = state.core.now();
        let completion: Completion = Box::new(move |outcome| shared.settle(call, outcome));
        match link.begin(completion, message, haste, None) {
            Ok(id) => {
                record.sent = Some(Sent { worker, link, id, at });
                if !record.repeatable {
                    record.parcel.let_go();
                }
            }
            Err(Refused::Full(_, message) | Refused::Never(_, message)) => {
                if !record.repeatable {
                    record.parcel.take_back(message);
                }
                state.core.handle(self.now(), Event::Unsent { call });
            }
        }
    }

    /// What became of a call at its worker.
    fn settle(&self, call: CallNumber, outcome: Outcome<'_>) -> Result<(), Lost> {
        let mut state = self.state();
        if let Outcome::Failed(Error::Lost { may_have_run, why }) = outcome {
            state.lose(call, may_have_run, why, self.now());
            self.hear(&mut state, Event::Lost { call, may_have_run });
            state.forget_if_over(call);
            return Ok(());
        }
        let outcome = match outcome {
            Outcome::Failed(Error::DescriptorsLost { may_have_run }) => {
                let may_have_run = may_have_run || state.core.begun_before(call);
                Outcome::Failed(Error::DescriptorsLost { may_have_run })
            }
            other => other,
        };
        let well = matches!(outcome, Outcome::Reply { .. });
        let completion = state.calls.remove(&call).and_then(|record| record.completion);
        // The next call is on its way before this one's caller hears.
        self.hear(&mut state, Event::Answered { call, well });
        drop(state);
        completion.map_or(Ok(()), |completion| completion(outcome))
    }
}

impl State {
    /// There will be no reply.
    fn end(&mut self, call: CallNumber, why: NoReply) {
        let no_worker = |state: &State, may_have_run| state.no_worker(may_have_run);
        let Some(record) = self.calls.get_mut(&call) else { return };
        let lost = record.lost.take();
        let completion = record.completion.take();
        let error = match (why, lost) {
            (NoReply::TimedOut { may_have_run }, _) => Error::TimedOut { may_have_run },
            (NoReply::Lost { may_have_run }, Some(why)) => Error::Lost { may_have_run, why },
            (NoReply::Lost { may_have_run } | NoReply::NoWorker { may_have_run }, _) => no_worker(self, may_have_run),
        };
        if let Some(completion) = completion {
            self.orders.push_back(Order::End(completion, Box::new(error)));
        }
        self.forget_if_over(call);
    }

    fn no_worker(&self, may_have_run: bool) -> Error {
        let unknown = || Lost::Protocol { words: "nothing is known of it".to_owned() };
        Error::NoWorker { may_have_run, why: self.last_failure.clone().unwrap_or_else(unknown) }
    }

    /// A worker's conversation has ended before it answered the call.
    fn lose(&mut self, call: CallNumber, may_have_run: bool, why: Lost, now: Duration) {
        let Some(record) = self.calls.get_mut(&call) else { return };
        record.lost = Some(why);
        let Some(Sent { worker, at, .. }) = record.sent.take() else { return };
        if let Some(member) = self.members.get_mut(&worker) {
            let since = now.saturating_sub(at);
            member.in_hand.push((call, InHand { label: record.label.clone(), since, may_have_run }));
        }
    }

    /// The core has struck it out; it may still stand here.
    fn forget_if_over(&mut self, call: CallNumber) {
        if !self.core.knows(call) {
            self.calls.remove(&call);
        }
    }
}

impl Member {
    /// What is told of its end.
    pub(super) fn into_exit(mut self, number: WorkerNumber, cause: Cause) -> Option<WorkerExit> {
        self.in_hand.sort_by_key(|(call, _)| *call);
        let in_hand = self.in_hand.into_iter().map(|(_, in_hand)| in_hand).collect();
        let worker = Worker { number, pid: self.pid.get().copied() };
        Some(WorkerExit { worker, exit: self.exit?, cause, in_hand })
    }
}
