//! The names of what the server keeps apart: seats, generations, lives.

use std::fmt;

use serde::{Deserialize, Serialize};

macro_rules! number {
    ($(#[$doc:meta])* $name:ident, $inner:ty) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

number! {
    /// A numbered seat for a worker, counted from 0; it survives the worker's restarts.
    Slot, u32
}
number! {
    /// One template and the workers forked from it, counted from 1; a reload makes the next.
    Generation, u32
}
number! {
    /// One life of one worker. Never used again, so a late report about a dead worker goes nowhere.
    WorkerId, u64
}
