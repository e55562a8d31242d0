//! Routes that hurt the worker, for tests: it sleeps, spins, panics, crashes, leaks, holds a lock,
//! leaves a process, sends without end.
//!
//! A fault is parsed into [`Fault`] before anything happens, with every number in its range.
//! `hello` has these routes only with the argument `faults=true`; they are for whoever may stop the
//! server anyway.

use std::hint::black_box;
use std::io::{self, Write};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::poll;
use nix::sys::signal::{Signal, raise};

use crate::server::{Conn, RequestCx};
use crate::sys::clock::poll_timeout;

const MAX_MS: u32 = 600_000;
const MAX_MB: u32 = 1024;
const MAX_CODE: u32 = 255;
const MAX_KB: u32 = 1024 * 1024;

/// One fault, ready to be committed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Fault {
    /// Blocks in a system call that a signal interrupts.
    Sleep(Duration),
    /// Computes and never asks for anything.
    Spin(Duration),
    Panic,
    /// Gets a signal that ends it.
    Raise(Signal),
    /// The same, in the middle of an answer.
    BreakOff,
    /// Calls itself until its stack is full.
    Overflow,
    Abort,
    Exit(i32),
    /// Keeps so many MiB for as long as the worker lives.
    Leak(usize),
    /// Holds an exclusive lock on a file.
    Flock {
        path: PathBuf,
        hold: Duration,
    },
    /// Starts a subprocess that lives so long.
    Spawn(Duration),
    /// Answers with so many bytes: more than a client may want to take.
    Bytes(usize),
}

/// A query that does not say what a fault needs.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum BadQuery {
    /// A number that is missing, not decimal, or out of its range.
    #[error("{name}: a number from 0 to {most} is needed, as in ?{name}=1")]
    Number { name: &'static str, most: u32 },
    /// A file's path that is missing or badly encoded.
    #[error("path: the absolute path of a file is needed, percent-encoded, as in ?path=/tmp/lock")]
    Path,
}

impl Fault {
    /// The fault at this path; none if there is no such route.
    pub(super) fn parse(path: &str, query: &str) -> Option<Result<Fault, BadQuery>> {
        let query = Query(query);
        Some(match path.strip_prefix("/fault/")? {
            "sleep" => query.duration().map(Fault::Sleep),
            "spin" => query.duration().map(Fault::Spin),
            "panic" => Ok(Fault::Panic),
            "segv" => Ok(Fault::Raise(Signal::SIGSEGV)),
            "bus" => Ok(Fault::Raise(Signal::SIGBUS)),
            "ill" => Ok(Fault::Raise(Signal::SIGILL)),
            "fpe" => Ok(Fault::Raise(Signal::SIGFPE)),
            "break-off" => Ok(Fault::BreakOff),
            "overflow" => Ok(Fault::Overflow),
            "abort" => Ok(Fault::Abort),
            "exit" => query.number("code", MAX_CODE).map(|code| Fault::Exit(code as i32)),
            "leak" => query.number("mb", MAX_MB).map(|mb| Fault::Leak(mb as usize)),
            "flock" => query.flock(),
            "spawn" => query.duration().map(Fault::Spawn),
            "bytes" => query.number("kb", MAX_KB).map(|kb| Fault::Bytes(kb as usize * 1024)),
            _ => return None,
        })
    }
}

/// The part of a target after the question mark.
struct Query<'q>(&'q str);

impl Query<'_> {
    fn get(&self, name: &str) -> Option<&str> {
        let pairs = self.0.split('&').filter_map(|pair| pair.split_once('='));
        pairs.filter(|(key, _)| *key == name).map(|(_, value)| value).next()
    }

    fn number(&self, name: &'static str, most: u32) -> Result<u32, BadQuery> {
        let digits = self.get(name).filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
        let number = digits.and_then(|digits| digits.parse().ok());
        number.filter(|number| *number <= most).ok_or(BadQuery::Number { name, most })
    }

    fn duration(&self) -> Result<Duration, BadQuery> {
        let ms = self.number("ms", MAX_MS)?;
        Ok(Duration::from_millis(ms.into()))
    }

    fn flock(&self) -> Result<Fault, BadQuery> {
        let path = self.get("path").and_then(percent_decoded).ok_or(BadQuery::Path)?;
        if !path.starts_with('/') || path.contains('\0') {
            return Err(BadQuery::Path);
        }
        Ok(Fault::Flock { path: path.into(), hold: self.duration()? })
    }
}

fn percent_decoded(text: &str) -> Option<String> {
    let mut parts = text.split('%');
    let mut bytes = parts.next().unwrap_or_default().as_bytes().to_vec();
    for part in parts {
        let (digits, rest) = part.split_at_checked(2)?;
        if !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return None;
        }
        bytes.push(u8::from_str_radix(digits, 16).ok()?);
        bytes.extend_from_slice(rest.as_bytes());
    }
    String::from_utf8(bytes).ok()
}

