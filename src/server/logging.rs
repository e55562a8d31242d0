//! Log records, each of them one write(2).
//!
//! Master, templates and workers write to the same descriptor. A record is formatted into memory and
//! then written by one call, so that the kernel keeps it whole: on a file or a terminal always, on a pipe
//! up to PIPE_BUF (4,096 bytes, pipe(7)). Only if the kernel takes a part (a long record on a full pipe), or nothing
//! for now, is the rest written by further calls, for at most [`PATIENCE`]: a reader that hangs must not stop a
//! server, and until it reads again no further record waits for it. What is not written by then is dropped, and so
//! is a record that fails in another way.
//!
//! No thread is started and no lock is held between records, so that a logger made in a template goes on
//! working in the workers that are forked from it.

use std::cell::RefCell;
use std::io::{self, IsTerminal, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use slog::{
    Drain, FnValue, Level, LevelFilter, Logger, Never, OwnedKVList, PushFnValue, PushFnValueSerializer, Record,
};
use slog_json::Json;
use slog_term::{Decorator, FullFormat, RecordDecorator};

use super::config::{LogFormat, LogLevel};
use crate::sys::output::write_now;

/// How long a record may wait for a descriptor that takes no bytes: a reader may be slow on a busy machine.
const PATIENCE: Duration = Duration::from_secs(1);

/// A logger to stderr: records of `level` and above, in `format`.
///
/// [`LogFormat::Term`] is coloured if stderr is a terminal and `NO_COLOR` is not set (no-color.org).
/// Times are RFC 3339, in UTC.
pub fn stderr_logger(format: LogFormat, level: LogLevel) -> Logger {
    let colours = io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    logger(io::stderr(), colours, format, level)
}

fn logger<F>(sink: F, colours: bool, format: LogFormat, level: LogLevel) -> Logger
where
    F: AsFd + Send + 'static,
{
    let sink = Mutex::new(Sink { fd: sink, torn: false, patience: PATIENCE });
    let records = Records { sink, format, colours };
    Logger::root(LevelFilter::new(records, level.into()).ignore_res(), slog::o!())
}

struct Records<F> {
    sink: Mutex<Sink<F>>,
    format: LogFormat,
    colours: bool,
}

impl<F: AsFd> Drain for Records<F> {
    type Ok = ();
    type Err = Never;

    fn log(&self, record: &Record<'_>, values: &OwnedKVList) -> Result<(), Never> {
        let mut text = Vec::with_capacity(256);
        let formatted = match self.format {
            LogFormat::Term => FullFormat::new(Line::new(&mut text, record.level(), self.colours))
                .use_custom_timestamp(timestamp)
                .use_original_order()
                .build()
                .log(record, values),
            LogFormat::Json => json(&mut text).log(record, values),
        };
        if formatted.is_ok() {
            self.sink.lock().unwrap_or_else(PoisonError::into_inner).write(text);
        }
        Ok(())
    }
}

fn json(text: &mut Vec<u8>) -> Json<&mut Vec<u8>> {
    let time = FnValue(|_: &Record<'_>| now().to_string());
    let level = FnValue(|record: &Record<'_>| record.level().as_short_str());
    let message = PushFnValue(|record: &Record<'_>, to: PushFnValueSerializer<'_>| to.emit(record.msg()));
    Json::new(text)
        .add_key_value(slog::o!("ts" => time))
        .add_key_value(slog::o!("level" => level))
        .add_key_value(slog::o!("msg" => message))
        .build()
}

fn timestamp(out: &mut dyn Write) -> io::Result<()> {
    write!(out, "{}", now())
}

fn now() -> humantime::Rfc3339Timestamp {
    humantime::format_rfc3339_millis(SystemTime::now())
}

struct Sink<F> {
    fd: F,
    /// The last record was cut off in the middle of its line.
    torn: bool,
    /// How long the next record may wait: not at all after one that waited in vain.
    patience: Duration,
}

impl<F: AsFd> Sink<F> {
    fn write(&mut self, mut record: Vec<u8>) {
        if self.torn {
            record.insert(0, b'\n');
        }
        let unwritten = write_out(self.fd.as_fd(), &record, self.patience).len();
        self.patience = if unwritten == 0 { PATIENCE } else { Duration::ZERO };
        let nothing = unwritten == record.len();
        self.torn = if nothing { self.torn } else { unwritten > 0 };
    }
}

/// Writes `bytes`, by one call if the kernel takes them, and returns what it would not take.
fn write_out<'a>(fd: BorrowedFd<'_>, mut bytes: &'a [u8], patience: Duration) -> &'a [u8] {
    let mut since = None;
    while !bytes.is_empty() {
        match write_now(fd, bytes) {
            Ok(written) => bytes = &bytes[written..],
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) => {
                let waited = since.get_or_insert_with(Instant::now).elapsed();
                let Some(left) = patience.checked_sub(waited).filter(|left| !left.is_zero()) else {
                    break;
                };
                // A signal or an error of poll leads to the next write, which says what is the matter.
                let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO);
                let _ = poll(&mut [PollFd::new(fd, PollFlags::POLLOUT)], timeout);
            }
            Err(_) => break,
        }
    }
    bytes
}

/// One record as a line of words: colours, and control characters in what comes from outside escaped, so
/// that no client's bytes can forge a record or steer a terminal.
struct Line<'a>(RefCell<Paint<'a>>);

