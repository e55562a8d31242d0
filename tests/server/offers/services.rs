//! The fixture's services, which offer what they are told to.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::os::fd::{AsFd, RawFd};
use std::rc::Rc;
use std::time::Duration;

use hatchery::rpc::{Cx, Events};
use hatchery::server::{Conn, Next, OfferError, OfferOptions, PreloadCx, RequestCx, Result, Service, WorkerCx};
use hatchery::slog::info;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{MsgFlags, Shutdown, send, shutdown};

use super::program::Order;
use crate::support::processes::descriptors;

/// What both services share.
struct Workshop {
    counter: Rc<Cell<u64>>,
    events: BTreeMap<String, Events<String>>,
}

impl Workshop {
    /// Offers what the arguments name.
    fn open(cx: &WorkerCx) -> Result<Workshop> {
        let counter = Rc::new(Cell::new(0));
        let mut events = BTreeMap::new();
        for name in cx.arg_opt("offers").unwrap_or("counters").split(',') {
            let held: BTreeSet<RawFd> = sockets()?;
            let of_handler = Rc::clone(&counter);
            let handler = move |order, cx: &Cx<String>| carry_out(&of_handler, order, cx);
            match cx.offer(name, OfferOptions::new().max_queued(64 << 10), handler) {
                Ok(of) => drop(events.insert(name.to_owned(), of)),
                Err(OfferError::TooMany) => info!(cx.log(), "too many"; "offer" => name),
                Err(error) => return Err(error.into()),
            }
            match name {
                "early" => (0..3).try_for_each(|number| events[name].send(&number.to_string()))?,
                "nonsense" => {
                    let ours = sockets()?.difference(&held).copied().next().expect("the offer's own end");
                    send(ours, b"this is no frame", MsgFlags::MSG_DONTWAIT)?;
                }
                "shut" => {
                    let ours = sockets()?.difference(&held).copied().next().expect("the offer's own end");
                    shutdown(ours, Shutdown::Both)?;
                }
                _ => {}
            }
        }
        Ok(Workshop { counter, events })
    }
}

/// The sockets that this process holds.
fn sockets() -> Result<BTreeSet<RawFd>> {
    let held = descriptors(std::process::id() as i32).into_iter();
    Ok(held.filter(|(_, target)| target.starts_with("socket:")).map(|(fd, _)| fd).collect())
}

fn carry_out(counter: &Cell<u64>, order: Order, cx: &Cx<String>) -> Result<u64> {
    match order {
        Order::Count => {}
        Order::Tell(count) => {
            for number in 0..count {
                cx.events.send(&format!("told {number}"))?;
            }
        }
        Order::Fail => return Err("as ordered".into()),
        Order::Panic => panic!("as ordered"),
        Order::Spin => loop {
            std::hint::spin_loop();
        },
    }
    Ok(counter.get())
}

/// A service of lines.
pub(super) struct Offering(Workshop);

impl Service for Offering {
    type Preload = ();

    fn preload(_: &PreloadCx) -> Result<()> {
        Ok(())
    }

    fn start((): &'static (), cx: &WorkerCx) -> Result<Offering> {
        Workshop::open(cx).map(Offering)
    }

    fn serve(&mut self, conn: &mut Conn, cx: &mut RequestCx<'_>) -> Result<Next> {
        if !conn.buffer().contains(&b'\n') {
            return Ok(Next::Park);
        }
        let Some(line) = conn.read_line(4096)? else { return Ok(Next::Close) };
        let Workshop { counter, events } = &self.0;
        let words: Vec<&str> = line.split(' ').collect();
        match words[..] {
            ["count"] => {
                counter.set(counter.get() + 1);
                writeln!(conn, "{}", cx.pid())?;
            }
            // Counts at its end, which the client's next line is.
            ["hold"] => {
                writeln!(conn, "{}", cx.pid())?;
                conn.flush()?;
                conn.read_line(4096)?;
                counter.set(counter.get() + 1);
                writeln!(conn, "released")?;
            }
            ["progress", name, count] => {
                for step in 0..count.parse::<u32>()? {
                    events[name].send(&format!("step {step}"))?;
                }
                writeln!(conn, "half")?;
                conn.flush()?;
                conn.read_line(4096)?;
                events[name].send(&"done".to_owned())?;
                writeln!(conn, "released")?;
            }
            // As many events of a kibibyte as are taken.
            ["flood", name] => {
                let mut taken = 0;
                let refused = loop {
                    match events[name].send(&format!("{taken} {}", "x".repeat(1024))) {
                        Ok(()) => taken += 1,
                        Err(error) => break error,
                    }
                };
                writeln!(conn, "{taken} {refused}")?;
            }
            _ => writeln!(conn, "there is no question {line:?}")?,
        }
        Ok(Next::Park)
    }
}

/// One connection at a time, one word, and goodbye.
pub(super) struct OwnLoop(Workshop);

impl Service for OwnLoop {
    type Preload = ();

    fn preload(_: &PreloadCx) -> Result<()> {
        Ok(())
    }

    fn start((): &'static (), cx: &WorkerCx) -> Result<OwnLoop> {
        Workshop::open(cx).map(OwnLoop)
    }

    fn serve(&mut self, _: &mut Conn, _: &mut RequestCx<'_>) -> Result<Next> {
        unreachable!("the loop is this service's own")
    }

    fn run(self, cx: WorkerCx) -> Result<()> {
        cx.ready();
        let listener = &cx.listeners()[0];
        let mut again = Some(Duration::ZERO);
        while !cx.draining() {
            let offers = cx.offers_fd().expect("something was offered");
            let fds = [cx.drain_fd(), listener.as_fd(), offers];
            let patience = again.map_or(Ok(PollTimeout::NONE), PollTimeout::try_from)?;
            poll(&mut fds.map(|fd| PollFd::new(fd, PollFlags::POLLIN)), patience)?;
            while let Some(mut conn) = listener.accept()? {
                self.0.counter.set(self.0.counter.get() + 1);
                self.0.events["counters"].send(&"a client has come".to_owned())?;
                writeln!(conn, "{}", cx.pid())?;
                conn.flush()?;
            }
            again = cx.answer_offers();
        }
        cx.answer_offers();
        Ok(())
    }
}
