//! What the supervisor decides, done; what comes of it, told in the supervisor's words.

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::io;
use std::ops::Bound;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crossbeam_channel::Sender;
use nix::libc;
use slog::{Logger, info, o, warn};

use super::doorbell::Doorbell;
use super::estate::Estate;
use super::event::{Event, TemplateId};
use super::queues::{Order, Queues};
use super::slow::SlowLog;
use super::worker::Worker;
use super::{sampler, signals};
use crate::proc::{self, Exit, Failure, How, Process, Template};
use crate::server::config::Config;
use crate::server::hosting::{encode, preload_entry, worker_entry};
use crate::server::listener::gate::Waiting;
use crate::server::listener::{Listener, slots};
use crate::server::message::{FromWorker, ToWorker};
use crate::server::scoreboard::{Board, Snapshot};
use crate::server::service::BoxError;
use crate::server::supervisor::{self, KillReason, Load, StartFailure};
use crate::server::worker_config::{Listened, WorkerBirth, WorkerConfig};
use crate::server::{Generation, Slot, WorkerId};
use crate::sys::clock::Monotonic;
use crate::sys::spawn::Image;

/// How long a draining worker keeps a connection that is between two requests, for one more. It is less than the time of a
/// quick stop, and more than a client that asks without pause, on a busy machine, takes from one answer to its next request.
const LAST_CHANCE: Duration = Duration::from_millis(500);

/// So many workers are sent at a time to look at a queue, and so often at most.
const LOOKERS: usize = 16;
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// The program that this process runs: where it was found, and the file itself.
pub(super) struct Program {
    path: PathBuf,
    image: Image,
}

impl Program {
    pub(super) fn current() -> io::Result<Program> {
        Ok(Program { path: path_as_started()?, image: Image::current()? })
    }
}

/// Where this program was started from, with the symbolic links on the way: one that leads to another version by then is
/// to be followed. What was found by its name alone, or named itself otherwise, is where the kernel says it is.
fn path_as_started() -> io::Result<PathBuf> {
    let found = env::current_exe()?;
    let Some(written) = env::args_os().next().filter(|name| name.as_bytes().contains(&b'/')) else {
        return Ok(found);
    };
    let written = std::path::absolute(written)?;
    let file = |path: &Path| fs::metadata(path).map(|metadata| (metadata.dev(), metadata.ino()));
    let is_this = matches!((file(&written), file(Path::new("/proc/self/exe"))), (Ok(there), Ok(this)) if there == this);
    Ok(if is_this { written } else { found })
}

/// The templates, the workers and the estate of a master.
pub(super) struct Effects {
    config: Config,
    pub(super) estate: Estate,
    /// Hung up while there is no worker.
    doorbell: Option<Doorbell>,
    board: Board,
    free_records: Vec<u32>,
    /// Where a reload finds the program.
    program: PathBuf,
    /// The executable of each generation: a template that dies is replaced by the same version.
    images: BTreeMap<Generation, Image>,
    /// Each generation's template; none where it could not even be started, which is told as its failure.
    templates: BTreeMap<Generation, (TemplateId, Option<Template>)>,
    /// Templates that were told to end and have not yet.
    closing: Vec<(TemplateId, Template)>,
    lives: u32,
    workers: BTreeMap<WorkerId, Worker>,
    slow: SlowLog,
    queues: Queues,
    /// Who was sent last to look at the queues, and when.
    looked: Option<(WorkerId, Monotonic)>,
    events: Sender<Event>,
    log: Logger,
}

impl Effects {
    pub(super) fn new(
        config: Config,
        estate: Estate,
        (board, program): (Board, Program),
        events: Sender<Event>,
        log: Logger,
    ) -> Effects {
        let Program { path: program, image } = program;
        let images = BTreeMap::from([(Generation(1), image)]);
        let slow = SlowLog::new(config.request_timeout, log.clone());
        let mut queues = Queues::default();
        for queue in estate.listeners().iter().filter_map(Listener::slot) {
            queues.opened(queue, Monotonic::now());
        }
        Effects {
            config,
            slow,
            queues,
            looked: None,
            estate,
            doorbell: None,
            free_records: (0..board.capacity()).rev().collect(),
            board,
            program,
            images,
            templates: BTreeMap::new(),
            closing: Vec::new(),
            lives: 0,
            workers: BTreeMap::new(),
            events,
            log,
        }
    }

