//! The two ends of an upgrade: the next master as this one knows it, and the master before this one.
//!
//! The old master fills a conversation with all there is to inherit, and only then starts the new one with it; so
//! nobody waits for anybody. The new one says that it serves; the old one hands over, by a word or by its death;
//! the new one takes over, and closes the conversation.

use std::env;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crossbeam_channel::Sender;
use nix::sys::epoll::EpollFlags;

use super::event::{Event, HandOver, NewMasterEvent};
use crate::proc::hub::{Hub, Source, Token, Watch, forget};
use crate::proc::{Channel, Exit, Received};
use crate::server::inheritance::{FromNext, ToNext, WithNext, WithOld, pass_on};
use crate::server::listener::Listener;
use crate::sys::{fork, pidfd, spawn, stream, wait};

/// The master that is to replace this one.
#[derive(Debug)]
pub(super) struct NewMaster {
    pub(super) pid: i32,
    /// It has closed the conversation: it has taken over, or is gone.
    pub(super) has_hung_up: bool,
    /// Why it will not serve, as it says.
    pub(super) words: Option<String>,
    shared: Arc<Shared>,
    _watches: (Watch<Conversation>, Watch<End>),
}

/// What is under watch of the new master.
#[derive(Debug)]
struct Shared {
    pid: i32,
    pidfd: OwnedFd,
    channel: WithNext,
    events: Sender<Event>,
}

impl NewMaster {
    pub(super) fn start(
        program: &Path,
        listeners: &[Listener],
        pid_file: Option<(&Path, OwnedFd)>,
        control: Option<&Listener>,
        events: &Sender<Event>,
    ) -> io::Result<NewMaster> {
        let (channel, theirs) = Channel::pair()?;
        pass_on(&channel, listeners, pid_file, control)?;
        let arguments: Vec<_> = env::args_os().collect();
        let pid = spawn::next_master(program, &arguments, theirs.into_fd())?;
        let pidfd = fork::supervise(pid)?;
        // Nobody would hear of its end.
        NewMaster::watch(pid.as_raw(), pidfd, channel, events).inspect_err(|_| fork::undo(pid))
    }

    /// From now on what it says and its end come as [`Event::NewMaster`].
    pub(super) fn watch(pid: i32, pidfd: OwnedFd, channel: WithNext, events: &Sender<Event>) -> io::Result<NewMaster> {
        let shared = Arc::new(Shared { pid, pidfd, channel, events: events.clone() });
        let conversation = Watch::new(Conversation(Arc::clone(&shared)), EpollFlags::EPOLLIN)?;
        let end = Watch::new(End(Arc::clone(&shared)), EpollFlags::EPOLLIN)?;
        Ok(NewMaster { pid, has_hung_up: false, words: None, shared, _watches: (conversation, end) })
    }

    /// Whether it is dead already: a pidfd is readable from then on (pidfd_open(2)).
    pub(super) fn has_ended(&self) -> bool {
        stream::is_readable(self.shared.pidfd.as_fd())
    }

    pub(super) fn kill(&self) -> io::Result<()> {
        pidfd::send_signal(self.shared.pidfd.as_fd(), nix::libc::SIGKILL)
    }

    pub(super) fn hand_over(&self) -> io::Result<()> {
        self.shared.channel.try_send(&ToNext::HandOver, &[]).map(drop)
    }
}

impl Shared {
    fn tell(&self, what: NewMasterEvent) {
        // Nobody listens any more: the server has ended.
        let _ = self.events.send(Event::NewMaster { pid: self.pid, what });
    }

    /// Passes on what the new master has said, and gives whether that was its last.
    fn pass_on(&self) -> bool {
        loop {
            match self.channel.try_recv() {
                Ok(Received::Message { message, .. }) => self.tell(NewMasterEvent::Said(message)),
                Ok(Received::Empty) => return false,
                // Nonsense: there is nothing more to hear.
                Ok(Received::Eof) | Err(_) => return true,
            }
        }
    }
}

/// The conversation with the new master.
#[derive(Debug)]
struct Conversation(Arc<Shared>);

/// The process of the new master.
#[derive(Debug)]
struct End(Arc<Shared>);

impl AsFd for Conversation {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.0.channel.as_fd()
    }
}

impl AsFd for End {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.0.pidfd.as_fd()
    }
}

impl Source for Conversation {
    fn ready(self: Arc<Self>, token: Token, _: EpollFlags) {
        if self.0.pass_on() {
            forget(token, &*self);
            self.0.tell(NewMasterEvent::HungUp);
        }
    }
}

impl Source for End {
    fn ready(self: Arc<Self>, token: Token, _: EpollFlags) {
        let exit = match wait::reap_by_pidfd(self.as_fd()) {
            Ok(None) => return,
            Ok(Some(reaped)) => Exit::from_reaped(&reaped, None),
            // Somebody else in this program has reaped it.
            Err(_) => Exit::seen_from_afar(None),
        };
        forget(token, &*self);
        // Its own words come before its end.
        self.0.pass_on();
        self.0.tell(NewMasterEvent::Ended(exit));
    }
}

/// The master that this one is to replace, until it hands over.
#[derive(Debug)]
pub(super) struct OldMaster {
    /// None once this master has taken over.
    conversation: Mutex<Option<WithOld>>,
    events: Sender<Event>,
}

impl OldMaster {
    pub(super) fn new(conversation: WithOld, events: Sender<Event>) -> Arc<OldMaster> {
        Arc::new(OldMaster { conversation: Mutex::new(Some(conversation)), events })
    }

    /// From now on its word, or its death, comes as [`Event::HandedOver`].
    pub(super) fn watch(self: &Arc<Self>) -> io::Result<()> {
        let held: Arc<dyn Source> = self.clone();
        if let Some(channel) = &*self.conversation() {
            Hub::get()?.watch(channel, EpollFlags::EPOLLIN, Arc::downgrade(&held))?;
        }
        Ok(())
    }

    /// Says it as long as there is somebody to hear it.
    pub(super) fn say(&self, message: &FromNext) {
        if let Some(channel) = &*self.conversation() {
            // The old master has ended: there is nobody to tell.
            let _ = channel.try_send(message, &[]);
        }
    }

    /// Closes the conversation, by which the old master knows that this one has taken over.
    pub(super) fn dismiss(&self) {
        self.conversation().take();
    }

    fn conversation(&self) -> MutexGuard<'_, Option<WithOld>> {
        self.conversation.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Source for OldMaster {
    fn ready(self: Arc<Self>, token: Token, _: EpollFlags) {
        let conversation = self.conversation();
        let Some(channel) = &*conversation else {
            return;
        };
        let how = match channel.try_recv() {
            Ok(Received::Empty) => return,
            Ok(Received::Message { message: ToNext::HandOver, .. }) => HandOver::Said,
            // Its end, or nonsense, which is as good as an end.
            Ok(Received::Message { .. } | Received::Eof) | Err(_) => HandOver::Gone,
        };
        forget(token, channel);
        let _ = self.events.send(Event::HandedOver(how));
    }
}
