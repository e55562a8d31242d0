//! Processes that a bench starts, and surely ends: by pid, whole trees, on every way out.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread::{sleep, yield_now};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{Result, interrupt};

/// How long a tree may take to end after SIGTERM before it is killed.
const PATIENCE: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(5);
const FREEZE_AT_MOST: Duration = Duration::from_millis(50);

/// A started process; dropping it ends it and all that descends from it.
pub struct Started {
    child: Child,
    /// Who was there when the root was killed: its orphans are nobody's descendants any more.
    left_behind: Vec<Life>,
}

impl Started {
    pub fn new(command: &mut Command) -> Result<Started> {
        let program = command.get_program().to_string_lossy().into_owned();
        // A group of its own: Apache sends SIGTERM to its whole group when it stops.
        let child = command.process_group(0).spawn().map_err(|e| format!("cannot start {program}: {e}"))?;
        Ok(Started { child, left_behind: Vec::new() })
    }

    /// The pipes that were asked for, to be taken.
    pub fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    /// This process and all its descendants.
    pub fn tree(&self) -> Vec<Life> {
        tree_below(self.child.id())
    }

    /// Those of the tree that have no children: of a pre-fork server, its workers. The root is none, nor is a template
    /// that has none yet.
    pub fn leaves(&self) -> Vec<Life> {
        let tree = self.tree();
        let parents: HashSet<u32> = tree.iter().map(|life| life.parent).collect();
        let is_worker = |life: &Life| {
            !parents.contains(&life.pid) && life.pid != self.child.id() && !life.name.starts_with("hatch-tmpl")
        };
        tree.into_iter().filter(is_worker).collect()
    }

    /// Sends a signal to the root alone.
    pub fn signal(&self, signal: Signal) {
        send(self.child.id(), signal);
    }

    /// Kills the root and gives all the others of the tree.
    pub fn behead(&mut self) -> Result<&[Life]> {
        let root = self.child.id();
        self.left_behind = self.tree().into_iter().filter(|life| life.pid != root).collect();
        self.child.kill()?;
        self.child.wait()?;
        Ok(&self.left_behind)
    }

    /// Whether the root has ended.
    pub fn has_ended(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        // Taken before the root ends: afterwards its orphans are no longer to be told from others.
        let mut tree = self.tree();
        tree.append(&mut self.left_behind);
        let ended_before = self.has_ended();
        if !ended_before {
            send(self.child.id(), Signal::SIGTERM);
        }
        // Whom nobody is left to tell does not end by himself.
        let deadline = Instant::now() + if ended_before { Duration::ZERO } else { PATIENCE };
        while Instant::now() < deadline {
            if self.has_ended() && !tree.iter().any(Life::goes_on) {
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
    /// In ticks since the machine's boot: who is older has less.
    pub start_time: u64,
    name: String,
    parent: u32,
    state: char,
    ticks: u64,
}

impl Life {
    fn read(pid: u32) -> Option<Life> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name, in parentheses, may itself hold spaces and parentheses (proc_pid_stat(5)).
        let (before, fields) = stat.rsplit_once(')')?;
        let fields: Vec<&str> = fields.split_whitespace().collect();
        Some(Life {
            pid,
            name: before.split_once('(')?.1.to_owned(),
            state: fields.first()?.chars().next()?,
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

    /// Whether it has not ended; a zombie has.
    pub fn goes_on(&self) -> bool {
        self.state_now().is_some_and(|state| state != 'Z')
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        send(self.pid, signal);
    }

    /// Stops it where it is, so that what it holds can be counted.
    pub fn freeze(&self) {
        self.signal(Signal::SIGSTOP);
        let deadline = Instant::now() + FREEZE_AT_MOST;
        while !matches!(self.state_now(), Some('T' | 'Z') | None) && Instant::now() < deadline {
            yield_now();
        }
    }

    /// The sockets that it has open, by inode.
    pub fn sockets(&self) -> HashSet<PathBuf> {
        let Ok(entries) = fs::read_dir(format!("/proc/{}/fd", self.pid)) else {
            return HashSet::new();
        };
        let targets = entries.flatten().filter_map(|entry| fs::read_link(entry.path()).ok());
        targets.filter(|target| target.to_string_lossy().starts_with("socket:")).collect()
    }

    fn state_now(&self) -> Option<char> {
        Life::read(self.pid).filter(|now| now.start_time == self.start_time).map(|now| now.state)
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
