//! What clients notice of what can be done to a server: reloads, killed workers, a graceful stop, a killed master; and
//! how soon a killed worker has a successor.
//!
//! 24 clients ask as fast as they are answered, each request over a connection of its own, and account for each. They
//! share the machine's cores with the server, so the longest wait is also one for the processor. Every round starts
//! each server anew.

mod support;

use std::collections::HashSet;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::ExitCode;
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use support::{
    Aim, Clients, Column, Comparison, Contender, Life, Options, Result, Sample, Server, Tally, apache,
    check_the_clients, gunicorn, hatchery, nginx, run, starman, unicorn, uwsgi,
};

const CLIENTS: usize = 24;
/// How long the load runs before anything is done to the server, so that all of it is under way.
const BEFORE: Duration = Duration::from_millis(500);
/// How long a server may take to do what it was told.
const PATIENCE: Duration = Duration::from_secs(20);
/// A worker that lives this long is replaced at once when it dies: it was not the start that failed.
const GROWN_UP: Duration = Duration::from_millis(1_100);
const LONGEST_WAIT: Column = Column::Most("longest wait, ms");
/// What the machine itself holds up, a few times in a minute, is not in it.
const LONG_WAIT: Column = Column::Median("wait of one in 10,000, ms");

fn main() -> ExitCode {
    run(faults)
}

fn faults(options: Options) -> Result<()> {
    check_the_clients()?;

    let calm = options.pick(Duration::from_secs(5), Duration::from_secs(2));
    let title = format!("nothing is done for {} s: requests lost", calm.as_secs());
    let columns = [Column::Sum("in all"), LONGEST_WAIT, LONG_WAIT, Column::Median("requests/s")];
    compare(options, title, &columns, Aim::NeverOver(0.0), |peer| Box::new(Calm { peer, lasts: calm }))?;

    let reloads = Storm { times: options.pick(12, 4), gap: Duration::from_millis(500) };
    let title = format!("reloads, {reloads}: requests lost");
    compare(options, title, &columns, Aim::NeverOver(0.0), |peer| Box::new(Reloads { peer, storm: reloads }))?;

    let kills = Storm { times: options.pick(50, 20), gap: Duration::from_millis(100) };
    let title = format!("kill -9 of a random worker, {kills}: requests lost");
    let columns = [Column::Sum("in all"), Column::Sum("held by the killed, in all"), LONGEST_WAIT, LONG_WAIT];
    compare(options, title, &columns, Aim::None, |peer| Box::new(Kills { peer, storm: kills, random: Random(1) }))?;

    let title = "graceful stop: connections lost that connect(2) had made";
    let columns = [
        Column::Sum("reset, in all"),
        Column::Sum("cut or silent, in all"),
        Column::Median("ms until the master has left"),
    ];
    compare(options, title.to_owned(), &columns, Aim::NeverOver(0.0), |peer| Box::new(Stop { peer }))?;

    let title = "kill -9 of the master: processes left after 2 s";
    let columns = [Column::Median("after 100 ms"), Column::Median("of"), Column::Most("port held after 2 s")];
    compare(options, title.to_owned(), &columns, Aim::NeverOver(0.0), |peer| Box::new(Beheading { peer }))?;

    let samples = options.pick(100, 25);
    let title = format!("from kill -9 of a worker to its successor's readiness: p99 of {samples}, ms");
    let mut table = Comparison::new(title, &[Column::Median("median"), Column::Most("longest")]);
    table.ours("hatchery, 32 workers at rest", Aim::AtMost(5.0), Ok(Box::new(Successors { samples, load: false })));
    table.beside("hatchery, 32 workers under load", Aim::None, Ok(Box::new(Successors { samples, load: true })));
    table.run(options.rounds())?;
    table.print();
    Ok(())
}

/// One who is measured, and its words for what it is told.
#[derive(Clone, Copy)]
struct Peer {
    start: fn(u32) -> Result<Server>,
    workers: u32,
    reload: Signal,
    stop: Signal,
}

const OURS: (&str, Peer) =
    ("hatchery, 4 workers", Peer { start: hatchery, workers: 4, reload: Signal::SIGHUP, stop: Signal::SIGTERM });

