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

use std::borrow::Cow;
use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::vec;

use nix::libc;

use super::contract::{Body, Encoded};
use super::lanes::{Arrivals, Loaded};
use crate::sys::{memfd, seqpacket};

/// The length of a frame's head.
pub(super) const HEADER: usize = 20;

/// Small frames are packed into datagrams of about this length: so that hundreds share one system call, and some
/// datagrams still fit the socket's buffer (208 KiB by default), so that both sides work at the same time.
const PACKED: usize = 16 << 10;

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

/// What arrived is not what anybody sends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Broken(pub(super) String);

/// A frame that arrived.
#[derive(Debug)]
pub(super) struct Frame {
    pub(super) kind: Kind,
    pub(super) id: CallId,
    pub(super) message: Message,
    pub(super) fds: Vec<OwnedFd>,
}

/// Where a frame's message is.
#[derive(Debug)]
pub(super) enum Message {
    /// In the datagram.
    Inline(Range<usize>),
    /// It came in a memory file or a lane.
    Long(Vec<u8>),
    /// Its file, or descriptors of it, found no room in this process's descriptor table.
    Lost,
}

impl Message {
    /// The message, if nothing of it was lost.
    pub(super) fn bytes<'a>(&'a self, datagram: &'a [u8]) -> Option<&'a [u8]> {
        match self {
            Message::Inline(range) => datagram.get(range.clone()),
            Message::Long(bytes) => Some(bytes),
            Message::Lost => None,
        }
    }

    /// As [`bytes`](Message::bytes), and a long one can be kept.
    pub(super) fn into_bytes(self, datagram: &[u8]) -> Option<Cow<'_, [u8]>> {
        match self {
            Message::Inline(range) => datagram.get(range).map(Cow::Borrowed),
            Message::Long(bytes) => Some(Cow::Owned(bytes)),
            Message::Lost => None,
        }
    }

    /// How much memory it takes beside its datagram, in bytes.
    pub(super) fn beside(&self) -> usize {
        match self {
            Message::Long(bytes) => bytes.len(),
            Message::Inline(_) | Message::Lost => 0,
        }
    }
}

/// Takes a datagram apart. What is whole before the first nonsense is given with it.
pub(super) fn split(
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

/// What waits to be sent, packed into datagrams.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    queue: VecDeque<Batch>,
    weight: u64,
}

/// One datagram.
#[derive(Debug, Default)]
pub(super) struct Batch {
    bytes: Vec<u8>,
    fds: Vec<OwnedFd>,
    /// The messages in lanes; the files of new ones are in `fds`.
    loaded: Vec<Loaded>,
    /// A message of it is in a memory file.
    has_file: bool,
    weight: u64,
    /// The number of the last call in it, counted from 1 in the order of submission; 0 if it has none.
    pub(super) last_call: u64,
}

/// What became of a batch.
pub(super) enum Sent {
    Whole,
    /// The socket has no room.
    NoRoom,
    /// The kernel lacks something for the moment: memory, or too many descriptors are on their way in sockets of this
    /// user (unix(7), ETOOMANYREFS).
    Later,
    /// Nothing can be sent any more.
    Never,
}

impl Outbox {
    pub(super) fn push(&mut self, kind: Kind, id: CallId, message: Encoded, number: u64) {
        let Encoded { body, length, fds } = message;
        let (place, inline, file) = match &body {
            Body::Inline(bytes) => (0, bytes.len(), 0),
            Body::File(_) => (1, 0, 1),
            Body::Lane(loaded) if loaded.file().is_some() => (3, size_of::<u32>(), 1),
            Body::Lane(_) => (2, size_of::<u32>(), 0),
        };
        let is_file = matches!(body, Body::File(_));
        let fits = |batch: &Batch| {
            batch.bytes.len() + HEADER + inline <= PACKED
                && batch.fds.len() + fds.len() + file <= seqpacket::MAX_DESCRIPTORS
                && !(is_file && batch.has_file)
        };
        if !self.queue.back().is_some_and(fits) {
            self.queue.push_back(Batch::default());
        }
        let Some(batch) = self.queue.back_mut() else { return };
        batch.bytes.push(kind as u8 + 1);
        batch.bytes.push(place);
        batch.bytes.extend_from_slice(&(fds.len() as u16).to_le_bytes());
        batch.bytes.extend_from_slice(&id.place.to_le_bytes());
        batch.bytes.extend_from_slice(&id.generation.to_le_bytes());
        batch.bytes.extend_from_slice(&length.to_le_bytes());
        match body {
            Body::Inline(bytes) => batch.bytes.extend_from_slice(&bytes),
            Body::File(file) => {
                batch.fds.push(file);
                batch.has_file = true;
            }
            Body::Lane(mut loaded) => {
                batch.bytes.extend_from_slice(&loaded.number().to_le_bytes());
                batch.fds.extend(loaded.take_file());
                batch.loaded.push(loaded);
            }
        }
        batch.fds.extend(fds);
        batch.weight += length + HEADER as u64;
        batch.last_call = batch.last_call.max(number);
        self.weight += length + HEADER as u64;
    }

    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Whether at least one datagram is as full as it gets.
    pub(super) fn has_full_batch(&self) -> bool {
        self.queue.len() > 1
    }

