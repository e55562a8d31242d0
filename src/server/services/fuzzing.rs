//! What holds for every stream of bytes that a client sends.

use std::cell::Cell;
use std::time::Duration;

use super::hello::Hello;
use super::http::body::{Body, Framing};
use super::http::response::{CONTINUE, Status};
use super::http::{self, Head, Parsed, Persistence, Refusal};
use super::testing::Client;
use crate::server::testing::Bench;

const GREETING: &str = "hello\n";

/// More than this may find no room in the socket at once.
const AT_ONCE: usize = 64 * 1024;

/// Reads a stream whole and cut, and writes each accepted request anew.
pub(crate) fn http(data: &[u8]) {
    let Some((plan, stream)) = data.split_first_chunk() else {
        return;
    };
    let whole = read_in_pieces([stream]);
    assert_eq!(whole, read_in_pieces(cut(stream, plan)), "another cut, another meaning");
    for item in &whole {
        if let Item::Request { begin, length, body_begin, body_end, .. } = item {
            let message = &stream[*begin..*body_end];
            assert_eq!(*body_begin - *begin, *length);
            check_head(message, *length);
            check_body(message, *length);
        }
    }
}

/// Sends a stream in pieces to the service and compares its answers with what the stream holds.
pub(crate) fn hello(data: &[u8]) {
    let Some((plan, stream)) = data.split_first_chunk::<4>() else {
        return;
    };
    if stream.len() >= AT_ONCE {
        return;
    }
    let bench = WORKER.take().unwrap_or_else(Bench::new);
    let mut client = Client::of(bench, Hello::new(GREETING.to_owned(), false));
    client.left = Duration::from_millis(1);
    client.draining = plan[3] == b'D';
    let (expected, ends) = answers_to(&read_in_pieces([stream]), client.draining);

    let answers: String = cut(stream, plan).map(|piece| client.say(piece)).collect();
    // Whether the interim response is still needed depends on what has come by then.
    let mut answers = answers.replace(&*String::from_utf8_lossy(CONTINUE), "");
    for answer in expected {
        answers = answer.take_off(&answers).to_owned();
    }
    assert_eq!(answers, "", "an answer that nobody asked for");
    assert_eq!(client.is_closed(), ends);
    client.time_out();
    if !ends {
        client.hang_up();
    }
    assert!(client.is_closed(), "it outlives its client");
    assert_eq!(client.error, None);
    WORKER.set(Some(client.bench));
}

thread_local! {
    /// One worker serves all streams: what belongs to a worker for life is never given back.
    static WORKER: Cell<Option<Bench>> = const { Cell::new(None) };
}

/// Pieces whose lengths the plan repeats; a zero is the rest of the stream.
fn cut<'s>(stream: &'s [u8], plan: &[u8; 4]) -> impl Iterator<Item = &'s [u8]> {
    let mut rest = stream;
    let mut lengths = plan.iter().copied().cycle();
    std::iter::from_fn(move || {
        let length = lengths.next().map(usize::from).filter(|&length| length > 0).unwrap_or(rest.len());
        let (piece, after) = rest.split_at(length.min(rest.len()));
        rest = after;
        (!piece.is_empty()).then_some(piece)
    })
}

/// What a stream holds, in positions of the stream.
#[derive(Debug, PartialEq, Eq)]
enum Item {
    Request {
        begin: usize,
        length: usize,
        body_begin: usize,
        body_end: usize,
        meaning: Meaning,
    },
    /// A head whose body has not come to its end.
    Begun(Meaning),
    /// What is wrong, and in whose body, if it is not in a head.
    Refused(Refusal, Option<Meaning>),
}

/// A head without its place in a buffer.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Meaning {
    method: String,
    path: String,
    query: String,
    framing: Framing,
    persistence: Persistence,
    expects_continue: bool,
}

impl From<&Head<'_>> for Meaning {
    fn from(head: &Head<'_>) -> Self {
        Meaning {
            method: head.method.to_owned(),
            path: head.path.to_owned(),
            query: head.query.to_owned(),
            framing: head.framing,
            persistence: head.persistence,
            expects_continue: head.expects_continue,
        }
    }
}

