//! Delays that grow with each failure.

use std::time::Duration;

use super::random::Random;

/// A growing delay; the jitter keeps those that failed together from trying again together.
#[derive(Debug, Clone)]
pub(crate) struct Backoff {
    /// After the first failure.
    pub(crate) first: Duration,
    /// The longest delay before jitter.
    pub(crate) cap: Duration,
    /// What each further failure multiplies the delay by.
    pub(crate) factor: u32,
    /// How far jitter moves a delay in either direction, in percent of it.
    pub(crate) jitter_percent: u32,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { first: Duration::from_millis(100), cap: Duration::from_secs(30), factor: 2, jitter_percent: 25 }
    }
}

impl Backoff {
    /// The delay after the `failures`-th failure in a row, counted from 1.
    pub(crate) fn delay(&self, failures: u32, random: &mut Random) -> Duration {
        let growth = self.factor.saturating_pow(failures.saturating_sub(1));
        let delay = self.first.saturating_mul(growth).min(self.cap);
        random.spread(delay, self.jitter_percent)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_delay_grows_to_its_cap_and_stays_within_its_jitter() {
        let backoff = Backoff::default();
        let mut random = Random::new(7);
        let mut expected = backoff.first;
        for failures in 1..100 {
            let delay = backoff.delay(failures, &mut random);
            assert!(delay >= expected.mul_f64(0.75) && delay <= expected.mul_f64(1.25));
            expected = (expected * 2).min(backoff.cap);
        }
    }

    #[test]
    fn delays_of_those_that_failed_together_differ() {
        let mut random = Random::new(7);
        let backoff = Backoff::default();
        let delays: std::collections::BTreeSet<_> = (0..100).map(|_| backoff.delay(1, &mut random)).collect();
        assert!(delays.len() > 90);
    }
}
