//! What workers offer, on its way to the program that has the server.
//!
//! An offer waits in a [`Queue`] for the program's handler, which has a thread of its own: the master's loop only puts it there, and
//! the handler may take its time. What a dead worker has offered is taken out again, and a worker can make a few offers
//! only: so what waits is bounded by the workers that there are.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use slog::{Logger, error};

use crate::proc::caught::catch;
use crate::proc::{self, Running};
use crate::rpc::{Client, Codec, Options};
use crate::server::{Generation, Slot, WorkerId};
use crate::sys::signals;

/// What a worker offers to the master, as [`Server::on_offer`](super::Server::on_offer) gets it. Dropping it declines, which does the worker
/// no harm.
pub struct Offer {
    pub(super) id: WorkerId,
    pub(super) name: String,
    pub(super) slot: Slot,
    pub(super) generation: Generation,
    pub(super) pid: i32,
    pub(super) socket: OwnedFd,
    pub(super) running: Arc<Running>,
}

impl Offer {
    /// The name under which the service has offered it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The worker's slot.
    pub fn slot(&self) -> Slot {
        self.slot
    }

    /// The worker's generation: while the server reloads, a slot may have workers of two.
    pub fn generation(&self) -> Generation {
        self.generation
    }

    /// The worker's process id.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Takes the offer up: the worker is called like a function from now on.
    ///
    /// It does not wait for the worker. That the worker speaks of other types is told by the first call
    /// ([`Lost::Disagreement`](crate::rpc::Lost::Disagreement)). Set [`on_event`](Client::on_event) before all else:
    /// events that have waited so far come then, and those that come while there is no handler are dropped. Nothing but
    /// its own end ends the worker: with nonsense it ends this conversation.
    ///
    /// The client's callbacks must not wait: while one does, no other callback of any client in this program is called. The
    /// server is not held up by it.
    ///
    /// Dropping the client ends the conversation when all calls have ended; the worker goes on. So does
    /// [`close`](Client::close), which waits for that. A client holds a socket until it is dropped, also one whose worker
    /// has ended.
    ///
    /// # Errors
    /// The hub that watches all sockets could not be started.
    pub fn accept<Call, Reply, Event>(
        self,
        options: Options<impl Codec<Call> + Codec<Reply> + Codec<Event>>,
    ) -> Result<Client<Call, Reply, Event>, proc::Error> {
        Client::of_part(self.socket, self.running, options)
    }
}

impl fmt::Debug for Offer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Offer")
            .field("name", &self.name)
            .field("slot", &self.slot)
            .field("generation", &self.generation)
            .field("pid", &self.pid)
            .finish_non_exhaustive()
    }
}

/// What the program does with an offer.
pub(super) type OnOffer = Box<dyn FnMut(Offer) + Send>;

/// Offers that the handler has not seen yet. Dropping it ends the handler's thread, when the handler has returned.
pub(super) struct Queue {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    waiting: Mutex<Waiting>,
    changed: Condvar,
}

#[derive(Default)]
struct Waiting {
    offers: VecDeque<Offer>,
    closed: bool,
}

impl Queue {
    /// Starts the handler's thread.
    pub(super) fn open(mut handler: OnOffer, log: Logger) -> io::Result<Queue> {
        let shared = Arc::new(Shared::default());
        let of_thread = Arc::clone(&shared);
        // A signal to this process is the master's.
        let mask = signals::block_all()?;
        let thread = thread::Builder::new().name("hatchery-offers".into()).spawn(move || {
            while let Some(offer) = of_thread.next() {
                if let Err(panic) = catch(|| handler(offer)) {
                    error!(log, "the handler of offers panicked"; "panic" => %panic);
                }
            }
        });
        signals::restore(&mask)?;
        thread?;
        Ok(Queue { shared })
    }

    pub(super) fn push(&self, offer: Offer) {
        self.shared.waiting().offers.push_back(offer);
        self.shared.changed.notify_one();
    }

    /// A worker has ended: nobody needs what it has offered.
    pub(super) fn forget(&self, id: WorkerId) {
        self.shared.waiting().offers.retain(|offer| offer.id != id);
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        self.shared.waiting().closed = true;
        self.shared.changed.notify_one();
    }
}

impl Shared {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the next offer; none, if there will be no more.
    fn next(&self) -> Option<Offer> {
        let mut waiting = self.waiting();
        loop {
            if waiting.closed {
                return None;
            }
            if let Some(offer) = waiting.offers.pop_front() {
                return Some(offer);
            }
            waiting = self.changed.wait(waiting).unwrap_or_else(PoisonError::into_inner);
        }
    }
}
