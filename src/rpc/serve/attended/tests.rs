//! Conversations beside other work; the test is the loop, and the master too.

use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::thread;

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollTimeout};

use super::*;
use crate::rpc::codec::Postcard;
use crate::rpc::contract::{Encoded, Hello, PROTOCOL, encode_own};
use crate::rpc::error::Error;
use crate::rpc::lanes::Arrivals;
use crate::rpc::wire::{Kind, Outbox, split};
use crate::sys::seqpacket;

const LIMIT: u64 = 1 << 20;

/// So many bytes of events may wait.
const QUEUED: u64 = 64 << 10;

type Message = Vec<u8>;

/// A loop with one conversation, and its master.
struct Bench {
    ready: Arc<Epoll>,
    serving: Box<dyn Attended>,
    events: Events<Message>,
    master: OwnedFd,
    served: Rc<RefCell<Vec<u32>>>,
}

impl Bench {
    fn new() -> Bench {
        let ready = Arc::new(Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).expect("an epoll instance"));
        let (socket, master) = seqpacket::pair().expect("a pair");
        let served = Rc::new(RefCell::new(Vec::new()));
        let record = Rc::clone(&served);
        let handler = move |call: u32, cx: &Cx<Message>| {
            record.borrow_mut().push(call);
            cx.events.send(&vec![1])?;
            match call {
                13 => panic!("no luck"),
                99 => Ok(vec![0; 60_000]),
                _ => Ok(Vec::new()),
            }
        };
        let loop_ = Loop { ready: Arc::clone(&ready), queued: QUEUED };
        let (serving, events) = open::<u32, Message, Message, Postcard>(socket, loop_, handler).expect("opened");
        Bench { ready, serving, events, master, served }
    }

    /// With both first words said.
    fn greeted() -> Bench {
        let mut bench = Bench::new();
        bench.greet();
        assert!(matches!(bench.serving.look(), Seen::Nothing));
        assert_eq!(bench.heard(), [(Kind::Hello, 0)]);
        bench
    }

    fn greet(&mut self) {
        let contract = Contract::of::<u32, Message, Message, Postcard>();
        self.say(Kind::Hello, 0, encode_own(&Hello { protocol: PROTOCOL, contract, limit: LIMIT }));
    }

    fn say(&self, kind: Kind, place: u32, message: Encoded) {
        let mut outbox = Outbox::default();
        outbox.push(kind, CallId { place, generation: 0 }, message, 0);
        outbox.pop().expect("a datagram").send(self.master.as_fd());
    }

    fn call(&self, number: u32) {
        self.say(Kind::Call, number, encode_own(&number));
    }

    /// Whether the loop is told that there is something to do.
    fn is_ready(&self) -> bool {
        self.ready.wait(&mut [EpollEvent::empty()], EpollTimeout::ZERO).expect("waited") > 0
    }

    /// What the master hears by now: the kinds, and the length of events or the place of calls.
    fn heard(&self) -> Vec<(Kind, u64)> {
        let (mut heard, mut arrivals, mut buffer) = (Vec::new(), Arrivals::default(), Vec::new());
        while let Ok(Some(datagram)) = seqpacket::receive(self.master.as_fd(), &mut buffer) {
            let mut frames = Vec::new();
            split(&buffer, datagram, LIMIT, &mut arrivals, &mut frames).expect("whole");
            heard.extend(frames.iter().map(|frame| match frame.kind {
                Kind::Event => (Kind::Event, frame.message.bytes(&buffer).expect("a message").len() as u64),
                kind => (kind, frame.id.place.into()),
            }));
        }
        heard
    }

    /// Does all that there is to do.
    fn work(&mut self) {
        while let Seen::Call = self.serving.look() {
            let _ = self.serving.serve();
        }
    }

    /// Sends events of a kibibyte until one is refused, and says how many were taken.
    fn flood(&self) -> usize {
        (0..).find(|_| matches!(self.events.send(&vec![0; 1024]), Err(Error::Full))).expect("a limit")
    }
}

#[test]
fn nothing_is_said_before_the_master_and_events_wait_for_it_up_to_the_limit() {
    let mut bench = Bench::new();
    bench.events.send(&vec![0; 10]).expect("taken");
    bench.events.send(&vec![0; 2 << 20]).expect("taken");
    assert!(matches!(bench.events.send(&vec![0; 20]), Err(Error::Full)), "the limit");
    assert!(!bench.is_ready());
    assert!(matches!(bench.serving.look(), Seen::Nothing));
    assert_eq!(bench.heard(), []);
    bench.greet();
    assert!(bench.is_ready());
    assert!(matches!(bench.serving.look(), Seen::Nothing));
    bench.events.send(&vec![0; 30]).expect("taken");
    // What is longer than the master allows is not among them.
    assert_eq!(bench.heard(), [(Kind::Hello, 0), (Kind::Event, 11), (Kind::Event, 31)]);
}

