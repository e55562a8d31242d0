//! What a dying worker still says to the client of the request in hand.
//!
//! A signal handler can reach only what stands ready in memory: the connection's descriptor, the words,
//! and the answers to earlier requests of the connection that nobody has sent yet, without which the
//! client would take the words for one of those answers. All of it is in one [`LastWords`], and a state
//! says whether the words may be spoken:
//!
//! | state | what it means | what a handler does |
//! | --- | --- | --- |
//! | closed | no request is in hand, or its response has begun | nothing |
//! | open | a request is in hand, but there are no words, or something is being sent | nothing |
//! | changing | somebody writes to what stands ready | nothing |
//! | ready | the words may be spoken | takes it to speaking, and speaks |
//! | speaking | the process is about to die | nothing |
//!
//! Nobody leaves `speaking`, so nothing is said twice, whatever else befalls the process while it dies;
//! and whoever else finds it, a thread that wants to send or to end the request, waits for that death.
//! So nothing of the response follows the words, and the descriptor stays that of the client for as long
//! as a handler uses it, even if the crash is another thread's.

use std::cell::UnsafeCell;
use std::fmt;
use std::hint;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::ptr;
use std::sync::atomic::{AtomicI32, AtomicPtr, AtomicU8, Ordering};

const CLOSED: u8 = 0;
const OPEN: u8 = 1;
const CHANGING: u8 = 2;
const READY: u8 = 3;
const SPEAKING: u8 = 4;

/// Why the process dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cause {
    /// The request's hard deadline.
    Deadline,
    /// A fault, or an abort.
    Crash,
}

/// What is said for each cause; empty: nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Words {
    pub(crate) deadline: &'static [u8],
    pub(crate) crash: &'static [u8],
}

impl Words {
    fn of(self, cause: Cause) -> &'static [u8] {
        match cause {
            Cause::Deadline => self.deadline,
            Cause::Crash => self.crash,
        }
    }
}

/// The words for the request in hand, and whether they may be spoken.
pub(crate) struct LastWords {
    state: AtomicU8,
    content: UnsafeCell<Content>,
}

// SAFETY: `content` is reached only by whoever has taken the state from another one to CHANGING or to
// SPEAKING, which one thread does at a time.
unsafe impl Sync for LastWords {}

#[derive(Default)]
struct Content {
    socket: RawFd,
    words: Option<Words>,
    earlier: Vec<u8>,
}

/// What is to be sent, in this order.
#[derive(Debug, PartialEq, Eq)]
struct Speech<'a> {
    socket: RawFd,
    parts: [&'a [u8]; 2],
}

impl Default for LastWords {
    fn default() -> Self {
        LastWords { state: AtomicU8::new(CLOSED), content: UnsafeCell::default() }
    }
}

impl fmt::Debug for LastWords {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LastWords").field("state", &self.state).finish_non_exhaustive()
    }
}

impl LastWords {
    /// A request comes in hand, with no words yet. `earlier` are the answers to earlier requests of this
    /// connection that are still to be sent.
    pub(crate) fn open(&self, socket: BorrowedFd<'_>, earlier: &[u8]) {
        self.change(&[CLOSED, OPEN, READY], |content| {
            content.socket = socket.as_raw_fd();
            content.words = None;
            content.keep(earlier);
            OPEN
        });
    }

    /// These are the words from now on, if the response has not begun.
    pub(crate) fn set(&self, words: Words) {
        self.change(&[OPEN, READY], |content| {
            content.words = Some(words);
            READY
        });
    }

    /// Nothing is to be said while earlier answers are being sent.
    pub(crate) fn hush(&self) {
        self.take(&[READY], OPEN);
    }

    /// Goes on after [`hush`](Self::hush), with what is left of the earlier answers.
    pub(crate) fn resume(&self, earlier: &[u8]) {
        self.change(&[OPEN], |content| {
            content.keep(earlier);
            if content.words.is_some() { READY } else { OPEN }
        });
    }

    /// Nothing more is to be said: the response begins, or the request has ended.
    pub(crate) fn close(&self) {
        self.take(&[OPEN, READY], CLOSED);
    }

    /// Whether a handler would speak.
    #[cfg(test)]
    pub(crate) fn is_ready(&self) -> bool {
        self.state.load(Ordering::Relaxed) == READY
    }

