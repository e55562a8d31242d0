//! What a client may be told.

use std::marker::PhantomData;

use super::codec::Postcard;

/// The longest message that there can be: 4 GiB − 1.
pub(super) const LONGEST: u64 = u32::MAX as u64;

/// How a [`Client`](super::Client) deals with its process.
///
/// ```
/// use hatchery::rpc::{Octets, Options};
///
/// let options = Options::new().codec::<Octets>().max_outstanding(1_000).max_message(1 << 30);
/// # let _ = options;
/// ```
#[derive(Debug)]
pub struct Options<C = Postcard> {
    pub(super) limits: Limits,
    codec: PhantomData<fn() -> C>,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    pub(super) outstanding: usize,
    pub(super) queued: u64,
    pub(super) message: u64,
}

impl Options {
    /// [`Postcard`], at most 65,536 outstanding calls, 256 MiB that wait to be sent, and 64 MiB in one message.
    pub fn new() -> Options {
        let limits = Limits { outstanding: 1 << 16, queued: 256 << 20, message: 64 << 20 };
        Options { limits, codec: PhantomData }
    }
}

impl Default for Options {
    fn default() -> Options {
        Options::new()
    }
}

impl<C> Options<C> {
    /// Speaks with another codec. The process's entry point must speak the same.
    #[must_use]
    pub fn codec<D>(self) -> Options<D> {
        Options { limits: self.limits, codec: PhantomData }
    }

    /// The most calls that are outstanding at a time, at least 1.
    #[must_use]
    pub fn max_outstanding(mut self, calls: usize) -> Options<C> {
        self.limits.outstanding = calls.max(1);
        self
    }

    /// Once this many bytes wait to be sent, no further call is taken; at least 1.
    #[must_use]
    pub fn max_queued(mut self, bytes: u64) -> Options<C> {
        self.limits.queued = bytes.max(1);
        self
    }

    /// The longest call, reply or event, in bytes; at most 4 GiB − 1. The process keeps to it too.
    #[must_use]
    pub fn max_message(mut self, bytes: u64) -> Options<C> {
        self.limits.message = bytes.min(LONGEST);
        self
    }
}
