//! A process that waits for its instructions.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::error::Error;
use super::exec_command::ExecCommand;
use super::exit::Exit;
use super::message::{Blob, Command};
use super::node::Node;
use super::running::Running;
use super::template::Template;

/// How long a process may take to say who it is, or to finish before it is passed on.
const PATIENCE: Duration = Duration::from_secs(30);

/// A forked process that waits for its instructions: descriptors, arguments, calls, and at last the code that
/// takes it over.
///
/// Instructions are queued and carried out in order; no method here waits for the process, but
/// [`sync`](Process::sync) and [`pid`](Process::pid). If an instruction fails, those after it are skipped until
/// the next `sync`, which returns the failure; a process that is [`run`](Process::run) with a failure ends, and
/// its [`Exit`](super::Exit) tells it.
///
/// Dropping it ends the process.
///
/// ```no_run
/// use hatchery::proc::{Registry, Template};
///
/// let registry = Registry::new().run("greet", |cx| {
///     println!("hello, {}", cx.arg_str(0)?);
///     Ok(())
/// });
/// hatchery::init(&registry);
///
/// let mut template = Template::spawn()?;
/// let greeter = template.fork()?.send_arg("world")?.run("greet")?;
/// assert!(greeter.wait()?.success());
/// # Ok::<(), hatchery::proc::Error>(())
/// ```
#[derive(Debug)]
pub struct Process {
    pub(super) node: Arc<Node>,
}

impl Process {
    /// A process forked from the default template of this program, which is started at first use and kept.
    ///
    /// # Errors
    /// Those of [`Template::spawn`].
    pub fn new() -> Result<Process, Error> {
        static DEFAULT: Mutex<Option<Template>> = Mutex::new(None);
        let mut default = DEFAULT.lock().unwrap_or_else(PoisonError::into_inner);
        // A template that has died since is replaced.
        match default.as_mut().map(Template::fork) {
            Some(Ok(process)) if process.node.exit_now().is_none() => Ok(process),
            _ => default.insert(Template::spawn()?).fork(),
        }
    }

    /// Forks this process: the new one has everything that was sent to this one so far, in order.
    ///
    /// # Errors
    /// The process has ended. That the fork itself was refused is told by the new process's [`pid`](Process::pid).
    pub fn fork(&mut self) -> Result<Process, Error> {
        Ok(Process { node: self.node.fork()? })
    }

    /// Sends an argument, any bytes, for a later [`call`](Process::call) or [`run`](Process::run).
    ///
    /// # Errors
    /// The process has ended; or EMFILE, since an argument over 64 KiB travels as a memory file.
    pub fn send_arg(self, arg: impl Into<Vec<u8>>) -> Result<Process, Error> {
        self.node.give_arg(arg.into())?;
        Ok(self)
    }

    /// Sends a descriptor for a later [`call`](Process::call) or [`run`](Process::run); it is closed here once it is on its way.
    ///
    /// # Errors
    /// The process has ended.
    pub fn send_fd(self, fd: impl Into<OwnedFd>) -> Result<Process, Error> {
        self.node.give_fd(fd.into())?;
        Ok(self)
    }

    /// Runs a registered entry point inside the waiting process.
    ///
    /// # Errors
    /// The process has ended. The error of the entry point itself comes with the next [`sync`](Process::sync).
    pub fn call(self, name: &str, args: impl Args) -> Result<Process, Error> {
        push_call(&self.node, name, args)?;
        Ok(self)
    }

    /// Loads a shared object that exports entry points of its own; see the [chapter](super#shared-objects).
    ///
    /// # Errors
    /// The process has ended. The loader's error comes with the next [`sync`](Process::sync).
    pub fn load(self, path: impl AsRef<Path>) -> Result<Process, Error> {
        push_load(&self.node, path.as_ref())?;
        Ok(self)
    }

    /// Waits until every instruction so far was carried out.
    ///
    /// # Errors
    /// The first failure since the last sync; the process has ended; it was not born.
    pub fn sync(self) -> Result<Process, Error> {
        self.node.sync(None)?;
        Ok(self)
    }

    /// As [`sync`](Process::sync), for at most that long.
    ///
    /// # Errors
    /// As `sync`, and [`Error::TimedOut`]; the process is ended by the handle's drop, but a process that hangs in a
    /// call only notices after it.
    pub fn sync_timeout(self, patience: Duration) -> Result<Process, Error> {
        self.node.sync(Some(Instant::now() + patience))?;
        Ok(self)
    }

    /// Gives the process to an entry point, with its socket, its descriptors and its arguments.
    ///
    /// # Errors
    /// The process has ended. What fails later is told by [`Running::wait`].
    pub fn run(self, name: &str) -> Result<Running, Error> {
        self.node.run(name)?;
        Ok(Running { node: self.node })
    }

