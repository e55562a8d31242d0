//! A Unix socket in the file system: taking its path over from the dead, never from the living.
//!
//! A server that was killed leaves its socket behind, and bind(2) refuses a path that exists. So a socket
//! that refuses connections (ECONNREFUSED: nobody listens) is removed; one that answers belongs to a running
//! server; anything else is not ours to remove.
//!
//! Between "it is dead" and "it is removed" a second starter could have bound its own socket there,
//! and would lose it; and a socket that is bound but does not listen yet looks dead. An flock on the socket's
//! *directory* keeps both away: one starter at a time looks, removes, binds and listens. The lock leaves no
//! file behind, and ends with its holder however that dies. Programs that do not know of the lock can still step
//! into those microseconds. Binding to a temporary name and renaming would close that gap too, but then
//! getsockname(2), and so `ss` and every client, would show the temporary name for as long as the server runs.

use std::fs::{self, File, FileType, TryLockError};
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileTypeExt;
use std::time::{Duration, Instant};

use nix::libc;
use nix::sys::stat::{Mode, fchmod};
use socket2::{Domain, SockAddr, Socket, Type};

use super::address::{Address, SocketPath};
use super::bind_error::BindError;
use crate::sys::file_identity::FileIdentity;

/// How long another starter may hold the directory. Its work takes microseconds.
const LOCK_PATIENCE: Duration = Duration::from_secs(2);

/// The name of a socket in the file system, and which file it was when it was bound: one whose identity is not used again
/// while our socket is open, for the socket holds on to its inode.
#[derive(Debug)]
pub(super) struct SocketFile {
    path: SocketPath,
    identity: FileIdentity,
}

impl SocketFile {
    /// Makes `path` a listening socket, replacing a dead server's one. Its mode follows the umask.
    pub(super) fn listen(path: &SocketPath, backlog: i32) -> Result<(Socket, SocketFile), BindError> {
        let socket = stream_socket().map_err(BindError::call(&Address::Unix(path.clone()), "socket"))?;
        SocketFile::listen_by(socket, path, backlog)
    }

    /// The same, for this user alone: its mode is 0600 from its first moment on, or less by the umask.
    pub(super) fn listen_privately(path: &SocketPath, backlog: i32) -> Result<(Socket, SocketFile), BindError> {
        let address = Address::Unix(path.clone());
        let socket = stream_socket().map_err(BindError::call(&address, "socket"))?;
        // bind(2) gives the file the mode that the socket has by then.
        let private = Mode::S_IRUSR | Mode::S_IWUSR;
        fchmod(&socket, private).map_err(|errno| BindError::call(&address, "fchmod")(errno.into()))?;
        SocketFile::listen_by(socket, path, backlog)
    }

    fn listen_by(socket: Socket, path: &SocketPath, backlog: i32) -> Result<(Socket, SocketFile), BindError> {
        let address = Address::Unix(path.clone());
        let name = SockAddr::unix(path.as_path()).map_err(BindError::call(&address, "sockaddr"))?;
        let _lock = lock_directory(&address, path)?;
        make_way(&address, path, &name)?;
        socket.bind(&name).map_err(BindError::call(&address, "bind"))?;
        let metadata = fs::symlink_metadata(path.as_path()).map_err(BindError::call(&address, "lstat"))?;
        let file = SocketFile { path: path.clone(), identity: FileIdentity::of(&metadata) };
        if let Err(source) = socket.listen(backlog) {
            // The error that is told is listen's; a name that stays behind is a dead socket.
            let _ = file.remove();
            return Err(BindError::call(&address, "listen")(source));
        }
        Ok((socket, file))
    }

    /// The file that another process has bound at `path`.
    pub(super) fn bound_before(path: &SocketPath, identity: FileIdentity) -> SocketFile {
        SocketFile { path: path.clone(), identity }
    }

    pub(super) fn identity(&self) -> FileIdentity {
        self.identity
    }

    /// Whether the path still leads to the file that was bound. Our socket must still be open.
    ///
    /// # Errors
    /// Those of lstat(2).
    pub(super) fn is_in_place(&self) -> io::Result<bool> {
        Ok(FileIdentity::at(self.path.as_path())? == Some(self.identity))
    }

    /// Unlinks the path if it is [still ours](Self::is_in_place).
    pub(super) fn remove(&self) -> io::Result<()> {
        match self.is_in_place()? {
            true => gone_is_fine(fs::remove_file(self.path.as_path())),
            false => Ok(()),
        }
    }
}

