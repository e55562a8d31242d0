//! The server's half of HTTP/1.0 and 1.1, pure: received bytes in, a request head or a refusal out.
//!
//! [`parse`] reads one request head ([RFC 9112] §3 and §5) from the front of what a connection has
//! received, and decides everything that the rest of the exchange depends on: how long the body is,
//! whether the connection can be used again, whether the client waits for `100 Continue`. A head
//! that could be read in two ways is refused: what two parties frame differently is how a request is
//! smuggled. A [`Refusal`] always ends the connection. Nothing in here does I/O or knows a route.
//!
//! Line ends are CRLF; in a head a single LF is taken too, as RFC 9112 §2.2 allows. In a chunked
//! body it is not.
//!
//! [RFC 9112]: https://www.rfc-editor.org/rfc/rfc9112

pub(crate) mod body;
pub(crate) mod date;
mod fields;
pub(crate) mod last_words;
pub(crate) mod response;
mod target;

use std::mem::MaybeUninit;

use body::Framing;
use fields::Fields;
use response::Status;
use target::Target;

/// A head, from the method to the empty line, has at most this many bytes.
pub(crate) const MAX_HEAD: usize = 16 * 1024;
/// A request target has at most this many bytes; RFC 9112 §3 asks for lines of 8,000 at least.
pub(crate) const MAX_TARGET: usize = 8 * 1024;
/// A head has at most this many header fields.
pub(crate) const MAX_FIELDS: usize = 64;
/// No method that anybody implements is longer; what is longer is answered 501 without waiting for
/// its end.
const MAX_METHOD: usize = 32;

/// Methods of RFC 9110 and RFC 5789: known here, so that a route which does not take one says 405.
const KNOWN_METHODS: [&str; 8] = ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "TRACE", "PATCH"];

/// A request head that can be read in one way only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Head<'b> {
    /// The method, in the client's case: methods are case-sensitive.
    pub method: &'b str,
    /// The path of the target, as sent (not percent-decoded); `*` for a request about the whole
    /// server.
    pub path: &'b str,
    /// What follows the `?`, or nothing.
    pub query: &'b str,
    /// Method and target up to the query, as they stand in the request line.
    pub label: &'b [u8],
    /// Bytes of the head, empty line included: the body begins there.
    pub length: usize,
    /// How the body is framed.
    pub framing: Framing,
    /// What becomes of the connection after the response.
    pub persistence: Persistence,
    /// The client waits for `100 Continue` before it sends the body.
    pub expects_continue: bool,
}

impl Head<'_> {
    /// Whether the response goes without its body.
    pub fn is_head(&self) -> bool {
        self.method == "HEAD"
    }

    /// Whether the method is one that RFC 9110 or RFC 5789 describes.
    pub fn method_is_known(&self) -> bool {
        KNOWN_METHODS.contains(&self.method)
    }
}

/// What becomes of a connection after a response, and which `Connection` field says so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Persistence {
    /// Kept, which HTTP/1.1 takes for granted: no field.
    Keep,
    /// Kept at an HTTP/1.0 client's wish: `Connection: keep-alive`.
    KeepSaid,
    /// Ended: `Connection: close`.
    Close,
}

/// Why a message is not served; the connection ends with the response that says so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Refusal {
    /// The status of the response.
    pub status: Status,
    /// The response's text: what is wrong and, where there is one, the limit.
    pub why: &'static str,
}

impl Refusal {
    pub(crate) const fn new(status: Status, why: &'static str) -> Refusal {
        Refusal { status, why }
    }

    const fn bad(why: &'static str) -> Refusal {
        Refusal::new(Status::BadRequest, why)
    }
}

/// What the received bytes amount to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Parsed<'b> {
    /// A whole head.
    Head(Head<'b>),
    /// A head's beginning, with nothing wrong so far.
    Incomplete,
}

/// How many of the bytes are empty lines before a request line; RFC 9112 §2.2 has a server skip
/// them.
pub(crate) fn leading_blank(received: &[u8]) -> usize {
    let mut rest = received;
    loop {
        rest = match rest {
            [b'\r', b'\n', tail @ ..] | [b'\n', tail @ ..] => tail,
            _ => return received.len() - rest.len(),
        };
    }
}

