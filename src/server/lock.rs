//! Locks between processes that end with their scope, and with their process: flock(2).

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::libc;

use crate::sys::file_identity::FileIdentity;

/// A lock on a file, held until it is dropped or its process ends, by whatever: the kernel lets go of it then, and the
/// next one who waits has it.
///
/// It is a lock of flock(2): it counts for those who ask for it, on this machine. The file is created if it is not
/// there, and what it holds does not matter. No subprocess inherits the lock. A file that is replaced or deleted while
/// somebody waits for it is opened anew, so that two never hold "the" lock on two files.
///
/// In a request, [`RequestCx::lock`](super::RequestCx::lock) waits no longer than the request may take.
///
/// ```
/// use hatchery::server::FileLock;
///
/// let folder = tempfile::tempdir()?;
/// let path = folder.path().join("lock");
/// let lock = FileLock::exclusive(&path)?;
/// assert!(FileLock::try_shared(&path)?.is_none());
/// drop(lock);
/// assert!(FileLock::try_shared(&path)?.is_some());
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Debug)]
#[must_use = "a lock that is dropped at once protects nothing"]
pub struct FileLock {
    file: File,
    path: PathBuf,
}

impl FileLock {
    /// Waits for the lock as long as it takes, and holds it alone.
    ///
    /// # Errors
    /// Those of open(2) and flock(2), with the path in words: a folder that is not there, no right to read the file.
    pub fn exclusive(path: impl AsRef<Path>) -> io::Result<FileLock> {
        wait_for(path.as_ref(), File::lock, || Ok(()))
    }

    /// As [`exclusive`](Self::exclusive), but held together with all others that ask for it in this way.
    ///
    /// # Errors
    /// As for [`exclusive`](Self::exclusive).
    pub fn shared(path: impl AsRef<Path>) -> io::Result<FileLock> {
        wait_for(path.as_ref(), File::lock_shared, || Ok(()))
    }

    /// Takes the lock, to hold it alone, if it can be had at once; none if not.
    ///
    /// # Errors
    /// As for [`exclusive`](Self::exclusive).
    pub fn try_exclusive(path: impl AsRef<Path>) -> io::Result<Option<FileLock>> {
        try_for(path.as_ref(), File::try_lock)
    }

    /// Takes the lock, to hold it together with others, if it can be had at once; none if not.
    ///
    /// # Errors
    /// As for [`exclusive`](Self::exclusive).
    pub fn try_shared(path: impl AsRef<Path>) -> io::Result<Option<FileLock>> {
        try_for(path.as_ref(), File::try_lock_shared)
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for FileLock {
    fn drop(&mut self) {
        // Closing does it too, but only when the last copy of the descriptor is closed, and a child that some careless
        // code has just forked may have one.
        let _ = self.file.unlock();
    }
}

/// Waits for a lock; after each signal that interrupts it, `interrupted` says whether to go on.
pub(super) fn wait_for(
    path: &Path,
    lock: impl Fn(&File) -> io::Result<()>,
    interrupted: impl Fn() -> io::Result<()>,
) -> io::Result<FileLock> {
    let named = |error| named(path, error);
    loop {
        let file = open(path).map_err(named)?;
        while let Err(error) = lock(&file) {
            match error.kind() {
                ErrorKind::Interrupted => interrupted().map_err(named)?,
                _ => return Err(named(error)),
            }
        }
        if is_still(path, &file) {
            return Ok(FileLock { file, path: path.to_owned() });
        }
    }
}

fn try_for(path: &Path, lock: fn(&File) -> Result<(), TryLockError>) -> io::Result<Option<FileLock>> {
    loop {
        let file = open(path).map_err(|error| named(path, error))?;
        match lock(&file) {
            Ok(()) if is_still(path, &file) => return Ok(Some(FileLock { file, path: path.to_owned() })),
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(error)) => return Err(named(path, error)),
        }
    }
}

/// For reading, which is all that a lock needs; created where it is missing. A file that is there is opened without
/// O_CREAT, which the kernel refuses for others' files in /tmp (proc(5), `protected_regular`); a pipe without O_NONBLOCK
/// would wait for its writer.
fn open(path: &Path) -> io::Result<File> {
    let open = |flags| OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY | flags).open(path);
    match open(0) {
        Err(error) if error.kind() == ErrorKind::NotFound => open(libc::O_CREAT),
        opened => opened,
    }
}

