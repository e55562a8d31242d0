//! A configuration in words, as `--check-config` prints it: one `key = value` a line, by the flags' names.

use std::fmt::{self, Display};
use std::time::Duration;

use crate::server::{Config, RestartBudget, Scaling};

/// Shows a configuration.
pub(super) struct Shown<'a>(pub(super) &'a Config);

impl Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let config = self.0;
        for address in &config.listen {
            writeln!(f, "listen = {address}")?;
        }
        writeln!(f, "accept = {}", config.accept)?;
        match config.scaling {
            Scaling::Static => writeln!(f, "scaling = static\nworkers = {}", config.workers.get())?,
            Scaling::Dynamic(dynamic) => {
                let (least, most) = dynamic.spare().into_inner();
                writeln!(f, "scaling = dynamic\nmin-workers = {}", dynamic.min().get())?;
                writeln!(f, "max-workers = {}\nspare-workers = {least}-{most}", dynamic.max().get())?;
            }
            Scaling::OnDemand { max, idle_timeout } => {
                writeln!(f, "scaling = ondemand\nmax-workers = {}", max.get())?;
                writeln!(f, "worker-idle-timeout = {}", limit(Some(idle_timeout)))?;
            }
        }
        writeln!(f, "service = {}", config.service)?;
        writeln!(f, "faults = {}", if config.faults { "on" } else { "off" })?;
        for (key, value) in &config.args {
            writeln!(f, "arg = {key}={value}")?;
        }
        writeln!(f, "request-timeout = {}", limit(config.request_timeout))?;
        writeln!(f, "request-kill-after = {}", limit(Some(config.request_kill_after)))?;
        writeln!(f, "idle-timeout = {}", limit(config.idle_timeout))?;
        writeln!(f, "start-timeout = {}", limit(Some(config.start_timeout)))?;
        writeln!(f, "drain-delay = {}", humantime::format_duration(config.drain_delay))?;
        writeln!(f, "graceful-timeout = {}", limit(Some(config.graceful_timeout)))?;
        writeln!(f, "max-requests = {}", or_off(config.max_requests))?;
        writeln!(f, "max-age = {}", limit(config.max_age))?;
        writeln!(f, "max-memory = {}", or_off(config.max_memory))?;
        match config.restart_budget {
            RestartBudget::Usual => writeln!(f, "restart-budget = usual")?,
            RestartBudget::Exactly { failures, window } => {
                writeln!(f, "restart-budget = {failures}/{}", limit(Some(window)))?;
            }
            RestartBudget::Unlimited => writeln!(f, "restart-budget = off")?,
        }
        writeln!(f, "max-surge = {}", config.max_surge.get())?;
        writeln!(f, "upgrade-timeout = {}", limit(Some(config.upgrade_timeout)))?;
        match &config.pid_file {
            Some(path) => writeln!(f, "pid-file = {}", path.display())?,
            None => writeln!(f, "pid-file = none")?,
        }
        match &config.control {
            Some(point) => writeln!(f, "control = {}", point.address())?,
            None => writeln!(f, "control = none")?,
        }
        writeln!(f, "log-format = {}", config.log_format)?;
        writeln!(f, "log-level = {}", config.log_level)
    }
}

fn limit(limit: Option<Duration>) -> String {
    limit.map_or("off".to_owned(), |limit| humantime::format_duration(limit).to_string())
}

fn or_off(value: Option<impl Display>) -> String {
    value.map_or("off".to_owned(), |value| value.to_string())
}
