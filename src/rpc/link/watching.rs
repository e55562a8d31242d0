//! What the hub does for a link, and when.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::epoll::EpollFlags;

use super::delivering::wake_all;
use super::{Link, Stake, State};
use crate::proc::hub::{Source, Token};
use crate::rpc::error::Lost;

/// So long after the last waiting caller has gone, the hub takes the receiving up again if nothing else is outstanding.
const LINGER: Duration = Duration::from_millis(2);

/// A process that has closed its socket ends; so long is waited for that, because the news of its end comes another way and
/// may be late on a busy machine.
pub(super) const END_WITHIN: Duration = Duration::from_secs(10);

impl Source for Link {
    fn ready(self: Arc<Self>, _: Token, events: EpollFlags) {
        let mut state = self.state();
        if events.is_empty() {
            if let Some(why) = self.look_after(&mut state) {
                drop(state);
                return self.end(why);
            }
            state = self.end_overdue(state);
        }
        if events.contains(EpollFlags::EPOLLOUT) {
            state.no_room = false;
        }
        let mut state = self.flush(state);
        let arrived = events.intersects(EpollFlags::EPOLLIN | EpollFlags::EPOLLHUP | EpollFlags::EPOLLERR);
        if arrived && !state.receiving && state.eof.is_none() && state.end.is_none() {
            state.receiving = true;
            drop(state);
            self.receive_some();
            state = self.state();
            state.receiving = false;
        }
        self.update_watch(&mut state);
        let parked = std::mem::take(&mut state.parked);
        drop(state);
        wake_all(parked);
    }
}

impl Link {
    /// What was to be done by now. If the conversation is over, it comes back why.
    fn look_after(&self, state: &mut State) -> Option<Lost> {
        let now = Instant::now();
        state.flush_asked = false;
        if state.send_after.is_some_and(|at| at <= now) {
            state.send_after = None;
        }
        if state.look_at.is_some_and(|at| at <= now) {
            state.look_at = None;
            if std::mem::take(&mut state.called_since) {
                self.look_later(state);
            } else if !state.receiving {
                state.hub_rests = false;
            }
        }
        let closed = state.eof?;
        if state.exit.is_some() {
            return state.lost_by_exit();
        }
        (closed + END_WITHIN <= now).then(|| match self.stake {
            Stake::Whole => Lost::Protocol { words: "it closed its socket and did not end".to_owned() },
            Stake::Part => Lost::Left,
        })
    }

    /// Somebody waits for what comes in, and not by receiving it.
    pub(super) fn let_hub_receive(&self, state: &mut State) {
        if !state.receiving {
            state.hub_rests = false;
            self.update_watch(state);
        }
    }

    pub(super) fn look_later(&self, state: &mut State) {
        if state.look_at.is_none() {
            let at = Instant::now() + LINGER;
            state.look_at = Some(at);
            self.remind(state, at);
        }
    }

    /// Watches for what is wanted of the hub at this moment.
    pub(super) fn update_watch(&self, state: &mut State) {
        let Some((token, before)) = state.watch else { return };
        if state.end.is_some() {
            self.hub.forget(token, self.socket.as_fd());
            state.watch = None;
            return;
        }
        let mut events = EpollFlags::empty();
        if !state.hub_rests && state.eof.is_none() {
            events |= EpollFlags::EPOLLIN;
        }
        if state.no_room && !state.outbox.is_empty() {
            events |= EpollFlags::EPOLLOUT;
        }
        if events.is_empty() {
            // A hangup is told even to who asks for nothing: this once, and not over and over.
            events = EpollFlags::EPOLLONESHOT;
        }
        if events != before && self.hub.change(token, self.socket.as_fd(), events).is_ok() {
            state.watch = Some((token, events));
        }
    }

    /// Has the hub look after this link then.
    pub(super) fn remind(&self, state: &State, at: Instant) {
        if let Some((token, _)) = state.watch {
            // The hub's own eventfd always takes a further 1.
            let _ = self.hub.remind(token, at);
        }
    }
}
