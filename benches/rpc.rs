//! Calls per second to a process that gives back what it is given: one at a time and pipelined, of 32 bytes, 4 KiB and
//! 1 MiB.
//!
//! Beside it, in this same program: a bare ping-pong of datagrams and of a byte stream with a process, and a thread behind
//! channels; and AnyEvent::Fork::RPC and Python's ProcessPoolExecutor, where they are installed.

mod support;

use std::io::{Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Command, ExitCode};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use hatchery::proc::{BoxError, Registry, RunCx, Running, Template};
use hatchery::rpc::{Client, Cx, Entry, Error, Events, Octets, Options as RpcOptions, Pool, PoolOptions, Responder};
use nix::sys::socket::{MsgFlags, recv, send};
use support::{Aim, Comparison, Contender, Options, Result, Sample, find, run, run_to_end};

/// The lengths of calls and replies, and how many calls make a round.
const LENGTHS: [Length; 3] = [
    Length { name: "32 B", bytes: 32, one_at_a_time: 50_000, pipelined: 2_000_000 },
    Length { name: "4 KiB", bytes: 4 << 10, one_at_a_time: 30_000, pipelined: 200_000 },
    Length { name: "1 MiB", bytes: 1 << 20, one_at_a_time: 500, pipelined: 1_000 },
];

/// So many bytes of calls are in flight at a time, and at most so many calls.
const IN_FLIGHT_BYTES: u32 = 8 << 20;
const IN_FLIGHT: u32 = 32_768;

/// The longest datagram that fits the socket's buffer of 208 KiB.
const LONGEST_DATAGRAM: usize = 64 << 10;

/// No reply takes so long.
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Clone, Copy)]
struct Length {
    name: &'static str,
    bytes: usize,
    one_at_a_time: u32,
    pipelined: u32,
}

fn main() -> ExitCode {
    let echo = |(): &mut (), octets: Vec<u8>, _: &Cx<()>| Ok(octets);
    let deferred = |(): &mut (), octets: Vec<u8>, responder: Responder<Vec<u8>>, _: &Events<()>| {
        responder.answer(Ok(octets));
    };
    hatchery::init(
        &Registry::new()
            .rpc("echo", Entry::new(|_| Ok(()), echo).codec::<Octets>())
            .rpc("deferred", Entry::deferred(1024, |_| Ok(()), deferred).codec::<Octets>())
            .run("datagrams", echo_datagrams)
            .run("stream", echo_stream)
            .run("messages", echo_messages),
    );
    run(rpc)
}

fn rpc(options: Options) -> Result<()> {
    for length in LENGTHS {
        one_at_a_time(options, length)?;
        pipelined(options, length)?;
    }
    Ok(())
}

fn one_at_a_time(options: Options, length: Length) -> Result<()> {
    let count = options.pick(length.one_at_a_time, length.one_at_a_time / 10);
    let mut table = Comparison::new(format!("rpc, one call at a time, {}: calls/s", length.name), &[]);
    let of_bytes = if length.bytes <= LONGEST_DATAGRAM { Aim::None } else { Aim::Ratio(0.8) };
    table.ours("hatchery, a function", Aim::None, calls("echo", count, length));
    table.beside("hatchery, a responder", Aim::None, calls("deferred", count, length));
    table.beside("hatchery, a pool of 1", Aim::None, pooled_calls(count, length));
    table.beside("SEQPACKET ping-pong", Aim::Ratio(0.9), datagrams(count, length));
    table.beside("STREAM ping-pong", of_bytes, stream(count, length));
    table.beside("a thread and std's channels", Aim::None, channels(count, 1, length));
    table.beside("AnyEvent::Fork::RPC", Aim::None, anyevent_fork_rpc("one", count / 2, length));
    table.beside("Python's ProcessPoolExecutor", Aim::None, process_pool("one", count / 5, length));
    table.run(options.rounds())?;
    table.print();
    Ok(())
}

