//! The socket itself: where it stands, who may open it, and what becomes of it with its server.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use hatchery::control;
use hatchery::server::{Generation, ServerState, WorkerActivity};
use libtest_mimic::Trial;
use nix::sys::signal::Signal;

use super::{Control, End, Place};
use crate::fixtures::Orders;
use crate::reloads::copy;
use crate::support::processes::{descriptors, eventually, is_alive};
use crate::support::{Launch, PATIENCE};

pub fn tests() -> Vec<Trial> {
    trials!["control":
        the_status_tells_each_slot_and_what_its_worker_is_at,
        the_socket_is_its_users_alone_and_goes_with_the_server,
        after_kill_9_of_the_master_a_new_server_takes_the_path,
        a_path_that_is_taken_fails_the_boot_and_is_left_alone,
        an_abstract_name_and_a_service_of_ones_own_are_controlled_in_the_same_way,
        another_user_is_refused,
        workers_and_templates_hold_no_control_socket,
        the_path_answers_all_through_upgrades_and_the_new_master_answers_after_them,
        an_upgrade_that_fails_leaves_the_old_master_answering,
        a_reload_under_way_is_called_off_by_an_upgrade_and_who_waits_is_told,
        an_upgrade_binds_the_removed_path_anew,
    ]
}

fn launch(place: &Place) -> Launch {
    place.launch(Launch::hatchery().args(["--workers", "2"]))
}

fn the_status_tells_each_slot_and_what_its_worker_is_at() {
    let place = Place::new();
    let mut server = place.launch(Launch::hatchery().args(["--workers", "3", "--faults"])).start();
    let status = place.control().status();
    assert_eq!((status.pid as i32, status.workers, status.generation), (server.pid, 3, Generation(1)));
    assert_eq!((status.state, status.upgrading, status.incoming), (ServerState::Serving, false, None));
    let workers = server.workers();
    for (number, slot) in status.slots.iter().enumerate() {
        let [worker] = slot.workers.as_slice() else { panic!("{slot:?}") };
        assert_eq!((slot.slot.0 as usize, worker.pid), (number, Some(workers[&(number as u64)])));
        assert_eq!((worker.state, worker.requests, worker.request_ms), (WorkerActivity::Idle, 0, None));
    }
    let mut client = server.client_that_asks("/fault/sleep?ms=800");
    let busy = || {
        let status = place.control().status();
        let mut workers = status.slots.into_iter().flat_map(|slot| slot.workers);
        workers.find(|worker| worker.state == WorkerActivity::Busy)
    };
    eventually("the request is seen", || busy().is_some_and(|worker| worker.label.contains("/fault/sleep")));
    assert!(busy().is_none_or(|worker| worker.connections == 1 && worker.request_ms.is_some()));
    client.answer().expect("the answer");
    let counted = || place.control().status().slots.iter().map(|slot| slot.workers[0].requests).sum::<u64>();
    eventually("it is counted", || counted() == 1);
    let json = End::of(place.control().command("status", &["--json"]).output().expect("the command runs"));
    let read: hatchery::server::Status = serde_json::from_str(&json.out).expect("JSON");
    assert_eq!((read.slots.len(), read.pid), (3, status.pid));
    server.stop();
}

fn the_socket_is_its_users_alone_and_goes_with_the_server() {
    let place = Place::new();
    let mut server = launch(&place).start();
    let metadata = fs::metadata(&place.path).expect("it is there");
    assert_eq!(metadata.permissions().mode() & 0o777, 0o600);
    server.stop();
    assert!(!place.path.exists());
}

fn after_kill_9_of_the_master_a_new_server_takes_the_path() {
    let place = Place::new();
    let mut server = launch(&place).start();
    server.signal(Signal::SIGKILL);
    server.wait();
    assert!(place.path.exists(), "nobody was left to remove it");
    let mut next = launch(&place).start();
    assert_eq!(place.control().status().pid as i32, next.pid);
    next.stop();
    assert!(!place.path.exists());
}

fn a_path_that_is_taken_fails_the_boot_and_is_left_alone() {
    let place = Place::new();
    let first = launch(&place).start();
    let failed = || launch(&place).args(["--listen", "127.0.0.1:0"]).fail();
    failed().expect(3, &["a running server answers there", &place.path.display().to_string()]);
    assert_eq!(place.control().status().pid as i32, first.pid);
    drop(first);
    let _ = fs::remove_file(&place.path);
    fs::write(&place.path, "precious").expect("a file");
    failed().expect(3, &["a regular file"]);
    assert_eq!(fs::read(&place.path).expect("it is there"), b"precious");
    // What it was to listen on as well is free again, and gone.
    fs::remove_file(&place.path).expect("it is there");
    let listen = format!("unix:{}", place.path.display());
    launch(&place).args(["--listen", &listen]).fail().expect(3, &["remove one of the two"]);
    assert!(!place.path.exists());
}

fn an_abstract_name_and_a_service_of_ones_own_are_controlled_in_the_same_way() {
    let control = Control(format!("unix:@hatchery-test-{}", std::process::id()));
    let mut server = Launch::fixture("probe").args(["--workers", "2", "--control", &control.0]).start();
    control.reload(&[]).end().expect(0, "generation 2 serves");
    assert_eq!(control.status().generation, Generation(2));
    server.upgrade();
    assert_eq!(control.status().pid as i32, server.pid);
    server.stop();
    control.reload(&[]).end().expect(4, "no server answers");
}

