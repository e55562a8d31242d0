//! The one thread of a pool: it makes processes, keeps time, and ends what has to be ended.

use std::panic::{self, AssertUnwindSafe};
use std::sync::{Arc, Mutex, PoisonError};
use std::{io, thread};

use super::core::{Event, WorkerNumber};
use super::report::{Worker, WorkerExit};
use super::shell::{Member, Order, Shared, State};
use crate::proc::hub::call_back;
use crate::proc::{self, Exit, Process};
use crate::rpc::error::{Error, Lost};
use crate::rpc::link::{Link, Outcome, delivering, wake_all};
use crate::sys::memory::resident;
use crate::sys::signals;

/// Where a pool's processes come from.
pub(super) type Source = Box<dyn FnMut() -> Result<Process, proc::Error> + Send>;

impl Shared {
    /// Starts the keeper, which lives until the pool has finished. It takes no signals from the host program.
    pub(super) fn keep(self: Arc<Self>, source: Source) -> io::Result<()> {
        let mask = signals::block_all()?;
        let thread = thread::Builder::new().name("hatchery-pool".into()).spawn(move || self.work(source));
        signals::restore(&mask)?;
        thread.map(drop)
    }

    fn work(&self, mut source: Source) {
        loop {
            match self.next_order() {
                Order::Start(worker) => self.start(worker, &mut source),
                Order::Kill(worker, late) => {
                    if let Some(link) = self.link(worker) {
                        link.end(Lost::Killed { late });
                    }
                }
                Order::Dismiss(worker) => {
                    if let Some(link) = self.link(worker) {
                        link.close();
                    }
                }
                Order::Measure(workers) => workers.into_iter().for_each(|worker| self.measure(worker)),
                Order::End(completion, error) => delivering(|| {
                    // An outcome that is no reply has nothing to decode.
                    let _ = completion(Outcome::Failed(*error));
                }),
                Order::Left(worker, cause) => {
                    let exit = self.state().members.remove(&worker).and_then(|member| member.into_exit(worker, cause));
                    exit.into_iter().for_each(|exit| self.tell_exit(exit));
                }
                Order::Finished => {
                    // A template that nobody else holds ends with it.
                    drop(source);
                    // A clone of this pool in one of them would keep all of it for good.
                    let handlers = (take(&self.on_event), take(&self.on_exit));
                    call_back(|| drop(handlers));
                    let mut state = self.state();
                    state.finished = true;
                    let parked = std::mem::take(&mut state.parked);
                    drop(state);
                    return wake_all(parked);
                }
            }
        }
    }

    fn next_order(&self) -> Order {
        let mut state = self.state();
        loop {
            let now = self.now();
            if state.core.poll_timeout().is_some_and(|at| at <= now) {
                state.core.handle_timeouts(now);
                self.carry_out(&mut state, None);
            }
            if let Some(order) = state.orders.pop_front() {
                return order;
            }
            let until = state.core.poll_timeout();
            state.asleep = Some(until);
            state = match until {
                None => self.keeper.wait(state).unwrap_or_else(PoisonError::into_inner),
                Some(until) => {
                    let left = until.saturating_sub(self.now());
                    self.keeper.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0
                }
            };
            state.asleep = None;
        }
    }

    fn tell_exit(&self, exit: WorkerExit) {
        let Some(mut handler) = take(&self.on_exit) else { return };
        delivering(|| call_back(|| handler(exit)));
        // It may have set another one.
        let mut slot = self.on_exit.lock().unwrap_or_else(PoisonError::into_inner);
        if slot.is_none() {
            *slot = Some(handler);
        }
    }

    fn link(&self, worker: WorkerNumber) -> Option<Arc<Link>> {
        self.state().members.get(&worker).and_then(|member| member.link.clone())
    }

