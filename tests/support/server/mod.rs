//! A real server under test: started, observed through its log and `/proc`, and ended with all that it started.
//!
//! Nothing here waits for a length of time: every wait is for a record of the log, for the end of a process or of
//! the log itself, and is bounded by [`PATIENCE`].

pub mod client;
pub mod crowd;
pub mod load;
pub mod log;
pub mod processes;
#[path = "../program.rs"]
pub mod program;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use nix::sys::prctl;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;

use self::client::{Answer, Client};
use self::log::{Log, Record};

/// The longest wait for anything, on however busy a machine.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// By this variable a program's processes are known as ours, whoever their parent is by now.
const MARK: &str = "HATCHERY_TEST_SERVER";

/// A master that has replaced another is nobody's child when that one has ended. From now on it is this process's, which
/// learns how it ends.
pub fn adopt_orphans() {
    prctl::set_child_subreaper(true).expect("Linux has it since 3.4");
}

/// How a server is started.
pub struct Launch {
    program: PathBuf,
    /// What a shell is to do before it becomes the server: redirections.
    redirections: String,
    args: Vec<OsString>,
    variables: Vec<(String, OsString)>,
    stdin: Stdio,
    in_background: bool,
}

impl Launch {
    /// The `hatchery` command, without arguments.
    pub fn hatchery() -> Launch {
        Launch::program(env!("CARGO_BIN_EXE_hatchery"))
    }

    /// One of this test binary's own services; see `fixtures.rs`.
    pub fn fixture(name: &str) -> Launch {
        let program = std::env::current_exe().expect("the test binary has a path");
        Launch::program(program).variable("HATCHERY_FIXTURE", name)
    }

    pub fn program(path: impl Into<PathBuf>) -> Launch {
        Launch {
            program: path.into(),
            redirections: String::new(),
            args: Vec::new(),
            variables: Vec::new(),
            stdin: Stdio::null(),
            in_background: false,
        }
    }

    pub fn with_program(mut self, path: &Path) -> Launch {
        self.program = path.to_owned();
        self
    }

    pub fn arg(mut self, arg: impl Into<OsString>) -> Launch {
        self.args.push(arg.into());
        self
    }