    /// Turns the process into another program.
    ///
    /// # Errors
    /// The process has ended. What fails later is told by [`Running::wait`].
    pub fn exec(self, command: ExecCommand) -> Result<Running, Error> {
        let (message, fds) = command.into_message();
        self.node.exec(message, fds)?;
        Ok(Running { node: self.node })
    }

    /// Makes it a template: a process that is only forked.
    #[must_use]
    pub fn into_template(self) -> Template {
        Template::from_node(self.node)
    }

    /// The process's id; waits until it is born.
    ///
    /// # Errors
    /// Why it was not: [`Failure::ForkRefused`](super::Failure::ForkRefused), [`Error::DescriptorsExhausted`], …
    pub fn pid(&self) -> Result<i32, Error> {
        Ok(self.node.identity(None)?.0)
    }

    /// A descriptor of exactly this process (pidfd_open(2)): readable once it has ended.
    ///
    /// # Errors
    /// As [`pid`](Process::pid); EMFILE; or the process is known to have ended.
    pub fn pidfd(&self) -> Result<OwnedFd, Error> {
        clone_pidfd(&self.node)
    }

    /// Sends a signal (signal(7)) to exactly this process, whatever it is at: one that hangs in a call hears neither the handle's
    /// drop nor a further instruction. One that has ended is no error.
    ///
    /// # Errors
    /// It was not born; EPERM, if it runs as another user; EINVAL, if there is no such signal.
    pub fn kill(&self, signal: i32) -> Result<(), Error> {
        self.node.kill(signal)
    }

    /// The process's end, if it has come; an error, if it was never born.
    pub fn try_wait(&self) -> Option<Result<Exit, Error>> {
        self.node.exit_now()
    }

    /// Gives up the handle but not the process: its conversation can be sent to another process, which makes
    /// a handle of it with [`Process::from_fd`]. Waits until the instructions so far were carried out.
    ///
    /// # Errors
    /// As [`sync_timeout`](Process::sync_timeout), with 30 seconds.
    pub fn into_fd(self) -> Result<OwnedFd, Error> {
        self.node.take_conversation(Instant::now() + PATIENCE)
    }

    /// A handle of a process whose conversation came from another process's [`Process::into_fd`].
    ///
    /// Its end is seen by its pidfd; an exit code can be told since Linux 6.15.
    ///
    /// # Errors
    /// At the other end there is no waiting process, or it does not answer within 30 seconds.
    pub fn from_fd(conversation: OwnedFd) -> Result<Process, Error> {
        Ok(Process { node: Node::adopted(conversation, Instant::now() + PATIENCE)? })
    }
}

/// Arguments of a call: `()`, an array, a slice or a vector of texts or bytes.
pub trait Args {
    /// The arguments as bytes.
    fn into_args(self) -> Vec<Vec<u8>>;
}

impl Args for () {
    fn into_args(self) -> Vec<Vec<u8>> {
        Vec::new()
    }
}

impl<T: AsRef<[u8]>, const N: usize> Args for [T; N] {
    fn into_args(self) -> Vec<Vec<u8>> {
        self.as_slice().into_args()
    }
}

impl<T: AsRef<[u8]>, const N: usize> Args for &[T; N] {
    fn into_args(self) -> Vec<Vec<u8>> {
        self.as_slice().into_args()
    }
}

impl<T: AsRef<[u8]>> Args for Vec<T> {
    fn into_args(self) -> Vec<Vec<u8>> {
        self.as_slice().into_args()
    }
}

impl<T: AsRef<[u8]>> Args for &[T] {
    fn into_args(self) -> Vec<Vec<u8>> {
        self.iter().map(|arg| arg.as_ref().to_vec()).collect()
    }
}

pub(super) fn push_call(node: &Arc<Node>, name: &str, args: impl Args) -> Result<(), Error> {
    let args = args.into_args().into_iter().map(Blob).collect();
    node.push("call an entry point", Command::Call { name: name.to_owned(), args }, Vec::new())
}

pub(super) fn push_load(node: &Arc<Node>, path: &Path) -> Result<(), Error> {
    let path = Blob::from(path.as_os_str());
    node.push("load a shared object", Command::Load { path }, Vec::new())
}

pub(super) fn clone_pidfd(node: &Node) -> Result<OwnedFd, Error> {
    let operation = "copy the process's pidfd";
    match node.identity(None)? {
        (_, Some(pidfd)) => pidfd.try_clone().map_err(|error| Error::system(operation, error)),
        (_, None) => Err(node.ended_before(operation)),
    }
}
