//! `echo`: a line in, the same line out.
//!
//! A line ends in `\n` or `\r\n` and is echoed with the end that it has; what a client sends after
//! its last line end comes back as it is. `quit` ends the connection.

use std::io::Write;

use crate::server::{Conn, Fill, Next, PreloadCx, RequestCx, Result, Service, WorkerCx};

/// A line has at most this many bytes, its end not counted.
const MAX_LINE: usize = 64 * 1024;

/// The service `echo`.
#[derive(Debug, Default)]
pub struct Echo {
    /// The line being echoed: it must leave one buffer of the connection before it enters the
    /// other.
    line: Vec<u8>,
}

/// What the buffer begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Begins {
    /// A line of so many bytes, its end included; its text is the first so many of them.
    Line { length: usize, text: usize },
    /// A line's beginning.
    Part,
    /// More than a line may have.
    TooLong,
}

impl Service for Echo {
    type Preload = ();

    const ANSWERS_TOGETHER: bool = true;

    fn preload(_: &PreloadCx) -> Result<()> {
        Ok(())
    }

    fn start((): &'static (), _: &WorkerCx) -> Result<Self> {
        Ok(Echo::default())
    }

    fn serve(&mut self, conn: &mut Conn, cx: &mut RequestCx<'_>) -> Result<Next> {
        loop {
            match begins_with(conn.buffer()) {
                Begins::Line { length, text } => return self.echo(conn, cx, length, text),
                Begins::TooLong => return refuse(conn, "a line is longer than 65536 bytes"),
                Begins::Part if conn.timed_out() => {
                    return refuse(conn, "a line took too long to arrive");
                }
                Begins::Part => {}
            }
            match conn.try_fill()? {
                Fill::Read(_) => {}
                Fill::WouldBlock => return Ok(Next::Park),
                Fill::Eof => {
                    let rest = conn.buffer().len();
                    let _ = self.echo(conn, cx, rest, rest)?;
                    return Ok(Next::Close);
                }
            }
        }
    }
}

impl Echo {
    fn echo(&mut self, conn: &mut Conn, cx: &RequestCx<'_>, length: usize, text: usize) -> Result<Next> {
        self.line.clear();
        self.line.extend_from_slice(&conn.buffer()[..length]);
        conn.consume(length);
        let text = &self.line[..text];
        cx.label(text);
        if text == b"quit" {
            return Ok(Next::Close);
        }
        conn.write_all(&self.line)?;
        Ok(Next::Park)
    }
}

fn begins_with(received: &[u8]) -> Begins {
    // One more than the longest line: it may be the carriage return of its end.
    let window = &received[..received.len().min(MAX_LINE + 2)];
    let Some(end) = window.iter().position(|&byte| byte == b'\n') else {
        let returned = usize::from(window.ends_with(b"\r"));
        return if window.len() - returned > MAX_LINE { Begins::TooLong } else { Begins::Part };
    };
    let returned = usize::from(window[..end].ends_with(b"\r"));
    match end - returned {
        text if text > MAX_LINE => Begins::TooLong,
        text => Begins::Line { length: end + 1, text },
    }
}

fn refuse(conn: &mut Conn, why: &str) -> Result<Next> {
    writeln!(conn, "ERR {why}")?;
    conn.linger();
    Ok(Next::Close)
}

#[cfg(test)]
mod tests {
    use super::super::testing::Client;
    use super::*;

    fn client() -> Client<Echo> {
        Client::new(Echo::default())
    }

    #[test]
    fn lines_come_back_in_order_with_the_ends_they_have() {
        let lines = "one\ntwo\r\n\n\r\n\u{e4}\rb\n";
        assert_eq!(client().say(lines), lines);
        let mut client = client();
        let answers: String = lines.bytes().map(|byte| client.say([byte])).collect();
        assert_eq!(answers, lines);
        assert!(!client.is_closed());
    }

    #[test]
    fn half_a_line_waits_without_the_worker() {
        let mut client = client();
        assert_eq!(client.say("one\ntw"), "one\n");
        assert_eq!(client.say("o"), "");
        assert_eq!(client.say("\n"), "two\n");
        assert_eq!(client.label(), b"two");
    }

    #[test]
    fn half_a_line_that_stays_half_is_refused_at_its_deadline() {
        let mut client = client();
        client.say("half");
        assert_eq!(client.time_out(), "ERR a line took too long to arrive\n");
        assert!(client.is_closed() && client.lingered);
    }

    #[test]
    fn a_last_line_without_its_end_comes_back_too() {
        let mut client = client();
        assert_eq!(client.say("one\nlast"), "one\n");
        assert_eq!(client.hang_up(), "last");
        assert!(client.is_closed());
    }

    #[test]
    fn quit_closes_after_what_came_before_it() {
        for quit in ["quit\n", "quit\r\n"] {
            let mut client = client();
            assert_eq!(client.say(format!("quiet\n{quit}")), "quiet\n");
            assert!(client.is_closed());
        }
    }

    #[test]
    fn the_longest_line_comes_back_and_a_longer_one_is_refused() {
        for end in ["\n", "\r\n"] {
            let longest = "x".repeat(MAX_LINE) + end;
            assert_eq!(client().say(&longest), longest);
            let mut client = client();
            assert_eq!(client.say("x".to_owned() + &longest), "ERR a line is longer than 65536 bytes\n");
            assert!(client.is_closed() && client.lingered);
        }
        let mut endless = client();
        assert_eq!(endless.say("x".repeat(MAX_LINE)), "");
        assert_eq!(endless.say("xx"), "ERR a line is longer than 65536 bytes\n");
    }
}