fn stream_socket() -> io::Result<Socket> {
    Socket::new(Domain::UNIX, Type::STREAM.nonblocking(), None)
}

/// Removes a dead server's socket; refuses whatever else is at the path. The directory is locked.
fn make_way(address: &Address, path: &SocketPath, name: &SockAddr) -> Result<(), BindError> {
    let metadata = match fs::symlink_metadata(path.as_path()) {
        Ok(metadata) => metadata,
        Err(error) => return gone_is_fine(Err(error)).map_err(BindError::call(address, "lstat")),
    };
    if !metadata.file_type().is_socket() {
        return Err(in_the_way(address, path, kind(metadata.file_type())));
    }
    let answer = stream_socket().map_err(BindError::call(address, "socket"))?.connect(name);
    match answer.as_ref().map_err(io::Error::raw_os_error) {
        // EAGAIN: it listens, and its queue is full.
        Ok(()) | Err(Some(libc::EAGAIN)) => Err(BindError::ServerRunning { address: address.clone() }),
        Err(Some(libc::EPROTOTYPE)) => Err(in_the_way(address, path, "a socket in use that is no stream socket")),
        Err(Some(libc::ENOENT)) => Ok(()),
        Err(Some(libc::ECONNREFUSED)) => {
            gone_is_fine(fs::remove_file(path.as_path())).map_err(BindError::call(address, "unlink a dead socket"))
        }
        Err(_) => answer.map_err(BindError::call(address, "connect, to see whether a server answers")),
    }
}

fn in_the_way(address: &Address, path: &SocketPath, kind: &'static str) -> BindError {
    BindError::OtherFile { address: address.clone(), path: path.as_path().to_owned(), kind }
}

fn kind(file: FileType) -> &'static str {
    match file {
        file if file.is_file() => "a regular file",
        file if file.is_dir() => "a directory",
        file if file.is_symlink() => "a symbolic link",
        file if file.is_fifo() => "a named pipe",
        _ => "a device",
    }
}

