//! The flags: one definition, from which parsing and help come.
//!
//! Values stay as written here; what they mean, and whether they are right, is said in [`super::raw`].

use std::ffi::OsString;
use std::path::Path;

use clap::error::ErrorKind;
use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand};

use super::exit::Exit;
use super::raw::{Given, RawConfig, RawOrder};

/// Pre-fork multi-process server: lean templates, supervised workers, nothing lost.
///
/// Without a command it runs `serve`, whose flags it takes; without flags it says hello on 127.0.0.1:8080.
#[derive(Debug, Parser)]
#[command(name = "hatchery", version, max_term_width = 100, after_help = Exit::table())]
#[command(args_conflicts_with_subcommands = true)]
struct Hatchery {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    serve: ShippedArgs,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs a server in the foreground until it is told to stop.
    #[command(max_term_width = 100, after_help = Exit::table())]
    Serve(Box<ShippedArgs>),

    /// Has a running server reload, and waits until the new generation serves or was rolled back
    ///
    /// An interrupt (Ctrl-C) ends the waiting, not the reload.
    #[command(max_term_width = 100, after_help = Exit::table())]
    Reload(ReloadArgs),

    /// Shows how a running server stands, and each of its workers
    #[command(max_term_width = 100, after_help = Exit::table())]
    Status(StatusArgs),
}

#[derive(Debug, Args)]
struct ReloadArgs {
    /// The server's control socket, as its --control says
    #[arg(long, value_name = "PATH")]
    control: String,

    /// How long to wait for the end of the reload, with a unit; 1ms to 1day; without it, as long as it takes
    #[arg(long, value_name = "DUR", allow_hyphen_values = true)]
    timeout: Option<String>,
}

#[derive(Debug, Args)]
struct StatusArgs {
    /// The server's control socket, as its --control says
    #[arg(long, value_name = "PATH")]
    control: String,

    /// Shows it as one JSON object
    #[arg(long)]
    json: bool,
}

/// The flags of `hatchery serve`: those of every server, and the choice among the shipped services.
#[derive(Debug, Args)]
struct ShippedArgs {
    /// The service to run: `hello` (HTTP) or `echo` (lines) [default: hello]
    #[arg(long, value_name = "SERVICE")]
    service: Option<String>,

    /// Adds routes under /fault/ to `hello` that sleep, crash, leak and so on, for tests
    #[arg(long)]
    faults: bool,

    #[command(flatten)]
    server: ServerArgs,
}

/// A program's own server, which has every flag of `hatchery serve` but those for the shipped services.
#[derive(Debug, Parser)]
#[command(max_term_width = 100, after_help = Exit::table())]
struct OwnServer {
    #[command(flatten)]
    server: ServerArgs,
}

/// The flags of every server.
#[derive(Debug, Args)]
struct ServerArgs {
    /// Where to listen; may be given several times: 127.0.0.1:8080, [::1]:8080, tcp:HOST:PORT (the
    /// first of the host's addresses that binds), unix:/path, unix:@abstract or fd:N. Port 0 lets the
    /// kernel choose [default: 127.0.0.1:8080]
    #[arg(long, value_name = "ADDR")]
    listen: Vec<String>,

    /// Whose queue a connection waits in: `shared`, one for all workers, or `reuseport`, one for each
    /// slot at every TCP address (SO_REUSEPORT) [default: shared]
    #[arg(long, value_name = "MODE")]
    accept: Option<String>,

    /// How the number of workers follows the load: `static` (as many as --workers says), `dynamic` (as many as are
    /// busy, and some to spare) or `ondemand` (none until a client comes) [default: static]
    #[arg(long, value_name = "HOW")]
    scaling: Option<String>,

    /// The least workers of `--scaling dynamic`, 1 to 4096; 2 where nothing is said
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    min_workers: Option<String>,

    /// The most workers of `--scaling dynamic` and `ondemand`, 1 to 4096; 64 where nothing is said
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    max_workers: Option<String>,

    /// How many workers of `--scaling dynamic` are to be idle, at least and at most; 1-4 where nothing is said
    #[arg(long, value_name = "MIN-MAX", allow_hyphen_values = true)]
    spare_workers: Option<String>,

    /// How long a worker of `--scaling ondemand` may have no connection before it leaves, with a unit; 1ms to 1day;
    /// 10s where nothing is said
    #[arg(long, value_name = "DUR", allow_hyphen_values = true)]
    worker_idle_timeout: Option<String>,

    /// How many workers to run, 1 to 4096 [default: twice the CPUs, at least 4]
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    workers: Option<String>,

    /// An argument for the service; may be given several times, with a different key each time
    #[arg(long = "arg", value_name = "KEY=VALUE", allow_hyphen_values = true)]
    args: Vec<String>,

