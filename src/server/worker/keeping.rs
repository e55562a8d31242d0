//! The connections that the worker keeps without serving them, and their comings and goings.

use slog::warn;

use super::Worker;
use super::token::Token;
use crate::server::attend::Outcome;
use crate::server::parked::{Guest, Key, Phase};
use crate::server::service::Service;

impl<S: Service> Worker<S> {
    pub(super) fn park(&mut self, guest: Guest) {
        let due = self.attendant.due(guest.phase);
        let key = self.parked.insert(guest);
        self.count_parked();
        self.parked.set_due(key, due);
        let Some(guest) = self.parked.get(key) else {
            return;
        };
        let event = Token::Parked(key).event(guest.phase.interest());
        if let Err(error) = self.epoll.add(&guest.conn, event) {
            warn!(self.attendant.log, "cannot park a connection, it is closed"; "error" => %error);
            self.close(key);
        }
    }

    // ---- parked connections ----

    /// Something has come for a parked connection.
    pub(super) fn revisit(&mut self, key: Key) {
        let Some(guest) = self.parked.get(key) else {
            return;
        };
        let outcome = match &mut guest.phase {
            Phase::Fresh | Phase::Idle => self.attendant.visit(&mut guest.conn, None),
            Phase::Partial(request) => self.attendant.visit(&mut guest.conn, Some(*request)),
            Phase::Sending(sending) => self.attendant.send_on(&mut guest.conn, *sending),
            Phase::Lingering { left } => match guest.conn.drop_input(left) {
                true => Outcome::Nothing,
                false => Outcome::Close,
            },
        };
        self.settle(key, outcome);
    }

    /// Nothing, or not enough, has come in time.
    pub(super) fn handle_due(&mut self) {
        while let Some(key) = self.parked.pop_due(self.attendant.now) {
            let Some(guest) = self.parked.get(key) else {
                continue;
            };
            match guest.phase {
                Phase::Fresh | Phase::Idle => self.visit_last(key),
                Phase::Partial(request) => {
                    self.attendant.time_out(&mut guest.conn, request);
                    self.settle(key, Outcome::Close);
                }
                Phase::Sending(sending) => {
                    let outcome = self.attendant.time_out_sending(&mut guest.conn, sending);
                    self.settle(key, outcome);
                }
                Phase::Lingering { .. } => self.settle(key, Outcome::Close),
            }
        }
    }

    /// Closes a connection on which nothing comes. A last look: a worker that was long busy has not seen what came
    /// meanwhile.
    pub(super) fn visit_last(&mut self, key: Key) {
        let Some(guest) = self.parked.get(key) else {
            return;
        };
        let outcome = match self.attendant.visit(&mut guest.conn, None) {
            Outcome::Nothing => Outcome::Close,
            served => served,
        };
        self.settle(key, outcome);
    }

    /// Keeps a parked connection or closes it, as its visit came out.
    fn settle(&mut self, key: Key, outcome: Outcome) {
        let Some(guest) = self.parked.get(key) else {
            return;
        };
        let before = guest.phase;
        match self.attendant.settle(&mut guest.conn, before, outcome) {
            None => self.close(key),
            Some(phase) => {
                guest.phase = phase;
                if phase.interest() != before.interest() {
                    let mut event = Token::Parked(key).event(phase.interest());
                    if let Err(error) = self.epoll.modify(&guest.conn, &mut event) {
                        warn!(self.attendant.log, "cannot watch a connection, it is closed"; "error" => %error);
                        return self.close(key);
                    }
                }
                // A client that takes a part of its answer is not idle.
                if outcome != Outcome::Nothing || matches!(phase, Phase::Sending(_)) {
                    self.parked.set_due(key, self.attendant.due(phase));
                }
            }
        }
    }

    /// Closing takes the connection out of the epoll set as well.
    fn close(&mut self, key: Key) {
        self.parked.remove(key);
        self.count_parked();
        // Now there is room for one.
        for listener in &mut self.listeners {
            listener.paused_until = listener.paused_until.map(|_| self.attendant.now);
        }
    }

    fn count_parked(&self) {
        self.attendant.record.set_parked(self.parked.len() as u64);
    }
}
