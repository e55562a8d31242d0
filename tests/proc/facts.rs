//! What a process finds when it looks at itself.

use std::error::Error;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;

use hatchery::proc::{Channel, Received, Running};
use serde::{Deserialize, Serialize};

/// A process's own view of itself, out of /proc.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    pub pid: u32,
    pub parent: u32,
    pub group: i32,
    pub threads: usize,
    /// Its open descriptors and what each leads to.
    pub descriptors: Vec<(i32, String)>,
    /// Bit masks of signals, signal 1 in the lowest bit.
    pub blocked: u64,
    pub ignored: u64,
    pub caught: u64,
    pub mappings: usize,
    pub executable: String,
    pub args: Vec<Vec<u8>>,
}

impl Facts {
    /// Looks around in the calling process.
    pub fn gather(args: &[Vec<u8>]) -> io::Result<Facts> {
        let status = fs::read_to_string("/proc/self/status")?;
        Ok(Facts {
            pid: std::process::id(),
            parent: std::os::unix::process::parent_id(),
            group: nix::unistd::getpgrp().as_raw(),
            threads: fs::read_dir("/proc/self/task")?.count(),
            descriptors: descriptors()?,
            blocked: mask(&status, "SigBlk:"),
            // Without 32 and 33, which glibc keeps to itself and ignores in what posix_spawn starts.
            ignored: mask(&status, "SigIgn:") & !(3 << 31),
            caught: mask(&status, "SigCgt:"),
            mappings: fs::read_to_string("/proc/self/maps")?.lines().count(),
            executable: fs::read_link("/proc/self/exe")?.to_string_lossy().into_owned(),
            args: args.to_vec(),
        })
    }

    /// What its descriptors from 3 on lead to, inode numbers left out.
    pub fn kinds_beyond_standard(&self) -> Vec<&str> {
        let beyond = self.descriptors.iter().filter(|(number, _)| *number > 2);
        beyond.map(|(_, target)| target.split_once(":[").map_or(target.as_str(), |(kind, _)| kind)).collect()
    }
}

/// The open descriptors of this process, without the one that reads the list.
pub fn descriptors() -> io::Result<Vec<(i32, String)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc/self/fd")? {
        let entry = entry?;
        let number = entry.file_name().to_string_lossy().parse().map_err(io::Error::other)?;
        if let Ok(target) = fs::read_link(entry.path()) {
            found.push((number, target.to_string_lossy().into_owned()));
        }
    }
    found.retain(|(_, target)| !(target.starts_with("/proc/") && target.ends_with("/fd")));
    found.sort();
    Ok(found)
}

/// How many descriptors are open in this process.
pub fn count_descriptors() -> io::Result<usize> {
    Ok(descriptors()?.len())
}

fn mask(status: &str, key: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix(key)).unwrap_or("");
    u64::from_str_radix(line.trim(), 16).unwrap_or(u64::MAX)
}

/// The one message of a process that tells something.
pub fn told<T: serde::de::DeserializeOwned>(socket: OwnedFd) -> Result<(T, Vec<OwnedFd>), Box<dyn Error>> {
    match Channel::<(), T>::new(socket).recv()? {
        Received::Message { message, fds, .. } => Ok((message, fds)),
        Received::Eof => Err("the process ended without a word".into()),
        _ => Err("nothing was told".into()),
    }
}

/// The facts of a process that runs `facts`.
pub fn facts_of(process: &Running) -> Result<Facts, Box<dyn Error>> {
    Ok(told(process.socket()?)?.0)
}
