//! How a server keeps its fleet of workers: how many there are, what happens when they fail, and
//! when they have grown too large.

use std::fmt;
use std::num::NonZeroU32;
use std::ops::RangeInclusive;
use std::str::FromStr;
use std::time::Duration;

use super::config::Workers;

/// How many workers may fail within a window before the server is degraded.
///
/// A worker has failed if it was never ready, or died within a second of its readiness without having answered a
/// request. A degraded server keeps the workers that are ready, and tries one further worker at a time, after delays that
/// grow from one to 30 seconds; as soon as one of these serves well, or a reload brings a new generation, it is as before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
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
            Self::Exactly { failures, window } => Some((failures.get(), window)),
            Self::Unlimited => None,
        }
    }
}

/// How the number of workers follows the load.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Scaling {
    /// As many as the configuration says, and TTIN and TTOU change.
    #[default]
    Static,
    /// As many as are busy and some to spare.
    Dynamic(DynamicScaling),
    /// None until a client comes, then as many as are busy. Each boot and each reload proves itself with one worker, which
    /// leaves as any other.
    OnDemand {
        /// The most workers.
        max: Workers,
        /// A worker that has had no connection for so long leaves; less than 1 ms is taken for 1 ms.
        idle_timeout: Duration,
    },
}

impl Scaling {
    /// The most workers that there can be, if a static number is `workers`.
    pub(super) fn most(self, workers: Workers) -> Workers {
        match self {
            Self::Static => workers,
            Self::Dynamic(dynamic) => dynamic.max,
            Self::OnDemand { max, .. } => max,
        }
    }
}

/// From `min` to `max` workers, such that some are idle. The number grows in steps that double, up to 32 workers a second,
/// and falls by one every five seconds while too many are idle.
///
/// ```
/// use hatchery::server::{DynamicScaling, Workers};
///
/// let scaling = DynamicScaling::new(Workers::new(2)?, Workers::new(64)?, 1..=4)?;
/// assert_eq!(scaling.spare(), 1..=4);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DynamicScaling {
    min: Workers,
    max: Workers,
    spare: (u32, u32),
}

/// Bounds that contradict each other; the message says which.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ScalingError {
    /// There are to be at least more workers than at most.
    #[error("the least number of workers, {min}, is above the most, {max}")]
    MinAboveMax {
        /// The least.
        min: u32,
        /// The most.
        max: u32,
    },
    /// So many idle workers cannot be had: the most must be 1 at least, no less than the least, and no more than all workers.
    #[error("from {min} to {max} spare workers cannot be had of {workers}; write two numbers such as 1-4")]
    Spare {
        /// The least idle workers.
        min: u32,
        /// The most.
        max: u32,
        /// The most workers of all.
        workers: u32,
    },
}

impl DynamicScaling {
    /// Bounds for the number of workers and for how many of them are to be idle.
    ///
    /// # Errors
    /// [`ScalingError`] if they contradict each other.
    pub fn new(min: Workers, max: Workers, spare: RangeInclusive<u32>) -> Result<DynamicScaling, ScalingError> {
        if min > max {
            return Err(ScalingError::MinAboveMax { min: min.get(), max: max.get() });
        }
        let (least, most) = spare.into_inner();
        if most == 0 || least > most || most > max.get() {
            return Err(ScalingError::Spare { min: least, max: most, workers: max.get() });
        }
        Ok(DynamicScaling { min, max, spare: (least, most) })
    }

    /// The least number of workers.
    pub fn min(self) -> Workers {
        self.min
    }

    /// The most workers.
    pub fn max(self) -> Workers {
        self.max
    }

    /// How many of them are to be idle.
    pub fn spare(self) -> RangeInclusive<u32> {
        self.spare.0..=self.spare.1
    }
}

/// An amount of memory, at least one byte.
///
/// It is written as a number and a unit: `B`, `KiB`, `MiB` or `GiB`, powers of 1024.
///
/// ```
/// use hatchery::server::MemorySize;
///
/// assert_eq!("200MiB".parse::<MemorySize>()?.get(), 200 << 20);
/// assert_eq!("1536KiB".parse::<MemorySize>()?.to_string(), "1536KiB");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct MemorySize(u64);

/// No amount of memory; the message says how one is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("write a number from 1 on and its unit: B, KiB, MiB or GiB, such as 200MiB")]
pub struct MemorySizeError;

impl MemorySize {
    const UNITS: [(&'static str, u64); 4] = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)];

    /// An amount in bytes.
    ///
    /// # Errors
    /// [`MemorySizeError`] for none.
    pub fn new(bytes: u64) -> Result<MemorySize, MemorySizeError> {
        if bytes == 0 { Err(MemorySizeError) } else { Ok(MemorySize(bytes)) }
    }

    /// The number of bytes.
    pub fn get(self) -> u64 {
        self.0
    }
}

impl FromStr for MemorySize {
    type Err = MemorySizeError;

    fn from_str(text: &str) -> Result<MemorySize, MemorySizeError> {
        let (digits, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).ok_or(MemorySizeError)?);
        let (_, factor) =
            Self::UNITS.into_iter().find(|(name, _)| *name == unit.trim_start()).ok_or(MemorySizeError)?;
        let number: u64 = digits.parse().map_err(|_| MemorySizeError)?;
        MemorySize::new(number.checked_mul(factor).ok_or(MemorySizeError)?)
    }
}

impl fmt::Display for MemorySize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let whole = |(_, factor): &(&str, u64)| self.0.is_multiple_of(*factor);
        let (unit, factor) = Self::UNITS.into_iter().find(whole).unwrap_or(("B", 1));
        write!(f, "{}{unit}", self.0 / factor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_amount_of_memory_has_a_unit_and_is_shown_as_it_is_written() {
        for (text, bytes) in [("1B", 1), ("512KiB", 512 << 10), ("3 MiB", 3 << 20), ("2GiB", 2 << 30)] {
            let read: MemorySize = text.parse().expect(text);
            assert_eq!(read.get(), bytes);
            assert_eq!(read.to_string(), text.replace(' ', ""));
            assert_eq!(read.to_string().parse(), Ok(read));
        }
        for text in ["", "200", "MiB", "0B", "1.5GiB", "-1MiB", "1MB", "1mib", "99999999999GiB"] {
            assert_eq!(text.parse::<MemorySize>(), Err(MemorySizeError), "{text}");
        }
    }
}
