//! The master: it owns the listeners, and does what the [supervisor](super::supervisor) decides.
//!
//! All that happens comes as an [`Event`] on one channel: signals, templates, workers. The loop waits for the next
//! event or the supervisor's next timer, hands it over, and carries out the actions that come back. It waits for
//! nothing else: whatever takes time in a child is reported as an event when it is done.

mod control;
mod desk;
mod doorbell;
mod effects;
mod estate;
mod event;
mod journal;
mod offers;
mod overview;
mod policy;
mod queues;
mod sampler;
mod signals;
mod slow;
mod upgrade;
mod worker;

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, unbounded};
use slog::{Logger, debug, info, warn};

#[cfg(feature = "control")]
pub(crate) use self::desk::{Asker, Reply};
pub(crate) use self::desk::{Desk, Question};
use self::effects::{Effects, Program};
use self::estate::Estate;
use self::event::Event;
pub use self::offers::Offer;
use self::offers::OnOffer;
use self::signals::Signals;
use self::upgrade::OldMaster;
use super::config::{AcceptMode, Config, Workers};
use super::inheritance::{FromNext, Inheritance};
use super::scoreboard::Board;
use super::supervisor::{self, Action, Notice, Outcome, Supervisor};
use super::{BindError, PidFileError};
use crate::proc::words_of;
use crate::sys::clock::Monotonic;
use crate::sys::kernel::{self, KernelTooOld};
use crate::sys::limits;
use crate::sys::promptness::Prompt;

/// So many records there are in the scoreboard: in a roll a slot has two workers.
const RECORDS: u32 = 2 * Workers::MAX;

/// How long a template that was told to end, or a new master that is handed over to, may take before the master leaves without it.
const LAST_PATIENCE: Duration = Duration::from_secs(2);

