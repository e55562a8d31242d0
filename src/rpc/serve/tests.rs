//! Entry points, at a socket whose other end is the test's own.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::{Deserialize, Serialize, Serializer};

use super::deferred::{self, Responder};
use super::entry::Spoken;
use super::output::Events;
#[cfg(feature = "tokio")]
use super::runtime::{self, AsyncCx};
use super::turn::{self, Cx};
use crate::proc::{BoxError, RunCx};
use crate::rpc::codec::Postcard;
use crate::rpc::contract::{Contract, Encoded, Failed, Hello, PROTOCOL, Wording, encode_own};
use crate::rpc::lanes::Arrivals;
use crate::rpc::wire::{CallId, Frame, Kind, Outbox, Sent, split};
use crate::sys::seqpacket;

const SOON: Duration = Duration::from_secs(30);

const LIMIT: u64 = 1 << 20;

/// A reply whose writing panics.
#[derive(Deserialize)]
struct Terrible;

impl Serialize for Terrible {
    fn serialize<S: Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
        panic!("a reply that panics, as this test wants it")
    }
}

/// What becomes of an entry point that is served to its end.
type End = Receiver<Result<(), String>>;

/// The master's end of a conversation.
struct Master {
    socket: OwnedFd,
    calls: u32,
}

fn spoken<Reply: Serialize + for<'de> Deserialize<'de> + 'static>() -> Spoken<String, Reply, ()> {
    Spoken {
        contract: Contract::of::<String, Reply, (), Postcard>(),
        call: Wording::of::<Postcard>(),
        reply: Wording::of::<Postcard>(),
        event: Wording::of::<Postcard>(),
    }
}

impl Master {
    fn of<Reply>(
        serve: impl FnOnce(RunCx, Spoken<String, Reply, ()>) -> Result<(), BoxError> + Send + 'static,
    ) -> (Master, End)
    where
        Reply: Serialize + for<'de> Deserialize<'de> + 'static,
    {
        let (socket, there) = seqpacket::pair().expect("a pair");
        let (tell, told) = mpsc::channel();
        thread::spawn(move || {
            let end = serve(RunCx { socket: there, args: Vec::new(), fds: Vec::new() }, spoken());
            // The test may be over by then.
            let _ = tell.send(end.map_err(|error| error.to_string()));
        });
        let mut master = Master { socket, calls: 0 };
        let hello = Hello { protocol: PROTOCOL, contract: spoken::<Reply>().contract, limit: LIMIT };
        master.say(Kind::Hello, CallId::default(), encode_own(&hello));
        (master, told)
    }

    /// One frame in a datagram of its own.
    fn say(&mut self, kind: Kind, id: CallId, message: Encoded) {
        self.say_together([(kind, id, message)]);
    }

    /// Frames that fit one datagram.
    fn say_together(&mut self, frames: impl IntoIterator<Item = (Kind, CallId, Encoded)>) {
        let mut outbox = Outbox::default();
        for (kind, id, message) in frames {
            outbox.push(kind, id, message, 0);
        }
        let mut batch = outbox.pop().expect("a datagram");
        assert!(outbox.is_empty(), "it takes more than one");
        loop {
            match batch.send(self.socket.as_fd()) {
                Sent::Whole => return,
                Sent::NoRoom => assert!(self.becomes(PollFlags::POLLOUT), "nobody listens"),
                Sent::Later => thread::yield_now(),
                Sent::Never => panic!("the entry point has ended"),
            }
        }
    }

    fn next_id(&mut self) -> CallId {
        self.calls += 1;
        CallId { place: self.calls, generation: 0 }
    }

    fn call(&mut self, message: Encoded) -> CallId {
        let id = self.next_id();
        self.say(Kind::Call, id, message);
        id
    }

    fn call_with(&mut self, text: &str) -> CallId {
        self.call(encode_own(&text))
    }

    fn becomes(&self, what: PollFlags) -> bool {
        let mut socket = [PollFd::new(self.socket.as_fd(), what)];
        poll(&mut socket, PollTimeout::from(SOON.as_millis() as u16)).expect("polled") > 0
    }

    /// The next datagram, and the frames in it.
    fn hear(&self) -> (Vec<u8>, Vec<Frame>) {
        assert!(self.becomes(PollFlags::POLLIN), "nothing comes any more");
        let mut bytes = Vec::new();
        let datagram = seqpacket::receive(self.socket.as_fd(), &mut bytes).expect("received").expect("a datagram");
        let mut frames = Vec::new();
        split(&bytes, datagram, LIMIT, &mut Arrivals::default(), &mut frames).expect("whole");
        (bytes, frames)
    }