/// What is answered when a fault has been committed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Reply {
    Words(String),
    /// A [`Filler`] of so many bytes.
    Bytes(usize),
}

/// Bytes of an answer that are still to be made: printable, and each tells its place modulo a prime.
#[derive(Debug, Clone, Copy)]
pub(super) struct Filler {
    made: usize,
    all: usize,
}

impl Filler {
    pub(super) fn new(all: usize) -> Filler {
        Filler { made: 0, all }
    }

    /// Writes as much as there is room for, and tells whether that was all.
    #[inline(never)]
    pub(super) fn write_to(&mut self, conn: &mut Conn) -> io::Result<bool> {
        let mut piece = [0; 4096];
        while self.made < self.all {
            if !conn.has_room() {
                return Ok(false);
            }
            let piece = &mut piece[..(self.all - self.made).min(4096)];
            for (place, byte) in (self.made..).zip(&mut *piece) {
                *byte = b'!' + (place % 89) as u8;
            }
            conn.write_all(piece)?;
            self.made += piece.len();
        }
        Ok(true)
    }
}

/// Commits faults, and keeps what they leak.
#[derive(Debug, Default)]
pub(super) struct Faults {
    leaked: Vec<Vec<u8>>,
}

impl Faults {
    /// Commits one; gives the answer, if it returns at all.
    ///
    /// # Errors
    /// `TimedOut` if the request's deadline interrupted it; else the system's own.
    #[allow(clippy::panic)]
    pub(super) fn commit(&mut self, fault: &Fault, cx: &RequestCx<'_>) -> io::Result<Reply> {
        let words = match fault {
            Fault::Bytes(count) => return Ok(Reply::Bytes(*count)),
            Fault::Sleep(how_long) => sleep(*how_long, cx).map(|()| format!("slept {how_long:?}\n")),
            Fault::Spin(how_long) => Ok(spin(*how_long)),
            Fault::Panic => panic!("asked for by /fault/panic"),
            Fault::Raise(signal) => raise_until_dead(*signal),
            Fault::BreakOff => raise_until_dead(Signal::SIGSEGV),
            Fault::Overflow => Ok(format!("came back from {} levels down\n", descend(1))),
            Fault::Abort => std::process::abort(),
            Fault::Exit(code) => std::process::exit(*code),
            Fault::Leak(mebibytes) => self.leak(*mebibytes),
            Fault::Flock { path, hold } => hold_lock(path, *hold, cx),
            Fault::Spawn(how_long) => spawn_sleep(*how_long, cx),
        };
        words.map(Reply::Words)
    }

    fn leak(&mut self, mebibytes: usize) -> io::Result<String> {
        let bytes = mebibytes << 20;
        let mut block = Vec::new();
        block.try_reserve_exact(bytes).map_err(|error| io::Error::new(io::ErrorKind::OutOfMemory, error))?;
        // Zeros might stay untouched pages.
        block.resize(bytes, 1);
        self.leaked.push(block);
        Ok(format!("leaked {mebibytes} MiB\n"))
    }
}

/// poll(2) of nothing: unlike `thread::sleep` it comes back when a signal interrupts it.
fn sleep(how_long: Duration, cx: &RequestCx<'_>) -> io::Result<()> {
    let end = Instant::now() + how_long;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        match poll(&mut [], poll_timeout(left)) {
            Ok(_) => return Ok(()),
            Err(Errno::EINTR) => cx.in_time()?,
            Err(error) => return Err(error.into()),
        }
    }
}

fn spin(how_long: Duration) -> String {
    let end = Instant::now() + how_long;
    while Instant::now() < end {
        std::hint::spin_loop();
    }
    format!("spun {how_long:?}\n")
}

/// Where Rust's own handler for stack overflows is in place, it takes the first SEGV or BUS and restores the
/// default course; so it is raised again.
fn raise_until_dead(signal: Signal) -> io::Result<String> {
    loop {
        raise(signal)?;
    }
}

/// No optimisation makes a loop of it: each level's block is wanted after the next has come back.
fn descend(level: u64) -> u64 {
    let block = black_box([level; 128]);
    if level == u64::MAX { level } else { descend(level + 1).min(black_box(&block)[0]) }
}

fn hold_lock(path: &PathBuf, hold: Duration, cx: &RequestCx<'_>) -> io::Result<String> {
    let lock = cx.lock(path)?;
    sleep(hold, cx)?;
    Ok(format!("held {} for {hold:?}\n", lock.path().display()))
}

fn spawn_sleep(how_long: Duration, cx: &RequestCx<'_>) -> io::Result<String> {
    let sleep = cx.command("sleep").arg(how_long.as_secs_f64().to_string()).detached().spawn()?;
    Ok(format!("spawned pid {}\n", sleep.pid()))
}

#[cfg(test)]
mod tests;
