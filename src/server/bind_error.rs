//! Why a server cannot listen.

use std::io;
use std::path::PathBuf;

use nix::libc;

use super::address::Address;

/// A listener could not be made. Nothing that was there before has been changed.
///
/// Each message is whole: it names the address, the operation, the kernel's words and what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BindError {
    /// A host name has no address. Likely cause: a typing error, or a resolver that does not answer.
    /// Write the IP address, or put the name into `/etc/hosts`.
    #[error("cannot listen on {address}: resolving the name: {source}; check the name, or write an IP address")]
    Resolve {
        /// The address as configured.
        address: Address,
        /// The resolver's words.
        source: io::Error,
    },
    /// None of the addresses of a host name could be bound. Each of them has its own cause.
    #[error("cannot listen on {address}: none of its addresses can be bound: {}", joined(tried))]
    NoneOfHost {
        /// The address as configured.
        address: Address,
        /// One error for each address of the name.
        tried: Vec<BindError>,
    },
    /// Another process listens there. Stop it or choose another port; `ss -ltnp` (`ss -lxp` for Unix
    /// sockets) shows who it is.
    #[error(
        "cannot listen on {address}: {operation}: {source}; another process listens there: stop it, or choose another address (`ss -lp` shows who it is)"
    )]
    InUse {
        /// The address.
        address: Address,
        /// The system call that failed.
        operation: &'static str,
        /// The kernel's words.
        source: io::Error,
    },
    /// The configuration names the same port or path twice. Remove one of the two.
    #[error(
        "cannot listen on {address}: this server already listens on {other}, which includes it; remove one of the two"
    )]
    Twice {
        /// The later of the two.
        address: Address,
        /// The earlier of the two, which was bound.
        other: Address,
    },
    /// A server answers on the Unix socket. Stop it, or choose another path.
    #[error(
        "cannot listen on {address}: connect: a running server answers there; stop it, or choose another path (`ss -lxp` shows who it is)"
    )]
    ServerRunning {
        /// The address.
        address: Address,
    },
    /// The path of a Unix socket holds something else, which was left alone. Likely cause: a typing
    /// error in the path. Choose another path, or remove the file if it is of no use.
    #[error("cannot listen on {address}: {} is {kind}, not a dead server's socket, and was left alone; choose another path, or remove it yourself", path.display())]
    OtherFile {
        /// The address.
        address: Address,
        /// What is in the way.
        path: PathBuf,
        /// What kind of file it is.
        kind: &'static str,
    },
    /// The lock on a Unix socket's directory stayed taken. Likely cause: another server that hangs
    /// while it starts there.
    #[error("cannot listen on {address}: flock on {}: taken by another process for {waited_s} s; see who holds it (`lsof`), and try again", directory.display())]
    DirectoryLocked {
        /// The address.
        address: Address,
        /// The directory of the socket.
        directory: PathBuf,
        /// How long the lock was waited for, in seconds.
        waited_s: u64,
    },
    /// `fd:N` names no listening stream socket. Likely cause: another number than the one that the
    /// parent process passed. The descriptor was left as it was.
    #[error(
        "cannot listen on {address}: the descriptor is {found}, not a listening stream socket; pass the number at which the parent process hands the listener over"
    )]
    NotAListener {
        /// The address.
        address: Address,
        /// What the descriptor is.
        found: String,
    },
    /// `fd:N` is named twice, or was adopted before in this process's life. Name it once.
    #[error("cannot listen on {address}: the descriptor was already taken over; name it once")]
    AlreadyAdopted {
        /// The address.
        address: Address,
    },
    /// A system call failed for another reason; `advice` says what can be done.
    #[error("cannot listen on {address}: {operation}: {source}; {advice}")]
    System {
        /// The address.
        address: Address,
        /// The system call that failed.
        operation: &'static str,
        /// What to do.
        advice: &'static str,
        /// The kernel's words.
        source: io::Error,
    },
}

fn joined(tried: &[BindError]) -> String {
    tried.iter().map(BindError::to_string).collect::<Vec<_>>().join("; ")
}

impl BindError {
    /// For `map_err`: the error of the system call `operation` on the way to `address`.
    pub(super) fn call<'a>(address: &'a Address, operation: &'static str) -> impl FnOnce(io::Error) -> BindError + 'a {
        move |source| BindError::system(address, operation, source)
    }

    /// The error for a system call that failed, with advice by its errno.
    fn system(address: &Address, operation: &'static str, source: io::Error) -> BindError {
        let address = address.clone();
        let advice = match source.raw_os_error() {
            Some(libc::EADDRINUSE) => {
                return BindError::InUse { address, operation, source };
            }
            Some(libc::EACCES | libc::EPERM) => match address {
                Address::Tcp(_) => {
                    "ports below 1024 take root or CAP_NET_BIND_SERVICE: choose a higher port, or grant it"
                }
                _ => "this user may not do that there: choose another place, or change its owner or mode",
            },
            Some(libc::EADDRNOTAVAIL) => {
                "this machine has no such address: see `ip address`, or choose 0.0.0.0 or [::]"
            }
            Some(libc::EAFNOSUPPORT) => {
                "this kernel runs without that family (IPv6 may be off): choose an IPv4 address"
            }
            Some(libc::ENOENT | libc::ENOTDIR) => "the directory is missing: make it first",
            Some(libc::EROFS) => "the file system is read-only: choose another directory",
            Some(libc::EMFILE | libc::ENFILE) => "no descriptor is left: raise the limit of open files (`ulimit -n`)",
            Some(libc::EBADF) => {
                "nothing was passed at that number: start this server with the listener, or name another address"
            }
            _ => "see bind(2), unix(7) or ip(7) for this cause",
        };
        BindError::System { address, operation, advice, source }
    }
}
