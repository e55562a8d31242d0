//! From exec to the line that says that all workers are ready: 4, 100 and 1,000 of them, and what one
//! more costs, which should not grow with their number.

mod support;

use std::process::ExitCode;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use support::{
    Aim, Comparison, Contender, Linking, Options, Result, Sample, Server, figure, hatchery, limit_server, run,
};

const FLEETS: [u32; 3] = [4, 100, 1_000];
const OURS: &str = "hatchery";
const LIMIT: &str = "C, plain forks that accept, static";

fn main() -> ExitCode {
    run(boot)
}

fn boot(options: Options) -> Result<()> {
    raise_descriptor_limit()?;
    let mut medians = Vec::new();
    for workers in FLEETS {
        let title = format!("boot, {} workers: ms from exec until all are ready", figure(f64::from(workers)));
        let mut table = Comparison::new(title, &[]);
        table.ours(OURS, Aim::None, boot_of(hatchery, workers));
        table.beside(LIMIT, Aim::None, boot_of(bare_limit, workers));
        table.run(options.rounds())?;
        table.print();
        medians.push([OURS, LIMIT].map(|name| table.median_of(name)));
    }
    println!("cost of one more worker, µs (from the medians above)\n");
    for (contender, name) in [OURS, LIMIT].into_iter().enumerate() {
        for step in 1..FLEETS.len() {
            let (Some(few), Some(many)) = (medians[step - 1][contender], medians[step][contender]) else {
                continue;
            };
            let (from, to) = (FLEETS[step - 1], FLEETS[step]);
            println!("- {name}, {from} to {to} workers: {:.0}", (many - few) * 1_000.0 / f64::from(to - from));
        }
    }
    Ok(())
}

/// A master of 1,000 workers holds a few descriptors for each.
fn raise_descriptor_limit() -> Result<()> {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most).map_err(|e| format!("cannot raise RLIMIT_NOFILE to {most}: {e}"))?;
    Ok(())
}

fn bare_limit(workers: u32) -> Result<Server> {
    limit_server("accept_blocking", Linking::Static, workers)
}

/// A server that is started once a round.
struct Boot {
    start: fn(u32) -> Result<Server>,
    workers: u32,
}

fn boot_of<'a>(start: fn(u32) -> Result<Server>, workers: u32) -> Result<Box<dyn Contender + 'a>> {
    Ok(Box::new(Boot { start, workers }))
}

impl Contender for Boot {
    fn round(&mut self) -> Result<Sample> {
        let server = (self.start)(self.workers)?;
        server.answers()?;
        Ok(Sample::of(server.boot_time.as_secs_f64() * 1_000.0))
    }
}
