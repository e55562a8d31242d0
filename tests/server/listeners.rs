//! Where a server listens: every kind of address, several at once, and what happens to files in the way.

use std::fs;
use std::io::Write;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;

use libtest_mimic::Trial;
use nix::sys::signal::Signal;

use crate::support::client::Client;
use crate::support::processes::{eventually, is_alive};
use crate::support::{Launch, Server};

pub fn tests() -> Vec<Trial> {
    trials!["listeners":
        every_kind_of_address_is_served_at_once,
        the_real_address_of_port_0_is_logged,
        an_inherited_listener_is_served,
        a_unix_socket_is_removed_at_the_end,
        a_stale_unix_socket_is_replaced,
        a_live_unix_socket_is_refused,
        another_file_at_the_path_is_left_alone,
    ]
}

fn greets(address: &str) {
    Client::connect(address).and_then(|mut client| client.get("/")).expect(address).greeting();
}

/// A server at these addresses alone.
fn serve_at(addresses: &[&str]) -> Server {
    let listen = addresses.iter().flat_map(|address| ["--listen", address]);
    let server = Launch::hatchery().args(["--workers", "2"]).args(listen).spawn();
    server.await_serving();
    server
}

fn every_kind_of_address_is_served_at_once() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = format!("unix:{}", directory.path().join("socket").display());
    let name = format!("unix:@hatchery-test-{}", std::process::id());
    let mut server = serve_at(&["127.0.0.1:0", "[::1]:0", "tcp:localhost:0", &path, &name]);
    let addresses = server.addresses();
    assert_eq!(addresses.len(), 5);
    assert!(addresses[1].starts_with("[::1]:"));
    assert_eq!(addresses[3..], [path, name]);
    for address in &addresses {
        greets(address);
    }
    server.stop();
    for address in &addresses {
        assert!(Client::connect(address).is_err(), "{address}");
    }
}

fn the_real_address_of_port_0_is_logged() {
    let server = serve_at(&["127.0.0.1:0"]);
    let address = server.address();
    assert!(address.starts_with("127.0.0.1:") && !address.ends_with(":0"), "{address}");
    greets(&address);
}

fn an_inherited_listener_is_served() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("its address").to_string();
    let launch = Launch::hatchery().args(["--listen", "fd:3", "--workers", "2"]);
    let server = launch.redirect("3<&0 </dev/null", OwnedFd::from(listener)).spawn();
    server.await_serving();
    assert_eq!(server.addresses(), std::slice::from_ref(&address));
    greets(&address);
}

fn a_unix_socket_is_removed_at_the_end() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("socket");
    let mut server = serve_at(&[&format!("unix:{}", path.display())]);
    assert!(path.exists());
    server.stop();
    assert!(!path.exists());
}

fn a_stale_unix_socket_is_replaced() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("socket");
    let address = format!("unix:{}", path.display());
    let first = serve_at(&[&address]);
    let all = first.processes();
    first.signal(Signal::SIGKILL);
    eventually("the killed server's processes are gone", || !all.iter().any(|&pid| is_alive(pid)));
    assert!(path.exists());
    let mut second = serve_at(&[&address]);
    greets(&address);
    second.stop();
}

fn a_live_unix_socket_is_refused() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("socket");
    let address = format!("unix:{}", path.display());
    let _live = UnixListener::bind(&path).expect("a live socket");
    Launch::hatchery().args(["--listen", &address]).fail().expect(3, &[&address, "a running server answers"]);
    assert!(path.exists());
}

fn another_file_at_the_path_is_left_alone() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("precious");
    fs::File::create(&path).and_then(|mut file| file.write_all(b"data")).expect("a file");
    let address = format!("unix:{}", path.display());
    Launch::hatchery().args(["--listen", &address]).fail().expect(3, &[&address, "a regular file", "left alone"]);
    assert_eq!(fs::read(&path).expect("it is there"), b"data");
}
