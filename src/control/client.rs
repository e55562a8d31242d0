//! Who asks at a control socket, and waits for the answer.

use std::io::{self, ErrorKind, Read, Write};
use std::time::{Duration, Instant};

use socket2::{Domain, SockAddr, Socket, Type};

use super::protocol::{self, Answer, Refused, Request};
use crate::server::{Address, ControlAddress, ReloadEnd, Status};

/// The longest answer: a server of 4,096 slots with a label in each takes about a tenth of it.
const LONGEST_ANSWER: usize = 16 << 20;

/// There is no answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AskError {
    /// Nobody answers there: no server runs, it answers elsewhere, or this user may not open the socket.
    #[error("no server answers at {address}: {source}")]
    NoServer {
        /// The control socket's address.
        address: ControlAddress,
        /// The kernel's words.
        source: io::Error,
    },
    /// The server does not answer this question.
    #[error("the server at {address} refuses: {refused}")]
    Refused {
        /// The control socket's address.
        address: ControlAddress,
        /// Why.
        refused: Refused,
    },
    /// The time was over before the answer came. What was asked for goes on.
    #[error("the server at {address} has not answered within {timeout:?}")]
    TimedOut {
        /// The control socket's address.
        address: ControlAddress,
        /// How long it was waited for.
        timeout: Duration,
    },
    /// The server has hung up before it answered: most likely it has ended.
    #[error("the server at {address} has hung up before it answered: {source}")]
    HungUp {
        /// The control socket's address.
        address: ControlAddress,
        /// What was seen of it.
        source: io::Error,
    },
    /// What came is no answer: something else listens there.
    #[error("what answers at {address} is no server of this kind: {words}")]
    Nonsense {
        /// The control socket's address.
        address: ControlAddress,
        /// What is wrong with it.
        words: String,
    },
}

/// Asks the server how it stands; without a timeout, waits as long as it takes.
///
/// A master that has handed over to the next one may end before it answers; then the next one is asked, once.
///
/// # Errors
/// [`AskError`] tells who did not answer, and why.
pub fn status(address: &ControlAddress, timeout: Option<Duration>) -> Result<Status, AskError> {
    let answer = match ask(address, Request::Status, timeout) {
        Err(AskError::HungUp { .. }) => ask(address, Request::Status, timeout),
        answer => answer,
    };
    match answer? {
        Answer::Status(status) => Ok(status),
        other => Err(unasked(address, &other)),
    }
}

/// Has the server reload, and waits until the reload has ended; without a timeout, as long as it takes. Whoever gives up
/// leaves the reload running.
///
/// # Errors
/// [`AskError`] tells who did not answer, and why. A reload that was rolled back is an answer.
pub fn reload(address: &ControlAddress, timeout: Option<Duration>) -> Result<ReloadEnd, AskError> {
    match ask(address, Request::Reload, timeout)? {
        Answer::Reload(end) => Ok(end),
        other => Err(unasked(address, &other)),
    }
}

fn unasked(address: &ControlAddress, answer: &Answer) -> AskError {
    AskError::Nonsense { address: address.clone(), words: format!("it answers another question: {answer:?}") }
}

fn ask(address: &ControlAddress, request: Request, timeout: Option<Duration>) -> Result<Answer, AskError> {
    let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
    let failed = |source: io::Error| match (source.kind(), timeout) {
        (ErrorKind::TimedOut | ErrorKind::WouldBlock, Some(timeout)) => {
            AskError::TimedOut { address: address.clone(), timeout }
        }
        _ => AskError::HungUp { address: address.clone(), source },
    };
    let mut socket = connect(address, deadline).map_err(|source| match failed(source) {
        AskError::HungUp { address, source } => AskError::NoServer { address, source },
        timed_out => timed_out,
    })?;
    match socket.write_all(&protocol::write_request(request)) {
        // Who refuses may have hung up already, and has said why before.
        Err(error) if error.kind() == ErrorKind::BrokenPipe => {}
        written => written.map_err(failed)?,
    }
    let line = read_line(&mut socket, deadline).map_err(failed)?;
    match protocol::read_answer(&line) {
        Ok(Answer::Refused(refused)) => Err(AskError::Refused { address: address.clone(), refused }),
        Ok(answer) => Ok(answer),
        Err(error) => Err(AskError::Nonsense { address: address.clone(), words: error.to_string() }),
    }
}

