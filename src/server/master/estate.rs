//! What a master has that may outlive it: its listeners and the pid file, inherited from the master before it or made by
//! itself, and left to the next one or ended with the server.

use std::io;
use std::path::Path;
use std::sync::Arc;

use crossbeam_channel::Sender;
use slog::{Logger, info, warn};

use super::RunError;
use super::event::{Event, NewMasterEvent};
use super::upgrade::{NewMaster, OldMaster};
use crate::proc::words_of;
use crate::server::config::{AcceptMode, Config};
use crate::server::inheritance::{FromNext, Inheritance};
use crate::server::listener::gate::Waiting;
use crate::server::listener::{Listener, slots};
use crate::server::pid_file::PidFile;
use crate::server::{BindError, Slot, supervisor};

/// The listeners, the pid file, and the masters before and after this one.
#[derive(Debug)]
pub(super) struct Estate {
    listeners: Vec<Listener>,
    /// Inherited, and not configured any more. They go when the old master hands over, which serves on them until then.
    unwanted: Vec<Listener>,
    pid_file: Option<PidFile>,
    /// Nobody takes the listeners over.
    gate_is_shut: bool,
    old_master: Option<Arc<OldMaster>>,
    new_master: Option<NewMaster>,
    events: Sender<Event>,
    log: Logger,
}

impl Estate {
    /// Takes what is inherited, and makes what is missing.
    pub(super) fn gather(
        config: &Config,
        inheritance: Inheritance,
        old_master: Option<Arc<OldMaster>>,
        events: Sender<Event>,
        log: Logger,
    ) -> Result<Estate, RunError> {
        let Inheritance { listeners: mut unwanted, pid_file } = inheritance;
        let pid_file = match (&config.pid_file, pid_file) {
            (Some(path), Some((at, lock))) if *path == at => Some(PidFile::inherit(path, lock)?),
            (Some(path), _) => Some(PidFile::claim(path)?),
            (None, _) => None,
        };
        let estate = |listeners, unwanted| Estate {
            listeners,
            unwanted,
            pid_file,
            gate_is_shut: false,
            old_master,
            new_master: None,
            events,
            log,
        };
        match bind(config, &mut unwanted) {
            Ok(listeners) => Ok(estate(listeners, unwanted)),
            Err(error) => {
                estate(Vec::new(), Vec::new()).leave();
                Err(error.into())
            }
        }
    }

    /// All of them: for each address the first, in the order in which they were configured, then those of further slots.
    pub(super) fn listeners(&self) -> &[Listener] {
        &self.listeners
    }

    /// The slot whose own queues a worker of `slot` is to serve, which are made if there are none yet; none if all queues
    /// are shared.
    ///
    /// During an upgrade or a stop none is made, since clients would wait in it for a master that may never serve, or is
    /// about to leave: the worker then shares the first slot's.
    pub(super) fn queue_for(&mut self, slot: Slot) -> Result<Option<Slot>, BindError> {
        if self.listeners.iter().all(|listener| listener.slot().is_none()) {
            return Ok(None);
        }
        if !slots::has_slot(&self.listeners, slot) {
            if self.old_master.is_some() || self.new_master.is_some() || self.gate_is_shut {
                return Ok(Some(Slot(0)));
            }
            slots::open_slot(&mut self.listeners, slot)?;
        }
        Ok(Some(slot))
    }

    /// Every slot has its ready worker for the first time.
    pub(super) fn say_serving(&self) {
        if let Some(old) = &self.old_master {
            old.say(&FromNext::Serving);
        }
    }

    /// The master before this one has handed over, or is gone: all that is lent is this one's own.
    pub(super) fn take_over(&mut self) {
        let Some(old) = self.old_master.take() else {
            return;
        };
        for listener in self.listeners.iter_mut().chain(&mut self.unwanted) {
            listener.own();
        }
        close(&mut self.unwanted, &self.log);
        if self.gate_is_shut {
            self.shut_gate();
        }
        if let Some(Err(error)) = self.pid_file.as_mut().map(PidFile::take_over) {
            warn!(self.log, "cannot take the pid file over"; "why" => words_of(&error));
        }
        info!(self.log, "the old master has handed over");
        old.dismiss();
    }