    /// Alters what stands ready, if the state is one of these.
    fn change(&self, from: &[u8], change: impl FnOnce(&mut Content) -> u8) {
        if self.take(from, CHANGING) {
            // SAFETY: this thread has taken the state to CHANGING, so nobody else reaches the content.
            let next = change(unsafe { &mut *self.content.get() });
            self.state.store(next, Ordering::Release);
        }
    }

    /// Takes the state from one of `from` to another. False if it is none of them.
    fn take(&self, from: &[u8], to: u8) -> bool {
        loop {
            let state = self.state.load(Ordering::Relaxed);
            match state {
                SPEAKING => wait_for_death(),
                CHANGING => hint::spin_loop(),
                _ if !from.contains(&state) => return false,
                _ => {
                    let taken = self.state.compare_exchange_weak(state, to, Ordering::AcqRel, Ordering::Relaxed);
                    if taken.is_ok() {
                        return true;
                    }
                }
            }
        }
    }

    /// What is to be said, once, if anything may be.
    fn claim(&self, cause: Cause) -> Option<Speech<'_>> {
        self.state.compare_exchange(READY, SPEAKING, Ordering::AcqRel, Ordering::Relaxed).ok()?;
        // SAFETY: this thread has taken the state to SPEAKING, which nobody leaves, so nobody writes.
        let content = unsafe { &*self.content.get() };
        let words = content.words?.of(cause);
        Some(Speech { socket: content.socket, parts: [&content.earlier, words] })
    }
}

impl Content {
    fn keep(&mut self, earlier: &[u8]) {
        self.earlier.clear();
        self.earlier.extend_from_slice(earlier);
    }
}

impl Speech<'_> {
    /// Sends one part after the other, each in one go or nothing more. `send` tells how much it took.
    fn deliver(&self, mut send: impl FnMut(&[u8]) -> usize) {
        let _ = self.parts.iter().all(|part| part.is_empty() || send(part) == part.len());
    }
}

// The words of the process's worker loop. Not zero, as in `alarm`: a worker has a page less of its own.
static CURRENT: AtomicPtr<LastWords> = AtomicPtr::new(ptr::dangling_mut());
static OWNER: AtomicI32 = AtomicI32::new(NOBODY);
const NOBODY: i32 = -1;

/// From now on these are the words that this process says when it dies.
pub(crate) fn adopt(words: &'static LastWords) {
    CURRENT.store(ptr::from_ref(words).cast_mut(), Ordering::Relaxed);
    OWNER.store(nix::unistd::getpid().as_raw(), Ordering::Release);
}

/// Says the last words, if there are any to say. For signal handlers: what it calls is
/// async-signal-safe, it waits for nothing, and the process is to die when it returns.
pub(super) fn speak(cause: Cause) {
    // Whatever the service has forked has a copy of all this, and of the descriptor.
    // SAFETY: getpid(2) has no preconditions.
    if OWNER.load(Ordering::Acquire) != unsafe { libc::getpid() } {
        return;
    }
    // SAFETY: since there is an owner, `adopt` has stored a reference that is valid for ever.
    let words = unsafe { &*CURRENT.load(Ordering::Relaxed) };
    if let Some(speech) = words.claim(cause) {
        speech.deliver(|part| send(speech.socket, part));
        part_from(speech.socket);
    }
}

fn send(socket: RawFd, bytes: &[u8]) -> usize {
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: the bytes are live for the call; send(2) is async-signal-safe.
    let sent = unsafe { libc::send(socket, bytes.as_ptr().cast(), bytes.len(), flags) };
    usize::try_from(sent).unwrap_or(0)
}

/// Ends the connection so that the client reads what was said: with unread bytes in the socket the end
/// would be a reset. TCP drops them without a buffer (MSG_TRUNC, tcp(7)).
fn part_from(socket: RawFd) {
    const ALL: usize = 1 << 24;
    let flags = libc::MSG_DONTWAIT | libc::MSG_TRUNC;
    // SAFETY: nothing is written to the null buffer: TCP skips it, others give EFAULT. recv(2) and
    // shutdown(2) are async-signal-safe.
    unsafe { libc::recv(socket, ptr::null_mut(), ALL, flags) };
    // SAFETY: as above.
    unsafe { libc::shutdown(socket, libc::SHUT_WR) };
}

/// A handler on another thread, or below this code on the same one, is ending the process.
#[cold]
fn wait_for_death() -> ! {
    loop {
        // SAFETY: pause(2) has no preconditions.
        unsafe { libc::pause() };
    }
}

#[cfg(test)]
mod tests;
