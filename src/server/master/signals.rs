//! The master's signals become events.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, PoisonError};

use crossbeam_channel::Sender;
use nix::sys::epoll::EpollFlags;
use nix::sys::signal::{self, SigSet};
use nix::unistd::{getpgrp, tcgetpgrp};
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGTTIN, SIGTTOU, SIGUSR1, SIGUSR2, SIGWINCH};
use signal_hook::iterator::backend::SignalDelivery;
use signal_hook::iterator::exfiltrator::SignalOnly;

use super::event::Event;
use crate::proc::hub::{Source, Token, Watch};
use crate::server::supervisor::Signal;

/// What each signal asks for.
const MEANING: [(i32, Signal); 9] = [
    (SIGTERM, Signal::Stop),
    (SIGINT, Signal::Quit),
    (SIGQUIT, Signal::Quit),
    (SIGHUP, Signal::Reload),
    (SIGTTIN, Signal::More),
    (SIGTTOU, Signal::Fewer),
    (SIGWINCH, Signal::DrainWorkers),
    (SIGUSR2, Signal::Upgrade),
    (SIGUSR1, Signal::ReopenLogs),
];

/// What a signal asks for, if it is one of those that the master takes.
pub(super) fn meaning(signal: i32) -> Option<Signal> {
    if signal == SIGWINCH && is_in_the_foreground() {
        return None;
    }
    MEANING.iter().find(|(number, _)| *number == signal).map(|(_, meaning)| *meaning)
}

/// Whether a terminal has this process in its foreground. It signals every change of its window's size there (tty_ioctl(4)),
/// so that SIGWINCH is not an operator's wish.
fn is_in_the_foreground() -> bool {
    let terminal = File::open("/dev/tty").and_then(|terminal| Ok(tcgetpgrp(terminal)?));
    terminal.is_ok_and(|group| group == getpgrp())
}

/// The signals under watch; dropped, they are no longer events.
pub(super) struct Signals(Watch<SignalSource>);

struct SignalSource {
    /// The pipe from which the delivery reads.
    pipe: UnixStream,
    delivery: Mutex<SignalDelivery<UnixStream, SignalOnly>>,
    events: Sender<Event>,
}

impl Signals {
    /// From now on the signals come as events. Whoever started this program may have had them blocked (a mask
    /// outlives exec), so the calling thread takes them from here on.
    pub(super) fn watch(events: Sender<Event>) -> io::Result<Signals> {
        let (read, write) = UnixStream::pair()?;
        let numbers = MEANING.map(|(number, _)| number);
        let pipe = read.try_clone()?;
        let delivery = SignalDelivery::with_pipe(read, write, SignalOnly, numbers)?;
        let blocked = numbers.into_iter().map(signal::Signal::try_from);
        blocked.collect::<Result<SigSet, _>>()?.thread_unblock()?;
        let source = SignalSource { pipe, delivery: Mutex::new(delivery), events };
        Ok(Signals(Watch::new(source, EpollFlags::EPOLLIN)?))
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        self.0.source().delivery.lock().unwrap_or_else(PoisonError::into_inner).handle().close();
    }
}

impl AsFd for SignalSource {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pipe.as_fd()
    }
}

impl Source for SignalSource {
    fn ready(self: Arc<Self>, _: Token, _: EpollFlags) {
        let mut delivery = self.delivery.lock().unwrap_or_else(PoisonError::into_inner);
        for signal in delivery.pending() {
            // Nobody listens any more: the server has ended.
            let _ = self.events.send(Event::Signal(signal));
        }
    }
}
