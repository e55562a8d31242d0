//! The seats' table: what the seat of a slot needs, by who sits there.

/// Who sits in one half of a seat; workers on their way out sit nowhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::server::supervisor) enum Sitter {
    Nobody,
    /// Asked for, and not yet ready.
    Unready,
    Ready,
}

/// What a seat needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::server::supervisor) enum SeatStep {
    Rest,
    /// Drain whoever sits there.
    Vacate,
    /// Fork a worker as soon as the slot's delay is over and the template is ready.
    Fork,
    /// The same, once the surge has room.
    ForkBeside,
    /// The successor is ready: drain the old one.
    DrainStale,
}

/// The seats' table: is the seat wanted, who sits there of another generation than the wanted one, who of that one.
#[rustfmt::skip]
pub(in crate::server::supervisor) fn seat(wanted: bool, stale: Sitter, fresh: Sitter) -> SeatStep {
    use Sitter::*;
    match (wanted, stale, fresh) {
        (false, Nobody,          Nobody)          => SeatStep::Rest,
        (false, _,               _)               => SeatStep::Vacate,
        (true,  Nobody,          Nobody)          => SeatStep::Fork,
        (true,  Nobody,          Unready | Ready) => SeatStep::Rest,
        (true,  Unready | Ready, Nobody)          => SeatStep::ForkBeside,
        (true,  Unready | Ready, Unready)         => SeatStep::Rest,
        (true,  Unready | Ready, Ready)           => SeatStep::DrainStale,
    }
}
