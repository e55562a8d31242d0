//! A process that is only forked.

use std::ffi::{OsStr, OsString};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use super::error::Error;
use super::exit::Exit;
use super::hub::Hub;
use super::node::Node;
use super::process::{Args, Process, clone_pidfd, push_call, push_load};
use super::registry::Registry;
use super::waiting;
use crate::sys::fork::{self, Fork, Refused};
use crate::sys::spawn::{self, Image};
use crate::sys::{kernel, seqpacket, signals};

/// Set by [`initialise`]: a program that would start as a second master must not be spawned.
static INITIALISED: AtomicBool = AtomicBool::new(false);

/// Where [`initialise`] leaves the conversation with the master before this one until a server is run.
static INHERITANCE: Mutex<Option<OwnedFd>> = Mutex::new(None);

/// The exit code of a process that was to be a template or the next master and could not (EX_SOFTWARE of sysexits.h).
const EXIT_REFUSED: i32 = 70;

/// Makes this process a template if it was spawned as one; returns in every other process.
///
/// See [`hatchery::init`](crate::init), which is this function.
pub(crate) fn initialise(registry: &Registry) {
    match spawn::take_control() {
        Ok(Some(control)) => {
            // What is run in here may be a master in its turn.
            INITIALISED.store(true, Ordering::Relaxed);
            waiting::serve(registry, control)
        }
        Ok(None) => INITIALISED.store(true, Ordering::Relaxed),
        Err(error) => refuse("a template", &error, "HATCHERY_TEMPLATE"),
    }
    match spawn::take_inheritance() {
        Ok(Some(conversation)) => *INHERITANCE.lock().unwrap_or_else(PoisonError::into_inner) = Some(conversation),
        Ok(None) => {}
        Err(error) => refuse("the next master", &error, "HATCHERY_UPGRADE"),
    }
}

fn refuse(what: &str, error: &std::io::Error, variable: &str) -> ! {
    eprintln!(
        "hatchery: cannot start as {what}: {error} (it was asked to by the environment variable {variable}, which \
         only a master should set)"
    );
    std::process::exit(EXIT_REFUSED)
}

/// The conversation with the master that this one is to replace, if it was started for that; it can be taken once.
pub(crate) fn take_inheritance() -> Option<OwnedFd> {
    INHERITANCE.lock().unwrap_or_else(PoisonError::into_inner).take()
}

/// A process that is never run but only forked: it holds what its children are to share.
///
/// It is a fresh image of this program with one thread, so forking it is cheap and safe however large and
/// threaded the master is. What its calls build is shared with its children copy-on-write; descriptors and
/// arguments sent to it are inherited in order.
///
/// Dropping it ends it, once those of its children have ended that somebody still holds a handle of.
///
/// ```no_run
/// use hatchery::proc::{Registry, Template};
///
/// let registry = Registry::new()
///     .call("geo::load", |cx| { println!("loading {}", cx.arg_str(0)?); Ok(()) })
///     .run("my_server::run", |cx| { println!("serving on {:?}", cx.fds); Ok(()) });
/// hatchery::init(&registry);
///
/// let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
/// let mut template = Template::spawn()?;
/// template.call("geo::load", ["cities.bin"])?.send_fd(listener)?.sync()?;
/// let workers: Result<Vec<_>, _> =
///     (1..=10).map(|id| template.fork()?.send_arg(id.to_string())?.run("my_server::run")).collect();
/// for worker in workers? {
///     println!("worker {} ended: {}", worker.pid()?, worker.wait()?);
/// }
/// # Ok::<(), hatchery::proc::Error>(())
/// ```
#[derive(Debug)]
pub struct Template {
    node: Arc<Node>,
}

impl Template {
    /// Starts a template: a fresh image of this program.
    ///
    /// It is the very file that this process runs, even if another was put in its place since.
    ///
    /// # Errors
    /// [`Error::NotInitialised`], [`Error::Spawn`], or no descriptor is left.
    pub fn spawn() -> Result<Template, Error> {
        if !INITIALISED.load(Ordering::Relaxed) || spawn::is_marked() {
            return Err(Error::NotInitialised);
        }
        let image = Image::current().map_err(|error| Error::system("open this program's own file", error))?;
        let name = std::env::args_os().next().unwrap_or_else(|| "hatchery".into());
        Template::start(&image, Path::new(&name), &titled(&name, "template"))
    }

