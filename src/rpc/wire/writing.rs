//! What is to be said, packed into datagrams and sent.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};

use nix::libc;

use super::{CallId, HEADER, Kind};
use crate::rpc::contract::{Body, Encoded};
use crate::rpc::lanes::Loaded;
use crate::sys::seqpacket;

/// Small frames are packed into datagrams of about this length: so that hundreds share one system call, and some
/// datagrams still fit the socket's buffer (208 KiB by default), so that both sides work at the same time.
const PACKED: usize = 16 << 10;

/// What waits to be sent, packed into datagrams.
#[derive(Debug, Default)]
pub(in crate::rpc) struct Outbox {
    queue: VecDeque<Batch>,
    weight: u64,
}

/// One datagram.
#[derive(Debug, Default)]
pub(in crate::rpc) struct Batch {
    bytes: Vec<u8>,
    pub(super) fds: Vec<OwnedFd>,
    /// The messages in lanes; the files of new ones are in `fds`.
    loaded: Vec<Loaded>,
    /// A message of it is in a memory file.
    has_file: bool,
    weight: u64,
    /// The number of the last call in it, counted from 1 in the order of submission; 0 if it has none.
    pub(in crate::rpc) last_call: u64,
}

/// What became of a batch.
pub(in crate::rpc) enum Sent {
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
    pub(in crate::rpc) fn push(&mut self, kind: Kind, id: CallId, message: Encoded, number: u64) {
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

    pub(in crate::rpc) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Whether at least one datagram is as full as it gets.
    pub(in crate::rpc) fn has_full_batch(&self) -> bool {
        self.queue.len() > 1
    }

    /// Bytes that wait.
    pub(in crate::rpc) fn weight(&self) -> u64 {
        self.weight
    }

    pub(in crate::rpc) fn pop(&mut self) -> Option<Batch> {
        let batch = self.queue.pop_front()?;
        self.weight -= batch.weight;
        Some(batch)
    }

    /// Takes back what could not be sent.
    pub(in crate::rpc) fn unpop(&mut self, batch: Batch) {
        self.weight += batch.weight;
        self.queue.push_front(batch);
    }

    pub(in crate::rpc) fn clear(&mut self) {
        *self = Outbox::default();
    }
}

impl Batch {
    /// Sends it, at once or not at all.
    pub(in crate::rpc) fn send(&mut self, socket: BorrowedFd<'_>) -> Sent {
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
