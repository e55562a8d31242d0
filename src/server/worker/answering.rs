//! The master's calls, answered between requests.

use super::Worker;
use crate::server::attend::Attendant;
use crate::server::conn::Peer;
use crate::server::scoreboard::WorkerState;
use crate::server::service::Service;
use crate::sys::clock::Monotonic;

impl<S: Service> Worker<S> {
    /// Answers what has come, within bounds: clients have their turn in between.
    pub(super) fn answer_some(&mut self) {
        if self.answers_due.is_some_and(|due| due <= self.attendant.now) {
            self.answer_now();
        }
    }

    /// Its frame is no part of the loop's: most workers never come here.
    #[inline(never)]
    fn answer_now(&mut self) {
        let Some(offers) = &self.offers else { return };
        let log = self.attendant.log.clone();
        let again = offers.attend(&log, |name, serve| self.attendant.answer(name, serve));
        self.answers_due = again.map(|after| self.attendant.now.after(after));
    }

    /// The worker is about to leave: who has called by now is answered.
    #[inline(never)]
    pub(super) fn answer_last(&mut self) {
        // Without a master nobody waits for an answer.
        if let Some(offers) = self.offers.take().filter(|_| !self.attendant.orphaned) {
            let log = self.attendant.log.clone();
            offers.finish(&log, |name, serve| self.attendant.answer(name, serve));
        }
    }
}

impl<S: Service> Attendant<S> {
    /// One call of the master's. It has the time of a request, and is seen in the scoreboard as one.
    fn answer(&mut self, name: &str, serve: &mut dyn FnMut()) {
        self.now = Monotonic::now();
        // The other end of its socket.
        self.record.begin_request(self.now, Peer::Unix);
        self.record.set_label(format!("offer {name}").as_bytes());
        self.record.set_state(WorkerState::Busy);
        self.deadlines.begin_beside(self.now);
        serve();
        self.deadlines.end();
        self.record.set_label(b"");
        self.record.end_request();
        self.record.set_state(self.resting_state());
        self.now = Monotonic::now();
    }
}
