//! What only the worker loop does with a connection.

use std::os::fd::AsFd;

use nix::errno::Errno;

use super::output::{MUCH, Output};
use super::{Conn, Peer};
use crate::server::abort::PeerState;
use crate::server::in_hand::InHand;
use crate::server::input::Input;
use crate::sys::stream;

/// The buffers of a worker, lent to the connection that it serves.
#[derive(Debug, Default)]
pub(in crate::server) struct Buffers {
    pub(super) input: Input,
    pub(super) output: Output,
}

impl Conn {
    /// Takes the worker's buffers for a visit, with what the connection holds put into them.
    pub(in crate::server) fn borrow_buffers(&mut self, spare: &mut Buffers) {
        self.input.unpack_into(&mut spare.input);
        self.output.unpack_into(&mut spare.output);
    }

    /// Gives the buffers back and keeps what little memory the unconsumed and the unsent bytes need.
    pub(in crate::server) fn return_buffers(&mut self, spare: &mut Buffers) {
        self.input.pack_from(&mut spare.input);
        self.output.pack_from(&mut spare.output);
    }

    /// Begins a request, or goes on with one that is not over.
    pub(in crate::server) fn begin(&mut self, request: &'static InHand) {
        self.request = Some((request, request.begin()));
        request.line.open(self.socket.as_fd());
        self.output.begin_response();
        if !self.response_begun {
            let earlier = self.output.earlier_alone().unwrap_or_default();
            request.last_words.open(self.socket.as_fd(), earlier);
        }
        self.deadline = None;
    }

    /// The incomplete request has met its deadline: the next call of the service is the last one.
    pub(in crate::server) fn time_out(&mut self) {
        self.timed_out = true;
    }

    /// The request in hand is over; what it has written may still be unsent.
    pub(in crate::server) fn end(&mut self) {
        self.set_aside();
        self.response_begun = false;
        self.consumed = false;
    }

    /// The request is not in hand any more, and not over.
    pub(in crate::server) fn set_aside(&mut self) {
        if let Some(request) = self.in_hand() {
            request.end();
        }
        self.request = None;
        self.deadline = None;
    }

    /// Keeps what the request is about, for as long as it is not in hand; an empty label is none.
    pub(in crate::server) fn keep_label(&mut self, label: Vec<u8>) {
        self.label = (!label.is_empty()).then(|| label.into_boxed_slice());
    }

    /// What was kept so.
    pub(in crate::server) fn take_label(&mut self) -> Option<Box<[u8]>> {
        self.label.take()
    }

    /// Whether the client has left, rather than said that it sends no more. Over TCP that is hard to tell: one that has
    /// not been read to its end counts as gone.
    pub(in crate::server) fn has_left(&self) -> bool {
        match self.peer_state() {
            PeerState::Open => false,
            PeerState::Finished => !self.ended && matches!(self.peer(), Peer::Inet(_)),
            PeerState::Gone => true,
        }
    }

    /// Whether anything of the request was consumed.
    pub(in crate::server) fn has_consumed(&self) -> bool {
        self.consumed
    }

    /// Whether answers have come together of which it is time to send.
    pub(in crate::server) fn has_much_unsent(&self) -> bool {
        self.output.len() > MUCH
    }

    /// Closes the sending side, if the service has asked for a slow close and the client is there. Nobody waits for a
    /// client that has not even taken its answer.
    pub(in crate::server) fn begin_linger(&mut self) -> bool {
        let waits = self.lingers && !self.ended && self.output.is_empty();
        waits && stream::shut_write(self.socket.as_fd()).is_ok()
    }

    /// Drops what has come, up to `left` bytes. False when there is nothing more to wait for.
    ///
    /// Never inlined: its buffer would become a part of the worker loop's own frame, and so a page more
    /// of memory in every worker.
    #[inline(never)]
    pub(in crate::server) fn drop_input(&mut self, left: &mut usize) -> bool {
        let mut dropped = [0; 4096];
        while *left > 0 {
            match stream::receive(self.socket.as_fd(), &mut dropped) {
                Err(Errno::EAGAIN) => return true,
                Err(Errno::EINTR) => {}
                Ok(0) | Err(_) => return false,
                Ok(count) => *left = left.saturating_sub(count),
            }
        }
        false
    }

    /// Drops what is written and not sent of the response in hand; earlier ones stay.
    pub(in crate::server) fn forget_response(&mut self) {
        self.output.forget_response();
    }
}
