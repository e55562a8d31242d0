//! The memory that one more idle worker takes.
//!
//! The figure is the growth of the whole tree: the sum of PSS with 64 workers less the sum with 4,
//! divided by 60. So what the master holds for a worker counts too, and what all share does not.
//! Beside it stand the medians over the 64 workers themselves.

mod support;

use std::process::ExitCode;
use std::thread::sleep;
use std::time::{Duration, Instant};

use support::{
    Aim, Column, Comparison, Contender, Footprint, Linking, Options, Result, Sample, Server, apache, hatchery,
    limit_server, nginx, run,
};

const FEW: u32 = 4;
const MANY: u32 = 64;
const COLUMNS: [Column; 2] = [Column::Median("a worker's PSS"), Column::Median("a worker's private")];

fn main() -> ExitCode {
    run(memory)
}

fn memory(options: Options) -> Result<()> {
    let mut table = Comparison::new("memory of one more idle worker: kB of PSS", &COLUMNS);
    table.ours("hatchery", Aim::AtMost(60.0), growth_of(hatchery));
    table.beside("C, blocking accept, static", Aim::None, growth_of(static_limit));
    table.beside("C, blocking accept, dynamic", Aim::None, growth_of(dynamic_limit));
    table.beside("Apache prefork", Aim::None, growth_of(apache));
    table.beside("nginx", Aim::None, growth_of(nginx));
    table.run(options.rounds())?;
    table.print();
    Ok(())
}

fn static_limit(workers: u32) -> Result<Server> {
    limit_server("accept_blocking", Linking::Static, workers)
}

fn dynamic_limit(workers: u32) -> Result<Server> {
    limit_server("accept_blocking", Linking::Dynamic, workers)
}

/// A server that is started twice a round, small and large.
struct Growth {
    start: fn(u32) -> Result<Server>,
}

fn growth_of<'a>(start: fn(u32) -> Result<Server>) -> Result<Box<dyn Contender + 'a>> {
    Ok(Box::new(Growth { start }))
}

impl Contender for Growth {
    fn round(&mut self) -> Result<Sample> {
        let (few, _) = self.footprints(FEW)?;
        let (many, workers) = self.footprints(MANY)?;
        let growth = (many - few) / f64::from(MANY - FEW);
        Ok(Sample { figure: growth, further: vec![workers.pss, workers.private] })
    }
}

impl Growth {
    /// The tree's sum of PSS, and the medians of its workers.
    fn footprints(&self, workers: u32) -> Result<(f64, Footprint)> {
        let server = (self.start)(workers)?;
        server.answers()?;
        await_workers(&server, workers)?;
        let sum = settled_sum(&server)?;
        let each = server.workers().iter().map(Footprint::of).collect::<Result<Vec<_>>>()?;
        let median = Footprint::median(&each).ok_or("it has no workers")?;
        Ok((sum, median))
    }
}

/// A server that keeps silent may listen before all its workers are there.
fn await_workers(server: &Server, workers: u32) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(20);
    while server.workers().len() < workers as usize {
        if Instant::now() > deadline {
            return Err(format!("it has {} of {workers} workers", server.workers().len()).into());
        }
        sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// The sum once it stays the same: workers touch their last pages just after they are there.
fn settled_sum(server: &Server) -> Result<f64> {
    let mut before = f64::NAN;
    for _ in 0..30 {
        sleep(Duration::from_millis(100));
        let tree = server.tree();
        let sum = tree.iter().map(|life| Ok(Footprint::of(life)?.pss)).sum::<Result<f64>>()?;
        if sum == before {
            break;
        }
        before = sum;
    }
    Ok(before)
}
