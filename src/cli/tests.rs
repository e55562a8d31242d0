//! What the command line promises.

use std::cell::Cell;
use std::num::NonZeroU64;
use std::os::unix::ffi::OsStringExt;
use std::time::Duration;

use super::*;
use crate::server::{AcceptMode, DynamicScaling, LogFormat, LogLevel, MemorySize, RestartBudget, Scaling};

fn arguments(line: &[&str]) -> Vec<OsString> {
    std::iter::once("/usr/bin/lookup").chain(line.iter().copied()).map(OsString::from).collect()
}

fn config(line: &[&str]) -> Config {
    parse(Front::Hatchery, arguments(line)).expect("right arguments").into_config()
}

fn refusal(line: &[&str]) -> NotRun {
    parse(Front::Hatchery, arguments(line)).expect_err("wrong arguments")
}

#[test]
fn no_arguments_are_serve_with_its_defaults() {
    let usual = Config { service: ServiceName::Hello, ..Config::default() };
    assert_eq!(config(&[]), usual);
    assert_eq!(config(&["serve"]), usual);
    assert_eq!(config(&["--workers=7"]), config(&["serve", "--workers=7"]));
}

#[test]
fn every_flag_reaches_the_configuration() {
    let line = [
        "serve",
        "--listen=[::1]:0",
        "--listen=unix:/run/x.sock",
        "--accept=reuseport",
        "--workers=7",
        "--service=echo",
        "--faults",
        "--arg=index=/data/a=b",
        "--arg",
        "empty=",
        "--request-timeout=1m 30s",
        "--request-kill-after=250ms",
        "--idle-timeout=off",
        "--start-timeout=5s",
        "--drain-delay=5s",
        "--graceful-timeout=0s",
        "--max-requests=10000",
        "--max-age=1h",
        "--max-memory=200MiB",
        "--restart-budget=5/10s",
        "--max-surge=3",
        "--upgrade-timeout=2m",
        "--pid-file=run/x.pid",
        "--control=run/x.control",
        "--log-format=json",
        "--log-level=debug",
    ];
    let config = config(&line);
    let listen: Vec<_> = config.listen.iter().map(ToString::to_string).collect();
    assert_eq!(listen, ["[::1]:0", "unix:/run/x.sock"]);
    assert_eq!(config.accept, AcceptMode::Reuseport);
    assert_eq!(config.workers.get(), 7);
    assert_eq!(config.service, ServiceName::Echo);
    assert!(config.faults);
    assert_eq!(config.args["index"], "/data/a=b");
    assert_eq!(config.args["empty"], "");
    assert_eq!(config.request_timeout, Some(Duration::from_secs(90)));
    assert_eq!(config.request_kill_after, Duration::from_millis(250));
    assert_eq!(config.idle_timeout, None);
    assert_eq!(config.start_timeout, Duration::from_secs(5));
    assert_eq!(config.drain_delay, Duration::from_secs(5));
    assert_eq!(config.graceful_timeout, Duration::ZERO);
    assert_eq!(config.max_requests.map(NonZeroU64::get), Some(10_000));
    assert_eq!(config.max_age, Some(Duration::from_secs(3600)));
    assert_eq!(config.max_memory.map(MemorySize::get), Some(200 << 20));
    let failures = 5.try_into().expect("not zero");
    assert_eq!(config.restart_budget, RestartBudget::Exactly { failures, window: Duration::from_secs(10) });
    assert_eq!(config.max_surge.get(), 3);
    assert_eq!(config.upgrade_timeout, Duration::from_secs(120));
    let here = std::env::current_dir().expect("a directory");
    assert_eq!(config.pid_file, Some(here.join("run/x.pid")));
    let control = config.control.expect("it is given").address().to_string();
    assert_eq!(control, format!("unix:{}", here.join("run/x.control").display()));
    assert_eq!(config.log_format, LogFormat::Json);
    assert_eq!(config.log_level, LogLevel::Debug);
}

