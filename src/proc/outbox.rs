//! What a master has to tell a process and the socket has not taken yet.
//!
//! Forks are sent only so many ahead of their answers: each has two descriptors on its way, and the kernel
//! limits how many may be (unix(7), ETOOMANYREFS). All else waits only for room in the socket.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::channel::Packet;
use super::error::Error;
use super::message::{Blob, Command, Frame, Ticket};
use super::node::Node;
use super::unanswered::Unanswered;
use crate::sys::seqpacket::{self, MAX_DESCRIPTORS};

/// How long a full descriptor table is given to get room for a fork's socket.
const PATIENCE: Duration = Duration::from_millis(500);

/// Bytes of arguments that are gathered before they are sent of their own accord.
const GATHER: usize = 16 << 10;

#[derive(Default)]
pub(crate) struct Outbox {
    queue: VecDeque<Letter>,
    /// Arguments and descriptors that travel with the next command.
    gathered: Gathered,
    unanswered: Unanswered,
    /// Since when there was no descriptor for a fork's socket; until one was made.
    short_since: Option<Instant>,
}

#[derive(Default)]
struct Gathered {
    args: Vec<Blob>,
    bytes: usize,
    fds: Vec<OwnedFd>,
}

struct Letter {
    packet: Packet,
    fds: Vec<OwnedFd>,
    fork: Option<Fork>,
}

/// A fork in the queue. Its socket is made only when it is sent, so a long queue holds no descriptors.
pub(crate) struct Fork {
    pub(crate) ticket: Ticket,
    pub(crate) child: Arc<Node>,
}

/// What [`Outbox::send_next`] did.
pub(crate) enum Sent {
    /// The first letter is on its way.
    Letter,
    /// A fork is on its way; this is the master's end of the child's socket.
    Fork(Fork, OwnedFd),
    /// A fork could not be sent and is out of the queue.
    ForkFailed(Fork, Error),
    /// There is nothing to send.
    Empty,
    /// The next fork waits for an answer to an earlier one.
    WaitForAnswer,
    /// The socket has no room.
    WaitForRoom,
    /// There is no descriptor for the next fork's socket, or too many of this user are on their way, in any sockets
    /// (unix(7), ETOOMANYREFS). No readiness tells when that ends.
    WaitForLimit,
}

impl Outbox {
    /// Keeps an argument for the next command.
    pub(crate) fn give_arg(&mut self, arg: Vec<u8>) -> io::Result<()> {
        if self.gathered.bytes + arg.len() > GATHER {
            self.close_letter(Vec::new(), None)?;
        }
        self.gathered.bytes += arg.len();
        self.gathered.args.push(Blob(arg));
        Ok(())
    }

    /// Keeps a descriptor for the next command.
    pub(crate) fn give_fd(&mut self, fd: OwnedFd) -> io::Result<()> {
        // One place is left for a child's socket or the memory file of a large message.
        if self.gathered.fds.len() + 1 == MAX_DESCRIPTORS {
            self.close_letter(Vec::new(), None)?;
        }
        self.gathered.fds.push(fd);
        Ok(())
    }

    /// Queues a command, and before it what was given.
    pub(crate) fn push(&mut self, command: Command, fds: Vec<OwnedFd>) -> io::Result<()> {
        // A command's own descriptors come with it alone, and what the master waits for comes in small letters.
        if !fds.is_empty() || matches!(command, Command::Sync { .. } | Command::Run { .. }) {
            self.close_letter_if_large(&fds)?;
        }
        self.close_letter(vec![command], None).map(|()| self.attach(fds))
    }

    /// Queues a fork, and before it what was given.
    pub(crate) fn push_fork(&mut self, fork: Fork) -> io::Result<()> {
        // What was given travels by itself: a fork that cannot be sent must not take it along.
        self.close_letter(Vec::new(), None)?;
        self.close_letter(vec![Command::Fork { ticket: fork.ticket }], Some(fork))
    }

    /// Puts a command before all others: it is about forks that were sent, and those that wait do so for its answers.
    pub(crate) fn push_first(&mut self, command: Command) -> io::Result<()> {
        let packet = Packet::encode(&vec![command])?;
        self.queue.push_front(Letter { packet, fds: Vec::new(), fork: None });
        Ok(())
    }

