//! Listening sockets: made from an [`Address`], non-blocking and closed on exec.
//!
//! The master makes them and keeps them for as long as it runs; templates and workers receive them as
//! descriptors. Only the listener that *bound* a Unix path removes it again.

use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use socket2::{Domain, Protocol, SockAddr, SockRef, Socket, Type};

use super::Slot;
use super::address::{AbstractName, Address, HostName, InheritedFd};
use super::bind_error::BindError;
use super::inheritance::PassedListener;
use super::service::BoxError;
use super::socket_file::SocketFile;
use crate::sys::inherited::{self, ClaimError};

/// How many connections the kernel queues for a listener before a worker accepts them. The kernel
/// cuts it to `net.core.somaxconn`, which is 4,096 by default.
pub const BACKLOG: i32 = 4096;

/// A listening stream socket and the address at which it is reached.
///
/// ```
/// use hatchery::server::Listener;
///
/// let listener = Listener::bind(&"127.0.0.1:0".parse()?)?;
/// println!("listening on {}", listener.address());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Listener {
    socket: Socket,
    /// As it was asked for: with a port 0, or a host's name.
    configured: Address,
    address: Address,
    file: Option<SocketFile>,
    /// Whose own queue it has; none: all workers share it.
    slot: Option<Slot>,
    /// It is still the listener of the master before this one.
    is_lent: bool,
}

impl Listener {
    /// Binds and listens with a queue of [`BACKLOG`] connections, or adopts the socket of `fd:N`.
    ///
    /// - TCP gets SO_REUSEADDR, so that connections of an earlier server in TIME_WAIT are no hindrance, and an
    ///   IPv6 address is IPv6 only: `[::]` and `0.0.0.0` can be listened on side by side.
    /// - A host name is resolved here, by getaddrinfo(3), which may take the resolver's time; the
    ///   first of its addresses that binds is taken.
    /// - A Unix path that a dead server left behind is replaced. Its mode follows the umask.
    /// - `fd:N` must be a listening stream socket, and can be adopted once in a process's life.
    ///
    /// # Errors
    /// [`BindError`] names the address, the operation, the kernel's words and what to do.
    pub fn bind(address: &Address) -> Result<Listener, BindError> {
        bind_beside(address, &[])
    }

    /// Binds all addresses or none: if one fails, the paths of those before it are removed again.
    ///
    /// # Errors
    /// As [`Listener::bind`], and [`BindError::Twice`] when two of the addresses are the same port.
    pub fn bind_all(addresses: &[Address]) -> Result<Vec<Listener>, BindError> {
        Listener::bind_all_but(addresses, &mut Vec::new())
    }

    /// As [`Listener::bind_all`], but what `inherited` has for an address is taken from there instead of bound. What
    /// is not wanted stays there, and so does a Unix socket that no client finds any more: its path was removed or replaced,
    /// so the address is bound anew.
    pub(crate) fn bind_all_but(
        addresses: &[Address],
        inherited: &mut Vec<Listener>,
    ) -> Result<Vec<Listener>, BindError> {
        let mut bound = Vec::with_capacity(addresses.len());
        for address in addresses {
            let taken = take(address, inherited).transpose();
            match taken.unwrap_or_else(|| bind_beside(address, &bound)) {
                Ok(listener) => bound.push(listener),
                Err(error) => {
                    for listener in &bound {
                        // What is told is why we cannot listen; a name left behind is a dead socket.
                        let _ = listener.remove_path();
                    }
                    return Err(error);
                }
            }
        }
        slots::take_further(&mut bound, inherited);
        Ok(bound)
    }

    /// As [`Listener::bind`], beside those that are bound already, for this user alone: a path has the mode 0600. What
    /// `inherited` has for the address is taken from there.
    pub(crate) fn bind_private(
        address: &Address,
        inherited: &mut Vec<Listener>,
        bound: &[Listener],
    ) -> Result<Listener, BindError> {
        match (take(address, inherited)?, address) {
            (Some(listener), _) => Ok(listener),
            (None, Address::Unix(path)) => {
                not_twice(address, bound)?;
                let (socket, file) = SocketFile::listen_privately(path, BACKLOG)?;
                Ok(Listener { file: Some(file), ..bare(socket, address, address.clone()) })
            }
            (None, address) => bind_beside(address, bound),
        }
    }

    /// Where the listener is reached: with the port that the kernel chose, and for `fd:N` the address
    /// at which the socket was bound, if it has one that can be written.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// Unlinks the path of a Unix socket that this listener bound, if the path is still ours. Another
    /// server's file at that path, or a path that is gone, is left as it is.
    ///
    /// # Errors
    /// The kernel's refusal to look at the path or to unlink it.
    pub fn remove_path(&self) -> io::Result<()> {
        self.file.as_ref().filter(|_| !self.is_lent).map_or(Ok(()), SocketFile::remove)
    }

