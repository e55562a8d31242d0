//! How a process ended.

use std::fmt;
use std::time::Duration;

use nix::libc;
use serde::{Deserialize, Serialize};

use super::failure::Failure;
use crate::sys::wait::Reaped;

/// The end of a process: how it ended, what it had used, and what it said last.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Exit {
    /// Its exit code or the signal that ended it.
    pub how: How,
    /// What it used in its life; `None` where another process had to reap it.
    pub usage: Option<Usage>,
    /// Why it ended, in its own words, if it ended by an error of [`run`](super::Process::run) or
    /// [`exec`](super::Process::exec).
    pub failure: Option<Failure>,
}

/// An exit code or a signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub enum How {
    /// It left by itself with this code, 0 to 255.
    Code(i32),
    /// This signal ended it (signal(7)).
    Signal {
        /// The signal's number.
        signal: i32,
        /// Whether it left a core file.
        core: bool,
    },
    /// It is gone, but nobody could tell how: its template had died before it, and the kernel is older than
    /// Linux 6.15.
    Unobserved,
}

/// What a process used (getrusage(2)).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Usage {
    /// Processor time in its own code.
    pub user: Duration,
    /// Processor time in the kernel on its behalf.
    pub system: Duration,
    /// The most memory that was resident at a time, in bytes.
    pub max_resident: u64,
}

impl Exit {
    /// Whether it left by itself with code 0.
    pub fn success(&self) -> bool {
        self.how == How::Code(0)
    }

    pub(crate) fn from_reaped(reaped: &Reaped, failure: Option<Failure>) -> Exit {
        Exit { how: How::from_wait_status(reaped.status), usage: Some(Usage::from(&reaped.usage)), failure }
    }

    /// The end of a process that somebody else has reaped.
    pub(crate) fn seen_from_afar(status: Option<i32>) -> Exit {
        Exit { how: status.map_or(How::Unobserved, How::from_wait_status), usage: None, failure: None }
    }
}

impl How {
    fn from_wait_status(status: i32) -> How {
        if libc::WIFSIGNALED(status) {
            How::Signal { signal: libc::WTERMSIG(status), core: libc::WCOREDUMP(status) }
        } else {
            How::Code(libc::WEXITSTATUS(status))
        }
    }
}

impl From<&libc::rusage> for Usage {
    fn from(usage: &libc::rusage) -> Usage {
        Usage {
            user: duration(usage.ru_utime),
            system: duration(usage.ru_stime),
            // In KiB, getrusage(2).
            max_resident: u64::try_from(usage.ru_maxrss).unwrap_or(0) * 1024,
        }
    }
}

fn duration(time: libc::timeval) -> Duration {
    Duration::from_secs(u64::try_from(time.tv_sec).unwrap_or(0))
        + Duration::from_micros(u64::try_from(time.tv_usec).unwrap_or(0))
}

impl fmt::Display for How {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            How::Code(code) => write!(f, "exit code {code}"),
            How::Signal { signal, core } => {
                match nix::sys::signal::Signal::try_from(*signal) {
                    Ok(name) => write!(f, "signal {}", name.as_str())?,
                    Err(_) => write!(f, "signal {signal}")?,
                }
                if *core { f.write_str(", core dumped") } else { Ok(()) }
            }
            How::Unobserved => f.write_str("in a way that nobody saw"),
        }
    }
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.how.fmt(f)?;
        match &self.failure {
            Some(failure) => write!(f, ": {failure}"),
            None => Ok(()),
        }
    }
}
