//! Frames: how the two sides lay out what they say in datagrams.
//!
//! A datagram holds as many whole frames as were ready when it was sent. A frame is a head of 20 bytes, numbers in
//! little-endian order, and then the message, or, if that is long, the number of the lane that it is in (`lanes.rs`), or
//! nothing: it is in a sealed memory file of its own.
//!
//! | bytes | what |
//! | --- | --- |
//! | 1 | kind |
//! | 1 | where the message is. 0: here; 1: in a memory file, the first of the frame's descriptors; 2: in the lane whose number stands here in 4 bytes; 3: as 2, and the lane is new: its file is the first descriptor |
//! | 2 | how many descriptors the message has, beside that file |
//! | 8 | the call that it is about: its place, its generation; 0 if it is about none |
//! | 8 | the length of the message in bytes |
//!
//! A datagram names each lane at most once, and has one memory file at most: so what it makes its receiver keep is bounded
//! by all lanes and one longest message, however many frames it holds.

mod reading;
mod writing;

pub(super) use reading::{Broken, Frame, Message, split};
pub(super) use writing::{Batch, Outbox, Sent};

/// The length of a frame's head.
pub(super) const HEADER: usize = 20;

/// What a frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Both ways, first: the codec and the types.
    Hello,
    /// To the process.
    Call,
    /// To the process: nobody waits for this call's reply any more.
    Cancel,
    /// From the process.
    Reply,
    /// From the process: the call has no reply, and why.
    Failed,
    /// From the process.
    Event,
    /// From the process, last: why it ends the conversation.
    Refused,
}

impl Kind {
    const ALL: [Kind; 7] =
        [Kind::Hello, Kind::Call, Kind::Cancel, Kind::Reply, Kind::Failed, Kind::Event, Kind::Refused];
}

/// A call's place in its client's table, and how often that place was taken before: so a late reply finds nobody.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub(super) struct CallId {
    pub(super) place: u32,
    pub(super) generation: u32,
}

#[cfg(test)]
mod tests;