#[test]
fn the_number_of_workers_may_follow_the_load() {
    let dynamic = |min, max, spare| {
        let number = |number| crate::server::Workers::new(number).expect("a number of workers");
        Scaling::Dynamic(DynamicScaling::new(number(min), number(max), spare).expect("bounds"))
    };
    assert_eq!(config(&[]).scaling, Scaling::Static);
    assert_eq!(config(&["--scaling=dynamic"]).scaling, dynamic(2, 64, 1..=4));
    assert_eq!(config(&["--scaling=dynamic", "--max-workers=1"]).scaling, dynamic(1, 1, 1..=1));
    let line = ["--scaling=dynamic", "--min-workers=3", "--max-workers=9", "--spare-workers=2-5"];
    assert_eq!(config(&line).scaling, dynamic(3, 9, 2..=5));
    let shown = show::Shown(&config(&line)).to_string();
    assert!(shown.contains("scaling = dynamic\nmin-workers = 3\nmax-workers = 9\nspare-workers = 2-5\n"), "{shown}");
    let line = ["--scaling=ondemand", "--max-workers=9", "--worker-idle-timeout=3s"];
    let max = crate::server::Workers::new(9).expect("a number of workers");
    assert_eq!(config(&line).scaling, Scaling::OnDemand { max, idle_timeout: Duration::from_secs(3) });
    let shown = show::Shown(&config(&line)).to_string();
    assert!(shown.contains("scaling = ondemand\nmax-workers = 9\nworker-idle-timeout = 3s\n"), "{shown}");
}

#[test]
fn the_defaults_that_help_promises_are_the_defaults() {
    let mut checked = 0;
    for (flag, help) in args::flags_with_help() {
        let Some((_, promise)) = help.split_once("[default: ") else {
            continue;
        };
        let promise = promise.trim_end_matches(']');
        if flag == "--workers" {
            assert_eq!(promise, "twice the CPUs, at least 4");
        } else {
            assert_eq!(config(&["serve", &flag, promise]), config(&[]), "{flag} {promise}");
        }
        checked += 1;
    }
    assert_eq!(checked, 19);
}

#[test]
fn a_wrong_value_names_flag_value_and_what_would_be_right() {
    for (flag, value, right) in [
        ("--listen", "localhost:80", "tcp:localhost:80"),
        ("--listen", "127.0.0.1:99999", "0 to 65535"),
        ("--accept", "both", "one of: shared, reuseport"),
        ("--workers", "0", "from 1 to 4096"),
        ("--workers", "-3", "from 1 to 4096"),
        ("--workers", "many", "from 1 to 4096"),
        ("--service", "own", "one of: hello, echo"),
        ("--arg", "index", "KEY=VALUE"),
        ("--arg", "=x", "the key before the `=` is missing"),
        ("--request-timeout", "30", "500ms, 30s or 2m"),
        ("--request-timeout", "soon", "500ms, 30s or 2m"),
        ("--request-timeout", "-1s", "500ms, 30s or 2m"),
        ("--request-timeout", "1us", "from 1ms to 1day"),
        ("--request-timeout", "2days", "from 1ms to 1day"),
        ("--request-kill-after", "off", "500ms, 30s or 2m"),
        ("--request-kill-after", "2days", "from 0s to 1day"),
        ("--idle-timeout", "", "500ms, 30s or 2m"),
        ("--start-timeout", "0s", "from 1ms to 1day"),
        ("--drain-delay", "off", "500ms, 30s or 2m"),
        ("--drain-delay", "1week", "from 0s to 1day"),
        ("--graceful-timeout", "off", "500ms, 30s or 2m"),
        ("--graceful-timeout", "1week", "from 0s to 1day"),
        ("--max-requests", "0", "a number from 1 on, or `off`"),
        ("--max-requests", "many", "a number from 1 on, or `off`"),
        ("--max-age", "1us", "from 1ms to 1day, or `off`"),
        ("--max-memory", "200", "such as 200MiB, or `off`"),
        ("--max-memory", "0B", "such as 200MiB, or `off`"),
        ("--restart-budget", "20", "such as 20/1m"),
        ("--restart-budget", "0/1m", "from 1 to"),
        ("--restart-budget", "5/0s", "from 1ms to 1day"),
        ("--restart-budget", "5/soon", "500ms, 30s or 2m"),
        ("--max-surge", "0", "from 1 to 4096"),
        ("--upgrade-timeout", "0s", "from 1ms to 1day"),
        ("--pid-file", "/", "a file's path"),
        ("--pid-file", "", "a file's path"),
        ("--log-format", "xml", "one of: term, json"),
        ("--log-level", "loud", "critical, error, warning, info, debug, trace"),
    ] {
        let refusal = refusal(&["serve", flag, value]);
        assert_eq!(refusal.exit(), Exit::Usage);
        let words = refusal.to_string();
        for part in [flag, &format!("`{value}`"), right] {
            assert!(words.contains(part), "{words}\nshould say: {part}");
        }
    }
    for (line, key, right) in [
        ("--scaling=some", "scaling", "one of: static, dynamic, ondemand"),
        ("--max-workers=3", "max-workers", "goes with --scaling dynamic and ondemand alone"),
        ("--scaling=dynamic --workers=3", "workers", "goes with --scaling static alone"),
        ("--scaling=ondemand --min-workers=3", "min-workers", "goes with --scaling dynamic alone"),
        ("--scaling=dynamic --worker-idle-timeout=3s", "worker-idle-timeout", "goes with --scaling ondemand alone"),
        ("--scaling=dynamic --min-workers=9 --max-workers=3", "min-workers", "9, is above the most, 3"),
        ("--scaling=dynamic --max-workers=0", "max-workers", "from 1 to 4096"),
        ("--scaling=dynamic --spare-workers=4-1", "spare-workers", "such as 1-4"),
        ("--scaling=dynamic --spare-workers=0-0", "spare-workers", "such as 1-4"),
        ("--scaling=dynamic --spare-workers=3", "spare-workers", "such as 1-4"),
        ("--scaling=dynamic --max-workers=3 --spare-workers=1-4", "spare-workers", "cannot be had of 3"),
        ("--scaling=ondemand --worker-idle-timeout=0s", "worker-idle-timeout", "from 1ms to 1day"),
    ] {
        let line: Vec<&str> = std::iter::once("serve").chain(line.split(' ')).collect();
        let words = refusal(&line).to_string();
        assert!(words.contains(&format!("as {key} (from --{key}")) && words.contains(right), "{words}\n{right}");
    }
    let words = refusal(&["serve", "--arg", "a=1", "--arg", "a=2"]).to_string();
    assert!(words.contains("`a=2`") && words.contains("`a` was given before"), "{words}");
}