    pub(super) fn start_template(&mut self, generation: Generation) {
        self.lives += 1;
        let id = TemplateId { generation, life: self.lives };
        let template = match self.try_start_template(id) {
            Ok(template) => Some(template),
            Err(error) => {
                self.tell(Event::Preloaded { template: id, outcome: Err(proc::words_of(error.as_ref())) });
                None
            }
        };
        self.templates.insert(generation, (id, template));
    }

    fn try_start_template(&mut self, id: TemplateId) -> Result<Template, BoxError> {
        let image = match self.images.entry(id.generation) {
            std::collections::btree_map::Entry::Occupied(entry) => entry.into_mut(),
            std::collections::btree_map::Entry::Vacant(entry) => {
                let image = Image::open(&self.program)
                    .map_err(|error| format!("cannot open {}: {error}", self.program.display()))?;
                entry.insert(image)
            }
        };
        let name = self.program.file_name().unwrap_or_default();
        let title = proc::titled(name, &format!("generation {}", id.generation));
        let mut template = Template::start(image, &self.program, &title)?;
        let events = self.events.clone();
        template.on_exit(move |end| drop(events.send(Event::TemplateEnded { template: id, end })));
        match self.instruct(&mut template, id) {
            // Its end, which tells why, is on the way.
            Err(error) if error.downcast_ref().is_some_and(is_gone) => Ok(template),
            instructed => instructed.map(|()| template),
        }
    }

    /// Hands a template what its workers need and lets it preload.
    fn instruct(&self, template: &mut Template, id: TemplateId) -> Result<(), BoxError> {
        for listener in self.estate.listeners().iter().filter(|listener| listener.slot().is_none()) {
            template.send_fd(listener.as_fd().try_clone_to_owned()?)?;
        }
        template.send_fd(self.board.as_fd().try_clone_to_owned()?)?;
        template.send_arg(encode(&self.worker_config())?)?;
        let arguments = [encode(&id.generation)?, encode(&nix::unistd::getpid().as_raw())?];
        template.call(&preload_entry(self.config.service), arguments)?;
        let events = self.events.clone();
        template.on_sync(move |outcome| {
            if !outcome.as_ref().is_err_and(is_gone) {
                let outcome = outcome.map_err(|error| words_of(&error));
                let _ = events.send(Event::Preloaded { template: id, outcome });
            }
        })?;
        Ok(())
    }

    fn worker_config(&self) -> WorkerConfig {
        let mut args = self.config.args.clone();
        if self.config.faults {
            args.insert("faults".to_owned(), "true".to_owned());
        }
        let first = self.estate.listeners().iter().filter(|listener| listener.is_first());
        WorkerConfig {
            request_timeout: self.config.request_timeout,
            request_kill_after: self.config.request_kill_after,
            idle_timeout: self.config.idle_timeout,
            last_chance: LAST_CHANCE.min(self.config.graceful_timeout / 2),
            args,
            listeners: first.map(listened).collect(),
            log_format: self.config.log_format,
            log_level: self.config.log_level,
        }
    }

    pub(super) fn close_template(&mut self, generation: Generation) {
        if let Some((id, Some(template))) = self.templates.remove(&generation) {
            // All its workers are gone, or it is stuck and hears nothing.
            if let Err(error) = template.kill(libc::SIGKILL) {
                warn!(self.log, "cannot end a template"; "generation" => generation.0, "why" => %error);
            }
            self.closing.push((id, template));
        }
    }

    /// Lets go of a generation's executable, which nothing more is started from.
    pub(super) fn retire(&mut self, generation: Generation) {
        self.images.remove(&generation);
    }

