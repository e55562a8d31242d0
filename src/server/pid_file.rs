//! The pid file: who runs here, held by a lock that dies with its holder.
//!
//! A number in a file proves nothing: its process may be gone, and the number may be another's by now. So the
//! running server holds an flock on the file for as long as it lives. A file whose lock is free is
//! stale for certain, whatever number it holds. The new file is written and locked under another name
//! first, and then linked or renamed into place: a reader finds a whole number, and a starter finds it locked.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use nix::libc;

use crate::sys::file_identity::FileIdentity;

/// The longest content of a pid file: a number, a newline and some spaces.
const LONGEST: u64 = 32;

/// This process's pid file, locked for as long as the value lives.
#[derive(Debug)]
pub(crate) struct PidFile {
    path: PathBuf,
    /// Closed on exec, so that no child keeps the lock.
    locked: File,
    /// What it holds is still the pid of the master before this one, with which the lock is shared.
    is_lent: bool,
}

/// A pid file cannot be written. What was there before is unchanged.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PidFileError {
    /// A running process holds the file: this server, or another with the same pid file, runs already.
    /// Stop it first, or choose another file.
    #[error("cannot write the pid file {}: process {holder} runs and holds it; stop it first, or choose another file", path.display())]
    Held {
        /// The pid file.
        path: PathBuf,
        /// What the file says: a pid, or `?` if the holder was just starting.
        holder: String,
    },
    /// The path holds something that is no pid file, which was left alone. Likely cause: a typing
    /// error in the path. Choose another path, or remove the file if it is of no use.
    #[error("cannot write the pid file {}: there is {what}, which was left alone; choose another path, or remove it yourself", path.display())]
    NotAPidFile {
        /// The path.
        path: PathBuf,
        /// What is there.
        what: &'static str,
    },
    /// A system call failed. Likely cause: the directory is missing, or this user may not write there.
    #[error("cannot write the pid file {}: {operation}: {source}; make its directory first, writable for this user", path.display())]
    System {
        /// The pid file.
        path: PathBuf,
        /// What was done to it.
        operation: &'static str,
        /// The kernel's words.
        source: io::Error,
    },
}

