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

    /// A number from 0 to `most`.
    pub(crate) fn up_to(&mut self, most: u64) -> u64 {
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
