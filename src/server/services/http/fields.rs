//! The header fields that steer a message: its length, its connection, its expectations.
//!
//! All other fields are left alone. Fields are told apart by length first, so that one which does
//! not matter costs a comparison of two numbers.

use super::body::{self, Framing};
use super::response::Status;
use super::{Persistence, Refusal};

/// What the steering fields of one head say together.
#[derive(Debug, Default)]
pub(super) struct Fields {
    http_1_0: bool,
    hosts: usize,
    content_length: Option<u64>,
    codings: Codings,
    close: bool,
    keep_alive: bool,
    expectation: Expectation,
}

/// The `Transfer-Encoding` fields seen so far.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Codings {
    #[default]
    None,
    Chunked,
    Other,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Expectation {
    #[default]
    None,
    Continue,
    Other,
}

impl Fields {
    /// Reads the steering fields of a head of HTTP/1.`minor`.
    pub(super) fn read(headers: &[httparse::Header<'_>], minor: u8) -> Result<Fields, Refusal> {
        let mut fields = Fields { http_1_0: minor == 0, ..Fields::default() };
        for header in headers {
            fields.add(header)?;
        }
        match fields.hosts {
            1 => Ok(fields),
            0 if fields.http_1_0 => Ok(fields),
            0 => Err(Refusal::bad("an HTTP/1.1 request needs a Host field")),
            _ => Err(Refusal::bad("more than one Host field")),
        }
    }

    fn add(&mut self, header: &httparse::Header<'_>) -> Result<(), Refusal> {
        let is = |name: &str| header.name.eq_ignore_ascii_case(name);
        match header.name.len() {
            4 if is("host") => self.add_host(header.value)?,
            6 if is("expect") => self.add_expect(header.value),
            10 if is("connection") => self.add_connection(header.value),
            14 if is("content-length") => self.add_content_length(header.value)?,
            17 if is("transfer-encoding") => self.add_transfer_encoding(header.value),
            _ => {}
        }
        Ok(())
    }

    fn add_host(&mut self, value: &[u8]) -> Result<(), Refusal> {
        // uri-host [":" port]: a space, a list or a path in it would be read differently by others.
        let sound = |&byte: &u8| byte.is_ascii_alphanumeric() || b"-._~%!$&'()*+;=:[]".contains(&byte);
        if !value.iter().all(sound) {
            return Err(Refusal::bad("the Host field is malformed"));
        }
        self.hosts += 1;
        Ok(())
    }

    fn add_expect(&mut self, value: &[u8]) {
        self.expectation = match value.eq_ignore_ascii_case(b"100-continue") {
            true if self.expectation != Expectation::Other => Expectation::Continue,
            _ => Expectation::Other,
        };
    }

    fn add_connection(&mut self, value: &[u8]) {
        for option in list(value) {
            self.close |= option.eq_ignore_ascii_case(b"close");
            self.keep_alive |= option.eq_ignore_ascii_case(b"keep-alive");
        }
    }

    /// The same length said twice is one length (RFC 9110 §8.6); two lengths are two readings of
    /// one message.
    fn add_content_length(&mut self, value: &[u8]) -> Result<(), Refusal> {
        for digits in list(value) {
            let length = decimal(digits).ok_or(Refusal::bad("Content-Length is not a decimal number"))?;
            if self.content_length.is_some_and(|before| before != length) {
                return Err(Refusal::bad("Content-Length is given twice and differs"));
            }
            self.content_length = Some(length);
        }
        Ok(())
    }

    fn add_transfer_encoding(&mut self, value: &[u8]) {
        self.codings = match self.codings {
            Codings::None if value.eq_ignore_ascii_case(b"chunked") => Codings::Chunked,
            _ => Codings::Other,
        };
    }

    /// How the body is framed (RFC 9112 §6.3).
    pub(super) fn framing(&self) -> Result<Framing, Refusal> {
        match (self.codings, self.content_length) {
            (Codings::None, None | Some(0)) => Ok(Framing::None),
            (Codings::None, Some(length)) if length > body::MAX_BODY => Err(body::TOO_LARGE),
            (Codings::None, Some(length)) => Ok(Framing::Length(length)),
            (_, Some(_)) => Err(Refusal::bad("both Transfer-Encoding and Content-Length")),
            _ if self.http_1_0 => Err(Refusal::bad("HTTP/1.0 has no Transfer-Encoding")),
            (Codings::Chunked, None) => Ok(Framing::Chunked),
            (Codings::Other, None) => {
                Err(Refusal::new(Status::NotImplemented, "the only Transfer-Encoding known here is chunked"))
            }
        }
    }

    /// Whether the connection outlives the response (RFC 9112 §9.3).
    pub(super) fn persistence(&self) -> Persistence {
        match (self.http_1_0, self.close, self.keep_alive) {
            (_, true, _) | (true, _, false) => Persistence::Close,
            (true, false, true) => Persistence::KeepSaid,
            (false, false, _) => Persistence::Keep,
        }
    }

    /// Whether the client waits for `100 Continue`; an HTTP/1.0 client cannot (RFC 9110 §10.1.1).
    pub(super) fn expects_continue(&self) -> Result<bool, Refusal> {
        match self.expectation {
            Expectation::Other => {
                Err(Refusal::new(Status::ExpectationFailed, "the only expectation known here is 100-continue"))
            }
            Expectation::Continue => Ok(!self.http_1_0),
            Expectation::None => Ok(false),
        }
    }
}

fn list(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|&byte| byte == b',').map(<[u8]>::trim_ascii)
}

/// A decimal number; one too large for 64 bits becomes the largest, which is over every limit.
fn decimal(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    Some(digits.iter().fold(0_u64, |number, digit| number.saturating_mul(10).saturating_add(u64::from(digit - b'0'))))
}
