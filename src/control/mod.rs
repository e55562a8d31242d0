//! A server asked and told what to do while it runs: its control socket, and who asks there (feature `control`, on by
//! default).
//!
//! [`Config::control`](crate::server::Config::control) says where a server answers, as `--control` does on the command line;
//! [`status`] and [`reload`] ask, as `hatchery status` and `hatchery reload` do.
//!
//! ```no_run
//! use hatchery::control;
//! use hatchery::server::{Config, ReloadOutcome};
//!
//! let mut config = Config::default();
//! config.control = Some(control::at("/run/lookup.control".parse()?));
//! // … `server::run(config, log)`, and from anywhere else, for as long as the reload takes:
//! let end = control::reload(&"/run/lookup.control".parse()?, None)?;
//! if let ReloadOutcome::RolledBack { why } = end.outcome {
//!     println!("the old generation still serves: {why}");
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Who may speak
//!
//! The socket's file has the mode 0600, or less by the umask. Besides, the kernel is asked who has connected (SO_PEERCRED,
//! unix(7)): the user of the master and root may speak, everybody else is refused, also at an abstract name, which has no
//! mode. A file that a dead server has left is replaced at the start; a living server's, and whatever else stands at the path,
//! is an error. At an upgrade of the master (SIGUSR2) the new one inherits the socket: who connects meanwhile waits in
//! its queue. The file is removed when the server has ended.
//!
//! # What is said
//!
//! Each side says JSON objects, one a line. A connection takes one question after another, and each is answered before the
//! next is read. In this version of the protocol, 1, there are two questions:
//!
//! | line | answer |
//! | --- | --- |
//! | `{"version":1,"request":"status"}` | `{"version":1,"answer":"status", …}` with the fields of [`Status`](crate::server::Status), at once |
//! | `{"version":1,"request":"reload"}` | `{"version":1,"answer":"reload", …}` with those of [`ReloadEnd`](crate::server::ReloadEnd), when the reload has ended |
//!
//! Reloads that are asked for while one is under way become one, which begins after it, as with SIGHUP: whoever asks is
//! answered by the first reload that begins after his question. Who hangs up leaves his reload running. A question that
//! cannot be answered gets `{"version":1,"answer":"refused","reason":…,"why":…}` with a [`Refusal`], and the connection ends.
//!
//! | bound | what happens beyond it |
//! | --- | --- |
//! | [`LONGEST_REQUEST`] bytes a question | [`Refusal::TooLong`] |
//! | [`PATIENCE`] for each question to come whole, counted from the connection or the answer before | [`Refusal::TooSlow`] |
//! | [`PATIENCE`] for each answer to be taken, counted from its beginning | the connection ends |
//! | [`MOST_CLIENTS`] clients at a time, 1,024 reloads that are waited for | [`Refusal::Busy`] |
//!
//! By hand: `echo '{"version":1,"request":"status"}' | nc -N -U /run/lookup.control`.

mod attendant;
mod client;
#[cfg(any(all(test, feature = "cli"), feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod protocol;
mod session;

pub use attendant::MOST_CLIENTS;
pub use client::{AskError, reload, status};
pub use protocol::{LONGEST_REQUEST, Refusal, Refused, VERSION};
pub use session::PATIENCE;

use crate::server::{ControlAddress, ControlPoint};

/// A point at which a server answers as this [module](self) tells.
pub fn at(address: ControlAddress) -> ControlPoint {
    ControlPoint::new(address, attendant::attend)
}
