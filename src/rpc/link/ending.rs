//! The end of a conversation, however it comes.

use std::os::fd::AsFd;
use std::sync::{Arc, PoisonError};
use std::time::Instant;

use nix::libc;

use super::delivering::{delivering, wake_all};
use super::{Link, Outcome, Stake};
use crate::proc::hub::call_back;
use crate::proc::{self, Exit};
use crate::rpc::conversation::Ended;
use crate::rpc::error::{Error, Lost};
use crate::sys::seqpacket;

impl Link {
    /// The end of all: every call ends, each once, in the order in which they were made.
    pub(in crate::rpc) fn end(&self, why: Lost) {
        let mut state = self.state();
        if state.end.is_some() {
            return;
        }
        let calls = state.books.end();
        let lost_none = calls.is_empty();
        state.end = Some(why.clone());
        state.outbox.clear();
        let on_error = state.on_error.take();
        let is_error = !(lost_none && state.finished_well());
        let on_end = state.on_end.take();
        state.on_ready = None;
        let keep = state.keep.take();
        let gone = state.exit.is_some();
        self.update_watch(&mut state);
        drop(state);
        // Before anything is waited for: a callback may be what holds up the telling.
        seqpacket::shut(self.socket.as_fd());
        if !gone && self.stake == Stake::Whole {
            self.kill();
        }
        // What is overdue has ended before.
        drop(self.begin_delivery(self.state()));
        delivering(|| {
            for Ended { token, may_have_run } in calls {
                // An outcome that is no reply has nothing to decode.
                let _ = token(Outcome::Failed(Error::Lost { may_have_run, why: why.clone() }));
            }
            if let Some(on_error) = on_error {
                call_back(|| {
                    if is_error {
                        on_error(why.clone())
                    }
                });
            }
            if let Some(on_end) = on_end {
                on_end(why);
            }
            // There will be no further event. A handler that holds its client would keep both for good.
            let on_event = self.on_event.lock().unwrap_or_else(PoisonError::into_inner).take();
            call_back(|| drop(on_event));
        });
        let mut state = self.end_delivery(self.state());
        state.end_told = true;
        let parked = std::mem::take(&mut state.parked);
        let for_room = state.take_for_room();
        drop(state);
        wake_all(parked.into_iter().chain(for_room));
        drop(keep);
    }

    /// What runs in the process is not to be trusted any more.
    fn kill(&self) {
        let running = Arc::clone(&self.running);
        // On the hub's thread its birth must not be waited for.
        self.running.on_birth(move |_| {
            // It may have ended by itself, which is as good.
            let _ = running.kill(libc::SIGKILL);
        });
    }

    /// The process has ended, as is told on the hub of processes: whatever calls a callback is left to that of calls.
    pub(super) fn see_exit(&self, exit: Result<Exit, proc::Error>) {
        let mut state = self.state();
        state.exit = Some(exit);
        if state.eof.is_some() {
            self.remind(&state, Instant::now());
            // Those who wait need not wait for the hub.
            let parked = std::mem::take(&mut state.parked);
            drop(state);
            return wake_all(parked);
        }
        state.hub_rests = false;
        self.update_watch(&mut state);
        drop(state);
        // Its children may still hold the socket. What it has said itself is there, and is received before the end.
        seqpacket::shut(self.socket.as_fd());
    }
}
