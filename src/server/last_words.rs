//! The words that a service leaves for its client in case the worker dies.

use crate::sys::last_words::Words;

/// What a client is told if its request takes the worker with it; see
/// [`RequestCx::last_words`](super::RequestCx::last_words). Where a cause has no words, the connection is cut.
///
/// They last as long as the process, because a signal handler reads them at any moment: constants, or what
/// [`Service::start`](super::Service::start) made once and leaked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LastWords {
    /// When the request's hard deadline is over.
    pub deadline: &'static [u8],
    /// When the worker crashes.
    pub crash: &'static [u8],
}

impl From<&'static [u8]> for LastWords {
    fn from(words: &'static [u8]) -> Self {
        LastWords { deadline: words, crash: words }
    }
}

impl<const N: usize> From<&'static [u8; N]> for LastWords {
    fn from(words: &'static [u8; N]) -> Self {
        LastWords::from(words.as_slice())
    }
}

impl From<LastWords> for Words {
    fn from(words: LastWords) -> Self {
        Words { deadline: words.deadline, crash: words.crash }
    }
}
