//! Where a server is asked and told what to do, and the seam to whoever answers there.
//!
//! The socket is the master's: it stands in the file system, outlives the master at an upgrade, and goes with the server.
//! What is said on it is no concern of this layer: the master hands the socket, and a [`Desk`] at which it answers
//! typed questions, to what the [`ControlPoint`] was made with.

use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::str::FromStr;

use slog::Logger;

use super::address::{Address, AddressError};
use super::master::Desk;

/// The address of a control socket: a Unix socket's path, or a name in the abstract namespace.
///
/// It is written as a path (a relative one is absolute from then on), `unix:/path` or `unix:@name`.
///
/// ```
/// use hatchery::server::ControlAddress;
///
/// let address: ControlAddress = "/run/server.control".parse()?;
/// assert_eq!(address.to_string(), "unix:/run/server.control");
/// assert!("127.0.0.1:80".parse::<ControlAddress>().is_err());
/// # Ok::<(), hatchery::server::ControlAddressError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ControlAddress(Address);

/// A text is no address of a control socket. The message names the text, what is wrong and what would be right.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ControlAddressError {
    /// The text is empty.
    #[error("nothing is written; write the path of a Unix socket, or unix:@name")]
    Empty,
    /// A Unix socket that cannot be.
    #[error(transparent)]
    Address(#[from] AddressError),
    /// Something else than a Unix socket.
    #[error("`{text}` is no Unix socket, as a control socket must be; write its path, or unix:@name")]
    OtherKind {
        /// What was written.
        text: String,
    },
    /// The directory that a relative path starts from is gone.
    #[error("cannot read `{text}` as a path: {why}; write an absolute one")]
    Relative {
        /// What was written.
        text: String,
        /// The kernel's words.
        why: String,
    },
}

impl FromStr for ControlAddress {
    type Err = ControlAddressError;

    fn from_str(text: &str) -> Result<ControlAddress, ControlAddressError> {
        match text.parse::<Address>() {
            Ok(address @ (Address::Unix(_) | Address::Abstract(_))) => return Ok(ControlAddress(address)),
            Ok(_) => return Err(ControlAddressError::OtherKind { text: text.to_owned() }),
            Err(_) if text.is_empty() => return Err(ControlAddressError::Empty),
            Err(error) if text.starts_with("unix:") => return Err(error.into()),
            Err(_) => {}
        }
        let relative =
            |error: io::Error| ControlAddressError::Relative { text: text.to_owned(), why: error.to_string() };
        let path = std::path::absolute(text).map_err(relative)?;
        // What `absolute` takes away names no file.
        let end = if text.ends_with('/') { "/" } else { "" };
        Ok(ControlAddress(format!("unix:{}{end}", path.display()).parse()?))
    }
}

impl ControlAddress {
    /// The Unix socket's address.
    pub fn as_address(&self) -> &Address {
        &self.0
    }
}

impl fmt::Display for ControlAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Where a server answers questions and takes orders; `hatchery::control::at` (feature `control`) makes one.
///
/// Two are equal if their addresses are.
#[derive(Clone)]
pub struct ControlPoint {
    address: ControlAddress,
    attend: Attend,
}

/// Begins to answer at a listening socket, which does not wait, until what it gives is dropped.
pub(crate) type Attend = fn(OwnedFd, Desk, Logger) -> io::Result<Box<dyn Attendant>>;

/// Whoever answers at a control socket.
pub(crate) trait Attendant: fmt::Debug {
    /// Lets no further client in, and gives the socket back; those who are in are answered as before.
    fn close_door(&self);
}

impl ControlPoint {
    #[cfg_attr(not(feature = "control"), expect(dead_code, reason = "whoever answers is behind that feature"))]
    pub(crate) fn new(address: ControlAddress, attend: Attend) -> ControlPoint {
        ControlPoint { address, attend }
    }

    /// The socket's address.
    pub fn address(&self) -> &ControlAddress {
        &self.address
    }

    pub(super) fn attend(&self, socket: OwnedFd, desk: Desk, log: Logger) -> io::Result<Box<dyn Attendant>> {
        (self.attend)(socket, desk, log)
    }
}

impl PartialEq for ControlPoint {
    fn eq(&self, other: &ControlPoint) -> bool {
        self.address == other.address
    }
}

impl Eq for ControlPoint {}

impl fmt::Debug for ControlPoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ControlPoint").field(&self.address).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_control_socket_is_a_path_or_an_abstract_name_and_reads_again_as_it_is_shown() {
        let here = std::env::current_dir().expect("a directory");
        for (text, shown) in [
            ("/run/x.sock", "unix:/run/x.sock".to_owned()),
            ("unix:/run/x.sock", "unix:/run/x.sock".to_owned()),
            ("unix:@x", "unix:@x".to_owned()),
            ("x.sock", format!("unix:{}/x.sock", here.display())),
            ("/run/a:b", "unix:/run/a:b".to_owned()),
        ] {
            let address: ControlAddress = text.parse().expect(text);
            assert_eq!(address.to_string(), shown);
            assert_eq!(shown.parse(), Ok(address));
        }
    }

    #[test]
    fn what_is_no_unix_socket_is_refused_with_what_would_be_right() {
        for (text, words) in [
            ("", "nothing is written; write the path"),
            ("127.0.0.1:80", "no Unix socket"),
            ("tcp:host:80", "no Unix socket"),
            ("fd:3", "no Unix socket"),
            ("unix:x", "relative"),
            ("unix:", "missing"),
            ("/", "names no file"),
            ("/run/", "names no file"),
        ] {
            let error = text.parse::<ControlAddress>().expect_err(text).to_string();
            assert!(error.contains(words), "{error}\nshould say: {words}");
        }
    }
}
