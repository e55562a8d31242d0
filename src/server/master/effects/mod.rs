//! What the supervisor decides, done; what comes of it, told in the supervisor's words.

mod program;
mod queues;
mod templates;
mod words;
mod workers;

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use crossbeam_channel::Sender;
use slog::{Logger, info, warn};

pub(super) use self::program::Program;
use super::desk::{Question, Waiting as WaitingForReload};
use super::doorbell::Doorbell;
use super::estate::Estate;
use super::event::{Event, TemplateId};
use super::offers;
use super::queues::Queues;
use super::slow::SlowLog;
use super::worker::Worker;
use super::{sampler, signals};
use crate::proc::Template;
use crate::server::config::Config;
use crate::server::listener::Listener;
use crate::server::listener::gate::Waiting;
use crate::server::scoreboard::{Board, Snapshot};
use crate::server::supervisor::{self, Load};
use crate::server::{Generation, WorkerId};
use crate::sys::clock::Monotonic;
use crate::sys::spawn::Image;

/// The templates, the workers and the estate of a master.
pub(super) struct Effects {
    config: Config,
    pub(super) estate: Estate,
    pub(super) waiting: WaitingForReload,
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
    /// Where offers go, if the program wants any.
    offers: Option<offers::Queue>,
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
        offers: Option<offers::Queue>,
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
            offers,
            looked: None,
            estate,
            waiting: WaitingForReload::default(),
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
            Event::Asked(Question::Reload { asker, reply }) => {
                info!(self.log, "reload asked for"; "by_pid" => asker.pid, "uid" => asker.uid);
                vec![supervisor::Event::ReloadAsked { ticket: self.waiting.enter(reply) }]
            }
            // Answered by who knows more than this.
            Event::Asked(Question::Status(_)) => Vec::new(),
            Event::QueuesSeen(Waiting { queued, half_open }) => {
                vec![supervisor::Event::QueuesSeen { queued, half_open }]
            }
            Event::Preloaded { template, outcome } => self.preloaded(template, outcome).into_iter().collect(),
            Event::TemplateEnded { template, end } => self.template_ended(template, end).into_iter().collect(),
            Event::WorkerBorn { id, pid } => self.worker_born(id, pid).into_iter().collect(),
            Event::WorkerSaid { id, message, unheard } => {
                let events = self.said(id, &message).into_iter().collect();
                drop(unheard);
                events
            }
            Event::WorkerOffers { id, name, socket } => {
                self.pass_on(id, name, socket);
                Vec::new()
            }
            Event::OfferRefused { id, why } => {
                self.refuse_offer(id, why);
                Vec::new()
            }
            Event::ClientWaits => {
                self.doorbell = None;
                vec![supervisor::Event::ClientWaits]
            }
            Event::WorkerHungUp { id } => vec![supervisor::Event::WorkerHungUp { id }],
            Event::WorkerGone { id } => self.worker_gone(id),
            Event::WorkerEnded { id, end } => self.worker_ended(id, end),
            Event::NewMaster { pid, what } => self.estate.hear(pid, what).into_iter().collect(),
            Event::NoNewMaster { why } => vec![supervisor::Event::UpgradeFailed { words: why }],
            Event::HandedOver(how) => {
                self.estate.take_over(how);
                Vec::new()
            }
        }
    }

    /// What the worker has written about itself.
    pub(super) fn record_of(&self, id: WorkerId) -> Option<Snapshot> {
        let worker = self.workers.get(&id)?;
        self.board.read(worker.record).filter(|record| record.id == id)
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

    fn tell(&self, event: Event) {
        // The receiver is the master that owns us.
        let _ = self.events.send(event);
    }
}

fn clone_fd(listener: &Listener) -> io::Result<OwnedFd> {
    listener.as_fd().try_clone_to_owned()
}
