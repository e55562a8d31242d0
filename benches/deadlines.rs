//! What a deadline for every request costs: keep-alive throughput with and without one, in turn, and how
//! many system calls the timer takes.

mod support;

use std::process::ExitCode;

use support::{
    Aim, Column, Comparison, Connections, Contender, Count, Options, Result, Sample, Server, figure, hatchery_with,
    load, run,
};

const WORKERS: u32 = 4;
const COLUMNS: [Column; 2] = [Column::Median("p99, ms"), Column::Sum("errors")];

/// The calls that a timer takes, and last the one that every answer takes: the proof that they are counted.
const CALLS: [&str; 3] = ["timer_create", "timer_settime", "sendto"];

fn main() -> ExitCode {
    run(deadlines)
}

fn deadlines(options: Options) -> Result<()> {
    let seconds = options.pick(5, 1);
    let with = server("30s")?;
    let without = server("off")?;
    let title = format!("keep-alive requests/s (wrk -t2 -c16 -d{seconds}s), hatchery with {WORKERS} workers");
    let mut table = Comparison::new(title, &COLUMNS);
    table.ours("--request-timeout 30s", Aim::None, Ok(Box::new(UnderLoad { server: &with, seconds })));
    table.beside("--request-timeout off", Aim::Ratio(0.99), Ok(Box::new(UnderLoad { server: &without, seconds })));
    table.run(options.pick(9, 3))?;
    table.print();

    println!("timer system calls per 100,000 requests (aim: none per request)\n");
    for timeout in ["30s", "1s"] {
        match timer_calls(timeout, seconds) {
            Ok((per_100_000, requests)) => {
                println!("--request-timeout {timeout}: {} (of {} requests)", figure(per_100_000), figure(requests));
            }
            Err(error) => println!("--request-timeout {timeout}: not counted: {error}"),
        }
    }
    Ok(())
}

fn server(timeout: &str) -> Result<Server> {
    let server = hatchery_with(WORKERS, &["--request-timeout", timeout])?;
    server.answers()?;
    Ok(server)
}

/// Calls of the timer per 100,000 requests, and how many requests there were.
fn timer_calls(timeout: &str, seconds: u32) -> Result<(f64, f64)> {
    let server = server(timeout)?;
    let count = Count::begin(&server, &CALLS)?;
    let requests = load(server.address, Connections::KeepAlive, seconds)?.requests;
    let calls = count.end(&CALLS)?;
    let [create, set, send] = calls[..] else {
        return Err("there is not a count for each call".into());
    };
    if send < requests {
        return Err(format!("{send} calls of send were seen for {requests} requests").into());
    }
    Ok(((create + set) * 100_000.0 / requests, requests))
}

/// A server at the other end of wrk.
struct UnderLoad<'s> {
    server: &'s Server,
    seconds: u32,
}

impl Contender for UnderLoad<'_> {
    fn round(&mut self) -> Result<Sample> {
        let load = load(self.server.address, Connections::KeepAlive, self.seconds)?;
        Ok(Sample { figure: load.requests_per_second, further: vec![load.p99_ms, load.errors] })
    }
}
