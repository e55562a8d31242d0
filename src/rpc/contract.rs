//! What master and process must agree on, and messages as bytes.

use std::any::type_name;
use std::borrow::Cow;
use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::panic;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::codec::Codec;
use super::descriptor;
use super::error::Error;
use super::lanes::{Lanes, Loaded};
use super::shape;
use crate::proc::BoxError;
use crate::sys::{memfd, seqpacket};

/// The version of the frames; see `wire.rs`.
pub(super) const PROTOCOL: u32 = 2;

/// The codec and the types of a conversation, as both sides compare them before the first call.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Contract {
    /// [`Codec::NAME`].
    pub codec: String,
    /// The type of calls.
    pub call: MessageType,
    /// The type of replies.
    pub reply: MessageType,
    /// The type of events.
    pub event: MessageType,
}

/// A type of messages.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct MessageType {
    /// Its name.
    pub name: String,
    /// How it is laid out, as [`Codec::shape`] says; empty if that says nothing. What a type's own `Deserialize` hides (it
    /// refuses a made-up value, or asks for any) stands there as `?`, which agrees with anything, or as `any`.
    pub shape: String,
}

impl MessageType {
    fn of<T, C: Codec<T>>() -> MessageType {
        // The user's own code may panic, and then tells no more.
        MessageType {
            name: shortened(type_name::<T>().to_owned()),
            shape: panic::catch_unwind(C::shape).unwrap_or_default(),
        }
    }
}

impl MessageType {
    fn agrees(&self, other: &MessageType) -> bool {
        self.name == other.name && shape::agree(&self.shape, &other.shape)
    }
}

impl fmt::Display for MessageType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)?;
        // Simple types are their own shape.
        if self.shape.is_empty() || self.shape == self.name { Ok(()) } else { write!(f, " = {}", self.shape) }
    }
}

impl Contract {
    pub(super) fn of<Call, Reply, Event, C: Codec<Call> + Codec<Reply> + Codec<Event>>() -> Contract {
        Contract {
            codec: <C as Codec<Call>>::NAME.to_owned(),
            call: MessageType::of::<Call, C>(),
            reply: MessageType::of::<Reply, C>(),
            event: MessageType::of::<Event, C>(),
        }
    }

    /// Whether the two sides understand each other.
    pub(super) fn agrees(&self, other: &Contract) -> bool {
        let pairs = [(&self.call, &other.call), (&self.reply, &other.reply), (&self.event, &other.event)];
        self.codec == other.codec && pairs.into_iter().all(|(our, their)| our.agrees(their))
    }

    /// What the two do not agree on, of each side.
    pub(super) fn differences(&self, other: &Contract) -> [String; 2] {
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        if self.codec != other.codec {
            ours.push(format!("codec {}", self.codec));
            theirs.push(format!("codec {}", other.codec));
        }
        let types = [
            ("call", &self.call, &other.call),
            ("reply", &self.reply, &other.reply),
            ("event", &self.event, &other.event),
        ];
        for (what, our, their) in types.into_iter().filter(|(_, our, their)| !our.agrees(their)) {
            ours.push(format!("{what} {our}"));
            theirs.push(format!("{what} {their}"));
        }
        [ours.join(", "), theirs.join(", ")]
    }
}

/// The first frame in each direction.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Hello {
    pub(super) protocol: u32,
    pub(super) contract: Contract,
    /// The longest message, in bytes; the master's word counts.
    pub(super) limit: u64,
}

/// Why a call has no reply, in the process's words.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Failed {
    Handler { words: String },
    Unanswered,
    Reply { words: String },
    DescriptorsLost,
}

/// Why the process ends the conversation.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Refusal {
    Disagreement { theirs: Box<Contract> },
    Codec { words: String },
}

/// How messages of one type are written and read.
pub(super) struct Wording<T> {
    encode: fn(&T, &mut Vec<u8>) -> Result<(), BoxError>,
    as_bytes: fn(&T) -> Option<&[u8]>,
    decode: fn(&[u8]) -> Result<T, BoxError>,
    decode_owned: fn(Vec<u8>) -> Result<T, BoxError>,
}

impl<T> Clone for Wording<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Wording<T> {}

/// A message as bytes, with its descriptors.
#[derive(Debug, Default)]
pub(super) struct Encoded {
    pub(super) body: Body,
    pub(super) length: u64,
    pub(super) fds: Vec<OwnedFd>,
}

/// Where a message's bytes are until it is sent.
#[derive(Debug)]
pub(super) enum Body {
    Inline(Vec<u8>),
    /// In a memory file.
    File(OwnedFd),
    Lane(Loaded),
}

impl Default for Body {
    fn default() -> Body {
        Body::Inline(Vec::new())
    }
}

/// A message as bytes of which it is not decided yet which process they go to.
#[derive(Debug)]
pub(super) struct Parcel {
    bytes: Vec<u8>,
    fds: Vec<OwnedFd>,
}

impl Parcel {
    pub(super) fn length(&self) -> u64 {
        self.bytes.len() as u64
    }

