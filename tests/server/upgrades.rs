//! Upgrades of the master: the new one takes over when it serves, nothing is lost on the way, and one that does not
//! serve harms nobody.

mod disturbed;

use std::fs;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use libtest_mimic::Trial;
use nix::sys::signal::Signal;

use crate::fixtures::Orders;
use crate::reloads::{copy, version, with_replaced_binary};
use crate::support::client::Client;
use crate::support::load::Load;
use crate::support::log::Record;
use crate::support::processes::{children, descriptors, eventually, is_alive, stat, within};
use crate::support::{Launch, Server, signal_process};

pub fn tests() -> Vec<Trial> {
    trials!["upgrades":
        a_chain_of_20_upgrades_under_load_loses_nothing_and_leaks_no_descriptor,
        a_request_in_hand_outlives_the_upgrade,
        an_upgrade_picks_up_a_replaced_binary_before_and_after_reloads,
        a_programs_own_main_is_upgraded_and_its_addresses_may_change,
        an_upgrade_binds_the_removed_path_of_a_unix_socket_anew_and_says_so,
        the_new_master_inherits_no_careless_descriptor_and_stays_in_the_process_group,
    ]
    .into_iter()
    .chain(disturbed::tests())
    .collect()
}

const FAILED: &str = "upgrade failed, this master stays";

fn greets(address: &str) {
    Client::connect(address).and_then(|mut client| client.get("/")).expect(address).greeting();
}

fn pid_in(path: &Path) -> i32 {
    fs::read_to_string(path).expect("a pid file").trim().parse().expect("a pid")
}

fn a_chain_of_20_upgrades_under_load_loses_nothing_and_leaks_no_descriptor() {
    let directory = tempfile::tempdir().expect("a directory");
    let (socket, pid_file) = (directory.path().join("socket"), directory.path().join("pid"));
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let inherited = listener.local_addr().expect("its address").to_string();
    let unix = format!("unix:{}", socket.display());
    let mut server = Launch::hatchery()
        .args(["--workers", "3", "--listen", "127.0.0.1:0", "--listen", "fd:3", "--listen", &unix, "--pid-file"])
        .arg(&pid_file)
        .redirect("3<&0 </dev/null", OwnedFd::from(listener))
        .spawn();
    server.await_serving();
    let addresses = server.addresses();
    assert_eq!(addresses[1..], [inherited, unix]);
    let inode = fs::metadata(&socket).expect("it is bound").ino();
    let held = descriptors(server.pid).len();
    let loads: Vec<Load> = addresses.iter().map(|address| Load::start(address, 1)).collect();
    let mut environment = None;
    for _ in 0..20 {
        server.upgrade();
        assert_eq!(pid_in(&pid_file), server.pid);
        eventually("the master holds what the first one held", || descriptors(server.pid).len() <= held);
        let now = fs::read(format!("/proc/{}/environ", server.pid)).expect("it is there").len();
        assert_eq!(*environment.get_or_insert(now), now, "the environment grows");
        loads.iter().for_each(|load| load.await_answers(20));
    }
    for load in loads {
        let tally = load.stop();
        assert_eq!(tally.lost, [""; 0], "of {} requests", tally.answered);
        println!("{} answered, {} kept connections were closed while idle", tally.answered, tally.closed_while_idle);
    }
    assert_eq!(fs::metadata(&socket).expect("it is still there").ino(), inode);
    assert_eq!(server.addresses()[..3], server.addresses()[60..]);
    eventually("one server is left", || server.processes().len() == 1 + 1 + 3);
    server.assert_no_zombies();
    server.stop();
    assert!(!socket.exists() && !pid_file.exists());
}

fn a_request_in_hand_outlives_the_upgrade() {
    let mut server = Server::start(&["--workers", "2", "--faults"]);
    let mut client = server.client();
    client.ask("/fault/sleep?ms=700").expect("a request");
    let old = server.pid;
    server.signal(Signal::SIGUSR2);
    let new = server.log.wait("the new master", |record| record.is("replaced by a new master, the workers drain"));
    greets(&server.address());
    assert_eq!(client.answer().expect("the answer").status, 200);
    assert_eq!(server.wait().code(), Some(0));
    assert!(!is_alive(old));
    server.follow(new.pid());
    server.stop();
}

fn an_upgrade_picks_up_a_replaced_binary_before_and_after_reloads() {
    let (_directory, mut server) = with_replaced_binary();
    server.upgrade();
    eventually("the new version answers", || version(&server) == "2");
    for _ in 0..2 {
        let mark = server.log.mark();
        server.signal(Signal::SIGHUP);
        server.log.wait_after(mark, "the reload", |record| record.is("reloaded"));
        server.upgrade();
    }
    assert_eq!(version(&server), "2");
    server.stop();
}

