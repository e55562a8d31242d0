//! Starting a fresh image of a program as a template or as the next master: `posix_spawn(3)`, so that the cost does
//! not depend on the size of the process that asks.
//!
//! The new process finds its conversation at a fixed descriptor and a marker in its environment;
//! [`take_control`] and [`take_inheritance`] are its side of the agreement.

use std::ffi::{CStr, CString, OsStr, OsString};
use std::fs::OpenOptions;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::unistd::Pid;

use super::descriptors;
use super::exec::{text, variable};
use super::posix_spawn::{self, Attributes, FileActions, Group, Program};

/// Where the new process finds its end of the conversation.
const CONTROL: RawFd = 3;

/// The environment variable that tells a program it is to be a template; its value is [`PROTOCOL`].
const MARKER: &str = "HATCHERY_TEMPLATE";

/// The version of the conversation between a master and its processes.
const PROTOCOL: &str = "1";

/// The environment variable that tells a program it is to be the next master; its value is [`UPGRADE_PROTOCOL`].
const UPGRADE_MARKER: &str = "HATCHERY_UPGRADE";

/// The version of the conversation between a master and the next one, which may be of another version of this crate.
const UPGRADE_PROTOCOL: &str = "2";

/// An executable file, held open: it stays the same file whatever happens to its path.
#[derive(Debug)]
pub(crate) struct Image {
    file: OwnedFd,
}

impl Image {
    /// The executable that this process runs, even if the file was replaced or removed since.
    pub(crate) fn current() -> io::Result<Image> {
        Image::open(Path::new("/proc/self/exe"))
    }

    /// The executable that `path` names now.
    pub(crate) fn open(path: &Path) -> io::Result<Image> {
        let file = OpenOptions::new().read(true).custom_flags(libc::O_PATH | libc::O_CLOEXEC).open(path)?;
        Ok(Image { file: descriptors::duplicate_above_redirected(OwnedFd::from(file))? })
    }

    /// Whether an interpreter runs it, which it names itself (execve(2)); of what cannot be read the kernel will tell.
    pub(crate) fn is_script(&self) -> bool {
        let mut beginning = [0; 2];
        // Not to wait for a pipe's other end.
        let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(self.path());
        file.and_then(|mut file| file.read_exact(&mut beginning)).is_ok() && beginning == *b"#!"
    }

    /// A path to the open file, for this process and those that it starts.
    fn path(&self) -> String {
        format!("/proc/self/fd/{}", self.file.as_raw_fd())
    }

    /// Starts the program with `control` as its control socket, in a process group of its own, with an
    /// empty signal mask, default signal actions and no standard input.
    pub(crate) fn spawn(&self, title: &OsStr, control: OwnedFd) -> io::Result<Pid> {
        let file = text(self.path())?;
        let mut actions = FileActions::new()?;
        actions.open_null(0, libc::O_RDONLY)?;
        spawn(&file, &[text(title)?], (MARKER, PROTOCOL), control, actions, Group::Own)
    }
}

/// Starts the program that `path` names now as the next master: with these arguments, the first of which is its
/// name, with `conversation`, and with the standard three, process group and directory of this process.
///
/// An executable's path and not its descriptor is given to the kernel, which takes the process's name from it.
pub(crate) fn next_master(path: &Path, arguments: &[OsString], conversation: OwnedFd) -> io::Result<Pid> {
    let arguments = arguments.iter().map(text).collect::<io::Result<Vec<_>>>()?;
    let marker = (UPGRADE_MARKER, UPGRADE_PROTOCOL);
    spawn(&text(path)?, &arguments, marker, conversation, FileActions::new()?, Group::Starters)
}

fn spawn(
    file: &CStr,
    arguments: &[CString],
    marker: (&str, &str),
    conversation: OwnedFd,
    mut actions: FileActions,
    group: Group,
) -> io::Result<Pid> {
    let conversation = descriptors::duplicate_above_redirected(conversation)?;
    actions.duplicate(conversation.as_raw_fd(), CONTROL)?;
    let program = Program { file, arguments, environment: &environment(marker)? };
    posix_spawn::spawn(&program, &actions, &Attributes::new(group)?)
}

/// This process's environment with the marker added, and no other of ours.
fn environment((marker, protocol): (&str, &str)) -> io::Result<Vec<CString>> {
    std::env::vars_os()
        .filter(|(key, _)| key != MARKER && key != UPGRADE_MARKER)
        .chain([(marker.into(), protocol.into())])
        .map(|(key, value)| variable(&key, &value))
        .collect()
}

/// Whether this process was started as a template and has not taken its control socket yet.
pub(crate) fn is_marked() -> bool {
    std::env::var_os(MARKER).is_some()
}

/// In a process that [`Image::spawn`] started: its control socket; `None` in any other.
///
/// To be called first in `main`, before anything else has opened a descriptor or started a thread: it
/// closes every descriptor that some careless library in the master left open across `exec`.
pub(crate) fn take_control() -> io::Result<Option<OwnedFd>> {
    take(MARKER, PROTOCOL)
}

/// In a process that [`next_master`] started: its conversation with the master before it; `None` in any other.
///
/// To be called as [`take_control`], which it resembles.
pub(crate) fn take_inheritance() -> io::Result<Option<OwnedFd>> {
    // Off the number at which it was passed: an address such as `fd:3` must not find it there.
    let conversation = take(UPGRADE_MARKER, UPGRADE_PROTOCOL)?;
    conversation.map(descriptors::duplicate_above_redirected).transpose()
}

fn take(marker: &str, spoken: &str) -> io::Result<Option<OwnedFd>> {
    let Some(protocol) = std::env::var_os(marker) else {
        return Ok(None);
    };
    if protocol != spoken {
        let why =
            format!("the master speaks version {protocol:?} of the protocol of {marker}, this program {spoken:?}");
        return Err(io::Error::new(io::ErrorKind::Unsupported, why));
    }
    if super::threads::count()? != 1 {
        let why = format!(
            "hatchery::init must come first in main; there are threads already: {}",
            super::threads::names_of_others().join(", ")
        );
        return Err(io::Error::new(io::ErrorKind::Unsupported, why));
    }
    // SAFETY: this process has one thread, so nobody reads the environment at the same time.
    unsafe { std::env::remove_var(marker) };
    // SAFETY: by the contract of this function nothing in this program owns a descriptor yet.
    unsafe { descriptors::close_from(CONTROL as u32 + 1) }?;
    // SAFETY: the master has placed the socket there for us, and nobody else knows of it.
    let control = unsafe { OwnedFd::from_raw_fd(CONTROL) };
    descriptors::set_cloexec(&control)?;
    Ok(Some(control))
}
