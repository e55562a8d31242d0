//! What a process hears: calls in their order, and cancels ahead of it.

use std::borrow::Cow;
use std::collections::{HashSet, VecDeque};
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::output::Output;
use crate::proc::BoxError;
use crate::rpc::contract::{Contract, Failed, Hello, PROTOCOL, Refusal, encode_own, shortened};
use crate::rpc::lanes::Arrivals;
use crate::rpc::wire::{self, Broken, CallId, Frame, Kind, Message};
use crate::sys::seqpacket;

/// Bytes that are read ahead of the calls in hand, so that cancels behind them are heard.
const AHEAD: usize = 1 << 20;

pub(super) struct Inbox {
    output: Arc<Output>,
    current: Datagram,
    ahead: VecDeque<Datagram>,
    ahead_bytes: usize,
    cancelled: HashSet<CallId>,
    arrivals: Arrivals,
    eof: bool,
}

#[derive(Default)]
struct Datagram {
    bytes: Vec<u8>,
    frames: VecDeque<Frame>,
    /// Bytes of memory that it takes while it waits for its turn.
    weight: usize,
}

/// Hears the master's first word. None, if there is no master any more.
///
/// # Errors
/// Master and process do not agree; the master has been told.
pub(super) fn begin(socket: OwnedFd, ours: &Contract) -> Result<Option<Inbox>, BoxError> {
    let output = Output::new(socket);
    match hear_first(&output, ours, seqpacket::receive_waiting)? {
        Heard::Word(inbox) => Ok(Some(inbox)),
        // It waits until there is something.
        Heard::Nothing | Heard::End => Ok(None),
    }
}

/// As [`begin`], in a loop that must not wait for it.
pub(super) fn begin_now(output: &Arc<Output>, ours: &Contract) -> Result<Heard<Inbox>, BoxError> {
    hear_first(output, ours, seqpacket::receive)
}

/// What came of listening.
pub(super) enum Heard<T> {
    Nothing,
    Word(T),
    /// There is no master any more.
    End,
}

fn hear_first(output: &Arc<Output>, ours: &Contract, receive: Receive) -> Result<Heard<Inbox>, BoxError> {
    let mut first = Datagram::default();
    let mut arrivals = Arrivals::default();
    // What the first word may be is known without a limit of the master's.
    match first.receive(output.socket(), output.limit(), &mut arrivals, receive) {
        Ok(true) => {}
        Ok(false) => return Ok(Heard::End),
        Err(error) if error.is_nothing_yet() => return Ok(Heard::Nothing),
        Err(error) => return Err(error.into()),
    }
    let hello = first.frames.pop_front().filter(|frame| frame.kind == Kind::Hello);
    let hello = hello.as_ref().and_then(|frame| frame.message.bytes(&first.bytes)).ok_or("the master did not begin")?;
    let Hello { protocol, contract: theirs, limit } = postcard::from_bytes(hello)?;
    output.set_limit(limit);
    if protocol != PROTOCOL || !theirs.agrees(ours) {
        let refusal = Refusal::Disagreement { theirs: Box::new(ours.clone()) };
        output.say(Kind::Refused, CallId::default(), encode_own(&refusal));
        let [ours, theirs] = ours.differences(&theirs);
        return Err(format!("master and process do not agree: here {ours}; there {theirs}").into());
    }
    let inbox = Inbox {
        output: Arc::clone(output),
        cancelled: first.cancels().collect(),
        current: first,
        ahead: VecDeque::new(),
        ahead_bytes: 0,
        arrivals,
        eof: false,
    };
    Ok(Heard::Word(inbox))
}

impl Inbox {
    /// Says our first word: that we agree, and are ready for calls.
    pub(super) fn greet(&self, ours: Contract) {
        let hello = Hello { protocol: PROTOCOL, contract: ours, limit: self.output.limit() };
        self.output.greet(encode_own(&hello));
    }

    pub(super) fn output(&self) -> &Arc<Output> {
        &self.output
    }

    /// Whether a frame is there already.
    pub(super) fn has_more(&self) -> bool {
        !self.current.frames.is_empty() || !self.ahead.is_empty()
    }

    /// The next call that was not cancelled; waits for it. None at the end. Cancels of calls before it are told.
    pub(super) fn next_call(&mut self, mut cancel: impl FnMut(CallId)) -> Result<Option<Frame>, BoxError> {
        loop {
            if let Some(frame) = self.take_arrived(&mut cancel)? {
                return Ok(Some(frame));
            }
            // That of a call that was skipped may be held.
            self.output.flush();
            let (limit, receive) = (self.output.limit(), seqpacket::receive_waiting);
            if self.eof || !self.current.receive(self.output.socket(), limit, &mut self.arrivals, receive)? {
                return Ok(None);
            }
            self.cancelled.extend(self.current.cancels());
        }
    }

