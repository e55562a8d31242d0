//! The worker loop.

use super::service::{Result, Service, WorkerCx};

/// Runs the worker loop until the worker is drained.
pub(crate) fn run<S: Service>(_service: S, cx: WorkerCx) -> Result<()> {
    cx.ready();
    Ok(())
}
