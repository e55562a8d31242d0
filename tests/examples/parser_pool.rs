//! A parser that nobody trusts, isolated in a pool.
//!
//! It reads pictures of a small format: `PIC`, a kind, width and height (two bytes each, little-endian), and then pixels: `R` plain,
//! `L` in runs, `N` a frame around another picture. Like many a parser in a library it is too trustful: some inputs make it
//! abort, compute for ever, recurse until its stack overflows, read where it must not, or keep what it has read for good.
//!
//! The pool survives them all: each poison costs one process, and each picture that is well gets its answer.
//!
//! ```sh
//! cargo run --example parser_pool
//! ```

use std::io::Write;
use std::process::ExitCode;
use std::sync::mpsc;
use std::time::Duration;

use hatchery::proc::{BoxError, Process, Registry};
use hatchery::rpc::{Cause, Cx, Entry, Error, Late, Pool, PoolOptions, WorkerExit};
use serde::{Deserialize, Serialize};

/// What is known of a picture.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Picture {
    width: u16,
    height: u16,
    /// Frames around it.
    frames: u32,
    /// The sum of all its bytes.
    ink: u64,
}

type Pictures = Pool<Vec<u8>, Picture, ()>;

/// How long the parser may take for one picture.
const DEADLINE: Duration = Duration::from_secs(2);

/// A parser that holds more memory than this has leaked it.
const MEMORY: u64 = 256 << 20;

fn main() -> ExitCode {
    hatchery::init(&register(Registry::new()));
    match look_at_pictures(&mut std::io::stdout()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("parser_pool: {error}");
            ExitCode::FAILURE
        }
    }
}

/// With the parser.
pub fn register(registry: Registry) -> Registry {
    registry.rpc("parse", Entry::new(|_| Ok(Vec::new()), |leak: &mut Vec<Vec<u8>>, file, _: &Cx<()>| parse(leak, file)))
}

/// Looks at pictures of all kinds, and says what came of each.
pub fn look_at_pictures(out: &mut dyn Write) -> Result<(), Box<dyn std::error::Error>> {
    let options = PoolOptions::new().min(1).max(3).start_delay(Duration::ZERO).deadline(DEADLINE).max_memory(MEMORY);
    let pool: Pictures = Pool::new("parse", options, Process::new)?;
    let exits = watch_exits(&pool);

    writeln!(out, "--- pictures")?;
    look(out, &pool, "a dot", plain(1, 1, &[7]))?;
    look(out, &pool, "a stripe", runs(300, 1, &[(255, 1), (45, 2)]))?;
    look(out, &pool, "a framed dot", framed(2, plain(1, 1, &[9])))?;
    look(out, &pool, "half a file", b"PIC".to_vec())?;

    writeln!(out, "--- poison")?;
    look(out, &pool, "an abort", plain(1, 1, &[255]))?;
    look(out, &pool, "an endless run", runs(9, 1, &[(0, 1)]))?;
    look(out, &pool, "too many frames", framed(200_000, plain(1, 1, &[1])))?;

    writeln!(out, "--- many pictures, and poison among them")?;
    look_at_many(out, &pool)?;

    writeln!(out, "--- pictures that leak")?;
    for _ in 0..10 {
        pool.call(&plain(1, 1, &[254]))?;
    }
    let mut in_hand = Vec::new();
    loop {
        // The memory of a process is looked at within a tenth of a second after a call.
        let exit = exits.recv_timeout(Duration::from_secs(30))?;
        in_hand.extend(what_it_had(&exit));
        if exit.cause == Cause::Memory {
            break writeln!(out, "a process that had leaked was replaced")?;
        }
    }

    let statistics = pool.finish()?;
    writeln!(out, "--- what was in hand when a process died")?;
    in_hand.extend(exits.iter().flat_map(|exit| what_it_had(&exit)));
    in_hand.sort();
    for line in in_hand {
        writeln!(out, "{line}")?;
    }
    writeln!(out, "{} pictures were read, {} processes were replaced", statistics.answered, statistics.restarts)?;
    Ok(())
}

/// The ends of the pool's processes, as they come, until the pool has finished.
fn watch_exits(pool: &Pictures) -> mpsc::Receiver<WorkerExit> {
    let (tell, told) = mpsc::channel();
    pool.on_worker_exit(move |exit| {
        // Nobody listens any more once all is done.
        let _ = tell.send(exit);
    });
    told
}

