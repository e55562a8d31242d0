//! The services of this binary's own. It becomes one of these servers when `HATCHERY_FIXTURE` says so.
//!
//! How they misbehave is written into files of a directory, so that a test can change it between two generations or
//! two lives of a worker. A file holds one order, such as `fail no index today`.

use std::cell::RefCell;
use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::fs::{self, File, OpenOptions};
use std::hash::BuildHasher;
use std::io::Write;
use std::num::ParseIntError;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use hatchery::proc::Registry;
use hatchery::server::{self, Config, LogFormat, LogLevel, Workers, host, stderr_logger};
use hatchery::server::{Conn, LastWords, Next, PreloadCx, RequestCx, Result, Service, WorkerCx};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{SigSet, Signal, raise};

/// What `version` answers; a test finds it in the image and writes a new version of this program.
pub static VERSION: &str = "this is fixture version 1";

/// Runs the fixture that the environment names, if it names one.
pub fn become_fixture() -> Option<ExitCode> {
    match std::env::var("HATCHERY_FIXTURE").ok()?.as_str() {
        "probe" => Some(hatchery::serve::<Probe>()),
        "deaf" => {
            SigSet::all().thread_block().expect("signals can be blocked");
            Some(hatchery::serve::<Probe>())
        }
        "aborts" => Some(hatchery::serve::<crate::aborts::Fixture>()),
        "cleanups" => Some(hatchery::serve::<crate::cleanups::Fixture>()),
        "subprocesses" => Some(hatchery::serve::<crate::subprocesses::Fixture>()),
        "own-loop" => Some(hatchery::serve::<OwnLoop>()),
        "own-main" => Some(own_main()),
        "offers" => Some(crate::offers::program()),
        other => panic!("there is no fixture {other:?}"),
    }
}

/// A program with a command line and a configuration of its own: the file at `HATCHERY_LISTEN` has an address a line.
fn own_main() -> ExitCode {
    hatchery::init(&host::<Probe>(Registry::new(), stderr_logger));
    let text = fs::read_to_string(std::env::var("HATCHERY_LISTEN").expect("it says where")).expect("a file");
    let mut config = Config::default();
    config.listen = text.lines().map(|line| line.parse().expect("an address")).collect();
    config.workers = Workers::new(2).expect("in range");
    config.log_format = LogFormat::Json;
    match server::run(config, stderr_logger(LogFormat::Json, LogLevel::Info)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::from(3),
    }
}

/// The orders for a fixture: `--arg orders=DIR`. Each is locked while it holds: who is to `wait` waits for its lock.
pub struct Orders {
    directory: tempfile::TempDir,
    given: RefCell<HashMap<String, File>>,
}

impl Orders {
    pub fn new() -> Orders {
        Orders { directory: tempfile::tempdir().expect("a directory"), given: RefCell::default() }
    }

    pub fn arg(&self) -> String {
        format!("orders={}", self.directory.path().display())
    }

    /// From now on `moment` (`preload`, `start` or `start-SLOT`) does this.
    pub fn give(&self, moment: &str, order: &str) {
        let beside = self.directory.path().join(".new");
        let mut file = File::create(&beside).expect("a file");
        file.lock().expect("nobody else knows it");
        file.write_all(order.as_bytes()).expect("room");
        fs::rename(beside, self.directory.path().join(moment)).expect("a file in its place");
        self.given.borrow_mut().insert(moment.to_owned(), file);
    }

    pub fn take_back(&self, moment: &str) {
        fs::remove_file(self.directory.path().join(moment)).expect("there was an order");
        let given = self.given.borrow_mut().remove(moment).expect("it was given");
        // Closing would not do: a process that is just being started may hold it as well.
        given.unlock().expect("it was locked");
    }

    /// Whether some process hangs as ordered for this moment.
    pub fn obeyed(&self, moment: &str) -> bool {
        self.directory.path().join(moment).with_extension("obeyed").exists()
    }

    /// What the preloads of the server have noted, one line each.
    pub fn preloads(&self) -> Vec<String> {
        let text = fs::read_to_string(self.directory.path().join("preloads")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }
}

/// A file in which a fixture notes what no answer tells: `--arg notes=FILE`.
pub struct Notes {
    folder: tempfile::TempDir,
}

impl Notes {
    pub fn new() -> Notes {
        Notes { folder: tempfile::tempdir().expect("a folder") }
    }

    pub fn arg(&self) -> String {
        format!("notes={}", self.path_beside("notes").display())
    }