    /// Bytes that wait.
    pub(super) fn weight(&self) -> u64 {
        self.weight
    }

    pub(super) fn pop(&mut self) -> Option<Batch> {
        let batch = self.queue.pop_front()?;
        self.weight -= batch.weight;
        Some(batch)
    }

    /// Takes back what could not be sent.
    pub(super) fn unpop(&mut self, batch: Batch) {
        self.weight += batch.weight;
        self.queue.push_front(batch);
    }

    pub(super) fn clear(&mut self) {
        *self = Outbox::default();
    }
}

impl Batch {
    /// Sends it, at once or not at all.
    pub(super) fn send(&mut self, socket: BorrowedFd<'_>) -> Sent {
        let raw: Vec<RawFd> = self.fds.iter().map(AsRawFd::as_raw_fd).collect();
        match seqpacket::send(socket, &self.bytes, &raw) {
            Ok(()) => {
                self.loaded.iter_mut().for_each(Loaded::mark_sent);
                Sent::Whole
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Sent::NoRoom,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Sent::Later,
            Err(error) => match error.raw_os_error() {
                Some(libc::ETOOMANYREFS | libc::ENOBUFS | libc::ENOMEM) => Sent::Later,
                _ => Sent::Never,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use proptest::prelude::*;

    use super::*;
    use crate::sys::lane::Lane;

    const LIMIT: u64 = 1 << 20;

    fn of(bytes: &[u8], fds: Vec<OwnedFd>) -> (Vec<Frame>, Result<(), Broken>) {
        let mut frames = Vec::new();
        let mut lanes = Arrivals::default();
        let end = split(bytes, seqpacket::Datagram { fds, lost_descriptors: false }, LIMIT, &mut lanes, &mut frames);
        (frames, end)
    }

    fn frame(kind: u8, place: u8, count: u16, length: u64, message: &[u8]) -> Vec<u8> {
        let mut bytes = vec![kind, place];
        bytes.extend(count.to_le_bytes());
        bytes.extend([7, 0, 0, 0, 9, 0, 0, 0]);
        bytes.extend(length.to_le_bytes());
        bytes.extend(message);
        bytes
    }

    #[test]
    fn whatever_is_packed_comes_out_in_its_order() {
        let (here, there) = seqpacket::pair().expect("a pair");
        let mut outbox = Outbox::default();
        for number in 0..5_000u32 {
            let fds = if number % 100 == 0 { vec![here.try_clone().expect("a copy")] } else { Vec::new() };
            let bytes = number.to_le_bytes().to_vec();
            let message = Encoded { length: 4, body: Body::Inline(bytes), fds };
            outbox.push(Kind::Call, CallId { place: number, generation: 3 }, message, u64::from(number) + 1);
        }
        let (mut next, mut buffer, mut datagrams) = (0u32, Vec::new(), 0);
        while let Some(mut batch) = outbox.pop() {
            assert!(matches!(batch.send(here.as_fd()), Sent::Whole));
            datagrams += 1;
            let datagram = seqpacket::receive(there.as_fd(), &mut buffer).expect("received").expect("a datagram");
            let mut frames = Vec::new();
            split(&buffer, datagram, LIMIT, &mut Arrivals::default(), &mut frames).expect("whole");
            for frame in frames {
                assert_eq!((frame.kind, frame.id), (Kind::Call, CallId { place: next, generation: 3 }));
                assert_eq!(frame.message.bytes(&buffer), Some(next.to_le_bytes().as_slice()));
                assert_eq!(frame.fds.len(), usize::from(next % 100 == 0));
                next += 1;
            }
            assert_eq!(batch.last_call, u64::from(next));
        }
        assert_eq!((next, outbox.weight()), (5_000, 0));
        assert!(datagrams < 10, "{datagrams}");
    }

    #[test]
    fn each_kind_of_nonsense_is_told_and_what_came_before_it_is_kept() {
        let good = frame(4, 0, 0, 2, b"ok");
        for (nonsense, says) in [
            (vec![4; 19], "cut after 19 bytes"),
            (frame(0, 0, 0, 0, b""), "unknown kind 0"),
            (frame(99, 0, 0, 0, b""), "unknown kind 99"),
            (frame(4, 4, 0, 0, b""), "unknown place 4"),
            (frame(4, 2, 0, 5, &[1, 2, 3]), "without a number"),
            (frame(4, 2, 0, 5, &[1, 0, 0, 0]), "never made lane 1"),
            (frame(4, 3, 0, 5, &[1, 0, 0, 0]), "without its file"),
            (frame(4, 0, 0, 3, b"ok"), "2 of 3 bytes"),
            (frame(4, 0, 0, 1 << 63, b"ok"), "9223372036854775808 bytes is over the limit"),
            (frame(4, 1, 0, 5, b""), "without its memory file"),
            (frame(4, 0, 2, 0, b""), "0 of 2 descriptors"),
        ] {
            let (frames, end) = of(&[good.as_slice(), &nonsense].concat(), Vec::new());
            assert_eq!(frames.len(), 1, "{says}");
            let Broken(words) = end.expect_err(says);
            assert!(words.contains(says), "{words}");
        }
        let (_, end) = of(&good, vec![memfd::seal(b"").expect("a file")]);
        assert!(end.is_err_and(|Broken(words)| words.contains("belong to no message")));
    }

    #[test]
    fn a_memory_file_is_believed_only_if_it_is_sealed_and_as_long_as_told() {
        let file = |bytes: &[u8]| vec![memfd::seal(bytes).expect("a file")];
        assert!(of(&frame(4, 1, 0, 5, b""), file(b"12345")).1.is_ok());
        assert!(of(&frame(4, 1, 0, 6, b""), file(b"12345")).1.is_err());
        assert!(of(&frame(4, 1, 0, 4, b""), file(b"12345")).1.is_err());
        let (pipe, _writer) = std::io::pipe().expect("a pipe");
        assert!(of(&frame(4, 1, 0, 5, b""), vec![pipe.into()]).1.is_err());
    }

    #[test]
    fn a_lane_is_believed_only_if_its_length_is_sealed_and_as_far_as_it_reaches() {
        let new = |length| frame(4, 3, 0, length, &[7, 0, 0, 0]);
        let file = || Lane::create(4096).expect("a lane").1;
        assert!(of(&new(4096), vec![file()]).1.is_ok());
        assert!(of(&new(1 << 19), vec![file()]).1.is_err());
        assert!(of(&new(5), vec![memfd::seal(b"12345").expect("a file")]).1.is_err());
        let (pipe, _writer) = std::io::pipe().expect("a pipe");
        assert!(of(&new(5), vec![pipe.into()]).1.is_err());
        assert!(of(&[new(5), new(5)].concat(), vec![file(), file()]).1.is_err(), "one number is one lane");
    }

    #[test]
    fn however_many_frames_a_datagram_holds_it_makes_nobody_keep_more_than_its_lanes_and_one_file() {
        let lane = || Lane::create(1 << 19).expect("a lane").1;
        let (new, again) = (frame(4, 3, 0, 1 << 19, &[7, 0, 0, 0]), frame(4, 2, 0, 1 << 19, &[7, 0, 0, 0]));
        let many = [new.clone(), again.repeat(2_700)].concat();
        let (frames, end) = of(&many, vec![lane()]);
        assert_eq!(frames.len(), 1);
        assert!(end.is_err_and(|Broken(words)| words == "lane 7 came twice in one datagram"));
        // In the next datagram it may come again.
        let mut lanes = Arrivals::default();
        for (bytes, fds) in [(new, vec![lane()]), (again, Vec::new())] {
            let datagram = seqpacket::Datagram { fds, lost_descriptors: false };
            split(&bytes, datagram, LIMIT, &mut lanes, &mut Vec::new()).expect("once in each");
        }

        let file = || memfd::seal(b"12345").expect("a file");
        let (frames, end) = of(&frame(4, 1, 0, 5, b"").repeat(2), vec![file(), file()]);
        assert_eq!(frames.len(), 1);
        assert!(end.is_err_and(|Broken(words)| words.contains("a second memory file")));
        let mut outbox = Outbox::default();
        for _ in 0..3 {
            let message = Encoded { length: 5, body: Body::File(file()), fds: Vec::new() };
            outbox.push(Kind::Call, CallId::default(), message, 1);
            outbox.push(Kind::Call, CallId::default(), Encoded::default(), 1);
        }
        let batches: Vec<Batch> = std::iter::from_fn(|| outbox.pop()).collect();
        assert_eq!(batches.iter().map(|batch| batch.fds.len()).collect::<Vec<_>>(), [1, 1, 1]);
    }

    proptest! {
        #[test]
        fn noise_never_panics(noise in proptest::collection::vec(0u8..8, 0..200)) {
            let (frames, _) = of(&noise, Vec::new());
            for frame in frames {
                prop_assert!(frame.message.bytes(&noise).is_some());
            }
        }
    }
}
