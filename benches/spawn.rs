//! New processes per second, each started, told to leave, and seen to have left: one at a time, 32 in
//! flight, and from a master that holds 2,000 MB.
//!
//! Each contender is a program that makes a bounded number of processes in a round; all are measured in
//! turn. Ours is this very program, started with `ours COUNT IN_FLIGHT HELD_MB`.

mod support;

use std::collections::VecDeque;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::Instant;

use hatchery::proc::{Registry, Running, Template};
use support::{
    Aim, Comparison, Contender, Linking, Options, Result, Sample, available_megabytes, build_limit, find, hold, run,
    run_to_end,
};

const HELD_MEGABYTES: u64 = 2_000;

fn main() -> ExitCode {
    hatchery::init(&Registry::new().run("nothing", |_| Ok(())));
    let arguments: Vec<String> = std::env::args().collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        [_, "ours", count, in_flight, held_megabytes] => match make_processes(count, in_flight, held_megabytes) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("{error}");
                ExitCode::FAILURE
            }
        },
        _ => run(spawn),
    }
}

/// One round of ours: so many processes, so many of them at a time, each seen to its end.
fn make_processes(count: &str, in_flight: &str, held_megabytes: &str) -> Result<()> {
    let (count, in_flight): (usize, usize) = (count.parse()?, in_flight.parse()?);
    let held = hold(held_megabytes.parse()?);
    let mut template = Template::spawn()?;
    template.sync()?;
    let mut running = VecDeque::with_capacity(in_flight);
    let start = Instant::now();
    for _ in 0..count {
        if running.len() == in_flight {
            see_one_end(&mut running)?;
        }
        running.push_back(template.fork()?.run("nothing")?);
    }
    while !running.is_empty() {
        see_one_end(&mut running)?;
    }
    let per_second = count as f64 / start.elapsed().as_secs_f64();
    println!("per_second={per_second:.1}");
    std::hint::black_box(&held);
    Ok(())
}

fn see_one_end(running: &mut VecDeque<Running>) -> Result<()> {
    let oldest = running.pop_front().ok_or("nothing is in flight")?;
    let exit = oldest.wait()?;
    if exit.success() { Ok(()) } else { Err(format!("a process failed: {exit}").into()) }
}

fn spawn(options: Options) -> Result<()> {
    one_at_a_time(options)?;
    in_flight(options)?;
    from_a_large_master(options)
}

fn one_at_a_time(options: Options) -> Result<()> {
    let count = options.pick(4_000, 1_000);
    let mut table = Comparison::new("spawn, one at a time: processes/s", &[]);
    table.ours("hatchery", Aim::None, hatchery(count, 1, 0));
    table.beside("C template, static", Aim::RatioToBest(0.8), c_template(Linking::Static, count, 1));
    table.beside("C template, dynamic", Aim::RatioToBest(0.8), c_template(Linking::Dynamic, count, 1));
    table.beside("C, plain fork, static", Aim::None, plain_fork(Linking::Static, count, 0));
    table.beside("C, plain fork, dynamic", Aim::None, plain_fork(Linking::Dynamic, count, 0));
    table.beside("C, posix_spawn of a tiny program", Aim::None, posix_spawn(count / 2, 0));
    table.beside("AnyEvent::Fork, new", Aim::Ratio(3.5), anyevent_fork("new", count / 4, 1, 0));
    table.beside("AnyEvent::Fork, new_exec", Aim::None, anyevent_fork("new_exec", count / 16, 1, 0));
    table.run(options.rounds())?;
    table.print();
    Ok(())
}

fn in_flight(options: Options) -> Result<()> {
    let count = options.pick(8_000, 2_000);
    let mut table = Comparison::new("spawn, 32 in flight: processes/s", &[]);
    table.ours("hatchery", Aim::None, hatchery(count, 32, 0));
    table.beside("C template, static", Aim::RatioToBest(0.8), c_template(Linking::Static, count, 32));
    table.beside("C template, dynamic", Aim::RatioToBest(0.8), c_template(Linking::Dynamic, count, 32));
    table.beside("AnyEvent::Fork, new", Aim::None, anyevent_fork("new", count / 4, 32, 0));
    table.run(options.rounds())?;
    table.print();
    Ok(())
}