impl PidFile {
    /// Writes this process's pid to `path` and holds the file, replacing a stale one.
    ///
    /// # Errors
    /// [`PidFileError`], in particular `Held` when a running process holds the file.
    pub(crate) fn claim(path: &Path) -> Result<PidFile, PidFileError> {
        let (beside, locked) = write_beside(path)?;
        // Ends, because each further round means that another starter took or left the path.
        loop {
            let placed = match stale(path)? {
                None => fs::hard_link(&beside.0, path).map_err(PidFileError::call(path, "link")),
                // The old file stays locked until the new one has its name.
                Some(_old) => fs::rename(&beside.0, path).map_err(PidFileError::call(path, "rename")),
            };
            match placed {
                Ok(()) => {
                    return Ok(PidFile { path: path.to_owned(), locked, is_lent: false });
                }
                Err(PidFileError::System { source, .. }) if source.kind() == ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// The file of the master before this one, if the path is still its; else it is [claimed](PidFile::claim).
    ///
    /// The lock came with its descriptor: it holds for as long as one of the two masters lives. The file says the other
    /// one's pid until [`PidFile::take_over`].
    ///
    /// # Errors
    /// As [`PidFile::claim`].
    pub(crate) fn inherit(path: &Path, locked: File) -> Result<PidFile, PidFileError> {
        if is_at(&locked, path).map_err(PidFileError::call(path, "stat"))? {
            Ok(PidFile { path: path.to_owned(), locked, is_lent: true })
        } else {
            PidFile::claim(path)
        }
    }

    /// From now on an inherited file is this process's, and says its pid.
    ///
    /// # Errors
    /// As [`PidFile::claim`].
    pub(crate) fn take_over(&mut self) -> Result<(), PidFileError> {
        if !self.is_lent {
            return Ok(());
        }
        let path = &self.path;
        if is_at(&self.locked, path).map_err(PidFileError::call(path, "stat"))? {
            let (beside, locked) = write_beside(path)?;
            fs::rename(&beside.0, path).map_err(PidFileError::call(path, "rename"))?;
            self.locked = locked;
            self.is_lent = false;
        } else {
            *self = PidFile::claim(path)?;
        }
        Ok(())
    }

    /// Where the file is, and a second descriptor for it, which shares the lock.
    ///
    /// # Errors
    /// No descriptor is left.
    pub(crate) fn pass(&self) -> io::Result<(&Path, OwnedFd)> {
        Ok((&self.path, self.locked.as_fd().try_clone_to_owned()?))
    }

    /// Removes the file if the path is still ours; another process's file there stays.
    ///
    /// # Errors
    /// The kernel's refusal to look at the path or to unlink it.
    pub(crate) fn remove(self) -> io::Result<()> {
        let removed = match is_at(&self.locked, &self.path) {
            Ok(true) if self.is_lent => Ok(()),
            Ok(true) => fs::remove_file(&self.path),
            Ok(false) => Ok(()),
            Err(error) => Err(error),
        };
        match removed {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }
}

/// The new file's first name, which goes when the value goes.
struct Beside(PathBuf);

impl Drop for Beside {
    fn drop(&mut self) {
        // Gone already if it was renamed; a name that stays is of no harm.
        let _ = fs::remove_file(&self.0);
    }
}

fn write_beside(path: &Path) -> Result<(Beside, File), PidFileError> {
    let pid = std::process::id();
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let first_name = path.with_file_name(format!(".{name}.{pid}.{}", now.as_nanos()));
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o644)
        .open(&first_name)
        .map_err(PidFileError::call(path, "create a file beside it"))?;
    let beside = Beside(first_name);
    file.lock().map_err(PidFileError::call(path, "flock"))?;
    file.write_all(format!("{pid}\n").as_bytes()).map_err(PidFileError::call(path, "write"))?;
    Ok((beside, file))
}

/// The stale pid file at `path`, locked; `None` if nothing is there.
fn stale(path: &Path) -> Result<Option<File>, PidFileError> {
    loop {
        let Some(mut file) = open_existing(path)? else {
            return Ok(None);
        };
        let holder = content(path, &mut file)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(PidFileError::Held { path: path.to_owned(), holder });
            }
            Err(TryLockError::Error(source)) => {
                return Err(PidFileError::call(path, "flock")(source));
            }
        }
        // Another starter may have replaced it between opening and locking: then look again.
        if is_at(&file, path).map_err(PidFileError::call(path, "stat"))? {
            return Ok(Some(file));
        }
    }
}

fn open_existing(path: &Path) -> Result<Option<File>, PidFileError> {
    // O_NONBLOCK: a named pipe would wait for its writer.
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
    let file = match OpenOptions::new().read(true).custom_flags(flags).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) if error.raw_os_error() == Some(libc::ELOOP) => {
            return Err(PidFileError::not_ours(path, "a symbolic link"));
        }
        Err(error) if error.raw_os_error() == Some(libc::ENXIO) => {
            return Err(PidFileError::not_ours(path, "a socket"));
        }
        Err(error) => return Err(PidFileError::call(path, "open")(error)),
    };
    let metadata = file.metadata().map_err(PidFileError::call(path, "stat"))?;
    if metadata.is_dir() {
        return Err(PidFileError::not_ours(path, "a directory"));
    }
    if !metadata.is_file() {
        return Err(PidFileError::not_ours(path, "no regular file"));
    }
    Ok(Some(file))
}