    /// What the next master is to know of this listener, and a descriptor for it.
    pub(crate) fn pass(&self) -> io::Result<(PassedListener, OwnedFd)> {
        let passed = PassedListener {
            configured: self.configured.to_string(),
            address: self.address.to_string(),
            file: self.file.as_ref().map(SocketFile::identity),
            slot: self.slot.map(|slot| slot.0),
        };
        Ok((passed, self.socket.as_fd().try_clone_to_owned()?))
    }

    /// A listener of the master before this one. It is lent, until that one [hands over](Listener::own).
    pub(crate) fn inherit(passed: &PassedListener, fd: OwnedFd) -> Result<Listener, BoxError> {
        let (configured, address) = (passed.configured.parse()?, passed.address.parse()?);
        must_listen(&configured, fd.as_fd())?;
        let file = match &address {
            Address::Unix(path) => passed.file.map(|identity| SocketFile::bound_before(path, identity)),
            _ => None,
        };
        let slot = passed.slot.map(Slot);
        Ok(Listener { socket: Socket::from(fd), configured, address, file, slot, is_lent: true })
    }

    /// Whether clients find it at its address. The path of a Unix socket may be gone, or another's by now.
    fn is_found(&self) -> Result<bool, BindError> {
        let in_place = self.file.as_ref().map_or(Ok(true), SocketFile::is_in_place);
        in_place.map_err(BindError::call(&self.address, "lstat"))
    }

    /// From now on it is this master's own, with the file that stands for it.
    pub(crate) fn own(&mut self) {
        self.is_lent = false;
    }
}

/// Takes what is inherited for the address, if there is such and clients find it there.
fn take(address: &Address, inherited: &mut Vec<Listener>) -> Result<Option<Listener>, BindError> {
    let find = |is: &dyn Fn(&Listener) -> bool| inherited.iter().position(|first| first.is_first() && is(first));
    // It may be written in another way now.
    let found = find(&|first| first.configured == *address).or_else(|| find(&|first| first.address == *address));
    match found {
        Some(index) if inherited[index].is_found()? => Ok(Some(inherited.remove(index))),
        _ => Ok(None),
    }
}

fn not_twice(address: &Address, earlier: &[Listener]) -> Result<(), BindError> {
    match earlier.iter().find(|other| includes(&other.address, address)) {
        Some(other) => Err(BindError::Twice { address: address.clone(), other: other.address.clone() }),
        None => Ok(()),
    }
}

fn bind_beside(address: &Address, earlier: &[Listener]) -> Result<Listener, BindError> {
    not_twice(address, earlier)?;
    let bound = |(socket, reached): (Socket, Address)| bare(socket, address, reached);
    Ok(match address {
        Address::Tcp(at) => bound(tcp(*at)?),
        Address::Host(name, port) => {
            Listener { configured: address.clone(), ..first_of_host(address, name, *port, earlier)? }
        }
        Address::Unix(path) => {
            let (socket, file) = SocketFile::listen(path, BACKLOG)?;
            Listener { file: Some(file), ..bound((socket, address.clone())) }
        }
        Address::Abstract(name) => bound((abstract_unix(address, name)?, address.clone())),
        Address::Inherited(fd) => bound(adopt(address, *fd)?),
    })
}

/// A listener of this process's own, with nothing in the file system.
fn bare(socket: Socket, configured: &Address, address: Address) -> Listener {
    Listener { socket, configured: configured.clone(), address, file: None, slot: None, is_lent: false }
}

