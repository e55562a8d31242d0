//! The whole policy, in six tables: what the server does ([`phases`]), how an upgrade of the master goes ([`upgrades`]),
//! what a seat needs ([`seats`]), what becomes of a template ([`templates`]), what a report makes of a worker
//! ([`workers`]), and how failures change the fleet's health ([`health`]).
//!
//! What no table can say is decided in three other files, each about numbers: `recycling` when a worker is worn out,
//! `scaling` how many workers there are to be, `farewell` when the queues count as served. All others keep the books that
//! the tables are asked with.

mod health;
mod phases;
mod seats;
mod templates;
mod upgrades;
mod workers;

pub(crate) use self::health::Health;
pub(super) use self::health::{HealthStep, Strain, health};
pub(crate) use self::phases::Phase;
pub(super) use self::phases::{Cue, Role, Step, transition};
pub(super) use self::seats::{SeatStep, Sitter, seat};
pub(super) use self::templates::{TemplateStep, template};
pub(crate) use self::upgrades::Upgrade;
pub(super) use self::upgrades::{UpgradeCue, UpgradeStep, upgrade};
pub(super) use self::workers::{Report, WorkerStep, report};
