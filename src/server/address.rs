//! Where a server listens, as text and as a type that cannot be wrong.
//!
//! | text | meaning |
//! | --- | --- |
//! | `127.0.0.1:8080`, `[::1]:8080` | TCP on that address; port 0 lets the kernel choose |
//! | `tcp:HOST:PORT` | TCP; a name is resolved when it is bound, and the first of its addresses that binds is taken |
//! | `unix:/path` | a Unix stream socket at an absolute path |
//! | `unix:@name` | a Unix stream socket in Linux's abstract namespace |
//! | `fd:N` | a listening socket that this process was started with |
//!
//! [`Display`](fmt::Display) gives text that parses to the same address again.

use std::fmt;
use std::net::{SocketAddr, SocketAddrV6};
use std::os::fd::RawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};
use std::str::FromStr;

/// The longest path or abstract name of a Unix socket, in bytes: `sun_path` has 108 (unix(7)), one
/// of which is the path's closing NUL or the abstract name's leading one.
pub const UNIX_NAME_MAX: usize = 107;

/// The lowest descriptor number that `fd:N` takes: 0 to 2 are stdin, stdout and stderr.
pub const FIRST_INHERITED_FD: RawFd = 3;

/// Where a server listens.
///
/// ```
/// use hatchery::server::Address;
///
/// let address: Address = "[::1]:8080".parse()?;
/// assert_eq!(address.to_string(), "[::1]:8080");
/// # Ok::<(), hatchery::server::AddressError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Address {
    /// An IP address and a port.
    Tcp(SocketAddr),
    /// A host name and a port, resolved when it is bound. The first address that binds is taken.
    Host(HostName, u16),
    /// A Unix stream socket in the file system.
    Unix(SocketPath),
    /// A Unix stream socket in the abstract namespace.
    Abstract(AbstractName),
    /// A listening socket that this process was started with, by descriptor number.
    Inherited(InheritedFd),
}

/// A host name: letters, digits, `-`, `_` and `.`, at most 253 bytes.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct HostName(String);

/// An absolute path, short enough for a socket and with a file name at its end.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct SocketPath(PathBuf);

/// A name in the abstract namespace, without its leading NUL.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct AbstractName(String);

/// A descriptor number from [`FIRST_INHERITED_FD`] on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct InheritedFd(RawFd);

/// A text is not an address. The message names the text, what is wrong and what would be right.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("cannot read `{text}` as an address: {problem}")]
pub struct AddressError {
    text: String,
    problem: Problem,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
enum Problem {
    #[error("nothing is written; write for example 127.0.0.1:8080, [::1]:8080 or unix:/run/server.sock")]
    Empty,
    #[error("the port is missing; write for example {0}:8080 (port 0 lets the kernel choose)")]
    NoPort(String),
    #[error("the port `{0}` is not a number from 0 to 65535")]
    Port(String),
    #[error("the host is missing; write 0.0.0.0:{0} or [::]:{0} for every address of this machine")]
    NoHost(String),
    #[error("an IPv6 address stands in brackets, as in [::1]:8080")]
    Bare6,
    #[error("`{0}` in the brackets is not an IPv6 address; write for example [::1]:8080")]
    Brackets(String),
    #[error("`{0}` is not an IP address; a host name is written tcp:{0}:{1}")]
    NameWithoutTcp(String, u16),
    #[error("`{0}` is not a host name: it takes letters, digits, `-`, `_` and `.`, at most 253 bytes")]
    HostName(String),
    #[error("the path is missing; write for example unix:/run/server.sock, or unix:@name for an abstract one")]
    NoPath,
    #[error("the path is relative, and would mean another place after a change of directory; write unix:/…")]
    RelativePath,
    #[error("the path names no file; write for example unix:/run/server.sock")]
    NoFileName,
    #[error("the name has {0} bytes, and a Unix socket's name takes at most {UNIX_NAME_MAX}")]
    LongName(usize),
    #[error("the name holds a NUL byte")]
    Nul,
    #[error("`{0}` is not a descriptor number from {FIRST_INHERITED_FD} on; write for example fd:3")]
    Descriptor(String),
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        parse(text).map_err(|problem| AddressError { text: text.to_owned(), problem })
    }
}

fn parse(text: &str) -> Result<Address, Problem> {
    if text.is_empty() {
        return Err(Problem::Empty);
    }
    if let Some(rest) = text.strip_prefix("unix:@") {
        return Ok(Address::Abstract(AbstractName::parse(rest)?));
    }
    if let Some(rest) = text.strip_prefix("unix:") {
        return Ok(Address::Unix(SocketPath::parse(Path::new(rest))?));
    }
    if let Some(rest) = text.strip_prefix("fd:") {
        return Ok(Address::Inherited(InheritedFd::parse(rest)?));
    }
    if let Some(rest) = text.strip_prefix("tcp:") {
        return match host_and_port(rest)? {
            (Host::Ip(address), _) => Ok(Address::Tcp(address)),
            (Host::Name(name), port) => Ok(Address::Host(HostName::parse(name)?, port)),
        };
    }
    match host_and_port(text)? {
        (Host::Ip(address), _) => Ok(Address::Tcp(address)),
        (Host::Name(name), port) => {
            let name = HostName::parse(name)?;
            Err(Problem::NameWithoutTcp(name.0, port))
        }
    }
}

