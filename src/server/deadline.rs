//! The deadline of the request in hand: soft, it interrupts; hard, it kills the worker.

use std::time::Duration;

use nix::errno::Errno;

use super::worker_config::WorkerConfig;
use crate::sys::alarm::Alarm;
use crate::sys::clock::Monotonic;

/// Gives each request of a worker its deadline, if requests have one.
#[derive(Debug)]
pub(super) struct Deadlines(Option<Limits>);

#[derive(Debug)]
struct Limits {
    timeout: Duration,
    kill_after: Duration,
    alarm: Alarm,
}

impl Deadlines {
    /// For the calling thread; in a worker, after the fork.
    pub(super) fn new(config: &WorkerConfig) -> Result<Self, Errno> {
        let Some(timeout) = config.request_timeout else {
            return Ok(Self(None));
        };
        let (kill_after, alarm) = (config.request_kill_after, Alarm::install()?);
        Ok(Self(Some(Limits { timeout, kill_after, alarm })))
    }

    /// The deadline of a request whose first byte came at `since`.
    pub(super) fn of_request(&self, since: Monotonic) -> Option<Monotonic> {
        let limits = self.0.as_ref()?;
        Some(since.after(limits.timeout))
    }

    /// A request of that deadline comes in hand. The grace before the kill is the service's even
    /// when it gets the request late, to say "timed out" to the client.
    pub(super) fn begin(&self, deadline: Option<Monotonic>, now: Monotonic) {
        if let (Some(limits), Some(soft)) = (&self.0, deadline) {
            let hard = soft.max(now).after(limits.kill_after);
            limits.alarm.begin(soft, hard);
        }
    }

    /// The cleanups of a request come in hand at `now`, with as much time as a request has. What is left of the ended
    /// request's alarm does not reach them.
    pub(super) fn begin_cleanups(&self, now: Monotonic) {
        if let Some(limits) = &self.0 {
            let soft = now.after(limits.timeout);
            limits.alarm.begin_anew(soft, soft.after(limits.kill_after));
        }
    }

    /// No request is in hand.
    pub(super) fn end(&self) {
        if let Some(limits) = &self.0 {
            limits.alarm.end();
        }
    }
}

#[cfg(test)]
mod tests;
