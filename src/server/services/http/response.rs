//! Responses: a status, a line of text, and the fields that keep the connection in step.

use std::io::Write;

use super::Persistence;
use super::date::Text;

/// The statuses that this server sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub(crate) enum Status {
    Ok = 200,
    BadRequest = 400,
    NotFound = 404,
    MethodNotAllowed = 405,
    RequestTimeout = 408,
    ContentTooLarge = 413,
    UriTooLong = 414,
    ExpectationFailed = 417,
    FieldsTooLarge = 431,
    InternalError = 500,
    NotImplemented = 501,
    GatewayTimeout = 504,
    VersionNotSupported = 505,
}

impl Status {
    fn reason(self) -> &'static str {
        match self {
            Status::Ok => "OK",
            Status::BadRequest => "Bad Request",
            Status::NotFound => "Not Found",
            Status::MethodNotAllowed => "Method Not Allowed",
            Status::RequestTimeout => "Request Timeout",
            Status::ContentTooLarge => "Content Too Large",
            Status::UriTooLong => "URI Too Long",
            Status::ExpectationFailed => "Expectation Failed",
            Status::FieldsTooLarge => "Request Header Fields Too Large",
            Status::InternalError => "Internal Server Error",
            Status::NotImplemented => "Not Implemented",
            Status::GatewayTimeout => "Gateway Timeout",
            Status::VersionNotSupported => "HTTP Version Not Supported",
        }
    }
}

/// The interim response to a client that waits before it sends a body.
pub(crate) const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// What a route or a refusal says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Answer {
    pub status: Status,
    /// The body, a line feed at its end included.
    pub text: String,
    /// The methods of the `Allow` field; a 405 has one (RFC 9110 §15.5.6).
    pub allow: Option<&'static str>,
}

impl Answer {
    /// 200 with this text.
    pub(crate) fn ok(text: String) -> Answer {
        Answer { status: Status::Ok, text, allow: None }
    }

    /// A status other than 200, explained in one line.
    pub(crate) fn error(status: Status, why: &str) -> Answer {
        Answer { status, text: format!("{} {}: {why}\n", status as u16, status.reason()), allow: None }
    }

    /// 405, with the methods that the route does take.
    pub(crate) fn not_allowed(allow: &'static str) -> Answer {
        Answer {
            allow: Some(allow),
            ..Answer::error(Status::MethodNotAllowed, "this path does not take the method; see Allow")
        }
    }

    /// The response's bytes. Its last `text.len()` are the body, which a response to HEAD goes
    /// without.
    pub(crate) fn to_bytes(&self, persistence: Persistence, date: &Text) -> Vec<u8> {
        let mut bytes = self.head(self.text.len(), persistence, date);
        bytes.extend_from_slice(self.text.as_bytes());
        bytes
    }

    /// The head of a response whose body, of so many bytes, is somebody else's to send.
    pub(crate) fn head(&self, length: usize, persistence: Persistence, date: &Text) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(256 + self.text.len());
        bytes.extend_from_slice(self.before_date().as_bytes());
        bytes.extend_from_slice(date);
        bytes.extend_from_slice(b"\r\nContent-Type: text/plain\r\n");
        // Writing to a Vec does not fail.
        let _ = write!(bytes, "Content-Length: {length}\r\n");
        if let Some(methods) = self.allow {
            let _ = write!(bytes, "Allow: {methods}\r\n");
        }
        bytes.extend_from_slice(match persistence {
            Persistence::Keep => b"",
            Persistence::KeepSaid => b"Connection: keep-alive\r\n",
            Persistence::Close => b"Connection: close\r\n",
        });
        bytes.extend_from_slice(b"\r\n");
        bytes
    }

    fn before_date(&self) -> String {
        format!("HTTP/1.1 {} {}\r\nDate: ", self.status as u16, self.status.reason())
    }
}

/// An answer whose bytes stand ready; only the date is put in, once a second.
#[derive(Debug)]
pub(crate) struct Prepared {
    /// One for each [`Persistence`], in its order.
    variants: [Vec<u8>; 3],
    body: usize,
    date_at: usize,
    date: Text,
}

impl Prepared {
    pub(crate) fn new(answer: &Answer, date: &Text) -> Prepared {
        let variants =
            [Persistence::Keep, Persistence::KeepSaid, Persistence::Close].map(|how| answer.to_bytes(how, date));
        Prepared { variants, body: answer.text.len(), date_at: answer.before_date().len(), date: *date }
    }

    /// The response's bytes as of `date`.
    pub(crate) fn bytes(&mut self, persistence: Persistence, head_only: bool, date: &Text) -> &[u8] {
        if self.date != *date {
            self.date = *date;
            for variant in &mut self.variants {
                variant[self.date_at..][..date.len()].copy_from_slice(date);
            }
        }
        let bytes = match persistence {
            Persistence::Keep => &self.variants[0],
            Persistence::KeepSaid => &self.variants[1],
            Persistence::Close => &self.variants[2],
        };
        &bytes[..bytes.len() - if head_only { self.body } else { 0 }]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DATE: &Text = b"Sun, 06 Nov 1994 08:49:37 GMT";
    const LATER: &Text = b"Sun, 06 Nov 1994 08:49:38 GMT";

    #[test]
    fn a_405_names_the_methods_and_its_length() {
        let bytes = Answer::not_allowed("GET, HEAD").to_bytes(Persistence::Close, DATE);
        let text = String::from_utf8(bytes).expect("text");
        let (head, body) = text.split_once("\r\n\r\n").expect("an empty line");
        assert!(head.starts_with("HTTP/1.1 405 Method Not Allowed\r\nDate: Sun, 06"));
        assert!(head.contains("\r\nAllow: GET, HEAD\r\n"));
        assert!(head.ends_with("\r\nConnection: close"));
        assert!(head.contains(&format!("\r\nContent-Length: {}\r\n", body.len())));
    }

    #[test]
    fn a_prepared_answer_equals_a_fresh_one_at_every_date() {
        let answer = Answer::ok("hello\n".to_owned());
        let mut prepared = Prepared::new(&answer, DATE);
        for date in [DATE, LATER, DATE] {
            for how in [Persistence::Keep, Persistence::KeepSaid, Persistence::Close] {
                let fresh = answer.to_bytes(how, date);
                assert_eq!(prepared.bytes(how, false, date), fresh);
                assert_eq!(prepared.bytes(how, true, date), &fresh[..fresh.len() - 6]);
            }
        }
    }
}