fn from_a_large_master(options: Options) -> Result<()> {
    if available_megabytes() < HELD_MEGABYTES + 1_000 {
        println!("spawn, from a master that holds 2,000 MB: this machine has no memory for it\n");
        return Ok(());
    }
    let few = options.pick(20, 5);
    let many = options.pick(2_000, 500);
    let title = "spawn, one at a time, from a master that holds 2,000 MB: processes/s";
    let mut table = Comparison::new(title, &[]);
    table.ours("hatchery", Aim::None, hatchery(many, 1, HELD_MEGABYTES));
    table.beside("hatchery, small master", Aim::Ratio(0.95), hatchery(many, 1, 0));
    table.beside("C, plain fork", Aim::None, plain_fork(Linking::Static, few, HELD_MEGABYTES));
    table.beside("C, posix_spawn of a tiny program", Aim::None, posix_spawn(many, HELD_MEGABYTES));
    table.beside("AnyEvent::Fork, new", Aim::None, anyevent_fork("new", many, 1, HELD_MEGABYTES));
    table.beside("perl, plain fork", Aim::None, anyevent_fork("fork", few, 1, HELD_MEGABYTES));
    table.run(options.rounds())?;
    table.print();
    Ok(())
}

/// A program that measures itself once a round, and prints `per_second=`.
struct SelfMeasured {
    command: Command,
}

impl Contender for SelfMeasured {
    fn round(&mut self) -> Result<Sample> {
        let text = run_to_end(&mut self.command)?;
        let figure = text.split_whitespace().find_map(|word| word.strip_prefix("per_second="));
        let figure = figure.ok_or_else(|| format!("no figure in {text:?}"))?;
        Ok(Sample::of(figure.parse()?))
    }
}

type Row = Result<Box<dyn Contender>>;

fn hatchery(count: u32, in_flight: u32, held_megabytes: u64) -> Row {
    self_measured(
        &std::env::current_exe()?,
        &["ours", &count.to_string(), &in_flight.to_string(), &held_megabytes.to_string()],
    )
}

fn c_template(linking: Linking, count: u32, in_flight: u32) -> Row {
    self_measured(&build_limit("template", linking)?, &[&count.to_string(), &in_flight.to_string()])
}

fn plain_fork(linking: Linking, count: u32, held_megabytes: u64) -> Row {
    let program = build_limit("plain_fork", linking)?;
    self_measured(&program, &["fork", &count.to_string(), &held_megabytes.to_string()])
}

fn posix_spawn(count: u32, held_megabytes: u64) -> Row {
    let program = build_limit("plain_fork", Linking::Static)?;
    let spawned = build_limit("exit_at_once", Linking::Static)?;
    let spawned = spawned.to_str().ok_or("the target folder's name is not UTF-8")?;
    self_measured(&program, &["spawn", &count.to_string(), &held_megabytes.to_string(), spawned])
}

fn anyevent_fork(how: &str, count: u32, in_flight: u32, held_megabytes: u64) -> Row {
    let packages = "perl libanyevent-fork-perl libev-perl";
    let perl = find("perl", packages)?;
    run_to_end(Command::new(&perl).args(["-MEV", "-MAnyEvent::Fork", "-e1"]))
        .map_err(|_| format!("AnyEvent::Fork is not installed (apt-get install {packages})"))?;
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/peers/anyevent_fork.pl");
    self_measured(&perl, &[script, how, &count.to_string(), &in_flight.to_string(), &held_megabytes.to_string()])
}

fn self_measured(program: &Path, arguments: &[&str]) -> Row {
    let mut command = Command::new(program);
    command.args(arguments);
    Ok(Box::new(SelfMeasured { command }))
}
