//! What the supervisor hears, and what it asks for.

use std::fmt;
use std::time::Duration;

use super::fleet::WorkerState;
use super::recycling::WornBy;
use super::reloads::{ReloadEnd, ReloadTicket};
use super::restarts::Failures;
use crate::server::{Generation, Slot, WorkerId};

/// Something that happened.
///
/// The shell keeps to this: every [`Action::Fork`] ends in exactly one [`Event::WorkerExited`], or, where no process
/// came to be, in one [`Event::WorkerFailed`] with [`StartFailure::NoProcess`] or [`StartFailure::Resource`]; that
/// includes forks which a template took into its grave, reported after the template's own death. Nothing is reported of a template after its death or
/// after [`Action::CloseTemplate`]. Reports on a worker may come in any order, double, or late.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Event {
    /// The master is set up and its listeners are bound: go.
    Boot,
    /// A template has ended its preload and can fork.
    TemplateReady { generation: Generation },
    /// A template could not be started, or its preload failed.
    TemplateFailed { generation: Generation, words: String },
    /// A template is gone.
    TemplateDied { generation: Generation, words: String },
    /// The template has forked the worker.
    WorkerForked { id: WorkerId, pid: i32 },
    /// The worker's service has started.
    WorkerReady { id: WorkerId },
    /// The worker has answered a request: so it serves well, however short its life will be. Told before its end at
    /// the latest.
    WorkerServed { id: WorkerId },
    /// The worker has closed its socket: it is about to end, and who reaps it will say so.
    WorkerHungUp { id: WorkerId },
    /// The worker's process has ended, and nobody can tell yet how: [`Event::WorkerExited`] follows within a second.
    WorkerGone { id: WorkerId },
    /// The worker is long over its hard deadline and has not ended itself: it blocks the alarm, or stands still.
    WorkerStuck { id: WorkerId },
    /// The worker could not start.
    WorkerFailed { id: WorkerId, cause: StartFailure },
    /// The worker is gone; the words are its own, if it left any.
    WorkerExited { id: WorkerId, exit: Exit, words: Option<String> },
    /// A client waits on a listener, as [`Action::AwaitClient`] asked to be told.
    ClientWaits,
    /// What [`Action::Sample`] asked for.
    Sampled(Load),
    /// What [`Action::LookAtQueues`] has found: clients in a queue, and handshakes under way.
    QueuesSeen { queued: bool, half_open: bool },
    /// The operator wants something.
    Signal(Signal),
    /// The operator wants a reload, and to be told its end by [`Action::TellReload`]. Each ticket comes once.
    ReloadAsked { ticket: ReloadTicket },
    /// The new master serves. Said at most once for an [`Action::StartUpgrade`].
    UpgradeReady { pid: i32 },
    /// The new master has ended, or never came to be; the words are its own, if it left any. Each
    /// [`Action::StartUpgrade`] ends in this, or in [`Event::UpgradeReady`].
    UpgradeFailed { words: String },
    /// The time of [`Supervisor::next_timer`](super::Supervisor::next_timer) has come. The shell first hands over
    /// the reports that already wait, so that a master that was stopped itself blames nobody for it.
    Tick,
}

/// What is going on, at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Load {
    /// Each worker that has something to say.
    pub(crate) workers: Vec<WorkerLoad>,
    /// Clients that no worker has accepted yet.
    pub(crate) queue: u32,
}

/// What one worker has done and does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct WorkerLoad {
    pub(crate) id: WorkerId,
    /// Requests that it has answered.
    pub(crate) requests: u64,
    /// It serves a request.
    pub(crate) busy: bool,
    /// It holds connections that wait for their next request.
    pub(crate) parked: bool,
    /// The memory that is resident, in bytes, where that was asked for and could be read.
    pub(crate) resident: Option<u64>,
}

