//! The thread that looks functions up and writes the records of ended workers.

use std::io;
use std::iter;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};
use slog::{Logger, warn};

use super::modules::Modules;
use super::symbols::{self, Resolver};

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
    fn write(&self, describe: impl FnOnce(Option<&Modules>, &[u64]) -> String) {
        if self.addresses.is_empty() {
            warn!(self.log, "{}", self.words);
        } else {
            let backtrace = describe(self.modules.as_ref(), &self.addresses);
            warn!(self.log, "{}", self.words; "backtrace" => backtrace);
        }
    }
}

/// Starts the thread with the first record; dropping it waits until all are written.
pub(super) struct Writer {
    thread: Option<Thread>,
    log: Logger,
}

struct Thread {
    traces: Sender<Trace>,
    /// The server ends, and does not wait for names.
    hurry: Arc<AtomicBool>,
    handle: JoinHandle<()>,
}

impl Writer {
    pub(super) fn new(log: Logger) -> Writer {
        Writer { thread: None, log }
    }

    pub(super) fn write(&mut self, trace: Trace) {
        if trace.addresses.is_empty() {
            return trace.write(symbols::locate);
        }
        if self.thread.is_none() {
            self.thread = Thread::start().inspect_err(|error| self.tell_no_thread(error)).ok();
        }
        let unwritten = match &self.thread {
            Some(thread) => match thread.traces.try_send(trace) {
                Ok(()) => return,
                Err(TrySendError::Full(trace) | TrySendError::Disconnected(trace)) => trace,
            },
            None => trace,
        };
        unwritten.write(symbols::locate);
    }

    fn tell_no_thread(&self, error: &io::Error) {
        warn!(self.log, "cannot start the thread that looks functions up"; "why" => %error);
    }
}

impl Thread {
    fn start() -> io::Result<Thread> {
        let (traces, inbox) = bounded(QUEUE);
        let hurry = Arc::new(AtomicBool::new(false));
        let hurried = Arc::clone(&hurry);
        let work = move || write_all(&inbox, &hurried);
        let handle = thread::Builder::new().name("hatchery-slow".to_owned()).spawn(work)?;
        Ok(Thread { traces, hurry, handle })
    }
}

fn write_all(inbox: &Receiver<Trace>, hurry: &AtomicBool) {
    while let Ok(first) = inbox.recv() {
        // What was read from the files is kept for as long as there is more to write.
        let mut resolver = Resolver::default();
        for trace in iter::once(first).chain(inbox.try_iter()) {
            if hurry.load(Ordering::Relaxed) {
                trace.write(symbols::locate);
            } else {
                trace.write(|modules, addresses| symbols::describe(&mut resolver, modules, addresses));
            }
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if let Some(Thread { traces, hurry, handle }) = self.thread.take() {
            hurry.store(true, Ordering::Relaxed);
            drop(traces);
            // A panic in it has cost records, and is told on stderr by the panic itself.
            let _ = handle.join();
        }
    }
}