fn a_programs_own_main_is_upgraded_and_its_addresses_may_change() {
    let directory = tempfile::tempdir().expect("a directory");
    let (listen, at) = (directory.path().join("listen"), |name: &str| directory.path().join(name));
    let write = |names: [&str; 2]| {
        let lines = names.map(|name| format!("unix:{}\n", at(name).display()));
        fs::write(&listen, format!("127.0.0.1:0\n{}", lines.concat())).expect("a file");
    };
    write(["stays", "goes"]);
    let mut server = Launch::fixture("own-main").variable("HATCHERY_LISTEN", &listen).spawn();
    server.await_serving();
    let before = server.addresses();
    write(["comes", "stays"]);
    let mark = server.log.mark();
    server.upgrade();
    let after: Vec<_> = server.log.all(|record| record.is("listening")).split_off(before.len());
    let after: Vec<_> = after.iter().map(|record| record.str("address")).collect();
    assert_eq!(after[0], before[0], "port 0 is the port that the old master had");
    assert_eq!(after[2], before[1]);
    for address in &after {
        assert!(Client::connect(address).and_then(|mut client| client.exchange("who")).is_ok(), "{address}");
    }
    assert!(!at("goes").exists() && Client::connect(&before[2]).is_err());
    assert_eq!(server.log.wait_after(mark, "the hand-over", |record| record.is("replaced")).pid(), server.pid);
    server.stop();
    assert!(!at("comes").exists() && !at("stays").exists());
}

/// A probe with orders, a pid file and a Unix socket.
struct Probe {
    server: Server,
    orders: Orders,
    directory: tempfile::TempDir,
}

impl Probe {
    fn start(args: &[&str]) -> Probe {
        let (orders, directory) = (Orders::new(), tempfile::tempdir().expect("a directory"));
        let unix = format!("unix:{}", directory.path().join("socket").display());
        let launch = Launch::fixture("probe").args(["--workers", "2", "--listen", &unix, "--arg"]).arg(orders.arg());
        let server = launch.args(args).arg("--pid-file").arg(directory.path().join("pid")).start();
        Probe { server, orders, directory }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Asks for an upgrade, and gives the new master's pid.
    fn begin(&self) -> i32 {
        let mark = self.server.log.mark();
        self.server.signal(Signal::SIGUSR2);
        self.server.log.wait_after(mark, "a new master", |record| record.is("upgrading, a new master starts")).pid()
    }

    /// The same, to a new master that waits in the start of its second worker while the first one serves.
    fn begin_and_wait(&self) -> i32 {
        self.orders.give("start-1", "wait");
        let new = self.begin();
        eventually("it waits", || self.orders.obeyed("start-1"));
        new
    }

    fn await_failure(&self) -> String {
        let mark = self.server.log.count(|record| record.is(FAILED));
        let records = self.server.log.wait_for_many(0, mark.max(1), "the failure", |record| record.is(FAILED));
        records.last().expect("it was waited for").str("why")
    }

    /// The old master, its template and its workers are there, as they were, and nobody else is.
    fn assert_untouched(&self, before: &[i32]) {
        eventually("nothing of the new master is left", || self.server.processes() == before);
        assert_eq!(pid_in(&self.path("pid")), self.server.pid);
        for address in self.server.addresses().iter().take(2) {
            assert!(Client::connect(address).and_then(|mut client| client.exchange("who")).is_ok(), "{address}");
        }
        self.server.assert_no_zombies();
    }

    fn stop(mut self) {
        self.server.stop();
        assert!(!self.path("socket").exists() && !self.path("pid").exists());
    }
}

fn is_bound_anew(record: &Record) -> bool {
    record.is("the path of a Unix socket had been removed or replaced, it is bound anew")
}

fn an_upgrade_binds_the_removed_path_of_a_unix_socket_anew_and_says_so() {
    let mut probe = Probe::start(&[]);
    let unix = probe.server.address();
    let mut early = Client::connect(&unix).expect("it listens");
    fs::remove_file(probe.path("socket")).expect("it is there");
    assert!(early.exchange("who").is_ok(), "who is connected needs no path");
    assert!(Client::connect(&unix).is_err());
    let mark = probe.server.log.mark();
    probe.server.upgrade();
    assert_eq!(probe.server.log.wait_after(mark, "it is said", is_bound_anew).str("address"), unix);
    assert!(Client::connect(&unix).and_then(|mut client| client.exchange("who")).is_ok());
    probe.server.upgrade();
    assert_eq!(probe.server.log.count(is_bound_anew), 1, "where the path is in place there is nothing to do");
    assert!(Client::connect(&unix).and_then(|mut client| client.exchange("who")).is_ok());
    probe.stop();
}

fn the_new_master_inherits_no_careless_descriptor_and_stays_in_the_process_group() {
    let careless = tempfile::NamedTempFile::new().expect("a file");
    let stdin = fs::File::open(careless.path()).expect("it is there");
    let mut server = Launch::hatchery().args(["--workers", "2"]).redirect("7<&0 </dev/null", stdin).start();
    let path = careless.path().to_str().expect("a path");
    let holds = |pid: i32| descriptors(pid).values().any(|target| target == path);
    assert!(holds(server.pid), "the master was to be careless");
    let group = stat(server.pid).expect("it is there").group;
    server.upgrade();
    assert!(!holds(server.pid), "{:?}", descriptors(server.pid));
    assert_eq!(stat(server.pid).expect("it is there").group, group, "a terminal's Ctrl-C would not reach it");
    server.stop();
}
