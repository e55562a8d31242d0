//! Callbacks: one at a time, and those of calls that nobody waits for since their deadline.

use std::cell::Cell;
use std::sync::{MutexGuard, PoisonError};
use std::task::Waker;
use std::time::Instant;

use super::{Link, Outcome, State};
use crate::proc::hub::call_back;
use crate::rpc::contract::Encoded;
use crate::rpc::conversation::Ended;
use crate::rpc::error::Error;
use crate::rpc::wire::Kind;

thread_local! {
    static IN_CALLBACK: Cell<bool> = const { Cell::new(false) };
}

/// Whether this thread is inside a callback, where it must not wait.
pub(in crate::rpc) fn in_callback() -> bool {
    IN_CALLBACK.get()
}

/// Wakes those who wait. A waker is the user's code as a callback is.
pub(in crate::rpc) fn wake_all(waiting: impl IntoIterator<Item = Waker>) {
    waiting.into_iter().for_each(|waker| call_back(|| waker.wake()));
}

/// Runs what calls callbacks.
pub(in crate::rpc) fn delivering<T>(deliver: impl FnOnce() -> T) -> T {
    let outer = IN_CALLBACK.replace(true);
    let delivered = deliver();
    IN_CALLBACK.set(outer);
    delivered
}

impl Link {
    /// Takes the right to deliver. The hub, which must not wait, finds it free: a caller has it only while he receives.
    pub(super) fn begin_delivery<'a>(&'a self, mut state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        while state.delivering {
            state.delivery_awaited = true;
            state = self.delivered.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.delivering = true;
        state
    }

    /// Gives the right to deliver back; what has become overdue meanwhile is told before.
    pub(super) fn end_delivery<'a>(&'a self, mut state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        while !state.overdue.is_empty() {
            let overdue = std::mem::take(&mut state.overdue);
            drop(state);
            delivering(|| {
                for Ended { token, may_have_run } in overdue {
                    // An outcome that is no reply has nothing to decode.
                    let _ = token(Outcome::Failed(Error::TimedOut { may_have_run }));
                }
            });
            state = self.state();
        }
        state.delivering = false;
        if std::mem::take(&mut state.delivery_awaited) {
            self.delivered.notify_all();
        }
        state
    }

    /// The hub looks at the deadlines when the earliest has come.
    pub(super) fn watch_deadlines(&self, state: &mut State) {
        let next = state.books.next_deadline().into_iter().chain(state.room_due).min();
        if let Some(next) = next
            && state.reminded_for.is_none_or(|at| next < at)
        {
            state.reminded_for = Some(next);
            self.remind(state, next);
        }
    }

    /// Ends the calls whose deadline has come; the process is told so.
    pub(super) fn end_overdue<'a>(&'a self, mut state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        let now = Instant::now();
        if state.reminded_for.is_none_or(|at| now < at) {
            return state;
        }
        state.reminded_for = None;
        let mut for_room = Vec::new();
        if state.room_due.is_some_and(|at| at <= now) {
            for_room = state.take_for_room();
        }
        while let Some((id, ended)) = state.books.take_overdue(now) {
            state.outbox.push(Kind::Cancel, id, Encoded::default(), 0);
            state.overdue.push(ended);
        }
        if !state.overdue.is_empty() {
            for_room.append(&mut state.take_for_room());
        }
        self.watch_deadlines(&mut state);
        // The process hears of it before the caller does, who may be slow.
        state = self.flush(state);
        if !state.overdue.is_empty() && !state.delivering {
            state.delivering = true;
            state = self.end_delivery(state);
        }
        if !for_room.is_empty() {
            drop(state);
            wake_all(for_room);
            state = self.state();
        }
        state
    }
}
