//! The last stop, up to the moment at which the listeners close: nobody who has come is lost.
//!
//! Readiness goes first, and the workers serve on for the drain delay. Then the gate is shut, and the shell looks at the
//! queues again and again. Workers are kept while somebody waits; the listeners close after two looks in a row that
//! found nobody, since a connection on its way from one place to the other may be seen in neither.

use std::time::Duration;

use super::table::{Cue, Phase};
use super::timers::Timer;
use super::{Action, Notice, Signal, Supervisor};

/// So many looks in a row must have found nobody.
const EMPTY_LOOKS: u32 = 2;

/// The longest time between two looks. Where there is no netlink, each reads all connections of the machine.
const LONGEST_LOOK_INTERVAL: Duration = Duration::from_millis(250);

/// The time between two looks is this part of what has passed since the gate was shut, but for its bounds.
const PART_OF_THE_WAIT: u32 = 8;

/// How far the queues have been served since the gate was shut.
#[derive(Debug, Default)]
pub(super) struct Farewell {
    gate_shut_at: Duration,
    /// Somebody was in a queue when it was last looked at.
    pub(super) queued: bool,
    empty_looks: u32,
    /// When the workers must have left.
    pub(super) leave_by: Option<Duration>,
}

impl Supervisor {
    /// From now on no new client is to be sent here; those who come all the same are served.
    pub(super) fn announce_stop(&mut self) {
        let delay = self.policy.drain_delay;
        self.notice(Notice::Stopping { signal: Signal::Stop });
        self.notice(Notice::Unready { delay });
        self.timers.set(Timer::DrainDelay, self.now + delay);
    }

    pub(super) fn shut_gate(&mut self) {
        self.farewell.gate_shut_at = self.now;
        let leave_by = self.now + self.policy.graceful_timeout;
        self.farewell.leave_by = Some(leave_by);
        self.timers.set(Timer::QueueTime, leave_by);
        self.act(Action::ShutGate);
        self.act(Action::LookAtQueues);
        self.notice(Notice::GateShut);
    }

    /// What a look at the queues has found.
    pub(super) fn queues_seen(&mut self, queued: bool, half_open: bool) {
        if self.phase != Phase::Gated {
            return;
        }
        let patience_ends = self.farewell.gate_shut_at + self.policy.handshake_timeout;
        self.farewell.queued = queued;
        if queued || (half_open && self.now < patience_ends) {
            self.farewell.empty_looks = 0;
        } else {
            self.farewell.empty_looks += 1;
        }
        if self.farewell.empty_looks >= EMPTY_LOOKS {
            self.apply(Cue::QueuesServed, "");
        } else {
            let interval = self.look_interval();
            self.timers.set(Timer::Look, self.now + interval);
        }
    }

    /// The longer it takes, the less often it is looked; but whoever finds nobody looks again soon.
    fn look_interval(&self) -> Duration {
        let shortest = self.policy.look_interval;
        if self.farewell.empty_looks > 0 {
            return shortest;
        }
        let waited = self.now - self.farewell.gate_shut_at;
        (waited / PART_OF_THE_WAIT).min(LONGEST_LOOK_INTERVAL).max(shortest)
    }

    pub(super) fn close_served_listeners(&mut self) {
        let took = self.now - self.farewell.gate_shut_at;
        self.notice(Notice::QueuesServed { took });
        self.close_listeners();
    }

    pub(super) fn abandon_queues(&mut self) {
        self.notice(Notice::QueuesAbandoned { queued: self.farewell.queued });
        self.close_listeners();
    }

    pub(super) fn close_listeners(&mut self) {
        for timer in [Timer::DrainDelay, Timer::Look, Timer::QueueTime] {
            self.timers.cancel(timer);
        }
        self.act(Action::CloseListeners);
    }
}
