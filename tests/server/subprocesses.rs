//! What a worker starts has nothing of the worker's, leaves no zombie, and stands in nobody's way.

use std::fs::{self, File};
use std::io::Write;
use std::os::fd::IntoRawFd;
use std::time::Duration;

use hatchery::server::{Conn, FileLock, Next, PreloadCx, RequestCx, Result, Service, Subprocess, WorkerCx};
use libtest_mimic::Trial;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::signal::{SigSet, Signal};

use crate::support::processes::{children, descriptors, eventually, is_alive, stat, zombies_of};
use crate::support::{Launch, Server, signal_process};

pub fn tests() -> Vec<Trial> {
    trials!["subprocesses":
        a_subprocess_holds_the_standard_three_and_nothing_else,
        a_subprocess_started_beside_another_thread_holds_nothing_else_either,
        a_subprocess_starts_with_default_signals_and_none_blocked,
        a_subprocess_is_given_its_surroundings_and_its_status_is_seen,
        a_subprocess_that_cannot_be_started_is_a_named_error,
        a_subprocess_is_waited_for_until_the_deadline_and_no_longer,
        a_subprocess_outlives_its_request_and_ends_at_a_cleanup_if_that_says_so,
        an_ended_subprocess_is_no_zombie_of_an_idle_worker,
        an_ended_subprocess_is_no_zombie_of_a_busy_worker,
        a_worker_can_start_one_before_it_serves,
        a_detached_subprocess_outlives_its_worker_in_a_session_of_its_own,
        while_a_detached_subprocess_runs_every_address_can_be_bound_again,
    ]
}

/// A service of lines that starts subprocesses. It is careless: it holds a descriptor that exec does not close, and
/// blocks and ignores signals.
pub struct Fixture {
    started: Option<Subprocess>,
}

impl Service for Fixture {
    type Preload = ();

    fn preload(_: &PreloadCx) -> Result<()> {
        Ok(())
    }

    fn start((): &'static (), cx: &WorkerCx) -> Result<Fixture> {
        let careless = File::open("/etc/passwd")?;
        fcntl(&careless, FcntlArg::F_SETFD(FdFlag::empty()))?;
        // It is never closed.
        let _ = careless.into_raw_fd();
        let mut blocked = SigSet::empty();
        blocked.add(Signal::SIGUSR1);
        blocked.thread_block()?;
        let started = match cx.arg_opt("at-start") {
            Some(program) => Some(cx.command(program).arg("60").detached().spawn()?),
            None => None,
        };
        Ok(Fixture { started })
    }

    fn serve(&mut self, conn: &mut Conn, cx: &mut RequestCx<'_>) -> Result<Next> {
        let Some(line) = conn.read_line(4096)? else { return Ok(Next::Close) };
        let sleep = |seconds: &str| cx.command("sleep").arg(seconds);
        match line.as_str() {
            "pid" => writeln!(conn, "{}", cx.pid())?,
            "started" => writeln!(conn, "{}", self.started.as_ref().map_or(0, Subprocess::pid))?,
            "sleep" => writeln!(conn, "{}", sleep("60").spawn()?.pid())?,
            "detach" => writeln!(conn, "{}", sleep("60").detached().spawn()?.pid())?,
            "locked" => {
                let lock = FileLock::exclusive("/etc/passwd")?;
                writeln!(conn, "{}", sleep("60").spawn()?.pid())?;
                drop(lock);
            }
            "threads" => {
                let (_go, wait) = std::sync::mpsc::channel::<()>();
                std::thread::scope(|scope| {
                    scope.spawn(move || wait.recv());
                    let pid = sleep("60").spawn()?.pid();
                    drop(_go);
                    writeln!(conn, "{pid}")
                })?;
            }
            "brief" => writeln!(conn, "{}", cx.command("true").spawn()?.pid())?,
            "brief and busy" => {
                let pid = cx.command("true").spawn()?.pid();
                writeln!(conn, "{pid}")?;
                conn.flush()?;
                let until = std::time::Instant::now() + Duration::from_secs(60);
                while std::time::Instant::now() < until {
                    std::hint::spin_loop();
                }
            }
            "surroundings" => {
                let (reader, writer) = std::io::pipe()?;
                let (input, mut feed) = std::io::pipe()?;
                let shell = cx.command("sh").args(["-c", "read line; echo $line $GIVEN ${HOME-none} $PWD; exit 3"]);
                let shell = shell.env("GIVEN", "given").env_remove("HOME").current_dir("/usr");
                let mut shell = shell.stdin(input).stdout(writer).spawn()?;
                feed.write_all(b"fed\n")?;
                let text = std::io::read_to_string(reader)?;
                let status = cx.wait(&mut shell)?;
                assert_eq!(shell.try_wait()?, Some(status), "it is kept");
                writeln!(conn, "{} {:?}", text.trim_end(), status.code())?;
            }
            "missing" => {
                let error = cx.command("/no/such/program").spawn().expect_err("it is missing");
                writeln!(conn, "{:?} {error}", error.kind())?;
            }
            "wait" => {
                let mut sleep = sleep("60").spawn()?;
                let waited = cx.wait(&mut sleep).map_err(|error| error.kind());
                sleep.kill(9)?;
                writeln!(conn, "{waited:?} then {:?}", sleep.wait()?)?;
            }
            "clean" => {
                let sleep = sleep("60").spawn()?;
                writeln!(conn, "{}", sleep.pid())?;
                cx.on_cleanup(move || drop(sleep.kill(9)));
            }
            other => panic!("there is no question {other:?}"),
        }
        Ok(Next::Park)
    }
}