#[test]
fn a_wrong_flag_names_itself_and_what_would_be_right() {
    for (line, parts) in [
        (vec!["serve", "--worker", "4"], ["--worker", "--workers"]),
        (vec!["serve", "--workers"], ["--workers <N>", "value is required"]),
        (vec!["serve", "--workers", "1", "--workers", "2"], ["--workers", "multiple times"]),
        (vec!["--workers", "4", "serve"], ["serve", "cannot be used with"]),
        (vec!["srve"], ["srve", "serve"]),
        (vec!["serve", "surplus"], ["surplus", "Usage"]),
    ] {
        let refusal = refusal(&line);
        assert_eq!(refusal.exit(), Exit::Usage, "{line:?}");
        for part in parts {
            assert!(refusal.to_string().contains(part), "{refusal}\nshould say: {part}");
        }
    }
}

#[test]
fn an_argument_that_is_not_utf_8_is_named() {
    let not_text = |bytes: &[u8]| OsString::from_vec(bytes.to_vec());
    for front in [Front::Hatchery, Front::OwnServer] {
        for (line, parts) in [
            (vec![not_text(b"--pid-file=a\xff")], ["`--pid-file=a\u{fffd}`", "UTF-8"]),
            (vec!["--pid-file".into(), not_text(b"\xff")], ["`\u{fffd}`", "after `--pid-file`"]),
        ] {
            let line = [not_text(b"/opt/\xff/lookup")].into_iter().chain(line).collect();
            let refusal = parse(front, line).expect_err("wrong arguments");
            assert_eq!(refusal.exit(), Exit::Usage);
            for part in parts {
                assert!(refusal.to_string().contains(part), "{refusal}\nshould say: {part}");
            }
        }
    }
}

#[test]
fn help_states_the_exit_codes_and_is_a_clean_stop() {
    for line in [&["--help"][..], &["serve", "--help"], &["-h"]] {
        let help = refusal(line);
        assert_eq!(help.exit(), Exit::CleanStop);
        assert!(help.to_string().contains("\n  3  could not boot"), "{help}");
    }
    assert_eq!(refusal(&["--version"]).exit(), Exit::CleanStop);
}

