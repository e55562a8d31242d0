//! Replies of a pool that somebody waits for.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use super::core::CallNumber;
use super::shell::{Begun, Shared};
use crate::rpc::error::Error;
use crate::rpc::link::waiting::park;
use crate::rpc::pending::Slot;

/// The reply to come of a [`Pool::call_async`](super::Pool::call_async). It is bound to no runtime.
///
/// Dropping it gives the call up: it does not run if it has not begun, and its handler is told if it has.
#[must_use = "a future that is dropped gives its call up"]
pub struct PoolFuture<Reply> {
    shared: Arc<Shared>,
    slot: Arc<Slot<Reply>>,
    stage: Stage,
}

enum Stage {
    Begun(CallNumber),
    Failed(Error),
    Done,
}

impl<Reply> PoolFuture<Reply> {
    pub(super) fn new(shared: &Arc<Shared>, slot: Arc<Slot<Reply>>, begun: Result<Begun, Error>) -> PoolFuture<Reply> {
        let stage = match begun {
            Ok(Begun { number, .. }) => Stage::Begun(number),
            Err(error) => Stage::Failed(error),
        };
        PoolFuture { shared: Arc::clone(shared), slot, stage }
    }
}

impl<Reply> Future for PoolFuture<Reply> {
    type Output = Result<Reply, Error>;

    /// # Panics
    /// If it has given its reply before.
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        match std::mem::replace(&mut this.stage, Stage::Done) {
            Stage::Begun(number) => match this.slot.take_or_wake(cx.waker()) {
                Some(outcome) => Poll::Ready(outcome),
                None => {
                    this.stage = Stage::Begun(number);
                    Poll::Pending
                }
            },
            Stage::Failed(error) => Poll::Ready(Err(error)),
            Stage::Done => panic!("a future was polled after it had given its reply"),
        }
    }
}

impl<Reply> Drop for PoolFuture<Reply> {
    fn drop(&mut self) {
        if let Stage::Begun(number) = self.stage {
            // None: it has ended before.
            let _ = self.shared.give_up(number);
        }
    }
}

impl<Reply> fmt::Debug for PoolFuture<Reply> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let stage = match &self.stage {
            Stage::Begun(_) => "begun",
            Stage::Failed(_) => "failed",
            Stage::Done => "done",
        };
        f.debug_struct("PoolFuture").field("stage", &stage).finish_non_exhaustive()
    }
}

/// Sleeps until there is a reply; on the way it is received here, if a worker has the call already.
pub(super) fn wait<Reply>(
    shared: &Shared,
    slot: &Slot<Reply>,
    begun: &Begun,
    deadline: Option<Instant>,
) -> Result<Reply, Error> {
    let found = match &begun.link {
        Some(link) => link.wait_until(deadline, || slot.take()),
        None => loop {
            let found = slot.take();
            if found.is_some() || !park(deadline) {
                break found;
            }
        },
    };
    found.unwrap_or_else(|| match shared.lose_patience(begun.number) {
        Some(may_have_run) => Err(Error::TimedOut { may_have_run }),
        // It has ended at the last moment, and somebody is about to say so.
        None => loop {
            if let Some(outcome) = slot.take() {
                break outcome;
            }
            park(None);
        },
    })
}