fn pipelined(options: Options, length: Length) -> Result<()> {
    let count = options.pick(length.pipelined, length.pipelined / 10);
    let in_flight = (IN_FLIGHT_BYTES / length.bytes as u32).min(IN_FLIGHT);
    let mut table = Comparison::new(format!("rpc, pipelined, {}: calls/s", length.name), &[]);
    let aim = if length.bytes >= 1 << 20 { Aim::Ratio(0.8) } else { Aim::None };
    let at_least = if length.bytes <= 32 { Aim::AtLeast(1e6) } else { Aim::None };
    table.ours("hatchery, a function", at_least, submits("echo", count, in_flight, length));
    table.beside("hatchery, a responder", Aim::None, submits("deferred", count, in_flight, length));
    for (processes, name) in [(1, "hatchery, a pool of 1"), (2, "hatchery, a pool of 2"), (4, "hatchery, a pool of 4")]
    {
        table.beside(name, Aim::None, pooled_submits(processes, count / 4, in_flight, length));
    }
    table.beside("STREAM, bytes there and back", aim, bytes_there_and_back(count, length));
    table.beside("a thread and std's channels", Aim::None, channels(count, in_flight, length));
    table.beside("AnyEvent::Fork::RPC", Aim::None, anyevent_fork_rpc("pipelined", count / 10, length));
    table.beside("Python's ProcessPoolExecutor", Aim::None, process_pool("pipelined", count / 2, length));
    table.run(options.rounds())?;
    table.print();
    Ok(())
}

/// What makes so many calls in a round.
struct Calls<F> {
    count: u32,
    calls: F,
}

impl<F: FnMut(u32) -> Result<()>> Contender for Calls<F> {
    fn round(&mut self) -> Result<Sample> {
        let start = Instant::now();
        (self.calls)(self.count)?;
        Ok(Sample::of(f64::from(self.count) / start.elapsed().as_secs_f64()))
    }
}

type Row = Result<Box<dyn Contender>>;

fn in_turn(count: u32, mut call: impl FnMut() -> Result<()> + 'static) -> Row {
    // The process is started with its first call; that is not what is measured.
    call()?;
    Ok(Box::new(Calls { count, calls: move |count| (0..count).try_for_each(|_| call()) }))
}

fn client(entry: &str) -> Result<Client<Vec<u8>, Vec<u8>, ()>> {
    Ok(Template::spawn()?.fork()?.rpc(entry, RpcOptions::new().codec::<Octets>())?)
}

fn calls(entry: &str, count: u32, length: Length) -> Row {
    let client = client(entry)?;
    let octets = vec![7; length.bytes];
    in_turn(count, move || require(client.call(&octets)?.len() == octets.len()))
}

/// A pool whose processes are all there, each with its part of what is in flight.
fn pool(processes: usize, load: usize) -> Result<Pool<Vec<u8>, Vec<u8>, ()>> {
    let options = PoolOptions::new().codec::<Octets>().min(processes).max(processes).load(load);
    let pool = Template::spawn()?.pool("echo", options)?;
    while pool.statistics().idle < processes {
        thread::sleep(Duration::from_millis(1));
    }
    Ok(pool)
}

fn pooled_calls(count: u32, length: Length) -> Row {
    let pool = pool(1, 1)?;
    let octets = vec![7; length.bytes];
    in_turn(count, move || require(pool.call(&octets)?.len() == octets.len()))
}

fn pooled_submits(processes: usize, count: u32, in_flight: u32, length: Length) -> Row {
    let pool = pool(processes, (in_flight as usize / processes).max(1))?;
    let octets = vec![7; length.bytes];
    pipeline(count, in_flight, length, move |callback| Ok(pool.submit(&octets, callback)?))
}

fn require(whole: bool) -> Result<()> {
    if whole { Ok(()) } else { Err("what came back was cut".into()) }
}

