//! How a server keeps its fleet of workers: what it does when they fail.

use std::num::NonZeroU32;
use std::time::Duration;

use super::config::Workers;

/// How many workers may fail within a window before the server is degraded.
///
/// A worker has failed if it was never ready, or died within a second of its readiness without having answered a
/// request. A degraded server keeps the workers that are ready, and tries one further worker at a time, after delays that
/// grow from one to 30 seconds; as soon as one of these serves well, or a reload brings a new generation, it is as before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RestartBudget {
    /// Six, and two for each worker, within a minute: a slot alone, whose own delays grow, spends it only where there
    /// are few others.
    #[default]
    Usual,
    /// So many within so long a time.
    Exactly {
        /// So many make the server degraded.
        failures: NonZeroU32,
        /// They count for so long; less than 1 ms is taken for 1 ms.
        window: Duration,
    },
    /// However many fail, each slot waits for its own growing delay alone.
    Unlimited,
}

impl RestartBudget {
    /// In numbers, for so many workers: failures and window; none without a limit.
    pub(super) fn resolve(self, workers: Workers) -> Option<(u32, Duration)> {
        match self {
            Self::Usual => Some((6 + 2 * workers.get(), Duration::from_secs(60))),
            Self::Exactly { failures, window } => Some((failures.get(), window.max(Duration::from_millis(1)))),
            Self::Unlimited => None,
        }
    }
}