    /// A path for a test's own file, which goes with the notes.
    pub fn path_beside(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// What was noted, a line each.
    pub fn lines(&self) -> Vec<String> {
        let text = fs::read_to_string(self.path_beside("notes")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }
}

/// The fixture's side of it.
#[derive(Clone)]
pub struct Pencil {
    notes: PathBuf,
}

impl Pencil {
    pub fn of(cx: &WorkerCx) -> Result<Pencil> {
        Ok(Pencil { notes: cx.arg("notes")?.into() })
    }

    pub fn note(&self, words: &str) {
        let mut file = OpenOptions::new().append(true).create(true).open(&self.notes).expect("a file");
        file.write_all(format!("{words}\n").as_bytes()).expect("room");
    }
}

/// Does what is ordered for this moment.
fn obey(directory: Option<&str>, moment: &str) -> Result<()> {
    let path = Path::new(directory.unwrap_or("/nowhere")).join(moment);
    let Ok(file) = File::open(&path) else {
        return Ok(());
    };
    let order = std::io::read_to_string(&file)?;
    match order.split_once(' ').unwrap_or((&order, "")) {
        ("fail", words) => return Err(words.into()),
        ("panic", words) => panic!("{words}"),
        ("exit", code) => std::process::exit(code.parse()?),
        ("kill-yourself", _) => raise(Signal::SIGKILL)?,
        ("thread", name) => start_thread(name)?,
        ("descriptors", limit) => setrlimit(Resource::RLIMIT_NOFILE, limit.parse()?, limit.parse()?)?,
        ("wait", _) => {
            fs::write(path.with_extension("obeyed"), "")?;
            file.lock_shared()?;
        }
        ("hang", _) => {
            fs::write(path.with_extension("obeyed"), "")?;
            loop {
                std::thread::park();
            }
        }
        (other, _) => panic!("there is no order {other:?}"),
    }
    Ok(())
}

/// Leaves a second thread in this process. A thread gives itself its name, so it is waited for.
fn start_thread(name: &str) -> Result<()> {
    let (named, is_named) = std::sync::mpsc::channel();
    std::thread::Builder::new().name(name.to_owned()).spawn(move || {
        let _ = named.send(());
        loop {
            std::thread::park();
        }
    })?;
    Ok(is_named.recv()?)
}

/// A service of lines that tells about its process.
struct Probe {
    preloaded: &'static Preloaded,
    random: RandomState,
}

struct Preloaded {
    table: Vec<u64>,
    bus_signals: Arc<AtomicUsize>,
}

impl Service for Probe {
    type Preload = Preloaded;

    fn preload(cx: &PreloadCx) -> Result<Preloaded> {
        obey(cx.arg_opt("orders"), "preload")?;
        let bus_signals = Arc::default();
        if cx.arg_opt("heeds-bus-from") == Some("preload") {
            count_bus_signals(&bus_signals)?;
        }
        if let Some(orders) = cx.arg_opt("orders") {
            let path = PathBuf::from(orders).join("preloads");
            let mut file = OpenOptions::new().append(true).create(true).open(path)?;
            file.write_all(format!("{}\n", cx.generation()).as_bytes())?;
        }
        Ok(Preloaded { table: (0..100_000).collect(), bus_signals })
    }

    fn start(preloaded: &'static Preloaded, cx: &WorkerCx) -> Result<Probe> {
        obey(cx.arg_opt("orders"), "start")?;
        obey(cx.arg_opt("orders"), &format!("start-{}", cx.slot()))?;
        if cx.arg_opt("heeds-bus-from") == Some("start") {
            count_bus_signals(&preloaded.bus_signals)?;
        }
        Ok(Probe { preloaded, random: RandomState::new() })
    }

    fn serve(&mut self, conn: &mut Conn, cx: &mut RequestCx<'_>) -> Result<Next> {
        if !conn.buffer().contains(&b'\n') {
            return Ok(Next::Park);
        }
        let Some(line) = conn.read_line(4096)? else {
            return Ok(Next::Close);
        };
        match line.as_str() {
            "who" => writeln!(conn, "{} {} {}", cx.slot(), cx.pid(), cx.generation())?,
            "table" => writeln!(conn, "{:p} {}", self.preloaded, self.preloaded.table.len())?,
            "random" => writeln!(conn, "{:x}", self.random.hash_one("the same for all"))?,
            // Not a constant for the compiler: the bytes are to be read from the image.
            "version" => writeln!(conn, "{}", std::hint::black_box(VERSION))?,
            "panic" => panic!("as ordered"),
            "bus-signals" => writeln!(conn, "{}", self.preloaded.bus_signals.load(Ordering::Relaxed))?,
            order => carry_out(order, conn, cx)?,
        }
        Ok(Next::Park)
    }
}

/// Orders with numbers in them: mebibytes and milliseconds.
fn carry_out(order: &str, conn: &mut Conn, cx: &RequestCx<'_>) -> Result<()> {
    let ms = |text: &str| Ok::<_, ParseIntError>(Duration::from_millis(text.parse()?));
    let words: Vec<&str> = order.split(' ').collect();
    match words[..] {
        ["much", mebibytes] => {
            cx.label(order);
            conn.write_all(&vec![b'x'; mebibytes.parse::<usize>()? << 20])?;
        }
        ["within", limit, "for", span] => {
            cx.deadline(ms(limit)?)?;
            let words = if pass(ms(span)?, cx) { "in time" } else { "late" };
            writeln!(conn, "{words}")?;
        }
        ["block-alarm"] => {
            let mut alarm = SigSet::empty();
            alarm.add(Signal::SIGALRM);
            alarm.thread_block()?;
            loop {
                std::thread::park();
            }
        }
        ["crash"] => raise(Signal::SIGSEGV)?,
        ["say", "crashed", "or", "late", "and", end] => {
            cx.deadline(Duration::from_millis(50))?;
            cx.last_words(LastWords { deadline: b"late\n", crash: b"crashed\n" });
            match end {
                "crash" => raise(Signal::SIGSEGV)?,
                "raise-bus" => raise(Signal::SIGBUS)?,
                "abort-in-a-thread" => drop(thread::spawn(|| std::process::abort()).join()),
                _ => spin(),
            }
            writeln!(conn, "it passed")?;
        }
        ["begin", "and", "spin", "within", limit] => {
            cx.deadline(ms(limit)?)?;
            cx.last_words(b"these come too late\n");
            writeln!(conn, "it begins")?;
            conn.flush()?;
            spin();
        }
        ["spin", "within", limit] => {
            cx.deadline(ms(limit)?)?;
            spin();
        }
        ["pieces", count, "every", span, "extending", by] => {
            for piece in 0..count.parse::<u32>()? {
                cx.extend(ms(by)?)?;
                if !pass(ms(span)?, cx) {
                    writeln!(conn, "late")?;
                    return Ok(());
                }
                writeln!(conn, "piece {piece}")?;
                conn.flush()?;
            }
            writeln!(conn, "end")?;
        }
        _ => writeln!(conn, "there is no question {order:?}")?,
    }
    Ok(())
}

fn spin() -> ! {
    loop {
        std::hint::spin_loop();
    }
}

/// A handler of the service's own.
fn count_bus_signals(count: &Arc<AtomicUsize>) -> Result<()> {
    signal_hook::flag::register_usize(Signal::SIGBUS as i32, Arc::clone(count), 1)?;
    Ok(())
}

/// Lets so much time pass, in a call that a signal interrupts. False if the deadline came first.
fn pass(span: Duration, cx: &RequestCx<'_>) -> bool {
    let end = Instant::now() + span;
    loop {
        let left = PollTimeout::try_from(end.saturating_duration_since(Instant::now())).expect("not for weeks");
        match poll(&mut [], left) {
            Err(Errno::EINTR) if cx.overdue() => return false,
            Err(Errno::EINTR) => {}
            other => return other == Ok(0),
        }
    }
}

/// A service with a loop of its own: one connection at a time, one word, and goodbye.
struct OwnLoop;

impl Service for OwnLoop {
    type Preload = ();

    fn preload(_: &PreloadCx) -> Result<()> {
        Ok(())
    }

    fn start((): &'static (), _: &WorkerCx) -> Result<OwnLoop> {
        Ok(OwnLoop)
    }

    fn serve(&mut self, _: &mut Conn, _: &mut RequestCx<'_>) -> Result<Next> {
        unreachable!("the loop is this service's own")
    }

    fn run(self, cx: WorkerCx) -> Result<()> {
        cx.ready();
        let listener = &cx.listeners()[0];
        while !cx.draining() {
            let mut sources =
                [PollFd::new(cx.drain_fd(), PollFlags::POLLIN), PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
            poll(&mut sources, PollTimeout::NONE)?;
            while let Some(mut conn) = listener.accept()? {
                writeln!(conn, "own loop in slot {} pid {}", cx.slot(), cx.pid())?;
                conn.flush()?;
            }
        }
        slog::info!(cx.log(), "the own loop has drained");
        let orders = cx.arg_opt("orders").map(str::to_owned);
        drop(cx);
        obey(orders.as_deref(), "leave")
    }
}
