//! The pid file: there while the server runs, gone at its end, and never two servers' at once.

use std::fs;
use std::path::{Path, PathBuf};

use libtest_mimic::Trial;
use nix::sys::signal::Signal;

use crate::support::processes::{eventually, is_alive};
use crate::support::{Launch, Server};

pub fn tests() -> Vec<Trial> {
    trials!["pid_files":
        it_holds_the_masters_pid_and_goes_with_it,
        it_goes_when_the_boot_fails,
        a_second_server_with_the_same_file_refuses,
        after_a_kill_9_a_new_server_starts,
        what_is_no_pid_file_is_left_alone,
    ]
}

fn launch(path: &Path) -> Launch {
    Launch::hatchery().args(["--workers", "2", "--pid-file"]).arg(path)
}

fn directory() -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("server.pid");
    (directory, path)
}

fn says(path: &Path, server: &Server) -> bool {
    fs::read_to_string(path).expect("a pid file") == format!("{}\n", server.pid)
}

fn it_holds_the_masters_pid_and_goes_with_it() {
    let (_directory, path) = directory();
    let mut server = launch(&path).start();
    assert!(says(&path, &server));
    server.stop();
    assert!(!path.exists());
}

fn it_goes_when_the_boot_fails() {
    let (directory, path) = directory();
    let holder = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = holder.local_addr().expect("its address").to_string();
    launch(&path).args(["--listen", &address]).fail().expect(3, &[&address]);
    assert_eq!(fs::read_dir(directory.path()).expect("it is there").count(), 0);
}

fn a_second_server_with_the_same_file_refuses() {
    let (_directory, path) = directory();
    let first = launch(&path).start();
    let failed = launch(&path).args(["--listen", "127.0.0.1:0"]).fail();
    failed.expect(3, &[&format!("process {} runs and holds it", first.pid)]);
    assert!(says(&path, &first));
    first.get("/").greeting();
}

fn after_a_kill_9_a_new_server_starts() {
    let (_directory, path) = directory();
    let first = launch(&path).start();
    first.signal(Signal::SIGKILL);
    // Its workers hold no lock for it: a new one may start before they are gone.
    eventually("the master is gone", || !is_alive(first.pid));
    let mut second = launch(&path).start();
    assert!(says(&path, &second));
    second.stop();
    assert!(!path.exists());
}

fn what_is_no_pid_file_is_left_alone() {
    let (_directory, path) = directory();
    fs::write(&path, "a poem, not a number").expect("a file");
    launch(&path).args(["--listen", "127.0.0.1:0"]).fail().expect(3, &["left alone"]);
    assert_eq!(fs::read_to_string(&path).expect("it is there"), "a poem, not a number");
}
