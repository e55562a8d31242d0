//! Where a request's body ends: by length or by chunks, recognised while the bytes come in pieces.
//!
//! A [`Body`] is told the received bytes piece by piece and says how many of them belong to the
//! body and whether it is over; the bytes themselves are nobody's concern here. Everything a client
//! can stretch is bounded: the data, the chunk extensions and the trailer.

use super::Refusal;
use super::response::Status;

/// A body has at most this many bytes of data.
pub(crate) const MAX_BODY: u64 = 1024 * 1024;
/// All chunk extensions of a body together have at most this many bytes.
const MAX_EXTENSIONS: usize = 16 * 1024;
/// The trailer has at most this many bytes.
const MAX_TRAILER: usize = 16 * 1024;

/// The refusal of a body over [`MAX_BODY`].
pub(super) const TOO_LARGE: Refusal = Refusal::new(Status::ContentTooLarge, "the body is longer than 1048576 bytes");

/// How a body is framed, as its head says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Framing {
    /// There is none.
    None,
    /// So many bytes, at least one and at most [`MAX_BODY`].
    Length(u64),
    /// Chunks, up to the empty one and its trailer (RFC 9112 §7.1).
    Chunked,
}

/// A body under way.
#[derive(Debug, Clone)]
pub(crate) enum Body {
    /// So many bytes are still to come.
    Length(u64),
    /// Chunks.
    Chunked(Chunks),
}

/// What a piece brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub(crate) struct Progress {
    /// Bytes of the piece that belong to the body.
    pub used: usize,
    /// The body is over.
    pub done: bool,
}

impl Body {
    /// A body of which nothing has been seen yet.
    pub(crate) fn new(framing: Framing) -> Body {
        match framing {
            Framing::None => Body::Length(0),
            Framing::Length(length) => Body::Length(length),
            Framing::Chunked => Body::Chunked(Chunks::default()),
        }
    }

    /// Takes the next received bytes.
    ///
    /// # Errors
    /// A [`Refusal`] if the chunks are malformed or something is over its limit; where the body
    /// ends is unknown then.
    pub(crate) fn advance(&mut self, piece: &[u8]) -> Result<Progress, Refusal> {
        match self {
            Body::Length(left) => {
                let used = usize::try_from(*left).map_or(piece.len(), |left| left.min(piece.len()));
                *left -= used as u64;
                Ok(Progress { used, done: *left == 0 })
            }
            Body::Chunked(chunks) => chunks.advance(piece),
        }
    }
}

/// A chunked body under way.
#[derive(Debug, Clone, Default)]
pub(crate) struct Chunks {
    expected: Expected,
    /// The size being read, then what is left of the chunk's data.
    left: u64,
    /// Digits of the size so far.
    digits: u8,
    data: u64,
    extensions: usize,
    trailer: usize,
}

/// What the next byte has to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Expected {
    /// The first digit of a size.
    #[default]
    Size,
    /// Another digit, or what may follow the digits.
    MoreSize,
    /// White space between a size and its extension.
    BeforeExtension,
    Extension,
    /// The line feed that ends a size line.
    SizeEnd,
    Data,
    DataReturn,
    DataEnd,
    /// A trailer field, or the empty line.
    TrailerLine,
    TrailerName,
    TrailerValue,
    TrailerLineEnd,
    LastEnd,
    Done,
}

impl Chunks {
    fn advance(&mut self, piece: &[u8]) -> Result<Progress, Refusal> {
        let mut used = 0;
        while used < piece.len() && self.expected != Expected::Done {
            if self.expected == Expected::Data {
                used += self.skip_data(piece.len() - used);
            } else {
                self.expected = self.take(piece[used])?;
                used += 1;
            }
        }
        Ok(Progress { used, done: self.expected == Expected::Done })
    }

    fn skip_data(&mut self, available: usize) -> usize {
        let skipped = usize::try_from(self.left).map_or(available, |left| left.min(available));
        self.left -= skipped as u64;
        if self.left == 0 {
            self.expected = Expected::DataReturn;
        }
        skipped
    }

    /// The table: what is expected × the byte that comes → what is expected next.
    fn take(&mut self, byte: u8) -> Result<Expected, Refusal> {
        use Expected as E;
        Ok(match (self.expected, byte) {
            (E::Size | E::MoreSize, b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F') => self.digit(byte)?,
            (E::MoreSize, b'\r') => E::SizeEnd,
            (E::MoreSize | E::BeforeExtension, b' ' | b'\t') => self.extension(E::BeforeExtension)?,
            (E::MoreSize | E::BeforeExtension, b';') => self.extension(E::Extension)?,
            (E::Extension, b'\r') => E::SizeEnd,
            (E::Extension, byte) if is_text(byte) => self.extension(E::Extension)?,
            (E::SizeEnd, b'\n') => self.begin_chunk()?,
            (E::DataReturn, b'\r') => E::DataEnd,
            (E::DataEnd, b'\n') => E::Size,
            (E::TrailerLine, b'\r') => E::LastEnd,
            (E::TrailerLine | E::TrailerName, byte) if is_token(byte) => self.trailer(E::TrailerName)?,
            (E::TrailerName, b':') => self.trailer(E::TrailerValue)?,
            (E::TrailerValue, b'\r') => E::TrailerLineEnd,
            (E::TrailerValue, byte) if is_text(byte) => self.trailer(E::TrailerValue)?,
            (E::TrailerLineEnd, b'\n') => E::TrailerLine,
            (E::LastEnd, b'\n') => E::Done,
            (expected, _) => return Err(expected.refusal()),
        })
    }

    fn digit(&mut self, byte: u8) -> Result<Expected, Refusal> {
        let digit = (byte as char).to_digit(16).map_or(0, u64::from);
        // A size that overflows is another size to whoever lets it wrap around; sixteen digits just
        // fit.
        if self.digits == 16 {
            return Err(Refusal::bad("a chunk size has more than 16 digits"));
        }
        self.digits += 1;
        self.left = self.left << 4 | digit;
        Ok(Expected::MoreSize)
    }

    fn begin_chunk(&mut self) -> Result<Expected, Refusal> {
        self.digits = 0;
        if self.left == 0 {
            return Ok(Expected::TrailerLine);
        }
        self.data = self.data.saturating_add(self.left);
        if self.data > MAX_BODY {
            return Err(TOO_LARGE);
        }
        Ok(Expected::Data)
    }

    fn extension(&mut self, next: Expected) -> Result<Expected, Refusal> {
        self.extensions += 1;
        if self.extensions > MAX_EXTENSIONS {
            return Err(Refusal::bad("the chunk extensions are longer than 16384 bytes"));
        }
        Ok(next)
    }

    fn trailer(&mut self, next: Expected) -> Result<Expected, Refusal> {
        self.trailer += 1;
        if self.trailer > MAX_TRAILER {
            return Err(Refusal::new(Status::FieldsTooLarge, "the trailer is longer than 16384 bytes"));
        }
        Ok(next)
    }
}

impl Expected {
    fn refusal(self) -> Refusal {
        Refusal::bad(match self {
            Expected::Size | Expected::MoreSize => "a chunk size is not a hexadecimal number",
            Expected::BeforeExtension | Expected::Extension | Expected::SizeEnd => "a chunk extension is malformed",
            Expected::Data | Expected::DataReturn | Expected::DataEnd => "a chunk is longer than its size says",
            _ => "the trailer is malformed",
        })
    }
}

fn is_text(byte: u8) -> bool {
    byte == b'\t' || (byte >= b' ' && byte != 0x7f)
}

/// A character of a method or of a field's name (RFC 9110 §5.6.2).
pub(super) fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}
