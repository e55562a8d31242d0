//! A service as entry points: what the template calls and what the workers run.

use std::cell::OnceCell;
use std::collections::VecDeque;
use std::ffi::CString;
use std::io;
use std::mem;
use std::os::fd::AsFd;
use std::rc::Rc;

use nix::sys::signal::Signal;
use serde::Serialize;
use serde::de::DeserializeOwned;
use slog::{Logger, o};

use super::acceptor::Acceptor;
use super::config::{LogFormat, LogLevel, ServiceName};
use super::drain::MasterLink;
use super::scoreboard::Record;
use super::service::{BoxError, PreloadCx, Service, WorkerCx};
use super::worker_config::{Listened, WorkerBirth, WorkerConfig};
use crate::proc::{CallCx, Channel, Registry, RunCx};
use crate::sys::{crash, promptness};

/// Makes a worker's logger. It is called in the worker, which has one thread and may start others.
pub type MakeLogger = fn(LogFormat, LogLevel) -> Logger;

/// Adds a program's own service to its entry points.
///
/// The master finds it under [`ServiceName::Own`], which is what a [`Config`](super::Config) names by default.
///
/// ```no_run
/// use std::io::Write;
/// use hatchery::proc::Registry;
/// use hatchery::server::{self, Config, Conn, Next, PreloadCx, RequestCx, Result, Service, WorkerCx};
/// use slog::{Discard, Logger, o};
///
/// struct Motd;
///
/// impl Service for Motd {
///     type Preload = ();
///     fn preload(_: &PreloadCx) -> Result<()> { Ok(()) }
///     fn start(_: &'static (), _: &WorkerCx) -> Result<Motd> { Ok(Motd) }
///     fn serve(&mut self, conn: &mut Conn, _: &mut RequestCx) -> Result<Next> {
///         conn.consume(conn.buffer().len());
///         writeln!(conn, "all is well")?;
///         Ok(Next::Close)
///     }
/// }
///
/// fn main() -> Result<(), server::RunError> {
///     let silent = || Logger::root(Discard, o!());
///     hatchery::init(&server::host::<Motd>(Registry::new(), |_, _| Logger::root(Discard, o!())));
///     server::run(Config::default(), silent())
/// }
/// ```
#[must_use]
pub fn host<S: Service>(registry: Registry, logger: MakeLogger) -> Registry {
    host_as::<S>(registry, ServiceName::Own, logger)
}

/// Adds a service to the entry points under this name.
pub(crate) fn host_as<S: Service>(registry: Registry, name: ServiceName, logger: MakeLogger) -> Registry {
    let of_template: Rc<OnceCell<Preloaded<S::Preload>>> = Rc::default();
    let of_worker = Rc::clone(&of_template);
    registry
        .call(preload_entry(name), move |cx| preload::<S>(cx, &of_template))
        .run(worker_entry(name), move |cx| work::<S>(cx, &of_worker, logger))
}

/// What a worker has from its template.
struct Preloaded<P: 'static> {
    built: &'static P,
    /// The template itself. A worker whose template died just after the fork would ask for its parent in vain.
    template: i32,
}

/// The entry point that the template calls once. Its arguments are the [generation](super::Generation) and the
/// master's pid.
pub(crate) fn preload_entry(name: ServiceName) -> String {
    format!("{name}::preload")
}

/// The entry point that a worker runs. Its descriptors are the listeners that all share, the scoreboard, and the
/// listeners of its slot alone; its arguments are a [`WorkerConfig`] and a [`WorkerBirth`].
pub(crate) fn worker_entry(name: ServiceName) -> String {
    format!("{name}::worker")
}

/// An argument of an entry point.
pub(crate) fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, BoxError> {
    Ok(postcard::to_stdvec(value)?)
}

fn decode<T: DeserializeOwned>(args: &[Vec<u8>], index: usize) -> Result<T, BoxError> {
    let arg = args.get(index).ok_or("the master did not say how to run")?;
    Ok(postcard::from_bytes(arg)?)
}