    /// Waits for the end of this call: what it is, and the message.
    fn end_of(&self, call: CallId) -> (Kind, Vec<u8>) {
        loop {
            let (bytes, frames) = self.hear();
            if let Some(end) = frames.into_iter().find(|frame| frame.id == call && frame.kind != Kind::Hello) {
                return (end.kind, end.message.bytes(&bytes).expect("a message").to_vec());
            }
        }
    }
}

/// Serves, and tells when a call has begun.
type Serve = fn(RunCx, Spoken<String, u32, ()>, Sender<()>) -> Result<(), BoxError>;

/// In each case the call in hand never ends, the others wait, and then the master is gone.
fn left_with(calls: &[usize], serve: Serve) {
    let (tell, begun) = mpsc::channel();
    let (mut master, end) = Master::of(move |cx, spoken| serve(cx, spoken, tell));
    master.call_with("for ever");
    begun.recv_timeout(SOON).expect("it has begun");
    for length in calls {
        master.call_with(&"x".repeat(*length));
    }
    drop(master);
    assert_eq!(end.recv_timeout(SOON), Ok(Ok(())), "it goes on behind {} calls", calls.len());
}

/// Nothing waits; some calls do; more do than are read ahead.
const WAITING: [&[usize]; 3] = [&[], &[1, 1, 1], &[60_000; 19]];

#[test]
fn an_entry_point_ends_with_its_master_whatever_is_unanswered_deferred() {
    for calls in WAITING {
        left_with(calls, |cx, spoken, begun| {
            let hold = |held: &mut Vec<Responder<u32>>, _, responder, _: &Events<()>| {
                held.push(responder);
                let _ = begun.send(());
            };
            deferred::serve(cx, spoken, 1, &|_| Ok(Vec::new()), &hold)
        });
    }
}

#[cfg(feature = "tokio")]
#[test]
fn an_entry_point_ends_with_its_master_whatever_is_unanswered_in_tokio() {
    for calls in WAITING {
        left_with(calls, |cx, spoken, begun| {
            let wait = |_, _, _: AsyncCx<()>| {
                let _ = begun.send(());
                std::future::pending()
            };
            runtime::serve(cx, spoken, 1, &|_| Ok(()), &wait)
        });
    }
}

#[test]
fn a_reply_whose_writing_panics_leaves_its_call_unanswered_and_not_waiting_deferred() {
    let (mut master, _end) = Master::of(|cx, spoken| {
        let answer = |(): &mut (), _, responder: Responder<Terrible>, _: &Events<()>| {
            thread::spawn(move || responder.answer(Ok(Terrible)));
        };
        deferred::serve(cx, spoken, 4, &|_| Ok(()), &answer)
    });
    let call = master.call_with("terrible");
    is_unanswered(&master.end_of(call));
}

#[cfg(feature = "tokio")]
#[test]
fn a_reply_whose_writing_panics_leaves_its_call_unanswered_and_not_waiting_in_tokio() {
    let (mut master, _end) = Master::of(|cx, spoken| {
        runtime::serve(cx, spoken, 4, &|_| Ok(()), &|_, _, _: AsyncCx<()>| async { Ok(Terrible) })
    });
    let call = master.call_with("terrible");
    is_unanswered(&master.end_of(call));
}

fn is_unanswered((kind, message): &(Kind, Vec<u8>)) {
    let why: Failed = postcard::from_bytes(message).expect("why");
    assert!(matches!((kind, &why), (Kind::Failed, Failed::Unanswered)), "{why:?}");
}

/// Of two calls the first is cancelled in the datagram that brings both; only the second one is to run.
fn never_begun(serve: Serve) {
    let (tell, begun) = mpsc::channel();
    let (mut master, _end) = Master::of(move |cx, spoken| serve(cx, spoken, tell));
    let (cancelled, wanted) = (master.next_id(), master.next_id());
    let call = || encode_own(&"a call");
    master.say_together([
        (Kind::Call, cancelled, call()),
        (Kind::Cancel, cancelled, Encoded::default()),
        (Kind::Call, wanted, call()),
    ]);
    assert_eq!(master.end_of(wanted), (Kind::Reply, vec![6]));
    assert_eq!(begun.try_iter().count(), 1, "the cancelled one has run");
}

#[test]
fn a_call_that_comes_with_its_cancel_never_runs() {
    never_begun(|cx, spoken, begun| {
        let count = |(): &mut (), text: String, _: &Cx<()>| {
            let _ = begun.send(());
            Ok(text.len() as u32)
        };
        turn::serve(cx, spoken, &|_| Ok(()), &count)
    });
}

