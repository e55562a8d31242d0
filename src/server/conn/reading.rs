//! The connection's way in.

use std::io::{self, BufRead, Read, Write};
use std::os::fd::AsFd;

use super::Conn;
use crate::sys::stream::{self, Wait};

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

impl Conn {
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

fn line_error(words: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, words)
}
