//! Starting a fresh image of a program as a template: `posix_spawn(3)`, so that the cost does not depend on
//! the size of the process that asks.
//!
//! The new process finds its control socket at a fixed descriptor and a marker in its environment;
//! [`take_control`] is its side of the agreement.

use std::ffi::{CString, OsStr};
use std::fs::OpenOptions;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::unistd::Pid;

use super::descriptors;

/// Where a template finds its end of the control socket.
const CONTROL: RawFd = 3;

/// Descriptors below this are redirected in the child, so what it needs until `exec` lies above.
const ABOVE_REDIRECTED: RawFd = 10;

/// The environment variable that tells a program it is to be a template; its value is [`PROTOCOL`].
const MARKER: &str = "HATCHERY_TEMPLATE";

/// The version of the conversation between a master and its processes.
const PROTOCOL: &str = "1";

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
        Ok(Image { file: descriptors::duplicate_above(OwnedFd::from(file), ABOVE_REDIRECTED)? })
    }

    /// Starts the program with `control` as its control socket, in a process group of its own, with an
    /// empty signal mask, default signal actions and no standard input.
    pub(crate) fn spawn(&self, title: &OsStr, control: OwnedFd) -> io::Result<Pid> {
        let control = descriptors::duplicate_above(control, ABOVE_REDIRECTED)?;
        let program = CString::new(format!("/proc/self/fd/{}", self.file.as_raw_fd()))?;
        let title = CString::new(title.as_bytes())?;
        let environment = environment()?;
        let arguments = [title.as_ptr().cast_mut(), std::ptr::null_mut()];
        let variables: Vec<*mut libc::c_char> =
            environment.iter().map(|entry| entry.as_ptr().cast_mut()).chain([std::ptr::null_mut()]).collect();
        let actions = FileActions::for_template(control.as_raw_fd())?;
        let attributes = Attributes::for_template()?;
        let mut pid = 0;
        // SAFETY: all pointers are to live, initialised, null-terminated values of the types asked for.
        let error = unsafe {
            libc::posix_spawn(
                &raw mut pid,
                program.as_ptr(),
                &raw const actions.0,
                &raw const attributes.0,
                arguments.as_ptr(),
                variables.as_ptr(),
            )
        };
        check(error)?;
        Ok(Pid::from_raw(pid))
    }
}

/// This process's environment with the marker added.
fn environment() -> io::Result<Vec<CString>> {
    std::env::vars_os()
        .filter(|(key, _)| key != MARKER)
        .chain([(MARKER.into(), PROTOCOL.into())])
        .map(|(key, value)| {
            let mut entry = key.into_vec();
            entry.push(b'=');
            entry.extend(value.into_vec());
            Ok(CString::new(entry)?)
        })
        .collect()
}

struct FileActions(libc::posix_spawn_file_actions_t);

impl FileActions {
    fn for_template(control: RawFd) -> io::Result<FileActions> {
        let mut raw = MaybeUninit::uninit();
        // SAFETY: the pointer is to room for the object that the call initialises.
        check(unsafe { libc::posix_spawn_file_actions_init(raw.as_mut_ptr()) })?;
        // SAFETY: initialised by the call above.
        let mut actions = FileActions(unsafe { raw.assume_init() });
        // SAFETY: the object is initialised; the path is a static string with a terminator.
        check(unsafe {
            libc::posix_spawn_file_actions_addopen(&raw mut actions.0, 0, c"/dev/null".as_ptr(), libc::O_RDONLY, 0)
        })?;
        // SAFETY: the object is initialised.
        check(unsafe { libc::posix_spawn_file_actions_adddup2(&raw mut actions.0, control, CONTROL) })?;
        Ok(actions)
    }
}

impl Drop for FileActions {
    fn drop(&mut self) {
        // SAFETY: initialised in the constructor, destroyed only here.
        unsafe { libc::posix_spawn_file_actions_destroy(&raw mut self.0) };
    }
}

struct Attributes(libc::posix_spawnattr_t);

impl Attributes {
    fn for_template() -> io::Result<Attributes> {
        let mut raw = MaybeUninit::uninit();
        // SAFETY: the pointer is to room for the object that the call initialises.
        check(unsafe { libc::posix_spawnattr_init(raw.as_mut_ptr()) })?;
        // SAFETY: initialised by the call above.
        let mut attributes = Attributes(unsafe { raw.assume_init() });
        let flags = libc::POSIX_SPAWN_SETPGROUP | libc::POSIX_SPAWN_SETSIGDEF | libc::POSIX_SPAWN_SETSIGMASK;
        // SAFETY: the object is initialised.
        check(unsafe { libc::posix_spawnattr_setflags(&raw mut attributes.0, flags as libc::c_short) })?;
        // SAFETY: the object is initialised; 0 asks for a new group, led by the child.
        check(unsafe { libc::posix_spawnattr_setpgroup(&raw mut attributes.0, 0) })?;
        let all = nix::sys::signal::SigSet::all();
        // SAFETY: both objects are initialised.
        check(unsafe { libc::posix_spawnattr_setsigdefault(&raw mut attributes.0, all.as_ref()) })?;
        let none = nix::sys::signal::SigSet::empty();
        // SAFETY: both objects are initialised.
        check(unsafe { libc::posix_spawnattr_setsigmask(&raw mut attributes.0, none.as_ref()) })?;
        Ok(attributes)
    }
}

impl Drop for Attributes {
    fn drop(&mut self) {
        // SAFETY: initialised in the constructor, destroyed only here.
        unsafe { libc::posix_spawnattr_destroy(&raw mut self.0) };
    }
}

/// The posix_spawn family returns its error instead of setting errno.
fn check(error: i32) -> io::Result<()> {
    if error == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(error)) }
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
    let Some(protocol) = std::env::var_os(MARKER) else {
        return Ok(None);
    };
    if protocol != PROTOCOL {
        let why = format!("the master speaks version {protocol:?} of the process protocol, this program {PROTOCOL:?}");
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
    unsafe { std::env::remove_var(MARKER) };
    // SAFETY: by the contract of this function nothing in this program owns a descriptor yet.
    unsafe { descriptors::close_from(CONTROL as u32 + 1) }?;
    // SAFETY: the master has placed the socket there for us, and nobody else knows of it.
    let control = unsafe { OwnedFd::from_raw_fd(CONTROL) };
    descriptors::set_cloexec(&control)?;
    Ok(Some(control))
}
