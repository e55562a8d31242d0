//! Pre-fork multi-process servers, and the typed process layer beneath them.
//!
//! The folders are layers; each imports only those above it in this list:
//! [`sys`], [`proc`], [`server`], [`cli`].

mod sys;

pub mod proc;
pub mod server;

#[cfg(feature = "cli")]
pub mod cli;