/// The pid in the file, or `?` for an empty one, which a full disk may have left.
fn content(path: &Path, file: &mut File) -> Result<String, PidFileError> {
    let mut bytes = Vec::new();
    file.take(LONGEST + 1).read_to_end(&mut bytes).map_err(PidFileError::call(path, "read"))?;
    let pid = bytes.trim_ascii();
    if bytes.len() as u64 > LONGEST || !pid.iter().all(u8::is_ascii_digit) {
        return Err(PidFileError::not_ours(path, "a file that holds something else than a pid"));
    }
    Ok(if pid.is_empty() { "?".to_owned() } else { String::from_utf8_lossy(pid).into_owned() })
}

fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    Ok(FileIdentity::at(path)? == Some(FileIdentity::of(&file.metadata()?)))
}

impl PidFileError {
    fn call<'a>(path: &'a Path, operation: &'static str) -> impl FnOnce(io::Error) -> Self + 'a {
        move |source| PidFileError::System { path: path.to_owned(), operation, source }
    }

    fn not_ours(path: &Path, what: &'static str) -> Self {
        PidFileError::NotAPidFile { path: path.to_owned(), what }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;

    use tempfile::TempDir;

    use super::*;

    fn place() -> (TempDir, PathBuf) {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("server.pid");
        (directory, path)
    }

    fn names(directory: &TempDir) -> Vec<String> {
        let entries = fs::read_dir(directory.path()).expect("list");
        entries.map(|entry| entry.expect("entry").file_name().to_string_lossy().into()).collect()
    }

    #[test]
    fn the_file_holds_our_pid_and_goes_at_the_end() {
        let (directory, path) = place();
        let file = PidFile::claim(&path).expect("claim");
        let written = fs::read_to_string(&path).expect("read");
        assert_eq!(written, format!("{}\n", std::process::id()));
        assert_eq!(names(&directory), ["server.pid"]);
        file.remove().expect("remove");
        assert_eq!(names(&directory), [""; 0]);
    }

    #[test]
    fn a_file_whose_holder_is_gone_is_replaced_even_if_its_number_runs() {
        let (directory, path) = place();
        fs::write(&path, "1\n").expect("a stale file with the pid of a running process");
        let file = PidFile::claim(&path).expect("claim");
        assert_eq!(fs::read_to_string(&path).expect("read"), format!("{}\n", std::process::id()));
        drop(file);
        PidFile::claim(&path).expect("the holder left without removing it");
        assert_eq!(names(&directory), ["server.pid"]);
    }

    #[test]
    fn a_file_that_is_held_is_refused_by_pid_and_left_as_it_is() {
        let (directory, path) = place();
        let _held = PidFile::claim(&path).expect("claim");
        let error = PidFile::claim(&path).expect_err("held");
        assert!(matches!(error, PidFileError::Held { .. }), "{error}");
        assert!(error.to_string().contains(&std::process::id().to_string()), "{error}");
        assert!(error.to_string().contains("server.pid"), "{error}");
        assert_eq!(names(&directory), ["server.pid"]);
    }

    #[test]
    fn what_is_no_pid_file_is_refused_and_left_alone() {
        let (directory, path) = place();
        let refused = |what: &str| {
            let error = PidFile::claim(&path).expect_err(what);
            assert!(matches!(error, PidFileError::NotAPidFile { .. }), "{error}");
            assert!(error.to_string().contains(what), "{error}");
        };
        fs::write(&path, "precious\n").expect("write");
        refused("something else than a pid");
        assert_eq!(fs::read_to_string(&path).expect("read"), "precious\n");
        fs::remove_file(&path).expect("unlink");

        fs::create_dir(&path).expect("mkdir");
        refused("a directory");
        fs::remove_dir(&path).expect("rmdir");

        let target = directory.path().join("target");
        fs::write(&target, "12\n").expect("write");
        std::os::unix::fs::symlink(&target, &path).expect("symlink");
        refused("a symbolic link");
        assert_eq!(fs::read_to_string(&target).expect("read"), "12\n");
    }

    #[test]
    fn another_processs_file_is_not_removed_at_the_end() {
        let (_directory, path) = place();
        let ours = PidFile::claim(&path).expect("claim");
        fs::remove_file(&path).expect("someone unlinks it");
        let _theirs = PidFile::claim(&path).expect("another claims the path");
        ours.remove().expect("leave theirs");
        assert!(path.exists());
    }

    #[test]
    fn an_inherited_file_says_the_old_pid_until_it_is_taken_over_and_is_locked_all_the_time() {
        let (directory, path) = place();
        let old = PidFile::claim(&path).expect("claim");
        let lock = File::from(old.pass().expect("a descriptor").1);
        fs::write(&path, "1\n").expect("the old one's pid");
        let mut new = PidFile::inherit(&path, lock).expect("inherit");
        assert_eq!(fs::read_to_string(&path).expect("read"), "1\n");
        assert!(matches!(PidFile::claim(&path), Err(PidFileError::Held { .. })));
        drop(old);
        assert!(matches!(PidFile::claim(&path), Err(PidFileError::Held { .. })), "the lock outlives the old master");
        new.take_over().expect("take over");
        assert_eq!(fs::read_to_string(&path).expect("read"), format!("{}\n", std::process::id()));
        assert!(matches!(PidFile::claim(&path), Err(PidFileError::Held { .. })));
        assert_eq!(names(&directory), ["server.pid"]);
        new.remove().expect("remove");
        assert_eq!(names(&directory), [""; 0]);
    }

    #[test]
    fn an_heir_that_ends_before_it_takes_over_leaves_the_file_to_the_old_master() {
        let (directory, path) = place();
        let old = PidFile::claim(&path).expect("claim");
        let lock = File::from(old.pass().expect("a descriptor").1);
        PidFile::inherit(&path, lock).expect("inherit").remove().expect("nothing to do");
        assert!(path.exists());
        assert!(matches!(PidFile::claim(&path), Err(PidFileError::Held { .. })));
        old.remove().expect("remove");
        assert_eq!(names(&directory), [""; 0]);
    }

    #[test]
    fn a_file_that_vanished_is_claimed_anew_at_the_take_over() {
        let (directory, path) = place();
        let old = PidFile::claim(&path).expect("claim");
        let lock = File::from(old.pass().expect("a descriptor").1);
        let mut new = PidFile::inherit(&path, lock).expect("inherit");
        old.remove().expect("the old one leaves early");
        new.take_over().expect("take over");
        assert_eq!(names(&directory), ["server.pid"]);
        assert!(matches!(PidFile::claim(&path), Err(PidFileError::Held { .. })));
    }

    #[test]
    fn of_many_starters_one_holds_the_file() {
        const STARTERS: usize = 8;
        for stale in [false, true].repeat(20) {
            let (directory, path) = place();
            if stale {
                fs::write(&path, "1\n").expect("a stale file");
            }
            let start = Barrier::new(STARTERS);
            let results: Vec<_> = std::thread::scope(|scope| {
                let claim = || {
                    start.wait();
                    PidFile::claim(&path)
                };
                let starters: Vec<_> = (0..STARTERS).map(|_| scope.spawn(claim)).collect();
                starters.into_iter().map(|starter| starter.join().expect("no panic")).collect()
            });
            let won: Vec<_> = results.iter().filter_map(|result| result.as_ref().ok()).collect();
            assert_eq!(won.len(), 1, "{results:?}");
            assert!(is_at(&won[0].locked, &path).expect("stat"));
            assert_eq!(names(&directory), ["server.pid"]);
        }
    }

    #[test]
    fn a_missing_directory_is_named() {
        let (directory, _) = place();
        let path = directory.path().join("none/server.pid");
        let words = PidFile::claim(&path).expect_err("no directory").to_string();
        assert!(words.contains("none/server.pid") && words.contains("os error 2"), "{words}");
    }
}