    /// The message for the process with these lanes. Of a long one the bytes stay here, should it come back, until it is
    /// [let go](Parcel::let_go).
    pub(super) fn hand_over(&mut self, lanes: &Arc<Lanes>) -> Result<Encoded, Error> {
        let length = self.length();
        let body = match self.is_long() {
            true => long(&self.bytes, lanes)?,
            false => Body::Inline(std::mem::take(&mut self.bytes)),
        };
        Ok(Encoded { body, length, fds: std::mem::take(&mut self.fds) })
    }

    /// It was not sent, and is here again.
    pub(super) fn take_back(&mut self, Encoded { body, fds, .. }: Encoded) {
        self.fds = fds;
        if let Body::Inline(bytes) = body {
            self.bytes = bytes;
        }
    }

    /// It was sent, and is not needed any more.
    pub(super) fn let_go(&mut self) {
        self.bytes = Vec::new();
    }

    /// A copy for the process with these lanes.
    pub(super) fn copy(&self, lanes: &Arc<Lanes>) -> Result<Encoded, Error> {
        let fds = self.fds.iter().map(OwnedFd::try_clone).collect::<io::Result<_>>();
        let fds = fds.map_err(|error| Error::system("copy the descriptors of a call", error))?;
        let body = match self.is_long() {
            true => long(&self.bytes, lanes)?,
            false => Body::Inline(self.bytes.clone()),
        };
        Ok(Encoded { body, length: self.length(), fds })
    }

    fn is_long(&self) -> bool {
        self.bytes.len() > LONGEST_INLINE
    }
}

/// The longest message that travels in the datagram itself.
const LONGEST_INLINE: usize = seqpacket::MAX_BYTES - super::wire::HEADER;

impl<T> Wording<T> {
    pub(super) fn of<C: Codec<T>>() -> Wording<T> {
        Wording { encode: C::encode, as_bytes: C::as_bytes, decode: C::decode, decode_owned: C::decode_owned }
    }

    pub(super) fn encode(self, message: &T, limit: u64, lanes: &Arc<Lanes>) -> Result<Encoded, Error> {
        if let Some(bytes) = (self.as_bytes)(message)
            && bytes.len() > LONGEST_INLINE
        {
            let length = within(limit, bytes)?;
            return Ok(Encoded { body: long(bytes, lanes)?, length, fds: Vec::new() });
        }
        self.pack(message, limit)?.hand_over(lanes)
    }

    /// For a process that is not known yet.
    pub(super) fn pack(self, message: &T, limit: u64) -> Result<Parcel, Error> {
        let mut bytes = Vec::new();
        let (written, fds) = descriptor::gather(|| (self.encode)(message, &mut bytes));
        written.map_err(|error| Error::Encode { words: crate::proc::words_of(error.as_ref()) })?;
        // One place is the memory file's.
        if fds.len() >= seqpacket::MAX_DESCRIPTORS {
            return Err(Error::Encode { words: format!("{} descriptors are too many for one message", fds.len()) });
        }
        within(limit, &bytes)?;
        Ok(Parcel { bytes, fds })
    }

    pub(super) fn decode(self, bytes: Cow<'_, [u8]>, fds: Vec<OwnedFd>) -> Result<T, String> {
        // A user's codec is run on the hub's thread too, which must outlive its panics.
        let decode = || {
            let read = panic::catch_unwind(|| match bytes {
                Cow::Borrowed(bytes) => (self.decode)(bytes),
                Cow::Owned(bytes) => (self.decode_owned)(bytes),
            });
            read.unwrap_or_else(|_| Err("its reading panicked".into()))
        };
        // Nearly no message has any.
        let (read, left) = if fds.is_empty() { (decode(), 0) } else { descriptor::supply(fds, decode) };
        match (read, left) {
            (Ok(message), 0) => Ok(message),
            (Ok(_), left) => Err(format!("{left} descriptors came with a message that does not name them")),
            (Err(error), _) => Err(crate::proc::words_of(error.as_ref())),
        }
    }
}

/// The length of a message, if it may be that long.
fn within(limit: u64, bytes: &[u8]) -> Result<u64, Error> {
    let length = bytes.len() as u64;
    if length > limit { Err(Error::TooLong { length, limit }) } else { Ok(length) }
}

fn long(bytes: &[u8], lanes: &Arc<Lanes>) -> Result<Body, Error> {
    if let Some(loaded) = lanes.load(bytes) {
        return Ok(Body::Lane(loaded));
    }
    let file = memfd::seal(bytes).map_err(|error| Error::system("make a memory file for a large message", error))?;
    Ok(Body::File(file))
}

/// Writes what the library itself has to say.
pub(super) fn encode_own<T: Serialize>(message: &T) -> Encoded {
    // Strings and numbers can always be written, and words are cut to a length that travels inline.
    let bytes = postcard::to_allocvec(message).unwrap_or_default();
    Encoded { length: bytes.len() as u64, body: Body::Inline(bytes), ..Encoded::default() }
}

/// The longest words that are passed on, in bytes.
const LONGEST_WORDS: usize = 8 << 10;

pub(super) fn shortened(mut words: String) -> String {
    words.truncate(words.floor_char_boundary(LONGEST_WORDS));
    words
}
