//! A client's connection: a stream socket, TCP or Unix, with a buffer each way.
//!
//! Every call on the socket is tried first and waited for only when it would block, so a busy
//! worker makes one system call to receive a request and one to send its answer. Waiting ends at
//! the request's deadline. What is written is kept until the request ends, until there is much of
//! it, or until the connection has to wait for input, so a client is never left waiting for an
//! answer that sits in the buffer.

use std::fmt;
use std::io::{self, BufRead, Read, Write};
use std::mem;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use socket2::{SockAddr, SockRef};

use super::abort::PeerState;
use super::in_hand::{InHand, Serial};
use super::input::Input;
use crate::sys::clock::Monotonic;
use crate::sys::hangup;
use crate::sys::stream::{self, Wait};

/// With more than this unsent, a write sends.
const MUCH_OUTPUT: usize = 16 * 1024;

/// One client's connection.
///
/// Reading takes what was received and waits for more only when there is none. Writing goes to a
/// buffer, which the worker sends when the request ends; [`flush`](Write::flush) sends it now.
#[derive(Debug)]
pub struct Conn {
    socket: OwnedFd,
    peer: Peer,
    input: Input,
    output: Vec<u8>,
    /// The request in hand, while this connection is served.
    request: Option<(&'static InHand, Serial)>,
    /// So much at the output's front answers earlier requests.
    earlier: usize,
    /// Something that is no earlier answer was handed to the socket.
    response_begun: bool,
    /// What was set beside the request's deadline.
    deadline: Option<Monotonic>,
    /// The peer has sent its last byte.
    ended: bool,
    timed_out: bool,
    lingers: bool,
    consumed: bool,
}

/// What [`Conn::try_fill`] found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fill {
    /// So many bytes more are in the buffer; never zero.
    Read(usize),
    /// The peer sends no more.
    Eof,
    /// Nothing is there now.
    WouldBlock,
}

/// Who is at the other end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Peer {
    /// A TCP client.
    Inet(SocketAddr),
    /// A client of a Unix socket; such clients have no address.
    Unix,
    /// A client that was gone before [`Conn::from_fd`] took it over.
    Gone,
}

impl From<SockAddr> for Peer {
    fn from(address: SockAddr) -> Self {
        address.as_socket().map_or(Self::Unix, Self::Inet)
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Inet(address) => address.fmt(f),
            Self::Unix => f.write_str("unix"),
            Self::Gone => f.write_str("gone"),
        }
    }
}

