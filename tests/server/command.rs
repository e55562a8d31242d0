//! The command's own promises: its defaults, its exit codes, and that a wrong word starts and changes nothing.

use std::collections::BTreeSet;
use std::fs;
use std::process::{Command, Output};

use libtest_mimic::Trial;
use nix::sys::signal::Signal;

use crate::support::client::Client;
use crate::support::{Launch, Server, freeze, signal_process};

pub fn tests() -> Vec<Trial> {
    trials!["command":
        without_arguments_it_is_hello_on_port_8080_with_at_least_four_workers,
        hello_greets_with_slot_pid_and_generation_from_several_workers,
        echo_gives_lines_back,
        the_word_serve_changes_nothing,
        a_service_of_ones_own_has_the_same_flags,
        a_loop_of_ones_own_serves_and_drains,
        each_wrong_flag_or_value_names_itself_and_what_would_be_right,
        a_wrong_word_starts_and_changes_nothing,
        checking_the_configuration_does_not_listen,
        help_and_version_are_no_failure,
        what_cannot_be_shown_is_told_and_a_failure,
        every_signal_that_stops_ends_with_0,
    ]
}

fn hatchery(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_hatchery")).args(args).output().expect("the command runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn without_arguments_it_is_hello_on_port_8080_with_at_least_four_workers() {
    let checked = hatchery(&["--check-config"]);
    assert_eq!(checked.status.code(), Some(0));
    let lines = text(&checked.stdout);
    assert!(lines.contains("listen = 127.0.0.1:8080\n") && lines.contains("service = hello\n"), "{lines}");
    let workers = lines.lines().find_map(|line| line.strip_prefix("workers = ")).expect("a line for workers");
    assert!(workers.parse::<u32>().expect("a number") >= 4);
}

fn hello_greets_with_slot_pid_and_generation_from_several_workers() {
    let server = Server::start(&["--workers", "4"]);
    let workers = server.workers();
    let mut met = BTreeSet::new();
    for _ in 0..4 {
        let (slot, pid, generation) = server.get("/").greeting();
        assert_eq!((workers[&slot], generation), (pid, 1));
        assert!(met.insert(pid), "a stopped worker has answered");
        // Whoever stands still leaves the others to answer.
        freeze(pid);
    }
    met.into_iter().for_each(|pid| signal_process(pid, Signal::SIGCONT));
}

fn echo_gives_lines_back() {
    let server = Server::start(&["--service", "echo"]);
    let mut client = server.client();
    for line in ["one", "", "drei ü"] {
        assert_eq!(client.exchange(line).expect("an answer"), line);
    }
}

fn the_word_serve_changes_nothing() {
    let mut server = Launch::hatchery().args(["serve", "--workers", "2"]).start();
    server.get("/").greeting();
    assert_eq!(server.workers().len(), 2);
    server.stop();
}

fn a_service_of_ones_own_has_the_same_flags() {
    let mut server = Launch::fixture("probe").args(["--workers", "2", "--idle-timeout", "5s"]).start();
    let who = server.client().exchange("who").expect("an answer");
    let pid: i32 = who.split(' ').nth(1).expect("a pid").parse().expect("a number");
    assert!(server.workers().values().any(|&worker| worker == pid));
    server.stop();
}

fn a_loop_of_ones_own_serves_and_drains() {
    let mut server = Launch::fixture("own-loop").args(["--workers", "2"]).start();
    let line = server.client().line().expect("a line");
    assert!(line.starts_with("own loop in slot "), "{line}");
    server.stop();
    assert_eq!(server.log.count(|record| record.is("the own loop has drained")), 2);
}

fn each_wrong_flag_or_value_names_itself_and_what_would_be_right() {
    let cases: [(&[&str], &[&str]); 15] = [
        (&["--lisen", "127.0.0.1:0"], &["--lisen", "--listen"]),
        (&["surve"], &["surve", "serve"]),
        (&["--listen", "localhost"], &["localhost", "--listen", "port"]),
        (&["--listen", "127.0.0.1:70000"], &["70000", "65535"]),
        (&["--listen", "unix:relative"], &["relative", "unix:/"]),
        (&["--listen", "fd:1"], &["fd:1", "3"]),
        (&["--workers", "0"], &["`0`", "--workers", "1 to 4096"]),
        (&["--workers", "many"], &["`many`", "--workers", "1 to 4096"]),
        (&["--service", "hallo"], &["hallo", "--service", "hello, echo"]),
        (&["--request-timeout", "30"], &["`30`", "--request-timeout", "30s"]),
        (&["--graceful-timeout", "-1s"], &["-1s", "--graceful-timeout"]),
        (&["--pid-file", "/"], &["`/`", "--pid-file"]),
        (&["--log-format", "xml"], &["xml", "--log-format", "term, json"]),
        (&["--log-level", "loud"], &["loud", "--log-level", "info"]),
        (&["--arg", "nameless"], &["nameless", "--arg", "KEY=VALUE"]),
    ];
    for (args, words) in cases {
        let output = hatchery(args);
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {said}");
        for word in words {
            assert!(said.contains(word), "{args:?}: {word:?} is missing in: {said}");
        }
    }
}

fn a_wrong_word_starts_and_changes_nothing() {
    let directory = tempfile::tempdir().expect("a directory");
    let of = |name: &str| directory.path().join(name);
    fs::write(of("pid"), "12345678\n").expect("a stale pid file");
    drop(std::os::unix::net::UnixListener::bind(of("socket")).expect("a stale socket"));
    let before = fs::read_dir(directory.path()).expect("it is there").count();
    let unix = format!("unix:{}", of("socket").display());
    let pid_file = of("pid").display().to_string();
    let output = hatchery(&["--listen", &unix, "--pid-file", &pid_file, "--workers", "none"]);
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(fs::read_to_string(of("pid")).expect("it is there"), "12345678\n");
    assert!(of("socket").exists());
    assert_eq!(fs::read_dir(directory.path()).expect("it is there").count(), before);
    assert!(!text(&output.stderr).contains("listening"));
}

fn checking_the_configuration_does_not_listen() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("socket");
    let output = hatchery(&["--check-config", "--listen", &format!("unix:{}", path.display())]);
    assert_eq!(output.status.code(), Some(0));
    assert!(!path.exists());
}

fn help_and_version_are_no_failure() {
    for flag in ["--help", "--version"] {
        let output = hatchery(&[flag]);
        assert_eq!(output.status.code(), Some(0));
        assert!(text(&output.stdout).to_lowercase().contains("hatchery"));
    }
}

fn what_cannot_be_shown_is_told_and_a_failure() {
    for asked in ["--help", "--check-config"] {
        let full = fs::OpenOptions::new().write(true).open("/dev/full").expect("it is always full");
        let mut command = Command::new(env!("CARGO_BIN_EXE_hatchery"));
        let output = command.arg(asked).stdout(full).output().expect("the command runs");
        assert_eq!(output.status.code(), Some(1));
        assert!(text(&output.stderr).contains("No space left"), "{}", text(&output.stderr));
    }
}

fn every_signal_that_stops_ends_with_0() {
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGQUIT] {
        let mut server = Server::start(&["--workers", "2"]);
        let address = server.address();
        server.stop_by(signal);
        assert!(Client::connect(&address).is_err(), "the port is still served after {signal}");
    }
}