fn connect(address: &ControlAddress, deadline: Option<Instant>) -> io::Result<Socket> {
    let name = match address.as_address() {
        Address::Abstract(name) => SockAddr::unix(format!("\0{}", name.as_str()))?,
        Address::Unix(path) => SockAddr::unix(path.as_path())?,
        _ => unreachable!("a control socket is a Unix one"),
    };
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    // A full queue is waited for, no longer than this (socket(7)).
    socket.set_write_timeout(left(deadline)?)?;
    socket.connect(&name)?;
    Ok(socket)
}

/// Reads up to the first newline, or the end.
fn read_line(socket: &mut Socket, deadline: Option<Instant>) -> io::Result<Vec<u8>> {
    let mut line = Vec::new();
    let mut bytes = [0; 16 << 10];
    loop {
        socket.set_read_timeout(left(deadline)?)?;
        let count = match socket.read(&mut bytes) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(count) => count,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        let end = bytes[..count].iter().position(|&byte| byte == b'\n');
        line.extend_from_slice(&bytes[..end.unwrap_or(count)]);
        if end.is_some() {
            return Ok(line);
        }
        if line.len() > LONGEST_ANSWER {
            return Err(io::Error::new(ErrorKind::InvalidData, "the answer has no end"));
        }
    }
}

/// The time until the deadline; none is without end.
fn left(deadline: Option<Instant>) -> io::Result<Option<Duration>> {
    let Some(deadline) = deadline else {
        return Ok(None);
    };
    match deadline.saturating_duration_since(Instant::now()) {
        Duration::ZERO => Err(ErrorKind::TimedOut.into()),
        left => Ok(Some(left)),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;
    use std::thread;

    use super::*;

    const STATUS: &str = r#"{"version":1,"answer":"status","pid":7,"hatchery_version":"1","state":"serving","health":"sound","upgrading":false,"uptime_ms":5,"generation":3,"incoming":null,"workers":0,"last_reload":null,"slots":[]}"#;

    /// A server that gives each question its answer; none hangs up on it. What `ask` makes of it, and how often it asked.
    fn answering<T>(answers: &[&str], ask: impl FnOnce(&ControlAddress) -> T) -> (T, usize) {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("control");
        let listener = UnixListener::bind(&path).expect("a socket");
        let address = path.to_str().expect("text").parse().expect("an address");
        thread::scope(|scope| {
            let server = scope.spawn(move || {
                for answer in answers {
                    let (mut client, _) = listener.accept().expect("a client");
                    assert_ne!(client.read(&mut [0; 1024]).expect("a question"), 0);
                    client.write_all(answer.as_bytes()).expect("it listens");
                }
                listener
            });
            let made = ask(&address);
            let listener = server.join().expect("it has served all");
            listener.set_nonblocking(true).expect("it is ours");
            (made, answers.len() + usize::from(listener.accept().is_ok()))
        })
    }

    #[test]
    fn a_status_is_asked_for_once_more_where_the_master_hangs_up_and_a_reload_is_not() {
        let whole = format!("{STATUS}\n");
        let (status, asked) = answering(&["", &whole], |address| status(address, None));
        assert_eq!((status.expect("the second answers").pid, asked), (7, 2));
        let (status, asked) = answering(&["", STATUS], |address| super::status(address, None));
        assert!(matches!(status, Err(AskError::HungUp { .. })) && asked == 2, "{status:?}");
        let (end, asked) = answering(&[""], |address| reload(address, None));
        assert!(matches!(end, Err(AskError::HungUp { .. })) && asked == 1, "{end:?}");
    }

    #[test]
    fn what_answers_something_else_is_told_from_who_refuses() {
        let (answer, _) = answering(&["HTTP/1.1 400 Bad Request\r\n"], |address| status(address, None));
        assert!(matches!(answer, Err(AskError::Nonsense { .. })), "{answer:?}");
        let (answer, _) = answering(&[&format!("{STATUS}\n")], |address| reload(address, None));
        assert!(matches!(answer, Err(AskError::Nonsense { .. })), "{answer:?}");
        let refusal = "{\"version\":1,\"answer\":\"refused\",\"reason\":\"busy\",\"why\":\"later\"}\n";
        let (answer, _) = answering(&[refusal], |address| reload(address, None));
        let error = answer.expect_err("refused").to_string();
        assert!(error.ends_with("refuses: later"), "{error}");
    }
}
