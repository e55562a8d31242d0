//! Whether the peer of a stream socket is still there: asked for, or told by a signal while the thread computes.
//!
//! A socket with O_ASYNC sends SIGIO to the thread that owns it when something comes, the peer's end included (fcntl(2),
//! `F_SETOWN_EX`). The handler looks what it was and leaves a note: so nobody has to ask, and no second thread has to
//! watch. Bytes that come send the signal as well; then the look finds nothing.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicPtr, AtomicU64, Ordering, compiler_fence};

use nix::errno::Errno;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

use super::signals;

/// How much of a peer is left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Peer {
    /// It may still send.
    Open,
    /// It has sent its end, and may still read.
    Finished,
    /// It neither sends nor reads.
    Gone,
}

/// Looks, and takes nothing from the socket.
pub(crate) fn look(socket: BorrowedFd<'_>) -> Peer {
    look_at(socket.as_raw_fd())
}

/// Async-signal-safe. An error in the socket alone says nothing of the peer: after a reset there is POLLHUP too.
fn look_at(socket: RawFd) -> Peer {
    let mut asked = libc::pollfd { fd: socket, events: libc::POLLRDHUP, revents: 0 };
    // SAFETY: one live pollfd, as the count says; poll(2) is async-signal-safe.
    unsafe { libc::poll(&raw mut asked, 1, 0) };
    match asked.revents {
        seen if seen & (libc::POLLHUP | libc::POLLNVAL) != 0 => Peer::Gone,
        seen if seen & libc::POLLRDHUP != 0 => Peer::Finished,
        _ => Peer::Open,
    }
}

/// What has become of the work for a watched socket's peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Seen {
    /// Nothing that would end it.
    Nothing,
    /// The peer has sent its end.
    Finished,
    /// The work's soft deadline has passed.
    Deadline,
    /// The peer is gone.
    Gone,
    /// The work is done, or was given up.
    Over,
}

// Bits of a line's state; the rest of it counts the watches.
const FINISHED: u64 = 1;
const DEADLINE: u64 = 1 << 1;
const GONE: u64 = 1 << 2;
const OVER: u64 = 1 << 3;
const WATCH: u64 = 1 << 4;

const NONE: RawFd = -1;

/// The connection that a thread serves just now. It is watched from the first time that somebody asks for it, until the
/// thread has served it.
#[derive(Debug)]
pub(crate) struct Line {
    socket: AtomicI32,
    /// The thread that watches.
    owner: AtomicI32,
    state: AtomicU64,
}

impl Default for Line {
    fn default() -> Self {
        Self { socket: AtomicI32::new(NONE), owner: AtomicI32::new(0), state: AtomicU64::new(OVER) }
    }
}

/// The line that the handler looks at; null, or one that lives for ever.
static WATCHED: AtomicPtr<Line> = AtomicPtr::new(ptr::null_mut());

impl Line {
    /// The thread serves this socket from now on, until [`close`](Self::close): the caller keeps it open.
    pub(crate) fn open(&self, socket: BorrowedFd<'_>) {
        self.socket.store(socket.as_raw_fd(), Ordering::Relaxed);
    }

    /// Ends that; costs a system call if it was watched.
    pub(crate) fn close(&self) {
        let socket = self.socket.load(Ordering::Relaxed);
        self.socket.store(NONE, Ordering::Relaxed);
        if self.state.load(Ordering::Relaxed) & OVER == 0 {
            WATCHED.store(ptr::null_mut(), Ordering::Relaxed);
            self.state.fetch_or(OVER, Ordering::Relaxed);
            compiler_fence(Ordering::SeqCst);
            // At worst the signal comes again, and its handler finds nothing to look at.
            let _ = set_async(socket, false);
        }
    }

    /// Whether it is watched, and the peer's end was seen.
    pub(crate) fn has_seen_end(&self) -> bool {
        let state = self.state.load(Ordering::Relaxed);
        state & OVER == 0 && state & (FINISHED | GONE) != 0
    }

    /// Has the line watched, if it is not yet, by the calling thread.
    ///
    /// # Errors
    /// `NotConnected` if no socket is served; those of fcntl(2).
    pub(crate) fn watch(&'static self) -> io::Result<Watch> {
        let socket = self.socket.load(Ordering::Relaxed);
        if socket == NONE {
            return Err(io::ErrorKind::NotConnected.into());
        }
        let mut state = self.state.load(Ordering::Relaxed);
        if state & OVER != 0 {
            install_handler()?;
            let owner = nix::unistd::gettid().as_raw();
            own(socket, owner)?;
            self.owner.store(owner, Ordering::Relaxed);
            state = (state & !(WATCH - 1)).wrapping_add(WATCH);
            self.state.store(state, Ordering::Relaxed);
            compiler_fence(Ordering::SeqCst);
            WATCHED.store(ptr::from_ref(self).cast_mut(), Ordering::Relaxed);
            set_async(socket, true)?;
            // What came before has sent no signal.
            self.look();
        }
        Ok(Watch { line: self, number: state / WATCH })
    }

