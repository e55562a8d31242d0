//! The numbers of the policy: how many, how long, how often.

use std::time::Duration;

use super::recycling::Limits;
use super::scaling::Scaling;

pub(crate) use crate::machine::Backoff;

/// What the operator may choose. Every duration but the drain delay is longer than zero.
#[derive(Debug, Clone)]
pub(crate) struct Policy {
    /// Workers at the start, at least 1.
    pub(crate) workers: u32,
    /// The most that [`Signal::More`](super::Signal::More) can reach.
    pub(crate) max_workers: u32,
    /// How many workers beyond the target a roll may hold at one time, at least 1.
    pub(crate) max_surge: u32,
    /// From the start of a template to the end of its preload.
    pub(crate) preload_timeout: Duration,
    /// From asking for a worker to its readiness.
    pub(crate) start_timeout: Duration,
    /// From the end of readiness to the gate; it may be zero.
    pub(crate) drain_delay: Duration,
    /// From one look at the queues to the next, at the least: it grows with the time that they take.
    pub(crate) look_interval: Duration,
    /// For so long after the gate a handshake under way is waited for: a SYN-ACK that was lost is sent again after a second.
    pub(crate) handshake_timeout: Duration,
    /// From asking a worker to drain to killing it; at a stop, from the gate.
    pub(crate) graceful_timeout: Duration,
    /// The same during a quick stop.
    pub(crate) quick_timeout: Duration,
    /// From the end of a worker, as far as it can be seen, to its template's word that it is reaped.
    pub(crate) reap_timeout: Duration,
    /// From the start of a new master to its word that it serves.
    pub(crate) upgrade_timeout: Duration,
    /// A life of this length after readiness counts as having served well.
    pub(crate) served_well_after: Duration,
    /// The delay before the successor of what did not serve well.
    pub(crate) backoff: Backoff,
    /// How the number of workers is found.
    pub(crate) scaling: Scaling,
    /// How often workers are looked at for that.
    pub(crate) scale_every: Duration,
    /// How many workers more there may be after a second.
    pub(crate) growth_per_second: u32,
    /// For how long too many must have been idle before one of them leaves.
    pub(crate) shrink_after: Duration,
    /// When a worker is to be followed by another.
    pub(crate) limits: Limits,
    /// How often workers are looked at, where some limit needs it.
    pub(crate) sample_every: Duration,
    /// How many may not serve well before the server is degraded; none: however many.
    pub(crate) budget: Option<Budget>,
    /// The delay before a worker is tried in a shortage.
    pub(crate) shortage_backoff: Backoff,
    /// The delay before a worker is tried while the server is degraded.
    pub(crate) probe_backoff: Backoff,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            workers: 4,
            max_workers: 1024,
            max_surge: 1,
            preload_timeout: Duration::from_secs(120),
            start_timeout: Duration::from_secs(30),
            drain_delay: Duration::ZERO,
            look_interval: Duration::from_millis(10),
            handshake_timeout: Duration::from_millis(1500),
            graceful_timeout: Duration::from_secs(30),
            quick_timeout: Duration::from_secs(1),
            reap_timeout: Duration::from_secs(2),
            upgrade_timeout: Duration::from_secs(180),
            served_well_after: Duration::from_secs(1),
            backoff: Backoff::default(),
            scaling: Scaling::Static,
            scale_every: Duration::from_millis(100),
            growth_per_second: 32,
            shrink_after: Duration::from_secs(5),
            limits: Limits::default(),
            sample_every: Duration::from_secs(1),
            budget: Some(Budget { restarts: 14, window: Duration::from_secs(60) }),
            shortage_backoff: Backoff { first: Duration::from_millis(200), ..Backoff::default() },
            probe_backoff: Backoff { first: Duration::from_secs(1), ..Backoff::default() },
        }
    }
}

/// So many workers that do not serve well, within so long a window: more is a fleet that is broken, not a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Budget {
    /// At least 1.
    pub(crate) restarts: u32,
    pub(crate) window: Duration,
}