fn submits(entry: &str, count: u32, in_flight: u32, length: Length) -> Row {
    let client = client(entry)?;
    let octets = vec![7; length.bytes];
    client.call(&octets)?;
    pipeline(count, in_flight, length, move |callback| Ok(client.submit(&octets, callback)?))
}

type Callback = Box<dyn FnOnce(Result<Vec<u8>, Error>) + Send>;

/// So many calls in flight at a time.
fn pipeline(count: u32, in_flight: u32, length: Length, submit: impl Fn(Callback) -> Result<()> + 'static) -> Row {
    let calls = move |count: u32| {
        let flight =
            Arc::new(Flight { answered: AtomicU32::new(0), cut: AtomicBool::new(false), caller: thread::current() });
        for made in 0..count {
            flight.wait_for((made + 1).saturating_sub(in_flight))?;
            let of_reply = Arc::clone(&flight);
            submit(Box::new(move |reply| {
                of_reply.answer(reply.is_ok_and(|reply| reply.len() == length.bytes), count, in_flight);
            }))?;
        }
        flight.wait_for(count)
    };
    Ok(Box::new(Calls { count, calls }))
}

/// The calls of a round that are under way.
struct Flight {
    answered: AtomicU32,
    cut: AtomicBool,
    caller: Thread,
}

impl Flight {
    fn answer(&self, whole: bool, last: u32, in_flight: u32) {
        if !whole {
            self.cut.store(true, Ordering::Relaxed);
        }
        let answered = self.answered.fetch_add(1, Ordering::Release) + 1;
        // Not for each: a good part of the flight is to be made at a time.
        if answered == last || answered.is_multiple_of((in_flight / 4).max(1)) {
            self.caller.unpark();
        }
    }

    fn wait_for(&self, answered: u32) -> Result<()> {
        let start = Instant::now();
        while self.answered.load(Ordering::Acquire) < answered {
            thread::park_timeout(PATIENCE);
            if start.elapsed() > PATIENCE {
                return Err("no reply has come for a minute".into());
            }
        }
        require(!self.cut.load(Ordering::Relaxed))
    }
}

fn echo_datagrams(cx: RunCx) -> Result<(), BoxError> {
    let mut buffer = vec![0; LONGEST_DATAGRAM];
    loop {
        match recv(cx.socket.as_raw_fd(), &mut buffer, MsgFlags::empty())? {
            0 => return Ok(()),
            length => send(cx.socket.as_raw_fd(), &buffer[..length], MsgFlags::empty())?,
        };
    }
}

fn datagrams(count: u32, length: Length) -> Row {
    if length.bytes > LONGEST_DATAGRAM {
        return Err("a datagram is not so long".into());
    }
    let process = Template::spawn()?.fork()?.run("datagrams")?;
    let socket = process.socket()?;
    let (octets, mut buffer) = (vec![7; length.bytes], vec![0; LONGEST_DATAGRAM]);
    in_turn(count, move || {
        send(socket.as_raw_fd(), &octets, MsgFlags::empty())?;
        require(recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty())? == octets.len())
    })
}

fn echo_stream(cx: RunCx) -> Result<(), BoxError> {
    let mut stream = UnixStream::from(cx.fds.into_iter().next().ok_or("send a stream first")?);
    let mut buffer = vec![0; LONGEST_DATAGRAM];
    loop {
        match stream.read(&mut buffer)? {
            0 => return Ok(()),
            length => stream.write_all(&buffer[..length])?,
        }
    }
}

/// As a call does, the answer begins when the message is there as a whole.
fn echo_messages(cx: RunCx) -> Result<(), BoxError> {
    let mut stream = UnixStream::from(cx.fds.into_iter().next().ok_or("send a stream first")?);
    let length = cx.args.first().ok_or("say how long a message is")?;
    let mut buffer = vec![0; std::str::from_utf8(length)?.parse()?];
    while stream.read_exact(&mut buffer).is_ok() {
        stream.write_all(&buffer)?;
    }
    Ok(())
}