/// What an operator can ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Signal {
    /// TERM: drain and leave.
    Stop,
    /// INT, QUIT: leave within the quick timeout; twice: at once.
    Quit,
    /// HUP: the next generation, rolled in.
    Reload,
    /// TTIN: one worker more; after [`Signal::DrainWorkers`], the workers as they were.
    More,
    /// TTOU: one worker fewer, never fewer than one.
    Fewer,
    /// WINCH: drain the workers and fork none until [`Signal::Reload`] or [`Signal::More`].
    DrainWorkers,
    /// USR2: a new master takes this one's place once it serves.
    Upgrade,
    /// USR1: nothing, since the log goes to standard error; whoever sends it to a server by habit is not to kill it.
    ReopenLogs,
}

/// Why a worker did not start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum StartFailure {
    /// The service said no; its own words. The worker leaves by itself.
    Refused { words: String },
    /// No process came to be, because of its template: it was gone, or has a second thread.
    NoProcess { words: String },
    /// No process came to be for want of something that all would have wanted: EAGAIN, ENOMEM, EMFILE.
    Resource { words: String },
    /// It was not ready in time.
    TimedOut,
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    /// Code 0.
    Clean,
    /// Another code.
    Code(i32),
    /// Killed by this signal.
    Signal(i32),
    /// Gone, and nobody was left to reap it and say how.
    Unknown,
}

/// Something the shell is to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Action {
    /// Start a template of this generation; no other of this generation lives.
    StartTemplate { generation: Generation },
    /// End this template for good, whatever state it is in.
    CloseTemplate { generation: Generation },
    /// No template of this generation is started any more: its executable can be let go.
    Retire { generation: Generation },
    /// Fork a worker from the generation's template, which is alive and ready.
    Fork { id: WorkerId, slot: Slot, generation: Generation },
    /// Ask the worker to drain. It may not exist yet: the wish then waits on its socket.
    Drain { id: WorkerId },
    /// Kill the worker, which may not exist yet. Asked once for a worker, and followed by its end.
    Kill { id: WorkerId, why: KillReason },
    /// Tell once when a client waits on a listener, by [`Event::ClientWaits`]; it may wait already.
    AwaitClient,
    /// Look at all workers, and tell it as [`Event::Sampled`]; at their memory as well only if that is asked for.
    Sample { memory: bool },
    /// Let no new client in; those who are on the way in still come through. It holds for workers and templates too.
    ShutGate,
    /// See who waits at the listeners, and say so with [`Event::QueuesSeen`].
    LookAtQueues,
    /// Close the master's own listeners; workers still hold theirs.
    CloseListeners,
    /// Start a new master from the program's path, with the listeners; no other one lives.
    StartUpgrade,
    /// Kill the new master, which does not serve yet. Followed by its end.
    EndUpgrade,
    /// The new master serves: leave everything to it that outlives this one, and close the listeners.
    HandOver,
    /// Tell who asked for the reload how it ended.
    TellReload { ticket: ReloadTicket, end: ReloadEnd },
    /// A fact for the log.
    Notice(Notice),
    /// The server has ended: no process is left. The last action of all.
    Leave(Outcome),
}

/// Why a worker is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum KillReason {
    /// It was not ready within the start timeout.
    NotReady,
    /// It had not drained by the end of its time.
    NotDrained,
    /// It had closed its socket and did not end.
    HungUp,
    /// It was over its hard deadline and did not end.
    Stuck,
    /// Its template was lost before it was seen to be forked.
    TemplateLost,
    /// The first boot failed.
    BootFailed,
    /// The operator asked twice for a quick stop.
    AtOnce,
}

/// How the server ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It was asked to.
    Stopped,
    /// The first boot failed; the words are the template's or the worker's own.
    BootFailed { words: String },
    /// A new master serves in its place.
    Replaced { pid: i32 },
}

