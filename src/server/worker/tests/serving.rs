//! Connections and their requests, as a worker serves them.

use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::thread;
use std::time::Duration;

use nix::sys::resource::{Resource, setrlimit};
use proptest::collection::vec;
use proptest::prelude::{ProptestConfig, prop_assert_eq, proptest};
use socket2::SockRef;

use super::*;
use crate::server::Slot;
use crate::server::worker_config::Listened;

#[test]
fn a_connection_is_parked_between_its_requests() {
    let worker = TestWorker::start(config());
    let (mut first, mut second) = (worker.client(), worker.client());
    for _ in 0..3 {
        assert_eq!(first.ask("one"), "one\n");
        assert_eq!(second.ask("two"), "two\n");
    }
    assert_eq!(first.ask("close"), "close\n");
    first.sees_the_end();
    assert_eq!(second.ask("two"), "two\n");
    let record = worker.record();
    assert_eq!((record.connections, record.parked, record.pid), (2, 1, std::process::id()));
    assert!(record.requests >= 7, "{}", record.requests);
}

#[test]
fn all_families_of_listeners_are_served() {
    let worker = TestWorker::start_on("[::1]:0", config());
    assert_eq!(worker.client().ask("six"), "six\n");

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let listener = UnixListener::bind(&path).unwrap();
    let acceptor = Acceptor::from_fd(listener.into(), "unix".to_owned()).unwrap();
    let (_master, _thread) = spawn(acceptor, config(), &Board::new(1).unwrap());
    let mut client = Client::new(UnixStream::connect(&path).unwrap());
    assert_eq!(client.ask("unix"), "unix\n");
    assert_eq!(client.ask("again"), "again\n");
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let worker = TestWorker::start(config());
    let mut client = worker.client();
    let lines: Vec<String> = (0..10_000).map(|n| format!("line {n}\n")).collect();
    let mut sender = client.0.get_ref().try_clone().unwrap();
    let all = lines.concat();
    let sending = thread::spawn(move || sender.write_all(all.as_bytes()).unwrap());
    for line in &lines {
        assert_eq!(&client.line(), line);
    }
    sending.join().unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(40) })]

    #[test]
    fn answers_do_not_depend_on_how_the_bytes_arrive(
        lines in vec("[a-z]{0,70}", 1..60),
        pieces in vec(1..200usize, 1..20),
    ) {
        // Some lines mean something to the service.
        let lines: Vec<String> = lines.iter().map(|line| format!("-{line}\n")).collect();
        let worker = TestWorker::start(config());
        let mut client = worker.client();
        let (all, mut sent) = (lines.concat(), 0);
        for piece in pieces.iter().cycle() {
            let end = all.len().min(sent + piece);
            client.send(&all[sent..end]);
            sent = end;
            if sent == all.len() {
                break;
            }
        }
        for line in &lines {
            prop_assert_eq!(&client.line(), line);
        }
        worker.ask_to_drain();
        client.sees_the_end();
        worker.ends_well();
    }
}

#[test]
fn slow_senders_hold_nobody_up() {
    let worker = TestWorker::start(config());
    let mut slow: Vec<_> = (0..50).map(|_| worker.client()).collect();
    for letter in ["s", "l", "o", "w"] {
        slow.iter_mut().for_each(|client| client.send(letter));
        assert_eq!(worker.client().ask("honest"), "honest\n");
    }
    for client in &mut slow {
        assert_eq!(client.ask(""), "slow\n");
    }
}

#[test]
fn a_lingering_close_lets_the_client_read_its_answer() {
    let worker = TestWorker::start(config());
    let mut client = worker.client();
    client.send("linger\n");
    client.send(vec![b'x'; 100_000]);
    assert_eq!(client.line(), "linger\n");
    client.sees_the_end();
    // Still no reset: the worker goes on dropping what comes.
    client.send(vec![b'x'; 100_000]);
    client.0.get_ref().shutdown(Shutdown::Write).unwrap();
    assert!(client.0.get_ref().take_error().unwrap().is_none());
}