/// A process that gives back what it is sent by a stream.
fn streaming(entry: &str, length: Length) -> Result<(Running, UnixStream)> {
    let (ours, theirs) = UnixStream::pair()?;
    let process = Template::spawn()?.fork()?.send_fd(OwnedFd::from(theirs))?;
    Ok((process.send_arg(length.bytes.to_string())?.run(entry)?, ours))
}

fn stream(count: u32, length: Length) -> Row {
    let (process, stream) = streaming("messages", length)?;
    let octets = vec![7; length.bytes];
    let mut buffer = octets.clone();
    in_turn(count, move || {
        let (mut there, mut back) = (&stream, &stream);
        there.write_all(&octets)?;
        back.read_exact(&mut buffer)?;
        require(process.try_wait().is_none())
    })
}

fn bytes_there_and_back(count: u32, length: Length) -> Row {
    let (process, stream) = streaming("stream", length)?;
    let octets = vec![7; length.bytes.max(LONGEST_DATAGRAM)];
    let mut buffer = octets.clone();
    let calls = move |count: u32| {
        let times = count as usize * length.bytes / octets.len();
        there_and_back(&stream, &octets, &mut buffer, times)?;
        require(process.try_wait().is_none())
    };
    Ok(Box::new(Calls { count, calls }))
}

fn there_and_back(stream: &UnixStream, octets: &[u8], buffer: &mut [u8], times: usize) -> Result<()> {
    let (mut there, mut back) = (stream, stream);
    // It must be taken back while it is sent.
    thread::scope(|scope| {
        let writing = scope.spawn(move || (0..times).try_for_each(|_| there.write_all(octets)));
        (0..times).try_for_each(|_| back.read_exact(buffer))?;
        Ok(writing.join().map_err(|_| "the writing thread panicked")??)
    })
}

/// What crosses no process is only moved.
fn channels(count: u32, in_flight: u32, length: Length) -> Row {
    let (ask, asked) = mpsc::channel::<Vec<u8>>();
    let (tell, told) = mpsc::channel();
    thread::spawn(move || asked.into_iter().try_for_each(|octets| tell.send(octets)));
    let octets = vec![7; length.bytes];
    let calls = move |count: u32| {
        for made in 0..count + in_flight {
            if made >= in_flight {
                require(told.recv_timeout(PATIENCE)?.len() == octets.len())?;
            }
            if made < count {
                ask.send(octets.clone())?;
            }
        }
        Ok(())
    };
    Ok(Box::new(Calls { count, calls }))
}

/// A program that measures itself once a round, and prints `per_second=`.
struct SelfMeasured(Command);

impl Contender for SelfMeasured {
    fn round(&mut self) -> Result<Sample> {
        let text = run_to_end(&mut self.0)?;
        let figure = text.split_whitespace().find_map(|word| word.strip_prefix("per_second="));
        let figure = figure.ok_or_else(|| format!("no figure in {text:?}"))?;
        Ok(Sample::of(figure.parse()?))
    }
}

fn self_measured(mut command: Command, how: &str, count: u32, length: Length) -> Row {
    command.args([how, &count.max(1).to_string(), &length.bytes.to_string()]);
    Ok(Box::new(SelfMeasured(command)))
}

fn anyevent_fork_rpc(how: &str, count: u32, length: Length) -> Row {
    let perl = find("perl", "perl libanyevent-fork-perl libev-perl")?;
    run_to_end(Command::new(&perl).args(["-MEV", "-MAnyEvent::Fork::RPC", "-e1"]))
        .map_err(|_| "absent: it is in no Debian package, only on CPAN")?;
    let mut command = Command::new(perl);
    command.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/benches/peers/anyevent_fork_rpc.pl"));
    self_measured(command, how, count, length)
}

fn process_pool(how: &str, count: u32, length: Length) -> Row {
    let mut command = Command::new(find("python3", "python3")?);
    command.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/benches/peers/process_pool.py"));
    self_measured(command, how, count, length)
}