const PEERS: [(&str, Peer); 6] = [
    ("nginx, 4 workers", Peer { start: nginx, workers: 4, reload: Signal::SIGHUP, stop: Signal::SIGQUIT }),
    (
        "Apache prefork, 16 workers",
        Peer { start: apache, workers: 16, reload: Signal::SIGUSR1, stop: Signal::SIGWINCH },
    ),
    ("gunicorn sync, 4 workers", Peer { start: gunicorn, workers: 4, reload: Signal::SIGHUP, stop: Signal::SIGTERM }),
    ("unicorn, 4 workers", Peer { start: unicorn, workers: 4, reload: Signal::SIGHUP, stop: Signal::SIGQUIT }),
    ("uWSGI, 4 workers", Peer { start: uwsgi, workers: 4, reload: Signal::SIGHUP, stop: Signal::SIGTERM }),
    ("starman, 4 workers", Peer { start: starman, workers: 4, reload: Signal::SIGHUP, stop: Signal::SIGQUIT }),
];

/// The same for us and for each peer, in turn; who is not installed says so in its row.
fn compare(
    options: Options,
    title: String,
    columns: &[Column],
    aim: Aim,
    contender: impl Fn(Peer) -> Box<dyn Contender>,
) -> Result<()> {
    let mut table = Comparison::new(title, columns);
    table.ours(OURS.0, aim, Ok(contender(OURS.1)));
    for (name, peer) in PEERS {
        table.beside(name, Aim::None, Ok(contender(peer)));
    }
    table.run(options.rounds())?;
    table.print();
    Ok(())
}

impl Peer {
    fn start(&self) -> Result<Server> {
        let server = (self.start)(self.workers)?;
        server.answers()?;
        let deadline = Instant::now() + PATIENCE;
        while server.workers().len() < self.workers as usize {
            if Instant::now() > deadline {
                return Err(format!("it has {} of {} workers", server.workers().len(), self.workers).into());
            }
            sleep(Duration::from_millis(20));
        }
        Ok(server)
    }
}

/// Something that is done again and again.
#[derive(Clone, Copy)]
struct Storm {
    times: u32,
    gap: Duration,
}

impl std::fmt::Display for Storm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} times in {} s", self.times, (self.gap * self.times).as_secs_f64())
    }
}

impl Storm {
    /// Does it at each beat, however long it takes itself.
    fn rage(self, mut once: impl FnMut() -> Result<()>) -> Result<()> {
        let begin = Instant::now();
        for beat in 1..=self.times {
            once()?;
            sleep((begin + self.gap * beat).saturating_duration_since(Instant::now()));
        }
        Ok(())
    }
}

/// The load alone: what its longest wait is without any fault, for the processor, is no fault's.
struct Calm {
    peer: Peer,
    lasts: Duration,
}

impl Contender for Calm {
    fn round(&mut self) -> Result<Sample> {
        let server = self.peer.start()?;
        let clients = Clients::start(CLIENTS, server.address);
        let begin = Instant::now();
        sleep(BEFORE + self.lasts);
        let took = begin.elapsed();
        Ok(under_load(&clients.end()?, took))
    }
}

/// Reloads under load.
struct Reloads {
    peer: Peer,
    storm: Storm,
}

impl Contender for Reloads {
    fn round(&mut self) -> Result<Sample> {
        let server = self.peer.start()?;
        let before: HashSet<u32> = server.workers().iter().map(|life| life.pid).collect();
        let clients = Clients::start(CLIENTS, server.address);
        let begin = Instant::now();
        sleep(BEFORE);
        self.storm.rage(|| {
            server.signal(self.peer.reload);
            Ok(())
        })?;
        let took = begin.elapsed();
        let tally = clients.end()?;
        await_other_workers(&server, &before)?;
        Ok(under_load(&tally, took))
    }
}

/// What the clients of so long a load have noticed.
fn under_load(tally: &Tally, took: Duration) -> Sample {
    Sample {
        figure: tally.lost() as f64,
        further: [vec![tally.lost() as f64], waits(tally), vec![tally.answered as f64 / took.as_secs_f64()]].concat(),
    }
}

fn waits(tally: &Tally) -> Vec<f64> {
    [tally.longest_wait(), tally.wait_of_one_in(10_000)].map(milliseconds).to_vec()
}