impl Conn {
    /// A connection over a connected stream socket, which becomes non-blocking. The worker loop
    /// makes its own; this is for a program with its own loop, and for tests over a socket pair.
    ///
    /// # Errors
    /// Those of fcntl(2).
    pub fn from_fd(socket: OwnedFd) -> io::Result<Self> {
        let flags = OFlag::from_bits_retain(fcntl(&socket, FcntlArg::F_GETFL)?);
        fcntl(&socket, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
        let peer = SockRef::from(&socket).peer_addr().map_or(Peer::Gone, Peer::from);
        Ok(Self::new(socket, peer))
    }

    /// A connection over a socket that is known to be non-blocking.
    pub(crate) fn new(socket: OwnedFd, peer: Peer) -> Self {
        Self {
            socket,
            peer,
            input: Input::default(),
            output: Vec::new(),
            request: None,
            earlier: 0,
            response_begun: false,
            deadline: None,
            ended: false,
            timed_out: false,
            lingers: false,
            consumed: false,
        }
    }

    /// Who is at the other end.
    pub fn peer(&self) -> Peer {
        self.peer
    }

    /// Whether the client has sent its end (FIN) or is gone altogether (RST, or a Unix socket that is closed). Nothing is
    /// read or written, so it can be asked in the middle of anything; it costs one system call that never waits.
    ///
    /// A client that only says "this is all I send" and waits for its answer looks the same over TCP: where there are such
    /// clients, ask [`peer_state`](Self::peer_state).
    pub fn peer_gone(&self) -> bool {
        self.peer_state() != PeerState::Open
    }

    /// What is left of the client; as [`peer_gone`](Self::peer_gone), with the difference between one that sends no more and
    /// one that is gone.
    pub fn peer_state(&self) -> PeerState {
        match hangup::look(self.socket.as_fd()) {
            hangup::Peer::Open => PeerState::Open,
            hangup::Peer::Finished => PeerState::Finished,
            hangup::Peer::Gone => PeerState::Gone,
        }
    }

    /// What was received and not yet consumed.
    pub fn buffer(&self) -> &[u8] {
        self.input.bytes()
    }

    /// Takes `count` bytes off the buffer's front.
    ///
    /// # Panics
    /// If the buffer holds fewer.
    pub fn consume(&mut self, count: usize) {
        self.consumed |= count > 0;
        self.input.consume(count);
    }

    /// Receives more into the buffer; waits if there is nothing, and sends what is unsent before it
    /// waits. Gives the number of new bytes, 0 when the peer sends no more.
    ///
    /// # Errors
    /// `TimedOut` when the request's deadline has passed; `FileTooLarge` when the buffer holds a
    /// mebibyte and none of it is consumed; else those of recv(2) and send(2).
    pub fn fill(&mut self) -> io::Result<usize> {
        loop {
            if self.is_overdue() {
                return Err(io::ErrorKind::TimedOut.into());
            }
            match self.try_fill()? {
                Fill::Read(count) => return Ok(count),
                Fill::Eof => return Ok(0),
                Fill::WouldBlock => {
                    self.flush()?;
                    stream::wait(self.socket.as_fd(), Wait::Readable, self.due())?;
                }
            }
        }
    }

    /// Receives what is there into the buffer and never waits.
    ///
    /// # Errors
    /// As for [`fill`](Self::fill), without `TimedOut`.
    pub fn try_fill(&mut self) -> io::Result<Fill> {
        if self.ended {
            return Ok(Fill::Eof);
        }
        match self.input.receive(self.socket.as_fd()) {
            Ok(0) => {
                self.ended = true;
                Ok(Fill::Eof)
            }
            Ok(count) => Ok(Fill::Read(count)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(Fill::WouldBlock),
            Err(error) => Err(error),
        }
    }

    /// Reads a line and takes off its end, `\n` or `\r\n`. None when the peer has ended; what it
    /// sent after its last line end is a line as well.
    ///
    /// # Errors
    /// `InvalidData` for a line longer than `max` bytes, its end not counted, or one that is not
    /// UTF-8; else as for [`fill`](Self::fill).
    pub fn read_line(&mut self, max: usize) -> io::Result<Option<String>> {
        let mut searched = 0;
        let end = loop {
            let unsearched = &self.buffer()[searched..];
            if let Some(found) = unsearched.iter().position(|&byte| byte == b'\n') {
                break Some(searched + found);
            }
            searched = self.buffer().len();
            // One more than the line itself: it may be the carriage return of its end.
            if searched > max.saturating_add(1) {
                return Err(line_error(format!("a line is longer than {max} bytes")));
            }
            if self.fill()? == 0 {
                break None;
            }
        };
        let line = &self.buffer()[..end.unwrap_or(searched)];
        if line.is_empty() && end.is_none() {
            return Ok(None);
        }
        let text = match end {
            Some(_) => line.strip_suffix(b"\r").unwrap_or(line),
            None => line,
        };
        if text.len() > max {
            return Err(line_error(format!("a line is longer than {max} bytes")));
        }
        let text =
            std::str::from_utf8(text).map_err(|error| line_error(format!("a line is not UTF-8: {error}")))?.to_owned();
        self.consume(end.map_or(searched, |end| end + 1));
        Ok(Some(text))
    }

    /// Whether the peer has sent its last byte; what came before it may still be in the buffer.
    pub fn has_ended(&self) -> bool {
        self.ended
    }

    /// Whether this is the last call of `serve` for an incomplete request whose deadline has passed:
    /// time to say so to the client and close.
    pub fn timed_out(&self) -> bool {
        self.timed_out
    }

    /// Asks for a slow close. A socket closed with unread bytes in it resets the connection, and
    /// the client may lose the answer that it has not read yet. With this, the worker closes only
    /// the sending side, and drops what still comes for up to two seconds or 256 KiB.
    pub fn linger(&mut self) {
        self.lingers = true;
    }

    /// When waiting ends; none: never. In the worker loop it ends at the request's own deadline as
    /// well, and what is set here holds until `serve` returns.
    pub fn set_deadline(&mut self, deadline: Option<Instant>) {
        let now = (Monotonic::now(), Instant::now());
        self.deadline = deadline.map(|at| now.0.after(at.saturating_duration_since(now.1)));
    }

    /// The request in hand, if it is this connection's. It is not when a service has taken the connection away and kept it.
    fn in_hand(&self) -> Option<&'static InHand> {
        let (in_hand, serial) = self.request?;
        in_hand.is(serial).then_some(in_hand)
    }

    /// When waiting ends.
    fn due(&self) -> Option<Monotonic> {
        let of_request = self.in_hand().and_then(InHand::due);
        self.deadline.into_iter().chain(of_request).min()
    }

    fn is_overdue(&self) -> bool {
        self.due().is_some_and(|due| due <= Monotonic::now())
    }

    /// Says that the response has begun, so that nobody says last words after it. What is written to the connection
    /// tells it by itself; a service that sends through the descriptor ([`as_fd`](AsFd::as_fd)) calls this before.
    pub fn begin_response(&mut self) {
        if let Some(request) = self.in_hand().filter(|_| !self.response_begun) {
            self.response_begun = true;
            request.last_words.close();
        }
    }

    fn send_output(&mut self) -> io::Result<()> {
        if self.output.is_empty() {
            return Ok(());
        }
        if self.output.len() > self.earlier {
            self.begin_response();
            return self.send_all();
        }
        // A worker that dies in the middle of these answers cannot tell what of them is sent.
        if let Some(request) = self.in_hand() {
            request.last_words.hush();
        }
        let result = self.send_all();
        if let Some(request) = self.in_hand() {
            request.last_words.resume(&self.output);
        }
        result
    }

    fn send_all(&mut self) -> io::Result<()> {
        let mut sent = 0;
        let mut result = Ok(());
        while sent < self.output.len() && result.is_ok() {
            result = self.send(&self.output[sent..]).map(|count| sent += count);
        }
        self.output.drain(..sent);
        self.earlier = self.earlier.saturating_sub(sent);
        result
    }

    /// Sends what fits, at least one byte. Waits for room only while the deadline has not passed.
    fn send(&self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            match stream::send(self.socket.as_fd(), bytes) {
                Ok(count) => return Ok(count),
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => {
                    stream::wait(self.socket.as_fd(), Wait::Writable, self.due())?;
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
}

fn line_error(words: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, words)
}

/// What only the worker loop does with a connection.
impl Conn {
    /// Takes the worker's buffers for a visit, with what the connection holds put into them.
    pub(super) fn borrow_buffers(&mut self, spare: &mut Buffers) {
        self.input.unpack_into(&mut spare.input);
        if self.output.capacity() == 0 {
            mem::swap(&mut self.output, &mut spare.output);
        }
    }

    /// Gives the buffers back and keeps what little memory the unconsumed bytes need.
    pub(super) fn return_buffers(&mut self, spare: &mut Buffers) {
        self.input.pack_from(&mut spare.input);
        if self.output.is_empty() {
            spare.output = mem::take(&mut self.output);
            if spare.output.capacity() > 4 * MUCH_OUTPUT {
                spare.output = Vec::new();
            }
        }
    }

    /// Begins a request, or goes on with one of which more has come.
    pub(super) fn begin(&mut self, request: &'static InHand, timed_out: bool) {
        self.request = Some((request, request.begin()));
        request.line.open(self.socket.as_fd());
        self.earlier = self.output.len();
        if !self.response_begun {
            request.last_words.open(self.socket.as_fd(), &self.output);
        }
        self.deadline = None;
        self.timed_out = timed_out;
        self.consumed = false;
    }

    /// No request of this connection is in hand any more. `over`: nor is one incomplete.
    pub(super) fn end(&mut self, over: bool) {
        if let Some(request) = self.in_hand() {
            request.end();
        }
        self.request = None;
        self.response_begun &= !over;
        self.deadline = None;
    }

    /// Whether the client has left, rather than said that it sends no more. Over TCP that is hard to tell: one that has
    /// not been read to its end counts as gone.
    pub(super) fn has_left(&self) -> bool {
        match self.peer_state() {
            PeerState::Open => false,
            PeerState::Finished => !self.ended && matches!(self.peer(), Peer::Inet(_)),
            PeerState::Gone => true,
        }
    }

    /// Whether anything was consumed since the request began.
    pub(super) fn has_consumed(&self) -> bool {
        self.consumed
    }

    /// Closes the sending side, if the service has asked for a slow close and the client is there.
    pub(super) fn begin_linger(&mut self) -> bool {
        self.lingers && !self.ended && stream::shut_write(self.socket.as_fd()).is_ok()
    }

    /// Drops what has come, up to `left` bytes. False when there is nothing more to wait for.
    ///
    /// Never inlined: its buffer would become a part of the worker loop's own frame, and so a page more
    /// of memory in every worker.
    #[inline(never)]
    pub(super) fn drop_input(&mut self, left: &mut usize) -> bool {
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

    /// How many bytes are written and not sent.
    pub(super) fn output_len(&self) -> usize {
        self.output.len()
    }

    /// Drops what is written and not sent of the response in hand; earlier ones stay.
    pub(super) fn forget_response(&mut self) {
        self.output.truncate(self.earlier);
    }
}

/// The buffers of a worker, lent to the connection that it serves.
#[derive(Debug, Default)]
pub(super) struct Buffers {
    input: Input,
    output: Vec<u8>,
}

/// A service may have put another connection in this one's place, and drop this one in the middle of its
/// request: its descriptor is soon another's.
impl Drop for Conn {
    fn drop(&mut self) {
        self.end(true);
    }
}

impl Read for Conn {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let count = self.fill_buf()?.read(into)?;
        self.consume(count);
        Ok(count)
    }
}

impl BufRead for Conn {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.input.is_empty() {
            self.fill()?;
        }
        Ok(self.input.bytes())
    }

    fn consume(&mut self, count: usize) {
        Conn::consume(self, count);
    }
}

impl Write for Conn {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.output.len() + bytes.len() > MUCH_OUTPUT {
            self.send_output()?;
        }
        if bytes.len() > MUCH_OUTPUT {
            self.begin_response();
            return self.send(bytes);
        }
        self.output.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.send_output()
    }
}

impl AsFd for Conn {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

#[cfg(test)]
mod tests;
