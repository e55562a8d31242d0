//! Requests are counted, however they end: once each, and those whose client has left as aborted too.

use std::net::Shutdown;
use std::time::Duration;

use socket2::SockRef;

use super::*;

/// Lets a request, or some, come to their end and gives the worker's record after its own.
type Way = fn(TestWorker) -> Snapshot;

/// Each way in which a request ends, with how many that are, and how many of them aborted.
const WAYS: [(&str, u64, u64, Way); 19] = [
    ("no request at all", 0, 0, |worker| {
        drop(worker.client());
        record_of(worker)
    }),
    ("answered, and its client stays", 1, 0, |worker| {
        assert_eq!(worker.client().ask("one"), "one\n");
        record_of(worker)
    }),
    ("answered with others that came with it", 3, 0, |worker| {
        let mut client = worker.client();
        assert_eq!(client.ask("one\ntwo\nthree"), "one\n");
        assert_eq!((client.line(), client.line()), ("two\n".to_owned(), "three\n".to_owned()));
        record_of(worker)
    }),
    ("answered and closed", 1, 0, |worker| cut(worker, "close")),
    ("answered and closed slowly", 1, 0, |worker| cut(worker, "linger")),
    ("failed", 1, 0, |worker| cut(worker, "fail")),
    ("panicked", 1, 0, |worker| {
        let mut client = worker.client();
        client.send("panic\n");
        client.sees_the_end();
        record_of(worker)
    }),
    ("not received in time", 1, 0, |worker| {
        let mut client = worker.client();
        client.send("soon, but ne");
        assert_eq!(client.line(), "late\n");
        client.sees_the_end();
        record_of(worker)
    }),
    ("interrupted by its deadline", 1, 0, |worker| cut(worker, "brief hold")),
    ("cut by its deadline in its answer", 1, 0, |worker| {
        let mut client = worker.client();
        client.send("brief flood\n");
        client.reads_to_the_end();
        record_of(worker)
    }),
    ("left in the middle of its answer", 1, 1, |worker| {
        assert_eq!(worker.client().ask("flood"), "flood\n");
        record_of(worker)
    }),
    ("left when nothing more of its answer is taken", 1, 1, |worker| {
        let mut client = worker.client();
        assert_eq!(client.ask("flood"), "flood\n");
        // In each round at least 64 KiB more are written, until the kernel keeps no more of them.
        (0..300).for_each(|_| worker.has_parked_a_part());
        drop(client);
        record_of(worker)
    }),
    ("left before its client has sent all of it", 1, 1, |worker| {
        worker.client().send("one and no m");
        record_of(worker)
    }),
    ("reset before its client has sent all of it", 2, 1, |worker| {
        let mut client = worker.client();
        assert_eq!(client.ask("one"), "one\n");
        client.send("two and no m");
        worker.has_parked_a_part();
        client.resets();
        record_of(worker)
    }),
    ("reset while it is worked at", 1, 1, |worker| {
        let mut client = worker.client();
        assert_eq!(client.ask("hold"), "hold\n");
        client.resets();
        record_of(worker)
    }),
    ("in hand when the worker is asked to drain", 1, 0, |worker| {
        let mut client = worker.client();
        assert_eq!(client.ask("hold"), "hold\n");
        worker.ask_to_drain();
        assert_eq!(client.ask("released"), "released\n");
        client.sees_the_end();
        record_of(worker)
    }),
    ("incomplete when the worker is asked to drain", 2, 0, |worker| {
        let mut client = worker.client();
        assert_eq!(client.ask("one"), "one\n");
        client.send("tw");
        worker.has_parked_a_part();
        worker.ask_to_drain();
        assert!(client.ask("o").starts_with("two"));
        client.sees_the_end();
        record_of(worker)
    }),
    ("not received in time by a worker that drains", 1, 0, |worker| {
        let mut client = worker.client();
        client.send("soon, but ne");
        worker.has_parked_a_part();
        worker.ask_to_drain();
        assert_eq!(client.line(), "late\n");
        client.sees_the_end();
        record_of(worker)
    }),
    ("incomplete when the master is gone", 1, 0, |worker| {
        let mut client = worker.client();
        client.send("one and no m");
        worker.has_parked_a_part();
        let TestWorker { board, master, thread, .. } = worker;
        drop(master);
        assert_eq!(client.line(), "late\n");
        thread.join().unwrap().unwrap();
        board.read(0).unwrap()
    }),
];

#[test]
fn a_request_is_counted_once_however_it_ends() {
    for (way, requests, aborted, end) in WAYS {
        let worker = TestWorker::start(WorkerConfig { idle_timeout: Some(Duration::from_secs(3600)), ..config() });
        let record = end(worker);
        assert_eq!((record.requests, record.aborted), (requests, aborted), "{way}");
        assert_eq!(record.parked, 0, "{way}");
    }
}

/// A request that ends with its connection.
fn cut(worker: TestWorker, line: &str) -> Snapshot {
    let mut client = worker.client();
    assert_eq!(client.ask(line), format!("{}\n", line.trim_start_matches("brief ")));
    client.sees_the_end();
    drop(client);
    record_of(worker)
}

/// The worker's record, after its end: then all is counted.
fn record_of(worker: TestWorker) -> Snapshot {
    // One that has left already is not there to be asked.
    let _ = worker.master.send(&ToWorker::Drain, &[]);
    worker.thread.join().unwrap().unwrap();
    worker.board.read(0).unwrap()
}

impl TestWorker {
    /// Waits until the worker has received what was sent so far: it looks at whom it has before it lets in another.
    fn has_parked_a_part(&self) {
        let mut other = self.client();
        other.0.get_ref().shutdown(Shutdown::Write).unwrap();
        other.sees_the_end();
    }
}

impl Client<TcpStream> {
    fn resets(self) {
        SockRef::from(self.0.get_ref()).set_linger(Some(Duration::ZERO)).unwrap();
    }

    fn reads_to_the_end(&mut self) {
        let mut buffer = vec![0; 65536];
        // Cut with something unsent, it may end in a reset.
        while self.0.get_mut().read(&mut buffer).is_ok_and(|count| count > 0) {}
    }
}
