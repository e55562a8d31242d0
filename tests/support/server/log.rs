//! A server's log: every line of its stderr, read by a thread as it comes.

use std::io::{BufRead, BufReader, Read};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Instant;

use serde_json::Value;

use super::PATIENCE;

/// One line.
#[derive(Debug, Clone)]
pub struct Record {
    pub line: String,
    /// None for what is no JSON object: words for an operator, or a fault.
    pub fields: Option<Value>,
}

impl Record {
    fn new(line: String) -> Record {
        let fields = serde_json::from_str(&line).ok().filter(Value::is_object);
        Record { line, fields }
    }

    fn field(&self, name: &str) -> Option<&Value> {
        self.fields.as_ref()?.get(name)
    }

    pub fn is(&self, message: &str) -> bool {
        self.field("msg").and_then(Value::as_str) == Some(message)
    }

    pub fn is_end_of_worker(&self) -> bool {
        ["worker exited", "worker drained", "worker not started"].iter().any(|message| self.is(message))
    }

    #[track_caller]
    pub fn str(&self, name: &str) -> String {
        let text = self.field(name).and_then(Value::as_str);
        text.unwrap_or_else(|| panic!("no text {name} in {}", self.line)).to_owned()
    }

    #[track_caller]
    pub fn u64(&self, name: &str) -> u64 {
        self.field(name).and_then(Value::as_u64).unwrap_or_else(|| panic!("no number {name} in {}", self.line))
    }

    #[track_caller]
    pub fn pid(&self) -> i32 {
        i32::try_from(self.u64("pid")).expect("a pid")
    }

    /// Whether it has this field with exactly this text.
    pub fn says(&self, name: &str, text: &str) -> bool {
        self.field(name).and_then(Value::as_str) == Some(text)
    }

    /// Whether it is this message about this worker.
    pub fn is_about(&self, message: &str, pid: i32) -> bool {
        self.is(message) && self.is_of(pid)
    }

    /// Whether it is about this process; a worker that was never forked has no pid.
    pub fn is_of(&self, pid: i32) -> bool {
        self.field("pid").and_then(Value::as_i64) == Some(pid.into())
    }
}

/// All lines so far, and those to come.
#[derive(Clone, Default)]
pub struct Log(Arc<Shared>);

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    records: Vec<Record>,
    ended: bool,
}

impl Log {
    pub fn read(source: impl Read + Send + 'static) -> Log {
        let log = Log::default();
        let writer = log.clone();
        std::thread::spawn(move || {
            for line in BufReader::new(source).split(b'\n').map_while(Result::ok) {
                let record = Record::new(String::from_utf8_lossy(&line).into_owned());
                writer.state().records.push(record);
                writer.0.changed.notify_all();
            }
            writer.state().ended = true;
            writer.0.changed.notify_all();
        });
        log
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().expect("no reader panics with the lock")
    }

    /// How many records there are by now; what comes later can be asked for with [`Log::wait_after`].
    pub fn mark(&self) -> usize {
        self.state().records.len()
    }

    pub fn all(&self, which: impl Fn(&Record) -> bool) -> Vec<Record> {
        self.state().records.iter().filter(|record| which(record)).cloned().collect()
    }

    pub fn count(&self, which: impl Fn(&Record) -> bool) -> usize {
        self.all(which).len()
    }

    /// Waits for the first such record.
    #[track_caller]
    pub fn wait(&self, what: &str, which: impl Fn(&Record) -> bool) -> Record {
        self.wait_after(0, what, which)
    }

    /// Waits for the first such record after `mark`.
    #[track_caller]
    pub fn wait_after(&self, mark: usize, what: &str, which: impl Fn(&Record) -> bool) -> Record {
        self.wait_for_many(mark, 1, what, which).remove(0)
    }

    /// Waits for so many such records after `mark`.
    #[track_caller]
    pub fn wait_for_many(&self, mark: usize, count: usize, what: &str, which: impl Fn(&Record) -> bool) -> Vec<Record> {
        let deadline = Instant::now() + PATIENCE;
        let mut state = self.state();
        let mut looked_at = mark;
        let mut found = Vec::new();
        loop {
            found.extend(state.records[looked_at..].iter().filter(|record| which(record)).cloned());
            looked_at = state.records.len();
            if found.len() >= count {
                return found;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || state.ended {
                drop(state);
                let seen = found.len();
                panic!("waited for {what} ({seen} of {count} seen), but the log is:\n{}", self.text());
            }
            state = self.0.changed.wait_timeout(state, left).expect("no reader panics with the lock").0;
        }
    }

    /// Waits until every process that could write to the log is gone.
    #[track_caller]
    pub fn await_end(&self) {
        let state = self.state();
        let waited = self.0.changed.wait_timeout_while(state, PATIENCE, |state| !state.ended);
        let ended = waited.expect("no reader panics with the lock").0.ended;
        assert!(ended, "somebody still holds stderr open:\n{}", self.text());
    }

    pub fn text(&self) -> String {
        let state = self.state();
        state.records.iter().map(|record| format!("{}\n", record.line)).collect()
    }
}
