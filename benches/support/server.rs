//! Servers under measurement: started, known to be ready, known to answer, ended on drop.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use tempfile::TempDir;

use super::process::{Life, Started};
use super::{Linking, Result, build_limit, interrupt};

/// The longest that any of the servers may take to be ready (1,000 workers included).
const BOOT_AT_MOST: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(5);

/// A running server. Its folder, if it has one, goes after it has ended: fields drop in order.
pub struct Server {
    processes: Started,
    _folder: Option<TempDir>,
    /// Where it listens.
    pub address: SocketAddr,
    /// From before its start until it said that all workers are ready.
    pub boot_time: Duration,
    /// What it says after its boot, if it says anything.
    signs: Option<Receiver<Result<Sign, String>>>,
}

impl Server {
    /// Starts a server that says by itself where it listens and when it serves.
    pub fn that_tells(command: &mut Command, lines: Lines, sign: fn(&str) -> Option<Sign>) -> Result<Server> {
        let start = Instant::now();
        let mut processes = Started::new(lines.ask_for(command))?;
        let signs = lines.read(&mut processes, sign)?;
        let mut address = None;
        loop {
            match await_sign(&signs, start + BOOT_AT_MOST)? {
                Sign::Listening(at) => address = Some(at),
                Sign::WorkerReady(_) => {}
                Sign::Serving => break,
            }
        }
        let address = address.ok_or("it serves, but did not say where it listens")?;
        Ok(Server { processes, _folder: None, address, boot_time: start.elapsed(), signs: Some(signs) })
    }

    /// Starts a server that keeps silent: it is ready when it can be connected to.
    pub fn that_keeps_silent(command: &mut Command, address: SocketAddr, folder: TempDir) -> Result<Server> {
        let start = Instant::now();
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut processes = Started::new(command)?;
        while TcpStream::connect(address).is_err() {
            interrupt::check()?;
            if let Some(status) = processes.child().try_wait()? {
                return Err(format!("it ended at boot with {status}").into());
            }
            if start.elapsed() > BOOT_AT_MOST {
                return Err("it does not listen".into());
            }
            sleep(POLL);
        }
        Ok(Server { processes, _folder: Some(folder), address, boot_time: start.elapsed(), signs: None })
    }

    /// An error unless the server answers `GET /` with 200 and a body.
    pub fn answers(&self) -> Result<()> {
        let answer = get(self.address)?;
        let (head, body) = answer.split_once("\r\n\r\n").ok_or("its answer has no end of head")?;
        if !head.starts_with("HTTP/1.1 200") || body.is_empty() {
            return Err(format!("it answered {:?}", head.lines().next().unwrap_or_default()).into());
        }
        Ok(())
    }

    /// All its processes.
    pub fn tree(&self) -> Vec<Life> {
        self.processes.tree()
    }

    /// Processor time that all its processes have taken.
    pub fn cpu_time(&self) -> Duration {
        self.tree().iter().map(Life::cpu_time).sum()
    }

    /// Its worker processes.
    pub fn workers(&self) -> Vec<Life> {
        self.processes.leaves()
    }

    /// Sends a signal to its master.
    pub fn signal(&self, signal: Signal) {
        self.processes.signal(signal);
    }

    /// Kills its master and gives the other processes.
    pub fn behead(&mut self) -> Result<&[Life]> {
        self.processes.behead()
    }

    /// Waits until its master has ended, but not for ever; says whether it has.
    pub fn ends_within(&mut self, patience: Duration) -> Result<bool> {
        let deadline = Instant::now() + patience;
        while !self.processes.has_ended() {
            interrupt::check()?;
            if Instant::now() > deadline {
                return Ok(false);
            }
            sleep(Duration::from_millis(1));
        }
        Ok(true)
    }

    /// Waits until one more of its workers is ready, and gives the time at which the server said so.
    pub fn await_ready_worker(&self, patience: Duration) -> Result<Instant> {
        let signs = self.signs.as_ref().ok_or("it does not tell of its workers")?;
        loop {
            if let Sign::WorkerReady(at) = await_sign(signs, Instant::now() + patience)? {
                return Ok(at);
            }
        }
    }
}

/// Our own `hello`, with the release binary that cargo built beside this bench.
pub fn hatchery(workers: u32) -> Result<Server> {
    hatchery_with(workers, &[])
}

