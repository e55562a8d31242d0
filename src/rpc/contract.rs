//! What master and process must agree on, and messages as bytes.

use std::any::type_name;
use std::fmt;
use std::os::fd::OwnedFd;
use std::panic;

use serde::{Deserialize, Serialize};

use super::codec::Codec;
use super::descriptor;
use super::error::Error;
use crate::proc::BoxError;
use crate::sys::{memfd, seqpacket};

/// The version of the frames; see `wire.rs`.
pub(super) const PROTOCOL: u32 = 1;

/// The codec and the types of a conversation, by name.
///
/// Names are all that is compared, so a type that has changed its fields and kept its name is not noticed here. It cannot
/// happen where master and process are the same program, as they are unless
/// [`Template::spawn_program`](crate::proc::Template::spawn_program) was used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Contract {
    /// [`Codec::NAME`].
    pub codec: String,
    /// The type of calls.
    pub call: String,
    /// The type of replies.
    pub reply: String,
    /// The type of events.
    pub event: String,
}

impl Contract {
    pub(super) fn of<Call, Reply, Event, C: Codec<Call>>() -> Contract {
        Contract {
            codec: C::NAME.to_owned(),
            call: type_name::<Call>().to_owned(),
            reply: type_name::<Reply>().to_owned(),
            event: type_name::<Event>().to_owned(),
        }
    }
}

impl fmt::Display for Contract {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Contract { codec, call, reply, event } = self;
        write!(f, "codec {codec}, call {call}, reply {reply}, event {event}")
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
    decode: fn(&[u8]) -> Result<T, BoxError>,
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
    /// Empty, if they are in the file.
    pub(super) bytes: Vec<u8>,
    pub(super) file: Option<OwnedFd>,
    pub(super) length: u64,
    pub(super) fds: Vec<OwnedFd>,
}

/// The longest message that travels in the datagram itself.
const LONGEST_INLINE: usize = seqpacket::MAX_BYTES - super::wire::HEADER;

impl<T> Wording<T> {
    pub(super) fn of<C: Codec<T>>() -> Wording<T> {
        Wording { encode: C::encode, decode: C::decode }
    }

    pub(super) fn encode(self, message: &T, limit: u64) -> Result<Encoded, Error> {
        let mut bytes = Vec::new();
        let (written, fds) = descriptor::gather(|| (self.encode)(message, &mut bytes));
        written.map_err(|error| Error::Encode { words: crate::proc::words_of(error.as_ref()) })?;
        // One place is the memory file's.
        if fds.len() >= seqpacket::MAX_DESCRIPTORS {
            return Err(Error::Encode { words: format!("{} descriptors are too many for one message", fds.len()) });
        }
        let length = bytes.len() as u64;
        if length > limit {
            return Err(Error::TooLong { length, limit });
        }
        let mut encoded = Encoded { bytes, file: None, length, fds };
        if encoded.bytes.len() > LONGEST_INLINE {
            let file = memfd::seal(&encoded.bytes);
            encoded.file = Some(file.map_err(|error| Error::system("make a memory file for a large message", error))?);
            encoded.bytes = Vec::new();
        }
        Ok(encoded)
    }

    pub(super) fn decode(self, bytes: &[u8], fds: Vec<OwnedFd>) -> Result<T, String> {
        // A user's codec is run on the hub's thread too, which must outlive its panics.
        let decode =
            || panic::catch_unwind(|| (self.decode)(bytes)).unwrap_or_else(|_| Err("its reading panicked".into()));
        // Nearly no message has any.
        let (read, left) = if fds.is_empty() { (decode(), 0) } else { descriptor::supply(fds, decode) };
        match (read, left) {
            (Ok(message), 0) => Ok(message),
            (Ok(_), left) => Err(format!("{left} descriptors came with a message that does not name them")),
            (Err(error), _) => Err(crate::proc::words_of(error.as_ref())),
        }
    }
}

/// Writes what the library itself has to say.
pub(super) fn encode_own<T: Serialize>(message: &T) -> Encoded {
    // Strings and numbers can always be written, and words are cut to a length that travels inline.
    let bytes = postcard::to_allocvec(message).unwrap_or_default();
    Encoded { length: bytes.len() as u64, bytes, ..Encoded::default() }
}

/// The longest words that are passed on, in bytes.
const LONGEST_WORDS: usize = 8 << 10;

pub(super) fn shortened(mut words: String) -> String {
    words.truncate(words.floor_char_boundary(LONGEST_WORDS));
    words
}
