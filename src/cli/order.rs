//! What is asked of a running server: `hatchery reload` and `hatchery status`.

use std::fmt::{self, Display, Write as _};
use std::io::Write as _;
use std::time::Duration;

use super::exit::Exit;
use super::say;
use crate::control::{self, AskError};
use crate::server::{ControlAddress, LastReload, ReloadEnd, ReloadOutcome, Status, WorkerActivity, WorkerStatus};

/// How long a server may take to say how it stands: it is known at once.
const STATUS_PATIENCE: Duration = Duration::from_secs(10);

/// What a running server is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Order {
    /// Reload, and wait for the end.
    Reload { control: ControlAddress, timeout: Option<Duration> },
    /// Say how it stands, in JSON or in words.
    Status { control: ControlAddress, json: bool },
}

/// Asks the server; the answer is the exit, with its words.
pub(super) fn carry_out(order: &Order) -> Exit {
    match order {
        Order::Reload { control, timeout } => match control::reload(control, *timeout) {
            Ok(end) => tell_end(&end),
            Err(error @ (AskError::TimedOut { .. } | AskError::HungUp { .. })) => {
                fail(Exit::Unknown, format_args!("how the reload ends is not known: {error}"))
            }
            Err(error) => fail(Exit::NoAnswer, format_args!("{error}")),
        },
        Order::Status { control, json } => match control::status(control, Some(STATUS_PATIENCE)) {
            Ok(status) if *json => {
                print(serde_json::to_string_pretty(&status).expect("numbers and texts can be written") + "\n")
            }
            Ok(status) => print(Shown(&status).to_string()),
            Err(error) => fail(Exit::NoAnswer, format_args!("{error}")),
        },
    }
}

fn tell_end(end: &ReloadEnd) -> Exit {
    match &end.outcome {
        ReloadOutcome::Reloaded => {
            let generation = end.generation.map_or_else(String::new, |generation| format!(" {generation}"));
            print(format!("reloaded: generation{generation} serves, after {}\n", span(end.took_ms)))
        }
        ReloadOutcome::RolledBack { why } => {
            let why = OneLine(why);
            fail(Exit::Failure, format_args!("the reload was rolled back, the old generation serves on: {why}"))
        }
        ReloadOutcome::CalledOff { why } => {
            fail(Exit::Failure, format_args!("the reload was called off: {}", OneLine(why)))
        }
    }
}

fn print(text: String) -> Exit {
    if std::io::stdout().write_all(text.as_bytes()).is_err() { Exit::Failure } else { Exit::CleanStop }
}

fn fail(exit: Exit, words: fmt::Arguments<'_>) -> Exit {
    say(format_args!("error: {words}\n"));
    exit
}

/// A status in words: what concerns all, and a line for each worker.
struct Shown<'a>(&'a Status);

impl Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Shown(status) = self;
        write!(f, "{}, generation {}", word(&status.state), status.generation)?;
        if let Some(incoming) = status.incoming {
            write!(f, ", generation {incoming} is coming")?;
        }
        writeln!(f, "; health {}, {} workers wanted", word(&status.health), status.workers)?;
        writeln!(
            f,
            "master {}, hatchery {}, up {}",
            status.pid,
            OneLine(&status.hatchery_version),
            span(status.uptime_ms)
        )?;
        match &status.last_reload {
            Some(last) => writeln!(f, "last reload: {}", reload(last))?,
            None => writeln!(f, "last reload: none")?,
        }
        writeln!(f, "slot     pid  gen  state          for  requests  connections  parked  label")?;
        for slot in &status.slots {
            if slot.workers.is_empty() {
                writeln!(f, "{:>4}       -    -  vacant", slot.slot.0)?;
            }
            for worker in &slot.workers {
                writeln!(f, "{:>4} {}", slot.slot.0, line_of(worker))?;
            }
        }
        Ok(())
    }
}

fn reload(last: &LastReload) -> String {
    let generation = last.end.generation.map_or(0, |generation| generation.0);
    let ago = span(last.ago_ms);
    match &last.end.outcome {
        ReloadOutcome::Reloaded => format!("generation {generation}, {ago} ago, took {}", span(last.end.took_ms)),
        ReloadOutcome::RolledBack { why } => {
            format!("generation {generation} was rolled back {ago} ago: {}", OneLine(why))
        }
        ReloadOutcome::CalledOff { why } => {
            format!("generation {generation} was called off {ago} ago: {}", OneLine(why))
        }
    }
}

fn line_of(worker: &WorkerStatus) -> String {
    let pid = worker.pid.map_or("-".to_owned(), |pid| pid.to_string());
    // A busy one is of interest for its request.
    let took = match (worker.state, worker.request_ms) {
        (WorkerActivity::Busy, Some(request)) => request,
        _ => worker.age_ms,
    };
    let line = format!(
        "{pid:>7} {:>4}  {:<9} {:>8} {:>9} {:>12} {:>7}  {}",
        worker.generation.0,
        word(&worker.state),
        span(took),
        worker.requests,
        worker.connections,
        worker.parked,
        OneLine(&worker.label)
    );
    line.trim_end().to_owned()
}

/// A length of time as people read it: whole seconds, or milliseconds below one.
fn span(millis: u64) -> String {
    let time = if millis < 1000 { Duration::from_millis(millis) } else { Duration::from_secs(millis / 1000) };
    humantime::format_duration(time).to_string().replace(' ', "")
}

/// The word that stands for a unit variant.
fn word(value: &impl serde::Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(word)) => word,
        other => unreachable!("{other:?} is no word"),
    }
}

/// A text of whatever origin: what would move a terminal's cursor is escaped.
struct OneLine<'a>(&'a str);

impl Display for OneLine<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.chars().try_for_each(|char| match char {
            char if char.is_control() => write!(f, "{}", char.escape_default()),
            char => f.write_char(char),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_shown_with_a_line_for_each_worker_and_for_each_vacant_slot() {
        let status: Status = serde_json::from_str(
            r#"{"pid": 7, "hatchery_version": "1.0", "state": "reloading", "health": "sound", "upgrading": false,
                "uptime_ms": 61500, "generation": 2, "incoming": 3, "workers": 2,
                "last_reload": {"generation": 2, "outcome": "rolled_back", "why": "torn\nindex", "took_ms": 5, "ago_ms": 900},
                "slots": [{"slot": 0, "workers": [{"pid": 12, "generation": 2, "state": "busy", "age_ms": 50000,
                "request_ms": 120, "requests": 5, "connections": 4, "parked": 1, "label": "GET \u001b[2J"}]},
                {"slot": 1, "workers": []}]}"#,
        )
        .expect("a status");
        assert_eq!(
            Shown(&status).to_string(),
            "reloading, generation 2, generation 3 is coming; health sound, 2 workers wanted\n\
             master 7, hatchery 1.0, up 1m1s\n\
             last reload: generation 2 was rolled back 900ms ago: torn\\nindex\n\
             slot     pid  gen  state          for  requests  connections  parked  label\n\
             \u{20}  0      12    2  busy         120ms         5            4       1  GET \\u{1b}[2J\n\
             \u{20}  1       -    -  vacant\n"
        );
    }
}