    fn close_letter_if_large(&mut self, fds: &[OwnedFd]) -> io::Result<()> {
        let gathered = &self.gathered;
        if gathered.bytes > GATHER || gathered.fds.len() + fds.len() + 1 >= MAX_DESCRIPTORS {
            self.close_letter(Vec::new(), None)?;
        }
        Ok(())
    }

    fn close_letter(&mut self, commands: Frame<Command>, fork: Option<Fork>) -> io::Result<()> {
        let Gathered { args, fds, bytes } = std::mem::take(&mut self.gathered);
        let mut frame = Frame::with_capacity(commands.len() + 1);
        if !args.is_empty() || !fds.is_empty() {
            frame.push(Command::Give { args, fds: u32::try_from(fds.len()).unwrap_or(u32::MAX) });
        }
        frame.extend(commands);
        if !frame.is_empty() {
            match Packet::encode(&frame) {
                Ok(packet) => self.queue.push_back(Letter { packet, fds, fork }),
                Err(error) => {
                    // What was given before is kept: the caller was told that it would arrive.
                    if let Some(Command::Give { args, .. }) = frame.into_iter().next() {
                        self.gathered = Gathered { args, bytes, fds };
                    }
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    fn attach(&mut self, fds: Vec<OwnedFd>) {
        if let Some(letter) = self.queue.back_mut() {
            letter.fds.extend(fds);
        }
    }

    /// Whether something waits to be sent.
    pub(crate) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// The forks that were sent and not yet answered in full.
    pub(super) fn unanswered(&mut self) -> &mut Unanswered {
        &mut self.unanswered
    }

    /// Everything that will never be sent.
    pub(crate) fn abandon(&mut self) -> Vec<Fork> {
        self.queue.drain(..).filter_map(|letter| letter.fork).collect()
    }

    /// Sends the first letter, if it can be sent now.
    pub(crate) fn send_next(&mut self, socket: BorrowedFd<'_>, now: Instant) -> io::Result<Sent> {
        let Some(letter) = self.queue.front() else {
            return Ok(Sent::Empty);
        };
        let mut fds: Vec<RawFd> = letter.fds.iter().map(AsRawFd::as_raw_fd).collect();
        if letter.fork.is_none() {
            return match self.deliver(socket, &fds) {
                Ok(Some(_)) => Ok(Sent::Letter),
                Ok(None) => Ok(Sent::WaitForRoom),
                Err(error) if error.raw_os_error() == Some(nix::libc::ETOOMANYREFS) => Ok(Sent::WaitForLimit),
                Err(error) => Err(error),
            };
        }
        if self.unanswered.is_full() {
            return Ok(Sent::WaitForAnswer);
        }
        let (ours, theirs) = match seqpacket::pair() {
            Ok(ends) => ends,
            Err(error) => return Ok(self.handle_shortage(now, error)),
        };
        self.short_since = None;
        fds.push(theirs.as_raw_fd());
        match self.deliver(socket, &fds) {
            Ok(Some(Letter { fork: Some(fork), .. })) => {
                self.unanswered.sent(fork.ticket);
                Ok(Sent::Fork(fork, ours))
            }
            Ok(_) => Ok(Sent::WaitForRoom),
            Err(error) if error.raw_os_error() == Some(nix::libc::ETOOMANYREFS) => Ok(Sent::WaitForLimit),
            Err(error) => Err(error),
        }
    }

    /// Sends the first letter with these descriptors; it comes back once it is sent.
    fn deliver(&mut self, socket: BorrowedFd<'_>, fds: &[RawFd]) -> io::Result<Option<Letter>> {
        let sent = match self.queue.front() {
            Some(letter) => letter.packet.send(socket, fds)?,
            None => false,
        };
        Ok(if sent { self.queue.pop_front() } else { None })
    }

    fn handle_shortage(&mut self, now: Instant, error: io::Error) -> Sent {
        let since = *self.short_since.get_or_insert(now);
        if !self.unanswered.is_empty() {
            // Some of the descriptors under way come free with the answers to come …
            Sent::WaitForAnswer
        } else if now < since + PATIENCE {
            // … and others with the ends of processes that live now.
            Sent::WaitForLimit
        } else {
            self.fail_fork(Error::system("make the new process's socket", error))
        }
    }

    fn fail_fork(&mut self, error: Error) -> Sent {
        match self.queue.pop_front() {
            Some(Letter { fork: Some(fork), .. }) => Sent::ForkFailed(fork, error),
            _ => Sent::Letter,
        }
    }
}