#[test]
fn a_call_that_comes_with_its_cancel_never_runs_deferred() {
    never_begun(|cx, spoken, begun| {
        let count = |(): &mut (), text: String, responder: Responder<u32>, _: &Events<()>| {
            let _ = begun.send(());
            responder.answer(Ok(text.len() as u32));
        };
        deferred::serve(cx, spoken, 4, &|_| Ok(()), &count)
    });
}

#[cfg(feature = "tokio")]
#[test]
fn a_call_that_comes_with_its_cancel_never_runs_in_tokio() {
    never_begun(|cx, spoken, begun| {
        let count = |_, text: String, _: AsyncCx<()>| {
            let _ = begun.send(());
            async move { Ok(text.len() as u32) }
        };
        runtime::serve(cx, spoken, 4, &|_| Ok(()), &count)
    });
}

/// Each datagram costs its sender a system call, and its receiver another.
fn together(serve: Serve) {
    const CALLS: usize = 2_000;
    let (tell, _begun) = mpsc::channel();
    let (mut master, _end) = Master::of(move |cx, spoken| serve(cx, spoken, tell));
    for _ in 0..4 {
        let calls: Vec<CallId> = std::iter::repeat_with(|| master.next_id()).take(CALLS / 4).collect();
        master.say_together(calls.into_iter().map(|id| (Kind::Call, id, encode_own(&"a call"))));
    }
    let (mut replies, mut datagrams) = (0, 0);
    while replies < CALLS {
        let (_, frames) = master.hear();
        replies += frames.iter().filter(|frame| frame.kind == Kind::Reply).count();
        datagrams += 1;
    }
    assert!(datagrams <= CALLS / 2, "{replies} replies came in {datagrams} datagrams");
}

#[test]
fn replies_to_quick_calls_that_came_together_travel_together() {
    together(|cx, spoken, _| {
        turn::serve(cx, spoken, &|_| Ok(()), &|(), text: String, _: &Cx<()>| Ok(text.len() as u32))
    });
}

#[test]
fn replies_to_quick_calls_that_came_together_travel_together_deferred() {
    together(|cx, spoken, _| {
        let answer = |(): &mut (), text: String, responder: Responder<u32>, _: &Events<()>| {
            responder.answer(Ok(text.len() as u32));
        };
        deferred::serve(cx, spoken, 100, &|_| Ok(()), &answer)
    });
}

#[cfg(feature = "tokio")]
#[test]
fn replies_to_quick_calls_that_came_together_travel_together_in_tokio() {
    together(|cx, spoken, _| {
        let answer = |_, text: String, _: AsyncCx<()>| async move { Ok(text.len() as u32) };
        runtime::serve(cx, spoken, 100, &|_| Ok(()), &answer)
    });
}

/// Everything that is read ahead was cancelled, so no future comes of it that would wake the thread.
#[cfg(feature = "tokio")]
#[test]
fn what_is_in_the_socket_behind_a_mebibyte_of_cancelled_calls_is_heard_without_a_further_word() {
    use std::sync::{Arc, Mutex};

    use crate::rpc::contract::Body;
    use crate::rpc::lanes::Lanes;

    let (tell, begun) = mpsc::channel();
    let (open, gate) = mpsc::channel::<()>();
    let gate = Arc::new(Mutex::new(gate));
    let (mut master, _end) = Master::of(move |cx, spoken| {
        let handler = |_, text: String, _: AsyncCx<()>| {
            let (tell, gate) = (tell.clone(), Arc::clone(&gate));
            async move {
                if text == "first" {
                    // It holds up the thread until all has been said.
                    let _ = tell.send(());
                    let _ = gate.lock().map(|gate| gate.recv());
                }
                Ok(text.len() as u32)
            }
        };
        runtime::serve(cx, spoken, 10, &|_| Ok(()), &handler)
    });
    master.call_with("first");
    begun.recv_timeout(SOON).expect("it has begun");
    let lanes = Arc::new(Lanes::default());
    // Two of them, each with its cancel, are exactly as much as is read ahead.
    let length = (1 << 19) - 44;
    for _ in 0..12 {
        let body = Body::Lane(lanes.load(&vec![0; length]).expect("a lane"));
        let cancelled = master.call(Encoded { body, length: length as u64, fds: Vec::new() });
        master.say(Kind::Cancel, cancelled, Encoded::default());
    }
    let last = master.call_with("the last");
    open.send(()).expect("it waits");
    let (kind, message) = master.end_of(last);
    assert_eq!((kind, message), (Kind::Reply, vec![8]));
}