    /// Whether some template's process may still be there.
    pub(super) fn has_templates(&self) -> bool {
        !self.closing.is_empty() || !self.templates.is_empty()
    }

    pub(super) fn fork(&mut self, id: WorkerId, slot: Slot, generation: Generation) {
        match self.try_fork(id, slot, generation) {
            Ok(worker) => drop(self.workers.insert(id, worker)),
            Err(failure) => self.tell(Event::WorkerEnded { id, end: Err(failure) }),
        }
    }

    fn try_fork(&mut self, id: WorkerId, slot: Slot, generation: Generation) -> Result<Worker, StartFailure> {
        let no_process = |words: &str| StartFailure::NoProcess { words: words.to_owned() };
        let (_, template) = self.templates.get_mut(&generation).ok_or_else(|| no_process("the template is gone"))?;
        let template = template.as_mut().ok_or_else(|| no_process("the template was not started"))?;
        let Some(&record) = self.free_records.last() else {
            return Err(StartFailure::Resource { words: "every record of the scoreboard is taken".to_owned() });
        };
        let lacking = |words: String| StartFailure::Resource { words };
        let queue = self.estate.queue_for(slot).map_err(|error| lacking(error.to_string()))?;
        let own = queue.map(|queue| slots::of_slot(self.estate.listeners(), queue).map(clone_fd).collect());
        let own: Vec<OwnedFd> = own.unwrap_or_else(|| Ok(Vec::new())).map_err(|error| lacking(error.to_string()))?;
        let birth = WorkerBirth { slot, generation, id, record };
        let birth = encode(&birth).map_err(|error| no_process(&proc::words_of(error.as_ref())))?;
        let entry = worker_entry(self.config.service);
        let running = template.fork().and_then(|process| {
            let process = own.into_iter().try_fold(process, Process::send_fd)?;
            process.send_arg(birth)?.run(&entry)
        });
        let running = running.map_err(|error| why_no_process(&error))?;
        self.free_records.pop();
        if let Some(queue) = queue {
            self.queues.opened(queue, Monotonic::now());
        }
        let events = self.events.clone();
        running.on_birth(move |pid| drop(events.send(Event::WorkerBorn { id, pid })));
        let events = self.events.clone();
        running.on_exit(move |end| {
            let end = end.map_err(|error| why_no_process(&error));
            let _ = events.send(Event::WorkerEnded { id, end });
        });
        Ok(Worker::new(running, record, slot, generation, queue))
    }

    pub(super) fn drain(&mut self, id: WorkerId) {
        self.queues.leaves(id, Monotonic::now());
        if let Some(Err(why)) = self.workers.get_mut(&id).map(Worker::drain) {
            // It is gone, and its end is on the way; or it is stuck, and its deadline is.
            info!(self.log, "cannot ask a worker to drain"; "worker" => id.0, "why" => why);
        }
    }

    pub(super) fn kill(&mut self, id: WorkerId, why: KillReason) {
        if let Some(worker) = self.workers.get_mut(&id) {
            let log =
                self.log.new(o!("slot" => worker.slot.0, "pid" => worker.pid, "generation" => worker.generation.0));
            warn!(log, "killing a worker"; "why" => %why);
            if let Err(why) = worker.kill() {
                warn!(log, "cannot kill a worker"; "why" => why);
            }
        }
    }

    /// Looks at all workers.
    pub(super) fn sample(&self, memory: bool) -> Load {
        sampler::look(&self.workers, &self.board, self.estate.listeners(), memory)
    }

    /// Tells when a client waits.
    pub(super) fn await_client(&mut self) {
        match Doorbell::hang(self.estate.listeners(), self.events.clone()) {
            Ok(doorbell) => self.doorbell = Some(doorbell),
            Err(error) => {
                // For want of descriptors or watches: a worker that waits for clients itself is the way out.
                warn!(self.log, "cannot wait for clients, starting a worker"; "why" => %error);
                self.tell(Event::ClientWaits);
            }
        }
    }

