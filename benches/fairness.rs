//! How evenly the requests come to the workers: one queue for all, a queue for each slot, and nginx.
//!
//! Every answer names the process that gave it. The figure is the share of the busiest worker in shares of an even
//! spread: 1 is even, and as many as there are workers is one worker alone. A few kept connections can be no more even than
//! their number allows.

mod support;

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use support::{
    Aim, Column, Comparison, Connections, Contender, Options, Result, Sample, Server, hatchery_with,
    nginx_that_answers, run,
};

const WORKERS: u32 = 4;
const COLUMNS: [Column; 4] = [
    Column::Median("least share, %"),
    Column::Median("median share, %"),
    Column::Median("greatest share, %"),
    Column::Median("requests/s"),
];
/// No answer takes longer.
const PATIENCE: Duration = Duration::from_secs(5);

fn main() -> ExitCode {
    run(fairness)
}

fn fairness(options: Options) -> Result<()> {
    let shared = hatchery_with(WORKERS, &["--accept", "shared"]);
    let reuseport = hatchery_with(WORKERS, &["--accept", "reuseport"]);
    let nginx = nginx_that_answers(WORKERS, "hello from pid $pid again");
    let span = Duration::from_millis(options.pick(2000, 300));
    for (connections, words) in
        [(Connections::OnePerRequest, "a connection per request"), (Connections::KeepAlive, "keep-alive")]
    {
        for clients in [1, 4, 16] {
            let plural = if clients == 1 { "" } else { "s" };
            let title = format!("{clients} client{plural}, {words}: the busiest of {WORKERS} workers, in even shares");
            let spread = |server| spread(server, connections, clients, span);
            let mut table = Comparison::new(title, &COLUMNS);
            table.ours("hatchery, shared", Aim::None, spread(&shared));
            table.beside("hatchery, reuseport", Aim::None, spread(&reuseport));
            table.beside("nginx", Aim::None, spread(&nginx));
            table.run(options.rounds())?;
            table.print();
        }
    }
    Ok(())
}

/// A server and its clients.
struct Spread<'s> {
    server: &'s Server,
    connections: Connections,
    clients: usize,
    span: Duration,
}

fn spread(
    server: &Result<Server>,
    connections: Connections,
    clients: usize,
    span: Duration,
) -> Result<Box<dyn Contender + '_>> {
    let server = server.as_ref().map_err(|error| error.to_string())?;
    Ok(Box::new(Spread { server, connections, clients, span }))
}

impl Contender for Spread<'_> {
    fn round(&mut self) -> Result<Sample> {
        let (address, connections, span) = (self.server.address, self.connections, self.span);
        let tallies: Vec<_> = thread::scope(|scope| {
            let client = || scope.spawn(move || ask(address, connections, span).map_err(|error| error.to_string()));
            let clients: Vec<_> = (0..self.clients).map(|_| client()).collect();
            clients.into_iter().map(|client| client.join().expect("a client does not panic")).collect()
        });
        let mut by_worker = BTreeMap::new();
        for tally in tallies {
            for (pid, count) in tally? {
                *by_worker.entry(pid).or_insert(0) += count;
            }
        }
        sample(by_worker.into_values().collect(), span)
    }
}

/// The spread over all workers, of which some may have had nothing to do.
fn sample(mut counts: Vec<u64>, span: Duration) -> Result<Sample> {
    if counts.len() > WORKERS as usize {
        return Err(format!("{} processes have answered for {WORKERS} workers", counts.len()).into());
    }
    counts.resize(WORKERS as usize, 0);
    counts.sort_unstable();
    let total = counts.iter().sum::<u64>() as f64;
    let share = |count: u64| 100.0 * count as f64 / total;
    let (least, greatest) = (counts[0], counts[counts.len() - 1]);
    let middle = counts.len() / 2;
    let median = (share(counts[middle - 1]) + share(counts[middle])) / 2.0;
    Ok(Sample {
        figure: share(greatest) * f64::from(WORKERS) / 100.0,
        further: vec![share(least), median, share(greatest), total / span.as_secs_f64()],
    })
}

/// One client, who asks without pause. Gives how many answers came from which process.
fn ask(address: SocketAddr, connections: Connections, span: Duration) -> Result<BTreeMap<u32, u64>> {
    let (head, keeps) = match connections {
        Connections::OnePerRequest => ("GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", false),
        Connections::KeepAlive => ("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", true),
    };
    let mut tally = BTreeMap::new();
    let mut kept = None;
    let began = Instant::now();
    while began.elapsed() < span {
        let mut connection = match kept.take() {
            Some(connection) => connection,
            None => TcpStream::connect(address)?,
        };
        connection.set_read_timeout(Some(PATIENCE))?;
        connection.write_all(head.as_bytes())?;
        *tally.entry(answerer(&mut connection)?).or_insert(0) += 1;
        kept = keeps.then_some(connection);
    }
    Ok(tally)
}

/// Reads an answer, whose body ends with a newline and names its process.
fn answerer(connection: &mut TcpStream) -> Result<u32> {
    let mut answer = Vec::new();
    let mut piece = [0; 1024];
    loop {
        let text = String::from_utf8_lossy(&answer);
        if let Some((_, body)) = text.split_once("\r\n\r\n")
            && body.ends_with('\n')
        {
            let mut words = body.split_ascii_whitespace().skip_while(|word| *word != "pid");
            return Ok(words.nth(1).ok_or("the answer names no process")?.parse()?);
        }
        match connection.read(&mut piece)? {
            0 => return Err("half an answer".into()),
            count => answer.extend_from_slice(&piece[..count]),
        }
    }
}
