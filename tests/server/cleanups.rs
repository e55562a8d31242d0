//! What a request leaves to be put in order, and the locks that end with their scope or their process.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use hatchery::server::{Conn, FileLock, Next, PreloadCx, RequestCx, Result, Service, WorkerCx};
use libtest_mimic::Trial;
use nix::poll::{PollTimeout, poll};
use nix::sys::signal::Signal;

use crate::fixtures::{Notes, Pencil};
use crate::support::processes::{descriptors, eventually};
use crate::support::{Launch, Server, signal_process};

pub fn tests() -> Vec<Trial> {
    trials!["cleanups":
        cleanups_run_in_reverse_order_on_every_way_out_that_leaves_the_worker_alive,
        cleanups_run_even_if_one_of_them_panics,
        cleanups_run_before_the_next_request_and_once,
        a_cleanup_is_interrupted_by_a_deadline_of_its_own_and_not_by_that_of_its_request,
        a_cleanup_that_hangs_does_not_keep_its_worker_for_ever,
        a_lock_ends_with_its_scope,
        a_lock_ends_with_its_process_even_by_kill_9,
        a_lock_is_waited_for_until_the_deadline_and_no_longer,
        a_lock_reaches_no_subprocess,
    ]
}

/// In milliseconds: a request beyond its deadline would have been interrupted some times within it.
const BLOCKED: u16 = 50;

/// A service of lines. Each line leaves two cleanups, which note what they were for.
pub struct Fixture {
    pencil: Pencil,
}

impl Service for Fixture {
    type Preload = ();

    fn preload(_: &PreloadCx) -> Result<()> {
        Ok(())
    }

    fn start((): &'static (), cx: &WorkerCx) -> Result<Fixture> {
        Ok(Fixture { pencil: Pencil::of(cx)? })
    }

    fn serve(&mut self, conn: &mut Conn, cx: &mut RequestCx<'_>) -> Result<Next> {
        let Some(line) = conn.read_line(4096)? else { return Ok(Next::Close) };
        for name in ["first", "second"] {
            let (pencil, line) = (self.pencil.clone(), line.clone());
            cx.on_cleanup(move || pencil.note(&format!("{line} {name}")));
        }
        let pencil = self.pencil.clone();
        match line.as_str() {
            "return" => {}
            "close" => return Ok(Next::Close),
            "fail" => return Err("as ordered".into()),
            "panic" => panic!("as ordered"),
            "wait" => drop(conn.read_line(4096)?),
            "flood" => loop {
                conn.write_all(&[b'x'; 100_000])?;
            },
            "panic in cleanup" => cx.on_cleanup(|| panic!("a cleanup, as ordered")),
            "blocking cleanup" => {
                cx.on_cleanup(move || {
                    pencil.note(&format!("{:?}", poll(&mut [], BLOCKED)));
                    pencil.note(&format!("{:?}", poll(&mut [], PollTimeout::NONE)));
                });
                drop(conn.read_line(4096)?);
            }
            "hanging cleanup" => cx.on_cleanup(|| {
                loop {
                    std::hint::spin_loop();
                }
            }),
            other => panic!("there is no question {other:?}"),
        }
        writeln!(conn, "{}", cx.pid())?;
        Ok(Next::Park)
    }
}

/// A server of one worker, and what its cleanups have noted.
struct Noting {
    server: Server,
    notes: Notes,
}

impl Noting {
    fn start(request_timeout: &str, kill_after: &str) -> Noting {
        let notes = Notes::new();
        let launch = Launch::fixture("cleanups").args(["--workers", "1", "--request-timeout", request_timeout]);
        let launch = launch.args(["--request-kill-after", kill_after]);
        Noting { server: launch.args(["--arg", &notes.arg()]).start(), notes }
    }

    #[track_caller]
    fn await_notes(&self, expected: &[&str]) {
        eventually(&format!("the notes are {expected:?}"), || self.notes.lines().len() >= expected.len());
        assert_eq!(self.notes.lines(), expected);
    }

    fn ask(&self, line: &str) -> Option<String> {
        self.server.client().exchange(line).ok()
    }
}

fn cleanups_run_in_reverse_order_on_every_way_out_that_leaves_the_worker_alive() {
    let noting = Noting::start("200ms", "20s");
    let pid = noting.ask("return").expect("an answer");
    let mut expected = vec!["return second".to_owned(), "return first".to_owned()];
    for (way, answered) in [("close", false), ("fail", false), ("panic", false), ("wait", false)] {
        assert_eq!(noting.ask(way).is_some(), answered, "{way}");
        expected.extend([format!("{way} second"), format!("{way} first")]);
    }
    // The client that asks for this leaves without reading it.
    noting.server.client().send("flood\n").expect("a request");
    expected.extend(["flood second".to_owned(), "flood first".to_owned()]);
    noting.await_notes(&expected.iter().map(String::as_str).collect::<Vec<_>>());
    assert_eq!(noting.ask("return"), Some(pid), "the worker lives");
}