    /// The work's soft deadline has passed. The alarm's handler notes it by itself, but only while the line is watched.
    pub(crate) fn note_deadline(&self) {
        self.state.fetch_or(DEADLINE, Ordering::Relaxed);
    }

    fn look(&self) {
        let seen = match look_at(self.socket.load(Ordering::Relaxed)) {
            Peer::Open => return,
            Peer::Finished => FINISHED,
            Peer::Gone => FINISHED | GONE,
        };
        self.state.fetch_or(seen, Ordering::Relaxed);
    }
}

/// One watch over a line; any thread may ask it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Watch {
    line: &'static Line,
    number: u64,
}

impl Watch {
    /// What was seen so far: the gravest. It costs one load.
    pub(crate) fn seen(self) -> Seen {
        match self.line.state.load(Ordering::Relaxed) {
            state if state / WATCH != self.number || state & OVER != 0 => Seen::Over,
            state if state & GONE != 0 => Seen::Gone,
            state if state & DEADLINE != 0 => Seen::Deadline,
            state if state & FINISHED != 0 => Seen::Finished,
            _ => Seen::Nothing,
        }
    }
}

/// The work's soft deadline has passed; called by the alarm's handler.
pub(super) fn note_deadline() {
    if let Some(line) = own_line() {
        line.note_deadline();
    }
}

extern "C" fn on_io(_: libc::c_int) {
    let errno = Errno::last_raw();
    if let Some(line) = own_line() {
        line.look();
    }
    Errno::set_raw(errno);
}

/// The watched line, if it is the calling thread's: a signal from elsewhere may come to any.
fn own_line() -> Option<&'static Line> {
    // SAFETY: null, or stored by `watch` from a reference that lives for ever.
    let line = unsafe { WATCHED.load(Ordering::Relaxed).as_ref() }?;
    // SAFETY: gettid takes nothing and always succeeds; as a bare system call it is async-signal-safe.
    let thread = unsafe { libc::syscall(libc::SYS_gettid) };
    (i64::from(line.owner.load(Ordering::Relaxed)) == thread).then_some(line)
}

/// The first time, takes SIGIO over. It stays: a signal that comes late would end the process by its default action.
fn install_handler() -> Result<(), Errno> {
    static INSTALLED: AtomicBool = AtomicBool::new(false);
    if !INSTALLED.load(Ordering::Relaxed) {
        // SA_RESTART: nothing that is called meanwhile is to fail because of it.
        let action = SigAction::new(SigHandler::Handler(on_io), SaFlags::SA_RESTART, SigSet::empty());
        // SAFETY: the handler makes async-signal-safe calls only and restores errno.
        unsafe { sigaction(Signal::SIGIO, &action) }?;
        INSTALLED.store(true, Ordering::Relaxed);
    }
    signals::unblock(Signal::SIGIO)
}

/// `struct f_owner_ex` of fcntl(2).
#[repr(C)]
struct Owner {
    kind: libc::c_int,
    thread: libc::pid_t,
}

const F_SETOWN_EX: libc::c_int = 15;
const F_OWNER_TID: libc::c_int = 0;

/// The socket's signals go to this thread and no other.
fn own(socket: RawFd, thread: libc::pid_t) -> Result<(), Errno> {
    let owner = Owner { kind: F_OWNER_TID, thread };
    // SAFETY: the pointer is to a live structure of the layout that fcntl(2) names; the kernel only reads it.
    Errno::result(unsafe { libc::fcntl(socket, F_SETOWN_EX, &raw const owner) }).map(drop)
}

fn set_async(socket: RawFd, on: bool) -> Result<(), Errno> {
    // SAFETY: F_GETFL takes no argument; a number that is no descriptor is an error.
    let flags = Errno::result(unsafe { libc::fcntl(socket, libc::F_GETFL) })?;
    let flags = if on { flags | libc::O_ASYNC } else { flags & !libc::O_ASYNC };
    // SAFETY: F_SETFL takes an integer.
    Errno::result(unsafe { libc::fcntl(socket, libc::F_SETFL, flags) }).map(drop)
}
