//! Long messages through memory that both sides keep mapped: a message is copied in here, copied out there, and nothing is
//! made or mapped anew for the next one.
//!
//! A lane carries one message at a time. The sender makes one when it has none free, up to a bound; beyond that a message
//! travels in a memory file of its own, so nobody ever waits for a lane. A lane's file goes with its first message;
//! the receiver maps it and closes the file. It frees the lane by a store, which the sender finds when it needs one.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::wire::Broken;
use crate::sys::lane::Lane;

/// So many bytes of lanes one side makes.
const MOST_BYTES: usize = 8 << 20;

/// A lane is no shorter, so that messages of about the same length find each other's.
const SHORTEST: usize = 256 << 10;

/// So many lanes a receiver maps, and so many bytes: more than any sender of ours makes.
const MOST_LANES: usize = 64;

/// A sender's lanes.
#[derive(Debug, Default)]
pub(super) struct Lanes {
    made: Mutex<Made>,
}

#[derive(Debug, Default)]
struct Made {
    /// By number; the first ones are used first, so that what is not needed rests.
    lanes: Vec<Option<Arc<Lane>>>,
    bytes: usize,
}

impl Made {
    /// The number of one that the receiver never heard of is free.
    fn add(&mut self, lane: Arc<Lane>) -> usize {
        let number = self.lanes.iter().position(Option::is_none).unwrap_or_else(|| {
            self.lanes.push(None);
            self.lanes.len() - 1
        });
        self.lanes[number] = Some(lane);
        number
    }
}

impl Lanes {
    fn made(&self) -> MutexGuard<'_, Made> {
        self.made.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts a message into a lane. None, if all are taken or too short: then it has to travel otherwise.
    pub(super) fn load(self: &Arc<Self>, message: &[u8]) -> Option<Loaded> {
        let loaded = self.claim(message.len())?;
        loaded.lane.put(message).then_some(loaded)
    }

    fn claim(self: &Arc<Self>, length: usize) -> Option<Loaded> {
        let mut made = self.made();
        let free = |lane: &Arc<Lane>| lane.capacity() >= length && lane.claim();
        let free = made.lanes.iter().enumerate().find_map(|(number, lane)| Some((number, lane.clone().filter(free)?)));
        let (number, lane, file) = match free {
            Some((number, lane)) => (number, lane, None),
            None => {
                let capacity = length.checked_next_power_of_two()?.max(SHORTEST);
                if made.bytes + capacity > MOST_BYTES {
                    return None;
                }
                // For want of descriptors or memory it travels otherwise, or does not: then that is told.
                let (lane, file) = Lane::create(capacity).ok()?;
                let lane = Arc::new(lane);
                made.bytes += lane.capacity();
                (made.add(Arc::clone(&lane)), lane, Some(file))
            }
        };
        Some(Loaded { lanes: Arc::clone(self), lane, number: number as u32, is_new: file.is_some(), file, sent: false })
    }

    /// The receiver will never hear of this one.
    fn forget(&self, number: u32) {
        let mut made = self.made();
        if let Some(lane) = made.lanes.get_mut(number as usize).and_then(Option::take) {
            made.bytes -= lane.capacity();
        }
    }
}

/// A message in a lane, which is free again if this is dropped unsent.
#[derive(Debug)]
pub(super) struct Loaded {
    lanes: Arc<Lanes>,
    lane: Arc<Lane>,
    number: u32,
    /// With the lane's first message its file goes along.
    file: Option<OwnedFd>,
    is_new: bool,
    sent: bool,
}

impl Loaded {
    pub(super) fn number(&self) -> u32 {
        self.number
    }

    /// The lane's file, if the receiver does not know it.
    pub(super) fn file(&self) -> Option<&OwnedFd> {
        self.file.as_ref()
    }

    /// The lane's file, to be sent before this.
    pub(super) fn take_file(&mut self) -> Option<OwnedFd> {
        self.file.take()
    }