    pub(super) fn close_listeners(&mut self) {
        self.doorbell = None;
        self.estate.close_listeners();
    }

    pub(super) fn hand_over(&mut self) {
        self.doorbell = None;
        self.estate.hand_over();
    }

    pub(super) fn start_upgrade(&mut self) {
        self.estate.start_new_master(&self.program);
    }

    /// What an event means to the supervisor.
    pub(super) fn take_in(&mut self, event: Event) -> Vec<supervisor::Event> {
        match event {
            Event::Signal(signal) => signals::meaning(signal).map(supervisor::Event::Signal).into_iter().collect(),
            Event::QueuesSeen(Waiting { queued, half_open }) => {
                vec![supervisor::Event::QueuesSeen { queued, half_open }]
            }
            Event::Preloaded { template, outcome } => self.preloaded(template, outcome).into_iter().collect(),
            Event::TemplateEnded { template, end } => self.template_ended(template, end).into_iter().collect(),
            Event::WorkerBorn { id, pid } => self.worker_born(id, pid).into_iter().collect(),
            Event::WorkerSaid { id, message } => self.said(id, &message).into_iter().collect(),
            Event::ClientWaits => {
                self.doorbell = None;
                vec![supervisor::Event::ClientWaits]
            }
            Event::WorkerHungUp { id } => vec![supervisor::Event::WorkerHungUp { id }],
            Event::WorkerEnded { id, end } => self.worker_ended(id, end),
            Event::NewMaster { pid, what } => self.estate.hear(pid, what).into_iter().collect(),
            Event::NoNewMaster { why } => vec![supervisor::Event::UpgradeFailed { words: why }],
            Event::HandedOver(how) => {
                self.estate.take_over(how);
                Vec::new()
            }
        }
    }

    fn preloaded(&self, template: TemplateId, outcome: Result<(), String>) -> Option<supervisor::Event> {
        // What comes of a template that was closed since is of no interest.
        if !self.is_current(template) {
            return None;
        }
        let generation = template.generation;
        Some(match outcome {
            Ok(()) => supervisor::Event::TemplateReady { generation },
            Err(words) => supervisor::Event::TemplateFailed { generation, words },
        })
    }

    fn is_current(&self, template: TemplateId) -> bool {
        self.templates.get(&template.generation).is_some_and(|(id, _)| *id == template)
    }

    fn template_ended(&mut self, template: TemplateId, end: Result<Exit, proc::Error>) -> Option<supervisor::Event> {
        self.closing.retain(|(id, _)| *id != template);
        if !self.is_current(template) {
            return None;
        }
        let generation = template.generation;
        self.templates.remove(&generation);
        let words = end.map_or_else(|error| words_of(&error), |exit| format!("the template has ended: {exit}"));
        Some(supervisor::Event::TemplateDied { generation, words })
    }

    fn worker_born(&mut self, id: WorkerId, pid: i32) -> Option<supervisor::Event> {
        let worker = self.workers.get_mut(&id)?;
        if let Err(why) = worker.born(id, pid, &self.events) {
            // Its end is on the way: with its socket it loses what keeps it waiting.
            warn!(self.log, "cannot talk to a worker"; "worker" => id.0, "pid" => pid, "why" => why);
        }
        Some(supervisor::Event::WorkerForked { id, pid })
    }

