//! The children of a waiting process: forked, watched, reaped, reported.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::Pid;

use super::exit::Exit;
use super::failure::Failure;
use super::message::Ticket;
use super::obituary::Obituaries;
use crate::sys::{fork, reaper, wait};

/// What a process needs once it has children; nothing before that.
#[derive(Default)]
pub(crate) struct Children {
    watch: Option<Watch>,
    tickets: BTreeMap<Pid, Option<Ticket>>,
    /// Those whose birth was not told yet.
    newborn: Vec<(Pid, Ticket)>,
    words: BTreeMap<i32, Failure>,
}

/// A child that was reaped.
pub(crate) struct Ended {
    pub(crate) pid: Pid,
    pub(crate) ticket: Ticket,
    /// Its birth was not told yet.
    pub(crate) newborn: bool,
    pub(crate) exit: Exit,
}

struct Watch {
    exits: SignalFd,
    obituaries: Obituaries,
}

impl Children {
    /// Gets everything ready for one more child.
    pub(crate) fn prepare(&mut self) -> io::Result<()> {
        if self.watch.is_none() {
            self.watch = Some(Watch::new()?);
        }
        Ok(())
    }

    /// In a new child: closes what is the parent's; the child's end for last words comes back.
    pub(crate) fn leave_to_parent(&mut self) -> Option<OwnedFd> {
        // Freeing the tables would copy the pages in which they lie, for nothing.
        std::mem::forget(std::mem::take(&mut self.tickets));
        std::mem::forget(std::mem::take(&mut self.words));
        std::mem::forget(std::mem::take(&mut self.newborn));
        self.watch.take().map(|watch| watch.obituaries.into_childs_end())
    }

    pub(crate) fn add(&mut self, pid: Pid, ticket: Ticket) {
        self.tickets.insert(pid, Some(ticket));
        self.newborn.push((pid, ticket));
    }

    /// How many were born and not yet told.
    pub(crate) fn newborn(&self) -> usize {
        self.newborn.len()
    }

    /// Those whose birth is to be told now, in their order; they live or were not reaped yet.
    pub(crate) fn take_newborn(&mut self) -> Vec<(Pid, Ticket)> {
        std::mem::take(&mut self.newborn)
    }

    /// Ends a child that nobody could supervise.
    pub(crate) fn undo(&mut self, pid: Pid) {
        self.tickets.remove(&pid);
        fork::undo(pid);
    }

    /// Ends a child. Its pid is still its own: whoever was reaped is not in the table.
    pub(crate) fn kill(&self, ticket: Ticket) {
        if let Some(pid) = self.pid_of(ticket) {
            // It may have ended by itself, which is as good.
            let _ = nix::sys::signal::kill(pid, Signal::SIGKILL);
        }
    }

    /// The child's pid, unless it was reaped.
    pub(crate) fn pid_of(&self, ticket: Ticket) -> Option<Pid> {
        self.tickets.iter().find(|(_, known)| **known == Some(ticket)).map(|(pid, _)| *pid)
    }

    /// Another master takes over, with tickets of its own: the ends of the children so far are no longer told.
    pub(crate) fn forget_tickets(&mut self) {
        self.tickets.values_mut().for_each(|ticket| *ticket = None);
    }

    /// Readable when a child may have ended.
    pub(crate) fn signal_fd(&self) -> Option<BorrowedFd<'_>> {
        self.watch.as_ref().map(|watch| watch.exits.as_fd())
    }

    /// Reaps all that have ended.
    pub(crate) fn reap(&mut self) -> Vec<Ended> {
        let Some(watch) = &self.watch else {
            return Vec::new();
        };
        // Several deaths may be behind one signal, and none is lost: the signal is cleared before the reaping.
        if !matches!(watch.exits.read_signal(), Ok(Some(_))) {
            return Vec::new();
        }
        let mut ended = Vec::new();
        while let Some(reaped) = wait::reap_any() {
            let mut exit = Exit::from_reaped(&reaped, None);
            if let (false, Some(watch)) = (exit.success(), &self.watch) {
                let found = watch.obituaries.collect();
                self.words.extend(found.into_iter().map(|obituary| (obituary.pid, obituary.failure)));
            }
            exit.failure = self.words.remove(&reaped.pid.as_raw());
            // What is not in the table is a subprocess that a called entry point has left behind.
            ended.extend(self.strike(reaped.pid, exit));
        }
        if ended.is_empty() {
            // A called entry point that waits for any child may have taken one of ours.
            let taken: Vec<Pid> = self.tickets.keys().copied().filter(|pid| !wait::is_child(*pid)).collect();
            ended.extend(taken.into_iter().filter_map(|pid| self.strike(pid, Exit::seen_from_afar(None))));
        }
        ended
    }

    /// Takes a child that has ended out of the tables; there is nobody to tell of one of an earlier master's.
    fn strike(&mut self, pid: Pid, exit: Exit) -> Option<Ended> {
        let ticket = self.tickets.remove(&pid)??;
        let place = self.newborn.iter().position(|(newborn, _)| *newborn == pid);
        let newborn = place.map(|place| self.newborn.remove(place)).is_some();
        Some(Ended { pid, ticket, newborn, exit })
    }

    /// Goes on reaping, without reports, when the process is taken over by code that knows nothing of these children.
    pub(crate) fn leave_to_themselves(self) -> io::Result<()> {
        if self.tickets.is_empty() {
            return Ok(());
        }
        self.tickets.into_keys().try_for_each(reaper::reap_in_background)
    }
}

impl Watch {
    fn new() -> io::Result<Watch> {
        let mut mask = SigSet::empty();
        mask.add(Signal::SIGCHLD);
        mask.thread_block()?;
        let exits = SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
        Ok(Watch { exits, obituaries: Obituaries::new()? })
    }
}
