//! A service as entry points: what the template calls and what the workers run.

use std::cell::OnceCell;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::rc::Rc;

use nix::sys::prctl;
use nix::sys::signal::Signal;
use serde::Serialize;
use serde::de::DeserializeOwned;
use slog::{Logger, o};

use super::acceptor::Acceptor;
use super::config::{LogFormat, LogLevel, ServiceName};
use super::drain::MasterLink;
use super::message::{FromWorker, ToWorker};
use super::scoreboard::Record;
use super::service::{BoxError, PreloadCx, Service, WorkerCx};
use super::worker_config::{WorkerBirth, WorkerConfig};
use crate::proc::{CallCx, Channel, Received, Registry, RunCx};

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
    let preloaded: Rc<OnceCell<&'static S::Preload>> = Rc::default();
    let built = Rc::clone(&preloaded);
    registry
        .call(preload_entry(name), move |cx| preload::<S>(cx, &built))
        .run(worker_entry(name), move |cx| work::<S>(cx, &preloaded, logger))
}

/// The entry point that the template calls once. Its arguments are the [generation](super::Generation) and the
/// master's pid.
pub(crate) fn preload_entry(name: ServiceName) -> String {
    format!("{name}::preload")
}

/// The entry point that a worker runs. Its descriptors are the listeners and, last, the scoreboard; its
/// arguments are a [`WorkerConfig`] and a [`WorkerBirth`].
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

fn preload<S: Service>(cx: &mut CallCx<'_>, preloaded: &OnceCell<&'static S::Preload>) -> Result<(), BoxError> {
    let generation = decode(cx.args, 0)?;
    set_process_name(&format!("hatch-tmpl g{generation}"));
    let _tied = Tied::to_parent()?;
    if nix::unistd::getppid().as_raw() != decode::<u32>(cx.args, 1)? as i32 {
        return Err("the master has ended".into());
    }
    let built = S::preload(&PreloadCx::new(decode(cx.held_args, 0)?, generation))?;
    // It belongs to the template and all its workers, to the end of each.
    let built: &'static S::Preload = Box::leak(Box::new(built));
    preloaded.set(built).map_err(|_| "the template has preloaded already".into())
}

fn work<S: Service>(cx: RunCx, preloaded: &OnceCell<&'static S::Preload>, logger: MakeLogger) -> Result<(), BoxError> {
    let config: WorkerConfig = decode(&cx.args, 0)?;
    let birth: WorkerBirth = decode(&cx.args, 1)?;
    let preloaded = preloaded.get().ok_or("the template has not preloaded")?;
    set_process_name(&format!("hatch-w{} g{}", birth.slot, birth.generation));
    let pid = std::process::id();
    let log = logger(config.log_format, config.log_level)
        .new(o!("slot" => birth.slot.0, "pid" => pid, "generation" => birth.generation.0));
    let mut fds = cx.fds;
    let board = fds.pop().ok_or("the scoreboard is missing")?;
    let record = Record::map(board.as_fd(), &birth, pid)?;
    drop(board);
    let addresses = config.listeners.iter().cloned();
    let acceptors = fds.into_iter().zip(addresses).map(|(fd, address)| Acceptor::from_fd(fd, address));
    let acceptors = acceptors.collect::<io::Result<Vec<_>>>()?;
    let link = Link(Channel::new(cx.socket));
    let cx = WorkerCx::new(acceptors, config, birth, Box::new(link), record, log)?;
    let tied = Tied::to_parent()?;
    if cx.draining() {
        // Nobody waits for it any more.
        return Ok(());
    }
    let service = S::start(preloaded, &cx)?;
    drop(tied);
    service.run(cx)
}

/// While it lives, this process dies with its parent (PR_SET_PDEATHSIG): it is busy with the user's code, for however
/// long, and would not see the end of its socket, but hold the listeners. It serves nobody yet.
struct Tied;

impl Tied {
    fn to_parent() -> io::Result<Tied> {
        prctl::set_pdeathsig(Signal::SIGKILL)?;
        Ok(Tied)
    }
}

impl Drop for Tied {
    fn drop(&mut self) {
        // It takes no argument that could be wrong.
        let _ = prctl::set_pdeathsig(None);
    }
}

/// What `ps` and `top` show. It is a convenience: nothing depends on it.
fn set_process_name(name: &str) {
    if let Ok(name) = std::ffi::CString::new(name) {
        let _ = prctl::set_name(&name);
    }
}

/// The worker's end of its socket.
struct Link(Channel<FromWorker, ToWorker>);

impl MasterLink for Link {
    fn ready(&self) -> io::Result<()> {
        self.0.send(&FromWorker::Ready, Vec::new())
    }

    fn poll_drain(&self) -> bool {
        match self.0.try_recv() {
            Ok(Received::Empty) => false,
            Ok(Received::Message { message: ToWorker::Drain, .. } | Received::Eof) => true,
            // A conversation that makes no sense is as good as none.
            Err(_) => true,
        }
    }

    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
