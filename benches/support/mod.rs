//! What the benches share.
//!
//! A bench is a [`Comparison`]: contenders that are measured in turn (A B C A B C …), so that
//! whatever else the machine does meets all of them, and a table of medians and ratios.
#![allow(dead_code, unused_imports, reason = "each bench uses its own part")]

mod app_servers;
mod clients;
mod compile;
mod interrupt;
mod machine;
mod memory;
mod peers;
mod process;
mod rounds;
mod run;
mod server;
mod trace;
mod wrk;

pub use app_servers::{gunicorn, starman, unicorn, uwsgi};
pub use clients::{Clients, Tally, check_the_clients};
pub use compile::{Linking, build_limit};
pub use machine::{available_megabytes, machine_line};
pub use memory::{Footprint, hold};
pub use peers::{apache, find, nginx, nginx_that_answers};
pub use process::{Life, run_to_end};
pub use rounds::{Aim, Column, Comparison, Contender, Sample, figure};
pub use run::{Options, run};
pub use server::{Server, hatchery, hatchery_with, limit_server};
pub use trace::Count;
pub use wrk::{Connections, Load, load};

/// The errors of a bench are read by people alone.
pub type BoxError = Box<dyn std::error::Error>;
/// What every step of a bench returns.
pub type Result<T, E = BoxError> = std::result::Result<T, E>;