impl<'a> Line<'a> {
    fn new(text: &'a mut Vec<u8>, level: Level, colours: bool) -> Self {
        Line(RefCell::new(Paint { text, level, colours, escape: false }))
    }
}

impl Decorator for Line<'_> {
    fn with_record<F>(&self, _: &Record<'_>, _: &OwnedKVList, format: F) -> io::Result<()>
    where
        F: FnOnce(&mut dyn RecordDecorator) -> io::Result<()>,
    {
        format(&mut *self.0.borrow_mut())
    }
}

struct Paint<'a> {
    text: &'a mut Vec<u8>,
    level: Level,
    colours: bool,
    /// What is written now is a message or a value.
    escape: bool,
}

impl Paint<'_> {
    fn start(&mut self, escape: bool, colour: &str) -> io::Result<()> {
        self.escape = escape;
        if self.colours {
            self.text.extend_from_slice(colour.as_bytes());
        }
        Ok(())
    }

    fn level_colour(&self) -> &'static str {
        match self.level {
            Level::Critical | Level::Error => "\x1b[31m",
            Level::Warning => "\x1b[33m",
            Level::Info => "\x1b[32m",
            Level::Debug | Level::Trace => "\x1b[36m",
        }
    }
}

const PLAIN: &str = "\x1b[0m";
const BOLD: &str = "\x1b[0;1m";

impl RecordDecorator for Paint<'_> {
    fn reset(&mut self) -> io::Result<()> {
        self.start(false, PLAIN)
    }

    fn start_msg(&mut self) -> io::Result<()> {
        self.start(true, BOLD)
    }

    fn start_level(&mut self) -> io::Result<()> {
        self.start(false, self.level_colour())
    }

    fn start_key(&mut self) -> io::Result<()> {
        self.start(true, BOLD)
    }

    fn start_value(&mut self) -> io::Result<()> {
        self.start(true, PLAIN)
    }
}