    pub fn args<I: IntoIterator<Item: Into<OsString>>>(mut self, args: I) -> Launch {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    pub fn variable(mut self, name: &str, value: impl Into<OsString>) -> Launch {
        self.variables.push((name.to_owned(), value.into()));
        self
    }

    /// A shell's redirections, such as `3<&0`: descriptors that the server inherits.
    pub fn redirect(mut self, redirections: &str, stdin: impl Into<Stdio>) -> Launch {
        redirections.clone_into(&mut self.redirections);
        self.stdin = stdin.into();
        self
    }

    /// In a process group of its own: never in the foreground of the terminal that the tests may run in.
    pub fn in_background(mut self) -> Launch {
        self.in_background = true;
        self
    }

    /// Starts it on a port of the kernel's choice and waits until it serves.
    pub fn start(self) -> Server {
        let server = self.args(["--listen", "127.0.0.1:0"]).spawn();
        server.await_serving();
        server
    }

    /// Starts it, with a log in JSON, and waits for nothing.
    pub fn spawn(self) -> Server {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let mark = format!("{}.{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let mut command = Command::new("/bin/sh");
        command
            .args(["-c", &format!(r#"exec "$@" {}"#, self.redirections), "sh"])
            .arg(self.program)
            .args(self.args)
            .args(["--log-format", "json"])
            .envs(self.variables)
            .env(MARK, &mark)
            .stdin(self.stdin)
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        if self.in_background {
            command.process_group(0);
        }
        let mut child = command.spawn().expect("a server can be started");
        let pid = child.id() as i32;
        let log = Log::read(child.stderr.take().expect("it is piped"));
        let (ended, end) = channel();
        std::thread::spawn(move || drop(ended.send(child.wait())));
        Server { pid, log, mark, end, ended: None }
    }

    /// Starts it, waits for its end, and gives its exit code with all that it wrote to stderr.
    ///
    /// Since stderr is at its end, no process of it is left.
    pub fn fail(self) -> Failed {
        let mut server = self.spawn();
        let status = server.wait();
        server.log.await_end();
        assert_eq!(server.processes(), [0; 0], "processes are left after the end");
        Failed { code: status.code(), words: server.log.text() }
    }
}

/// What is left of a server that did not boot.
#[derive(Debug)]
pub struct Failed {
    pub code: Option<i32>,
    pub words: String,
}

impl Failed {
    #[track_caller]
    pub fn expect(&self, code: i32, words: &[&str]) {
        assert_eq!(self.code, Some(code), "{}", self.words);
        for word in words {
            assert!(self.words.contains(word), "{word:?} is not said in:\n{}", self.words);
        }
    }
}

/// A running server.
pub struct Server {
    /// The master.
    pub pid: i32,
    pub log: Log,
    mark: String,
    end: Receiver<std::io::Result<ExitStatus>>,
    ended: Option<ExitStatus>,
}

impl Server {
    /// `hatchery` with these arguments, on a port of the kernel's choice.
    pub fn start(args: &[&str]) -> Server {
        Launch::hatchery().args(args).start()
    }

    pub fn await_serving(&self) {
        self.log.wait("the server serves", |record| record.is("serving"));
    }

    /// The addresses it listens on, as it says.
    pub fn addresses(&self) -> Vec<String> {
        self.log.all(|record| record.is("listening")).iter().map(|record| record.str("address")).collect()
    }

    pub fn address(&self) -> String {
        self.addresses().into_iter().next().expect("it listens somewhere")
    }

    pub fn client(&self) -> Client {
        Client::connect(&self.address()).expect("a listening server is connected to")
    }

    /// A client that has asked, and waits for its answer.
    #[track_caller]
    pub fn client_that_asks(&self, path: &str) -> Client {
        let mut client = self.client();
        client.ask(path).expect("a request");
        client
    }

    /// The answer to one request on a connection of its own.
    #[track_caller]
    pub fn get(&self, path: &str) -> Answer {
        self.client().get(path).expect("an answer")
    }

    pub fn signal(&self, signal: Signal) {
        signal_process(self.pid, signal);
    }

    /// Upgrades the master, waits until the old one has left with code 0, and goes on with the new one.
    #[track_caller]
    pub fn upgrade(&mut self) {
        let mark = self.log.mark();
        self.signal(Signal::SIGUSR2);
        let new = self.log.wait_after(mark, "the old master's end", |record| record.is("replaced")).pid();
        assert_eq!(self.wait().code(), Some(0), "its log:\n{}", self.log.text());
        self.follow(new);
    }

    /// From now on the server's master is this process, whose own master has ended.
    pub fn follow(&mut self, master: i32) {
        let (ended, end) = channel();
        std::thread::spawn(move || {
            let end = waitpid(Pid::from_raw(master), None).map(|status| match status {
                WaitStatus::Exited(_, code) => ExitStatus::from_raw(code << 8),
                WaitStatus::Signaled(_, signal, _) => ExitStatus::from_raw(signal as i32),
                other => panic!("{other:?} is no end"),
            });
            let _ = ended.send(end.map_err(std::io::Error::from));
        });
        (self.pid, self.end, self.ended) = (master, end, None);
    }

    /// The workers that are ready and not gone, by slot, as far as the log has told.
    pub fn workers(&self) -> BTreeMap<u64, i32> {
        let mut workers = BTreeMap::new();
        for record in self.log.all(|_| true) {
            let slot = || record.u64("slot");
            if record.is("worker ready") {
                workers.insert(slot(), record.pid());
            } else if record.is_end_of_worker() && workers.get(&slot()).is_some_and(|&pid| record.is_of(pid)) {
                workers.remove(&slot());
            }
        }
        workers
    }

    /// Waits for the worker that follows `old` in its slot, and gives it.
    #[track_caller]
    pub fn successor(&self, slot: u64, old: i32) -> i32 {
        let ready = |record: &Record| record.is("worker ready") && record.u64("slot") == slot;
        let before = self.workers_ever(slot).iter().position(|&pid| pid == old).expect("it was ready once") + 1;
        let what = format!("a successor of {old} in slot {slot}");
        self.log.wait_for_many(0, before + 1, &what, ready)[before].pid()
    }

    /// All that have ever been ready in the slot.
    pub fn workers_ever(&self, slot: u64) -> Vec<i32> {
        self.log.all(|record| record.is("worker ready") && record.u64("slot") == slot).iter().map(Record::pid).collect()
    }

    /// The template of the newest worker that is there.
    #[track_caller]
    pub fn template(&self) -> i32 {
        let workers = self.log.all(|record| record.is("worker ready"));
        workers.iter().rev().find_map(|worker| processes::stat(worker.pid())).expect("a worker").parent
    }

    /// Every process of this server that is alive, whoever its parent is.
    pub fn processes(&self) -> Vec<i32> {
        processes::with_variable(MARK, &self.mark)
    }

    /// Waits for the master's end.
    #[track_caller]
    pub fn wait(&mut self) -> ExitStatus {
        if self.ended.is_none() {
            let end = self.end.recv_timeout(PATIENCE);
            let end = end.unwrap_or_else(|_| panic!("the master does not end; its log:\n{}", self.log.text()));
            self.ended = Some(end.expect("it can be waited for"));
        }
        self.ended.expect("it was just set")
    }

    /// Ends it by this signal, expects a clean stop, and that nothing of it is left.
    #[track_caller]
    pub fn stop_by(&mut self, signal: Signal) {
        self.signal(signal);
        let status = self.wait();
        assert_eq!(status.code(), Some(0), "{:?}; its log:\n{}", status.signal(), self.log.text());
        self.log.await_end();
        assert_eq!(self.processes(), [0; 0], "processes are left after the end");
    }

    #[track_caller]
    pub fn stop(&mut self) {
        self.stop_by(Signal::SIGTERM);
    }

    /// No child of any process of this server is dead and unreaped for longer than a moment.
    #[track_caller]
    pub fn assert_no_zombies(&self) {
        processes::eventually("no zombie is left", || processes::zombies_of(&self.processes()).is_empty());
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if self.ended.is_none() {
            // The master is unreaped or was reaped a moment ago by our own thread.
            let _ = kill(Pid::from_raw(self.pid), Signal::SIGTERM);
            let gentle = if std::thread::panicking() { Duration::from_millis(500) } else { PATIENCE / 4 };
            let _ = self.end.recv_timeout(gentle);
        }
        for pid in self.processes() {
            let _ = kill(Pid::from_raw(pid), Signal::SIGCONT);
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
}

/// Sends a signal to a process that the test knows to be there.
#[track_caller]
pub fn signal_process(pid: i32, signal: Signal) {
    kill(Pid::from_raw(pid), signal).expect("the process is there");
}

/// Stops a process and waits until it stands still: until then it may still take what comes for its kind.
#[track_caller]
pub fn freeze(pid: i32) {
    signal_process(pid, Signal::SIGSTOP);
    processes::eventually("it stands still", || processes::stat(pid).is_some_and(|stat| stat.state == 'T'));
}