    /// Starts a template from an executable that calls [`hatchery::init`](crate::init) like this one: a new
    /// version of this program, or another.
    ///
    /// The file must be a binary: a script cannot be started in this way.
    ///
    /// # Errors
    /// [`Error::Spawn`], or no descriptor is left. That the program is no template shows at the first
    /// [`sync`](Template::sync): it ends, or does not answer in time.
    pub fn spawn_program(path: impl AsRef<Path>) -> Result<Template, Error> {
        let path = path.as_ref();
        let image = Image::open(path).map_err(|source| spawn_error(path, source))?;
        Template::start(&image, path, &titled(path.as_os_str(), "template"))
    }

    /// The title is what `ps` shows as the command line of the template and of all that is forked from it.
    pub(crate) fn start(image: &Image, program: &Path, title: &OsStr) -> Result<Template, Error> {
        kernel::require_linux_5_10()?;
        let (ours, theirs) = seqpacket::pair().map_err(|error| Error::system("make the template's socket", error))?;
        Hub::get().map_err(|error| Error::system("watch the template", error))?;
        let pid = image.spawn(title, theirs).map_err(|source| spawn_error(program, source))?;
        let pidfd = fork::supervise(pid).map_err(|error| Error::system("open the template's pidfd", error))?;
        let node = Node::started(pid.as_raw(), pidfd, ours);
        node.watch_own_exit()?;
        Ok(Template { node })
    }

    /// Forks a template from the calling program as it is at this moment, with all that it has loaded.
    ///
    /// For programs that load much and start threads late: call it before the first thread. In the new process
    /// this function does not return.
    ///
    /// # Errors
    /// [`Error::Threads`] if the program has a second thread; the kernel's refusal of the fork.
    pub fn early(registry: &Registry) -> Result<Template, Error> {
        kernel::require_linux_5_10()?;
        static EARLY: Mutex<Vec<Weak<Node>>> = Mutex::new(Vec::new());
        let mut early = EARLY.lock().unwrap_or_else(PoisonError::into_inner);
        early.retain(|node| node.strong_count() > 0);
        let operation = "fork an early template";
        let (ours, theirs) = seqpacket::pair().map_err(|error| Error::system("make the template's socket", error))?;
        // What is in the buffer would be written by the new process once more. Nothing can be done about a
        // standard output that cannot be written, and it is no reason not to fork.
        let _ = std::io::Write::flush(&mut std::io::stdout());
        match fork::fork(theirs) {
            Ok(Fork::Parent(pid)) => {
                let pidfd = fork::supervise(pid).map_err(|error| Error::system(operation, error))?;
                let node = Node::started(pid.as_raw(), pidfd, ours);
                early.push(Arc::downgrade(&node));
                Ok(Template { node })
            }
            Ok(Fork::Child(theirs)) => {
                drop(ours);
                // The conversations with earlier ones are the master's alone.
                early.drain(..).filter_map(|node| node.upgrade()).for_each(|node| node.close_inherited());
                drop(early);
                signals::default_of_rust();
                if let Err(error) = nix::unistd::setpgid(nix::unistd::Pid::from_raw(0), nix::unistd::Pid::from_raw(0))
                    .map_err(std::io::Error::from)
                    .and_then(|()| signals::unblock_all())
                {
                    eprintln!("hatchery: cannot start as an early template: {error}");
                    crate::sys::exec::leave(EXIT_REFUSED);
                }
                waiting::serve(registry, theirs)
            }
            Err(Refused::Threads(names)) => Err(Error::Threads { names }),
            Err(Refused::Os(error)) => Err(Error::system(operation, error)),
        }
    }

    pub(super) fn from_node(node: Arc<Node>) -> Template {
        Template { node }
    }

    /// Forks it: the new process has everything that was sent to the template so far, in order.
    ///
    /// # Errors
    /// The template has ended. That the fork itself was refused is told by the new process's [`pid`](Process::pid).
    pub fn fork(&mut self) -> Result<Process, Error> {
        Ok(Process { node: self.node.fork()? })
    }

