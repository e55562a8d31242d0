//! The supervisor's policy, from the configuration.

use std::num::NonZeroU64;
use std::time::Duration;

use crate::server::config::{Config, Workers};
use crate::server::fleet_config::{MemorySize, Scaling};
use crate::server::supervisor::{self, Budget, Limits, Policy};

/// The bounds of what is configured: shorter would be zero, and a longer one differs from none in nothing but overflows.
const SHORTEST: Duration = Duration::from_millis(1);
const LONGEST: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// What the configuration says, as the supervisor takes it.
pub(super) fn of(config: &Config) -> Policy {
    let budget = config.restart_budget.resolve(config.scaling.most(config.workers));
    Policy {
        scaling: scaling(config.scaling),
        limits: Limits {
            requests: config.max_requests.map(NonZeroU64::get),
            age: config.max_age.map(bounded),
            memory: config.max_memory.map(MemorySize::get),
        },
        budget: budget.map(|(restarts, window)| Budget { restarts, window: bounded(window) }),
        workers: config.workers.get(),
        max_workers: Workers::MAX,
        start_timeout: bounded(config.start_timeout),
        drain_delay: config.drain_delay.min(LONGEST),
        graceful_timeout: bounded(config.graceful_timeout),
        max_surge: config.max_surge.get(),
        upgrade_timeout: bounded(config.upgrade_timeout),
        ..Policy::default()
    }
}

/// A duration that is longer than zero, and can be added to any time that this process will see.
fn bounded(duration: Duration) -> Duration {
    duration.clamp(SHORTEST, LONGEST)
}

fn scaling(configured: Scaling) -> supervisor::Scaling {
    match configured {
        Scaling::Static => supervisor::Scaling::Static,
        Scaling::Dynamic(dynamic) => {
            let (spare_min, spare_max) = dynamic.spare().into_inner();
            supervisor::Scaling::Dynamic { min: dynamic.min().get(), max: dynamic.max().get(), spare_min, spare_max }
        }
        Scaling::OnDemand { max, idle_timeout } => {
            supervisor::Scaling::OnDemand { max: max.get(), idle_timeout: bounded(idle_timeout) }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;
    use std::time::Instant;

    use super::*;
    use crate::server::supervisor::{Event, Exit, Signal, Supervisor};
    use crate::server::{Generation, RestartBudget, WorkerId};

    #[test]
    fn durations_without_bounds_are_bounded_and_a_server_lives_with_them() {
        let any = |duration: Duration| Config {
            start_timeout: duration,
            drain_delay: duration,
            graceful_timeout: duration,
            upgrade_timeout: duration,
            max_age: Some(duration),
            restart_budget: RestartBudget::Exactly { failures: NonZeroU32::MIN, window: duration },
            scaling: Scaling::OnDemand { max: Workers::default(), idle_timeout: duration },
            ..Config::default()
        };
        for (given, meant) in [(Duration::ZERO, SHORTEST), (Duration::MAX, LONGEST)] {
            let policy = of(&any(given));
            let timeouts = [policy.start_timeout, policy.graceful_timeout, policy.upgrade_timeout];
            assert_eq!(timeouts, [meant; 3]);
            assert_eq!(policy.drain_delay, given.min(LONGEST), "it may be zero");
            assert_eq!((policy.limits.age, policy.budget.map(|budget| budget.window)), (Some(meant), Some(meant)));
            assert!(
                matches!(policy.scaling, supervisor::Scaling::OnDemand { idle_timeout, .. } if idle_timeout == meant)
            );
        }
        // A year after its start, every timer can still be set and waited for.
        let mut supervisor = Supervisor::new(of(&any(Duration::MAX)), 1);
        let began = Instant::now();
        let generation = Generation(1);
        let id = WorkerId(1);
        for event in [
            Event::Boot,
            Event::TemplateReady { generation },
            Event::WorkerForked { id, pid: 7 },
            Event::WorkerReady { id },
            Event::WorkerExited { id, exit: Exit::Code(1), words: None },
            Event::Signal(Signal::Upgrade),
            Event::Signal(Signal::Stop),
        ] {
            supervisor.handle(LONGEST, event);
            let next = supervisor.next_timer().expect("something is waited for");
            assert!(began.checked_add(next).is_some());
        }
    }
}
