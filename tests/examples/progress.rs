//! A long job in a process of its own, with a progress bar that is fed by its events.
//!
//! `cargo run --example progress` counts the primes below a million.

use std::error::Error;
use std::io::{self, Write};

use hatchery::proc::{BoxError, Process, Registry};
use hatchery::rpc::{Client, Cx, Entry, Options};
use serde::{Deserialize, Serialize};

/// How far the job has come.
#[derive(Debug, Serialize, Deserialize)]
pub struct Progress {
    done: u64,
    of: u64,
}

/// The bar is this wide, and so often the job tells how far it is.
const STEPS: u64 = 20;

/// Adds the job to a program's entry points.
pub fn register(registry: Registry) -> Registry {
    registry.rpc("count primes", Entry::new(|_| Ok(()), count_primes))
}

/// It runs in its own process: a crash would not be ours, and it can be killed at any time.
fn count_primes((): &mut (), below: u64, cx: &Cx<Progress>) -> Result<u64, BoxError> {
    let mut primes = 0;
    for step in 0..STEPS {
        if cx.cancelled() {
            return Err("nobody waits for it any more".into());
        }
        primes += (below * step / STEPS..below * (step + 1) / STEPS).filter(|number| is_prime(*number)).count() as u64;
        cx.events.send(&Progress { done: step + 1, of: STEPS })?;
    }
    Ok(primes)
}

fn is_prime(number: u64) -> bool {
    number >= 2
        && (2..).take_while(|divisor| divisor * divisor <= number).all(|divisor| !number.is_multiple_of(divisor))
}

/// Does the job, and draws its bar.
pub fn run(below: u64, mut screen: impl Write + Send + 'static) -> Result<u64, Box<dyn Error>> {
    let job: Client<u64, u64, Progress> = Process::new()?.rpc("count primes", Options::new())?;
    job.on_event(move |Progress { done, of }| {
        let bar = "█".repeat(done as usize) + &"·".repeat(of.saturating_sub(done) as usize);
        // A screen that is gone does not stop the job.
        let _ = write!(screen, "\r{bar} {:3} %", 100 * done / of).and_then(|()| screen.flush());
    })?;
    // All events have been drawn when the reply is here: they come in the order of their making.
    let primes = job.call(&below)?;
    job.finish()?;
    Ok(primes)
}

fn main() -> Result<(), Box<dyn Error>> {
    hatchery::init(&register(Registry::new()));
    let primes = run(1_000_000, io::stdout())?;
    println!("\nthere are {primes} primes below a million");
    Ok(())
}
