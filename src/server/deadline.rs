//! The deadline of the request in hand: soft, it interrupts; hard, it kills the worker.

use std::cell::OnceCell;
use std::time::Duration;

use nix::errno::Errno;

use super::in_hand::InHand;
use super::scoreboard::Record;
use super::worker_config::WorkerConfig;
use crate::sys::alarm::Alarm;
use crate::sys::clock::Monotonic;

/// Gives each request of a worker its deadline, where requests have one, and moves it.
#[derive(Debug)]
pub(super) struct Deadlines {
    timeout: Option<Duration>,
    kill_after: Duration,
    /// Made when the first deadline is set: a worker whose requests have none needs no timer.
    alarm: OnceCell<Alarm>,
    in_hand: &'static InHand,
    /// Where the master sees by when the worker should have ended itself.
    record: Record,
}

/// A request that has begun to come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Begun {
    /// When its first byte came.
    pub(super) since: Monotonic,
    /// When it must have ended; none: whenever it likes.
    pub(super) due: Option<Monotonic>,
}

impl Deadlines {
    /// For the calling thread; in a worker, after the fork.
    pub(super) fn new(config: &WorkerConfig, in_hand: &'static InHand, record: Record) -> Result<Self, Errno> {
        let WorkerConfig { request_timeout: timeout, request_kill_after: kill_after, .. } = *config;
        let deadlines = Self { timeout, kill_after, alarm: OnceCell::new(), in_hand, record };
        if timeout.is_some() {
            deadlines.alarm()?;
        }
        Ok(deadlines)
    }

    /// A request whose first byte came at `since`.
    pub(super) fn request(&self, since: Monotonic) -> Begun {
        Begun { since, due: self.timeout.map(|timeout| since.after(timeout)) }
    }

    /// That request comes in hand, or comes in hand again. The grace before the kill is the service's
    /// even when it gets the request late, to say "timed out" to the client.
    pub(super) fn begin(&self, request: Begun, now: Monotonic) {
        self.in_hand.set_due(request.due);
        if let (Some(alarm), Some(due)) = (self.alarm.get(), request.due) {
            self.set(alarm, due, now);
        }
    }

    /// The request in hand is due at another moment.
    ///
    /// # Errors
    /// Those of making the timer, if no deadline was ever set before.
    pub(super) fn move_to(&self, due: Monotonic) -> Result<(), Errno> {
        self.in_hand.set_due(Some(due));
        self.set(self.alarm()?, due, Monotonic::now());
        Ok(())
    }

    /// When the request in hand is due.
    pub(super) fn due(&self) -> Option<Monotonic> {
        self.in_hand.due()
    }

    /// What is no request comes in hand at `now`, with as much time as a request has: cleanups, a call of the master's. What
    /// is left of the alarm of the request before does not reach it.
    pub(super) fn begin_beside(&self, now: Monotonic) {
        if let Some(alarm) = self.alarm.get() {
            let soft = now.after(self.timeout.unwrap_or(Duration::MAX));
            let hard = soft.after(self.kill_after);
            self.record.set_deadlines(soft, hard);
            alarm.begin_anew(soft, hard);
        }
    }

    /// No request is in hand.
    pub(super) fn end(&self) {
        if let Some(alarm) = self.alarm.get() {
            alarm.end();
        }
    }

    fn set(&self, alarm: &Alarm, due: Monotonic, now: Monotonic) {
        let hard = due.max(now).after(self.kill_after);
        self.record.set_deadlines(due, hard);
        alarm.begin(due, hard);
    }

    fn alarm(&self) -> Result<&Alarm, Errno> {
        if let Some(alarm) = self.alarm.get() {
            return Ok(alarm);
        }
        let alarm = Alarm::install()?;
        Ok(self.alarm.get_or_init(|| alarm))
    }
}

#[cfg(test)]
mod tests;
