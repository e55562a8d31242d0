//! The services that ship with the command.
//!
//! | module | what it is |
//! | --- | --- |
//! | `hello` | HTTP/1.0 and 1.1: says which worker answers |
//! | `faults` | routes of `hello` that hurt the worker, for tests |
//! | `echo` | a line in, the same line out |
//! | `http` | reading requests and making responses, without I/O |
//! | `exchange` | one HTTP request and its response over a connection |

mod echo;
mod exchange;
mod faults;
mod hello;
mod http;

use std::fmt;
use std::str::FromStr;

pub use echo::Echo;
pub use hello::Hello;

/// A service that ships, by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Shipped {
    /// [`Hello`].
    Hello,
    /// [`Echo`].
    Echo,
}

impl Shipped {
    /// All of them; the first is what the command serves unasked.
    pub const ALL: [Shipped; 2] = [Shipped::Hello, Shipped::Echo];

    /// The name under which the command knows it.
    pub fn name(self) -> &'static str {
        match self {
            Shipped::Hello => "hello",
            Shipped::Echo => "echo",
        }
    }
}

impl fmt::Display for Shipped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A name that no shipped service has: most likely misspelt; the message lists those that there
/// are.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no service named {name:?} ships; there are: {}", Shipped::ALL.map(Shipped::name).join(", "))]
pub struct UnknownService {
    name: String,
}

impl FromStr for Shipped {
    type Err = UnknownService;

    fn from_str(name: &str) -> Result<Shipped, UnknownService> {
        let unknown = || UnknownService { name: name.to_owned() };
        let mut all = Shipped::ALL.into_iter();
        all.find(|service| service.name() == name).ok_or_else(unknown)
    }
}

#[cfg(test)]
mod testing;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shipped_service_is_found_by_its_name_and_an_unknown_name_lists_them() {
        for service in Shipped::ALL {
            assert_eq!(service.to_string().parse(), Ok(service));
        }
        let error = "helo".parse::<Shipped>().expect_err("misspelt");
        assert_eq!(error.to_string(), "no service named \"helo\" ships; there are: hello, echo");
    }
}
