//! `posix_spawn(3)`: a new program without a copy of this process, whatever its size and its number of threads.
//!
//! libc runs the few steps between the two programs (descriptors, directory, signals) on a stack of their own, with all
//! signals blocked, while the calling thread stands still: no code of this process has to be async-signal-safe.

use std::ffi::{CStr, CString};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::RawFd;
use std::path::Path;

use nix::unistd::Pid;

use super::descriptors;
use super::exec::text;

/// The program and what it is told.
pub(crate) struct Program<'a> {
    /// Its path; without a slash, a name that PATH leads to.
    pub(crate) file: &'a CStr,
    pub(crate) arguments: &'a [CString],
    pub(crate) environment: &'a [CString],
}

/// Starts it.
pub(crate) fn spawn(program: &Program<'_>, actions: &FileActions, attributes: &Attributes) -> io::Result<Pid> {
    let (arguments, environment) = (pointers(program.arguments), pointers(program.environment));
    let mut pid = 0;
    // SAFETY: all pointers are to live, initialised, null-terminated values of the types asked for.
    let error = unsafe {
        libc::posix_spawnp(
            &raw mut pid,
            program.file.as_ptr(),
            &raw const actions.0,
            &raw const attributes.0,
            arguments.as_ptr(),
            environment.as_ptr(),
        )
    };
    check(error)?;
    Ok(Pid::from_raw(pid))
}

fn pointers(texts: &[CString]) -> Vec<*mut libc::c_char> {
    texts.iter().map(|text| text.as_ptr().cast_mut()).chain([std::ptr::null_mut()]).collect()
}

/// What is done with descriptors and the directory before the program starts, in this order.
pub(crate) struct FileActions(libc::posix_spawn_file_actions_t);

impl FileActions {
    pub(crate) fn new() -> io::Result<FileActions> {
        let mut raw = MaybeUninit::uninit();
        // SAFETY: the pointer is to room for the object that the call initialises.
        check(unsafe { libc::posix_spawn_file_actions_init(raw.as_mut_ptr()) })?;
        // SAFETY: initialised by the call above.
        Ok(FileActions(unsafe { raw.assume_init() }))
    }

    /// Opens /dev/null as this descriptor; `how` is O_RDONLY or O_WRONLY.
    pub(crate) fn open_null(&mut self, at: RawFd, how: i32) -> io::Result<()> {
        // SAFETY: the object is initialised; the path is a static string with a terminator.
        check(unsafe { libc::posix_spawn_file_actions_addopen(&raw mut self.0, at, c"/dev/null".as_ptr(), how, 0) })
    }

    /// Makes `at` a copy of the descriptor `of`.
    pub(crate) fn duplicate(&mut self, of: RawFd, at: RawFd) -> io::Result<()> {
        // SAFETY: the object is initialised.
        check(unsafe { libc::posix_spawn_file_actions_adddup2(&raw mut self.0, of, at) })
    }

    pub(crate) fn change_directory(&mut self, directory: &Path) -> io::Result<()> {
        let directory = text(directory)?;
        // SAFETY: the object is initialised, and libc copies the path.
        check(unsafe { libc::posix_spawn_file_actions_addchdir_np(&raw mut self.0, directory.as_ptr()) })
    }

    /// Closes every descriptor but the standard three, those too that another thread opens meanwhile.
    pub(crate) fn close_beyond_standard(&mut self) -> io::Result<()> {
        type CloseFrom = unsafe extern "C" fn(*mut libc::posix_spawn_file_actions_t, libc::c_int) -> libc::c_int;
        // SAFETY: the name is a static string with a terminator.
        let found = unsafe { libc::dlsym(libc::RTLD_DEFAULT, c"posix_spawn_file_actions_addclosefrom_np".as_ptr()) };
        if found.is_null() {
            // glibc before 2.34: then this process marks them itself, which no program that it starts is to hold.
            return descriptors::close_beyond_standard_at_exec();
        }
        // SAFETY: not null, so it is libc's function of that name, of this type (posix_spawn_file_actions_addclosefrom_np(3)).
        let close_from = unsafe { std::mem::transmute::<*mut libc::c_void, CloseFrom>(found) };
        // SAFETY: the object is initialised.
        check(unsafe { close_from(&raw mut self.0, 3) })
    }
}

impl Drop for FileActions {
    fn drop(&mut self) {
        // SAFETY: initialised in the constructor, destroyed only here.
        unsafe { libc::posix_spawn_file_actions_destroy(&raw mut self.0) };
    }
}

/// Whom a new process belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Group {
    /// The process group of who starts it.
    Starters,
    /// A process group of its own.
    Own,
    /// A session of its own, and so a process group as well.
    OwnSession,
}

/// The state in which the program starts: default signal actions, an empty mask.
pub(crate) struct Attributes(libc::posix_spawnattr_t);

impl Attributes {
    pub(crate) fn new(group: Group) -> io::Result<Attributes> {
        let mut raw = MaybeUninit::uninit();
        // SAFETY: the pointer is to room for the object that the call initialises.
        check(unsafe { libc::posix_spawnattr_init(raw.as_mut_ptr()) })?;
        // SAFETY: initialised by the call above.
        let mut attributes = Attributes(unsafe { raw.assume_init() });
        let signals = (libc::POSIX_SPAWN_SETSIGDEF | libc::POSIX_SPAWN_SETSIGMASK) as libc::c_short;
        let flags = match group {
            Group::Starters => signals,
            // Without a further call the group is a new one, which the process leads.
            Group::Own => signals | libc::POSIX_SPAWN_SETPGROUP as libc::c_short,
            Group::OwnSession => signals | libc::POSIX_SPAWN_SETSID,
        };
        // SAFETY: the object is initialised.
        check(unsafe { libc::posix_spawnattr_setflags(&raw mut attributes.0, flags) })?;
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