    /// How long a request may take from its first byte, with a unit: 500ms, 30s, 2m; 1ms to 1day, or
    /// `off` (also `0`) for no limit [default: 30s]
    #[arg(long, value_name = "DUR", allow_hyphen_values = true)]
    request_timeout: Option<String>,

    /// How long after its deadline a request that cannot be interrupted may still run, before it takes
    /// its worker with it; with a unit, up to 1day, and 0s kills at the deadline [default: 5s]
    #[arg(long, value_name = "DUR", allow_hyphen_values = true)]
    request_kill_after: Option<String>,

    /// How long an open connection may stay idle between two requests, or its client take nothing of an
    /// answer without a deadline; with a unit, 1ms to 1day, or `off` (also `0`) for no limit [default: 60s]
    #[arg(long, value_name = "DUR", allow_hyphen_values = true)]
    idle_timeout: Option<String>,

    /// How long a worker may take to become ready after its fork, with a unit; 1ms to 1day [default: 30s]
    #[arg(long, value_name = "DUR", allow_hyphen_values = true)]
    start_timeout: Option<String>,

    /// How long a graceful stop goes on serving before it lets no new client in, with a unit, so that load balancers
    /// hear of it first; up to 1day [default: 0s]
    #[arg(long, value_name = "DUR", allow_hyphen_values = true)]
    drain_delay: Option<String>,

    /// How long a graceful stop waits, from then on, for clients in the queue and requests in hand before it kills
    /// their workers, with a unit; up to 1day, and 0s kills at once [default: 30s]
    #[arg(long, value_name = "DUR", allow_hyphen_values = true)]
    graceful_timeout: Option<String>,

    /// After so many requests a worker is followed by another, give or take a fifth less; the counts are looked at once
    /// a second, so a busy worker goes beyond; `off` for never [default: off]
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    max_requests: Option<String>,

    /// After so much time a worker is followed by another, give or take a fifth less; 1ms to 1day (with a unit), or
    /// `off` for never [default: off]
    #[arg(long, value_name = "DUR", allow_hyphen_values = true)]
    max_age: Option<String>,

    /// With so much resident memory, what it shares with its template included, a worker is followed by another, give
    /// or take a fifth less; a number with B, KiB, MiB or GiB, or `off` for never [default: off]
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true)]
    max_memory: Option<String>,

    /// How many workers may fail (never be ready, or die at once), and within which time, before the
    /// server is degraded: it then keeps those that are ready and tries one more at a time. Such as
    /// 20/1m; `off` for no limit; `usual` for six and two for each worker within a minute [default: usual]
    #[arg(long, value_name = "N/DUR", allow_hyphen_values = true)]
    restart_budget: Option<String>,

    /// How many workers a reload may hold beyond their number at one time, 1 to 4096 [default: 1]
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    max_surge: Option<String>,

    /// How long a new master (USR2) may take until it serves, before it is killed and the old one
    /// stays, with a unit; 1ms to 1day [default: 3m]
    #[arg(long, value_name = "DUR", allow_hyphen_values = true)]
    upgrade_timeout: Option<String>,

    /// Writes the master's pid to this file, and holds it against a second server
    #[arg(long, value_name = "FILE")]
    pid_file: Option<String>,

    /// Where the server answers `hatchery status` and `hatchery reload`: the path of a Unix socket, which only its own
    /// user and root may use, or unix:@name; it answers nowhere unless this is given
    #[arg(long, value_name = "PATH")]
    control: Option<String>,

    /// How log records are written to stderr: `term` (words) or `json` (one object a line) [default: term]
    #[arg(long, value_name = "FORMAT")]
    log_format: Option<String>,

    /// The least level to log: critical, error, warning, info, debug or trace (which only debug builds have)
    /// [default: info]
    #[arg(long, value_name = "LEVEL")]
    log_level: Option<String>,

    /// Prints the configuration as it was understood and exits; listens nowhere
    #[arg(long)]
    check_config: bool,
}

/// What was asked for, as written.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) raw: RawConfig,
    pub(super) check_config: bool,
}

/// A command as written.
#[derive(Debug)]
pub(super) enum Line {
    /// To run a server.
    Serve(Box<Asked>),
    /// To ask a running one.
    Order(RawOrder),
}

