//! The process layer on real processes.
//!
//! This binary is its own template: `hatchery::init` comes first in its `main`, and a process that was spawned
//! from it never gets to the tests. It is also every scenario that needs a process of its own.

#[path = "../support/program.rs"]
mod program;
#[path = "../support/mod.rs"]
mod support;

mod deaths;
mod descriptors;
mod early;
mod entries;
mod facts;
mod failures;
mod forks;
mod handover;
mod image;
mod instructions;
mod limits;
mod objects;
mod programs;
mod races;
mod running;

use std::process::ExitCode;

use libtest_mimic::Arguments;

use support::scenario;

fn main() -> ExitCode {
    let asked = scenario::asked();
    if asked.as_deref() != Some(image::WITHOUT_INIT) {
        hatchery::init(&entries::registry());
    }
    if let Some(name) = asked {
        let scenarios = [
            deaths::SCENARIOS,
            descriptors::SCENARIOS,
            early::SCENARIOS,
            forks::SCENARIOS,
            image::SCENARIOS,
            limits::SCENARIOS,
        ];
        return scenario::run(&name, &scenarios.concat());
    }
    let mut tests = Vec::new();
    tests.extend(deaths::tests());
    tests.extend(descriptors::tests());
    tests.extend(early::tests());
    tests.extend(failures::tests());
    tests.extend(forks::tests());
    tests.extend(handover::tests());
    tests.extend(image::tests());
    tests.extend(instructions::tests());
    tests.extend(limits::tests());
    tests.extend(objects::tests());
    tests.extend(programs::tests());
    tests.extend(races::tests());
    tests.extend(running::tests());
    libtest_mimic::run(&Arguments::from_args(), tests).exit_code()
}