#[test]
fn a_panic_closes_the_connection_and_the_worker_lives() {
    let worker = TestWorker::start(config());
    let mut client = worker.client();
    client.send("before\npanic\n");
    assert_eq!(client.line(), "before\n");
    client.sees_the_end();
    assert_eq!(worker.client().ask("alive"), "alive\n");
}

#[test]
fn after_an_error_what_was_written_is_sent() {
    let worker = TestWorker::start(config());
    let mut client = worker.client();
    assert_eq!(client.ask("fail"), "fail\n");
    client.sees_the_end();
    assert_eq!(worker.client().ask("alive"), "alive\n");
}

#[test]
fn a_client_that_goes_away_harms_nobody() {
    let worker = TestWorker::start(config());
    for _ in 0..100 {
        let mut gone = worker.client();
        gone.send("one\ntwo\n");
        SockRef::from(gone.0.get_ref()).set_linger(Some(Duration::ZERO)).unwrap();
    }
    assert_eq!(worker.client().ask("alive"), "alive\n");
}

#[test]
fn without_descriptors_the_worker_waits_and_loses_nobody() {
    if !is_child() {
        let test = "server::worker::tests::serving::without_descriptors_the_worker_waits_and_loses_nobody";
        let status = child_of(test).status().unwrap();
        assert!(status.success(), "{status}");
        return;
    }
    let worker = TestWorker::start(config());
    let mut first = worker.client();
    assert_eq!(first.ask("one"), "one\n");
    let mut second = worker.client();
    assert_eq!(second.ask("hold"), "hold\n");
    let mut third = worker.client();
    third.send("three\n");
    // From now on no descriptor can be made; those that are open stay.
    setrlimit(Resource::RLIMIT_NOFILE, 3, 1024).unwrap();
    second.send("released\n");
    assert_eq!(second.line(), "released\n");
    // Parked connections are served while the accept waits.
    assert_eq!(first.ask("two"), "two\n");
    assert_eq!(worker.record().connections, 2);
    setrlimit(Resource::RLIMIT_NOFILE, 1024, 1024).unwrap();
    assert_eq!(third.line(), "three\n");
}

/// A listener of a slot, and a second hand on it.
fn queue_of_a_slot() -> (TcpListener, OwnedFd, String) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let given = listener.try_clone().unwrap().into();
    let address = listener.local_addr().unwrap().to_string();
    (listener, given, address)
}

#[test]
fn who_cannot_stand_in_for_one_slot_stands_in_for_none() {
    let own = Listened { address: "own".to_owned(), own: true };
    let worker = TestWorker::start(WorkerConfig { listeners: vec![own], ..config() });
    let heard = || match worker.master.recv() {
        Ok(Received::Message { message, .. }) => message,
        other => panic!("{other:?}"),
    };
    assert_eq!(heard(), FromWorker::CanStandIn);
    let (first, given, address) = queue_of_a_slot();
    let order = ToWorker::StandIn { slot: Slot(1), addresses: vec![address.clone()] };
    worker.master.send(&order, &[given]).unwrap();
    assert_eq!(Client::new(TcpStream::connect(&address).unwrap()).ask("close"), "close\n");

    // Of two sockets one has got lost on the way.
    let (second, given, other) = queue_of_a_slot();
    let order = ToWorker::StandIn { slot: Slot(2), addresses: vec![other.clone(), other] };
    worker.master.send(&order, &[given]).unwrap();
    assert_eq!(heard(), FromWorker::CannotStandIn);
    assert_eq!(worker.client().ask("close"), "close\n", "its own clients are served");
    for listener in [first, second] {
        let _client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        assert_eq!(worker.client().ask("close"), "close\n");
        listener.accept().expect("the client is left to others");
    }
    worker.ask_to_drain();
    worker.ends_well();
}
