use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use proptest::prelude::*;

use super::*;

const CALL_LIMIT: usize = 5;

/// What happens next in a random life of a conversation.
#[derive(Debug, Clone, Copy)]
enum Act {
    Begin,
    /// With a deadline so many milliseconds away.
    BeginWithin(u64),
    /// So many milliseconds pass.
    Pass(u64),
    /// The socket takes so many of the frames that wait.
    Send(usize),
    /// A send was tried and refused.
    Refuse,
    /// The process takes up the next call that has reached it.
    TakeUp,
    /// The process answers one of those that it has in hand.
    Answer(usize),
    Event,
    /// The master reads so many of the process's frames.
    Receive(usize),
    Cancel(usize),
    /// The process says the same answer again.
    Repeat,
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let act = prop_oneof![
        3 => Just(Act::Begin),
        2 => (0u64..20).prop_map(Act::BeginWithin),
        2 => (0u64..10).prop_map(Act::Pass),
        3 => (1usize..4).prop_map(Act::Send),
        1 => Just(Act::Refuse),
        3 => Just(Act::TakeUp),
        3 => any::<usize>().prop_map(Act::Answer),
        2 => Just(Act::Event),
        3 => (1usize..4).prop_map(Act::Receive),
        1 => any::<usize>().prop_map(Act::Cancel),
        1 => Just(Act::Repeat),
    ];
    proptest::collection::vec(act, 0..200)
}

/// What the process says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Word {
    Answer(CallId, u64),
    Event(u64),
}

/// The world around a conversation, and what a user of it has seen. Tokens are the calls' numbers.
struct World {
    books: Conversation<u64>,
    now: Instant,
    deadlines: BTreeMap<u64, Instant>,
    unsent: VecDeque<(CallId, u64)>,
    arrived: VecDeque<(CallId, u64)>,
    in_hand: Vec<(CallId, u64)>,
    taken_up: Vec<u64>,
    said: Vec<Word>,
    read: usize,
    alive: BTreeMap<u64, CallId>,
    ended: BTreeMap<u64, &'static str>,
    seen: Vec<Word>,
}

impl World {
    fn new() -> World {
        let mut books = Conversation::new(CALL_LIMIT);
        assert_eq!(books.handle(Kind::Hello, CallId::default()), Ok(Step::Hello));
        World {
            books,
            now: Instant::now(),
            deadlines: BTreeMap::new(),
            unsent: VecDeque::new(),
            arrived: VecDeque::new(),
            in_hand: Vec::new(),
            taken_up: Vec::new(),
            said: Vec::new(),
            read: 0,
            alive: BTreeMap::new(),
            ended: BTreeMap::new(),
            seen: Vec::new(),
        }
    }

    fn end(&mut self, call: u64, how: &'static str) {
        assert_eq!(self.ended.insert(call, how), None, "call {call} ended twice");
        assert!(self.alive.remove(&call).is_some());
    }

    fn act(&mut self, act: Act) {
        match act {
            Act::Begin => self.begin(None),
            Act::BeginWithin(millis) => self.begin(Some(self.now + Duration::from_millis(millis))),
            Act::Pass(millis) => {
                self.now += Duration::from_millis(millis);
                self.end_overdue();
            }
            Act::Send(count) => {
                for _ in 0..count {
                    if let Some((id, number)) = self.unsent.pop_front() {
                        self.books.mark_sent(number);
                        self.arrived.push_back((id, number));
                    }
                }
            }
            Act::Refuse => {
                if let Some((_, number)) = self.unsent.front() {
                    let before = self.books.mark_sent(*number);
                    self.books.unmark_sent(before);
                }
            }
            Act::TakeUp => {
                if let Some((id, number)) = self.arrived.pop_front() {
                    self.taken_up.push(number);
                    self.in_hand.push((id, number));
                }
            }
            Act::Answer(which) => {
                if !self.in_hand.is_empty() {
                    let (id, number) = self.in_hand.swap_remove(which % self.in_hand.len());
                    self.said.push(Word::Answer(id, number));
                }
            }
            Act::Event => self.said.push(Word::Event(self.said.len() as u64)),
            Act::Repeat => {
                let answers: Vec<Word> =
                    self.said[..self.read].iter().copied().filter(|word| matches!(word, Word::Answer(..))).collect();
                self.said.extend(answers.last());
            }
            Act::Receive(count) => {
                for _ in 0..count {
                    self.receive();
                }
            }
            Act::Cancel(which) => {
                let calls: Vec<(u64, CallId)> = self.alive.iter().map(|(call, id)| (*call, *id)).collect();
                if !calls.is_empty() {
                    let (call, id) = calls[which % calls.len()];
                    let ended = self.books.cancel(id).expect("it is outstanding");
                    assert_eq!(ended.token, call);
                    assert_eq!(ended.may_have_run, !self.unsent.iter().any(|(_, unsent)| *unsent == call));
                    assert_eq!(self.books.cancel(id), None);
                    self.end(call, "cancelled");
                }
            }
        }
        assert_eq!(self.books.outstanding(), self.alive.len());
        let alive = |call: &u64| self.alive.contains_key(call);
        let next = self.deadlines.iter().filter(|(call, _)| alive(call)).map(|(_, deadline)| *deadline).min();
        assert_eq!(self.books.next_deadline(), next);
    }

    fn begin(&mut self, deadline: Option<Instant>) {
        let number = self.books.begun + 1;
        match self.books.begin(number, deadline) {
            Ok((id, begun)) => {
                assert_eq!(begun, number);
                assert!(self.alive.insert(number, id).is_none());
                assert_eq!(self.alive.values().filter(|other| **other == id).count(), 1);
                self.unsent.push_back((id, number));
                self.deadlines.extend(deadline.map(|deadline| (number, deadline)));
            }
            Err(token) => {
                assert_eq!(token, number);
                assert_eq!(self.alive.len(), CALL_LIMIT);
            }
        }
    }

