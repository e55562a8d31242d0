//! From what was written to what is meant: [`RawConfig`] to [`Config`].
//!
//! Each value is kept with the place it came from, so that an error can name key, value and place.

use std::collections::BTreeMap;
use std::fmt::{self, Display};
use std::num::NonZeroU64;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use super::order::Order;
use crate::control;
use crate::server::{Config, ControlPoint, DynamicScaling, RestartBudget, Scaling, ScalingError, ServiceName, Workers};

const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);
const SHORTEST: Duration = Duration::from_millis(1);

/// The bounds of a number of workers that follows the load, where nothing is said.
const MIN_WORKERS: u32 = 2;
const MAX_WORKERS: u32 = 64;
const SPARE_WORKERS: (u32, u32) = (1, 4);
const WORKER_IDLE_TIMEOUT: Duration = Duration::from_secs(10);

/// A configuration as it was written.
#[derive(Debug, Default)]
pub(super) struct RawConfig {
    pub(super) listen: Vec<Given>,
    pub(super) accept: Option<Given>,
    pub(super) workers: Option<Given>,
    pub(super) scaling: Option<Given>,
    pub(super) min_workers: Option<Given>,
    pub(super) max_workers: Option<Given>,
    pub(super) spare_workers: Option<Given>,
    pub(super) worker_idle_timeout: Option<Given>,
    pub(super) service: Option<Given>,
    pub(super) faults: bool,
    pub(super) args: Vec<Given>,
    pub(super) request_timeout: Option<Given>,
    pub(super) request_kill_after: Option<Given>,
    pub(super) idle_timeout: Option<Given>,
    pub(super) start_timeout: Option<Given>,
    pub(super) drain_delay: Option<Given>,
    pub(super) graceful_timeout: Option<Given>,
    pub(super) max_requests: Option<Given>,
    pub(super) max_age: Option<Given>,
    pub(super) max_memory: Option<Given>,
    pub(super) restart_budget: Option<Given>,
    pub(super) max_surge: Option<Given>,
    pub(super) upgrade_timeout: Option<Given>,
    pub(super) pid_file: Option<Given>,
    pub(super) control: Option<Given>,
    pub(super) log_format: Option<Given>,
    pub(super) log_level: Option<Given>,
}

/// A value as it was written, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Given {
    text: String,
    place: Place,
}

/// Where a value was written.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Place {
    Flag(&'static str),
}

impl Given {
    pub(super) fn by_flag(text: String, flag: &'static str) -> Given {
        Given { text, place: Place::Flag(flag) }
    }
}

impl Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Flag(flag) => write!(f, "{flag} on the command line"),
        }
    }
}

/// A value cannot be used. The message names key, value, the place where it was written and what
/// would be right.
#[derive(Debug, thiserror::Error)]
#[error("cannot use `{}` as {key} (from {}): {problem}", given.text, given.place)]
pub(crate) struct ConfigError {
    key: &'static str,
    given: Given,
    problem: String,
}

impl RawConfig {
    /// What is meant; `service` is run if none was chosen.
    pub(super) fn resolve(self, service: ServiceName) -> Result<Config, ConfigError> {
        let usual = Config::default();
        let scaling = scaling(&self)?;
        let listen = self.listen.into_iter().map(|given| given.read("listen", parsed));
        let listen = listen.collect::<Result<Vec<_>, _>>()?;
        Ok(Config {
            scaling,
            listen: if listen.is_empty() { usual.listen } else { listen },
            accept: read_or(self.accept, "accept", parsed, usual.accept)?,
            workers: read_or(self.workers, "workers", parsed, usual.workers)?,
            service: read_or(self.service, "service", shipped, service)?,
            faults: self.faults,
            args: arguments(self.args)?,
            request_timeout: read_or(self.request_timeout, "request-timeout", time_limit, usual.request_timeout)?,
            request_kill_after: read_or(
                self.request_kill_after,
                "request-kill-after",
                patience,
                usual.request_kill_after,
            )?,
            idle_timeout: read_or(self.idle_timeout, "idle-timeout", time_limit, usual.idle_timeout)?,
            start_timeout: read_or(self.start_timeout, "start-timeout", start_limit, usual.start_timeout)?,
            drain_delay: read_or(self.drain_delay, "drain-delay", patience, usual.drain_delay)?,
            graceful_timeout: read_or(self.graceful_timeout, "graceful-timeout", patience, usual.graceful_timeout)?,
            max_requests: read_or(self.max_requests, "max-requests", or_off(max_requests), usual.max_requests)?,
            max_age: read_or(self.max_age, "max-age", time_limit, usual.max_age)?,
            max_memory: read_or(self.max_memory, "max-memory", or_off(parsed), usual.max_memory)?,
            restart_budget: read_or(self.restart_budget, "restart-budget", restart_budget, usual.restart_budget)?,
            max_surge: read_or(self.max_surge, "max-surge", parsed, usual.max_surge)?,
            upgrade_timeout: read_or(self.upgrade_timeout, "upgrade-timeout", start_limit, usual.upgrade_timeout)?,
            pid_file: read_or(self.pid_file, "pid-file", file, usual.pid_file)?,
            control: read_or(self.control, "control", control_point, usual.control)?,
            log_format: read_or(self.log_format, "log-format", parsed, usual.log_format)?,
            log_level: read_or(self.log_level, "log-level", parsed, usual.log_level)?,
        })
    }
}

