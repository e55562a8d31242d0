//! Callers who wait: they receive themselves, unless somebody else does.

use std::cell::LazyCell;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::task::{Wake, Waker};
use std::thread::{self, Thread};
use std::time::Instant;

use nix::poll::{PollFd, PollFlags, poll};

use super::Link;
use super::delivering::wake_all;
use super::receiving::Received;
use crate::sys::clock::poll_timeout;
use crate::sys::seqpacket;

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

thread_local! {
    static WAKER: LazyCell<Waker> = LazyCell::new(|| Waker::from(Arc::new(Unpark(thread::current()))));
}

/// What wakes this thread from [`park`].
pub(in crate::rpc) fn thread_waker() -> Waker {
    WAKER.with(|waker| Waker::clone(waker))
}

/// Sleeps until this thread is woken, or the deadline, or for no reason; false once the deadline has passed.
pub(in crate::rpc) fn park(deadline: Option<Instant>) -> bool {
    match deadline {
        None => thread::park(),
        Some(deadline) => {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            thread::park_timeout(left);
        }
    }
    true
}

impl Link {
    /// Waits until there is something found, or the deadline. Whatever is found comes by a delivery, or with the end.
    pub(in crate::rpc) fn wait_until<T>(
        &self,
        deadline: Option<Instant>,
        mut find: impl FnMut() -> Option<T>,
    ) -> Option<T> {
        loop {
            let mut state = self.state();
            if state.end.is_none()
                && state.eof.is_some()
                && let Some(why) = state.lost_by_exit()
            {
                drop(state);
                self.end(why);
            } else if state.receiving || state.eof.is_some() || state.end.is_some() {
                state.parked.push(thread_waker());
                drop(state);
                // It may have come just before.
                let found = find();
                if found.is_some() || !park(deadline) {
                    return found.or_else(find);
                }
            } else {
                state.receiving = true;
                state.hub_rests = true;
                state.called_since = true;
                self.update_watch(&mut state);
                drop(state);
                let found = self.receive_until(deadline, &mut find);
                self.leave();
                if found.is_some() || deadline.is_some_and(|deadline| deadline <= Instant::now()) {
                    return found;
                }
            }
        }
    }

    /// Receives and delivers until there is something found, the deadline, or the end of what is to be received.
    fn receive_until<T>(&self, deadline: Option<Instant>, find: &mut impl FnMut() -> Option<T>) -> Option<T> {
        loop {
            // Before the first time too: nobody else delivers from now on.
            if let Some(found) = find() {
                return Some(found);
            }
            let received = match deadline {
                None => self.receive_one(seqpacket::receive_waiting),
                Some(deadline) if self.is_readable_by(deadline) => self.receive_one(seqpacket::receive),
                Some(_) => return None,
            };
            if received == Received::Over {
                return find();
            }
        }
    }

    fn is_readable_by(&self, deadline: Instant) -> bool {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match poll(&mut [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)], poll_timeout(left)) {
                // A longer time than poll(2) can wait for may be left.
                Ok(0) if left.is_zero() => return false,
                Ok(0) | Err(nix::Error::EINTR) => {}
                // What is wrong with the socket is told by the receiving.
                Ok(_) | Err(_) => return true,
            }
        }
    }

    /// Leaves the receiving to others: to those who wait, or to the hub.
    fn leave(&self) {
        let mut state = self.state();
        state.receiving = false;
        if state.is_idle() && !state.closing && state.end.is_none() {
            self.look_later(&mut state);
        } else {
            self.let_hub_receive(&mut state);
        }
        let parked = std::mem::take(&mut state.parked);
        drop(state);
        wake_all(parked);
    }
}
