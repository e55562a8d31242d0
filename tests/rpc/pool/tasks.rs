//! What the workers of the pools of these tests can be asked to do.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc;
use std::time::Duration;
use std::{fs, thread};

use hatchery::proc::{BoxError, Registry, Template};
use hatchery::rpc::{Cx, Entry, Events, InitCx, Pool, PoolOptions, Responder};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Task {
    Say(u32),
    /// The worker's pid.
    Who,
    /// Event `n` and event `n + 1`, then the reply `n + 2`.
    Events(u32),
    /// Some work, of so many milliseconds; no test waits by it for anything.
    Work(u64),
    /// Event 0 when begun, and then no end.
    Spin,
    /// Event 0 when begun; event 1 and a reply when cancelled.
    UntilCancelled,
    /// So many bytes more, for good; then the worker's pid.
    Leak(usize),
    /// A number that counts the calls of this worker.
    Count,
    Fail(String),
    Abort,
    Exit(i32),
    Overflow,
    Kill,
}

pub type Tasks = Pool<Task, u32, u32>;

/// With the entry points of the pools.
pub fn register(registry: Registry) -> Registry {
    registry
        .rpc("tasks", Entry::new(|_| Ok(Vec::new()), carry_out))
        .rpc("tasks_deferred", Entry::deferred(100, |_| Ok(()), carry_out_later))
        .rpc("tasks_if", Entry::new(only_if, carry_out))
        .rpc("tasks_never", Entry::new(|_| hang(), carry_out))
        .rpc("tasks_die_idle", Entry::new(|_| Ok(die_soon()), carry_out))
}

/// A pool of processes of a template of its own.
pub fn pool(entry: &str, options: PoolOptions) -> Result<Tasks, Box<dyn std::error::Error>> {
    Ok(Template::spawn()?.pool(entry, options)?)
}

fn carry_out(held: &mut Vec<Vec<u8>>, task: Task, cx: &Cx<u32>) -> Result<u32, BoxError> {
    let count = count_one();
    match task {
        Task::Count => Ok(count),
        Task::Spin => {
            cx.events.send(&0)?;
            loop {
                std::hint::spin_loop();
            }
        }
        Task::UntilCancelled => {
            cx.events.send(&0)?;
            while !cx.cancelled() {
                thread::yield_now();
            }
            cx.events.send(&1)?;
            Ok(0)
        }
        Task::Leak(bytes) => {
            held.push(vec![1; bytes]);
            Ok(std::process::id())
        }
        other => simple(other, &cx.events),
    }
}

/// One more call of this worker has begun.
fn count_one() -> u32 {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    COUNT.fetch_add(1, Ordering::Relaxed) + 1
}

fn carry_out_later((): &mut (), task: Task, responder: Responder<u32>, events: &Events<u32>) {
    let (count, events) = (count_one(), events.clone());
    thread::spawn(move || match task {
        Task::Count => responder.answer(Ok(count)),
        Task::UntilCancelled => {
            let _ = events.send(&0);
            while !responder.cancelled() {
                thread::yield_now();
            }
            let _ = events.send(&1);
            responder.answer(Ok(0));
        }
        other => responder.answer(simple(other, &events)),
    });
}

fn simple(task: Task, events: &Events<u32>) -> Result<u32, BoxError> {
    match task {
        Task::Say(number) => Ok(number),
        Task::Who => Ok(std::process::id()),
        Task::Events(number) => {
            events.send(&number)?;
            events.send(&(number + 1))?;
            Ok(number + 2)
        }
        Task::Work(millis) => {
            thread::sleep(Duration::from_millis(millis));
            Ok(std::process::id())
        }
        Task::Fail(words) => Err(words.into()),
        Task::Abort => std::process::abort(),
        Task::Exit(code) => std::process::exit(code),
        Task::Overflow => Ok(deeper(1)),
        Task::Kill => {
            kill(Pid::this(), Signal::SIGKILL)?;
            hang()
        }
        other => Err(format!("{other:?} is no simple task").into()),
    }
}

/// Recurses until there is no stack left.
fn deeper(level: u32) -> u32 {
    let here = std::hint::black_box([level; 1024]);
    if here[1] == 0 { 0 } else { deeper(here[0] + 1) + here[1023] }
}

fn hang<T>() -> Result<T, BoxError> {
    let (_never, wait) = mpsc::channel();
    Ok(wait.recv()?)
}

/// Starts only if the file that it was given the name of exists.
fn only_if(cx: &mut InitCx) -> Result<Vec<Vec<u8>>, BoxError> {
    let path = cx.arg_str(0)?;
    fs::read(path).map_err(|error| format!("the dictionary {path} is missing: {error}"))?;
    Ok(Vec::new())
}

fn die_soon() -> Vec<Vec<u8>> {
    thread::spawn(|| {
        thread::sleep(Duration::from_millis(5));
        std::process::exit(3);
    });
    Vec::new()
}