    fn start(&self, worker: WorkerNumber, source: &mut Source) {
        // It is the user's code.
        let made = panic::catch_unwind(AssertUnwindSafe(source)).unwrap_or_else(|_| {
            Err(proc::Error::system("make a process", io::Error::other("the pool's source of processes panicked")))
        });
        let opened = made
            .and_then(|process| process.run(&self.entry))
            .and_then(|running| Link::open(running, self.contract.clone(), self.limits));
        let attended = opened.and_then(|link| {
            self.hear(&mut self.state(), Event::Made { worker });
            self.attend(worker, &link)
        });
        if let Err(error) = attended {
            let mut state = self.state();
            state.with(worker, |member| {
                member.end.get_or_insert_with(|| Lost::NeverBorn(Box::new(error.clone())));
                member.exit.get_or_insert(Err(error));
            });
            state.note_failure(worker);
            self.hear(&mut state, Event::Exited { worker });
        }
    }

    /// Hears whatever is to be heard of a worker from now on.
    fn attend(&self, worker: WorkerNumber, link: &Arc<Link>) -> Result<(), proc::Error> {
        let Some(shared) = self.myself.upgrade() else { return Ok(()) };
        let pid = {
            let mut state = self.state();
            state.with(worker, |member| member.link = Some(Arc::clone(link)));
            state.members.get(&worker).map(|member| Arc::clone(&member.pid)).unwrap_or_default()
        };
        let (events, born, ready, ended, exited) =
            (Arc::clone(&shared), Arc::clone(&shared), Arc::clone(&shared), Arc::clone(&shared), shared);
        let known = Arc::clone(&pid);
        link.running().on_birth(move |number| {
            // It is born once.
            let _ = known.set(number);
            born.see_ready(worker, |_| ());
        });
        link.set_on_ready(move || ready.see_ready(worker, |member| member.ready = true));
        link.set_on_end(move |why| ended.see_end(worker, |member| member.end = Some(why)));
        let watched = link.set_on_event(Box::new(move |bytes, fds| {
            let handler = events.on_event.lock().unwrap_or_else(PoisonError::into_inner).clone();
            let worker = Worker { number: worker, pid: pid.get().copied() };
            handler.map_or(Ok(()), |handler| handler(worker, bytes, fds))
        }));
        if let Err(Error::System { operation, source }) = watched {
            // ENOSPC: it cannot be watched, so it cannot be used.
            link.close();
            return Err(proc::Error::System { operation, source });
        }
        link.running().on_exit(move |exit: Result<Exit, proc::Error>| {
            exited.see_end(worker, |member| member.exit = Some(exit));
        });
        Ok(())
    }

    /// It is ready when it has said so and its pid is known.
    fn see_ready(&self, worker: WorkerNumber, note: impl FnOnce(&mut Member)) {
        let mut state = self.state();
        state.with(worker, note);
        let member = state.members.get(&worker);
        if member.is_some_and(|member| member.ready && member.pid.get().is_some()) {
            self.hear(&mut state, Event::Ready { worker });
        }
    }

    /// It has ended when its conversation has and the process has.
    fn see_end(&self, worker: WorkerNumber, note: impl FnOnce(&mut Member)) {
        let mut state = self.state();
        state.with(worker, note);
        state.note_failure(worker);
        let Some(member) = state.members.get(&worker) else { return };
        match (member.end.is_some(), member.exit.is_some()) {
            (true, true) => self.hear(&mut state, Event::Exited { worker }),
            (true, false) => self.hear(&mut state, Event::Broken { worker }),
            _ => {}
        }
    }

    fn measure(&self, worker: WorkerNumber) {
        let pid = self.state().members.get(&worker).and_then(|member| member.pid.get().copied());
        if let Some(resident) = pid.and_then(resident) {
            self.hear(&mut self.state(), Event::Measured { worker, resident });
        }
    }
}

fn take<T>(slot: &Mutex<Option<T>>) -> Option<T> {
    slot.lock().unwrap_or_else(PoisonError::into_inner).take()
}

impl State {
    /// Should it have failed to start, this is why.
    fn note_failure(&mut self, worker: WorkerNumber) {
        if let Some(why) = self.members.get(&worker).and_then(|member| member.end.clone())
            && !self.core.has_dismissed(worker)
        {
            self.last_failure = Some(why);
        }
    }

    fn with(&mut self, worker: WorkerNumber, note: impl FnOnce(&mut Member)) {
        if let Some(member) = self.members.get_mut(&worker) {
            note(member);
        }
    }
}
