//! What a server is told to do, resolved: every value is in range and means one thing.
//!
//! A program fills a [`Config`] itself; the command reads one from its flags (`cli`), where what was
//! written is kept apart from what it means.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::num::NonZeroU64;
use std::path::PathBuf;
use std::str::FromStr;
use std::thread::available_parallelism;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::address::Address;
use super::control_point::ControlPoint;
use super::fleet_config::{MemorySize, RestartBudget, Scaling};

/// How a server runs.
///
/// Of the durations that the master counts, more than a year is taken for a year.
///
/// ```
/// use hatchery::server::{Config, Workers};
///
/// let mut config = Config::default();
/// config.listen = vec!["127.0.0.1:0".parse()?];
/// config.workers = Workers::new(8)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Config {
    /// Where to listen. Default: 127.0.0.1:8080.
    pub listen: Vec<Address>,
    /// Whether the workers share each listener's queue or have one each. Default: [`AcceptMode::Shared`].
    pub accept: AcceptMode,
    /// How many workers run. Default: twice the CPUs, at least 4.
    pub workers: Workers,
    /// How their number follows the load. Default: [`Scaling::Static`], in which there are always as many as `workers`
    /// says; otherwise that means nothing.
    pub scaling: Scaling,
    /// Which service they run. Default: the program's own.
    pub service: ServiceName,
    /// Whether `hello` has its fault routes, for tests. Default: no.
    pub faults: bool,
    /// The service's own arguments, by name.
    pub args: BTreeMap<String, String>,
    /// How long a request may take from its first byte; `None` is without end. Default: 30 s.
    pub request_timeout: Option<Duration>,
    /// How long after its deadline a request that cannot be interrupted may still run, before it takes its worker
    /// with it; at zero every deadline kills at once. Default: 5 s.
    pub request_kill_after: Duration,
    /// How long a parked connection may stay idle, or its client take nothing of an answer that has no deadline; `None` is without end. Default: 60 s.
    pub idle_timeout: Option<Duration>,
    /// How long a worker may take from its fork to its readiness; less than 1 ms is taken for 1 ms. Default: 30 s.
    pub start_timeout: Duration,
    /// How long a server that is told to stop serves on before it lets no new client in, so that those who send clients
    /// to it hear of it first. Default: none.
    pub drain_delay: Duration,
    /// How long, from then on, a graceful stop waits for requests in hand before it kills; less than 1 ms is taken for 1 ms.
    /// Default: 30 s.
    pub graceful_timeout: Duration,
    /// A worker that has answered so many requests is followed by another; `None` is never. Each worker's own limit lies up
    /// to a fifth below, so that they do not go together; it is looked at once a second. Default: `None`.
    pub max_requests: Option<NonZeroU64>,
    /// A worker that has served for so long is followed by another, with the same jitter; `None` is never; less than
    /// 1 ms is taken for 1 ms. Default: `None`.
    pub max_age: Option<Duration>,
    /// A worker of which so much memory is resident is followed by another, with the same jitter; what it shares with the
    /// template counts. `None` is never. Default: `None`.
    pub max_memory: Option<MemorySize>,
    /// How many workers may fail before the server is degraded. Default: [`RestartBudget::Usual`].
    pub restart_budget: RestartBudget,
    /// How many workers a reload may hold beyond their number at one time, while old ones wait for their successors.
    /// Default: 1.
    pub max_surge: Workers,
    /// How long a new master ([`run`](super::run) tells of upgrades) may take until it serves, before it is killed;
    /// less than 1 ms is taken for 1 ms. Default: 180 s.
    pub upgrade_timeout: Duration,
    /// Where to write the master's pid. Default: nowhere.
    pub pid_file: Option<PathBuf>,
    /// Where the server is asked and told what to do, over a Unix socket. Default: nowhere.
    pub control: Option<ControlPoint>,
    /// How log records are written. Default: [`LogFormat::Term`].
    pub log_format: LogFormat,
    /// The least level that is logged. Default: [`LogLevel::Info`].
    pub log_level: LogLevel,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            listen: vec![SocketAddr::from((Ipv4Addr::LOCALHOST, 8080)).into()],
            accept: AcceptMode::Shared,
            workers: Workers::default(),
            scaling: Scaling::Static,
            service: ServiceName::Own,
            faults: false,
            args: BTreeMap::new(),
            request_timeout: Some(Duration::from_secs(30)),
            request_kill_after: Duration::from_secs(5),
            idle_timeout: Some(Duration::from_secs(60)),
            start_timeout: Duration::from_secs(30),
            drain_delay: Duration::ZERO,
            graceful_timeout: Duration::from_secs(30),
            max_requests: None,
            max_age: None,
            max_memory: None,
            restart_budget: RestartBudget::Usual,
            max_surge: Workers(1),
            upgrade_timeout: Duration::from_secs(180),
            pid_file: None,
            control: None,
            log_format: LogFormat::Term,
            log_level: LogLevel::Info,
        }
    }
}

/// A number of workers from 1 to [`Workers::MAX`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Workers(u32);

