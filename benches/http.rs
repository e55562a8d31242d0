//! HTTP "hello" over loopback: ours beside two hand-written C loops, nginx and Apache's prefork.
//!
//! All servers are started first and stay; wrk loads one after the other, round after round. Load and
//! servers share the machine's cores, as they do for every contender alike. The processor time that a
//! request costs the server is printed too: it moves less than the rate when the machine has other work.

mod support;

use std::process::ExitCode;

use support::{
    Aim, Column, Comparison, Connections, Contender, Linking, Options, Result, Sample, Server, apache, hatchery,
    limit_server, load, nginx, run,
};

const COLUMNS: [Column; 4] =
    [Column::Median("p50, ms"), Column::Median("p99, ms"), Column::Median("CPU µs/request"), Column::Sum("errors")];

fn main() -> ExitCode {
    run(http)
}

fn http(options: Options) -> Result<()> {
    let ours = checked(hatchery(4));
    let blocking = checked(limit_server("accept_blocking", Linking::Dynamic, 16));
    let parking = checked(limit_server("accept_epoll", Linking::Dynamic, 4));
    let nginx = checked(nginx(2));
    let apache = checked(apache(16));
    let seconds = options.pick(3, 1);

    let modes = [
        (Connections::OnePerRequest, "a connection per request", 0.95, 1.1),
        (Connections::KeepAlive, "keep-alive", 0.9, 1.0),
    ];
    for (connections, words, aim_beside_limit, aim_beside_nginx) in modes {
        let title = format!("http, {words}: requests/s (wrk -t2 -c16 -d{seconds}s)");
        let under = |server| under_load(server, connections, seconds);
        let limit = Aim::RatioToBest(aim_beside_limit);

        let mut table = Comparison::new(title, &COLUMNS);
        table.ours("hatchery, 4 workers", Aim::None, under(&ours));
        table.beside("C, blocking accept, 16 processes", limit, under(&blocking));
        table.beside("C, epoll and parked connections, 4 processes", limit, under(&parking));
        table.beside("nginx, 2 workers", Aim::Ratio(aim_beside_nginx), under(&nginx));
        table.beside("Apache prefork, 16 workers", Aim::None, under(&apache));
        table.run(options.rounds())?;
        table.print();
    }
    Ok(())
}

/// Nobody is measured who does not answer.
fn checked(server: Result<Server>) -> Result<Server> {
    let server = server?;
    server.answers()?;
    Ok(server)
}

/// A server at the other end of wrk.
struct UnderLoad<'s> {
    server: &'s Server,
    connections: Connections,
    seconds: u32,
}

fn under_load(server: &Result<Server>, connections: Connections, seconds: u32) -> Result<Box<dyn Contender + '_>> {
    let server = server.as_ref().map_err(|error| error.to_string())?;
    Ok(Box::new(UnderLoad { server, connections, seconds }))
}

impl Contender for UnderLoad<'_> {
    fn round(&mut self) -> Result<Sample> {
        let before = self.server.cpu_time();
        let load = load(self.server.address, self.connections, self.seconds)?;
        let cpu_time = self.server.cpu_time().saturating_sub(before);
        let cpu_per_request = cpu_time.as_secs_f64() * 1e6 / load.requests;
        Ok(Sample {
            figure: load.requests_per_second,
            further: vec![load.p50_ms, load.p99_ms, cpu_per_request, load.errors],
        })
    }
}
