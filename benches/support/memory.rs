//! What processes hold of memory, and a way to hold much.

use std::fs;

use super::Result;
use super::machine::field;
use super::process::Life;
use super::rounds::median;

/// What one process holds, from /proc/PID/smaps_rollup, in kB.
#[derive(Clone, Copy)]
pub struct Footprint {
    /// Its proportional share: a page that n processes map counts 1/n for each.
    pub pss: f64,
    /// Pages that it alone maps.
    pub private: f64,
}

impl Footprint {
    /// # Errors
    /// The process is gone, or is not ours to look at.
    pub fn of(life: &Life) -> Result<Footprint> {
        let path = format!("/proc/{}/smaps_rollup", life.pid);
        let text = fs::read_to_string(&path).map_err(|e| format!("cannot read {path}: {e}"))?;
        let kilobytes = |key: &str| -> Result<f64> {
            let value = field(&text, key).ok_or_else(|| format!("{path} has no {key}"))?;
            Ok(value.trim_end_matches(" kB").parse()?)
        };
        Ok(Footprint { pss: kilobytes("Pss")?, private: kilobytes("Private_Clean")? + kilobytes("Private_Dirty")? })
    }

    /// The medians of several, each taken by itself.
    pub fn median(of: &[Footprint]) -> Option<Footprint> {
        Some(Footprint {
            pss: median(of.iter().map(|one| one.pss).collect())?,
            private: median(of.iter().map(|one| one.private).collect())?,
        })
    }
}

/// Memory that is truly there: every page of it was written to.
pub fn hold(megabytes: usize) -> Vec<u8> {
    vec![1; megabytes * 1_000_000]
}
