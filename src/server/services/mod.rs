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
#[cfg(any(all(test, feature = "cli"), feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod hello;
mod http;

pub use echo::Echo;
pub use hello::Hello;

#[cfg(any(test, feature = "fuzzing"))]
mod testing;