/// A number of workers out of range; the message says which is right.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the number of workers is from 1 to {}", Workers::MAX)]
pub struct WorkersError;

impl Workers {
    /// The most workers of one server.
    pub const MAX: u32 = 4096;

    /// A number of workers.
    ///
    /// # Errors
    /// [`WorkersError`] for 0 and for more than [`Workers::MAX`].
    pub fn new(number: u32) -> Result<Workers, WorkersError> {
        if (1..=Workers::MAX).contains(&number) { Ok(Workers(number)) } else { Err(WorkersError) }
    }

    /// The number.
    pub fn get(self) -> u32 {
        self.0
    }
}

impl Default for Workers {
    /// Twice the CPUs that this process may use, at least 4 and at most [`Workers::MAX`].
    fn default() -> Self {
        let cpus = available_parallelism().map_or(1, |cpus| cpus.get());
        Workers(u32::try_from(2 * cpus).unwrap_or(Workers::MAX).clamp(4, Workers::MAX))
    }
}

impl FromStr for Workers {
    type Err = WorkersError;

    fn from_str(text: &str) -> Result<Self, WorkersError> {
        Workers::new(text.parse().map_err(|_| WorkersError)?)
    }
}

/// A word that is none of those that are known; the message lists them.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("it is one of: {}", .0.join(", "))]
pub struct UnknownWord(&'static [&'static str]);

macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $word:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
        #[non_exhaustive]
        pub enum $name {
            $($(#[$variant_doc])* $variant,)+
        }

        impl $name {
            /// The words in which it is written.
            pub const WORDS: &'static [&'static str] = &[$($word),+];

            /// The word in which it is written.
            pub fn word(self) -> &'static str {
                match self {
                    $($name::$variant => $word,)+
                }
            }
        }

        impl FromStr for $name {
            type Err = UnknownWord;

            fn from_str(text: &str) -> Result<Self, UnknownWord> {
                match text {
                    $($word => Ok($name::$variant),)+
                    _ => Err(UnknownWord($name::WORDS)),
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.word())
            }
        }
    };
}

words! {
    /// Which service the workers run.
    ServiceName {
        /// HTTP: says who answers.
        Hello = "hello",
        /// Lines: sends each back.
        Echo = "echo",
        /// The service of the program itself.
        Own = "own",
    }
}

impl ServiceName {
    /// The services that ship with the command.
    pub const SHIPPED: [ServiceName; 2] = [ServiceName::Hello, ServiceName::Echo];
}

words! {
    /// Whose queue a connection waits in until a worker accepts it.
    AcceptMode {
        /// Each address has one queue, and whichever worker is free takes the next connection.
        Shared = "shared",
        /// At each TCP address every slot has a queue of its own (SO_REUSEPORT, socket(7)), among which the kernel
        /// spreads the connections by their addresses and ports. No two workers compete for one; but a connection waits for
        /// its worker, even where another has nothing to do. If a slot has no worker that is ready for a tenth of a second,
        /// another worker stands in for it, if it runs the worker loop and no loop of the
        /// service's own. Unix sockets and inherited ones are shared all the same.
        Reuseport = "reuseport",
    }
}

words! {
    /// How log records are written.
    LogFormat {
        /// A line of words for people, in colour on a terminal.
        Term = "term",
        /// A line of JSON for programs.
        Json = "json",
    }
}

words! {
    /// How much a log record matters.
    LogLevel {
        /// The server cannot go on.
        Critical = "critical",
        /// Something failed that someone should look at.
        Error = "error",
        /// Something failed, and was dealt with.
        Warning = "warning",
        /// The lives of master, templates and workers.
        Info = "info",
        /// What leads to decisions.
        Debug = "debug",
        /// Everything; in debug builds only.
        Trace = "trace",
    }
}

impl From<LogLevel> for slog::Level {
    fn from(level: LogLevel) -> Self {
        match level {
            LogLevel::Critical => slog::Level::Critical,
            LogLevel::Error => slog::Level::Error,
            LogLevel::Warning => slog::Level::Warning,
            LogLevel::Info => slog::Level::Info,
            LogLevel::Debug => slog::Level::Debug,
            LogLevel::Trace => slog::Level::Trace,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_are_1_to_4096_and_by_default_twice_the_cpus_but_4_at_least() {
        for (text, right) in [("0", false), ("1", true), ("4096", true), ("4097", false)] {
            assert_eq!(text.parse::<Workers>().is_ok(), right, "{text}");
        }
        for text in ["", "-1", "four", "1.5", "99999999999"] {
            assert_eq!(text.parse::<Workers>(), Err(WorkersError), "{text}");
        }
        assert!((4..=Workers::MAX).contains(&Workers::default().get()));
    }

    #[test]
    fn each_word_is_read_as_what_is_written_so() {
        for word in LogLevel::WORDS {
            assert_eq!(&word.parse::<LogLevel>().expect(word).to_string(), word);
        }
        let words = "loud".parse::<LogLevel>().expect_err("no level").to_string();
        assert_eq!(words, "it is one of: critical, error, warning, info, debug, trace");
    }
}
