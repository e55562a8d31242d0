//! The `hatchery` command, and the same flags for a program's own server.
//!
//! Arguments are read as written (`args`), resolved (`raw`), and then either shown (`--check-config`),
//! run, or asked of a server that runs (`order`). Every way out is an [`Exit`].

mod args;
mod exit;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod order;
mod raw;
mod show;

use std::ffi::OsString;
use std::io::{self, Write};
use std::process::ExitCode;

use slog::{Logger, crit};

use args::Line;
pub use exit::Exit;
use order::Order;

use crate::proc::{Registry, words_of};
use crate::server::services::{Echo, Hello};
use crate::server::{self, Config, RunError, Service, ServiceName, host, host_as, resolves, stderr_logger};

/// Runs the `hatchery` command on this process's arguments.
pub fn main() -> ExitCode {
    let registry = host_as::<Hello>(Registry::new(), ServiceName::Hello, stderr_logger);
    crate::init(&host_as::<Echo>(registry, ServiceName::Echo, stderr_logger));
    enter(Front::Hatchery, std::env::args_os().collect(), run).into()
}

/// Runs a program's own service with every flag of `hatchery serve`: all of a server's `main`.
///
/// ```no_run
/// use std::io::Write;
/// use hatchery::server::{Conn, Next, PreloadCx, RequestCx, Result, Service, WorkerCx};
///
/// struct Shout;
///
/// impl Service for Shout {
///     type Preload = ();
///     fn preload(_: &PreloadCx) -> Result<()> { Ok(()) }
///     fn start(_: &'static (), _: &WorkerCx) -> Result<Shout> { Ok(Shout) }
///     fn serve(&mut self, conn: &mut Conn, _: &mut RequestCx) -> Result<Next> {
///         let Some(line) = conn.read_line(4096)? else { return Ok(Next::Close) };
///         writeln!(conn, "{}", line.to_uppercase())?;
///         Ok(Next::Park)
///     }
/// }
///
/// fn main() -> std::process::ExitCode {
///     hatchery::serve::<Shout>()
/// }
/// ```
pub fn serve<S: Service>() -> ExitCode {
    crate::init(&host::<S>(Registry::new(), stderr_logger));
    enter(Front::OwnServer, std::env::args_os().collect(), run).into()
}

/// Runs the server; how it ended is the exit.
fn run(config: Config, log: Logger) -> Exit {
    match server::run(config, log.clone()) {
        Ok(()) => Exit::CleanStop,
        Err(error) => {
            crit!(log, "cannot serve"; "why" => words_of(&error));
            match error {
                RunError::Master { .. } => Exit::Failure,
                _ => Exit::CannotBoot,
            }
        }
    }
}

/// Whose flags are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Front {
    /// `hatchery`, with its commands and shipped services.
    Hatchery,
    /// A program that serves a service of its own.
    OwnServer,
}

/// What the arguments ask for.
#[derive(Debug)]
pub(crate) enum Invocation {
    /// To run a server.
    Serve(Box<Serving>),
    /// To ask one that runs.
    Order(Order),
}

/// A server to run.
#[derive(Debug)]
pub(crate) struct Serving {
    /// The configuration, resolved.
    pub(crate) config: Config,
    /// Only show the configuration.
    pub(crate) check_config: bool,
}

#[cfg(any(test, feature = "fuzzing"))]
impl Invocation {
    /// The configuration of the server that is to run.
    pub(crate) fn into_config(self) -> Config {
        match self {
            Invocation::Serve(serving) => serving.config,
            Invocation::Order(order) => panic!("{order:?} runs no server"),
        }
    }
}

/// Why nothing is run: help was asked for, or a flag or value is wrong.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NotRun {
    /// Help and version, which are as asked, or wrong flags.
    #[error("{0}")]
    Flags(clap::Error),
    /// A value that is wrong.
    #[error("error: {0}\n\nFor more information, try '--help'.\n")]
    Value(raw::ConfigError),
}

/// Reads and resolves the arguments, the first of which is the program's name.
pub(crate) fn parse(front: Front, arguments: Vec<OsString>) -> Result<Invocation, NotRun> {
    let (line, service) = match front {
        Front::Hatchery => (args::of_hatchery(arguments), ServiceName::Hello),
        Front::OwnServer => {
            (args::of_own_server(arguments).map(|asked| Line::Serve(Box::new(asked))), ServiceName::Own)
        }
    };
    match line.map_err(NotRun::Flags)? {
        Line::Serve(asked) => {
            let config = asked.raw.resolve(service).map_err(NotRun::Value)?;
            Ok(Invocation::Serve(Box::new(Serving { config, check_config: asked.check_config })))
        }
        Line::Order(order) => order.resolve().map(Invocation::Order).map_err(NotRun::Value),
    }
}

/// The way from arguments to exit: `run` is called with what they ask for, unless that is only shown.
pub(crate) fn enter(front: Front, arguments: Vec<OsString>, run: impl FnOnce(Config, Logger) -> Exit) -> Exit {
    match parse(front, arguments) {
        Ok(Invocation::Order(order)) => order::carry_out(&order),
        Ok(Invocation::Serve(serving)) if serving.check_config => check(&serving.config),
        Ok(Invocation::Serve(serving)) => {
            let log = stderr_logger(serving.config.log_format, serving.config.log_level);
            run(serving.config, log)
        }
        Err(not_run) => not_run.tell(),
    }
}

/// Shows the configuration. Names are resolved, for a name without an address could not be bound; nothing
/// is bound, since a socket that listens takes real clients.
fn check(config: &Config) -> Exit {
    if let Err(error) = write!(io::stdout(), "{}", show::Shown(config)) {
        return not_shown(&error);
    }
    for address in &config.listen {
        if let Err(error) = resolves(address) {
            say(format_args!("error: {error}\n"));
            return Exit::CannotBoot;
        }
    }
    Exit::CleanStop
}

impl NotRun {
    fn exit(&self) -> Exit {
        match self {
            NotRun::Flags(shown) if !shown.use_stderr() => Exit::CleanStop,
            _ => Exit::Usage,
        }
    }

    fn tell(&self) -> Exit {
        match self {
            NotRun::Flags(shown) => {
                if let Err(error) = shown.print() {
                    return not_shown(&error);
                }
            }
            NotRun::Value(_) => say(format_args!("{self}")),
        }
        // The master that this one was to replace is told why, too.
        server::decline(self.to_string().lines().next().unwrap_or_default());
        self.exit()
    }
}

/// What was asked for could not be written; whoever reads only the beginning of it does not want to know.
fn not_shown(error: &io::Error) -> Exit {
    if error.kind() != io::ErrorKind::BrokenPipe {
        say(format_args!("error: cannot write to standard output: {error}\n"));
    }
    Exit::Failure
}

/// To stderr; whoever closed it does not want to know.
fn say(words: std::fmt::Arguments<'_>) {
    let _ = io::stderr().write_fmt(words);
}

#[cfg(test)]
mod tests;