    /// It is on its way: the receiver frees the lane.
    pub(super) fn mark_sent(&mut self) {
        self.sent = true;
    }
}

impl Drop for Loaded {
    fn drop(&mut self) {
        match self.sent {
            true => {}
            false if self.is_new => self.lanes.forget(self.number),
            false => self.lane.release(),
        }
    }
}

/// A receiver's lanes.
#[derive(Debug, Default)]
pub(super) struct Arrivals {
    lanes: HashMap<u32, Lane>,
    bytes: usize,
}

impl Arrivals {
    /// Maps a lane that the other side has made.
    pub(super) fn open(&mut self, number: u32, file: &OwnedFd) -> Result<(), Broken> {
        let left = (2 * MOST_BYTES).saturating_sub(self.bytes);
        if self.lanes.len() >= MOST_LANES || left == 0 {
            return Err(Broken(format!("it made a lane beyond the {} before", self.lanes.len())));
        }
        let lane =
            Lane::open(file, left as u64).map_err(|error| Broken(format!("a lane cannot be opened: {error}")))?;
        self.bytes += lane.capacity();
        match self.lanes.insert(number, lane) {
            None => Ok(()),
            Some(_) => Err(Broken(format!("it made lane {number} twice"))),
        }
    }

    /// Takes a message of that length out of a lane.
    pub(super) fn unload(&self, number: u32, length: usize) -> Result<Vec<u8>, Broken> {
        let lane = self.lanes.get(&number).ok_or_else(|| Broken(format!("it never made lane {number}")))?;
        lane.take(length).map_err(|error| Broken(format!("a lane cannot be read: {error}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lane_is_used_again_when_it_was_emptied_and_others_are_made_only_up_to_the_bound() {
        let lanes = Arc::new(Lanes::default());
        let mut arrivals = Arrivals::default();
        let message = vec![7; 1 << 20];
        let mut first = lanes.load(&message).expect("a lane");
        arrivals.open(first.number(), first.file().expect("its file")).expect("opened");
        first.mark_sent();
        let mut others: Vec<Loaded> = std::iter::from_fn(|| lanes.load(&message)).collect();
        assert_eq!(others.len(), MOST_BYTES / (1 << 20) - 1);
        assert_eq!(arrivals.unload(first.number(), 1 << 20).expect("a message"), message);
        let again = lanes.load(&message).expect("the first one is free");
        assert_eq!((again.number(), again.file().is_none()), (first.number(), true));
        assert!(lanes.load(&message).is_none());
        // What was not sent leaves room behind.
        others.pop();
        assert!(lanes.load(&message).is_some());
        drop(again);
        assert!(lanes.load(&message).is_some_and(|loaded| loaded.number() == first.number()));
    }

    #[test]
    fn a_message_longer_than_all_lanes_travels_otherwise() {
        assert!(Arc::new(Lanes::default()).load(&vec![0; MOST_BYTES + 1]).is_none());
    }

    #[test]
    fn a_receiver_maps_no_more_than_any_sender_makes() {
        let mut arrivals = Arrivals::default();
        for number in 0..MOST_LANES as u32 {
            let (_, file) = Lane::create(4096).expect("a lane");
            arrivals.open(number, &file).expect("room");
        }
        let (_, file) = Lane::create(4096).expect("a lane");
        assert!(arrivals.open(1000, &file).is_err());
        let mut arrivals = Arrivals::default();
        let (_, file) = Lane::create(3 * MOST_BYTES).expect("a lane");
        assert!(arrivals.open(0, &file).is_err());
        let (_, file) = Lane::create(4096).expect("a lane");
        arrivals.open(0, &file).expect("room");
        assert!(arrivals.open(0, &file).is_err(), "one number is one lane");
        assert!(arrivals.unload(1, 5).is_err());
        assert!(arrivals.unload(0, 1 << 20).is_err());
    }
}
