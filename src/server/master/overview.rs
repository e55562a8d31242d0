//! How the server stands: what the supervisor and the scoreboard know, together.

use std::collections::BTreeMap;
use std::time::Duration;

use super::desk::told;
use super::effects::Effects;
use super::journal::millis;
use crate::server::Slot;
use crate::server::scoreboard::{self, Snapshot};
use crate::server::status::{FleetHealth, LastReload, ServerState, SlotStatus, Status, WorkerActivity, WorkerStatus};
use crate::server::supervisor::{Health, Identity, Phase, Supervisor, WorkerState};
use crate::sys::clock::Monotonic;

/// How the server stands now, by the supervisor's time.
pub(super) fn of(supervisor: &Supervisor, effects: &Effects, now: Duration) -> Status {
    let health = match supervisor.health() {
        Health::Sound => FleetHealth::Sound,
        Health::Short => FleetHealth::Short,
        Health::Degraded => FleetHealth::Degraded,
    };
    let last_reload = supervisor
        .last_reload()
        .map(|(end, at)| LastReload { end: told(end.clone()), ago_ms: millis(now.saturating_sub(*at)) });
    Status {
        pid: std::process::id(),
        hatchery_version: env!("CARGO_PKG_VERSION").to_owned(),
        state: state(supervisor.phase(), supervisor.is_upgrading(), health),
        health,
        upgrading: supervisor.is_upgrading(),
        uptime_ms: millis(now),
        generation: supervisor.generation(),
        incoming: supervisor.incoming(),
        workers: supervisor.target(),
        last_reload,
        slots: slots(supervisor, effects, now),
    }
}

fn state(phase: Phase, upgrading: bool, health: FleetHealth) -> ServerState {
    match phase {
        phase if phase.is_leaving() => ServerState::Stopping,
        Phase::New | Phase::Booting => ServerState::Booting,
        _ if upgrading => ServerState::Upgrading,
        Phase::Preparing | Phase::Rolling | Phase::Replenishing => ServerState::Reloading,
        Phase::Paused => ServerState::Paused,
        _ if health != FleetHealth::Sound => ServerState::Degraded,
        _ => ServerState::Serving,
    }
}

fn slots(supervisor: &Supervisor, effects: &Effects, now: Duration) -> Vec<SlotStatus> {
    let vacant = (0..supervisor.target()).map(|slot| (Slot(slot), Vec::new()));
    let mut slots: BTreeMap<Slot, Vec<WorkerStatus>> = vacant.collect();
    for (worker, state) in supervisor.workers() {
        let asked_at = supervisor.asked_at(worker.id).unwrap_or(now);
        let status = worker_status(&worker, state, effects.record_of(worker.id), now.saturating_sub(asked_at));
        slots.entry(worker.slot).or_default().push(status);
    }
    slots.into_iter().map(|(slot, workers)| SlotStatus { slot, workers }).collect()
}

fn worker_status(worker: &Identity, state: WorkerState, record: Option<Snapshot>, age: Duration) -> WorkerStatus {
    let busy = record.as_ref().is_some_and(|record| record.state == scoreboard::WorkerState::Busy);
    let state = match state {
        WorkerState::Asked | WorkerState::Starting => WorkerActivity::Starting,
        WorkerState::Ready if busy => WorkerActivity::Busy,
        WorkerState::Ready => WorkerActivity::Idle,
        WorkerState::Draining => WorkerActivity::Draining,
        WorkerState::Killed | WorkerState::Gone => WorkerActivity::Ending,
    };
    let count = |of: fn(&Snapshot) -> u64| record.as_ref().map_or(0, of);
    let started = record.as_ref().and_then(|record| record.request_started);
    WorkerStatus {
        pid: worker.pid,
        generation: worker.generation,
        state,
        age_ms: millis(age),
        request_ms: started.map(|started| millis(Monotonic::now().since(started))),
        requests: count(|record| record.requests),
        connections: count(|record| record.connections),
        parked: count(|record| record.parked),
        label: record.map(|record| String::from_utf8_lossy(&record.label).into_owned()).unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_several_states_the_gravest_is_told() {
        use FleetHealth::{Degraded, Short, Sound};
        for (phase, upgrading, health, told) in [
            (Phase::Serving, false, Sound, ServerState::Serving),
            (Phase::Serving, false, Short, ServerState::Degraded),
            (Phase::Serving, false, Degraded, ServerState::Degraded),
            (Phase::Preparing, false, Degraded, ServerState::Reloading),
            (Phase::Replenishing, false, Sound, ServerState::Reloading),
            (Phase::Rolling, true, Sound, ServerState::Upgrading),
            (Phase::Paused, false, Sound, ServerState::Paused),
            (Phase::Booting, false, Sound, ServerState::Booting),
            (Phase::Unready, true, Degraded, ServerState::Stopping),
            (Phase::Yielding, false, Sound, ServerState::Stopping),
        ] {
            assert_eq!(state(phase, upgrading, health), told, "{phase:?}");
        }
    }
}
