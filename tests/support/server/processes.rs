//! What `/proc` says about processes.

use std::collections::BTreeMap;
use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::unistd::{SysconfVar, sysconf};

use super::PATIENCE;

/// A line of `/proc/PID/stat`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stat {
    pub state: char,
    pub parent: i32,
    pub group: i32,
}

pub fn stat(pid: i32) -> Option<Stat> {
    let line = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name stands in parentheses and may hold any character.
    let mut fields = line.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?.chars().next()?;
    Some(Stat { state, parent: fields.next()?.parse().ok()?, group: fields.next()?.parse().ok()? })
}

/// The processor time that a process has used, its own and the kernel's on its behalf.
#[track_caller]
pub fn cpu_time(pid: i32) -> Duration {
    let line = fs::read_to_string(format!("/proc/{pid}/stat")).expect("the process is there");
    let fields = line.rsplit_once(')').expect("its name").1.split_whitespace();
    // The fields utime and stime of proc_pid_stat(5), in ticks.
    let ticks: u64 = fields.skip(11).take(2).map(|field| field.parse::<u64>().expect("a number")).sum();
    let per_second = sysconf(SysconfVar::CLK_TCK).expect("it is known").expect("it is defined");
    Duration::from_millis(ticks * 1000 / per_second as u64)
}

/// Alive, or at least not dead: a zombie is dead.
pub fn is_alive(pid: i32) -> bool {
    stat(pid).is_some_and(|stat| !matches!(stat.state, 'Z' | 'X'))
}

fn all() -> Vec<i32> {
    let entries = fs::read_dir("/proc").expect("/proc is mounted");
    entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// The children of a process, dead ones included.
pub fn children(parent: i32) -> Vec<i32> {
    all().into_iter().filter(|&pid| stat(pid).is_some_and(|stat| stat.parent == parent)).collect()
}

/// The dead children that one of `parents` has not reaped.
pub fn zombies_of(parents: &[i32]) -> Vec<i32> {
    let is_zombie = |stat: Stat| stat.state == 'Z' && parents.contains(&stat.parent);
    all().into_iter().filter(|&pid| stat(pid).is_some_and(is_zombie)).collect()
}

/// The live processes that were started with this variable.
pub fn with_variable(name: &str, value: &str) -> Vec<i32> {
    let entry = format!("{name}={value}").into_bytes();
    let has = |pid: i32| {
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environment.split(|&byte| byte == 0).any(|part| part == entry)
    };
    all().into_iter().filter(|&pid| has(pid) && is_alive(pid)).collect()
}

/// What each descriptor of a process is, as its link says.
pub fn descriptors(pid: i32) -> BTreeMap<i32, String> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).expect("the process is there");
    let named = entries.flatten().filter_map(|entry| {
        let target: PathBuf = fs::read_link(entry.path()).ok()?;
        Some((entry.file_name().to_str()?.parse().ok()?, target.to_string_lossy().into_owned()))
    });
    named.collect()
}

/// The lines of `/proc/PID/maps` that speak of `name`.
pub fn maps_of(pid: i32, name: &str) -> Vec<String> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).expect("the process is there");
    maps.lines().filter(|line| line.contains(name)).map(str::to_owned).collect()
}

/// Looks again and again until it holds: for what leaves no record and no descriptor to wait for.
#[track_caller]
pub fn eventually(what: &str, holds: impl Fn() -> bool) {
    within(PATIENCE, what, holds);
}

/// As [`eventually`], for a promise with a time of its own. Gives how long it took.
#[track_caller]
pub fn within(limit: Duration, what: &str, holds: impl Fn() -> bool) -> Duration {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < limit, "not within {limit:?}: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
    began.elapsed()
}

/// Whether nobody listens at a port. It may have become the own port of some other program's client meanwhile, which cannot be
/// told from its bind(2) alone.
pub fn is_free(address: &str) -> bool {
    let address: SocketAddr = address.parse().expect("an IP address");
    TcpListener::bind(address).is_ok() || !is_listened_at(address.port())
}

fn is_listened_at(port: u16) -> bool {
    let listens = |line: &str| {
        let mut fields = line.split_whitespace().skip(1);
        let (local, _, state) = (fields.next(), fields.next(), fields.next());
        local.is_some_and(|local| local.ends_with(&format!(":{port:04X}"))) && state == Some("0A")
    };
    ["/proc/net/tcp", "/proc/net/tcp6"]
        .iter()
        .any(|table| fs::read_to_string(table).expect("the kernel's table").lines().any(listens))
}
