//! A small seeded generator (splitmix64): jitter must differ between programs and replay in a test.

use std::time::Duration;

/// The generator; one per state machine, in the master alone, so that no fork copies it.
#[derive(Debug, Clone)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// `middle`, moved by up to `percent` of itself in either direction.
    pub(crate) fn spread(&mut self, middle: Duration, percent: u32) -> Duration {
        let percent = f64::from(percent.min(100)) / 100.0;
        // 53 bits are what an f64 holds exactly.
        let fraction = (self.next() >> 11) as f64 / (1_u64 << 53) as f64;
        middle.mul_f64(1.0 - percent + 2.0 * percent * fraction)
    }

    /// The own limit of one of many: up to a fifth lower, so that those who began together do not end together.
    pub(crate) fn lowered(&mut self, limit: u64) -> u64 {
        limit - self.up_to(limit / 5)
    }

    /// As [`lowered`](Self::lowered), in milliseconds.
    pub(crate) fn lowered_time(&mut self, limit: Duration) -> Duration {
        Duration::from_millis(self.lowered(u64::try_from(limit.as_millis()).unwrap_or(u64::MAX)))
    }

    /// A number from 0 to `most`.
    fn up_to(&mut self, most: u64) -> u64 {
        match most.checked_add(1) {
            Some(count) => self.next() % count,
            None => self.next(),
        }
    }

    /// A number below `limit`; the simulation's dice.
    #[cfg(test)]
    pub(crate) fn below(&mut self, limit: u32) -> u32 {
        (self.next() % u64::from(limit)) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_of_many_differ_and_are_at_most_a_fifth_lower() {
        let mut random = Random::new(7);
        let limits: std::collections::BTreeSet<u64> = (0..1000).map(|_| random.lowered(1000)).collect();
        assert!(limits.len() > 150 && limits.iter().all(|limit| (800..=1000).contains(limit)), "{limits:?}");
        for limit in [0, 1, 4] {
            assert_eq!(random.lowered(limit), limit);
        }
        assert!(random.lowered_time(Duration::MAX) >= Duration::from_millis(u64::MAX / 5 * 4));
    }
}
