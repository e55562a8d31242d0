//! The test's end of the program: it is started, told what to do, and its log says what comes of it.

use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use crate::support::client::Client as LineClient;
use crate::support::log::Record;
use crate::support::{Launch, Server};

/// A running program, and what it is told to do.
pub(super) struct Program {
    pub(super) server: Server,
    orders: UnixStream,
}

impl Program {
    pub(super) fn start(variables: &[(&str, &str)]) -> Program {
        let (orders, theirs) = UnixStream::pair().expect("a pair");
        let launch = Launch::fixture("offers").redirect("", OwnedFd::from(theirs));
        let launch = variables.iter().fold(launch, |launch, (name, value)| launch.variable(name, *value));
        Program { server: launch.start(), orders }
    }

    pub(super) fn offering(names: &str) -> Program {
        Program::start(&[("HATCHERY_OFFERS", names)])
    }

    pub(super) fn order(&mut self, order: &str) {
        writeln!(self.orders, "{order}").expect("the program listens");
    }

    /// Waits for so many offers of this name.
    #[track_caller]
    pub(super) fn offers(&self, name: &str, count: usize) -> Vec<Record> {
        let is_it = |record: &Record| record.is("offered") && record.says("offer", name);
        self.server.log.wait_for_many(0, count, "offers", is_it)
    }

    /// The key of the only worker's offer.
    #[track_caller]
    pub(super) fn key(&self, name: &str) -> String {
        key_of(&self.offers(name, 1)[0])
    }

    /// Gives an order, and waits for what comes of it.
    #[track_caller]
    pub(super) fn ask(&mut self, order: &str) -> Record {
        let mark = self.server.log.mark();
        self.order(order);
        self.server.log.wait_after(mark, order, |record| record.is("outcome"))
    }

    /// What has come of this kind, for this offer.
    pub(super) fn all(&self, kind: &str, key: &str) -> Vec<String> {
        let is_it = |record: &Record| record.is(kind) && record.says("offer", key);
        self.server.log.all(is_it).iter().map(|record| record.str("words")).collect()
    }

    /// Waits until so many have come.
    #[track_caller]
    pub(super) fn wait_for(&self, kind: &str, key: &str, count: usize) -> Vec<String> {
        let is_it = |record: &Record| record.is(kind) && record.says("offer", key);
        let records = self.server.log.wait_for_many(0, count, kind, is_it);
        records.iter().map(|record| record.str("words")).collect()
    }

    /// Submits a call, and goes on when it has been made.
    #[track_caller]
    pub(super) fn submit(&mut self, key: &str, order: &str) {
        let mark = self.server.log.mark();
        self.order(&format!("submit {key} {order}"));
        self.server.log.wait_after(mark, "a call", |record| record.is("submitted"));
    }

    /// A client whose request is under way, in the worker of this pid.
    #[track_caller]
    pub(super) fn hold(&self) -> (LineClient, i32) {
        let mut client = self.server.client();
        let pid = ask_line(&mut client, "hold").parse().expect("a pid");
        (client, pid)
    }

    pub(super) fn is_counted(&mut self, key: &str, count: u64) {
        assert_eq!(self.ask(&format!("call {key} count")).str("words"), count.to_string());
    }
}

pub(super) fn key_of(offered: &Record) -> String {
    format!("{}@{}", offered.str("offer"), offered.pid())
}

#[track_caller]
pub(super) fn ask_line(client: &mut LineClient, line: &str) -> String {
    client.exchange(line).expect("an answer")
}