fn another_user_is_refused() {
    const NOBODY: u32 = 65_534;
    let place = Place::new();
    let mut server = launch(&place).start();
    if !nix::unistd::geteuid().is_root() {
        // There is no other user to be; the mode is all that keeps one out here.
        assert_eq!(fs::metadata(&place.path).expect("it is there").permissions().mode() & 0o077, 0);
        return;
    }
    fs::set_permissions(place.directory(), fs::Permissions::from_mode(0o755)).expect("it is ours");
    // Where the program lies, nobody but root may be able to look.
    let program = copy(place.directory(), Path::new(env!("CARGO_BIN_EXE_hatchery")));
    let ask = |name: &str| {
        let mut command = Command::new(&program);
        command.args([name, "--control"]).arg(&place.path).uid(NOBODY).gid(NOBODY);
        End::of(command.output().expect("the command runs"))
    };
    ask("status").expect(4, "Permission denied");
    // Where the mode lets everybody in, the kernel tells who has come.
    fs::set_permissions(&place.path, fs::Permissions::from_mode(0o666)).expect("it is ours");
    for name in ["status", "reload"] {
        ask(name).expect(4, "refuses: only the user whom the server runs as, and root, may speak here");
    }
    assert_eq!(place.control().status().generation, Generation(1));
    assert_eq!(server.log.count(|record| record.is("reloading")), 0);
    server.stop();
}

fn workers_and_templates_hold_no_control_socket() {
    let place = Place::new();
    let with = launch(&place).start();
    let client = UnixStream::connect(&place.path).expect("it answers");
    place.control().reload(&[]).end().expect(0, "generation 2");
    eventually("the old generation is gone", || with.processes().len() == 1 + 1 + 2);
    let without = Launch::hatchery().args(["--workers", "2"]).start();
    let held = |pid: i32| descriptors(pid).len();
    let most = |server: &crate::support::Server| server.workers().into_values().map(held).max().expect("a worker");
    assert_eq!((held(with.template()), most(&with)), (held(without.template()), most(&without)));
    drop(client);
}

fn the_path_answers_all_through_upgrades_and_the_new_master_answers_after_them() {
    let place = Place::new();
    let mut server = launch(&place).start();
    let inode = fs::metadata(&place.path).expect("it is there").ino();
    let held = descriptors(server.pid).len();
    let done = Arc::new(AtomicBool::new(false));
    let asker = {
        let (address, done) = (place.control().address(), Arc::clone(&done));
        std::thread::spawn(move || {
            let mut answers = 0;
            while !done.load(Ordering::Relaxed) {
                let answer = control::status(&address, Some(PATIENCE));
                assert!(answer.is_ok(), "after {answers} answers: {answer:?}");
                answers += 1;
            }
            answers
        })
    };
    for _ in 0..5 {
        let old = server.pid;
        server.upgrade();
        assert!(!is_alive(old));
        assert_eq!(place.control().status().pid as i32, server.pid);
        place.control().reload(&[]).end().expect(0, "reloaded");
    }
    done.store(true, Ordering::Relaxed);
    let answers = asker.join().expect("each question was answered");
    assert!(answers > 5, "{answers} answers");
    assert_eq!(fs::metadata(&place.path).expect("it is still there").ino(), inode);
    eventually("no descriptor is left", || descriptors(server.pid).len() <= held);
    server.stop();
    assert!(!place.path.exists());
}

fn an_upgrade_that_fails_leaves_the_old_master_answering() {
    let (place, orders) = (Place::new(), Orders::new());
    let mut server = place.launch(Launch::fixture("probe").args(["--workers", "2", "--arg"]).arg(orders.arg())).start();
    orders.give("preload", "wait");
    orders.give("start", "fail no licence");
    server.signal(Signal::SIGUSR2);
    eventually("the new master boots", || orders.obeyed("preload"));
    let status = place.control().status();
    assert_eq!((status.pid as i32, status.state, status.upgrading), (server.pid, ServerState::Upgrading, true));
    orders.take_back("preload");
    server.log.wait("the failure", |record| record.is("upgrade failed, this master stays"));
    let status = place.control().status();
    assert_eq!((status.pid as i32, status.state), (server.pid, ServerState::Serving));
    orders.take_back("start");
    place.control().reload(&[]).end().expect(0, "generation 2 serves");
    server.stop();
    assert!(!place.path.exists());
}

fn a_reload_under_way_is_called_off_by_an_upgrade_and_who_waits_is_told() {
    let (place, orders) = (Place::new(), Orders::new());
    // What hangs in its start hears nothing, and is killed when that time is over.
    let args = ["--workers", "2", "--graceful-timeout", "500ms", "--arg"];
    let mut server = place.launch(Launch::fixture("probe").args(args).arg(orders.arg())).start();
    orders.give("start-1", "hang");
    let asked = place.control().reload(&[]);
    eventually("the roll is under way", || orders.obeyed("start-1"));
    orders.take_back("start-1");
    server.upgrade();
    asked.end().expect(1, "the reload was called off: a new master takes this one's place\n");
    server.log.wait("it in the log", |record| record.is("reload called off"));
    server.stop();
}

fn an_upgrade_binds_the_removed_path_anew() {
    let place = Place::new();
    let mut server = launch(&place).start();
    fs::remove_file(&place.path).expect("it was there");
    server.upgrade();
    assert_eq!(place.control().status().pid as i32, server.pid);
    assert_eq!(fs::metadata(&place.path).expect("it is there").permissions().mode() & 0o777, 0o600);
    server.stop();
    assert!(!place.path.exists());
}