/// Reads as a connection does: head, body, next head, until a message ends the connection.
fn read_in_pieces<'s>(pieces: impl IntoIterator<Item = &'s [u8]>) -> Vec<Item> {
    let mut reader = Reader::default();
    for piece in pieces {
        reader.received.extend_from_slice(piece);
        while !reader.over && reader.step() {}
    }
    if let Some(under_way) = reader.under_way {
        reader.items.push(Item::Begun(under_way.meaning));
    }
    reader.items
}

#[derive(Default)]
struct Reader {
    received: Vec<u8>,
    at: usize,
    under_way: Option<UnderWay>,
    items: Vec<Item>,
    over: bool,
}

struct UnderWay {
    begin: usize,
    length: usize,
    body: Body,
    meaning: Meaning,
}

impl Reader {
    /// Whether there was enough for a step.
    fn step(&mut self) -> bool {
        let stepped = if self.under_way.is_some() { self.body() } else { self.head() };
        stepped.unwrap_or_else(|refusal| {
            self.items.push(Item::Refused(refusal, self.under_way.take().map(|request| request.meaning)));
            self.over = true;
            false
        })
    }

    fn head(&mut self) -> Result<bool, Refusal> {
        self.at += http::leading_blank(&self.received[self.at..]);
        let Parsed::Head(head) = http::parse(&self.received[self.at..])? else {
            return Ok(false);
        };
        let (begin, length) = (self.at, head.length);
        self.under_way = Some(UnderWay { begin, length, body: Body::new(head.framing), meaning: (&head).into() });
        self.at += length;
        Ok(true)
    }

    fn body(&mut self) -> Result<bool, Refusal> {
        let Some(request) = &mut self.under_way else {
            return Ok(false);
        };
        let progress = request.body.advance(&self.received[self.at..])?;
        self.at += progress.used;
        let Some(UnderWay { begin, length, meaning, .. }) = self.under_way.take_if(|_| progress.done) else {
            return Ok(false);
        };
        self.over = meaning.persistence == Persistence::Close;
        self.items.push(Item::Request { begin, length, body_begin: begin + length, body_end: self.at, meaning });
        Ok(true)
    }
}

/// An accepted head is complete with its last byte and not before, and written in the plainest way means the same.
fn check_head(message: &[u8], length: usize) {
    let head = accepted(message);
    assert_eq!(head, accepted(&message[..length]), "what follows a head changes it");
    assert_eq!(http::parse(&message[..length - 1]), Ok(Parsed::Incomplete));
    assert!(message.starts_with(head.label) && !head.label.contains(&b'?'), "a label that was not sent");
    let anew = written(&head);
    assert_eq!(Meaning::from(&head), Meaning::from(&accepted(&anew)), "{}", String::from_utf8_lossy(&anew));
}

fn accepted(message: &[u8]) -> Head<'_> {
    match http::parse(message) {
        Ok(Parsed::Head(head)) => head,
        other => panic!("{other:?} for {}", String::from_utf8_lossy(message)),
    }
}

fn written(head: &Head<'_>) -> Vec<u8> {
    let query = if head.query.is_empty() { String::new() } else { format!("?{}", head.query) };
    let (minor, connection) = match head.persistence {
        Persistence::Keep => (1, ""),
        Persistence::KeepSaid => (0, "Connection: keep-alive\r\n"),
        Persistence::Close => (1, "Connection: close\r\n"),
    };
    let framing = match head.framing {
        Framing::None => String::new(),
        Framing::Length(length) => format!("Content-Length: {length}\r\n"),
        Framing::Chunked => "Transfer-Encoding: chunked\r\n".to_owned(),
    };
    let expect = if head.expects_continue { "Expect: 100-continue\r\n" } else { "" };
    let (method, path) = (head.method, head.path);
    format!("{method} {path}{query} HTTP/1.{minor}\r\nHost: h\r\n{framing}{connection}{expect}\r\n").into_bytes()
}

/// An accepted body ends where a plain reading of the whole message says.
fn check_body(message: &[u8], head: usize) {
    let body = &message[head..];
    let end = match accepted(message).framing {
        Framing::None => 0,
        Framing::Length(length) => usize::try_from(length).expect("it has been received"),
        Framing::Chunked => {
            let (data, end) = unchunked(body).expect("an accepted body");
            let mut anew = if data.is_empty() { Vec::new() } else { format!("{:X}\r\n", data.len()).into_bytes() };
            anew.extend_from_slice(&data);
            anew.extend_from_slice(if data.is_empty() { b"0\r\n\r\n" } else { b"\r\n0\r\n\r\n" });
            let progress = Body::new(Framing::Chunked).advance(&anew).expect("plain chunks");
            assert_eq!((progress.used, progress.done), (anew.len(), true));
            end
        }
    };
    assert_eq!(end, body.len(), "the body ends elsewhere");
}

