//! Processes that a bench starts, and surely ends: by pid, whole trees, on every way out.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{Result, interrupt};

/// How long a tree may take to end after SIGTERM before it is killed.
const PATIENCE: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(5);

/// A started process; dropping it ends it and all that descends from it.
pub struct Started {
    child: Child,
}

impl Started {
    pub fn new(command: &mut Command) -> Result<Started> {
        let program = command.get_program().to_string_lossy().into_owned();
        // A group of its own: Apache sends SIGTERM to its whole group when it stops.
        let child = command.process_group(0).spawn().map_err(|e| format!("cannot start {program}: {e}"))?;
        Ok(Started { child })
    }

    /// The pipes that were asked for, to be taken.
    pub fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    /// This process and all its descendants.
    pub fn tree(&self) -> Vec<Life> {
        tree_below(self.child.id())
    }

    /// Those of the tree that have no children: of a pre-fork server, its workers.
    pub fn leaves(&self) -> Vec<Life> {
        let tree = self.tree();
        let parents: HashSet<u32> = tree.iter().map(|life| life.parent).collect();
        tree.into_iter().filter(|life| !parents.contains(&life.pid)).collect()
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        // Taken before the root ends: afterwards its orphans are no longer to be told from others.
        let tree = self.tree();
        send(self.child.id(), Signal::SIGTERM);
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            let root_ended = !matches!(self.child.try_wait(), Ok(None));
            if root_ended && !tree.iter().any(Life::goes_on) {
                return;
            }
            sleep(POLL);
        }
        for life in tree.iter().filter(|life| life.goes_on()) {
            send(life.pid, Signal::SIGKILL);
        }
        if let Err(error) = self.child.wait() {
            eprintln!("cannot reap process {}: {error}", self.child.id());
        }
    }
}

/// Runs a program to its end and gives what it printed. It must bound its own time.
///
/// # Errors
/// It could not be started, or failed; then with its own first words.
pub fn run_to_end(command: &mut Command) -> Result<String> {
    interrupt::check()?;
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.stdin(Stdio::null()).output().map_err(|e| format!("cannot run {program}: {e}"))?;
    interrupt::check()?;
    if !output.status.success() {
        let words = String::from_utf8_lossy(&output.stderr);
        let words = words.lines().next().unwrap_or_default();
        return Err(format!("{program} ended with {}: {words}", output.status).into());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// One life of a process. The start time tells it from a later process with the same pid.
pub struct Life {
    pub pid: u32,
    parent: u32,
    start_time: u64,
    zombie: bool,
    ticks: u64,
}

impl Life {
    fn read(pid: u32) -> Option<Life> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name, in parentheses, may itself hold spaces and parentheses (proc_pid_stat(5)).
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        Some(Life {
            pid,
            zombie: *fields.first()? == "Z",
            parent: fields.get(1)?.parse().ok()?,
            start_time: fields.get(19)?.parse().ok()?,
            ticks: fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?,
        })
    }

    /// Processor time that it had taken, user and system.
    pub fn cpu_time(&self) -> Duration {
        // USER_HZ is 100 on Linux, whatever the kernel's own tick is (proc_pid_stat(5), time(7)).
        Duration::from_millis(self.ticks * 10)
    }

    fn goes_on(&self) -> bool {
        Life::read(self.pid).is_some_and(|now| now.start_time == self.start_time && !now.zombie)
    }
}

fn tree_below(root: u32) -> Vec<Life> {
    let mut children: HashMap<u32, Vec<Life>> = HashMap::new();
    for life in all_pids().unwrap_or_default().into_iter().filter_map(Life::read) {
        children.entry(life.parent).or_default().push(life);
    }
    let mut tree: Vec<Life> = Life::read(root).into_iter().collect();
    let mut next = 0;
    while next < tree.len() {
        let below = children.remove(&tree[next].pid).unwrap_or_default();
        tree.extend(below);
        next += 1;
    }
    tree
}

fn all_pids() -> io::Result<Vec<u32>> {
    let entries = fs::read_dir("/proc")?;
    Ok(entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect())
}

fn send(pid: u32, signal: Signal) {
    // It may have ended by itself meanwhile: then there is nothing to do.
    let _ = kill(Pid::from_raw(pid.cast_signed()), signal);
}
