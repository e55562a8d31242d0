//! What the epoll set tells.

use nix::sys::epoll::{EpollEvent, EpollFlags};

use crate::server::parked::Key;

/// What an event is about, as the number that epoll keeps for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Token {
    Notice,
    /// The master's end, while the worker drains.
    Master,
    Offers,
    Listener(u32),
    Parked(Key),
}

impl Token {
    /// In the low half, above all seats of parked connections.
    const NOTICE: u32 = u32::MAX;
    const LISTENER: u32 = u32::MAX - 1;
    const MASTER: u32 = u32::MAX - 2;
    const OFFERS: u32 = u32::MAX - 3;

    pub(super) fn event(self, flags: EpollFlags) -> EpollEvent {
        let (high, low) = match self {
            Self::Notice => (0, Self::NOTICE),
            Self::Master => (0, Self::MASTER),
            Self::Offers => (0, Self::OFFERS),
            Self::Listener(index) => (index, Self::LISTENER),
            Self::Parked(key) => (key.generation, key.index),
        };
        EpollEvent::new(flags, u64::from(high) << 32 | u64::from(low))
    }
}

impl From<u64> for Token {
    fn from(number: u64) -> Self {
        let (high, low) = ((number >> 32) as u32, number as u32);
        match low {
            Self::NOTICE => Self::Notice,
            Self::MASTER => Self::Master,
            Self::OFFERS => Self::Offers,
            Self::LISTENER => Self::Listener(high),
            index => Self::Parked(Key { index, generation: high }),
        }
    }
}
