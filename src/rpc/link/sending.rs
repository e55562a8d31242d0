//! From the outbox into the socket.

use std::os::fd::AsFd;
use std::sync::MutexGuard;
use std::time::Instant;

use super::delivering::wake_all;
use super::{Haste, Link, SENT_SINGLY, State};
use crate::rpc::wire::Sent;
use crate::sys::seqpacket::{self, ASK_AGAIN};

impl Link {
    /// Sends what was just pushed: at once, or, where calls come faster than replies, with others.
    pub(super) fn send_soon(&self, mut state: MutexGuard<'_, State>, haste: Haste) {
        if haste == Haste::Gather {
            self.let_hub_receive(&mut state);
            if state.sent_singly >= SENT_SINGLY && !state.outbox.has_full_batch() {
                let nobody_sends = !state.sending && !state.no_room && !state.flush_asked;
                if nobody_sends {
                    state.flush_asked = true;
                    self.remind(&state, Instant::now());
                }
                return self.update_watch(&mut state);
            }
            state.sent_singly += 1;
        }
        let mut state = self.flush(state);
        self.update_watch(&mut state);
    }

    /// Sends until all is sent or the socket is full. Somebody else who is at it goes on with what is here too.
    pub(super) fn flush<'a>(&'a self, mut state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        if state.sending || state.no_room || state.unsendable || state.send_after.is_some() {
            return state;
        }
        state.sending = true;
        let was_full = state.outbox.weight() >= self.limits.queued;
        while let Some(mut batch) = state.outbox.pop() {
            // If all ends meanwhile, these calls may have reached the process.
            let before = state.books.mark_sent(batch.last_call);
            drop(state);
            let sent = batch.send(self.socket.as_fd());
            state = self.state();
            match sent {
                Sent::Whole => continue,
                Sent::NoRoom => state.no_room = true,
                Sent::Later => {
                    let at = Instant::now() + ASK_AGAIN;
                    state.send_after = Some(at);
                    self.remind(&state, at);
                }
                Sent::Never => state.unsendable = true,
            }
            state.books.unmark_sent(before);
            state.outbox.unpop(batch);
            break;
        }
        state.sending = false;
        if state.unsendable || state.end.is_some() {
            // What was not sent never will be; what the process has said is received to its end.
            state.outbox.clear();
            seqpacket::shut(self.socket.as_fd());
        } else if state.closing && state.is_idle() && state.outbox.is_empty() && !state.told_closing {
            // Not before: a call that is still outstanding may yet be cancelled.
            state.told_closing = true;
            seqpacket::shut_write(self.socket.as_fd());
        }
        if was_full && state.outbox.weight() < self.limits.queued {
            let for_room = state.take_for_room();
            // A waker is the user's code.
            drop(state);
            wake_all(for_room);
            state = self.state();
        }
        state
    }
}
