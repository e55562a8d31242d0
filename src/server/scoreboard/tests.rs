use std::sync::atomic::AtomicBool;
use std::thread;
use std::time::Duration;

use super::*;
use crate::server::testing;

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn a_reader_sees_what_the_worker_wrote() {
    let board = Board::new(3).unwrap();
    assert_eq!(board.capacity(), 3);
    let started = Monotonic::now();
    let deadlines = Some((started.after(SECOND), started.after(2 * SECOND)));
    let birth = WorkerBirth { slot: Slot(7), generation: Generation(2), id: WorkerId(1 << 40), record: 1 };
    let record = Record::map(board.as_fd(), &birth, 4321).unwrap();
    record.set_state(WorkerState::Busy);
    record.set_requests(5);
    record.set_aborted(1);
    record.set_connections(4);
    record.set_parked(3);
    record.begin_request(started, Peer::Unix);
    record.set_deadlines(started.after(SECOND), started.after(2 * SECOND));
    record.set_label(b"GET /");
    let expected = Snapshot {
        id: WorkerId(1 << 40),
        pid: 4321,
        slot: Slot(7),
        generation: Generation(2),
        state: WorkerState::Busy,
        requests: 5,
        aborted: 1,
        connections: 4,
        parked: 3,
        request_started: Some(started),
        peer: Some(Peer::Unix),
        label: b"GET /".to_vec(),
        trace: Vec::new(),
    };
    assert_eq!(board.read(1), Some(expected));
    let tally = Tally { id: WorkerId(1 << 40), state: WorkerState::Busy, requests: 5, parked: 3 };
    assert_eq!(board.tally(1), Some(tally));
    assert_eq!((board.tally(0), board.tally(3)), (None, None));
    let in_hand = RequestInHand { id: WorkerId(1 << 40), started, deadlines };
    assert_eq!(board.request_in_hand(1), Some(in_hand));
    record.end_request();
    assert_eq!(board.request_in_hand(1), None, "it rests");
    assert_eq!(board.read(0), None, "a record that nobody writes");
    assert_eq!(board.read(3), None, "beyond the capacity");
}

#[test]
fn the_next_worker_begins_the_record_anew() {
    let board = Board::new(1).unwrap();
    let first = testing::record(&board);
    first.set_requests(5);
    first.set_label(b"half of a lab");
    // It died in the middle of the next label.
    first.store(at::LABEL_VERSION, 7);
    assert_eq!(board.read(0).unwrap().label, b"");

    let second = testing::record(&board);
    let snapshot = board.read(0).unwrap();
    assert_eq!((snapshot.requests, snapshot.label), (0, Vec::new()));
    second.set_label(b"whole");
    assert_eq!(board.read(0).unwrap().label, b"whole");
}

#[test]
fn a_label_is_cut_at_its_limit() {
    let board = Board::new(1).unwrap();
    let record = testing::record(&board);
    record.set_label(&[b'x'; LABEL_BYTES + 1]);
    assert_eq!(board.read(0).unwrap().label, [b'x'; LABEL_BYTES]);
    record.set_label(b"y");
    assert_eq!(record.label(), b"y");
}

#[test]
fn a_reader_never_sees_a_torn_label() {
    let board = Board::new(1).unwrap();
    let record = testing::record(&board);
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                record.set_label(&[b'a'; LABEL_BYTES]);
                record.set_label(&[b'b'; LABEL_BYTES / 2]);
            }
        });
        for _ in 0..20_000 {
            let label = board.read(0).unwrap().label;
            let whole = [&[b'a'; LABEL_BYTES][..], &[b'b'; LABEL_BYTES / 2], b""];
            assert!(whole.contains(&&*label), "{:?}", String::from_utf8_lossy(&label));
        }
        done.store(true, Ordering::Relaxed);
    });
}

#[test]
fn a_worker_maps_its_own_page_and_no_other() {
    let board = Board::new(4).unwrap();
    let record = testing::record(&board);
    assert_eq!(record.words.len(), WORDS);
    let birth = WorkerBirth { record: 4, ..testing::birth() };
    assert!(Record::map(board.as_fd(), &birth, 1).is_err(), "beyond the capacity");
}
