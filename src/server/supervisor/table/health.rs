//! The fleet's table: how failures change its health.

/// How the fleet stands with its failures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Health {
    /// Each slot is filled as its own delay allows.
    Sound,
    /// Something is lacking that every fork needs: after a growing delay one is tried.
    Short,
    /// The restart budget is spent: after a growing delay one worker is tried, which is to serve well.
    Degraded,
}

/// What happens to the fleet's health. The probe is the one worker that is tried while it is not sound.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::server::supervisor) enum Strain {
    Shortage,
    BudgetSpent,
    ProbeBorn,
    ProbeServedWell,
    /// It failed, or was sent away before it could prove anything.
    ProbeFailed,
    /// Condition: every seat is taken, and by no probe.
    NobodyLacks,
    /// New code, new luck.
    NewGeneration,
}

/// What is done about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::server::supervisor) enum HealthStep {
    Nothing,
    /// None is forked for a growing delay.
    Rest,
    /// The slots' own delays end: from now on the fleet's counts.
    Degrade,
    Relieve,
    Recover,
    /// All that was counted is forgotten.
    Forget,
}

/// The fleet's table: its health after the strain, and the step to it.
#[rustfmt::skip]
pub(in crate::server::supervisor) fn health(health: Health, strain: Strain) -> (Health, HealthStep) {
    use Health::*;
    use Strain::*;
    match (health, strain) {
        (Sound,            Shortage)                      => (Short,    HealthStep::Rest),
        (Short,            ProbeFailed)                   => (Short,    HealthStep::Rest),
        (Short,            ProbeBorn | NobodyLacks)       => (Sound,    HealthStep::Relieve),
        (Sound | Short,    BudgetSpent)                   => (Degraded, HealthStep::Degrade),
        (Degraded,         ProbeFailed)                   => (Degraded, HealthStep::Rest),
        (Degraded,         ProbeServedWell | NobodyLacks) => (Sound,    HealthStep::Recover),
        (_,                NewGeneration)                 => (Sound,    HealthStep::Forget),
        _                                                 => (health,   HealthStep::Nothing),
    }
}