#[test]
fn calls_are_served_in_their_order_and_a_panic_or_a_cancel_is_one_calls_alone() {
    let mut bench = Bench::greeted();
    for number in [1, 2, 13, 3] {
        bench.call(number);
    }
    bench.say(Kind::Cancel, 2, Encoded::default());
    assert!(bench.is_ready());
    bench.work();
    assert_eq!(*bench.served.borrow(), [1, 13, 3], "the cancelled one was never begun");
    let ends: Vec<_> = bench.heard().into_iter().filter(|(kind, _)| *kind != Kind::Event).collect();
    assert_eq!(ends, [(Kind::Reply, 1), (Kind::Failed, 2), (Kind::Failed, 13), (Kind::Reply, 3)]);
    assert!(!bench.is_ready());
}

#[test]
fn a_cancel_that_comes_during_the_call_before_is_heard() {
    let mut bench = Bench::greeted();
    bench.call(1);
    bench.call(2);
    assert!(matches!(bench.serving.look(), Seen::Call));
    bench.say(Kind::Cancel, 2, Encoded::default());
    bench.serving.serve().expect("no panic");
    bench.work();
    assert_eq!(*bench.served.borrow(), [1]);
}

#[test]
fn where_the_master_does_not_listen_nothing_waits_and_the_loop_hears_of_room() {
    let mut bench = Bench::greeted();
    let taken = bench.flood();
    // What the socket takes, and the limit.
    assert!(taken > 64, "{taken}");
    // A call that has come is left there meanwhile, and the loop is not told of it over and over.
    bench.call(1);
    assert!(!bench.is_ready());
    assert!(matches!(bench.serving.look(), Seen::Nothing));
    let mut heard = bench.heard();
    assert!(bench.is_ready(), "there is room");
    bench.work();
    heard.extend(bench.heard());
    bench.work();
    heard.extend(bench.heard());
    let events = heard.iter().take_while(|(kind, _)| *kind == Kind::Event).count();
    assert_eq!(events, taken + 1, "the call's own is the last");
    assert_eq!(heard.last(), Some(&(Kind::Reply, 1)));
    assert!(!bench.serving.is_unsent() && !bench.is_ready());
}

#[test]
fn replies_to_a_master_that_does_not_listen_never_pile_up() {
    let mut bench = Bench::greeted();
    for _ in 0..20 {
        bench.call(99);
    }
    bench.work();
    let served = bench.served.borrow().len();
    assert!((1..20).contains(&served), "{served}");
    while bench.served.borrow().len() < 20 || bench.serving.is_unsent() {
        bench.heard();
        bench.work();
    }
}

#[test]
fn events_of_another_thread_wake_the_loop_when_there_is_room() {
    let mut bench = Bench::greeted();
    bench.flood();
    bench.heard();
    bench.work();
    bench.heard();
    let events = bench.events.clone();
    let taken = thread::spawn(move || (0..).find(|_| events.send(&vec![0; 1024]).is_err()).expect("a limit"));
    let taken = taken.join().expect("it does not wait");
    assert!(!bench.is_ready());
    let mut heard = bench.heard().len();
    assert!(bench.is_ready());
    bench.work();
    heard += bench.heard().len();
    assert_eq!(heard, taken);
}

#[test]
fn the_masters_end_is_the_end_and_events_go_nowhere_then() {
    for mut bench in [Bench::new(), Bench::greeted()] {
        bench.master = seqpacket::pair().expect("a pair").0;
        assert!(bench.is_ready());
        assert!(matches!(bench.serving.look(), Seen::Over(None)));
        bench.serving.leave();
        assert!(!bench.is_ready(), "the loop hears nothing more of it");
        for _ in 0..1000 {
            bench.events.send(&vec![0; 1024]).expect("dropped");
        }
    }
}

#[test]
fn calls_from_before_the_masters_end_are_served() {
    let mut bench = Bench::greeted();
    bench.call(1);
    bench.call(2);
    seqpacket::shut_write(bench.master.as_fd());
    bench.work();
    assert_eq!(*bench.served.borrow(), [1, 2]);
    assert!(matches!(bench.serving.look(), Seen::Over(None)));
}

#[test]
fn what_a_master_may_not_say_is_an_error_that_is_told_once() {
    let nonsense: [fn(&mut Bench); 3] = [
        |bench| bench.say(Kind::Event, 0, Encoded::default()),
        |bench| bench.call(1),
        |bench| seqpacket::send(bench.master.as_fd(), b"half a frame", &[]).expect("sent"),
    ];
    for say in nonsense {
        let mut bench = Bench::new();
        say(&mut bench);
        assert!(matches!(bench.serving.look(), Seen::Over(Some(_))));
    }
    let mut bench = Bench::greeted();
    bench.say(Kind::Call, 1, encode_own(&[0xFFu8; 9]));
    assert!(matches!(bench.serving.look(), Seen::Call));
    bench.serving.serve().expect("no panic");
    assert!(matches!(bench.serving.look(), Seen::Over(Some(_))));
    assert_eq!(bench.heard(), [(Kind::Refused, 0)]);
}
