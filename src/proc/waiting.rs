//! The other side: a process that waits for instructions, forks, and is at last taken over.
//!
//! One loop serves templates and processes alike. It never blocks on its master: reports that do not fit the
//! socket wait in a queue, so that master and process cannot wait for each other. When it forks, the child
//! goes on in the same loop with a conversation of its own.

use std::convert::Infallible;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::Pid;

use super::caught;
use super::channel::{self, Received};
use super::children::{Children, Ended};
use super::exec_command;
use super::failure::Failure;
use super::message::{Blob, Command, Frame, Report, Ticket};
use super::obituary;
use super::registry::{CallCx, EntryPoints, Registry, RunCx, RunEnd};
use super::reports::Reports;
use crate::sys::clock::poll_timeout;
use crate::sys::exec::{self, Plan};
use crate::sys::fork::{self, Fork, Refused};
use crate::sys::seqpacket::{self, ASK_AGAIN};
use crate::sys::{pidfd, plugin, signals};

/// Exit codes of a process that never came to its own code.
const EXIT_FAILED: i32 = 1;
const EXIT_PANICKED: i32 = 101;
const EXIT_NOT_EXECUTED: i32 = 127;

/// Room for a master's messages. It is more than the longest of them, because malloc gives an allocation of at least
/// 128 KiB a mapping of its own (mallopt(3), M_MMAP_THRESHOLD): it leaves no hole in the heap, which a worker shares with
/// the template page by page, and it is gone from a worker without a trace when the waiting ends.
const ROOM: usize = 2 * seqpacket::MAX_BYTES;

/// Letters of the master that are carried out before the births and deaths among them are reported: the more, the
/// fewer letters go back, but nobody is to wait long for the first of these births.
const LETTERS_A_TURN: usize = 16;

/// Serves a master until it closes the conversation or gives the process away. All of the process's life.
pub(crate) fn serve(registry: &Registry, control: OwnedFd) -> ! {
    // On the heap, which is shared with what is forked: the frame of this function lies under all code of a worker.
    let mut process = Box::new(Waiting {
        entries: EntryPoints::new(registry),
        control,
        buffer: Vec::with_capacity(ROOM),
        args: Vec::new(),
        fds: Vec::new(),
        failed: None,
        children: Children::default(),
        reports: Reports::default(),
        obituaries: None,
    });
    caught::prepare();
    // The program may have printed before it became a template.
    flush_output();
    match process.serve().and_then(|end| process.take_over(end)) {
        Ok(never) => match never {},
        // The conversation itself is lost, so there is nobody to tell but the log that standard error is.
        Err(error) => {
            eprintln!("hatchery: process {}: cannot talk to the master: {error}", std::process::id());
            leave(EXIT_FAILED)
        }
    }
}

/// Ends this process without the exit handlers and buffers that a fork has copied from its template.
fn leave(code: i32) -> ! {
    // What this process itself has printed is still wanted.
    flush_output();
    exec::leave(code)
}

/// Writes what was printed so far; what stays in the buffer would be written by each child once more.
fn flush_output() {
    // There is nobody to tell that the standard output cannot be written.
    let _ = io::Write::flush(&mut io::stdout());
}

struct Waiting<'r> {
    entries: EntryPoints<'r>,
    control: OwnedFd,
    /// Where messages are received; never freed while the process waits, because that would copy pages in each child.
    buffer: Vec<u8>,
    args: Vec<Vec<u8>>,
    fds: Vec<OwnedFd>,
    /// The first failure since the last sync; until then nothing more is carried out.
    failed: Option<Failure>,
    children: Children,
    reports: Reports,
    /// Where this process leaves its last words for the process that forked it.
    obituaries: Option<OwnedFd>,
}

/// What ends the waiting.
enum End {
    /// The master has closed the conversation.
    Closed,
    Run {
        name: String,
        announce: bool,
    },
    Exec(Plan),
}