    fn end_overdue(&mut self) {
        let mut last = None;
        while let Some((id, Ended { token, may_have_run })) = self.books.take_overdue(self.now) {
            let deadline = self.deadlines[&token];
            assert!(deadline <= self.now && last <= Some(deadline), "the earliest first, and none too early");
            last = Some(deadline);
            assert_eq!(self.alive[&token], id);
            assert_eq!(may_have_run, !self.unsent.iter().any(|(_, unsent)| *unsent == token));
            assert_eq!(self.books.cancel(id), None);
            self.end(token, "overdue");
        }
    }

    fn receive(&mut self) {
        let Some(word) = self.said.get(self.read).copied() else { return };
        self.read += 1;
        match word {
            Word::Event(_) => {
                assert_eq!(self.books.handle(Kind::Event, CallId::default()), Ok(Step::Event));
                self.seen.push(word);
            }
            Word::Answer(id, number) => match self.books.handle(Kind::Reply, id) {
                Ok(Step::End(token)) => {
                    assert_eq!(token, number, "a reply reached another caller");
                    self.end(number, "answered");
                    self.seen.push(word);
                }
                Ok(Step::Late) => assert!(self.ended.contains_key(&number)),
                other => panic!("{other:?}"),
            },
        }
    }

    /// The process dies; what it has said can still be read.
    fn die(mut self) {
        while self.read < self.said.len() {
            self.receive();
        }
        let outstanding: Vec<u64> = self.alive.keys().copied().collect();
        let ended = self.books.end();
        assert_eq!(ended.iter().map(|ended| ended.token).collect::<Vec<_>>(), outstanding, "in their order, each once");
        for Ended { token, may_have_run } in ended {
            let unsent = self.unsent.iter().any(|(_, unsent)| *unsent == token);
            assert_eq!(may_have_run, !unsent);
            assert!(may_have_run || !self.taken_up.contains(&token));
            self.end(token, "lost");
        }
        assert_eq!(self.ended.len() as u64, self.books.begun, "every call has ended");
        assert!(self.books.end().is_empty());
        assert!(self.books.begin(0, None).is_err());
        // What was seen is what was said, in that order, without what came too late.
        let late = |word: &Word| matches!(word, Word::Answer(_, number) if self.ended[number] != "answered");
        let mut said: Vec<Word> = Vec::new();
        for word in self.said.iter().filter(|word| !late(word)) {
            if matches!(word, Word::Event(_)) || !said.contains(word) {
                said.push(*word);
            }
        }
        assert_eq!(self.seen, said);
    }
}

proptest! {
    #[test]
    fn any_interleaving_of_calls_events_cancels_and_deaths_keeps_order_and_ends_each_call_once(acts in acts()) {
        let mut world = World::new();
        for act in acts {
            world.act(act);
        }
        world.die();
    }

    #[test]
    fn no_frame_whatever_makes_the_books_panic_or_lose_a_call(
        frames in proptest::collection::vec((0usize..7, 0u32..4, prop_oneof![0u32..3, any::<u32>()]), 0..50),
    ) {
        let kinds = [Kind::Hello, Kind::Call, Kind::Cancel, Kind::Reply, Kind::Failed, Kind::Event, Kind::Refused];
        let mut books = Conversation::new(3);
        let mut ended = Vec::new();
        for (index, (kind, place, generation)) in frames.into_iter().enumerate() {
            if let Ok((_, number)) = books.begin(index, None)
                && index % 2 == 0
            {
                books.mark_sent(number);
            }
            if let Ok(Step::End(token)) = books.handle(kinds[kind], CallId { place, generation }) {
                ended.push(token);
            }
        }
        let outstanding = books.outstanding();
        let rest: Vec<usize> = books.end().into_iter().map(|ended| ended.token).collect();
        prop_assert_eq!(rest.len(), outstanding);
        ended.extend(rest);
        let count = ended.len();
        ended.sort_unstable();
        ended.dedup();
        prop_assert_eq!(ended.len(), count);
        prop_assert_eq!(count as u64, books.begun);
    }
}

#[test]
fn a_process_that_never_said_its_first_word_has_run_nothing() {
    let mut books = Conversation::new(3);
    let (_, number) = books.begin("call", None).expect("room");
    books.mark_sent(number);
    assert_eq!(books.handle(Kind::Refused, CallId::default()), Ok(Step::Refused));
    assert_eq!(books.end(), [Ended { token: "call", may_have_run: false }]);
}

#[test]
fn what_a_process_may_not_say_is_refused() {
    let mut books = Conversation::new(3);
    assert!(books.handle(Kind::Event, CallId::default()).is_err());
    assert_eq!(books.handle(Kind::Hello, CallId::default()), Ok(Step::Hello));
    assert!(books.handle(Kind::Hello, CallId::default()).is_err());
    let (id, number) = books.begin("call", None).expect("room");
    assert!(books.handle(Kind::Reply, id).is_err(), "it was not sent");
    books.mark_sent(number);
    assert!(books.handle(Kind::Reply, CallId { generation: 1, ..id }).is_err());
    assert!(books.handle(Kind::Reply, CallId { place: 9, ..id }).is_err());
    assert!(books.handle(Kind::Call, id).is_err());
    assert_eq!(books.handle(Kind::Failed, id), Ok(Step::End("call")));
    assert_eq!(books.handle(Kind::Reply, id), Ok(Step::Late));
}
