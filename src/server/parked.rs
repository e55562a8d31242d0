//! The connections that a worker keeps without serving them, and when each becomes due.
//!
//! They sit in a slab. A [`Key`] names one of them and stays wrong for ever once it has left, so an
//! event that comes late goes nowhere.
//!
//! Due times are corrected lazily: a seat has one entry in a heap of moments, and a connection that
//! is due later than its seat's entry changes nothing there. When the entry comes up, it is put back
//! for the later moment. A keep-alive connection that asks a thousand times a second thus touches
//! the heap once per idle timeout, and one that leaves does not touch it at all.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use nix::sys::epoll::EpollFlags;

use super::conn::Conn;
use super::deadline::Begun;
use crate::sys::clock::Monotonic;

/// A parked connection.
#[derive(Debug)]
pub(super) struct Guest {
    pub(super) conn: Conn,
    pub(super) phase: Phase,
}

/// What a parked connection waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// Its first request; nothing has come yet.
    Fresh,
    /// Its next request; nothing of it has come yet.
    Idle,
    /// The rest of a request.
    Partial(Begun),
    /// Its client, which has not yet taken all that was written.
    Sending(Sending),
    /// The client's end: everything is said, and what still comes is dropped.
    Lingering {
        /// How many bytes more are dropped before the patience ends.
        left: usize,
    },
}

impl Phase {
    /// What the epoll set is to tell of the connection. One that is to send is not read from: what its client goes on asking
    /// waits in the socket.
    pub(super) fn interest(self) -> EpollFlags {
        match self {
            Self::Fresh | Self::Idle | Self::Partial(_) | Self::Lingering { .. } => EpollFlags::EPOLLIN,
            Self::Sending(_) => EpollFlags::EPOLLOUT,
        }
    }
}

/// A connection with something unsent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Sending {
    /// The request that was answered last, or is being answered: its deadline goes on.
    pub(super) request: Begun,
    /// What is to be done when all is sent.
    pub(super) then: Then,
    /// The request counts as aborted already.
    pub(super) aborted: bool,
}

/// How a connection goes on when all that was written is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Then {
    /// With the next request.
    NextRequest,
    /// With the rest of this request, which is to come.
    RestOfRequest,
    /// With the rest of this answer, which the service is to write.
    RestOfAnswer,
    /// It does not.
    Close,
}

impl Then {
    /// Whether its request is not over.
    pub(super) fn is_in_request(self) -> bool {
        matches!(self, Self::RestOfRequest | Self::RestOfAnswer)
    }
}

/// Names one parked connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Key {
    pub(super) index: u32,
    pub(super) generation: u32,
}

#[derive(Debug, Default)]
pub(super) struct Parked {
    seats: Vec<Seat>,
    free: Vec<u32>,
    moments: BinaryHeap<Reverse<(Monotonic, u32)>>,
}

#[derive(Debug, Default)]
struct Seat {
    generation: u32,
    guest: Option<Guest>,
    /// When the guest is due; none: never.
    due: Option<Monotonic>,
    /// The seat's entry in `moments`; other entries of the seat are out of date.
    entry: Option<Monotonic>,
}

impl Parked {
    pub(super) fn len(&self) -> usize {
        self.seats.len() - self.free.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(super) fn insert(&mut self, guest: Guest) -> Key {
        let index = self.free.pop().unwrap_or_else(|| {
            self.seats.push(Seat::default());
            (self.seats.len() - 1) as u32
        });
        let seat = &mut self.seats[index as usize];
        seat.guest = Some(guest);
        seat.due = None;
        Key { index, generation: seat.generation }
    }

    pub(super) fn get(&mut self, key: Key) -> Option<&mut Guest> {
        self.seat(key)?.guest.as_mut()
    }

    pub(super) fn remove(&mut self, key: Key) -> Option<Guest> {
        let seat = self.seat(key)?;
        let guest = seat.guest.take()?;
        seat.generation = seat.generation.wrapping_add(1);
        self.free.push(key.index);
        Some(guest)
    }

    /// The one on which nothing has come for longest, of those that wait for their next request, and of the fresh ones
    /// that are due by `fresh_until`.
    pub(super) fn longest_idle(&self, fresh_until: Option<Monotonic>) -> Option<Key> {
        let is_idle = |seat: &Seat| match seat.guest.as_ref().map(|guest| guest.phase) {
            Some(Phase::Idle) => true,
            Some(Phase::Fresh) => fresh_until.is_some_and(|until| seat.due.is_some_and(|due| due <= until)),
            _ => false,
        };
        // All of them have the same patience, so whoever is due first has been silent for longest.
        (0..).zip(&self.seats).filter(|(_, seat)| is_idle(seat)).min_by_key(|(_, seat)| seat.due).map(Seat::key)
    }

    /// All that are here now.
    pub(super) fn keys(&self) -> Vec<Key> {
        (0..).zip(&self.seats).filter(|(_, seat)| seat.guest.is_some()).map(Seat::key).collect()
    }

    pub(super) fn set_due(&mut self, key: Key, due: Option<Monotonic>) {
        let Some(seat) = self.seat(key) else { return };
        seat.due = due;
        if let Some(due) = due
            && seat.entry.is_none_or(|entry| due < entry)
        {
            seat.entry = Some(due);
            self.moments.push(Reverse((due, key.index)));
        }
    }

    /// A moment at which to call [`pop_due`](Self::pop_due); nothing is due earlier.
    pub(super) fn next_moment(&self) -> Option<Monotonic> {
        self.moments.peek().map(|Reverse((moment, _))| *moment)
    }

    /// One that is due. It stays where it is and is not due again.
    pub(super) fn pop_due(&mut self, now: Monotonic) -> Option<Key> {
        while let Some(&Reverse((moment, index))) = self.moments.peek()
            && moment <= now
        {
            self.moments.pop();
            let seat = &mut self.seats[index as usize];
            if seat.entry != Some(moment) {
                continue;
            }
            seat.entry = None;
            let key = Key { index, generation: seat.generation };
            match seat.due {
                _ if seat.guest.is_none() => {}
                Some(due) if due > now => self.set_due(key, Some(due)),
                Some(_) => {
                    seat.due = None;
                    return Some(key);
                }
                None => {}
            }
        }
        None
    }

    fn seat(&mut self, key: Key) -> Option<&mut Seat> {
        let seat = self.seats.get_mut(key.index as usize)?;
        (seat.generation == key.generation).then_some(seat)
    }
}

impl Seat {
    fn key((index, seat): (u32, &Self)) -> Key {
        Key { index, generation: seat.generation }
    }
}

#[cfg(test)]
mod tests;
