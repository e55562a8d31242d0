//! What a master has that may outlive it: its listeners and the pid file, inherited from the master before it or made by
//! itself, and left to the next one or ended with the server.

use std::io;
use std::path::Path;
use std::sync::Arc;

use crossbeam_channel::Sender;
use slog::{Logger, info, warn};

use super::RunError;
use super::control::Control;
use super::desk::Desk;
use super::event::{Event, HandOver, NewMasterEvent};
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
    /// Inherited, and not configured any more, or out of their clients' reach. They go when the old master hands over, which
    /// serves on them until then.
    unwanted: Vec<Listener>,
    pid_file: Option<PidFile>,
    control: Option<Control>,
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
        let Inheritance { listeners: mut unwanted, pid_file, control: lent_control } = inheritance;
        let pid_file = match (&config.pid_file, pid_file) {
            (Some(path), Some((at, lock))) if *path == at => Some(PidFile::inherit(path, lock)?),
            (Some(path), _) => Some(PidFile::claim(path)?),
            (None, _) => None,
        };
        let mut estate = Estate {
            listeners: Vec::new(),
            unwanted: Vec::new(),
            pid_file,
            control: None,
            gate_is_shut: false,
            old_master,
            new_master: None,
            events,
            log,
        };
        match estate.bind(config, &mut unwanted, lent_control) {
            Ok(()) => {
                estate.unwanted = unwanted;
                estate.tell_what_was_bound_anew();
                Ok(estate)
            }
            Err(error) => {
                estate.leave();
                Err(error)
            }
        }
    }

    fn bind(
        &mut self,
        config: &Config,
        inherited: &mut Vec<Listener>,
        lent_control: Option<Listener>,
    ) -> Result<(), RunError> {
        self.listeners = Listener::bind_all_but(&config.listen, inherited)?;
        if config.accept == AcceptMode::Reuseport {
            self.listeners.iter_mut().try_for_each(Listener::begin_group)?;
        }
        let mut lent: Vec<Listener> = lent_control.into_iter().collect();
        if let Some(point) = &config.control {
            let listener = Listener::bind_private(point.address().as_address(), &mut lent, &self.listeners)?;
            self.control = Some(Control::new(point.clone(), listener));
        }
        inherited.append(&mut lent);
        // Until the master before this one hands over, it answers itself.
        if self.old_master.is_none() {
            self.attend().map_err(RunError::master("answer at the control socket"))?;
        }
        Ok(())
    }

    fn attend(&mut self) -> io::Result<()> {
        let desk = Desk::new(self.events.clone());
        self.control.as_mut().map_or(Ok(()), |control| control.attend(desk, self.log.clone()))
    }

    /// What is inherited for an address at which there is a listener of our own: it was of no use any more.
    fn tell_what_was_bound_anew(&self) {
        let control = self.control.as_ref().map(Control::address);
        let is_ours =
            |address| self.listeners.iter().any(|listener| listener.address() == address) || control == Some(address);
        for address in self.unwanted.iter().map(Listener::address).filter(|address| is_ours(*address)) {
            warn!(self.log, "the path of a Unix socket had been removed or replaced, it is bound anew";
                "address" => %address);
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
    pub(super) fn take_over(&mut self, how: HandOver) {
        let Some(old) = self.old_master.take() else {
            return;
        };
        for listener in self.listeners.iter_mut().chain(&mut self.unwanted) {
            listener.own();
        }
        if let Some(control) = &mut self.control {
            control.own();
        }
        // The old workers hold it for a moment more, and accept whoever is in its queue: nobody is to come after them.
        shut_gates(&self.unwanted, &self.log);
        turn_away(&self.unwanted, &self.log);
        close(&mut self.unwanted, &self.log);
        if self.gate_is_shut {
            self.shut_gate();
        }
        if let Err(error) = self.attend() {
            warn!(self.log, "cannot answer at the control socket"; "why" => %error);
        }
        if let Some(Err(error)) = self.pid_file.as_mut().map(PidFile::take_over) {
            warn!(self.log, "cannot take the pid file over"; "why" => words_of(&error));
        }
        match how {
            HandOver::Said => info!(self.log, "the old master has handed over"),
            HandOver::Gone => warn!(self.log, "the old master is gone, this one goes on alone"),
        }
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
        if let Some(why) = why_no_successor(std::process::id(), self.old_master.is_some()) {
            return Err(io::Error::other(why));
        }
        let pid_file = self.pid_file.as_ref().map(PidFile::pass).transpose()?;
        let control = self.control.as_ref().and_then(Control::listener);
        NewMaster::start(program, &self.listeners, pid_file, control, &self.events)
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
        if let Some(control) = &mut self.control {
            control.hand_over();
        }
    }

    /// Whether the next master has still to take over what was handed over.
    pub(super) fn is_being_taken_over(&self) -> bool {
        self.new_master.as_ref().is_some_and(|new| !new.has_hung_up)
    }

    /// What an event of the new master means to the supervisor.
    pub(super) fn hear(&mut self, pid: i32, what: NewMasterEvent) -> Option<supervisor::Event> {
        let new = self.new_master.as_mut().filter(|new| new.pid == pid)?;
        match what {
            // It has died since: nobody would serve. Its end, which is on the way, fails the upgrade.
            NewMasterEvent::Said(FromNext::Serving) if new.has_ended() => None,
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
        shut_gates(&self.listeners, &self.log);
    }

    pub(super) fn look_at_queues(&self) {
        // The receiver is the master that owns us.
        let _ = self.events.send(Event::QueuesSeen(Waiting::at(&self.listeners)));
    }

    /// Closes this process's own listeners; what stands in the file system for one of them goes first.
    pub(super) fn close_listeners(&mut self) {
        if self.gate_is_shut {
            // The workers hold it for a moment more, and accept whoever is in its queue.
            turn_away(&self.listeners, &self.log);
        }
        close(&mut self.listeners, &self.log);
    }

    /// Ends what ends with the server, or was made for one that did not boot.
    pub(super) fn leave(mut self) {
        self.close_listeners();
        if let Some(Err(error)) = self.control.take().map(Control::close) {
            warn!(self.log, "cannot remove the control socket"; "why" => %error);
        }
        if let Some(Err(error)) = self.pid_file.take().map(PidFile::remove) {
            warn!(self.log, "cannot remove the pid file"; "why" => %error);
        }
    }
}

/// Why no master can be started that is to outlive this one.
fn why_no_successor(own_pid: u32, has_old_master: bool) -> Option<&'static str> {
    if own_pid == 1 {
        // pid_namespaces(7)
        return Some("this master is process 1 of a container: with its end the kernel kills all others there");
    }
    has_old_master.then_some("the master before this one has not handed over yet")
}

fn shut_gates(listeners: &[Listener], log: &Logger) {
    for listener in listeners {
        if let Err(error) = listener.shut_gate() {
            warn!(log, "cannot shut the gate, clients who come now may be lost";
                "address" => %listener.address(), "why" => %error);
        }
    }
}

fn turn_away(listeners: &[Listener], log: &Logger) {
    for listener in listeners {
        if let Err(error) = listener.turn_away() {
            warn!(log, "cannot turn new clients away"; "address" => %listener.address(), "why" => %error);
        }
    }
}

fn close(listeners: &mut Vec<Listener>, log: &Logger) {
    for listener in listeners.drain(..) {
        if let Err(error) = listener.remove_path() {
            warn!(log, "cannot remove a listener's path"; "address" => %listener.address(), "why" => %error);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::{AsFd, OwnedFd};
    use std::os::unix::net::UnixStream;
    use std::process::{Command, Stdio};
    use std::time::Duration;

    use crossbeam_channel::{Receiver, unbounded};
    use nix::unistd::Pid;
    use slog::{Discard, o};

    use super::*;
    use crate::proc::Channel;
    use crate::server::inheritance::{ToNext, WithNext};
    use crate::sys::pidfd;

    /// An estate without anything.
    fn nothing() -> (Estate, Receiver<Event>) {
        let (events, inbox) = unbounded();
        let estate = Estate {
            listeners: Vec::new(),
            unwanted: Vec::new(),
            pid_file: None,
            control: None,
            gate_is_shut: false,
            old_master: None,
            new_master: None,
            events,
            log: Logger::root(Discard, o!()),
        };
        (estate, inbox)
    }

    #[test]
    fn a_new_master_that_says_it_serves_and_is_dead_by_then_fails_the_upgrade() {
        let (mut estate, inbox) = nothing();
        let mut child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        let pid = child.id() as i32;
        let pidfd = pidfd::open(Pid::from_raw(pid)).unwrap();
        let (channel, _theirs) = Channel::pair().unwrap();
        estate.new_master = Some(NewMaster::watch(pid, pidfd, channel, &estate.events).unwrap());
        let serving = || NewMasterEvent::Said(FromNext::Serving);
        assert_eq!(estate.hear(pid, serving()), Some(supervisor::Event::UpgradeReady { pid }));
        drop(child.stdin.take());
        let Ok(Event::NewMaster { what: end @ NewMasterEvent::Ended(_), .. }) =
            inbox.recv_timeout(Duration::from_secs(60))
        else {
            panic!("its end is to be told");
        };
        assert_eq!(estate.hear(pid, serving()), None);
        assert!(matches!(estate.hear(pid, end), Some(supervisor::Event::UpgradeFailed { .. })));
        // It is reaped already.
        let _ = child.wait();
    }

    #[test]
    fn process_1_is_never_upgraded() {
        assert!(why_no_successor(1, false).is_some_and(|why| why.contains("process 1")));
        assert_eq!(why_no_successor(2, false), None);
        assert!(why_no_successor(2, true).is_some());
    }

    #[test]
    fn an_address_that_is_given_up_refuses_new_clients_while_old_workers_serve_its_queue() {
        let (mut estate, inbox) = nothing();
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let addresses = ["127.0.0.1:0".to_owned(), format!("unix:{}", path.display())];
        let addresses = addresses.map(|address| address.parse().unwrap());
        let before = Listener::bind_all(&addresses).unwrap();
        let tcp = TcpListener::from(before[0].as_fd().try_clone_to_owned().unwrap());
        let at = tcp.local_addr().unwrap();
        let inherit = |listener: &Listener| {
            let (passed, fd) = listener.pass().unwrap();
            Listener::inherit(&passed, fd).unwrap()
        };
        estate.unwanted = before.iter().map(inherit).collect();
        let (theirs, ours): (WithNext, _) = Channel::pair().unwrap();
        let old = OldMaster::new(ours, estate.events.clone());
        old.watch().unwrap();
        estate.old_master = Some(old);
        let queued = TcpStream::connect(at).unwrap();

        theirs.try_send(&ToNext::HandOver, &[]).unwrap();
        let Ok(Event::HandedOver(how @ HandOver::Said)) = inbox.recv_timeout(Duration::from_secs(60)) else {
            panic!("it was said");
        };
        estate.take_over(how);
        assert_eq!(TcpStream::connect(at).expect_err("given up").kind(), ErrorKind::ConnectionRefused);
        assert_eq!(UnixStream::connect(&path).expect_err("given up").kind(), ErrorKind::NotFound);
        let (_, peer) = tcp.accept().unwrap();
        assert_eq!(peer, queued.local_addr().unwrap());
        drop(OwnedFd::from(tcp));
    }

    #[test]
    fn the_death_of_the_old_master_is_told_from_its_word() {
        let (estate, inbox) = nothing();
        let (theirs, ours): (WithNext, _) = Channel::pair().unwrap();
        let old = OldMaster::new(ours, estate.events.clone());
        old.watch().unwrap();
        drop(theirs);
        let heard = inbox.recv_timeout(Duration::from_secs(60));
        assert!(matches!(heard, Ok(Event::HandedOver(HandOver::Gone))), "{heard:?}");
    }
}
