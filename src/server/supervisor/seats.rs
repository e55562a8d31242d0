//! The book of seats: who sits where, and which seats are to be looked over.
//!
//! Only a seat that changed, or that still lacks something, is looked over after an event; so an event costs the same
//! with ten workers as with a thousand.

use std::collections::{BTreeMap, BTreeSet};

use super::table::Sitter;
use crate::server::{Slot, WorkerId};

/// A slot's seat: at most one worker of the wanted generation, and one of another.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Seat {
    pub(super) stale: Option<(WorkerId, Sitter)>,
    pub(super) fresh: Option<(WorkerId, Sitter)>,
}

impl Seat {
    pub(super) fn stale_sitter(&self) -> Sitter {
        self.stale.map_or(Sitter::Nobody, |(_, sitter)| sitter)
    }

    pub(super) fn fresh_sitter(&self) -> Sitter {
        self.fresh.map_or(Sitter::Nobody, |(_, sitter)| sitter)
    }

    /// Whether a successor is in the making: what the surge is spent on.
    pub(super) fn is_surging(&self) -> bool {
        self.stale.is_some() && self.fresh_sitter() == Sitter::Unready
    }
}

/// All seats that are taken or were lately.
#[derive(Debug, Default)]
pub(super) struct Seats {
    taken: BTreeMap<Slot, Vec<WorkerId>>,
    shared: BTreeSet<Slot>,
    unready: usize,
    unsettled: BTreeSet<Slot>,
}

impl Seats {
    /// Writes down that a worker of this slot was one kind of sitter, and is now another.
    pub(super) fn change(&mut self, slot: Slot, id: WorkerId, was: Sitter, is: Sitter) {
        self.unready += usize::from(is == Sitter::Unready);
        self.unready -= usize::from(was == Sitter::Unready);
        self.unsettled.insert(slot);
        let sitters = self.taken.entry(slot).or_default();
        sitters.retain(|&sitter| sitter != id);
        if is != Sitter::Nobody {
            sitters.push(id);
        }
        if sitters.len() > 1 {
            self.shared.insert(slot);
        } else {
            self.shared.remove(&slot);
        }
        if sitters.is_empty() {
            self.taken.remove(&slot);
        }
    }

    pub(super) fn sitters(&self, slot: Slot) -> &[WorkerId] {
        self.taken.get(&slot).map_or(&[], Vec::as_slice)
    }

    /// The slots in which two sit.
    pub(super) fn shared(&self) -> impl Iterator<Item = Slot> {
        self.shared.iter().copied()
    }

    /// The slots to look over, lowest first.
    pub(super) fn unsettled(&self) -> Vec<Slot> {
        self.unsettled.iter().copied().collect()
    }

    /// Whether every seat has what it needs, and everybody who sits is ready.
    pub(super) fn are_all_ready(&self) -> bool {
        self.unsettled.is_empty() && self.unready == 0
    }

    /// Whether no seat lacks anybody.
    pub(super) fn are_all_taken(&self) -> bool {
        self.unsettled.is_empty()
    }

    pub(super) fn settle(&mut self, slot: Slot) {
        self.unsettled.remove(&slot);
    }

    /// What sits in the slot is to be looked over.
    pub(super) fn unsettle(&mut self, slot: Slot) {
        self.unsettled.insert(slot);
    }

    /// What is wanted has changed: each slot below the target, and each that is taken, is to be looked over.
    pub(super) fn unsettle_all(&mut self, target: u32) {
        self.unsettled.extend((0..target).map(Slot));
        self.unsettled.extend(self.taken.keys());
    }
}
