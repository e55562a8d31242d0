//! Entry points: functions that can be called in a process, or take it over, by name.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;

use super::caught::catch;
use super::failure::{Failure, words_of};
use crate::sys::plugin::ForeignEntry;

/// Any error of a program's own code: of an entry point, of a service. Its text and its sources reach the master.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

type CallFn = Box<dyn Fn(&mut CallCx<'_>) -> Result<(), BoxError>>;
type RunFn = Box<dyn Fn(RunCx) -> Result<(), BoxError>>;

/// The entry points of a program, by name.
///
/// Fill it at the very beginning of `main` and give it to [`init`](crate::init): the master and every process
/// that it spawns is this same program, so all of them know the same names.
///
/// ```
/// use hatchery::proc::Registry;
///
/// let registry = Registry::new()
///     .call("geo::load", |cx| {
///         let path = cx.arg_str(0)?;
///         println!("loading {path}");
///         Ok(())
///     })
///     .run("my_server::run", |cx| {
///         println!("serving as {:?}", cx.args);
///         Ok(())
///     });
/// hatchery::init(&registry);
/// ```
#[derive(Default)]
pub struct Registry {
    entries: BTreeMap<String, Entry>,
}

enum Entry {
    Call(CallFn),
    Run(RunFn),
}

/// What a called entry point works with.
#[derive(Debug)]
#[non_exhaustive]
pub struct CallCx<'a> {
    /// The arguments of this call.
    pub args: &'a [Vec<u8>],
    /// The arguments that were sent to the process before; the function may take them.
    pub held_args: &'a mut Vec<Vec<u8>>,
    /// The descriptors that were sent to the process before; the function may take them.
    pub held_fds: &'a mut Vec<OwnedFd>,
}

/// What an entry point gets that takes its process over.
#[derive(Debug)]
#[non_exhaustive]
pub struct RunCx {
    /// The process's end of its socket (`SOCK_SEQPACKET`); the other is [`Running::socket`](super::Running::socket).
    pub socket: OwnedFd,
    /// All arguments that were sent, and those inherited from the templates, in order.
    pub args: Vec<Vec<u8>>,
    /// All descriptors that were sent, and those inherited from the templates, in order.
    pub fds: Vec<OwnedFd>,
}

impl CallCx<'_> {
    /// The call's argument at `index`, as text.
    ///
    /// # Errors
    /// There is no such argument, or it is not UTF-8.
    pub fn arg_str(&self, index: usize) -> Result<&str, BoxError> {
        text_at(self.args, index)
    }
}

impl RunCx {
    /// The argument at `index`, as text.
    ///
    /// # Errors
    /// There is no such argument, or it is not UTF-8.
    pub fn arg_str(&self, index: usize) -> Result<&str, BoxError> {
        text_at(&self.args, index)
    }
}

pub(crate) fn text_at(args: &[Vec<u8>], index: usize) -> Result<&str, BoxError> {
    let arg = args.get(index).ok_or_else(|| format!("argument {index} is missing; {} were given", args.len()))?;
    Ok(std::str::from_utf8(arg).map_err(|error| format!("argument {index} is not UTF-8: {error}"))?)
}

impl Registry {
    /// A registry without entry points.
    pub fn new() -> Registry {
        Registry::default()
    }

    /// Registers a function that can be called inside a waiting process; the process waits on afterwards.
    ///
    /// # Panics
    /// If the name is taken: two functions under one name are a mistake in the program.
    #[must_use]
    pub fn call<F>(mut self, name: impl Into<String>, function: F) -> Registry
    where
        F: Fn(&mut CallCx<'_>) -> Result<(), BoxError> + 'static,
    {
        self.insert(name.into(), Entry::Call(Box::new(function)));
        self
    }

    /// Registers a function that can take a process over; the process ends when it returns, with code 0, or 1
    /// if it returns an error, or 101 if it panics.
    ///
    /// # Panics
    /// If the name is taken: two functions under one name are a mistake in the program.
    #[must_use]
    pub fn run<F>(mut self, name: impl Into<String>, function: F) -> Registry
    where
        F: Fn(RunCx) -> Result<(), BoxError> + 'static,
    {
        self.insert(name.into(), Entry::Run(Box::new(function)));
        self
    }

    fn insert(&mut self, name: String, entry: Entry) {
        if let Some((taken, _)) = self.entries.remove_entry(&name) {
            panic!("the entry point {taken:?} is registered twice");
        }
        self.entries.insert(name, entry);
    }
}

/// The entry points that a process knows: the program's own, and those of the objects that it has loaded.
pub(crate) struct EntryPoints<'r> {
    registry: &'r Registry,
    loaded: Vec<ForeignEntry>,
}

