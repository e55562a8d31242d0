//! The thread that looks functions up and writes the records of ended workers.

use std::thread::{self, JoinHandle};

use crossbeam_channel::{Sender, TrySendError, bounded};
use slog::{Logger, warn};

use super::modules::Modules;
use super::symbols;

/// So many records wait at most; beyond that they are written without the functions' names.
const QUEUE: usize = 64;

/// A record to be written, and the call stack that belongs into it.
pub(super) struct Trace {
    /// Carries the record's other fields.
    pub(super) log: Logger,
    pub(super) words: &'static str,
    pub(super) modules: Option<Modules>,
    /// None were left by a worker that was killed.
    pub(super) addresses: Vec<u64>,
}

impl Trace {
    fn write(&self, modules: Option<&Modules>) {
        if self.addresses.is_empty() {
            warn!(self.log, "{}", self.words);
        } else {
            warn!(self.log, "{}", self.words; "backtrace" => symbols::describe(modules, &self.addresses));
        }
    }
}

/// Starts the thread with the first record; dropping it waits until all are written.
pub(super) struct Writer {
    thread: Option<(Sender<Trace>, JoinHandle<()>)>,
    log: Logger,
}

impl Writer {
    pub(super) fn new(log: Logger) -> Writer {
        Writer { thread: None, log }
    }

    pub(super) fn write(&mut self, trace: Trace) {
        if trace.addresses.is_empty() {
            return trace.write(None);
        }
        let unwritten = match self.thread() {
            Some(traces) => match traces.try_send(trace) {
                Ok(()) => return,
                Err(TrySendError::Full(trace) | TrySendError::Disconnected(trace)) => trace,
            },
            None => trace,
        };
        unwritten.write(None);
    }

    fn thread(&mut self) -> Option<&Sender<Trace>> {
        if self.thread.is_none() {
            let (traces, inbox) = bounded::<Trace>(QUEUE);
            let work = move || inbox.iter().for_each(|trace| trace.write(trace.modules.as_ref()));
            match thread::Builder::new().name("hatchery-slow".to_owned()).spawn(work) {
                Ok(handle) => self.thread = Some((traces, handle)),
                Err(error) => {
                    warn!(self.log, "cannot start the thread that looks functions up"; "why" => %error);
                }
            }
        }
        self.thread.as_ref().map(|(traces, _)| traces)
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if let Some((traces, handle)) = self.thread.take() {
            drop(traces);
            // A panic in it has cost records, and is told on stderr by the panic itself.
            let _ = handle.join();
        }
    }
}