fn cleanups_run_even_if_one_of_them_panics() {
    let noting = Noting::start("20s", "20s");
    let mut client = noting.server.client();
    let pid = client.exchange("panic in cleanup").expect("an answer");
    noting.await_notes(&["panic in cleanup second", "panic in cleanup first"]);
    let told = noting.server.log.wait("the log says so", |record| record.is("a cleanup panicked"));
    assert!(told.str("panic").starts_with("a cleanup, as ordered"), "{}", told.line);
    assert_eq!(client.exchange("return").expect("the connection is kept"), pid);
}

fn cleanups_run_before_the_next_request_and_once() {
    let noting = Noting::start("20s", "20s");
    let mut client = noting.server.client();
    client.send("return\nclose\n").expect("two requests at once");
    assert!(client.line().is_ok());
    assert!(client.line().is_err());
    noting.await_notes(&["return second", "return first", "close second", "close first"]);
}

fn a_cleanup_is_interrupted_by_a_deadline_of_its_own_and_not_by_that_of_its_request() {
    let noting = Noting::start("1s", "20s");
    let asked = Instant::now();
    assert_eq!(noting.ask("blocking cleanup"), None, "the deadline ends it");
    noting.await_notes(&["Ok(0)", "Err(EINTR)", "blocking cleanup second", "blocking cleanup first"]);
    assert!(asked.elapsed() >= Duration::from_secs(2), "a second for the request, and one for its cleanups");
}

fn a_cleanup_that_hangs_does_not_keep_its_worker_for_ever() {
    let noting = Noting::start("200ms", "500ms");
    let pid: i32 = noting.ask("hanging cleanup").and_then(|pid| pid.parse().ok()).expect("an answer");
    let end = noting.server.log.wait("its end", |record| record.is_about("worker exited", pid));
    assert_eq!(end.str("why"), "was killed by signal 14");
    noting.server.successor(0, pid);
}

// ---- locks ----

/// A server of two workers, and a file to lock.
fn with_lock(request_timeout: &str) -> (Server, tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("lock");
    (Server::start(&["--workers", "2", "--faults", "--request-timeout", request_timeout]), folder, path)
}

fn hold(path: &Path, ms: u32) -> String {
    format!("/fault/flock?path={}&ms={ms}", path.display())
}

fn is_free(path: &Path) -> bool {
    FileLock::try_exclusive(path).expect("the file can be locked").is_some()
}

/// The workers that have the file open.
fn openers(server: &Server, path: &Path) -> Vec<i32> {
    let path = path.to_str().expect("a path");
    let has_it = |pid: &i32| descriptors(*pid).values().any(|target| target == path);
    server.workers().into_values().filter(has_it).collect()
}

fn a_lock_ends_with_its_scope() {
    let (server, _folder, path) = with_lock("20s");
    assert_eq!(server.get(&hold(&path, 1)).status, 200);
    assert!(is_free(&path));
}

fn a_lock_ends_with_its_process_even_by_kill_9() {
    let (server, _folder, path) = with_lock("60s");
    let mut client = server.client();
    client.ask(&hold(&path, 60_000)).expect("a request");
    eventually("it is held", || path.exists() && !is_free(&path));
    let holder = openers(&server, &path)[0];
    let mut waiting = server.client();
    waiting.ask(&hold(&path, 1)).expect("a request");
    eventually("somebody waits for it", || openers(&server, &path).len() == 2);
    signal_process(holder, Signal::SIGKILL);
    assert_eq!(waiting.answer().expect("an answer").status, 200);
    assert!(client.answer().is_err());
}

fn a_lock_is_waited_for_until_the_deadline_and_no_longer() {
    let (server, _folder, path) = with_lock("300ms");
    let held = FileLock::exclusive(&path).expect("a lock");
    let workers = server.workers();
    assert_eq!(server.get(&hold(&path, 1)).status, 504);
    drop(held);
    assert_eq!(server.get(&hold(&path, 1)).status, 200);
    assert_eq!(server.workers(), workers, "nobody died of it");
}

fn a_lock_reaches_no_subprocess() {
    let (server, _folder, path) = with_lock("60s");
    let mut client = server.client();
    client.ask(&hold(&path, 60_000)).expect("a request");
    eventually("it is held", || path.exists() && !is_free(&path));
    let holder = openers(&server, &path)[0];
    let number = descriptors(holder).into_iter().find(|(_, target)| path.as_os_str() == target.as_str());
    let (number, _) = number.expect("it has it open");
    let info = fs::read_to_string(format!("/proc/{holder}/fdinfo/{number}")).expect("the process is there");
    let flags = info.lines().find_map(|line| line.strip_prefix("flags:")).expect("flags").trim();
    let flags = i32::from_str_radix(flags, 8).expect("octal");
    assert_eq!(flags & nix::libc::O_CLOEXEC, nix::libc::O_CLOEXEC, "{info}");
    // It would hold up the stop.
    signal_process(holder, Signal::SIGKILL);
}
