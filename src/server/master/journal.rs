//! The lifecycle in the log: one record for each fact, with its fields.

use std::time::Duration;

use slog::{Logger, error, info, o, warn};

use crate::server::supervisor::{Failures, Identity, Notice, WorkerState};

/// A duration as the field `took_ms` shows it.
pub(super) fn millis(took: Duration) -> u64 {
    u64::try_from(took.as_millis()).unwrap_or(u64::MAX)
}

/// Writes a fact down.
pub(super) fn write(log: &Logger, notice: &Notice) {
    match notice {
        Notice::Serving { workers, took } => {
            info!(log, "serving"; "workers" => workers, "took_ms" => millis(*took));
        }
        Notice::TemplateReady { generation, took } => {
            info!(log, "template ready"; "generation" => generation.0, "took_ms" => millis(*took));
        }
        Notice::TemplateLost { generation, words } => {
            warn!(log, "template lost"; "generation" => generation.0, "why" => words);
        }
        Notice::TemplateDelayed { generation, delay } => {
            warn!(log, "template delayed"; "generation" => generation.0, "delay_ms" => millis(*delay));
        }
        Notice::WorkerReady { worker, took } => {
            info!(about(log, worker), "worker ready"; "took_ms" => millis(*took));
        }
        Notice::WorkerFailed { worker, cause, took } => {
            warn!(about(log, worker), "worker not started"; "why" => %cause, "took_ms" => millis(*took));
        }
        Notice::WornOut { worker, by } => info!(about(log, worker), "worker worn out"; "why" => %by),
        Notice::WorkerExited { worker, was, exit, words, took } => {
            let log = about(log, worker);
            let why = match words {
                Some(words) => format!("{exit}: {words}"),
                None => exit.to_string(),
            };
            if *was == WorkerState::Draining {
                info!(log, "worker drained"; "why" => why, "took_ms" => millis(*took));
            } else {
                warn!(log, "worker exited"; "why" => why, "took_ms" => millis(*took));
            }
        }
        Notice::SlotDelayed { slot, failures, delay } => {
            warn!(counted(log, *failures), "slot delayed"; "slot" => slot.0, "failures" => failures.sum(),
                "delay_ms" => millis(*delay));
        }
        Notice::Short { tries, delay } => {
            warn!(log, "too little is left to fork workers, waiting"; "tries" => tries, "delay_ms" => millis(*delay));
        }
        Notice::Relieved { took } => info!(log, "workers can be forked again"; "took_ms" => millis(*took)),
        Notice::Degraded { ready, failures, window } => {
            error!(counted(log, *failures), "degraded: too many workers failed, trying one at a time"; "ready" => ready,
                "failures" => failures.sum(), "window_ms" => millis(*window));
        }
        Notice::ProbeDelayed { tries, delay } => {
            warn!(log, "next try delayed"; "tries" => tries, "delay_ms" => millis(*delay));
        }
        Notice::Recovered { took } => info!(log, "recovered"; "took_ms" => millis(*took)),
        Notice::Reloading { generation } => info!(log, "reloading"; "generation" => generation.0),
        Notice::ReloadQueued => info!(log, "reload queued"),
        Notice::Reloaded { generation, took } => {
            info!(log, "reloaded"; "generation" => generation.0, "took_ms" => millis(*took));
        }
        Notice::ReloadFailed { generation, words } => {
            warn!(log, "reload failed, the old generation stays"; "generation" => generation.0, "why" => words);
        }
        Notice::ReloadCalledOff { generation, words } => {
            info!(log, "reload called off"; "generation" => generation.0, "why" => words);
        }
        Notice::Replaced { pid, took } => {
            info!(log, "replaced by a new master, the workers drain"; "pid" => pid, "took_ms" => millis(*took));
        }
        Notice::UpgradeFailed { words, took } => {
            warn!(log, "upgrade failed, this master stays"; "why" => words, "took_ms" => millis(*took));
        }
        Notice::UpgradeCalledOff { words, took } => {
            info!(log, "upgrade called off"; "why" => words, "took_ms" => millis(*took));
        }
        Notice::Target { workers } => info!(log, "number of workers changed"; "workers" => workers),
        Notice::Scaled { workers, idle, queue } => {
            info!(log, "scaled"; "workers" => workers, "idle" => idle, "queue" => queue);
        }
        Notice::Paused => info!(log, "workers drain, the listeners stay"),
        Notice::Resumed => info!(log, "workers are forked again"),
        Notice::Unready { delay } => info!(log, "not ready for new clients"; "gate_in_ms" => millis(*delay)),
        Notice::GateShut => info!(log, "gate shut"),
        Notice::QueuesServed { took } => info!(log, "queues served"; "took_ms" => millis(*took)),
        Notice::QueuesAbandoned { queued } => {
            warn!(log, "queues not served in time, their clients are lost"; "queued" => queued);
        }
        Notice::Stopping { signal } => info!(log, "stopping"; "why" => ?signal),
        Notice::Ignored { signal } => info!(log, "a signal means nothing now"; "signal" => ?signal),
    }
}

fn counted(log: &Logger, failures: Failures) -> Logger {
    log.new(o!("never_ready" => failures.never_ready, "died_young" => failures.died_young))
}

fn about(log: &Logger, worker: &Identity) -> Logger {
    log.new(o!("slot" => worker.slot.0, "pid" => worker.pid, "generation" => worker.generation.0))
}
