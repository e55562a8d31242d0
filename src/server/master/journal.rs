//! The lifecycle in the log: one record for each fact, with its fields.

use std::time::Duration;

use slog::{Logger, debug, info, o, warn};

use crate::server::supervisor::{Identity, Notice, WorkerState};

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
            warn!(log, "slot delayed"; "slot" => slot.0, "failures" => failures, "delay_ms" => millis(*delay));
        }
        Notice::Reloading { generation } => info!(log, "reloading"; "generation" => generation.0),
        Notice::ReloadQueued => info!(log, "reload queued"),
        Notice::Reloaded { generation, took } => {
            info!(log, "reloaded"; "generation" => generation.0, "took_ms" => millis(*took));
        }
        Notice::ReloadFailed { generation, words } => {
            warn!(log, "reload failed, the old generation stays"; "generation" => generation.0, "why" => words);
        }
        Notice::Target { workers } => info!(log, "number of workers changed"; "workers" => workers),
        Notice::Paused => info!(log, "workers drain, the listeners stay"),
        Notice::Resumed => info!(log, "workers are forked again"),
        Notice::Stopping { signal } => info!(log, "stopping"; "why" => ?signal),
        Notice::Ignored { signal } => debug!(log, "a signal means nothing now"; "signal" => ?signal),
    }
}

fn about(log: &Logger, worker: &Identity) -> Logger {
    log.new(o!("slot" => worker.slot.0, "pid" => worker.pid, "generation" => worker.generation.0))
}
