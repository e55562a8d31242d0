//! Clients that ask without pause and count what they lose.

use std::collections::BTreeSet;
use std::io::{self, ErrorKind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

use super::client::{Answer, Client};
use super::processes;

/// Some clients with one connection each that they keep, and as many with a connection per request.
pub struct Load {
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicU64>,
    clients: Vec<JoinHandle<Tally>>,
}

/// What the clients have seen.
#[derive(Debug, Default)]
pub struct Tally {
    pub answered: u64,
    /// A kept connection was closed before the first byte of an answer. RFC 9112, section 9.3.1 has the client
    /// ask again on a new connection, and what happens there counts.
    pub closed_while_idle: u64,
    pub lost: Vec<String>,
    pub generations: BTreeSet<u64>,
}

impl Load {
    /// Starts two times `pairs` clients of `GET /`, and waits until each kind has got answers.
    pub fn start(address: &str, pairs: usize) -> Load {
        let stop = Arc::new(AtomicBool::new(false));
        let answered = Arc::new(AtomicU64::new(0));
        let clients = (0..2 * pairs)
            .map(|index| {
                let (stop, answered, address) = (Arc::clone(&stop), Arc::clone(&answered), address.to_owned());
                std::thread::spawn(move || {
                    let mut asker = Asker { address, keeps: index % 2 == 0, kept: None, tally: Tally::default() };
                    while !stop.load(Ordering::Relaxed) {
                        asker.ask();
                        answered.fetch_add(1, Ordering::Relaxed);
                    }
                    asker.tally
                })
            })
            .collect();
        let load = Load { stop, answered, clients };
        load.await_answers(100);
        load
    }

    /// Waits for so many answers from now on.
    #[track_caller]
    pub fn await_answers(&self, count: u64) {
        let until = self.answered.load(Ordering::Relaxed) + count;
        processes::eventually("the clients are answered", || self.answered.load(Ordering::Relaxed) >= until);
    }

    pub fn stop(mut self) -> Tally {
        self.stop.store(true, Ordering::Relaxed);
        let mut sum = Tally::default();
        for client in self.clients.drain(..) {
            let tally = client.join().expect("a client does not panic");
            sum.answered += tally.answered;
            sum.closed_while_idle += tally.closed_while_idle;
            sum.lost.extend(tally.lost);
            sum.generations.extend(tally.generations);
        }
        sum
    }
}

/// A test that has failed leaves no clients behind: its server's port is soon another test's.
impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

struct Asker {
    address: String,
    keeps: bool,
    kept: Option<Client>,
    tally: Tally,
}

impl Asker {
    fn ask(&mut self) {
        if let Some(mut client) = self.kept.take() {
            match client.get("/") {
                Ok(answer) => return self.answered(answer, client),
                Err(error) if is_closed(&error) => self.tally.closed_while_idle += 1,
                Err(error) => return self.tally.lost.push(format!("on a kept connection: {error}")),
            }
        }
        match Client::connect(&self.address).and_then(|mut client| Ok((client.get("/")?, client))) {
            Ok((answer, client)) => self.answered(answer, client),
            Err(error) => self.tally.lost.push(format!("on a new connection: {error}")),
        }
    }

    fn answered(&mut self, answer: Answer, client: Client) {
        self.tally.answered += 1;
        self.tally.generations.insert(answer.greeting().2);
        if self.keeps && !answer.closes {
            self.kept = Some(client);
        }
    }
}

fn is_closed(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe | ErrorKind::UnexpectedEof)
}