    fn worker_ended(&mut self, id: WorkerId, end: Result<Exit, StartFailure>) -> Vec<supervisor::Event> {
        let mut told = Vec::new();
        // Its own words come before its end.
        let last_messages = self.workers.get(&id).map(Worker::last_messages).unwrap_or_default();
        told.extend(last_messages.iter().filter_map(|message| self.said(id, message)));
        self.queues.leaves(id, Monotonic::now());
        let mut served = false;
        if let Some(worker) = self.workers.remove(&id) {
            served = worker.ready;
            if let Some(last) = self.board.read(worker.record).filter(|last| last.id == id) {
                self.tell_of_last_request(&last, &end);
                told.extend((last.requests > 0).then_some(supervisor::Event::WorkerServed { id }));
            }
            self.free_records.push(worker.record);
        }
        match end {
            Ok(exit) => {
                let words = exit.failure.as_ref().map(words_of_failure);
                if let (false, Some(words), Some(Failure::Returned { .. })) = (served, &words, &exit.failure) {
                    let cause = StartFailure::Refused { words: words.clone() };
                    told.push(supervisor::Event::WorkerFailed { id, cause });
                }
                told.push(supervisor::Event::WorkerExited { id, exit: as_told(&exit), words });
            }
            Err(cause) => told.push(supervisor::Event::WorkerFailed { id, cause }),
        }
        told
    }

    fn said(&mut self, id: WorkerId, message: &FromWorker) -> Option<supervisor::Event> {
        let worker = self.workers.get_mut(&id)?;
        match message {
            FromWorker::Ready => {
                worker.ready = true;
                if let Some(queue) = worker.queue {
                    self.queues.ready(id, queue);
                }
                Some(supervisor::Event::WorkerReady { id })
            }
            FromWorker::CanStandIn => {
                self.queues.can_help(id);
                None
            }
            FromWorker::CannotStandIn => {
                self.queues.cannot_help(id, Monotonic::now());
                None
            }
            FromWorker::Full => {
                self.send_others_to_look(id);
                None
            }
            FromWorker::Leaving => {
                self.queues.leaves(id, Monotonic::now());
                None
            }
            FromWorker::TimedOut(request) => {
                let record = self.board.read(worker.record).filter(|record| record.id == id)?;
                self.slow.interrupted(&record, request);
                None
            }
        }
    }

    /// When to call [`look_at_requests`](Self::look_at_requests) again.
    pub(super) fn next_look(&self) -> Monotonic {
        self.slow.next()
    }

    /// Looks at what the workers have in hand, and tells of those whose alarm did not end them.
    pub(super) fn look_at_requests(&mut self) -> Vec<supervisor::Event> {
        let in_hand = self.workers.values().filter_map(|worker| {
            let request = self.board.request_in_hand(worker.record)?;
            Some((worker.pid?, request))
        });
        let stuck = self.slow.look(in_hand.filter(|(_, request)| self.workers.contains_key(&request.id)));
        stuck.into_iter().map(|id| supervisor::Event::WorkerStuck { id }).collect()
    }

    /// When to call [`look_after_queues`](Self::look_after_queues) again at the latest, beside after every event.
    pub(super) fn next_stand_in(&self) -> Option<Monotonic> {
        self.queues.next_due()
    }

    /// Sees to it that the queues of slots without a ready worker are served.
    pub(super) fn look_after_queues(&mut self) {
        let now = Monotonic::now();
        while let Some(order) = self.queues.poll(now) {
            let (worker, slot) = match order {
                Order::StandIn { worker, slot } | Order::StandDown { worker, slot } => (worker, slot),
            };
            if let Err(why) = self.send_order(order) {
                info!(self.log, "a worker cannot stand in"; "worker" => worker.0, "for_slot" => slot.0, "why" => why);
                self.queues.cannot_help(worker, now);
            }
        }
    }

    /// Lets some other workers look at the queue for which this one, woken for it, has no room. They run the same loop, so
    /// they are of the same generation; and not so many at a time that a full server would spend its time on it.
    fn send_others_to_look(&mut self, full: WorkerId) {
        let now = Monotonic::now();
        let Some(generation) = self.workers.get(&full).map(|worker| worker.generation) else {
            return;
        };
        if self.looked.is_some_and(|(_, at)| now.since(at) < LOOK_EVERY) {
            return;
        }
        let last = self.looked.map_or(full, |(last, _)| last);
        let after = self.workers.range((Bound::Excluded(last), Bound::Unbounded));
        let others = after.chain(self.workers.range(..=last)).filter(|(id, _)| **id != full);
        let others = others.filter(|(_, worker)| worker.ready && worker.generation == generation);
        let mut last = last;
        for (&id, worker) in others.take(LOOKERS) {
            // One that does not listen is busy enough.
            worker.order(&ToWorker::Look, &[]);
            last = id;
        }
        self.looked = Some((last, now));
    }