/// What a running server is to be asked, as it was written.
#[derive(Debug)]
pub(super) enum RawOrder {
    Reload { control: Given, timeout: Option<Given> },
    Status { control: Given, json: bool },
}

impl RawOrder {
    /// What is meant.
    pub(super) fn resolve(self) -> Result<Order, ConfigError> {
        let address = |control: Given| control.read("control", parsed);
        Ok(match self {
            RawOrder::Reload { control, timeout } => {
                let limit = |text: &str| start_limit(text).map(Some);
                Order::Reload { control: address(control)?, timeout: read_or(timeout, "timeout", limit, None)? }
            }
            RawOrder::Status { control, json } => Order::Status { control: address(control)?, json },
        })
    }
}

impl Given {
    fn read<T>(self, key: &'static str, reader: impl FnOnce(&str) -> Result<T, String>) -> Result<T, ConfigError> {
        reader(&self.text).map_err(|problem| ConfigError { key, given: self, problem })
    }
}

fn read_or<T>(
    given: Option<Given>,
    key: &'static str,
    reader: impl FnOnce(&str) -> Result<T, String>,
    usual: T,
) -> Result<T, ConfigError> {
    given.map_or(Ok(usual), |given| given.read(key, reader))
}

/// How the number of workers follows the load; what is said about another way to do so is an error.
fn scaling(raw: &RawConfig) -> Result<Scaling, ConfigError> {
    let how = read_or(raw.scaling.clone(), "scaling", scaling_word, "static")?;
    let senseless = |given: &Option<Given>, key, ways: &str| match given {
        Some(given) => Err(ConfigError { key, given: given.clone(), problem: format!("it goes with {ways} alone") }),
        None => Ok(()),
    };
    if how != "static" {
        senseless(&raw.workers, "workers", "--scaling static")?;
    } else {
        senseless(&raw.max_workers, "max-workers", "--scaling dynamic and ondemand")?;
    }
    if how != "dynamic" {
        senseless(&raw.min_workers, "min-workers", "--scaling dynamic")?;
        senseless(&raw.spare_workers, "spare-workers", "--scaling dynamic")?;
    }
    if how != "ondemand" {
        senseless(&raw.worker_idle_timeout, "worker-idle-timeout", "--scaling ondemand")?;
    }
    let workers = |given: &Option<Given>, key, usual| {
        read_or(given.clone(), key, |text| parsed::<Workers>(text).map(Workers::get), usual)
    };
    let max = workers(&raw.max_workers, "max-workers", MAX_WORKERS)?;
    let number = |number| Workers::new(number).expect("it was read as such, or is a usual one");
    match how {
        "dynamic" => {
            let min = workers(&raw.min_workers, "min-workers", MIN_WORKERS.min(max))?;
            let usual = SPARE_WORKERS.0..=SPARE_WORKERS.1.min(max);
            let spare = read_or(raw.spare_workers.clone(), "spare-workers", spare, usual)?;
            DynamicScaling::new(number(min), number(max), spare).map(Scaling::Dynamic).map_err(|error| {
                // The first that was written of what is at odds.
                let bounds = [(&raw.min_workers, "min-workers"), (&raw.max_workers, "max-workers")];
                let spare = [(&raw.spare_workers, "spare-workers")];
                let suspects: &[_] = if matches!(error, ScalingError::MinAboveMax { .. }) { &bounds } else { &spare };
                let mut given = suspects.iter().filter_map(|(given, key)| Some(((*given).clone()?, *key)));
                let (given, key) = given.next().expect("the usual bounds are not at odds");
                ConfigError { key, given, problem: error.to_string() }
            })
        }
        "ondemand" => {
            let idle_timeout =
                read_or(raw.worker_idle_timeout.clone(), "worker-idle-timeout", start_limit, WORKER_IDLE_TIMEOUT)?;
            Ok(Scaling::OnDemand { max: number(max), idle_timeout })
        }
        _ => Ok(Scaling::Static),
    }
}