impl Waiting<'_> {
    fn serve(&mut self) -> io::Result<End> {
        loop {
            // Before the first wait too: a new process's instructions are mostly there before it is.
            let end = self.take_letters()?;
            self.send_reports()?;
            if let Some(end) = end {
                return Ok(end);
            }
            while !self.wait()? {
                self.send_reports()?;
            }
        }
    }

    /// Carries out what the master has sent so far.
    fn take_letters(&mut self) -> io::Result<Option<End>> {
        for _ in 0..LETTERS_A_TURN {
            match channel::receive::<Frame<Command>>(self.control.as_fd(), &mut self.buffer) {
                Ok(Received::Message { message, fds, lost_descriptors }) => {
                    if lost_descriptors {
                        self.fail(Failure::DescriptorsLost);
                    }
                    if let Some(end) = self.carry_out(message, fds)? {
                        return Ok(Some(end));
                    }
                }
                Ok(Received::Empty) => return Ok(None),
                Ok(Received::Eof) => return Ok(Some(End::Closed)),
                Err(error) if error.raw_os_error() == Some(libc::EMFILE) => self.fail(Failure::DescriptorsLost),
                Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                    self.fail(Failure::Protocol { words: error.to_string() });
                }
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    /// Waits for the master, for room to report to it, or for the end of a child; says whether the master is ready.
    fn wait(&mut self) -> io::Result<bool> {
        let limited = self.reports.is_limited();
        let mut events = PollFlags::POLLIN;
        if !self.reports.is_empty() && !limited {
            events |= PollFlags::POLLOUT;
        }
        let conversation = PollFd::new(self.control.as_fd(), events);
        let (mut alone, mut both);
        let fds: &mut [PollFd<'_>] = match self.children.signal_fd() {
            Some(exits) => {
                both = [conversation, PollFd::new(exits, PollFlags::POLLIN)];
                &mut both
            }
            None => {
                alone = [conversation];
                &mut alone
            }
        };
        let patience = if limited { poll_timeout(ASK_AGAIN) } else { PollTimeout::NONE };
        match poll(fds, patience) {
            Ok(_) => {}
            Err(nix::Error::EINTR) => return Ok(false),
            Err(errno) => return Err(errno.into()),
        }
        let ready = |index: usize| fds.get(index).and_then(PollFd::any).unwrap_or(false);
        let (conversation, exits) = (ready(0), ready(1));
        if exits {
            self.tell_ends()?;
        }
        Ok(conversation)
    }

    fn carry_out(&mut self, frame: Frame<Command>, fds: Vec<OwnedFd>) -> io::Result<Option<End>> {
        let mut fds = fds.into_iter();
        for command in frame {
            match command {
                Command::Sync { ticket } => {
                    self.tell_births()?;
                    let outcome = self.failed.take().map_or(Ok(()), Err);
                    self.reports.add(Report::Synced { ticket, outcome }, None)?;
                }
                Command::Identify => {
                    self.tell_births()?;
                    self.children.forget_tickets();
                    let pid = nix::unistd::getpid();
                    self.report_with_pidfd(Report::Identity { pid: pid.as_raw() }, pid)?;
                }
                Command::Fork { ticket } => match self.fork(ticket, fds.next()) {
                    Ok(Side::Parent) => {}
                    // What else is in the frame is for the parent.
                    Ok(Side::Child) => return Ok(None),
                    Err(failure) => self.reports.add(Report::ForkFailed { ticket, failure }, None)?,
                },
                Command::Retell { tickets } => tickets.into_iter().try_for_each(|ticket| self.retell_birth(ticket))?,
                Command::Kill { tickets } => tickets.into_iter().for_each(|ticket| self.children.kill(ticket)),
                Command::Run { name, announce } => return Ok(Some(End::Run { name, announce })),
                Command::Exec(message) => return Ok(Some(End::Exec(exec_command::plan(*message, fds)))),
                _ if self.failed.is_some() => {}
                Command::Give { args, fds: count } => {
                    self.args.extend(args.into_iter().map(|blob| blob.0));
                    self.fds.extend(fds.by_ref().take(count as usize));
                }
                // These may take long, and nobody is to wait for a report meanwhile.
                Command::Call { name, args } => {
                    self.send_reports()?;
                    self.call(&name, args);
                }
                Command::Load { path } => {
                    self.send_reports()?;
                    self.load(path);
                }
            }
        }
        Ok(None)
    }

    fn fail(&mut self, failure: Failure) {
        self.failed.get_or_insert_with(|| failure.shortened());
    }

    fn call(&mut self, name: &str, args: Vec<Blob>) {
        let args: Vec<Vec<u8>> = args.into_iter().map(|blob| blob.0).collect();
        let mut cx = CallCx { args: &args, held_args: &mut self.args, held_fds: &mut self.fds };
        let called = self.entries.call(name, &mut cx);
        flush_output();
        if let Err(failure) = called {
            self.fail(failure);
        }
    }

    fn load(&mut self, path: Blob) {
        let path = path.into_os_string();
        let loaded = plugin::load(&path);
        flush_output();
        match loaded {
            Ok(entries) => self.entries.add(entries),
            Err(error) => {
                let path = path.to_string_lossy().into_owned();
                self.fail(Failure::Load { path, words: super::failure::words_of(&error) });
            }
        }
    }

    fn fork(&mut self, ticket: Ticket, conversation: Option<OwnedFd>) -> Result<Side, Failure> {
        if let Some(failure) = &self.failed {
            return Err(failure.clone());
        }
        let conversation = conversation.ok_or(Failure::DescriptorsLost)?;
        self.children.prepare().map_err(|error| refused(&error))?;
        match fork::fork(conversation) {
            Ok(Fork::Parent(pid)) => {
                self.children.add(pid, ticket);
                Ok(Side::Parent)
            }
            Ok(Fork::Child(conversation)) => {
                // What belongs to the parent's conversations is closed here, each by its owner's drop. Otherwise
                // as little as possible is touched: each page that is written to is copied.
                self.control = conversation;
                self.obituaries = self.children.leave_to_parent();
                self.reports.leave_to_parent();
                if signals::unblock_all().is_err() {
                    leave(EXIT_FAILED);
                }
                Ok(Side::Child)
            }
            Err(Refused::Threads(names)) => Err(Failure::Threads { names }),
            Err(Refused::Os(error)) => Err(refused(&error)),
        }
    }

    /// What comes after the waiting: the end, or other code.
    fn take_over(mut self: Box<Self>, end: End) -> io::Result<Infallible> {
        if let (Some(failure), End::Run { .. } | End::Exec(_)) = (self.failed.take(), &end) {
            self.die(failure, EXIT_FAILED);
        }
        match end {
            End::Closed => leave(0),
            End::Run { name, announce } => self.run(&name, announce),
            End::Exec(plan) => {
                let program = plan.program.to_string_lossy().into_owned();
                let words = exec::exec(plan).to_string();
                self.die(Failure::Exec { program, words }, EXIT_NOT_EXECUTED)
            }
        }
    }

    fn run(mut self: Box<Self>, name: &str, announce: bool) -> io::Result<Infallible> {
        if let Err(failure) = self.entries.can_run(name) {
            self.die(failure, EXIT_FAILED);
        }
        if announce {
            self.reports.add(Report::TakenOver, None)?;
            self.send_reports()?;
            while !self.reports.is_empty() {
                self.wait()?;
                self.send_reports()?;
            }
        }
        let Waiting { entries, control, buffer, args, fds, children, obituaries, .. } = *self;
        children.leave_to_themselves()?;
        signals::unblock_all()?;
        drop(buffer);
        match entries.run(name, RunCx { socket: control, args, fds }) {
            RunEnd::Code(code) => leave(code),
            RunEnd::Failed(failure) => {
                let code = if matches!(failure, Failure::Panicked { .. }) { EXIT_PANICKED } else { EXIT_FAILED };
                die(obituaries.as_ref(), failure, code)
            }
        }
    }

    fn die(&self, failure: Failure, code: i32) -> ! {
        die(self.obituaries.as_ref(), failure, code)
    }

    /// Sends the reports of this turn, or what the socket takes of them: births first, and those that have ended
    /// already at once with their end.
    fn send_reports(&mut self) -> io::Result<()> {
        // A single one has hardly had the time to end.
        if self.children.newborn() > 1 {
            self.tell_ends()?;
        }
        self.tell_births()?;
        self.reports.send(self.control.as_fd())
    }

    fn tell_ends(&mut self) -> io::Result<()> {
        for Ended { pid, ticket, newborn, exit } in self.children.reap() {
            let report = if newborn {
                Report::Lived { ticket, pid: pid.as_raw(), exit }
            } else {
                Report::Exited { ticket, exit }
            };
            self.reports.add(report, None)?;
        }
        Ok(())
    }

    fn tell_births(&mut self) -> io::Result<()> {
        for (pid, ticket) in self.children.take_newborn() {
            let pidfd = pidfd::open(pid).or_else(|_| {
                // Those of the earlier births are closed once they are on their way.
                self.reports.send(self.control.as_fd())?;
                pidfd::open(pid)
            });
            match pidfd {
                Ok(pidfd) => self.reports.add(Report::Forked { ticket, pid: pid.as_raw() }, Some(pidfd))?,
                Err(error) => {
                    self.children.undo(pid);
                    self.reports.add(Report::ForkFailed { ticket, failure: refused(&error) }, None)?;
                }
            }
        }
        Ok(())
    }

    /// Tells a birth once more; of a child that was reaped the end was told.
    fn retell_birth(&mut self, ticket: Ticket) -> io::Result<()> {
        let Some(pid) = self.children.pid_of(ticket) else {
            return Ok(());
        };
        self.report_with_pidfd(Report::Forked { ticket, pid: pid.as_raw() }, pid)
    }

    /// Adds a report with the process's pidfd; without room for that it goes alone, which the master understands.
    fn report_with_pidfd(&mut self, report: Report, pid: Pid) -> io::Result<()> {
        self.reports.add(report, pidfd::open(pid).ok())?;
        // The last in its letter, where no other's descriptor can be taken for a missing one.
        self.reports.close_letter()
    }
}

/// Which side of a fork goes on.
enum Side {
    Parent,
    Child,
}

/// Ends this process; its words reach the master through the process that forked it or, where nobody forked
/// it, standard error.
fn die(obituaries: Option<&OwnedFd>, failure: Failure, code: i32) -> ! {
    match obituaries {
        Some(parent) => obituary::leave(parent.as_fd(), failure),
        None => eprintln!("hatchery: process {}: {failure}", std::process::id()),
    }
    leave(code)
}

fn refused(error: &io::Error) -> Failure {
    Failure::ForkRefused { errno: error.raw_os_error().unwrap_or(libc::EIO) }
}