enum Host<'a> {
    Ip(SocketAddr),
    Name(&'a str),
}

fn host_and_port(text: &str) -> Result<(Host<'_>, u16), Problem> {
    if text.starts_with('[') {
        return bracketed(text);
    }
    let Some((host, port_text)) = text.rsplit_once(':') else {
        return Err(match text.parse::<u16>() {
            Ok(_) => Problem::NoHost(text.to_owned()),
            Err(_) => Problem::NoPort(text.to_owned()),
        });
    };
    if host.contains(':') || text.parse::<std::net::Ipv6Addr>().is_ok() {
        return Err(Problem::Bare6);
    }
    let port = port(host, port_text)?;
    if host.is_empty() || host == "*" {
        return Err(Problem::NoHost(port_text.to_owned()));
    }
    Ok(match text.parse() {
        Ok(address) => (Host::Ip(address), port),
        Err(_) => (Host::Name(host), port),
    })
}

fn bracketed(text: &str) -> Result<(Host<'_>, u16), Problem> {
    let Some((inside, rest)) = text[1..].split_once(']') else {
        return Err(Problem::Brackets(text[1..].to_owned()));
    };
    let host = format!("[{inside}]");
    let Some(port_text) = rest.strip_prefix(':') else {
        return Err(Problem::NoPort(host));
    };
    let port = port(&host, port_text)?;
    let address: SocketAddrV6 = text.parse().map_err(|_| Problem::Brackets(inside.to_owned()))?;
    Ok((Host::Ip(SocketAddr::V6(address)), port))
}

fn port(host: &str, text: &str) -> Result<u16, Problem> {
    if text.is_empty() {
        return Err(Problem::NoPort(host.to_owned()));
    }
    // `u16` alone would also take "+80".
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|_| digits).ok_or_else(|| Problem::Port(text.to_owned()))
}

impl HostName {
    fn parse(text: &str) -> Result<Self, Problem> {
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        if text.is_empty() || text.len() > 253 || !text.bytes().all(fits) {
            return Err(Problem::HostName(text.to_owned()));
        }
        Ok(HostName(text.to_owned()))
    }

    /// The name as it was written.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl SocketPath {
    fn parse(path: &Path) -> Result<Self, Problem> {
        let bytes = path.as_os_str().as_bytes();
        if bytes.is_empty() {
            return Err(Problem::NoPath);
        }
        if !path.is_absolute() {
            return Err(Problem::RelativePath);
        }
        checked_name(bytes)?;
        let ends_in_file = matches!(path.components().next_back(), Some(Component::Normal(_)));
        if !ends_in_file || bytes.ends_with(b"/") || bytes.ends_with(b"/.") {
            return Err(Problem::NoFileName);
        }
        Ok(SocketPath(path.to_owned()))
    }

    /// The path.
    pub fn as_path(&self) -> &Path {
        &self.0
    }

    /// The directory that holds the socket.
    pub(crate) fn directory(&self) -> &Path {
        self.0.parent().unwrap_or(Path::new("/"))
    }
}

impl AbstractName {
    fn parse(name: &str) -> Result<Self, Problem> {
        if name.is_empty() {
            return Err(Problem::NoPath);
        }
        checked_name(name.as_bytes())?;
        Ok(AbstractName(name.to_owned()))
    }

    /// The name without its leading NUL.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

fn checked_name(name: &[u8]) -> Result<(), Problem> {
    if name.len() > UNIX_NAME_MAX {
        return Err(Problem::LongName(name.len()));
    }
    if name.contains(&0) {
        return Err(Problem::Nul);
    }
    Ok(())
}

impl InheritedFd {
    fn parse(text: &str) -> Result<Self, Problem> {
        let digits = text.bytes().all(|byte| byte.is_ascii_digit());
        text.parse()
            .ok()
            .filter(|number| digits && *number >= FIRST_INHERITED_FD)
            .map(InheritedFd)
            .ok_or_else(|| Problem::Descriptor(text.to_owned()))
    }