fn scaling_word(text: &str) -> Result<&'static str, String> {
    let words = ["static", "dynamic", "ondemand"];
    words.into_iter().find(|word| *word == text).ok_or_else(|| format!("it is one of: {}", words.join(", ")))
}

fn spare(text: &str) -> Result<RangeInclusive<u32>, String> {
    let wrong = || "write the least and the most, such as 1-4".to_owned();
    let (least, most) = text.split_once('-').ok_or_else(wrong)?;
    Ok(least.parse().map_err(|_| wrong())?..=most.parse().map_err(|_| wrong())?)
}

fn parsed<T: FromStr<Err: Display>>(text: &str) -> Result<T, String> {
    text.parse().map_err(|error: T::Err| error.to_string())
}

fn shipped(text: &str) -> Result<ServiceName, String> {
    ServiceName::SHIPPED
        .into_iter()
        .find(|service| service.word() == text)
        .ok_or_else(|| format!("it is one of: {}", ServiceName::SHIPPED.map(ServiceName::word).join(", ")))
}

fn arguments(given: Vec<Given>) -> Result<BTreeMap<String, String>, ConfigError> {
    let mut arguments = BTreeMap::new();
    for given in given {
        let (key, value) = given.read("arg", |text| {
            let (key, value) = text.split_once('=').ok_or("write it as KEY=VALUE")?;
            if key.is_empty() {
                return Err("the key before the `=` is missing; write it as KEY=VALUE".to_owned());
            }
            if arguments.contains_key(key) {
                return Err(format!("the key `{key}` was given before; give it once"));
            }
            Ok((key.to_owned(), value.to_owned()))
        })?;
        arguments.insert(key, value);
    }
    Ok(arguments)
}

fn time_limit(text: &str) -> Result<Option<Duration>, String> {
    if text == "off" {
        return Ok(None);
    }
    match duration(text)? {
        Duration::ZERO => Ok(None),
        limit if (SHORTEST..=LONGEST).contains(&limit) => Ok(Some(limit)),
        _ => Err("it is from 1ms to 1day, or `off`".to_owned()),
    }
}

fn start_limit(text: &str) -> Result<Duration, String> {
    match duration(text)? {
        limit if (SHORTEST..=LONGEST).contains(&limit) => Ok(limit),
        _ => Err("it is from 1ms to 1day".to_owned()),
    }
}

fn patience(text: &str) -> Result<Duration, String> {
    match duration(text)? {
        patience if patience <= LONGEST => Ok(patience),
        _ => Err("it is from 0s to 1day".to_owned()),
    }
}

/// What is read by `reader`, or `off`, which is none.
fn or_off<T>(reader: impl FnOnce(&str) -> Result<T, String>) -> impl FnOnce(&str) -> Result<Option<T>, String> {
    |text| if text == "off" { Ok(None) } else { reader(text).map(Some).map_err(|error| format!("{error}, or `off`")) }
}

fn max_requests(text: &str) -> Result<NonZeroU64, String> {
    text.parse().map_err(|_| "it is a number from 1 on".to_owned())
}

fn restart_budget(text: &str) -> Result<RestartBudget, String> {
    match text {
        "off" => return Ok(RestartBudget::Unlimited),
        "usual" => return Ok(RestartBudget::Usual),
        _ => {}
    }
    let (failures, window) =
        text.split_once('/').ok_or("write a number of failures and a time, such as 20/1m, or `usual` or `off`")?;
    let failures = failures.parse().map_err(|_| "the number before the `/` is from 1 to 4294967295")?;
    Ok(RestartBudget::Exactly { failures, window: start_limit(window)? })
}

fn duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text)
        .map_err(|error| format!("{error}; write a number and its unit, such as 500ms, 30s or 2m"))
}

fn control_point(text: &str) -> Result<Option<ControlPoint>, String> {
    parsed(text).map(control::at).map(Some)
}

fn file(text: &str) -> Result<Option<PathBuf>, String> {
    // Absolute from now on: the server may change its directory.
    let path = std::path::absolute(text).map_err(|error| format!("{error}; write a file's path"))?;
    if path.file_name().is_none() || text.ends_with('/') {
        return Err("it names no file; write a file's path".to_owned());
    }
    Ok(Some(path))
}