fn start(args: &[&str]) -> Server {
    Launch::fixture("subprocesses").args(["--workers", "1"]).args(args.iter().copied()).start()
}

fn ask(server: &Server, line: &str) -> String {
    server.client().exchange(line).unwrap_or_else(|error| panic!("no answer: {error}; the log:\n{}", server.log.text()))
}

/// Asks for a subprocess and gives its pid, when it has become the program that it is to be.
#[track_caller]
fn subprocess(server: &Server, line: &str) -> i32 {
    let pid = ask(server, line).parse().expect("a pid");
    await_program(pid);
    pid
}

#[track_caller]
fn await_program(pid: i32) {
    // It sleeps: the loader of its libraries has closed what it had open.
    eventually("it sleeps", || {
        let wait = fs::read_to_string(format!("/proc/{pid}/comm")).expect("it is there");
        wait == "sleep\n" && stat(pid).is_some_and(|stat| stat.state == 'S')
    });
}

fn a_subprocess_holds_the_standard_three_and_nothing_else() {
    let server = start(&[]);
    let worker = ask(&server, "pid").parse().expect("a pid");
    let own = descriptors(worker);
    assert!(own.values().any(|target| target == "/etc/passwd"), "the worker was to be careless: {own:?}");
    for (line, keeps) in [("sleep", true), ("locked", true), ("detach", false)] {
        let pid = subprocess(&server, line);
        let held = descriptors(pid);
        assert_eq!(held.keys().copied().collect::<Vec<_>>(), [0, 1, 2], "{line}: {held:?}");
        for (number, target) in &held {
            let expected = if keeps { own[number].as_str() } else { "/dev/null" };
            assert_eq!(target, expected, "{line}: {number}");
        }
        signal_process(pid, Signal::SIGKILL);
    }
}

fn a_subprocess_started_beside_another_thread_holds_nothing_else_either() {
    let server = start(&[]);
    let pid = subprocess(&server, "threads");
    assert_eq!(descriptors(pid).len(), 3, "{:?}", descriptors(pid));
}

fn a_subprocess_starts_with_default_signals_and_none_blocked() {
    let server = start(&[]);
    let masks = |pid: i32| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("it is there");
        ["SigBlk:", "SigIgn:", "SigCgt:"].map(|name| {
            let mask = status.lines().find_map(|line| line.strip_prefix(name)).expect("a mask");
            // Two signals are libc's own, which it sets as it likes.
            u64::from_str_radix(mask.trim(), 16).expect("hex") & !(0b11 << 31)
        })
    };
    let [blocked, ignored, _] = masks(ask(&server, "pid").parse().expect("a pid"));
    assert_ne!(blocked, 0, "the worker blocks something");
    assert_ne!(ignored & 1 << (Signal::SIGPIPE as i32 - 1), 0, "the worker ignores SIGPIPE");
    assert_eq!(masks(subprocess(&server, "sleep")), [0, 0, 0]);
}