/// The same, with further flags.
pub fn hatchery_with(workers: u32, flags: &[&str]) -> Result<Server> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hatchery"));
    command.args(["serve", "--listen", "127.0.0.1:0", "--workers", &workers.to_string()]);
    command.args(["--log-format", "json", "--log-level", "info"]).args(flags);
    Server::that_tells(&mut command, Lines::OnStderr, |line| match json_text(line, "msg")? {
        "listening" => json_text(line, "address")?.parse().ok().map(Sign::Listening),
        "serving" => Some(Sign::Serving),
        "worker ready" => Some(Sign::WorkerReady(Instant::now())),
        _ => None,
    })
}

/// One of the hand-written servers of `benches/limits/`.
pub fn limit_server(name: &str, linking: Linking, processes: u32) -> Result<Server> {
    let mut command = Command::new(build_limit(name, linking)?);
    command.arg(processes.to_string());
    Server::that_tells(&mut command, Lines::OnStdout, |line| match line.split_once(' ')? {
        ("listening", address) => address.parse().ok().map(Sign::Listening),
        ("serving", _) => Some(Sign::Serving),
        _ => None,
    })
}

/// What a line of a server's output means.
pub enum Sign {
    Listening(SocketAddr),
    Serving,
    /// When the line was read.
    WorkerReady(Instant),
}

/// Which output of a server speaks of its readiness.
#[derive(Clone, Copy)]
pub enum Lines {
    OnStdout,
    OnStderr,
}

impl Lines {
    fn ask_for(self, command: &mut Command) -> &mut Command {
        command.stdin(Stdio::null());
        match self {
            Lines::OnStdout => command.stdout(Stdio::piped()),
            Lines::OnStderr => command.stdout(Stdio::null()).stderr(Stdio::piped()),
        }
    }

    /// Hands on the signs; the last line, when the output ends without one more, as an error. The
    /// thread reads on until then, so that the server never waits for a reader of its log.
    fn read(self, processes: &mut Started, sign: fn(&str) -> Option<Sign>) -> Result<Receiver<Result<Sign, String>>> {
        let child = processes.child();
        let output: Option<Box<dyn Read + Send>> = match self {
            Lines::OnStdout => child.stdout.take().map(|pipe| Box::new(pipe) as _),
            Lines::OnStderr => child.stderr.take().map(|pipe| Box::new(pipe) as _),
        };
        let output = output.ok_or("its output is not piped")?;
        let (sender, receiver) = channel();
        thread::spawn(move || hand_on(output, sign, &sender));
        Ok(receiver)
    }
}

fn hand_on(output: impl Read, sign: fn(&str) -> Option<Sign>, sender: &Sender<Result<Sign, String>>) {
    let mut last = String::from("nothing");
    for line in BufReader::new(output).lines().map_while(|line| line.ok()) {
        // Nobody listens any more once the server serves.
        if let Some(sign) = sign(&line) {
            let _ = sender.send(Ok(sign));
        }
        last = line;
    }
    let _ = sender.send(Err(last));
}

fn await_sign(signs: &Receiver<Result<Sign, String>>, deadline: Instant) -> Result<Sign> {
    loop {
        interrupt::check()?;
        match signs.recv_timeout(Duration::from_millis(100)) {
            Ok(Ok(sign)) => return Ok(sign),
            Ok(Err(last_words)) => {
                return Err(format!("it ended at boot; its last words: {last_words}").into());
            }
            Err(RecvTimeoutError::Timeout) if Instant::now() < deadline => {}
            Err(_) => return Err("it does not become ready".into()),
        }
    }
}

/// The text under `key` in a flat JSON object, where it has no escapes: enough for our log's words
/// and addresses.
fn json_text<'l>(line: &'l str, key: &str) -> Option<&'l str> {
    let (_, rest) = line.split_once(&format!("\"{key}\":\""))?;
    rest.split('"').next()
}

fn get(address: SocketAddr) -> Result<String> {
    let limit = Some(Duration::from_secs(5));
    let mut connection = TcpStream::connect(address)?;
    connection.set_read_timeout(limit)?;
    connection.set_write_timeout(limit)?;
    connection.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    connection.read_to_string(&mut answer)?;
    Ok(answer)
}