/// The socket alone; what stands in the file system for it stays.
impl From<Listener> for OwnedFd {
    fn from(listener: Listener) -> OwnedFd {
        listener.socket.into()
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Sees whether `address` could be bound as far as that goes without binding: a listening socket would
/// take real clients. Only host names need it; all other addresses are known to be well-formed.
///
/// # Errors
/// [`BindError::Resolve`] for a name without an address.
#[cfg_attr(not(any(test, feature = "cli")), expect(dead_code, reason = "asked by --check-config alone"))]
pub(crate) fn resolves(address: &Address) -> Result<(), BindError> {
    match address {
        Address::Host(name, port) => resolve(address, name, *port).map(drop),
        _ => Ok(()),
    }
}

fn resolve(address: &Address, name: &HostName, port: u16) -> Result<Vec<SocketAddr>, BindError> {
    let unresolved = |source| BindError::Resolve { address: address.clone(), source };
    let found: Vec<_> = (name.as_str(), port).to_socket_addrs().map_err(unresolved)?.collect();
    if found.is_empty() {
        let source = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
        return Err(unresolved(source));
    }
    Ok(found)
}

fn first_of_host(address: &Address, name: &HostName, port: u16, earlier: &[Listener]) -> Result<Listener, BindError> {
    let mut tried = Vec::new();
    for at in resolve(address, name, port)? {
        match bind_beside(&Address::Tcp(at), earlier) {
            Ok(listener) => return Ok(listener),
            Err(error) => tried.push(error),
        }
    }
    Err(BindError::NoneOfHost { address: address.clone(), tried })
}

fn tcp(at: SocketAddr) -> Result<(Socket, Address), BindError> {
    let socket = tcp_socket(at)?;
    let real = listen_at(&socket, at)?;
    Ok((socket, real))
}

fn tcp_socket(at: SocketAddr) -> Result<Socket, BindError> {
    let address = Address::Tcp(at);
    let socket = Socket::new(Domain::for_address(at), Type::STREAM.nonblocking(), Some(Protocol::TCP))
        .map_err(BindError::call(&address, "socket"))?;
    socket.set_reuse_address(true).map_err(BindError::call(&address, "setsockopt SO_REUSEADDR"))?;
    if at.is_ipv6() {
        socket.set_only_v6(true).map_err(BindError::call(&address, "setsockopt IPV6_V6ONLY"))?;
    }
    Ok(socket)
}

/// Gives the address with the port that the kernel chose.
fn listen_at(socket: &Socket, at: SocketAddr) -> Result<Address, BindError> {
    let address = Address::Tcp(at);
    socket.bind(&at.into()).map_err(BindError::call(&address, "bind"))?;
    socket.listen(BACKLOG).map_err(BindError::call(&address, "listen"))?;
    let real = socket.local_addr().map_err(BindError::call(&address, "getsockname"))?;
    Ok(Address::of_socket(&real).unwrap_or(address))
}

fn abstract_unix(address: &Address, name: &AbstractName) -> Result<Socket, BindError> {
    let name = SockAddr::unix(format!("\0{}", name.as_str())).map_err(BindError::call(address, "sockaddr"))?;
    let socket =
        Socket::new(Domain::UNIX, Type::STREAM.nonblocking(), None).map_err(BindError::call(address, "socket"))?;
    socket.bind(&name).map_err(BindError::call(address, "bind"))?;
    socket.listen(BACKLOG).map_err(BindError::call(address, "listen"))?;
    Ok(socket)
}

fn adopt(address: &Address, fd: InheritedFd) -> Result<(Socket, Address), BindError> {
    let taken = inherited::claim(fd.number(), |fd| must_listen(address, fd));
    let socket = Socket::from(taken.map_err(|error| match error {
        ClaimError::Closed(source) => BindError::call(address, "look at the descriptor")(source),
        ClaimError::Claimed => BindError::AlreadyAdopted { address: address.clone() },
        ClaimError::Refused(error) => error,
    })?);
    socket.set_nonblocking(true).map_err(BindError::call(address, "fcntl O_NONBLOCK"))?;
    let bound = socket.local_addr().map_err(BindError::call(address, "getsockname"))?;
    let address = Address::of_socket(&bound).unwrap_or_else(|| address.clone());
    Ok((socket, address))
}

fn must_listen(address: &Address, fd: BorrowedFd<'_>) -> Result<(), BindError> {
    let socket = SockRef::from(&fd);
    let found = match (socket.r#type(), socket.domain(), socket.is_listener()) {
        (Ok(Type::STREAM), Ok(Domain::IPV4 | Domain::IPV6 | Domain::UNIX), Ok(true)) => {
            return Ok(());
        }
        (Ok(Type::STREAM), Ok(Domain::IPV4 | Domain::IPV6 | Domain::UNIX), _) => {
            "a stream socket that does not listen".to_owned()
        }
        (Ok(Type::STREAM), Ok(domain), _) => {
            format!("a stream socket of another family ({domain:?})")
        }
        (Ok(kind), _, _) => format!("a socket of another type ({kind:?})"),
        (Err(error), _, _) => format!("no socket ({error})"),
    };
    Err(BindError::NotAListener { address: address.clone(), found })
}

/// Whether who listens on `held` has `wanted` as well. Port 0 is a new port each time.
fn includes(held: &Address, wanted: &Address) -> bool {
    match (held, wanted) {
        (Address::Tcp(held), Address::Tcp(wanted)) => {
            held.port() == wanted.port()
                && held.is_ipv4() == wanted.is_ipv4()
                && (held == wanted || held.ip().is_unspecified() || wanted.ip().is_unspecified())
        }
        (held, wanted) => held == wanted,
    }
}

pub(super) mod gate;
pub(super) mod slots;
#[cfg(test)]
mod tests;
