//! The other side: a process that waits for instructions, forks, and is at last taken over.
//!
//! One loop serves templates and processes alike. It never blocks on its master: reports that do not fit the
//! socket wait in a queue, so that master and process cannot wait for each other. When it forks, the child
//! goes on in the same loop with a conversation of its own.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};

use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::channel::{self, Packet, Received};
use super::children::Children;
use super::exec_command;
use super::failure::Failure;
use super::message::{Blob, Command, Frame, Report, Ticket};
use super::obituary;
use super::registry::{CallCx, EntryPoints, Registry, RunCx, RunEnd};
use crate::sys::exec::{self, Plan};
use crate::sys::fork::{self, Fork, Refused};
use crate::sys::{plugin, signals};

/// Exit codes of a process that never came to its own code.
const EXIT_FAILED: i32 = 1;
const EXIT_PANICKED: i32 = 101;
const EXIT_NOT_EXECUTED: i32 = 127;

/// How long after the kernel has refused descriptors on their way it is asked again, in milliseconds.
const ASK_AGAIN_MS: u8 = 5;

/// Reports that make one letter: however long the words in them are, it needs no memory file.
const REPORTS_TOGETHER: usize = 7;

/// Serves a master until it closes the conversation or gives the process away. All of the process's life.
pub(crate) fn serve(registry: &Registry, control: OwnedFd) -> ! {
    let mut process = Waiting {
        entries: EntryPoints::new(registry),
        control,
        buffer: Vec::new(),
        args: Vec::new(),
        fds: Vec::new(),
        failed: None,
        children: Children::default(),
        reports: Frame::new(),
        reports_fds: Vec::new(),
        unsent: VecDeque::new(),
        limited: false,
        obituaries: None,
    };
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
    /// Where messages are received; never freed, because that would copy pages in each child.
    buffer: Vec<u8>,
    args: Vec<Vec<u8>>,
    fds: Vec<OwnedFd>,
    /// The first failure since the last sync; until then nothing more is carried out.
    failed: Option<Failure>,
    children: Children,
    /// What is to be reported with the next letter, and its descriptors.
    reports: Frame<Report>,
    reports_fds: Vec<OwnedFd>,
    unsent: VecDeque<(Packet, Vec<OwnedFd>)>,
    /// Too many descriptors of this user are on their way (unix(7), ETOOMANYREFS); no readiness tells when that ends.
    limited: bool,
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

/// What the wait has found.
struct Ready {
    conversation: bool,
    exits: bool,
}

impl Waiting<'_> {
    fn serve(&mut self) -> io::Result<End> {
        loop {
            // Once a turn, so that a birth and a death, or several deaths, make one letter.
            self.send_reports()?;
            let ready = self.wait()?;
            if ready.exits {
                for (ticket, exit) in self.children.reap() {
                    self.report(Report::Exited { ticket, exit }, None)?;
                }
            }
            if !ready.conversation {
                continue;
            }
            match channel::receive::<Frame<Command>>(self.control.as_fd(), &mut self.buffer) {
                Ok(Received::Message { message, fds, lost_descriptors }) => {
                    if lost_descriptors {
                        self.fail(Failure::DescriptorsLost);
                    }
                    if let Some(end) = self.carry_out(message, fds)? {
                        self.send_reports()?;
                        return Ok(end);
                    }
                }
                Ok(Received::Empty) => {}
                Ok(Received::Eof) => return Ok(End::Closed),
                Err(error) if error.raw_os_error() == Some(libc::EMFILE) => self.fail(Failure::DescriptorsLost),
                Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                    self.fail(Failure::Protocol { words: error.to_string() });
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Waits for the master, for room to report to it, or for the end of a child.
    fn wait(&self) -> io::Result<Ready> {
        let mut events = PollFlags::POLLIN;
        if !self.unsent.is_empty() && !self.limited {
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
        let patience = if self.limited { PollTimeout::from(ASK_AGAIN_MS) } else { PollTimeout::NONE };
        match poll(fds, patience) {
            Ok(_) => {}
            Err(nix::Error::EINTR) => return Ok(Ready { conversation: false, exits: false }),
            Err(errno) => return Err(errno.into()),
        }
        let ready = |index: usize| fds.get(index).and_then(PollFd::any).unwrap_or(false);
        Ok(Ready { conversation: ready(0) || self.limited, exits: ready(1) })
    }

    fn carry_out(&mut self, frame: Frame<Command>, fds: Vec<OwnedFd>) -> io::Result<Option<End>> {
        let mut fds = fds.into_iter();
        for command in frame {
            match command {
                Command::Sync { ticket } => {
                    let outcome = self.failed.take().map_or(Ok(()), Err);
                    self.report(Report::Synced { ticket, outcome }, None)?;
                }
                Command::Identify => {
                    self.children.forget_tickets();
                    let pid = nix::unistd::getpid();
                    // Without room for a pidfd the answer comes without it, which the master understands.
                    let pidfd = crate::sys::pidfd::open(pid).ok();
                    self.report(Report::Identity { pid: pid.as_raw() }, pidfd)?;
                    // In a letter of its own, where no other's descriptor can be taken for the missing one.
                    self.close_letter()?;
                }
                Command::Fork { ticket } => match self.fork(ticket, fds.next()) {
                    Side::Parent(report, pidfd) => self.report(report, pidfd)?,
                    // What else is in the frame is for the parent.
                    Side::Child => return Ok(None),
                },
                Command::Kill { ticket } => self.children.kill(ticket),
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

    fn fork(&mut self, ticket: Ticket, conversation: Option<OwnedFd>) -> Side {
        let forked = match (self.failed.clone(), conversation) {
            (Some(failure), _) => Err(failure),
            (None, None) => Err(Failure::DescriptorsLost),
            (None, Some(conversation)) => self.try_fork(ticket, conversation),
        };
        forked.unwrap_or_else(|failure| Side::Parent(Report::ForkFailed { ticket, failure }, None))
    }

    fn try_fork(&mut self, ticket: Ticket, conversation: OwnedFd) -> Result<Side, Failure> {
        self.children.prepare().map_err(|error| refused(&error))?;
        match fork::fork(conversation) {
            Ok(Fork::Parent { pid, pidfd }) => {
                self.children.add(pid, ticket);
                Ok(Side::Parent(Report::Forked { ticket, pid: pid.as_raw() }, Some(pidfd)))
            }
            Ok(Fork::Child(conversation)) => {
                // What belongs to the parent's conversations is closed here, each by its owner's drop. Otherwise
                // as little as possible is touched: each page that is written to is copied.
                self.control = conversation;
                self.obituaries = self.children.leave_to_parent();
                if !(self.reports.is_empty() && self.unsent.is_empty()) {
                    self.reports.clear();
                    self.reports_fds.clear();
                    self.unsent.clear();
                }
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
    fn take_over(mut self, end: End) -> io::Result<Infallible> {
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

    fn run(mut self, name: &str, announce: bool) -> io::Result<Infallible> {
        if let Err(failure) = self.entries.can_run(name) {
            self.die(failure, EXIT_FAILED);
        }
        if announce {
            self.report(Report::TakenOver, None)?;
            self.send_reports()?;
            while !self.unsent.is_empty() {
                self.wait()?;
                self.flush()?;
            }
        }
        self.children.leave_to_themselves()?;
        signals::unblock_all()?;
        let cx = RunCx { socket: self.control, args: self.args, fds: self.fds };
        match self.entries.run(name, cx) {
            RunEnd::Code(code) => leave(code),
            RunEnd::Failed(failure) => {
                let code = if matches!(failure, Failure::Panicked { .. }) { EXIT_PANICKED } else { EXIT_FAILED };
                die(self.obituaries.as_ref(), failure, code)
            }
        }
    }

    fn die(&self, failure: Failure, code: i32) -> ! {
        die(self.obituaries.as_ref(), failure, code)
    }

    fn report(&mut self, report: Report, fd: Option<OwnedFd>) -> io::Result<()> {
        self.reports.push(report);
        self.reports_fds.extend(fd);
        if self.reports.len() == REPORTS_TOGETHER { self.close_letter() } else { Ok(()) }
    }

    fn close_letter(&mut self) -> io::Result<()> {
        if !self.reports.is_empty() {
            let packet = Packet::encode(&self.reports)?;
            self.reports.clear();
            self.unsent.push_back((packet, std::mem::take(&mut self.reports_fds)));
        }
        Ok(())
    }

    /// Sends what is to be reported, or what the socket takes of it.
    fn send_reports(&mut self) -> io::Result<()> {
        self.close_letter()?;
        self.flush()
    }

    /// Sends what the socket takes.
    fn flush(&mut self) -> io::Result<()> {
        self.limited = false;
        while let Some((packet, fds)) = self.unsent.front() {
            let raw: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
            match packet.send(self.control.as_fd(), &raw) {
                Ok(true) => drop(self.unsent.pop_front()),
                Ok(false) => break,
                // The master is gone: what it has queued for us is still carried out, and then comes the end.
                Err(error) if is_gone(&error) => self.unsent.clear(),
                Err(error) if error.raw_os_error() == Some(libc::ETOOMANYREFS) => {
                    self.limited = true;
                    return Ok(());
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// Which side of a fork goes on, and what the parent's side reports.
enum Side {
    Parent(Report, Option<OwnedFd>),
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

fn is_gone(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset)
}

fn refused(error: &io::Error) -> Failure {
    Failure::ForkRefused { errno: error.raw_os_error().unwrap_or(libc::EIO) }
}