    pub(super) fn start_new_master(&mut self, program: &Path) {
        match self.try_start_new_master(program) {
            Ok(new) => {
                info!(self.log, "upgrading, a new master starts"; "pid" => new.pid);
                self.new_master = Some(new);
            }
            Err(error) => {
                let why = format!("cannot start {}: {error}", program.display());
                let _ = self.events.send(Event::NoNewMaster { why });
            }
        }
    }

    fn try_start_new_master(&self, program: &Path) -> io::Result<NewMaster> {
        if self.old_master.is_some() {
            return Err(io::Error::other("the master before this one has not handed over yet"));
        }
        let pid_file = self.pid_file.as_ref().map(PidFile::pass).transpose()?;
        NewMaster::start(program, &self.listeners, pid_file, &self.events)
    }

    pub(super) fn kill_new_master(&self) {
        if let Some(Err(error)) = self.new_master.as_ref().map(NewMaster::kill) {
            warn!(self.log, "cannot kill the new master"; "why" => %error);
        }
    }

    /// The next master has the listeners: what stands in the file system for them is from now on its own.
    pub(super) fn hand_over(&mut self) {
        if let Some(Err(error)) = self.new_master.as_ref().map(NewMaster::hand_over) {
            // It is gone already. Its end is the server's, as that of any master.
            warn!(self.log, "cannot hand over to the new master"; "why" => %error);
        }
        self.listeners.clear();
    }

    /// Whether the next master has still to take over what was handed over.
    pub(super) fn is_being_taken_over(&self) -> bool {
        self.new_master.as_ref().is_some_and(|new| !new.has_hung_up)
    }

    /// What an event of the new master means to the supervisor.
    pub(super) fn hear(&mut self, pid: i32, what: NewMasterEvent) -> Option<supervisor::Event> {
        let new = self.new_master.as_mut().filter(|new| new.pid == pid)?;
        match what {
            NewMasterEvent::Said(FromNext::Serving) => Some(supervisor::Event::UpgradeReady { pid }),
            NewMasterEvent::Said(FromNext::Failed { words }) => {
                new.words = Some(words);
                None
            }
            NewMasterEvent::HungUp => {
                new.has_hung_up = true;
                None
            }
            NewMasterEvent::Ended(exit) => {
                let words = match new.words.take() {
                    Some(words) => format!("{exit}: {words}"),
                    None => format!("the new master ended before it served: {exit}"),
                };
                self.new_master = None;
                Some(supervisor::Event::UpgradeFailed { words })
            }
        }
    }

    /// Lets no new client in at the listeners that are this server's own, for good.
    pub(super) fn shut_gate(&mut self) {
        self.gate_is_shut = true;
        for listener in &self.listeners {
            if let Err(error) = listener.shut_gate() {
                warn!(self.log, "cannot shut the gate, clients who come now may be lost";
                    "address" => %listener.address(), "why" => %error);
            }
        }
    }

    pub(super) fn look_at_queues(&self) {
        // The receiver is the master that owns us.
        let _ = self.events.send(Event::QueuesSeen(Waiting::at(&self.listeners)));
    }

    /// Closes this process's own listeners; what stands in the file system for one of them goes first.
    pub(super) fn close_listeners(&mut self) {
        for listener in self.listeners.iter().filter(|_| self.gate_is_shut) {
            // The workers hold it for a moment more, and accept whoever is in its queue.
            if let Err(error) = listener.turn_away() {
                warn!(self.log, "cannot turn new clients away"; "address" => %listener.address(), "why" => %error);
            }
        }
        close(&mut self.listeners, &self.log);
    }

    /// Ends what ends with the server, or was made for one that did not boot.
    pub(super) fn leave(mut self) {
        self.close_listeners();
        if let Some(Err(error)) = self.pid_file.take().map(PidFile::remove) {
            warn!(self.log, "cannot remove the pid file"; "why" => %error);
        }
    }
}

fn bind(config: &Config, inherited: &mut Vec<Listener>) -> Result<Vec<Listener>, BindError> {
    let mut listeners = Listener::bind_all_but(&config.listen, inherited)?;
    if config.accept == AcceptMode::Reuseport {
        listeners.iter_mut().try_for_each(Listener::begin_group)?;
    }
    Ok(listeners)
}

fn close(listeners: &mut Vec<Listener>, log: &Logger) {
    for listener in listeners.drain(..) {
        if let Err(error) = listener.remove_path() {
            warn!(log, "cannot remove a listener's path"; "address" => %listener.address(), "why" => %error);
        }
    }
}