/// Whether the path still leads to this file.
fn is_still(path: &Path, file: &File) -> bool {
    match (fs::metadata(path), file.metadata()) {
        (Ok(named), Ok(opened)) => FileIdentity::of(&named) == FileIdentity::of(&opened),
        _ => false,
    }
}

fn named(path: &Path, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("cannot lock {}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;
    use std::sync::mpsc;
    use std::thread;

    use super::*;

    fn folder() -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("lock");
        (folder, path)
    }

    #[test]
    fn one_holds_it_alone_or_many_share_it() {
        let (_folder, path) = folder();
        let first = FileLock::shared(&path).expect("a lock");
        let second = FileLock::try_shared(&path).expect("no error").expect("a second share");
        assert!(FileLock::try_exclusive(&path).expect("no error").is_none());
        drop(first);
        assert!(FileLock::try_exclusive(&path).expect("no error").is_none());
        drop(second);
        let alone = FileLock::try_exclusive(&path).expect("no error").expect("nobody else has it");
        assert_eq!(alone.path(), path);
        assert!(FileLock::try_shared(&path).expect("no error").is_none());
    }

    #[test]
    fn it_is_let_go_even_if_a_copy_of_the_descriptor_stays_open() {
        let (_folder, path) = folder();
        let lock = FileLock::exclusive(&path).expect("a lock");
        let _copy = lock.file.try_clone().expect("a copy");
        drop(lock);
        assert!(FileLock::try_exclusive(&path).expect("no error").is_some());
    }

    #[test]
    fn its_descriptor_is_closed_by_exec() {
        let (_folder, path) = folder();
        let lock = FileLock::exclusive(&path).expect("a lock");
        let flags = nix::fcntl::fcntl(&lock.file, nix::fcntl::FcntlArg::F_GETFD).expect("flags");
        assert_eq!(flags & libc::FD_CLOEXEC, libc::FD_CLOEXEC, "descriptor {}", lock.file.as_raw_fd());
    }

    #[test]
    fn a_file_that_may_only_be_read_can_be_locked_and_a_folder_too() {
        let (folder, path) = folder();
        fs::write(&path, "words").expect("a file");
        let mut rights = fs::metadata(&path).expect("a file").permissions();
        rights.set_readonly(true);
        fs::set_permissions(&path, rights).expect("rights");
        let _lock = FileLock::exclusive(&path).expect("a lock");
        assert_eq!(fs::read_to_string(&path).expect("a file"), "words");
        let _folders_lock = FileLock::exclusive(folder.path()).expect("a lock");
    }

    #[test]
    fn whoever_waited_for_a_deleted_file_gets_the_lock_on_the_new_one() {
        let (_folder, path) = folder();
        let first = FileLock::exclusive(&path).expect("a lock");
        let (asks, asked) = mpsc::channel();
        let lock = move |file: &File| {
            asks.send(()).expect("somebody listens");
            file.lock()
        };
        let waited_for = path.clone();
        let waiting = thread::spawn(move || wait_for(&waited_for, lock, || Ok(())));
        asked.recv().expect("it has the old file open");
        fs::remove_file(&path).expect("it is there");
        let successor = FileLock::exclusive(&path).expect("a lock on the new file");
        drop(first);
        asked.recv().expect("it asks again, for the new file");
        drop(successor);
        let lock = waiting.join().expect("no panic").expect("the lock");
        assert!(is_still(&path, &lock.file));
    }

    #[test]
    fn errors_name_the_file() {
        for lock in [FileLock::exclusive, FileLock::shared] {
            let error = lock("/nowhere/lock").expect_err("no such folder");
            assert_eq!(error.kind(), ErrorKind::NotFound);
            assert!(error.to_string().starts_with("cannot lock /nowhere/lock: "), "{error}");
        }
        assert!(FileLock::try_exclusive("/nowhere/lock").is_err());
    }
}
