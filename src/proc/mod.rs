//! The typed process layer: processes that wait for instructions, templates that are forked.
//!
//! The master sends instructions without waiting for the process; they are carried out in order, and a
//! failure is told by the next [`sync`](Template::sync) or the process's [`Exit`].
//!
//! # Shared objects
//! [`Template::load`] and [`Process::load`] open a shared object (dlopen(3)) that exports the function
//! `hatchery_entry_points`. It returns a pointer to a table that lives as long as the object:
//!
//! ```c
//! struct hatchery_bytes { const unsigned char *data; size_t length; };
//! struct hatchery_row {
//!     const char *name;
//!     // exactly one of the two: a function that is called in a waiting process; it returns 0, or another
//!     // number and an error text in `error` …
//!     int (*call)(const struct hatchery_bytes *args, size_t count, char *error, size_t room);
//!     // … or one that takes the process over; what it returns is the exit code
//!     int (*run)(int socket, const struct hatchery_bytes *args, size_t args_count, const int *fds, size_t fds_count);
//! };
//! struct hatchery_table { uint32_t layout /* 1 */; uint32_t count; const struct hatchery_row *rows; };
//! const struct hatchery_table *hatchery_entry_points(void);
//! ```

pub(crate) mod caught;
mod channel;
mod children;
mod error;
mod exec_command;
mod exit;
mod failure;
#[cfg(any(all(test, feature = "cli"), feature = "fuzzing"))]
pub(crate) mod fuzzing;
pub(crate) mod hub;
mod message;
mod node;
mod obituary;
mod outbox;
mod process;
mod registry;
mod reports;
mod running;
mod template;
mod unanswered;
mod waiting;

pub use channel::{Channel, Received};
pub use error::Error;
pub use exec_command::ExecCommand;
pub use exit::{Exit, How, Usage};
pub use failure::Failure;
pub use process::{Args, Process};
pub use registry::{BoxError, CallCx, Registry, RunCx};
pub use running::Running;
pub use template::Template;

pub(crate) use failure::words_of;
pub(crate) use registry::text_at;
pub(crate) use template::{initialise, take_inheritance, titled};
