//! The server on real processes, sockets and signals: its promises, by subject.
//!
//! This binary becomes a server itself when the environment says so (`fixtures.rs`): the services under test need a
//! `main` of their own, because a template is the program's own image. Everything else is tested on the `hatchery`
//! command.

#[path = "../support/server/mod.rs"]
mod support;

mod fixtures;

/// Tests by their functions' names, under the name of their file.
macro_rules! trials {
    ($subject:literal: $($test:ident),* $(,)?) => {
        vec![$(libtest_mimic::Trial::test(concat!($subject, "::", stringify!($test)), || {
            $test();
            Ok(())
        })),*]
    };
}

mod aborts;
mod accepting;
mod boot;
mod cleanups;
mod command;
mod control;
mod crash_loops;
mod deadlines;
mod descriptors;
mod last_words;
mod listeners;
mod logs;
mod lossless;
mod offers;
mod pid_files;
mod preloads;
mod recovery;
mod recycling;
mod reloads;
mod requests;
mod scaling;
mod signals;
mod slow_clients;
mod slow_log;
mod stops;
mod subprocesses;
mod templates;
mod upgrades;

use std::process::ExitCode;

fn main() -> ExitCode {
    if let Some(exit) = fixtures::become_fixture() {
        return exit;
    }
    support::adopt_orphans();
    let subjects = [
        aborts::tests(),
        accepting::tests(),
        boot::tests(),
        cleanups::tests(),
        command::tests(),
        control::tests(),
        deadlines::tests(),
        crash_loops::tests(),
        descriptors::tests(),
        last_words::tests(),
        listeners::tests(),
        logs::tests(),
        lossless::tests(),
        offers::tests(),
        pid_files::tests(),
        preloads::tests(),
        recovery::tests(),
        recycling::tests(),
        reloads::tests(),
        requests::tests(),
        scaling::tests(),
        signals::tests(),
        slow_clients::tests(),
        slow_log::tests(),
        stops::tests(),
        subprocesses::tests(),
        templates::tests(),
        upgrades::tests(),
    ];
    libtest_mimic::run(&libtest_mimic::Arguments::from_args(), subjects.into_iter().flatten().collect()).exit_code()
}