fn gone_is_fine(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Waits until no other starter is at work in the socket's directory. A server binds before it serves,
/// so that a short sleep holds up nobody.
fn lock_directory(address: &Address, path: &SocketPath) -> Result<File, BindError> {
    let directory = File::open(path.directory()).map_err(BindError::call(address, "open the directory"))?;
    let since = Instant::now();
    loop {
        match directory.try_lock() {
            Ok(()) => return Ok(directory),
            Err(TryLockError::WouldBlock) if since.elapsed() < LOCK_PATIENCE => {
                std::thread::sleep(Duration::from_millis(2));
            }
            Err(TryLockError::WouldBlock) => {
                return Err(BindError::DirectoryLocked {
                    address: address.clone(),
                    directory: path.directory().to_owned(),
                    waited_s: LOCK_PATIENCE.as_secs(),
                });
            }
            Err(TryLockError::Error(error)) => {
                return Err(BindError::call(address, "flock on the directory")(error));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
    use std::path::PathBuf;
    use std::sync::Barrier;

    use tempfile::TempDir;

    use super::super::listener::Listener;
    use super::*;

    fn place() -> (TempDir, PathBuf, Address) {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("server.sock");
        let address = format!("unix:{}", path.display()).parse().expect("an address");
        (directory, path, address)
    }

    /// What a server that was killed leaves behind.
    fn leave_a_dead_socket(path: &std::path::Path) {
        drop(UnixListener::bind(path).expect("bind the socket that dies"));
        assert!(path.exists());
    }

    #[test]
    fn a_dead_servers_socket_is_replaced_and_the_new_one_answers() {
        let (_directory, path, address) = place();
        leave_a_dead_socket(&path);
        let listener = Listener::bind(&address).expect("replace the dead socket");
        assert_eq!(listener.address(), &address);
        UnixStream::connect(&path).expect("the new server answers");
    }

    #[test]
    fn a_running_servers_socket_is_an_error_and_goes_on_answering() {
        let (_directory, path, address) = place();
        let running = UnixListener::bind(&path).expect("the running server");
        let error = Listener::bind(&address).expect_err("refuse");
        assert!(matches!(error, BindError::ServerRunning { .. }), "{error}");
        assert!(error.to_string().contains(&path.display().to_string()), "{error}");
        let _client = UnixStream::connect(&path).expect("still answers");
        running.accept().expect("the probe or the client");
    }

    #[test]
    fn a_running_server_whose_queue_is_full_is_not_taken_for_dead() {
        let (_directory, path, address) = place();
        let running = stream_socket().expect("a socket");
        let name = SockAddr::unix(&path).expect("a name");
        running.bind(&name).expect("bind");
        running.listen(0).expect("listen");
        let clients: Vec<_> = (0..4).map(|_| stream_socket().expect("a client")).collect();
        let refused = clients.iter().filter(|client| client.connect(&name).is_err()).count();
        assert!(refused > 0, "the queue is not full");
        let error = Listener::bind(&address).expect_err("refuse");
        assert!(matches!(error, BindError::ServerRunning { .. }), "{error}");
    }

    #[test]
    fn whatever_is_not_a_dead_socket_is_refused_and_left_alone() {
        let (directory, path, address) = place();
        let refused = |kind: &str| {
            let error = Listener::bind(&address).expect_err(kind);
            assert!(matches!(error, BindError::OtherFile { .. }), "{error}");
            assert!(error.to_string().contains(kind), "{error}");
        };

        fs::write(&path, "precious").expect("write");
        refused("a regular file");
        assert_eq!(fs::read(&path).expect("read"), b"precious");
        fs::remove_file(&path).expect("unlink");

        fs::create_dir(&path).expect("mkdir");
        refused("a directory");
        fs::remove_dir(&path).expect("rmdir");

        let dead = directory.path().join("dead.sock");
        leave_a_dead_socket(&dead);
        std::os::unix::fs::symlink(&dead, &path).expect("symlink");
        refused("a symbolic link");
        assert!(dead.exists());
        fs::remove_file(&path).expect("unlink");

        let datagrams = UnixDatagram::bind(&path).expect("bind");
        refused("no stream socket");
        drop(datagrams);
    }

    #[test]
    fn of_many_starters_over_a_dead_socket_one_listens_and_keeps_the_path() {
        const STARTERS: usize = 8;
        for _ in 0..25 {
            let (_directory, path, address) = place();
            leave_a_dead_socket(&path);
            let start = Barrier::new(STARTERS);
            let results: Vec<_> = std::thread::scope(|scope| {
                let starters: Vec<_> = (0..STARTERS)
                    .map(|_| {
                        scope.spawn(|| {
                            start.wait();
                            Listener::bind(&address)
                        })
                    })
                    .collect();
                starters.into_iter().map(|starter| starter.join().expect("no panic")).collect()
            });
            let (won, lost): (Vec<_>, Vec<_>) = results.into_iter().partition(Result::is_ok);
            assert_eq!(won.len(), 1, "{lost:?}");
            for result in lost {
                assert!(matches!(result, Err(BindError::ServerRunning { .. })), "{result:?}");
            }
            UnixStream::connect(&path).expect("the winner answers");
        }
    }

    #[test]
    fn a_starter_that_never_ends_is_an_error_that_names_the_directory() {
        let (directory, _path, address) = place();
        let held = File::open(directory.path()).expect("open");
        held.lock().expect("lock");
        let error = Listener::bind(&address).expect_err("locked");
        assert!(matches!(error, BindError::DirectoryLocked { .. }), "{error}");
        assert!(error.to_string().contains(&directory.path().display().to_string()), "{error}");
    }

    #[test]
    fn the_path_is_removed_at_the_end_only_while_it_is_ours() {
        let (_directory, path, address) = place();
        let ours = Listener::bind(&address).expect("bind");
        ours.remove_path().expect("remove");
        assert!(!path.exists());
        ours.remove_path().expect("already gone");

        let ours = Listener::bind(&address).expect("bind again");
        fs::remove_file(&path).expect("someone unlinks it");
        let _theirs = UnixListener::bind(&path).expect("someone else binds");
        ours.remove_path().expect("leave it");
        UnixStream::connect(&path).expect("the other server's path is still there");
    }

    #[test]
    fn a_missing_directory_is_named_with_what_to_do() {
        let (_directory, path, _) = place();
        let address = format!("unix:{}/no/x.sock", path.display()).parse().expect("an address");
        let words = Listener::bind(&address).expect_err("no directory").to_string();
        for part in ["no/x.sock", "open the directory", "os error 2", "make it first"] {
            assert!(words.contains(part), "{words}\nshould say: {part}");
        }
    }
}
