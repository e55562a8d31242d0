//! Taking frames out of what has arrived, however little of it makes sense.

use std::borrow::Cow;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::vec;

use super::{CallId, HEADER, Kind};
use crate::rpc::lanes::Arrivals;
use crate::sys::{memfd, seqpacket};

/// What arrived is not what anybody sends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::rpc) struct Broken(pub(in crate::rpc) String);

/// A frame that arrived.
#[derive(Debug)]
pub(in crate::rpc) struct Frame {
    pub(in crate::rpc) kind: Kind,
    pub(in crate::rpc) id: CallId,
    pub(in crate::rpc) message: Message,
    pub(in crate::rpc) fds: Vec<OwnedFd>,
}

/// Where a frame's message is.
#[derive(Debug)]
pub(in crate::rpc) enum Message {
    /// In the datagram.
    Inline(Range<usize>),
    /// It came in a memory file or a lane.
    Long(Vec<u8>),
    /// Its file, or descriptors of it, found no room in this process's descriptor table.
    Lost,
}

impl Message {
    /// The message, if nothing of it was lost.
    pub(in crate::rpc) fn bytes<'a>(&'a self, datagram: &'a [u8]) -> Option<&'a [u8]> {
        match self {
            Message::Inline(range) => datagram.get(range.clone()),
            Message::Long(bytes) => Some(bytes),
            Message::Lost => None,
        }
    }

    /// As [`bytes`](Message::bytes), and a long one can be kept.
    pub(in crate::rpc) fn into_bytes(self, datagram: &[u8]) -> Option<Cow<'_, [u8]>> {
        match self {
            Message::Inline(range) => datagram.get(range).map(Cow::Borrowed),
            Message::Long(bytes) => Some(Cow::Owned(bytes)),
            Message::Lost => None,
        }
    }

    /// How much memory it takes beside its datagram, in bytes.
    pub(in crate::rpc) fn beside(&self) -> usize {
        match self {
            Message::Long(bytes) => bytes.len(),
            Message::Inline(_) | Message::Lost => 0,
        }
    }
}

/// Takes a datagram apart. What is whole before the first nonsense is given with it.
pub(in crate::rpc) fn split(
    bytes: &[u8],
    datagram: seqpacket::Datagram,
    limit: u64,
    lanes: &mut Arrivals,
    frames: &mut impl Extend<Frame>,
) -> Result<(), Broken> {
    let mut reader = Reader {
        fds: datagram.fds.into_iter(),
        lost: datagram.lost_descriptors,
        limit,
        lanes,
        emptied: Vec::new(),
        has_file: false,
    };
    let mut at = 0;
    while at < bytes.len() {
        let (frame, next) = reader.take_frame(bytes, at)?;
        frames.extend([frame]);
        at = next;
    }
    if reader.fds.len() > 0 {
        return Err(Broken(format!("{} descriptors came that belong to no message", reader.fds.len())));
    }
    Ok(())
}

/// What frames are taken from, beside a datagram's bytes.
struct Reader<'a> {
    fds: vec::IntoIter<OwnedFd>,
    /// Descriptors were lost on the way.
    lost: bool,
    limit: u64,
    lanes: &'a mut Arrivals,
    /// The lanes that this datagram has named.
    emptied: Vec<u32>,
    /// A message of this datagram is in a memory file.
    has_file: bool,
}

impl Reader<'_> {
    fn take_frame(&mut self, bytes: &[u8], at: usize) -> Result<(Frame, usize), Broken> {
        let left = &bytes[at..];
        let Some((head, body)) = left.split_first_chunk::<HEADER>() else {
            return Err(Broken(format!("a frame's head was cut after {} bytes", left.len())));
        };
        let [kind, place, d0, d1, p0, p1, p2, p3, g0, g1, g2, g3, length @ ..] = *head;
        let kind = usize::from(kind).checked_sub(1).and_then(|index| Kind::ALL.get(index).copied());
        let kind = kind.ok_or_else(|| Broken(format!("a frame of the unknown kind {}", head[0])))?;
        let count = usize::from(u16::from_le_bytes([d0, d1]));
        let id =
            CallId { place: u32::from_le_bytes([p0, p1, p2, p3]), generation: u32::from_le_bytes([g0, g1, g2, g3]) };
        let length = u64::from_le_bytes(length);
        if length > self.limit {
            return Err(Broken(format!("a message of {length} bytes is over the limit of {}", self.limit)));
        }
        let start = at + HEADER;
        let (message, next) = match place {
            0 => match usize::try_from(length) {
                Ok(length) if length <= body.len() => (Message::Inline(start..start + length), start + length),
                _ => return Err(Broken(format!("a message was cut: {} of {length} bytes", body.len()))),
            },
            1 if std::mem::replace(&mut self.has_file, true) => {
                return Err(Broken("a second memory file came in one datagram".to_owned()));
            }
            1 => match self.fds.next() {
                Some(file) => (read_file(file, length, self.limit)?, start),
                None if self.lost => (Message::Lost, start),
                None => return Err(Broken("a long message came without its memory file".to_owned())),
            },
            2 | 3 => {
                let Some((number, _)) = body.split_first_chunk() else {
                    return Err(Broken("a message in a lane without a number".to_owned()));
                };
                (self.take_from_lane(u32::from_le_bytes(*number), place == 3, length)?, start + number.len())
            }
            other => return Err(Broken(format!("a message in the unknown place {other}"))),
        };
        let own: Vec<OwnedFd> = self.fds.by_ref().take(count).collect();
        let message = match own.len() {
            arrived if arrived == count => message,
            _ if self.lost => Message::Lost,
            arrived => return Err(Broken(format!("{arrived} of {count} descriptors of a message came"))),
        };
        Ok((Frame { kind, id, message, fds: own }, next))
    }

    fn take_from_lane(&mut self, number: u32, is_new: bool, length: u64) -> Result<Message, Broken> {
        if is_new {
            match self.fds.next() {
                Some(file) => self.lanes.open(number, &file)?,
                // Its sender never finds it free, and makes another.
                None if self.lost => return Ok(Message::Lost),
                None => return Err(Broken("a new lane came without its file".to_owned())),
            }
        }
        // Its sender cannot know yet that it was emptied.
        if self.emptied.contains(&number) {
            return Err(Broken(format!("lane {number} came twice in one datagram")));
        }
        self.emptied.push(number);
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        self.lanes.unload(number, length).map(Message::Long)
    }
}

fn read_file(file: OwnedFd, length: u64, limit: u64) -> Result<Message, Broken> {
    // The file's own length is looked at before memory is taken for it.
    match memfd::read(file, length.min(limit)) {
        Ok(bytes) if bytes.len() as u64 == length => Ok(Message::Long(bytes)),
        Ok(bytes) => Err(Broken(format!("a memory file holds {} of {length} bytes", bytes.len()))),
        Err(error) => Err(Broken(format!("a memory file cannot be read: {error}"))),
    }
}
