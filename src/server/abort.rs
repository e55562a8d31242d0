//! What tells a computation that nobody waits for its result any more.

use crate::sys::hangup::{Seen, Watch};

/// What is left of a client, as [`Conn::peer_state`](super::Conn::peer_state) sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PeerState {
    /// It may still send.
    Open,
    /// It has sent its end. A client of a Unix socket still reads; one of TCP may, or may be gone altogether, which shows
    /// only when something is sent to it.
    Finished,
    /// It neither sends nor reads: it has closed (Unix) or reset (TCP) the connection.
    Gone,
}

/// Why the work for a request is in vain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Aborted {
    /// The client has sent its end, as most do that give up; see [`PeerState::Finished`] for those that do not. A service
    /// whose clients say in this way that their request is whole goes on.
    #[error("the client has sent its end and may be gone")]
    Finished,
    /// The request's deadline has passed.
    #[error("the request's deadline has passed")]
    Deadline,
    /// The client has reset or closed the connection.
    #[error("the client is gone")]
    Gone,
    /// The request has ended: for another thread that still works for it.
    #[error("the request has ended")]
    Over,
}

impl Aborted {
    /// Whether it is the client's doing.
    pub(super) fn is_by_client(self) -> bool {
        matches!(self, Self::Finished | Self::Gone)
    }
}

/// Tells a long computation that it is in vain. It flips by itself, while the computation runs and calls nobody: a look
/// at it is one load from memory. It is a copy, and any thread may look. Made by
/// [`RequestCx::abort_token`](super::RequestCx::abort_token).
///
/// Once it has flipped it stays so; the reason may become a graver one, in the order of [`Aborted`].
#[derive(Debug, Clone, Copy)]
pub struct AbortToken {
    watch: Watch,
}

impl AbortToken {
    pub(super) fn new(watch: Watch) -> Self {
        Self { watch }
    }

    /// Whether the work is in vain, for whichever reason.
    pub fn is_aborted(self) -> bool {
        self.aborted().is_some()
    }

    /// Why the work is in vain, if it is.
    pub fn aborted(self) -> Option<Aborted> {
        match self.watch.seen() {
            Seen::Nothing => None,
            Seen::Finished => Some(Aborted::Finished),
            Seen::Deadline => Some(Aborted::Deadline),
            Seen::Gone => Some(Aborted::Gone),
            Seen::Over => Some(Aborted::Over),
        }
    }

    /// For a loop that is to end with an error.
    ///
    /// # Errors
    /// The reason, when the work is in vain.
    pub fn check(self) -> Result<(), Aborted> {
        self.aborted().map_or(Ok(()), Err)
    }
}