fn preload<S: Service>(cx: &mut CallCx<'_>, preloaded: &OnceCell<Preloaded<S::Preload>>) -> Result<(), BoxError> {
    let generation = decode(cx.args, 0)?;
    set_process_name(&format!("hatch-tmpl g{generation}"));
    end_with_parent(decode(cx.args, 1)?)?;
    crash::note_handlers()?;
    // What its master has, the code that builds the preload is not to have.
    promptness::be_ordinary();
    let built = S::preload(&PreloadCx::new(decode(cx.held_args, 0)?, generation))?;
    // It belongs to the template and all its workers, to the end of each.
    let preload = Preloaded { built: Box::leak(Box::new(built)), template: nix::unistd::getpid().as_raw() };
    // From now on it forks and reaps, and a slot waits for it.
    promptness::be_prompt();
    preloaded.set(preload).map_err(|_| "the template has preloaded already".into())
}

fn work<S: Service>(
    cx: RunCx,
    preloaded: &OnceCell<Preloaded<S::Preload>>,
    logger: MakeLogger,
) -> Result<(), BoxError> {
    let config: WorkerConfig = decode(&cx.args, 0)?;
    let birth: WorkerBirth = decode(&cx.args, 1)?;
    let preloaded = preloaded.get().ok_or("the template has not preloaded")?;
    let WorkerBirth { slot, generation, .. } = birth;
    set_process_name(&format!("hatch-w{slot} g{generation}"));
    // Until it hears the master itself, in its loop, a worker that hangs in its start ends with its template.
    end_with_parent(preloaded.template)?;
    let pid = std::process::id();
    let log = logger(config.log_format, config.log_level)
        .new(o!("slot" => birth.slot.0, "pid" => pid, "generation" => birth.generation.0));
    let mut fds = cx.fds.into_iter();
    let shared = config.listeners.iter().filter(|listened| !listened.own).count();
    let mut shared: VecDeque<_> = fds.by_ref().take(shared).collect();
    let board = fds.next().ok_or("the scoreboard is missing")?;
    let record = Record::map(board.as_fd(), &birth, pid)?;
    record.keep_trace();
    drop(board);
    let acceptors = config.listeners.iter().map(|Listened { address, own }| {
        let fd = if *own { fds.next() } else { shared.pop_front() };
        Acceptor::from_fd(fd.ok_or_else(|| io::Error::other("a listener is missing"))?, address.clone())
    });
    let acceptors = acceptors.collect::<io::Result<Vec<_>>>()?;
    let link = MasterLink::new(Channel::new(cx.socket));
    let cx = WorkerCx::new(acceptors, config, birth, link, record, log)?;
    // Up to here it was its template's concern; now it is one of many who serve.
    promptness::be_ordinary();
    let service = S::start(preloaded.built, &cx)?;
    nix::sys::prctl::set_pdeathsig(None)?;
    // Its socket is the worker's for life: where it ends, the master takes the worker for dead. A service that lets go of
    // its context, and with it of the listeners, may have much in hand all the same.
    mem::forget(Rc::clone(&cx.link));
    service.run(cx)
}

/// From here on the end of the parent is the end of this process, whatever it hangs in (PR_SET_PDEATHSIG).
///
/// A template's parent is the thread that runs the master, which lasts as long as the server.
fn end_with_parent(parent: i32) -> Result<(), BoxError> {
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
    if nix::unistd::getppid().as_raw() == parent { Ok(()) } else { Err("the parent has ended already".into()) }
}

/// Names the process for `ps -o comm` and `top`; 15 bytes count (PR_SET_NAME). Its command line is its template's: to
/// write there would cost each worker a page of its own.
fn set_process_name(name: &str) {
    if let Ok(name) = CString::new(name) {
        // It is a convenience for people: nothing depends on it.
        let _ = nix::sys::prctl::set_name(&name);
    }
}