    fn send_order(&self, order: Order) -> Result<(), String> {
        let (worker, message, fds) = match order {
            Order::StandIn { worker, slot } => {
                let listeners: Vec<_> = slots::of_slot(self.estate.listeners(), slot).collect();
                let fds: io::Result<Vec<OwnedFd>> = listeners.iter().copied().map(clone_fd).collect();
                let addresses = listeners.iter().map(|listener| listener.address().to_string()).collect();
                (worker, ToWorker::StandIn { slot, addresses }, fds.map_err(|error| error.to_string())?)
            }
            Order::StandDown { worker, slot } => (worker, ToWorker::StandDown { slot }, Vec::new()),
        };
        let sent = self.workers.get(&worker).is_some_and(|worker| worker.order(&message, &fds));
        if sent { Ok(()) } else { Err("it does not listen".to_owned()) }
    }

    /// What the dead worker was at, if it died in the middle of a request.
    fn tell_of_last_request(&mut self, last: &Snapshot, end: &Result<Exit, StartFailure>) {
        let by_alarm = matches!(end, Ok(exit) if matches!(exit.how, How::Signal { signal: libc::SIGALRM, .. }));
        let relative = match self.templates.get(&last.generation) {
            Some((_, Some(template))) => template.pid().ok(),
            _ => None,
        };
        self.slow.ended(last, by_alarm, relative);
    }

    fn tell(&self, event: Event) {
        // The receiver is the master that owns us.
        let _ = self.events.send(event);
    }
}

fn listened(listener: &Listener) -> Listened {
    Listened { address: listener.address().to_string(), own: listener.slot().is_some() }
}

fn clone_fd(listener: &Listener) -> io::Result<OwnedFd> {
    listener.as_fd().try_clone_to_owned()
}

fn as_told(exit: &Exit) -> supervisor::Exit {
    match exit.how {
        How::Code(0) => supervisor::Exit::Clean,
        How::Code(code) => supervisor::Exit::Code(code),
        How::Signal { signal, .. } => supervisor::Exit::Signal(signal),
        How::Unobserved => supervisor::Exit::Unknown,
    }
}

/// Whether the process is gone, which its end tells better.
fn is_gone(error: &proc::Error) -> bool {
    matches!(error, proc::Error::Gone { .. })
}

/// Why no process came to be: for want of something that every fork needs, or because of the template.
fn why_no_process(error: &proc::Error) -> StartFailure {
    use nix::libc::{EAGAIN, EMFILE, ENFILE, ENOBUFS, ENOMEM};
    let errno = match error {
        proc::Error::DescriptorsExhausted { .. } | proc::Error::Inside(Failure::DescriptorsLost) => Some(EMFILE),
        proc::Error::Inside(Failure::ForkRefused { errno }) => Some(*errno),
        proc::Error::System { source, .. } => source.raw_os_error(),
        _ => None,
    };
    let words = format!("cannot fork a worker: {}", words_of(error));
    match errno {
        Some(EAGAIN | EMFILE | ENFILE | ENOBUFS | ENOMEM) => StartFailure::Resource { words },
        _ => StartFailure::NoProcess { words },
    }
}

/// An error's own words; those of a service without the name of the entry point around them.
fn words_of(error: &proc::Error) -> String {
    match error {
        proc::Error::Inside(failure) => words_of_failure(failure),
        error => proc::words_of(error),
    }
}

fn words_of_failure(failure: &Failure) -> String {
    match failure {
        Failure::Returned { words, .. } => words.clone(),
        Failure::Panicked { words, .. } => format!("panicked: {words}"),
        failure => failure.to_string(),
    }
}
