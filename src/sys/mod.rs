//! Small safe wrappers over the system calls that the upper layers need.
//!
//! This is the only folder in which `unsafe` may stand; each block says why it is sound.
#![allow(unsafe_code)]

pub(crate) mod alarm;
#[cfg(feature = "tokio")]
pub(crate) mod async_watch;
pub(crate) mod backlog;
pub(crate) mod clock;
pub(crate) mod crash;
pub(crate) mod descriptors;
pub(crate) mod exec;
pub(crate) mod file_identity;
pub(crate) mod fork;
pub(crate) mod gate;
pub(crate) mod hangup;
pub(crate) mod inherited;
pub(crate) mod kernel;
pub(crate) mod lane;
pub(crate) mod last_words;
pub(crate) mod limits;
pub(crate) mod memfd;
pub(crate) mod memory;
#[cfg(feature = "cli")]
pub(crate) mod output;
pub(crate) mod pidfd;
pub(crate) mod plugin;
pub(crate) mod posix_spawn;
pub(crate) mod promptness;
pub(crate) mod reaper;
pub(crate) mod seqpacket;
pub(crate) mod shared;
pub(crate) mod signals;
pub(crate) mod sock_diag;
pub(crate) mod spawn;
pub(crate) mod stream;
pub(crate) mod subprocess;
pub(crate) mod term;
pub(crate) mod threads;
pub(crate) mod trace;
pub(crate) mod wait;