#[test]
fn a_programs_own_server_has_the_same_flags_under_its_own_name() {
    let parse_own = |line: &[&str]| parse(Front::OwnServer, arguments(line));
    let own = parse_own(&["--workers=5", "--arg=index=x"]).expect("right").into_config();
    assert_eq!((own.workers.get(), own.service), (5, ServiceName::Own));
    let help = parse_own(&["--help"]).expect_err("help").to_string();
    assert!(help.contains("Usage: lookup [OPTIONS]"), "{help}");
    for (flag, _) in args::flags_with_help() {
        let shipped_only = flag == "--service" || flag == "--faults";
        assert_eq!(help.contains(&flag), !shipped_only, "{flag}");
    }
    assert_eq!(parse_own(&["serve"]).expect_err("no commands").exit(), Exit::Usage);
}

#[test]
fn a_server_runs_only_if_all_is_right_and_its_exit_is_the_commands() {
    let ran = Cell::new(0);
    let run = |_: Config, _: Logger| {
        ran.set(ran.get() + 1);
        Exit::CannotBoot
    };
    assert_eq!(enter(Front::Hatchery, arguments(&["serve", "--workers=0"]), run), Exit::Usage);
    assert_eq!(ran.get(), 0);
    assert_eq!(enter(Front::Hatchery, arguments(&["serve"]), run), Exit::CannotBoot);
    assert_eq!(ran.get(), 1);
}

#[test]
fn orders_for_a_running_server_are_read_with_their_address_and_time() {
    let order = |line: &[&str]| match parse(Front::Hatchery, arguments(line)).expect("right arguments") {
        Invocation::Order(order) => order,
        other => panic!("{other:?} is no order"),
    };
    let control: crate::server::ControlAddress = "/run/x.control".parse().expect("a path");
    let reload = |timeout| Order::Reload { control: control.clone(), timeout };
    assert_eq!(order(&["reload", "--control=/run/x.control"]), reload(None));
    let timed = ["reload", "--control=unix:/run/x.control", "--timeout=30s"];
    assert_eq!(order(&timed), reload(Some(Duration::from_secs(30))));
    for json in [false, true] {
        let line = ["status", "--control", "/run/x.control", "--json"];
        assert_eq!(order(&line[..3 + usize::from(json)]), Order::Status { control: control.clone(), json });
    }
    for (line, words) in [
        (&["reload"][..], "--control"),
        (&["status"], "--control"),
        (&["reload", "--control=fd:3"], "no Unix socket"),
        (&["reload", "--control=/x", "--timeout=0s"], "1ms to 1day"),
        (&["status", "--control=/x", "--timeout=1s"], "--timeout"),
    ] {
        let refusal = refusal(line);
        assert_eq!(refusal.exit(), Exit::Usage);
        assert!(refusal.to_string().contains(words), "{refusal}\nshould say: {words}");
    }
}

#[test]
fn check_config_neither_runs_nor_listens() {
    let port = {
        let held = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        held.local_addr().expect("its address")
    };
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("x.sock");
    let line = ["serve", "--check-config", &format!("--listen={port}"), &format!("--listen=unix:{}", path.display())];
    let never = |_: Config, _: Logger| panic!("must not run");
    assert_eq!(enter(Front::Hatchery, arguments(&line), never), Exit::CleanStop);
    assert!(!path.exists());

    let nowhere = ["serve", "--check-config", "--listen=tcp:no-such-host.invalid:80"];
    let never = |_: Config, _: Logger| panic!("must not run");
    assert_eq!(enter(Front::Hatchery, arguments(&nowhere), never), Exit::CannotBoot);
}

#[test]
fn what_check_config_shows_is_every_setting() {
    let shown = show::Shown(&config(&["serve", "--workers=4", "--arg=a=b"])).to_string();
    assert_eq!(
        shown,
        "listen = 127.0.0.1:8080\naccept = shared\nscaling = static\nworkers = 4\nservice = hello\nfaults = off\narg = a=b\n\
         request-timeout = 30s\nrequest-kill-after = 5s\nidle-timeout = 1m\nstart-timeout = 30s\n\
         drain-delay = 0s\ngraceful-timeout = 30s\nmax-requests = off\nmax-age = off\nmax-memory = off\n\
         restart-budget = usual\nmax-surge = 1\nupgrade-timeout = 3m\npid-file = none\ncontrol = none\n\
         log-format = term\nlog-level = info\n"
    );
}