    /// The descriptor's number.
    pub fn number(self) -> RawFd {
        self.0
    }
}

impl Address {
    /// The address under which a bound socket is reached, as the kernel tells it; `None` for what
    /// has no text of ours, such as a Unix socket without a name or with a relative path.
    pub(crate) fn of_socket(bound: &socket2::SockAddr) -> Option<Address> {
        if let Some(address) = bound.as_socket() {
            return Some(Address::Tcp(address));
        }
        if let Some(path) = bound.as_pathname() {
            path.to_str()?;
            return Some(Address::Unix(SocketPath::parse(path).ok()?));
        }
        let name = std::str::from_utf8(bound.as_abstract_namespace()?).ok()?;
        Some(Address::Abstract(AbstractName::parse(name).ok()?))
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Tcp(address) => write!(f, "{address}"),
            Address::Host(name, port) => write!(f, "tcp:{}:{port}", name.0),
            Address::Unix(path) => write!(f, "unix:{}", path.0.display()),
            Address::Abstract(name) => write!(f, "unix:@{}", name.0),
            Address::Inherited(fd) => write!(f, "fd:{}", fd.0),
        }
    }
}

impl From<SocketAddr> for Address {
    fn from(address: SocketAddr) -> Self {
        Address::Tcp(address)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn problem(text: &str) -> String {
        text.parse::<Address>().expect_err(text).to_string()
    }

    #[test]
    fn what_is_shown_parses_to_the_same_address() {
        for text in [
            "127.0.0.1:8080",
            "0.0.0.0:0",
            "[::1]:8080",
            "[fe80::1%2]:80",
            "tcp:localhost:80",
            "unix:/run/a b.sock",
            "unix:@hatchery",
            "fd:3",
        ] {
            let address: Address = text.parse().expect(text);
            assert_eq!(address.to_string(), text);
            assert_eq!(address.to_string().parse::<Address>().expect(text), address);
        }
    }

    #[test]
    fn tcp_with_an_ip_address_needs_no_resolver() {
        assert_eq!("tcp:127.0.0.1:80".parse::<Address>().expect("v4").to_string(), "127.0.0.1:80");
        assert_eq!("tcp:[::1]:80".parse::<Address>().expect("v6").to_string(), "[::1]:80");
    }

    #[test]
    fn an_error_names_the_text_what_is_wrong_and_what_would_be_right() {
        for (text, says) in [
            ("", "nothing is written"),
            ("127.0.0.1:65536", "`65536` is not a number from 0 to 65535"),
            ("127.0.0.1:+80", "`+80` is not a number"),
            ("127.0.0.1:http", "`http` is not a number"),
            ("127.0.0.1", "write for example 127.0.0.1:8080"),
            ("127.0.0.1:", "the port is missing"),
            ("[::1]", "write for example [::1]:8080"),
            ("[::1]:", "the port is missing"),
            ("8080", "write 0.0.0.0:8080 or [::]:8080"),
            (":8080", "write 0.0.0.0:8080 or [::]:8080"),
            ("*:8080", "write 0.0.0.0:8080 or [::]:8080"),
            ("::1:8080", "in brackets"),
            ("::1", "in brackets"),
            ("tcp:::1:80", "in brackets"),
            ("[::g]:80", "`::g` in the brackets"),
            ("[::1", "`::1` in the brackets"),
            ("localhost:80", "is written tcp:localhost:80"),
            ("tcp:local host:80", "is not a host name"),
            ("tcp:localhost", "write for example localhost:8080"),
            ("unix:", "the path is missing"),
            ("unix:@", "the path is missing"),
            ("unix:run/a.sock", "the path is relative"),
            ("unix:/", "names no file"),
            ("unix:/run/", "names no file"),
            ("unix:/run/..", "names no file"),
            ("unix:/run/a\0b", "NUL"),
            ("fd:2", "`2` is not a descriptor number from 3 on"),
            ("fd:-3", "`-3` is not"),
            ("fd:x", "`x` is not"),
            ("fd:", "`` is not"),
            ("fd:99999999999", "`99999999999` is not"),
        ] {
            let words = problem(text);
            assert!(words.contains(says), "{words}\nshould say: {says}");
            assert!(words.contains(&format!("`{text}`")), "{words}\nshould name `{text}`");
        }
    }

    #[test]
    fn a_unix_name_of_107_bytes_fits_and_one_of_108_does_not() {
        let fits = format!("unix:/{}", "p".repeat(106));
        assert!(fits.parse::<Address>().is_ok());
        assert!(problem(&format!("{fits}p")).contains("108 bytes"));
        let fits = format!("unix:@{}", "n".repeat(107));
        assert!(fits.parse::<Address>().is_ok());
        assert!(problem(&format!("{fits}n")).contains("108 bytes"));
    }

    proptest! {
        #[test]
        fn no_text_panics_and_every_address_round_trips(
            text in "(tcp:|unix:|unix:@|fd:|unix:/)?[\\[\\]a-z0-9:.%/@*\u{e9}\0-]{0,40}"
        ) {
            if let Ok(address) = text.parse::<Address>() {
                prop_assert_eq!(address.to_string().parse::<Address>(), Ok(address));
            }
        }
    }
}
