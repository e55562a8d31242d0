//! Replies that somebody waits for.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use super::client::read;
use super::contract::{Encoded, Wording};
use super::error::Error;
use super::link::{Completion, Haste, Link, Refused, wake_all};
use super::wire::CallId;

/// Where an outcome is left for who waits for it.
pub(super) struct Slot<Reply> {
    state: Mutex<SlotState<Reply>>,
}

struct SlotState<Reply> {
    outcome: Option<Result<Reply, Error>>,
    waker: Waker,
}

impl<Reply> Slot<Reply> {
    pub(super) fn new(waker: Waker) -> Arc<Slot<Reply>> {
        Arc::new(Slot { state: Mutex::new(SlotState { outcome: None, waker }) })
    }

    fn state(&self) -> MutexGuard<'_, SlotState<Reply>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn take(&self) -> Option<Result<Reply, Error>> {
        self.state().outcome.take()
    }

    pub(super) fn take_or_wake(&self, waker: &Waker) -> Option<Result<Reply, Error>> {
        let mut state = self.state();
        let outcome = state.outcome.take();
        if outcome.is_none() {
            state.waker.clone_from(waker);
        }
        outcome
    }
}

impl<Reply: Send + 'static> Slot<Reply> {
    pub(super) fn completion(self: &Arc<Self>, reply: Wording<Reply>) -> Completion {
        let slot = Arc::clone(self);
        Box::new(move |outcome| {
            let (outcome, codec) = read(reply, outcome);
            let mut state = slot.state();
            state.outcome = Some(outcome);
            // Who is woken finds the outcome, and needs to be woken no more.
            let waker = std::mem::replace(&mut state.waker, Waker::noop().clone());
            drop(state);
            wake_all([waker]);
            codec
        })
    }
}

/// The reply to come of a [`call_async`](super::Client::call_async). It is bound to no runtime: the process's replies
/// wake it from a thread of this crate.
///
/// Dropping it cancels the call: it may never run, and its handler is told if it does.
#[must_use = "a future that is dropped cancels its call"]
pub struct CallFuture<Reply> {
    link: Arc<Link>,
    slot: Arc<Slot<Reply>>,
    stage: Stage,
    deadline: Option<Instant>,
}

enum Stage {
    /// There was no room so far.
    Waiting(Completion, Encoded),
    Begun(CallId),
    Failed(Error),
    Done,
}

impl<Reply: Send + 'static> CallFuture<Reply> {
    pub(super) fn new(
        link: &Arc<Link>,
        message: Result<Encoded, Error>,
        reply: Wording<Reply>,
        deadline: Option<Instant>,
    ) -> CallFuture<Reply> {
        let slot = Slot::new(Waker::noop().clone());
        let stage = match message {
            Ok(message) => Stage::begin(link, slot.completion(reply), message, deadline),
            Err(error) => Stage::Failed(error),
        };
        CallFuture { link: Arc::clone(link), slot, stage, deadline }
    }
}

impl Stage {
    fn begin(link: &Link, completion: Completion, message: Encoded, deadline: Option<Instant>) -> Stage {
        match link.begin(completion, message, Haste::Gather, deadline) {
            Ok(id) => Stage::Begun(id),
            Err(Refused::Full(completion, message)) => Stage::Waiting(completion, message),
            Err(Refused::Never(error, _)) => Stage::Failed(*error),
        }
    }
}

impl<Reply> Future for CallFuture<Reply> {
    type Output = Result<Reply, Error>;

    /// # Panics
    /// If it has given its reply before.
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        loop {
            match std::mem::replace(&mut this.stage, Stage::Done) {
                Stage::Waiting(..) if this.deadline.is_some_and(|deadline| deadline <= Instant::now()) => {
                    return Poll::Ready(Err(Error::TimedOut { may_have_run: false }));
                }
                Stage::Waiting(completion, message) => {
                    this.stage = Stage::begin(&this.link, completion, message, this.deadline);
                    if matches!(this.stage, Stage::Waiting(..))
                        && this.link.wait_for_room(cx.waker().clone(), this.deadline)
                    {
                        return Poll::Pending;
                    }
                }
                Stage::Begun(id) => {
                    if let Some(outcome) = this.slot.take_or_wake(cx.waker()) {
                        return Poll::Ready(outcome);
                    }
                    this.stage = Stage::Begun(id);
                    return Poll::Pending;
                }
                Stage::Failed(error) => return Poll::Ready(Err(error)),
                Stage::Done => panic!("a future was polled after it had given its reply"),
            }
        }
    }
}

impl<Reply> Drop for CallFuture<Reply> {
    fn drop(&mut self) {
        if let Stage::Begun(id) = self.stage {
            // None: it has ended before.
            let _ = self.link.cancel(id);
        }
    }
}

impl<Reply> fmt::Debug for CallFuture<Reply> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let stage = match &self.stage {
            Stage::Waiting(..) => "waiting for room",
            Stage::Begun(_) => "begun",
            Stage::Failed(_) => "failed",
            Stage::Done => "done",
        };
        f.debug_struct("CallFuture").field("stage", &stage).finish_non_exhaustive()
    }
}