fn what_it_had(exit: &WorkerExit) -> Vec<String> {
    let how = match exit.cause {
        Cause::Late(Late::Call) => "was killed at its deadline",
        _ => "killed its process",
    };
    let labels = exit.in_hand.iter().map(|call| call.label.as_deref().unwrap_or("a picture"));
    labels.map(|label| format!("{label} {how}")).collect()
}

/// A thousand pictures at a time; every 250th is poison.
fn look_at_many(out: &mut dyn Write, pool: &Pictures) -> Result<(), Box<dyn std::error::Error>> {
    let (tell, told) = mpsc::channel();
    for number in 1..=1_000_u16 {
        let ink = if number % 250 == 0 { 255 } else { 3 };
        let tell = tell.clone();
        pool.prepare(&plain(1, 1, &[ink])).label(format!("picture {number}")).submit(move |picture| {
            let _ = tell.send(picture.is_ok());
        })?;
    }
    drop(tell);
    let well = told.iter().filter(|well| *well).count();
    writeln!(out, "{well} were read, {} killed their process", 1_000 - well)?;
    Ok(())
}

/// One picture, and what came of it.
fn look(out: &mut dyn Write, pool: &Pictures, name: &str, file: Vec<u8>) -> std::io::Result<()> {
    match pool.prepare(&file).label(name).call() {
        Ok(Picture { width, height, frames, ink }) => {
            writeln!(out, "{name}: {width} × {height}, {frames} frames, ink {ink}")
        }
        Err(Error::Handler { words }) => writeln!(out, "{name}: no picture: {words}"),
        Err(Error::TimedOut { .. }) => writeln!(out, "{name}: it takes too long"),
        Err(Error::Lost { .. }) => writeln!(out, "{name}: its process did not survive it"),
        Err(error) => writeln!(out, "{name}: {error}"),
    }
}

/// The parser, with all its faults.
fn parse(leak: &mut Vec<Vec<u8>>, file: Vec<u8>) -> Result<Picture, BoxError> {
    let mut picture = Picture { width: 0, height: 0, frames: 0, ink: 0 };
    parse_into(&mut picture, &file)?;
    if picture.ink == 254 {
        // A cache that nobody empties.
        leak.push(vec![1; 32 << 20]);
    }
    Ok(picture)
}

fn parse_into(picture: &mut Picture, file: &[u8]) -> Result<(), BoxError> {
    let [b'P', b'I', b'C', kind, rest @ ..] = file else { return Err("it does not begin with PIC and a kind".into()) };
    if *kind == b'N' {
        // As deep as the file wants, with some room on the stack for each frame.
        let frame = std::hint::black_box([1_u8; 256]);
        parse_into(picture, rest)?;
        picture.frames += u32::from(frame[255]);
        return Ok(());
    }
    let [w0, w1, h0, h1, pixels @ ..] = rest else { return Err("it has no size".into()) };
    picture.width = u16::from_le_bytes([*w0, *w1]);
    picture.height = u16::from_le_bytes([*h0, *h1]);
    let size = usize::from(picture.width) * usize::from(picture.height);
    let ink = match kind {
        b'R' => pixels.to_vec(),
        b'L' => unfold(pixels, size),
        other => return Err(format!("its kind is {other}").into()),
    };
    if ink.first() == Some(&255) {
        // What an assertion of a C library does.
        std::process::abort();
    }
    picture.ink = ink.iter().map(|byte| u64::from(*byte)).sum();
    Ok(())
}

/// Unfolds runs: each is a length and a colour.
fn unfold(runs: &[u8], size: usize) -> Vec<u8> {
    let mut pixels = Vec::new();
    let mut at = 0;
    while pixels.len() < size {
        let (length, colour) = (runs[at % runs.len()], runs[(at + 1) % runs.len()]);
        pixels.extend(std::iter::repeat_n(colour, length.into()));
        // It begins again where the runs end, and a length of zero never fills the picture.
        at += 2;
    }
    pixels
}

fn plain(width: u16, height: u16, pixels: &[u8]) -> Vec<u8> {
    [b"PICR", width.to_le_bytes().as_slice(), &height.to_le_bytes(), pixels].concat()
}

fn runs(width: u16, height: u16, runs: &[(u8, u8)]) -> Vec<u8> {
    let runs: Vec<u8> = runs.iter().flat_map(|(length, colour)| [*length, *colour]).collect();
    [b"PICL", width.to_le_bytes().as_slice(), &height.to_le_bytes(), &runs].concat()
}

fn framed(frames: usize, picture: Vec<u8>) -> Vec<u8> {
    [b"PICN".repeat(frames), picture].concat()
}
