//! The RPC on real processes.
//!
//! This binary is its own template: `hatchery::init` comes first in its `main`, and a process that was spawned
//! from it never gets to the tests.

#[path = "../support/mod.rs"]
#[allow(dead_code, reason = "it is shared with other binaries, which need more of it")]
mod support;

mod batching;
mod deadlines;
mod deaths;
mod descriptors;
mod entries;
mod failures;
mod futures;
mod leaving;
mod nonsense;
mod order;
mod pool;
mod progress;
#[cfg(feature = "tokio")]
mod runtime;
mod sizes;

use std::process::ExitCode;

use libtest_mimic::Arguments;

fn main() -> ExitCode {
    let registry = batching::register(pool::tasks::register(entries::registry()));
    let registry = progress::register(pool::example::register(registry));
    #[cfg(feature = "tokio")]
    let registry = runtime::add_to(registry);
    hatchery::init(&registry);
    if let Some(name) = support::scenario::asked() {
        return support::scenario::run(&name, &failures::SCENARIOS);
    }
    let mut tests = Vec::new();
    tests.extend(batching::tests());
    tests.extend(deadlines::tests());
    tests.extend(deaths::tests());
    tests.extend(descriptors::tests());
    tests.extend(failures::tests());
    tests.extend(futures::tests());
    tests.extend(leaving::tests());
    tests.extend(nonsense::tests());
    tests.extend(order::tests());
    tests.extend(pool::tests());
    tests.extend(progress::tests());
    #[cfg(feature = "tokio")]
    tests.extend(runtime::tests());
    tests.extend(sizes::tests());
    libtest_mimic::run(&Arguments::from_args(), tests).exit_code()
}
