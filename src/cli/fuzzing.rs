//! What holds for every command line.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use super::exit::Exit;
use super::order::Order;
use super::raw::{Given, RawConfig};
use super::show::Shown;
use super::{Front, Invocation, NotRun, parse};
use crate::server::{Config, ServiceName};

/// Arguments with a zero byte between them. An even first byte is a command line; after an odd one each argument is the
/// number of a flag and its value, which skips the search for flags and so leads to more values.
pub(crate) fn configuration(data: &[u8]) {
    let Some((how, arguments)) = data.split_first() else {
        return;
    };
    let arguments = arguments.split(|&byte| byte == 0);
    match how % 4 {
        0 => command_line(Front::Hatchery, arguments),
        2 => command_line(Front::OwnServer, arguments),
        _ => values(arguments),
    }
}

fn command_line<'a>(front: Front, arguments: impl Iterator<Item = &'a [u8]>) {
    let arguments = arguments.map(|bytes| OsString::from_vec(bytes.to_vec()));
    let arguments: Vec<OsString> = [OsString::from("hatchery")].into_iter().chain(arguments).collect();
    match parse(front, arguments.clone()) {
        Ok(Invocation::Serve(serving)) => reads_again_as_shown(front, &serving.config),
        Ok(Invocation::Order(Order::Reload { control, .. } | Order::Status { control, .. })) => {
            assert_eq!(control.to_string().parse(), Ok(control), "it reads again as it is shown");
        }
        Err(NotRun::Flags(error)) => {
            let words = error.to_string();
            let exit = NotRun::Flags(error).exit();
            assert!(!words.is_empty() && matches!(exit, Exit::CleanStop | Exit::Usage), "{exit:?}: {words}");
            if let Some(foreign) = arguments.iter().find(|argument| argument.to_str().is_none()) {
                assert!(
                    words.contains(&foreign.to_string_lossy().escape_debug().to_string()),
                    "{words}\nshould name {foreign:?}"
                );
            }
        }
        Err(wrong @ NotRun::Value(_)) => {
            assert_eq!(wrong.exit(), Exit::Usage);
            let words = wrong.to_string();
            let named = |argument: &OsString| {
                let (flag, value) = flag_of(argument);
                words.contains(flag) && value.is_none_or(|value| words.contains(&format!("`{value}`")))
            };
            assert!(arguments.iter().any(named), "{words}\nnames none of {arguments:?}");
        }
    }
}

/// The flag in an argument, and the value that stands in it as well.
fn flag_of(argument: &OsStr) -> (&str, Option<&str>) {
    let text = std::str::from_utf8(argument.as_bytes()).ok().filter(|text| text.starts_with("--"));
    match text.unwrap_or("no flag").split_once('=') {
        Some((flag, value)) => (flag, Some(value)),
        None => (text.unwrap_or("no flag"), None),
    }
}

fn values<'a>(arguments: impl Iterator<Item = &'a [u8]>) {
    let mut raw = RawConfig::default();
    let mut given = Vec::new();
    for argument in arguments {
        let Some((&number, value)) = argument.split_first() else {
            continue;
        };
        let Ok(value) = std::str::from_utf8(value) else {
            continue;
        };
        given.push((give(&mut raw, number, value), value));
    }
    match raw.resolve(ServiceName::Hello) {
        Ok(config) => reads_again_as_shown(Front::Hatchery, &config),
        Err(error) => {
            let words = error.to_string();
            let named = |(flag, value): &(&str, &str)| words.contains(flag) && words.contains(&format!("`{value}`"));
            assert!(given.iter().any(named), "{words}\nnames none of {given:?}");
        }
    }
}

/// The flag of that number. New ones stand at the end, so that kept cases go on meaning what they meant.
fn give(raw: &mut RawConfig, number: u8, value: &str) -> &'static str {
    let lists = [("--listen", &mut raw.listen), ("--arg", &mut raw.args)];
    let settings = [
        ("--workers", &mut raw.workers),
        ("--service", &mut raw.service),
        ("--request-timeout", &mut raw.request_timeout),
        ("--request-kill-after", &mut raw.request_kill_after),
        ("--idle-timeout", &mut raw.idle_timeout),
        ("--start-timeout", &mut raw.start_timeout),
        ("--graceful-timeout", &mut raw.graceful_timeout),
        ("--restart-budget", &mut raw.restart_budget),
        ("--max-surge", &mut raw.max_surge),
        ("--upgrade-timeout", &mut raw.upgrade_timeout),
        ("--pid-file", &mut raw.pid_file),
        ("--log-format", &mut raw.log_format),
        ("--log-level", &mut raw.log_level),
        ("--drain-delay", &mut raw.drain_delay),
        ("--max-requests", &mut raw.max_requests),
        ("--max-age", &mut raw.max_age),
        ("--max-memory", &mut raw.max_memory),
        ("--scaling", &mut raw.scaling),
        ("--min-workers", &mut raw.min_workers),
        ("--max-workers", &mut raw.max_workers),
        ("--spare-workers", &mut raw.spare_workers),
        ("--worker-idle-timeout", &mut raw.worker_idle_timeout),
        ("--accept", &mut raw.accept),
        ("--control", &mut raw.control),
    ];
    // A number beyond the last flag is the list of addresses, which may be long.
    let number = usize::from(number);
    match (number, number.checked_sub(lists.len()).and_then(|at| settings.into_iter().nth(at))) {
        (_, Some((flag, setting))) => {
            *setting = Some(Given::by_flag(value.to_owned(), flag));
            flag
        }
        (number, None) => {
            let [addresses, arguments] = lists;
            let (flag, list) = if number == 1 { arguments } else { addresses };
            list.push(Given::by_flag(value.to_owned(), flag));
            flag
        }
    }
}

/// What `--check-config` shows, given as flags, is the same configuration.
fn reads_again_as_shown(front: Front, config: &Config) {
    if has_lines_in_values(config) {
        return; // Such a value cannot be told from the lines that follow it.
    }
    let shown = Shown(config).to_string();
    let flags = shown.lines().map(|line| line.split_once(" = ").unwrap_or_else(|| panic!("{line:?} in\n{shown}")));
    let flags = flags.filter_map(|(key, value)| match (key, value) {
        ("faults", "on") => Some("--faults".to_owned()),
        ("faults", "off") | ("service", "own") | (_, "none") => None,
        (key, value) => Some(format!("--{key}={value}")),
    });
    let arguments = ["hatchery".to_owned()].into_iter().chain(flags).map(OsString::from).collect();
    let again = parse(front, arguments).unwrap_or_else(|error| panic!("{error}\nfor\n{shown}")).into_config();
    assert_eq!(&again, config);
}

fn has_lines_in_values(config: &Config) -> bool {
    let addresses = config.listen.iter().map(ToString::to_string);
    let arguments = config.args.iter().flat_map(|(key, value)| [key.clone(), value.clone()]);
    let pid_file = config.pid_file.iter().map(|path| path.to_string_lossy().into_owned());
    let control = config.control.iter().map(|point| point.address().to_string());
    addresses.chain(arguments).chain(pid_file).chain(control).any(|text| text.contains(['\n', '\r']))
}