    /// As [`next_call`](Inbox::next_call), of those that have arrived; none, if there are no more.
    pub(super) fn take_arrived(&mut self, mut cancel: impl FnMut(CallId)) -> Result<Option<Frame>, BoxError> {
        loop {
            let Some(frame) = self.current.frames.pop_front() else {
                let Some(datagram) = self.ahead.pop_front() else { return Ok(None) };
                self.ahead_bytes -= datagram.weight;
                self.current = datagram;
                continue;
            };
            match frame.kind {
                // A pool waits for the end of each call.
                Kind::Call if self.cancelled.contains(&frame.id) => {
                    self.output.fail(frame.id, Failed::Unanswered);
                }
                Kind::Call => return Ok(Some(frame)),
                Kind::Cancel => {
                    self.cancelled.remove(&frame.id);
                    cancel(frame.id);
                }
                other => return Err(format!("the master said {other:?}, which is nothing for a process").into()),
            }
        }
    }

    /// Hears what has arrived: cancels at once, all else in its turn. Whether it has heard all; else a bound was met.
    pub(super) fn look_ahead(&mut self) -> Result<bool, BoxError> {
        while self.listens() {
            let mut datagram = Datagram::default();
            let (socket, limit) = (self.output.socket(), self.output.limit());
            match datagram.receive(socket, limit, &mut self.arrivals, seqpacket::receive) {
                Ok(true) => self.keep(datagram),
                Ok(false) => self.eof = true,
                Err(error) if error.is_nothing_yet() => return Ok(true),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(self.eof)
    }

    fn keep(&mut self, mut datagram: Datagram) {
        self.cancelled.extend(datagram.cancels());
        // The buffer is as long as the longest datagram.
        datagram.bytes.shrink_to_fit();
        datagram.weight =
            datagram.bytes.len() + datagram.frames.iter().map(|frame| frame.message.beside()).sum::<usize>();
        self.ahead_bytes += datagram.weight;
        self.ahead.push_back(datagram);
    }

    /// Whether no further call will come.
    pub(super) fn is_over(&self) -> bool {
        self.eof && !self.has_more()
    }

    /// Whether more is read ahead.
    pub(super) fn listens(&self) -> bool {
        self.ahead_bytes < AHEAD && !self.eof
    }

    /// The message of the call that was taken last, if it was not lost.
    pub(super) fn message(&self, message: Message) -> Option<Cow<'_, [u8]>> {
        message.into_bytes(&self.current.bytes)
    }

    pub(super) fn cancels(&self) -> &HashSet<CallId> {
        &self.cancelled
    }

    /// Whether there is nobody who could hear a reply.
    pub(super) fn is_left(&self) -> bool {
        let mut socket = [PollFd::new(self.output.socket(), PollFlags::empty())];
        matches!(poll(&mut socket, PollTimeout::ZERO), Ok(1))
    }

    /// The two do not understand each other.
    pub(super) fn refuse(&self, words: String) -> BoxError {
        let words = shortened(words);
        let refusal = Refusal::Codec { words: words.clone() };
        super::output::hold(false);
        self.output.say(Kind::Refused, CallId::default(), encode_own(&refusal));
        format!("a call could not be decoded: {words}").into()
    }

    /// Says that a call's descriptors did not come.
    pub(super) fn lost(&self, id: CallId) {
        self.output.fail(id, Failed::DescriptorsLost);
    }
}

/// Why nothing was received.
#[derive(Debug, thiserror::Error)]
enum Stopped {
    #[error("cannot receive a call")]
    Os(#[source] io::Error),
    #[error("the master broke the protocol: {0}")]
    Broken(String),
}

impl Stopped {
    /// A receiver that does not wait has found nothing.
    fn is_nothing_yet(&self) -> bool {
        matches!(self, Stopped::Os(error) if error.kind() == io::ErrorKind::WouldBlock)
    }
}

type Receive = fn(BorrowedFd<'_>, &mut Vec<u8>) -> io::Result<Option<seqpacket::Datagram>>;

impl Datagram {
    /// The calls that are cancelled in it, which may stand in it themselves.
    fn cancels(&self) -> impl Iterator<Item = CallId> {
        self.frames.iter().filter(|frame| frame.kind == Kind::Cancel).map(|frame| frame.id)
    }

    /// Receives one; false at the end.
    fn receive(
        &mut self,
        socket: BorrowedFd<'_>,
        limit: u64,
        lanes: &mut Arrivals,
        receive: Receive,
    ) -> Result<bool, Stopped> {
        let Some(datagram) = receive(socket, &mut self.bytes).map_err(Stopped::Os)? else { return Ok(false) };
        let split = wire::split(&self.bytes, datagram, limit, lanes, &mut self.frames);
        split.map(|()| true).map_err(|Broken(words)| Stopped::Broken(words))
    }
}