/// Reads the arguments of the `hatchery` command; the first is the program's name.
pub(super) fn of_hatchery(arguments: Vec<OsString>) -> Result<Line, clap::Error> {
    all_text(&arguments)?;
    let hatchery = Hatchery::try_parse_from(arguments)?;
    let control = |text| Given::by_flag(text, "--control");
    Ok(match hatchery.command {
        Some(Command::Serve(shipped)) => Line::Serve(Box::new((*shipped).into())),
        None => Line::Serve(Box::new(hatchery.serve.into())),
        Some(Command::Reload(ReloadArgs { control: at, timeout })) => {
            let timeout = timeout.map(|text| Given::by_flag(text, "--timeout"));
            Line::Order(RawOrder::Reload { control: control(at), timeout })
        }
        Some(Command::Status(StatusArgs { control: at, json })) => {
            Line::Order(RawOrder::Status { control: control(at), json })
        }
    })
}

/// Reads the arguments of a program's own server; the first is the program's name.
pub(super) fn of_own_server(arguments: Vec<OsString>) -> Result<Asked, clap::Error> {
    all_text(&arguments)?;
    let program = arguments.first().map(Path::new).and_then(Path::file_name);
    let name = program.unwrap_or("server".as_ref()).to_string_lossy().into_owned();
    let command = OwnServer::command().name(name.clone()).bin_name(name);
    let matches = command.try_get_matches_from(arguments)?;
    Ok(OwnServer::from_arg_matches(&matches)?.server.into())
}

/// clap says of an argument that is not UTF-8 only that there is one. The program's own name may be anything.
fn all_text(arguments: &[OsString]) -> Result<(), clap::Error> {
    let Some(at) = arguments.iter().skip(1).position(|argument| argument.to_str().is_none()) else {
        return Ok(());
    };
    // Escaped: clap takes control characters out of what it shows, and a terminal obeys them.
    let argument = arguments[at + 1].to_string_lossy().escape_debug().to_string();
    let mut words = format!("`{argument}` is not UTF-8, as every argument must be");
    if at > 0 && !argument.starts_with('-') {
        // It may be the value of the flag before it.
        words += &format!(" (it comes after `{}`)", arguments[at].to_string_lossy().escape_debug());
    }
    words += "\n\nFor more information, try '--help'.\n";
    Err(clap::Error::raw(ErrorKind::InvalidUtf8, words))
}

impl From<ShippedArgs> for Asked {
    fn from(shipped: ShippedArgs) -> Self {
        let mut asked = Asked::from(shipped.server);
        asked.raw.service = shipped.service.map(|text| Given::by_flag(text, "--service"));
        asked.raw.faults = shipped.faults;
        asked
    }
}

impl From<ServerArgs> for Asked {
    fn from(args: ServerArgs) -> Self {
        let one = |text: Option<String>, flag| text.map(|text| Given::by_flag(text, flag));
        let many = |texts: Vec<String>, flag| texts.into_iter().map(|text| Given::by_flag(text, flag)).collect();
        let raw = RawConfig {
            listen: many(args.listen, "--listen"),
            accept: one(args.accept, "--accept"),
            workers: one(args.workers, "--workers"),
            scaling: one(args.scaling, "--scaling"),
            min_workers: one(args.min_workers, "--min-workers"),
            max_workers: one(args.max_workers, "--max-workers"),
            spare_workers: one(args.spare_workers, "--spare-workers"),
            worker_idle_timeout: one(args.worker_idle_timeout, "--worker-idle-timeout"),
            service: None,
            faults: false,
            args: many(args.args, "--arg"),
            request_timeout: one(args.request_timeout, "--request-timeout"),
            request_kill_after: one(args.request_kill_after, "--request-kill-after"),
            idle_timeout: one(args.idle_timeout, "--idle-timeout"),
            start_timeout: one(args.start_timeout, "--start-timeout"),
            drain_delay: one(args.drain_delay, "--drain-delay"),
            graceful_timeout: one(args.graceful_timeout, "--graceful-timeout"),
            max_requests: one(args.max_requests, "--max-requests"),
            max_age: one(args.max_age, "--max-age"),
            max_memory: one(args.max_memory, "--max-memory"),
            restart_budget: one(args.restart_budget, "--restart-budget"),
            max_surge: one(args.max_surge, "--max-surge"),
            upgrade_timeout: one(args.upgrade_timeout, "--upgrade-timeout"),
            pid_file: one(args.pid_file, "--pid-file"),
            control: one(args.control, "--control"),
            log_format: one(args.log_format, "--log-format"),
            log_level: one(args.log_level, "--log-level"),
        };
        Asked { raw, check_config: args.check_config }
    }
}

/// Every flag of `hatchery serve` with its help, for tests of what help promises.
#[cfg(test)]
pub(super) fn flags_with_help() -> Vec<(String, String)> {
    let hatchery = Hatchery::command();
    let serve = hatchery.find_subcommand("serve").expect("the serve command");
    serve
        .get_arguments()
        .map(|arg| {
            let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
            (format!("--{}", arg.get_long().expect("only long flags")), help)
        })
        .collect()
}