/// Why a server did not boot, or could not go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RunError {
    /// The kernel is older than Linux 5.10.
    #[error(transparent)]
    Kernel(#[from] KernelTooOld),
    /// An address could not be bound.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The pid file could not be claimed; most likely the server runs already.
    #[error(transparent)]
    PidFile(#[from] PidFileError),
    /// The template or a worker did not start; these are its own words. Nothing is left running.
    #[error("the server did not boot: {words}")]
    Boot {
        /// What the template or the worker said last.
        words: String,
    },
    /// This process was started to replace a master, and cannot read what that one leaves to it.
    #[error("cannot take over from the master before this one: {words}")]
    Inheritance {
        /// What is wrong with it.
        words: String,
    },
    /// The master itself lacks something: descriptors, memory, its own executable.
    #[error("cannot {operation}")]
    Master {
        /// What was tried.
        operation: &'static str,
        /// What the kernel says.
        #[source]
        source: io::Error,
    },
}

impl RunError {
    fn master(operation: &'static str) -> impl FnOnce(io::Error) -> RunError {
        move |source| RunError::Master { operation, source }
    }
}

/// Runs a server until it is stopped by a signal.
///
/// On SIGUSR2 a new master is started beside this one: the program at the path of this process's executable as it is by
/// then, with this process's arguments, environment and directory, and its listeners. `main` runs in it as in any other,
/// and when it has come to this function and serves in every slot, this one drains its workers and returns `Ok`; see
/// [`Config::upgrade_timeout`]. A master that cannot boot does the one before it no harm.
///
/// `main` must have called [`hatchery::init`](crate::init) with entry points that [`host`](super::host) the
/// service which `config` names. The limit on open files (RLIMIT_NOFILE) is raised as far as it may be.
///
/// # Errors
/// Why the server did not boot; a server that has booted ends only as it was asked to.
pub fn run(config: Config, log: Logger) -> Result<(), RunError> {
    Server::new(config, log).run()
}

/// A server that is about to run, for a program that wants to do more than [`run`] does.
///
/// The workers of this one can be asked what they have answered, and tell of each start. The program asks them all once, and
/// stops:
///
/// ```standalone_crate
/// use std::cell::Cell;
/// use std::io::Write;
/// use std::rc::Rc;
/// use std::sync::mpsc;
/// use std::thread;
///
/// use hatchery::proc::Registry;
/// use hatchery::rpc::{Client, Cx, Options};
/// use hatchery::server::{
///     self, Config, Conn, LogFormat, LogLevel, Next, OfferOptions, PreloadCx, RequestCx, Result, Server, Service, WorkerCx,
/// };
/// use hatchery::slog::{Discard, Logger, o};
/// use nix::sys::signal::{Signal, raise};
///
/// struct Counting { answered: Rc<Cell<u64>> }
///
/// impl Service for Counting {
///     type Preload = ();
///     fn preload(_: &PreloadCx) -> Result<()> { Ok(()) }
///     fn start(_: &'static (), cx: &WorkerCx) -> Result<Counting> {
///         let answered = Rc::new(Cell::new(0));
///         let count = Rc::clone(&answered);
///         let notices = cx.offer("answered", OfferOptions::new(), move |(): (), _: &Cx<String>| Ok(count.get()))?;
///         notices.send(&format!("{} is here", cx.pid()))?;
///         Ok(Counting { answered })
///     }
///     fn serve(&mut self, conn: &mut Conn, _: &mut RequestCx) -> Result<Next> {
///         let Some(_) = conn.read_line(80)? else { return Ok(Next::Close) };
///         self.answered.set(self.answered.get() + 1);
///         writeln!(conn, "ok")?;
///         Ok(Next::Park)
///     }
/// }
///
/// fn silent(_: LogFormat, _: LogLevel) -> Logger { Logger::root(Discard, o!()) }
///
/// fn main() -> std::result::Result<(), server::RunError> {
///     hatchery::init(&server::host::<Counting>(Registry::new(), silent));
///
///     let mut config = Config::default();
///     config.listen = vec!["127.0.0.1:0".parse().expect("an address")];
///     let count = config.workers.get() as usize;
///     let (tell, workers) = mpsc::channel::<Client<(), u64, String>>();
///     thread::spawn(move || {
///         let workers: Vec<_> = workers.iter().take(count).collect();
///         let answered: u64 = workers.iter().filter_map(|worker| worker.call(&()).ok()).sum();
///         println!("{} workers have answered {answered} requests", workers.len());
///         raise(Signal::SIGTERM).expect("a signal");
///     });
///     let log = silent(config.log_format, config.log_level);
///     Server::new(config, log)
///         .on_offer(move |offer| {
///             let slot = offer.slot();
///             let Ok(worker) = offer.accept(Options::new()) else { return };
///             // What comes while there is no handler is dropped.
///             let _ = worker.on_event(move |notice| println!("slot {slot}: {notice}"));
///             let _ = tell.send(worker);
///         })
///         .run()
/// }
/// ```
#[must_use = "it runs nothing before `run`"]
pub struct Server {
    config: Config,
    on_offer: Option<OnOffer>,
    log: Logger,
}

impl Server {
    /// What [`run`] runs.
    pub fn new(config: Config, log: Logger) -> Server {
        Server { config, on_offer: None, log }
    }

    /// Calls `handler` with everything that a worker [offers](super::WorkerCx::offer), in the order in which it comes. A worker that
    /// follows another offers anew, and one whose end comes before its turn is passed over. Without a handler offers are
    /// declined.
    ///
    /// The handler has a thread of its own, so it may wait, and call; others wait for it then. That does
    /// not hold for the callbacks of a client that it [accepts](Offer::accept). If it panics, that is
    /// logged, and it is called with the next offer. When [`run`](Self::run) returns, all workers have ended, but what they have said
    /// last may still be on its way to callbacks; [`Client::close`](crate::rpc::Client::close) waits for it.
    pub fn on_offer(mut self, handler: impl FnMut(Offer) + Send + 'static) -> Server {
        self.on_offer = Some(Box::new(handler));
        self
    }

    /// Runs it; see [`run`].
    ///
    /// # Errors
    /// Those of [`run`].
    pub fn run(self) -> Result<(), RunError> {
        kernel::require_linux_5_10()?;
        let Server { config, on_offer, log } = self;
        run_with(config, on_offer, log)
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server").field("config", &self.config).finish_non_exhaustive()
    }
}

fn run_with(config: Config, on_offer: Option<OnOffer>, log: Logger) -> Result<(), RunError> {
    if let Err(error) = limits::raise_open_files() {
        warn!(log, "cannot raise the limit on open files"; "why" => %error);
    }
    let (events, inbox) = unbounded();
    let inherited = Inheritance::receive().map_err(|error| RunError::Inheritance { words: error.to_string() })?;
    let Some((conversation, inheritance)) = inherited else {
        return serve((config, on_offer), Inheritance::default(), None, (events, inbox), log);
    };
    let old = OldMaster::new(conversation, events.clone());
    let served = old
        .watch()
        .map_err(RunError::master("watch the master before this one"))
        .and_then(|()| serve((config, on_offer), inheritance, Some(Arc::clone(&old)), (events, inbox), log));
    if let Err(error) = &served {
        old.say(&FromNext::Failed { words: words_of(error) });
    }
    served
}

fn serve(
    (config, on_offer): (Config, Option<OnOffer>),
    inheritance: Inheritance,
    old_master: Option<Arc<OldMaster>>,
    (events, inbox): (Sender<Event>, Receiver<Event>),
    log: Logger,
) -> Result<(), RunError> {
    // A dead worker's clients wait for its successor, which passes through here.
    let _prompt = Prompt::begin();
    // Before anything that a signal should end in order.
    let _signals = Signals::watch(events.clone()).map_err(RunError::master("watch for signals"))?;
    let board = Board::new(RECORDS).map_err(RunError::master("make the scoreboard"))?;
    let program = Program::current().map_err(RunError::master("find this program's own file"))?;
    let estate = Estate::gather(&config, inheritance, old_master, events.clone(), log.clone())?;
    let offers = on_offer.map(|handler| offers::Queue::open(handler, log.clone())).transpose();
    let offers = offers.map_err(RunError::master("start the thread that hears of offers"))?;
    Master::new((config, offers), estate, (board, program), (events, inbox), log).run()
}

struct Master {
    supervisor: Supervisor,
    effects: Effects,
    inbox: Receiver<Event>,
    /// The supervisor's time begins here.
    began: Instant,
    log: Logger,
}

impl Master {
    fn new(
        (config, offers): (Config, Option<offers::Queue>),
        estate: Estate,
        own: (Board, Program),
        (events, inbox): (Sender<Event>, Receiver<Event>),
        log: Logger,
    ) -> Master {
        for listener in estate.listeners().iter().filter(|listener| listener.is_first()) {
            let accept = if listener.slot().is_some() { AcceptMode::Reuseport } else { AcceptMode::Shared };
            info!(log, "listening"; "address" => %listener.address(), "accept" => %accept, "pid" => std::process::id());
        }
        let policy = policy::of(&config);
        let effects = Effects::new(config, estate, own, offers, events, log.clone());
        let supervisor = Supervisor::new(policy, crate::machine::seed());
        Master { supervisor, effects, inbox, began: Instant::now(), log }
    }

    fn run(mut self) -> Result<(), RunError> {
        let outcome = match self.handle(supervisor::Event::Boot) {
            Some(outcome) => outcome,
            None => loop {
                if let Some(outcome) = self.turn() {
                    break outcome;
                }
            },
        };
        self.await_the_last();
        self.effects.estate.leave();
        match outcome {
            Outcome::Stopped => {
                info!(self.log, "stopped"; "took_ms" => journal::millis(self.began.elapsed()));
                Ok(())
            }
            Outcome::Replaced { pid } => {
                info!(self.log, "replaced"; "pid" => pid, "took_ms" => journal::millis(self.began.elapsed()));
                Ok(())
            }
            Outcome::BootFailed { words } => Err(RunError::Boot { words }),
        }
    }

    /// Waits for what happens next and deals with all that has happened by then.
    fn turn(&mut self) -> Option<Outcome> {
        let timer = self.supervisor.next_timer().and_then(|at| self.began.checked_add(at));
        let look = self.effects.next_look();
        let look = self.effects.next_stand_in().map_or(look, |stand_in| stand_in.min(look)).instant();
        let next = self.inbox.recv_deadline(timer.map_or(look, |timer| timer.min(look)));
        let waiting = self.inbox.len();
        // A flood of events must not keep the timers from their turn, but what was reported before a timer counts.
        for event in next.into_iter().chain(self.inbox.clone().try_iter().take(waiting)) {
            for event in self.take_in(event) {
                if let Some(outcome) = self.handle(event) {
                    return Some(outcome);
                }
            }
        }
        self.effects.look_after_queues();
        if self.effects.next_look() <= Monotonic::now() {
            for event in self.effects.look_at_requests() {
                if let Some(outcome) = self.handle(event) {
                    return Some(outcome);
                }
            }
        }
        let due = self.supervisor.next_timer().is_some_and(|at| at <= self.began.elapsed());
        if due { self.handle(supervisor::Event::Tick) } else { None }
    }

    /// What an event means to the supervisor; what is only asked is answered.
    fn take_in(&mut self, event: Event) -> Vec<supervisor::Event> {
        match event {
            Event::Asked(Question::Status(reply)) => {
                reply.give(overview::of(&self.supervisor, &self.effects, self.began.elapsed()));
                Vec::new()
            }
            event => self.effects.take_in(event),
        }
    }

    /// Lets the supervisor decide and does it.
    fn handle(&mut self, event: supervisor::Event) -> Option<Outcome> {
        self.supervisor.handle(self.began.elapsed(), event);
        while let Some(action) = self.supervisor.poll_action() {
            match action {
                Action::StartTemplate { generation } => self.effects.start_template(generation),
                Action::CloseTemplate { generation } => self.effects.close_template(generation),
                Action::Retire { generation } => self.effects.retire(generation),
                Action::Fork { id, slot, generation } => {
                    debug!(self.log, "worker asked for"; "worker" => id.0, "slot" => slot.0, "generation" => generation.0);
                    self.effects.fork(id, slot, generation);
                }
                Action::Drain { id } => {
                    debug!(self.log, "worker told to drain"; "worker" => id.0);
                    self.effects.drain(id);
                }
                Action::Kill { id, why } => self.effects.kill(id, why),
                Action::AwaitClient => self.effects.await_client(),
                Action::Sample { memory } => {
                    let load = self.effects.sample(memory);
                    self.supervisor.handle(self.began.elapsed(), supervisor::Event::Sampled(load));
                }
                Action::ShutGate => self.effects.estate.shut_gate(),
                Action::LookAtQueues => self.effects.estate.look_at_queues(),
                Action::CloseListeners => self.effects.close_listeners(),
                Action::StartUpgrade => self.effects.start_upgrade(),
                Action::EndUpgrade => self.effects.estate.kill_new_master(),
                Action::HandOver => self.effects.hand_over(),
                Action::TellReload { ticket, end } => self.effects.waiting.tell(ticket, end),
                Action::Notice(notice) => self.tell(&notice),
                Action::Leave(outcome) => return Some(outcome),
            }
        }
        None
    }

    fn tell(&self, notice: &Notice) {
        journal::write(&self.log, notice);
        if matches!(notice, Notice::Serving { .. }) {
            self.effects.estate.say_serving();
        }
    }

    /// The templates hold the listeners too: a port is free only when they are gone. And when this process is gone, the
    /// pid file is the new master's.
    fn await_the_last(&mut self) {
        let deadline = Instant::now() + LAST_PATIENCE;
        while self.effects.has_templates() || self.effects.estate.is_being_taken_over() {
            match self.inbox.recv_deadline(deadline) {
                Ok(event) => {
                    let told = self.take_in(event).into_iter();
                    // There is no reload any more, and whoever asks for one is told so.
                    for event in told.filter(|event| matches!(event, supervisor::Event::ReloadAsked { .. })) {
                        self.handle(event);
                    }
                }
                Err(_) => {
                    warn!(self.log, "a template or the new master does not answer any more; it is left alone";
                        "templates" => self.effects.has_templates());
                    return;
                }
            }
        }
    }
}