/// The data of a chunked body and where it ends, read line by line (RFC 9112 §7.1.3).
fn unchunked(body: &[u8]) -> Option<(Vec<u8>, usize)> {
    let mut data = Vec::new();
    let mut at = 0;
    let line = |at: usize| Some(at + body[at..].windows(2).position(|two| two == b"\r\n")?);
    loop {
        let size_end = line(at)?;
        let size: Vec<u8> = body[at..size_end].iter().copied().take_while(u8::is_ascii_hexdigit).collect();
        let size = usize::from_str_radix(std::str::from_utf8(&size).ok()?, 16).ok()?;
        at = size_end + 2;
        if size == 0 {
            break;
        }
        data.extend_from_slice(body.get(at..at + size)?);
        at += size;
        at = (body.get(at..at + 2)? == b"\r\n").then_some(at + 2)?;
    }
    loop {
        let end = line(at)?;
        let empty = end == at;
        at = end + 2;
        if empty {
            return Some((data, at));
        }
    }
}

/// An answer that a request must get.
struct Answer {
    status: Status,
    head_only: bool,
    closes: bool,
}

/// The answers to what a stream holds, and whether they end the connection.
fn answers_to(items: &[Item], draining: bool) -> (Vec<Answer>, bool) {
    let mut answers: Vec<Answer> = Vec::new();
    for item in items {
        if answers.last().is_some_and(|answer| answer.closes) {
            break;
        }
        let declined = |meaning: &Meaning| {
            // Who asks whether the body is wanted, and hears that it is not, is not waited for.
            let asks = meaning.expects_continue && meaning.framing != Framing::None;
            asks && status_of(meaning) != Status::Ok
        };
        answers.extend(match item {
            Item::Request { meaning, .. } | Item::Begun(meaning) | Item::Refused(_, Some(meaning))
                if declined(meaning) =>
            {
                Some(Answer { closes: true, ..Answer::to(meaning) })
            }
            Item::Request { meaning, .. } => {
                let answer = Answer::to(meaning);
                Some(Answer { closes: answer.closes || draining, ..answer })
            }
            Item::Begun(_) => None,
            Item::Refused(refusal, _) => Some(Answer { status: refusal.status, head_only: false, closes: true }),
        });
    }
    let ends = answers.last().is_some_and(|answer| answer.closes);
    (answers, ends)
}

fn status_of(meaning: &Meaning) -> Status {
    match (meaning.method.as_str(), meaning.path.as_str()) {
        ("GET" | "HEAD", "/") => Status::Ok,
        ("GET" | "HEAD" | "POST" | "PUT" | "DELETE" | "OPTIONS" | "TRACE" | "PATCH", path) => {
            if path == "/" {
                Status::MethodNotAllowed
            } else {
                Status::NotFound
            }
        }
        _ => Status::NotImplemented,
    }
}

impl Answer {
    fn to(request: &Meaning) -> Answer {
        let closes = request.persistence == Persistence::Close;
        Answer { status: status_of(request), head_only: request.method == "HEAD", closes }
    }

    /// What follows this answer, which must stand at the front.
    fn take_off<'t>(&self, answers: &'t str) -> &'t str {
        let (head, rest) = answers.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer in {answers:?}"));
        let status = format!("HTTP/1.1 {} ", self.status as u16);
        assert!(head.starts_with(&status), "{status} expected: {head}");
        let field = |name: &str| head.lines().filter_map(|line| line.split_once(": ")).find(|(key, _)| *key == name);
        let length: usize = field("Content-Length").and_then(|(_, value)| value.parse().ok()).expect("a length");
        assert_eq!(field("Connection") == Some(("Connection", "close")), self.closes, "{head}");
        let (body, rest) = rest.split_at(if self.head_only { 0 } else { length });
        assert!(body.is_empty() || self.status != Status::Ok || body == GREETING, "{body}");
        rest
    }
}