    /// Sends an argument, any bytes, which every process forked from now on inherits.
    ///
    /// # Errors
    /// The template has ended; or EMFILE, since an argument over 64 KiB travels as a memory file.
    pub fn send_arg(&mut self, arg: impl Into<Vec<u8>>) -> Result<&mut Template, Error> {
        self.node.give_arg(arg.into())?;
        Ok(self)
    }

    /// Sends a descriptor, which every process forked from now on inherits; it is closed here once it is on its way.
    ///
    /// # Errors
    /// The template has ended.
    pub fn send_fd(&mut self, fd: impl Into<OwnedFd>) -> Result<&mut Template, Error> {
        self.node.give_fd(fd.into())?;
        Ok(self)
    }

    /// Runs a registered entry point inside the template.
    ///
    /// # Errors
    /// The template has ended. The error of the entry point itself comes with the next [`sync`](Template::sync).
    pub fn call(&mut self, name: &str, args: impl Args) -> Result<&mut Template, Error> {
        push_call(&self.node, name, args)?;
        Ok(self)
    }

    /// Loads a shared object that exports entry points of its own; see the [chapter](super#shared-objects).
    ///
    /// # Errors
    /// The template has ended. The loader's error comes with the next [`sync`](Template::sync).
    pub fn load(&mut self, path: impl AsRef<Path>) -> Result<&mut Template, Error> {
        push_load(&self.node, path.as_ref())?;
        Ok(self)
    }

    /// Waits until every instruction so far was carried out.
    ///
    /// # Errors
    /// The first failure since the last sync, after which the template serves on; or the template has ended.
    pub fn sync(&mut self) -> Result<&mut Template, Error> {
        self.node.sync(None)?;
        Ok(self)
    }

    /// As [`sync`](Template::sync), for at most that long.
    ///
    /// # Errors
    /// As `sync`, and [`Error::TimedOut`].
    pub fn sync_timeout(&mut self, patience: Duration) -> Result<&mut Template, Error> {
        self.node.sync(Some(Instant::now() + patience))?;
        Ok(self)
    }

    /// Calls `callback` once every instruction so far was carried out, or one has failed, or the template has ended.
    ///
    /// It is called on this crate's thread for processes, so it must not wait: let it send to a channel.
    ///
    /// # Errors
    /// The template has ended; then `callback` may be called or not.
    pub fn on_sync(&mut self, callback: impl FnOnce(Result<(), Error>) + Send + 'static) -> Result<(), Error> {
        self.node.on_sync(Box::new(callback))
    }

    /// The template's process id; waits until it is born.
    ///
    /// # Errors
    /// Why it was not born.
    pub fn pid(&self) -> Result<i32, Error> {
        Ok(self.node.identity(None)?.0)
    }

    /// The template's end, if it has come; an error, if it was never born.
    pub fn try_wait(&self) -> Option<Result<Exit, Error>> {
        self.node.exit_now()
    }

    /// A descriptor of exactly this process (pidfd_open(2)): readable once it has ended.
    ///
    /// # Errors
    /// The template was not born or is known to have ended; EMFILE.
    pub fn pidfd(&self) -> Result<OwnedFd, Error> {
        clone_pidfd(&self.node)
    }

    /// Sends a signal (signal(7)) to exactly this process. One that has ended is no error.
    ///
    /// # Errors
    /// It was not born; EPERM, if it runs as another user; EINVAL, if there is no such signal.
    pub fn kill(&self, signal: i32) -> Result<(), Error> {
        self.node.kill(signal)
    }

    /// Calls `callback` once with the template's end, if that comes while the handle lives.
    ///
    /// It is called on this crate's thread for processes, so it must not wait: let it send to a channel.
    pub fn on_exit(&self, callback: impl FnOnce(Result<Exit, Error>) + Send + 'static) {
        self.node.on_exit(Box::new(callback));
    }
}

/// A command line for `ps`: the program, and what its processes are.
pub(crate) fn titled(program: &OsStr, what: &str) -> OsString {
    let mut title = program.to_owned();
    title.push(": ");
    title.push(what);
    title
}

fn spawn_error(program: &Path, source: std::io::Error) -> Error {
    if matches!(source.raw_os_error(), Some(nix::libc::EMFILE | nix::libc::ENFILE)) {
        return Error::system("spawn a template", source);
    }
    Error::Spawn { program: program.display().to_string(), source: Arc::new(source) }
}