impl Write for Paint<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if !self.escape {
            self.text.extend_from_slice(bytes);
            return Ok(bytes.len());
        }
        for &byte in bytes {
            if byte.is_ascii_control() {
                self.text.extend(byte.escape_ascii());
            } else {
                self.text.push(byte);
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::fd::{AsRawFd, OwnedFd};

    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, recv, socketpair};
    use slog::{crit, debug, info};

    use super::*;

    /// A sink that keeps the bounds of each write: one write, one message.
    fn message_pair() -> (OwnedFd, OwnedFd) {
        let flags = SockFlag::SOCK_CLOEXEC;
        socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags).expect("a pair")
    }

    fn received(reader: &OwnedFd) -> Vec<String> {
        std::iter::from_fn(|| {
            let mut bytes = vec![0; 1 << 18];
            let length = recv(reader.as_raw_fd(), &mut bytes, MsgFlags::MSG_DONTWAIT).ok()?;
            bytes.truncate(length);
            (length > 0).then(|| String::from_utf8(bytes).expect("text"))
        })
        .collect()
    }

    #[test]
    fn a_record_is_one_write_however_long_in_either_format() {
        let long = "x".repeat(100_000);
        for format in [LogFormat::Term, LogFormat::Json] {
            for colours in [false, true] {
                let (writer, reader) = message_pair();
                let log = logger(writer, colours, format, LogLevel::Info);
                info!(log, "worker is ready"; "slot" => 3, "pid" => 42, "took_ms" => 7);
                info!(log, "{long}"; "why" => "a \"quoted\" reason");
                let records = received(&reader);
                assert_eq!(records.len(), 2, "{format} in colours: {colours}");
                for record in records {
                    assert_eq!(record.matches('\n').count(), 1);
                    assert!(record.ends_with('\n'));
                }
            }
        }
    }

    #[test]
    fn a_plain_line_has_an_rfc_3339_time_the_message_and_the_fields_in_order() {
        let (writer, reader) = message_pair();
        let log = logger(writer, false, LogFormat::Term, LogLevel::Info);
        info!(log, "worker is ready"; "slot" => 3, "pid" => 42, "took_ms" => 7);
        let record = received(&reader).concat();
        let (time, rest) = record.split_once(' ').expect("a time");
        humantime::parse_rfc3339(time).expect("RFC 3339");
        assert_eq!(rest, "INFO worker is ready, slot: 3, pid: 42, took_ms: 7\n");
    }

    #[test]
    fn a_json_line_carries_the_fields_as_values() {
        let (writer, reader) = message_pair();
        let log = logger(writer, false, LogFormat::Json, LogLevel::Info);
        info!(log, "worker is ready"; "slot" => 3, "why" => "a\nb");
        let record = received(&reader).concat();
        for part in [r#""level":"INFO""#, r#""msg":"worker is ready""#, r#""slot":3"#, r#""why":"a\nb""#] {
            assert!(record.contains(part), "{record}\nshould hold {part}");
        }
    }

    #[test]
    fn colours_are_for_terminals_and_end_with_the_line() {
        let (writer, reader) = message_pair();
        crit!(logger(writer, true, LogFormat::Term, LogLevel::Info), "gone");
        let record = received(&reader).concat();
        assert!(record.contains("\x1b[31mCRIT"), "{record:?}");
        assert!(record.ends_with("\x1b[0m\n"), "{record:?}");
    }

    #[test]
    fn bytes_from_outside_neither_forge_a_record_nor_steer_a_terminal() {
        let (writer, reader) = message_pair();
        let log = logger(writer, false, LogFormat::Term, LogLevel::Info);
        info!(log, "slow"; "label" => "GET /\n2026 INFO forged\x1b[2J");
        let record = received(&reader).concat();
        assert!(record.ends_with("label: GET /\\n2026 INFO forged\\x1b[2J\n"), "{record:?}");
    }

    #[test]
    fn records_below_the_level_are_not_written() {
        let (writer, reader) = message_pair();
        let log = logger(writer, false, LogFormat::Term, LogLevel::Info);
        debug!(log, "unseen");
        assert_eq!(received(&reader), [""; 0]);
    }

    #[test]
    fn a_descriptor_that_takes_parts_gets_the_whole_record_in_the_end() {
        let (mut reader, writer) = io::pipe().expect("a pipe");
        fcntl(&writer, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).expect("non-blocking");
        let long = "y".repeat(1_000_000);
        let sender = std::thread::spawn(move || {
            info!(logger(writer, false, LogFormat::Term, LogLevel::Info), "{long}");
        });
        let mut text = String::new();
        reader.read_to_string(&mut text).expect("read");
        sender.join().expect("no panic");
        assert_eq!(text.matches('y').count(), 1_000_000);
        assert!(text.ends_with('\n'));
    }

    #[test]
    fn a_reader_that_hangs_loses_records_and_the_next_begins_a_line() {
        let (mut reader, writer) = io::pipe().expect("a pipe");
        fcntl(&writer, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).expect("non-blocking");
        let log = logger(writer, false, LogFormat::Term, LogLevel::Info);
        info!(log, "{}", "z".repeat(1_000_000));
        info!(log, "dropped");
        let mut half = vec![0; 1 << 16];
        reader.read_exact(&mut half).expect("what the pipe held");
        info!(log, "after");
        drop(log);
        let mut text = String::new();
        reader.read_to_string(&mut text).expect("read");
        assert!(text.starts_with('\n') && text.ends_with("INFO after\n"), "{text}");
        assert!(!text.contains("dropped"));
    }

    #[test]
    fn a_write_error_is_no_panic() {
        let (reader, writer) = io::pipe().expect("a pipe");
        drop(reader);
        for format in [LogFormat::Term, LogFormat::Json] {
            let writer = writer.try_clone().expect("dup");
            info!(logger(writer, false, format, LogLevel::Info), "nobody reads");
        }
        let unwritable = std::fs::File::open("/dev/null").expect("open to read");
        info!(logger(unwritable, false, LogFormat::Term, LogLevel::Info), "EBADF");
    }

    #[test]
    fn records_of_many_loggers_on_one_pipe_never_interleave() {
        let (mut reader, writer) = io::pipe().expect("a pipe");
        std::thread::scope(|scope| {
            for name in 0..8 {
                let writer = writer.try_clone().expect("dup");
                scope.spawn(move || {
                    let log = logger(writer, false, LogFormat::Json, LogLevel::Info);
                    for _ in 0..200 {
                        info!(log, "{}", "w".repeat(500); "name" => name);
                    }
                });
            }
            drop(writer);
            let mut text = String::new();
            reader.read_to_string(&mut text).expect("read");
            assert_eq!(text.lines().count(), 1600);
            for line in text.lines() {
                assert!(line.starts_with(r#"{"ts":"#) && line.ends_with('}'), "{line}");
                assert_eq!(line.matches('w').count(), 500, "{line}");
            }
        });
    }
}