/// Who loses nothing because it does not reload is not compared.
fn await_other_workers(server: &Server, before: &HashSet<u32>) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while server.workers().iter().any(|life| before.contains(&life.pid)) {
        if Instant::now() > deadline {
            return Err("it has workers from before the reloads".into());
        }
        sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// Killed workers under load. Beside what was lost stands how many connections the killed had open: those of requests in
/// hand, and of some that were answered and not yet closed.
struct Kills {
    peer: Peer,
    storm: Storm,
    random: Random,
}

impl Contender for Kills {
    fn round(&mut self) -> Result<Sample> {
        let server = self.peer.start()?;
        let tree = server.tree();
        let at_rest = server.workers().iter().map(|worker| unshared_sockets(worker, &tree)).min().unwrap_or_default();
        let clients = Clients::start(CLIENTS, server.address);
        sleep(BEFORE);
        let mut held = 0;
        self.storm.rage(|| {
            let mut workers = server.workers();
            if workers.is_empty() {
                return Ok(()); // A server that is slow to replace them has had its kill of this beat.
            }
            let victim = workers.swap_remove(self.random.below(workers.len()));
            victim.freeze();
            held += unshared_sockets(&victim, &server.tree()).saturating_sub(at_rest);
            victim.signal(Signal::SIGKILL);
            Ok(())
        })?;
        let tally = clients.end()?;
        let lost = tally.lost() as f64;
        Ok(Sample { figure: lost, further: [vec![lost, held as f64], waits(&tally)].concat() })
    }
}

/// Sockets of a worker that no other process of its server has: what it has accepted, and what it talks to its master
/// with. The latter are as many at rest.
fn unshared_sockets(worker: &Life, tree: &[Life]) -> usize {
    let others = tree.iter().filter(|life| life.pid != worker.pid);
    let shared: HashSet<PathBuf> = others.flat_map(Life::sockets).collect();
    worker.sockets().difference(&shared).count()
}

/// A generator of numbers that look random (xorshift64), the same in each run.
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % end as u64) as usize
    }
}

/// A graceful stop under load.
struct Stop {
    peer: Peer,
}

impl Contender for Stop {
    fn round(&mut self) -> Result<Sample> {
        let mut server = self.peer.start()?;
        let clients = Clients::start(CLIENTS, server.address);
        sleep(BEFORE);
        clients.may_be_refused();
        let begin = Instant::now();
        server.signal(self.peer.stop);
        let ended = server.ends_within(PATIENCE)?;
        let took = begin.elapsed();
        let tally = clients.end()?;
        if !ended {
            return Err(format!("it has not stopped after {} s", PATIENCE.as_secs()).into());
        }
        let further = vec![tally.reset as f64, (tally.cut + tally.silent) as f64, milliseconds(took)];
        Ok(Sample { figure: tally.lost() as f64, further })
    }
}

/// A killed master, at rest.
struct Beheading {
    peer: Peer,
}

impl Contender for Beheading {
    fn round(&mut self) -> Result<Sample> {
        let mut server = self.peer.start()?;
        let address = server.address;
        let left_behind = server.behead()?;
        let begin = Instant::now();
        let left_after = |passed: Duration| {
            sleep((begin + passed).saturating_duration_since(Instant::now()));
            left_behind.iter().filter(|life| life.goes_on()).count() as f64
        };
        let soon = left_after(Duration::from_millis(100));
        let later = left_after(Duration::from_secs(2));
        // std sets SO_REUSEADDR, so that only a socket that still listens is in the way.
        let held = TcpListener::bind(address).is_err();
        Ok(Sample { figure: later, further: vec![soon, left_behind.len() as f64, f64::from(held)] })
    }
}

/// Killed workers that have served long enough, one after the other, and what it takes to fill their seats.
struct Successors {
    samples: u32,
    load: bool,
}

const SEATS: u32 = 32;

impl Contender for Successors {
    fn round(&mut self) -> Result<Sample> {
        let server = hatchery(SEATS)?;
        sleep(GROWN_UP);
        let clients = self.load.then(|| Clients::start(CLIENTS, server.address));
        let mut took = Vec::new();
        // Each seat's turn comes again when its worker has grown up.
        Storm { times: self.samples, gap: GROWN_UP / SEATS }.rage(|| {
            let oldest = server.workers().into_iter().min_by_key(|life| life.start_time);
            let victim = oldest.ok_or("it has no workers")?;
            let begin = Instant::now();
            victim.signal(Signal::SIGKILL);
            let ready = server.await_ready_worker(PATIENCE)?;
            took.push(milliseconds(ready.saturating_duration_since(begin)));
            Ok(())
        })?;
        clients.map(Clients::end).transpose()?;
        took.sort_by(f64::total_cmp);
        let rank = |share: f64| took[((took.len() as f64 * share).ceil() as usize).clamp(1, took.len()) - 1];
        Ok(Sample { figure: rank(0.99), further: vec![rank(0.5), rank(1.0)] })
    }
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1_000.0
}