/// Reads the head at the front of `received`, which does not begin with an empty line (see
/// [`leading_blank`]).
///
/// # Errors
/// A [`Refusal`] for what is malformed, ambiguous, over a limit or not implemented.
pub(crate) fn parse(received: &[u8]) -> Result<Parsed<'_>, Refusal> {
    // Nothing beyond the limit is looked at, so the answer does not depend on how the bytes
    // arrived.
    let window = &received[..received.len().min(MAX_HEAD)];
    let mut storage = [const { MaybeUninit::uninit() }; MAX_FIELDS];
    let mut request = httparse::Request::new(&mut []);
    let outcome = request.parse_with_uninit_headers(window, &mut storage);
    let length = match outcome {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) => return unfinished(window),
        Err(error) => return malformed(window, error),
    };
    let (Some(method), Some(target), Some(version)) = (request.method, request.path, request.version) else {
        return Err(Refusal::bad("the request line is not complete"));
    };
    within_limits(method.len(), target.len())?;
    if method == "CONNECT" {
        return Err(Refusal::new(Status::NotImplemented, "CONNECT: this server is no proxy"));
    }
    let target = Target::parse(method, target)?;
    let fields = Fields::read(request.headers, version)?;
    Ok(Parsed::Head(Head {
        method,
        path: target.path,
        query: target.query,
        label: &window[..method.len() + 1 + target.before_query],
        length,
        framing: fields.framing()?,
        persistence: fields.persistence(),
        expects_continue: fields.expects_continue()?,
    }))
}

fn within_limits(method: usize, target: usize) -> Result<(), Refusal> {
    if method > MAX_METHOD {
        return Err(Refusal::new(Status::NotImplemented, "the method is longer than any that is known"));
    }
    if target > MAX_TARGET {
        return Err(Refusal::new(Status::UriTooLong, "the request target is longer than 8192 bytes"));
    }
    Ok(())
}

/// The head has no end yet: is it one that can still become good?
fn unfinished(window: &[u8]) -> Result<Parsed<'_>, Refusal> {
    request_line_within_limits(window)?;
    if window.len() >= MAX_HEAD {
        return Err(Refusal::new(Status::FieldsTooLarge, "the request head is longer than 16384 bytes"));
    }
    Ok(Parsed::Incomplete)
}

fn malformed(window: &[u8], error: httparse::Error) -> Result<Parsed<'_>, Refusal> {
    use httparse::Error;
    request_line_within_limits(window)?;
    Err(match error {
        Error::Token => Refusal::bad("the request line is malformed"),
        Error::Version => return other_version(window),
        Error::NewLine => Refusal::bad("a carriage return without a line feed"),
        Error::HeaderName => Refusal::bad("a header field name is malformed, or a line is folded"),
        Error::HeaderValue => Refusal::bad("a header field value holds a control character"),
        Error::TooManyHeaders => Refusal::new(Status::FieldsTooLarge, "more than 64 header fields"),
        Error::Status => Refusal::bad("the request is malformed"),
    })
}

/// Counts only what stands before the first byte that is out of place, so that the answer is the
/// same whether that byte has come or not.
fn request_line_within_limits(window: &[u8]) -> Result<(), Refusal> {
    let length_while = |bytes: &[u8], fits: fn(&u8) -> bool| {
        let end = bytes.iter().position(|byte| !fits(byte));
        end.unwrap_or(bytes.len())
    };
    let method = length_while(window, |&byte| body::is_token(byte));
    let target = match &window[method..] {
        // Without a method that space is itself out of place.
        [b' ', rest @ ..] if method > 0 => length_while(rest, |&byte| byte > b' ' && byte != 0x7f),
        _ => 0,
    };
    within_limits(method, target)
}

/// The parser knows `HTTP/1.0` and `HTTP/1.1`; is this another version, the beginning of one, or
/// none?
fn other_version(window: &[u8]) -> Result<Parsed<'_>, Refusal> {
    let version = window.splitn(3, |&byte| byte == b' ').nth(2).unwrap_or_default();
    let fits = |(at, &byte): (usize, &u8)| match at {
        0..=4 => byte == b"HTTP/"[at],
        5 | 7 => byte.is_ascii_digit(),
        6 => byte == b'.',
        _ => matches!(byte, b'\r' | b'\n'),
    };
    match version.iter().take(9).enumerate().all(fits) {
        true if version.len() < 9 => unfinished(window),
        true => Err(Refusal::new(Status::VersionNotSupported, "only HTTP/1.0 and HTTP/1.1 are spoken here")),
        false => Err(Refusal::bad("the request line does not end in an HTTP version")),
    }
}

#[cfg(test)]
mod tests;