fn a_subprocess_is_given_its_surroundings_and_its_status_is_seen() {
    let server = start(&[]);
    assert_eq!(ask(&server, "surroundings"), "fed given none /usr Some(3)");
}

fn a_subprocess_that_cannot_be_started_is_a_named_error() {
    let server = start(&[]);
    let words = ask(&server, "missing");
    assert!(words.starts_with("NotFound cannot start /no/such/program: "), "{words}");
}

fn a_subprocess_is_waited_for_until_the_deadline_and_no_longer() {
    let server = start(&["--request-timeout", "200ms"]);
    let pid = ask(&server, "pid");
    assert_eq!(ask(&server, "wait"), "Err(TimedOut) then ExitStatus(unix_wait_status(9))");
    assert_eq!(ask(&server, "pid"), pid);
}

fn a_subprocess_outlives_its_request_and_ends_at_a_cleanup_if_that_says_so() {
    let server = start(&[]);
    let (kept, cleaned) = (subprocess(&server, "sleep"), ask(&server, "clean").parse().expect("a pid"));
    eventually("it has ended", || !is_alive(cleaned));
    assert!(is_alive(kept));
}

fn an_ended_subprocess_is_no_zombie_of_an_idle_worker() {
    let server = start(&[]);
    let worker: i32 = ask(&server, "pid").parse().expect("a pid");
    for _ in 0..20 {
        ask(&server, "brief");
    }
    let killed = subprocess(&server, "detach");
    signal_process(killed, Signal::SIGKILL);
    eventually("the worker has no child", || children(worker).is_empty());
}

fn an_ended_subprocess_is_no_zombie_of_a_busy_worker() {
    let server = start(&["--request-timeout", "off"]);
    let worker: i32 = ask(&server, "pid").parse().expect("a pid");
    ask(&server, "brief and busy");
    eventually("the worker has no child", || children(worker).is_empty());
    assert_eq!(zombies_of(&[worker]), [0; 0]);
    signal_process(worker, Signal::SIGKILL);
}

fn a_worker_can_start_one_before_it_serves() {
    let server = start(&["--arg", "at-start=sleep"]);
    let pid = subprocess(&server, "started");
    assert_eq!(descriptors(pid).len(), 3, "{:?}", descriptors(pid));
}

fn a_detached_subprocess_outlives_its_worker_in_a_session_of_its_own() {
    let server = start(&[]);
    let worker: i32 = ask(&server, "pid").parse().expect("a pid");
    let (attached, detached) = (subprocess(&server, "sleep"), subprocess(&server, "detach"));
    assert_eq!(stat(attached).expect("it is there").group, stat(worker).expect("it is there").group);
    assert_eq!(stat(detached).expect("it is there").group, detached);
    let session = nix::unistd::getsid(Some(nix::unistd::Pid::from_raw(detached))).expect("it is there");
    assert_eq!(session.as_raw(), detached);
    signal_process(worker, Signal::SIGKILL);
    server.successor(0, worker);
    assert!(is_alive(attached) && is_alive(detached));
}

fn while_a_detached_subprocess_runs_every_address_can_be_bound_again() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = format!("unix:{}", folder.path().join("socket").display());
    let name = format!("unix:@hatchery-again-{}", std::process::id());
    let mut server = start(&["--listen", "[::1]:0", "--listen", &path, "--listen", &name]);
    let pid = subprocess(&server, "detach");
    let addresses = server.addresses();
    assert_eq!(addresses.len(), 4, "{addresses:?}");
    server.signal(Signal::SIGTERM);
    assert_eq!(server.wait().code(), Some(0));
    server.log.await_end();
    assert_eq!(server.processes(), [pid], "it outlives the server, which leaves nobody else");

    let listens = addresses.iter().flat_map(|address| ["--listen", address]);
    let mut again = Launch::fixture("subprocesses").args(["--workers", "1"]).args(listens).spawn();
    again.await_serving();
    for address in again.addresses() {
        let mut client = crate::support::client::Client::connect(&address).expect("somebody listens");
        client.exchange("pid").expect("an answer");
    }
    assert!(is_alive(pid));
    again.stop();
    signal_process(pid, Signal::SIGKILL);
}