/// A fact of the server's life, for the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Notice {
    /// Said once: every slot has a ready worker for the first time.
    Serving { workers: u32, took: Duration },
    /// A template can fork.
    TemplateReady { generation: Generation, took: Duration },
    /// A template failed, died, or was given up.
    TemplateLost { generation: Generation, words: String },
    /// A lost template's successor starts after this delay.
    TemplateDelayed { generation: Generation, delay: Duration },
    /// A worker serves.
    WorkerReady { worker: Identity, took: Duration },
    /// A worker did not start.
    WorkerFailed { worker: Identity, cause: StartFailure, took: Duration },
    /// A worker has reached a limit: its successor is forked, and then it drains.
    WornOut { worker: Identity, by: WornBy },
    /// A worker is gone; `was` tells whether that was wished.
    WorkerExited { worker: Identity, was: WorkerState, exit: Exit, words: Option<String>, took: Duration },
    /// The slot's next worker is forked after this delay.
    SlotDelayed { slot: Slot, failures: Failures, delay: Duration },
    /// No worker is forked for this long, for want of something that all would want; then one is tried.
    Short { tries: u32, delay: Duration },
    /// One could be forked again, and all may be.
    Relieved { took: Duration },
    /// The restart budget is spent: so many ends of each kind within its window. The workers that are ready go on;
    /// others are tried one at a time.
    Degraded { ready: u32, failures: Failures, window: Duration },
    /// The next one is tried after this delay.
    ProbeDelayed { tries: u32, delay: Duration },
    /// A try has served well, or nobody is missing any more: all may be forked again.
    Recovered { took: Duration },
    /// A reload has begun.
    Reloading { generation: Generation },
    /// A reload waits for the end of what is under way.
    ReloadQueued,
    /// The new generation serves in every slot.
    Reloaded { generation: Generation, took: Duration },
    /// The new generation is withdrawn; the old one goes on.
    ReloadFailed { generation: Generation, words: String },
    /// The new generation is withdrawn, because the operator wants something else.
    ReloadCalledOff { generation: Generation, words: String },
    /// A new master serves, and this one drains its workers.
    Replaced { pid: i32, took: Duration },
    /// There is no new master, and this one goes on.
    UpgradeFailed { words: String, took: Duration },
    /// There is no new master, because this one is on its way out.
    UpgradeCalledOff { words: String, took: Duration },
    /// The number of workers to keep.
    Target { workers: u32 },
    /// The number of workers follows the load: so many are to be kept from now on.
    Scaled { workers: u32, idle: u32, queue: u32 },
    /// The workers drain, and none is forked for now.
    Paused,
    /// Workers are forked again.
    Resumed,
    /// New clients are not to be sent here any more; the gate is shut after this delay.
    Unready { delay: Duration },
    /// No new client is let in.
    GateShut,
    /// Everybody who had come before the gate was shut is accepted; the listeners close.
    QueuesServed { took: Duration },
    /// The time is over, and clients may be in the queues; the listeners close.
    QueuesAbandoned { queued: bool },
    /// The server is on its way out.
    Stopping { signal: Signal },
    /// The signal means nothing now.
    Ignored { signal: Signal },
}

/// Which worker a notice is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) id: WorkerId,
    pub(crate) slot: Slot,
    pub(crate) generation: Generation,
    /// Unknown until the template has told it.
    pub(crate) pid: Option<i32>,
}

impl fmt::Display for KillReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotReady => "it was not ready in time",
            Self::NotDrained => "it had not drained in time",
            Self::Stuck => "its request was over its hard deadline and its alarm did not end it",
            Self::HungUp => "it had closed its socket and its end was not reported",
            Self::TemplateLost => "its template was lost before it was seen to be forked",
            Self::BootFailed => "the server did not boot",
            Self::AtOnce => "the operator asked to stop at once",
        })
    }
}

impl fmt::Display for StartFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused { words } | Self::NoProcess { words } | Self::Resource { words } => f.write_str(words),
            Self::TimedOut => f.write_str("not ready in time"),
        }
    }
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Clean => f.write_str("exited with code 0"),
            Self::Code(code) => write!(f, "exited with code {code}"),
            Self::Signal(signal) => write!(f, "was killed by signal {signal}"),
            Self::Unknown => f.write_str("is gone, and nobody saw how"),
        }
    }
}