/// How an entry point that took the process over came to its end.
pub(crate) enum RunEnd {
    Code(i32),
    Failed(Failure),
}

impl<'r> EntryPoints<'r> {
    pub(crate) fn new(registry: &'r Registry) -> EntryPoints<'r> {
        EntryPoints { registry, loaded: Vec::new() }
    }

    /// Adds entry points of a shared object; the latest of a name is the one that counts.
    pub(crate) fn add(&mut self, entries: Vec<ForeignEntry>) {
        self.loaded.extend(entries);
    }

    pub(crate) fn call(&self, name: &str, cx: &mut CallCx<'_>) -> Result<(), Failure> {
        if let Some(Entry::Call(function)) = self.registry.entries.get(name) {
            return match catch(|| function(cx)) {
                Ok(Ok(())) => Ok(()),
                Ok(Err(error)) => Err(returned(name, &error)),
                Err(panic) => Err(Failure::Panicked { name: name.to_owned(), words: panic.to_string() }),
            };
        }
        let foreign = self.loaded.iter().rev().find(|entry| entry.name == name);
        match foreign.and_then(|entry| entry.call(cx.args)) {
            Some(called) => called.map_err(|words| Failure::Returned { name: name.to_owned(), words }),
            None => Err(self.unknown(name, "call")),
        }
    }

    /// Whether [`EntryPoints::run`] would find this name; the failure if not.
    pub(crate) fn can_run(&self, name: &str) -> Result<(), Failure> {
        let own = matches!(self.registry.entries.get(name), Some(Entry::Run(_)));
        if own || self.loaded.iter().any(|entry| entry.name == name && entry.is_run()) {
            Ok(())
        } else {
            Err(self.unknown(name, "run"))
        }
    }

    pub(crate) fn run(&self, name: &str, cx: RunCx) -> RunEnd {
        if let Some(Entry::Run(function)) = self.registry.entries.get(name) {
            return match catch(|| function(cx)) {
                Ok(Ok(())) => RunEnd::Code(0),
                Ok(Err(error)) => RunEnd::Failed(returned(name, &error)),
                Err(panic) => RunEnd::Failed(Failure::Panicked { name: name.to_owned(), words: panic.to_string() }),
            };
        }
        let foreign = self.loaded.iter().rev().find(|entry| entry.name == name && entry.is_run());
        match foreign.and_then(|entry| entry.run(cx.socket, &cx.args, cx.fds)) {
            Some(code) => RunEnd::Code(code),
            None => RunEnd::Failed(self.unknown(name, "run")),
        }
    }

    fn unknown(&self, name: &str, verb: &str) -> Failure {
        let wants_run = verb == "run";
        let own = self.registry.entries.iter().filter(|(_, entry)| matches!(entry, Entry::Run(_)) == wants_run);
        let own = own.map(|(name, _)| name.clone());
        let loaded = self.loaded.iter().filter(|entry| entry.is_run() == wants_run).map(|entry| entry.name.clone());
        Failure::UnknownEntryPoint { name: name.to_owned(), verb: verb.to_owned(), known: own.chain(loaded).collect() }
    }
}

fn returned(name: &str, error: &BoxError) -> Failure {
    Failure::Returned { name: name.to_owned(), words: words_of(error.as_ref()) }
}
