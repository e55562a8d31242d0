//! From the socket to whoever waits.

use std::cell::Cell;
use std::io;
use std::os::fd::AsFd;
use std::sync::PoisonError;
use std::time::Instant;

use super::delivering::{delivering, wake_all};
use super::watching::END_WITHIN;
use super::{Completion, Link, OnReady, Outcome, Stake, State};
use crate::rpc::contract::{Contract, Failed, Hello, PROTOCOL, Refusal};
use crate::rpc::conversation::Step;
use crate::rpc::error::{Error, Lost};
use crate::rpc::wire::{self, Broken, Frame, Kind};
use crate::sys::seqpacket;

/// The hub turns to others after so many datagrams.
const DATAGRAMS_A_TURN: usize = 32;

thread_local! {
    /// Where this thread receives; kept from datagram to datagram.
    static BUFFER: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
    static FRAMES: Cell<Vec<Frame>> = const { Cell::new(Vec::new()) };
}

/// What came of an attempt to receive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Received {
    Delivered,
    Nothing,
    /// Nothing more will come.
    Over,
}

/// What is to be told of a frame.
enum Delivery {
    End(Completion, Frame),
    Event(Frame),
    Ready(OnReady),
}

impl Link {
    /// The hub's turn: what has arrived, within bounds.
    pub(super) fn receive_some(&self) {
        for _ in 0..DATAGRAMS_A_TURN {
            if self.receive_one(seqpacket::receive) != Received::Delivered {
                return;
            }
        }
    }

