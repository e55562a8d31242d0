//! wrk's load, and what it says of it.

use std::net::SocketAddr;
use std::process::Command;

use super::{Result, find, run_to_end};

/// How long a connection lives.
#[derive(Clone, Copy)]
pub enum Connections {
    OnePerRequest,
    KeepAlive,
}

/// One run of wrk.
pub struct Load {
    pub requests_per_second: f64,
    pub requests: f64,
    pub p50_ms: f64,
    pub p99_ms: f64,
    /// Socket errors of any kind, and answers other than 2xx and 3xx.
    pub errors: f64,
}

/// Two threads and sixteen connections ask for `/` over and over.
pub fn load(address: SocketAddr, connections: Connections, seconds: u32) -> Result<Load> {
    let mut command = Command::new(find("wrk", "wrk")?);
    command.args(["-t2", "-c16", "--latency", &format!("-d{seconds}s")]);
    if let Connections::OnePerRequest = connections {
        command.args(["-H", "Connection: close"]);
    }
    parse(&run_to_end(command.arg(format!("http://{address}/")))?)
}

fn parse(text: &str) -> Result<Load> {
    let after = |label: &str| text.lines().find_map(|line| line.trim().strip_prefix(label).map(str::trim));
    let needed = |label: &str| after(label).ok_or_else(|| format!("wrk did not print {label:?}"));
    let requests = text.lines().find_map(|line| line.trim().split_once(" requests in "));
    let (requests, _) = requests.ok_or("wrk did not print how many requests it made")?;
    let refused = after("Non-2xx or 3xx responses:").map_or(Ok(0.0), str::parse)?;
    Ok(Load {
        requests_per_second: needed("Requests/sec:")?.parse()?,
        requests: requests.parse()?,
        p50_ms: milliseconds(needed("50%")?)?,
        p99_ms: milliseconds(needed("99%")?)?,
        errors: refused + socket_errors(after("Socket errors:").unwrap_or_default()),
    })
}

/// The sum over `connect 0, read 3, write 0, timeout 0`.
fn socket_errors(kinds: &str) -> f64 {
    kinds.split([' ', ',']).filter_map(|word| word.parse::<f64>().ok()).sum()
}

/// wrk gives times as `87.00us`, `1.20ms`, `2.01s` or `1.05m`.
fn milliseconds(time: &str) -> Result<f64> {
    let digits = time.trim_end_matches(char::is_alphabetic);
    let factor = match &time[digits.len()..] {
        "us" => 0.001,
        "ms" => 1.0,
        "s" => 1_000.0,
        "m" => 60_000.0,
        _ => return Err(format!("{time:?} is no time of wrk's").into()),
    };
    Ok(digits.parse::<f64>()? * factor)
}
