//! The connection's way out, and what a service keeps while it is not called.

use std::any::Any;
use std::io::{self, Write};
use std::os::fd::AsFd;

use nix::errno::Errno;

use super::Conn;
use super::output::{MUCH, ROOM};
use crate::sys::stream::{self, Wait};

impl Conn {
    /// How many bytes are written and not sent: of this answer, and of those to earlier requests of a client that sends
    /// several at once.
    pub fn unsent(&self) -> usize {
        self.output.len()
    }

    /// Whether a long answer may go on: false while more than 64 KiB of it wait for the client. Then
    /// [`Next::Room`](super::super::Next::Room) has the worker send them and call again, and meanwhile it serves others.
    /// To write on all the same keeps up to a mebibyte in memory, and holds the worker after that.
    pub fn has_room(&self) -> bool {
        self.output.len() <= ROOM
    }

    /// Sends what the client takes now and never waits. Gives whether nothing is left unsent.
    ///
    /// # Errors
    /// Those of send(2).
    pub fn try_flush(&mut self) -> io::Result<bool> {
        if self.output.is_empty() {
            return Ok(true);
        }
        if self.output.earlier_alone().is_none() {
            self.begin_response();
            return Ok(self.output.send(self.socket.as_fd())?);
        }
        // A worker that dies in the middle of these answers cannot tell what of them is sent.
        let in_hand = self.in_hand();
        if let Some(request) = in_hand {
            request.last_words.hush();
        }
        let result = self.output.send(self.socket.as_fd());
        if let Some(request) = in_hand {
            request.last_words.resume(self.output.earlier_alone().unwrap_or_default());
        }
        Ok(result?)
    }

    /// Says that the response has begun, so that nobody says last words after it. What is written to the connection
    /// tells it by itself; a service that sends through the descriptor ([`as_fd`](AsFd::as_fd)) calls this before.
    pub fn begin_response(&mut self) {
        if let Some(request) = self.in_hand().filter(|_| !self.response_begun) {
            self.response_begun = true;
            request.last_words.close();
        }
    }

    /// Leaves something for the next call of `serve` on this connection: how far a request has come, when it returns
    /// [`Next::More`](super::super::Next::More) or [`Next::Room`](super::super::Next::Room). It replaces what was left
    /// before, and ends with the connection if nobody takes it.
    ///
    /// ```
    /// # use hatchery::server::{Conn, Next, RequestCx, Result};
    /// # use std::io::Write;
    /// /// How much of a long answer is still to be written.
    /// struct Left(usize);
    ///
    /// fn serve(conn: &mut Conn, _: &mut RequestCx) -> Result<Next> {
    ///     let mut left = match conn.take_state() {
    ///         Some(Left(left)) => left,
    ///         None => match conn.read_line(20)? {
    ///             Some(line) => line.parse()?,
    ///             None => return Ok(Next::Close),
    ///         },
    ///     };
    ///     while left > 0 {
    ///         if !conn.has_room() {
    ///             conn.keep_state(Left(left));
    ///             return Ok(Next::Room); // other clients have their turn
    ///         }
    ///         conn.write_all(b"*")?;
    ///         left -= 1;
    ///     }
    ///     Ok(Next::Park)
    /// }
    /// ```
    pub fn keep_state<T: Any + Send>(&mut self, state: T) {
        self.state = Some(Box::new(state));
    }

    /// Takes what was left by [`keep_state`](Self::keep_state); none if nothing of this type was.
    pub fn take_state<T: Any + Send>(&mut self) -> Option<T> {
        self.state.take_if(|state| state.is::<T>())?.downcast().ok().map(|state| *state)
    }

    /// Keeps what is much, after what was written before it; at least one byte of it.
    fn write_much(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.is_empty() {
            return Ok(0);
        }
        let all_is_sent = self.try_flush()?;
        if all_is_sent && bytes.len() > MUCH {
            self.begin_response();
            match stream::send(self.socket.as_fd(), bytes) {
                Ok(count) => return Ok(count),
                Err(Errno::EAGAIN | Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        loop {
            match self.output.append_some(bytes) {
                0 => stream::wait(self.socket.as_fd(), Wait::Writable, self.due())?,
                count => return Ok(count),
            }
            self.try_flush()?;
        }
    }
}

/// Writing is done when the bytes are sent or kept. It waits for the client only while a mebibyte is unsent.
impl Write for Conn {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if !self.output.has_room_for(bytes.len()) {
            return self.write_much(bytes);
        }
        self.output.append(bytes);
        Ok(bytes.len())
    }

    /// Sends all that is written, and waits until the client has taken it, at most until the deadline. At the end of a
    /// request it is not needed.
    fn flush(&mut self) -> io::Result<()> {
        while !self.try_flush()? {
            stream::wait(self.socket.as_fd(), Wait::Writable, self.due())?;
        }
        Ok(())
    }
}