    /// Receives a datagram and delivers what is in it. Only for who has the right to receive.
    pub(super) fn receive_one(&self, receive: Receive) -> Received {
        let mut buffer = BUFFER.take();
        let received = match receive(self.socket.as_fd(), &mut buffer) {
            Ok(Some(datagram)) => {
                let mut frames = FRAMES.take();
                let mut lanes = self.arrivals.lock().unwrap_or_else(PoisonError::into_inner);
                let broken = wire::split(&buffer, datagram, self.limits.message, &mut lanes, &mut frames).err();
                drop(lanes);
                let end = self.deliver(&buffer, &mut frames).or(broken.map(Lost::from));
                FRAMES.set(frames);
                match end {
                    None => Received::Delivered,
                    Some(why) => {
                        self.end(why);
                        Received::Over
                    }
                }
            }
            Ok(None) => {
                self.see_eof();
                Received::Over
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Received::Nothing,
            Err(error) => {
                self.end(Lost::Protocol { words: error.to_string() });
                Received::Over
            }
        };
        BUFFER.set(buffer);
        received
    }

    /// Tells everybody what has come for them, in its order; what ends the conversation comes back.
    fn deliver(&self, datagram: &[u8], frames: &mut Vec<Frame>) -> Option<Lost> {
        let mut deliveries = Vec::with_capacity(frames.len());
        let mut end = None;
        let mut state = self.state();
        state.sent_singly = 0;
        for frame in frames.drain(..) {
            match self.interpret(&mut state, datagram, frame) {
                Ok(delivery) => deliveries.extend(delivery),
                Err(why) => {
                    end = Some(why);
                    break;
                }
            }
        }
        drop(self.begin_delivery(state));
        delivering(|| {
            for delivery in deliveries {
                let told = match delivery {
                    Delivery::End(completion, frame) => tell_end(completion, datagram, frame),
                    Delivery::Event(frame) => self.tell_event(datagram, frame),
                    Delivery::Ready(on_ready) => {
                        on_ready();
                        Ok(())
                    }
                };
                if let Err(why) = told {
                    end.get_or_insert(why);
                }
            }
        });
        let state = self.end_delivery(self.state());
        if end.is_none() {
            // A process that is heard of has room for more, and so have the books.
            let mut state = self.flush(state);
            self.update_watch(&mut state);
            let wakers = state.take_for_room();
            drop(state);
            wake_all(wakers);
        }
        end
    }

    fn interpret(&self, state: &mut State, datagram: &[u8], frame: Frame) -> Result<Option<Delivery>, Lost> {
        match state.books.handle(frame.kind, frame.id)? {
            Step::Hello => self.agree(&frame, datagram).map(|()| state.on_ready.take().map(Delivery::Ready)),
            Step::End(completion) => Ok(Some(Delivery::End(completion, frame))),
            Step::Event => Ok(Some(Delivery::Event(frame))),
            Step::Late => Ok(None),
            Step::Refused => Err(match own(&frame, datagram)? {
                Refusal::Disagreement { theirs } => self.disagreement(*theirs),
                Refusal::Codec { words } => Lost::Codec { words },
            }),
        }
    }

    fn agree(&self, frame: &Frame, datagram: &[u8]) -> Result<(), Lost> {
        let Hello { protocol, contract, .. } = own(frame, datagram)?;
        if protocol != PROTOCOL {
            return Err(Broken(format!("it speaks version {protocol} of the protocol, not {PROTOCOL}")).into());
        }
        if contract.agrees(&self.ours) { Ok(()) } else { Err(self.disagreement(contract)) }
    }

    fn disagreement(&self, theirs: Contract) -> Lost {
        Lost::Disagreement { ours: Box::new(self.ours.clone()), theirs: Box::new(theirs) }
    }

    fn tell_event(&self, datagram: &[u8], frame: Frame) -> Result<(), Lost> {
        let slot = || self.on_event.lock().unwrap_or_else(PoisonError::into_inner);
        // It may set another handler.
        let Some(mut handler) = slot().take() else { return Ok(()) };
        let told = match frame.message.into_bytes(datagram) {
            Some(bytes) => handler(bytes, frame.fds).map_err(|words| Lost::Codec { words }),
            None => {
                Err(Lost::Codec { words: "descriptors of an event were lost: the table is full (EMFILE)".to_owned() })
            }
        };
        slot().get_or_insert(handler);
        told
    }

    fn see_eof(&self) {
        let mut state = self.state();
        state.eof = Some(Instant::now());
        if self.stake == Stake::Part && state.told_closing {
            // As it was asked to. How its process ends is nobody's concern here.
            drop(state);
            return self.end(Lost::Left);
        }
        self.update_watch(&mut state);
        self.remind(&state, Instant::now() + END_WITHIN);
        let lost = state.lost_by_exit();
        drop(state);
        if let Some(why) = lost {
            self.end(why);
        }
    }
}

fn tell_end(completion: Completion, datagram: &[u8], frame: Frame) -> Result<(), Lost> {
    if frame.kind == Kind::Failed {
        let (error, end) = match own(&frame, datagram) {
            Ok(Failed::Handler { words }) => (Error::Handler { words }, Ok(())),
            Ok(Failed::Unanswered) => (Error::Unanswered, Ok(())),
            Ok(Failed::Reply { words }) => (Error::Reply { words }, Ok(())),
            Ok(Failed::DescriptorsLost) => (Error::DescriptorsLost { may_have_run: false }, Ok(())),
            Err(broken) => {
                let why = Lost::from(broken);
                (Error::Lost { may_have_run: true, why: why.clone() }, Err(why))
            }
        };
        return completion(Outcome::Failed(error)).and(end);
    }
    let Frame { message, fds, .. } = frame;
    match message.into_bytes(datagram) {
        Some(bytes) => completion(Outcome::Reply { bytes, fds }),
        None => completion(Outcome::Failed(Error::DescriptorsLost { may_have_run: true })),
    }
}

/// How a thread receives: at once, or waiting.
pub(super) type Receive = fn(std::os::fd::BorrowedFd<'_>, &mut Vec<u8>) -> io::Result<Option<seqpacket::Datagram>>;

impl From<Broken> for Lost {
    fn from(Broken(words): Broken) -> Lost {
        Lost::Protocol { words }
    }
}

/// Reads what the library itself has said.
fn own<T: serde::de::DeserializeOwned>(frame: &Frame, datagram: &[u8]) -> Result<T, Broken> {
    let bytes = frame.message.bytes(datagram).ok_or_else(|| Broken("its own word came in a lost file".to_owned()))?;
    postcard::from_bytes(bytes).map_err(|error| Broken(format!("its {:?} cannot be read: {error}", frame.kind)))
}
