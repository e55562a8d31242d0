//! One client's conversation, without its socket: what has come, what is to be answered, and by when.

use std::time::{Duration, Instant};

use super::protocol::{self, Answer, LONGEST_REQUEST, Refusal, Refused, Request};

/// How long a client may take for a question, and as long for taking an answer.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// Whose turn it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Turn {
    /// The client is to ask.
    Asking,
    /// The master is to answer; what the client says meanwhile is not read.
    Answering,
    /// The client is to take the answer.
    Taking,
    /// It is over.
    Over,
}

/// The state of a conversation.
#[derive(Debug)]
pub(super) struct Session {
    turn: Turn,
    /// By when the client's turn is to end.
    deadline: Option<Instant>,
    /// What has come and is not answered yet.
    input: Vec<u8>,
    output: Vec<u8>,
    /// How much of it is sent.
    sent: usize,
    /// Nothing follows what is to be sent.
    is_last: bool,
}

impl Session {
    pub(super) fn new(now: Instant) -> Session {
        Session {
            turn: Turn::Asking,
            deadline: Some(now + PATIENCE),
            input: Vec::new(),
            output: Vec::new(),
            sent: 0,
            is_last: false,
        }
    }

    pub(super) fn turn(&self) -> Turn {
        self.turn
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// The client has said this, in its turn.
    pub(super) fn handle_input(&mut self, bytes: &[u8]) {
        self.input.extend_from_slice(bytes);
    }

    /// The client says nothing more. What it has said whole is answered.
    pub(super) fn handle_end_of_input(&mut self) {
        if self.turn == Turn::Asking {
            self.turn = Turn::Over;
        }
    }

    /// So much of what was to be sent is.
    pub(super) fn handle_sent(&mut self, count: usize, now: Instant) {
        self.sent += count;
        if self.sent < self.output.len() {
            return;
        }
        (self.output, self.sent) = (Vec::new(), 0);
        self.turn = if self.is_last { Turn::Over } else { Turn::Asking };
        self.deadline = (!self.is_last).then(|| now + PATIENCE);
    }

    /// The client cannot be reached any more.
    pub(super) fn handle_broken(&mut self) {
        self.turn = Turn::Over;
    }

    /// The time is over. Who has asked too slowly is told so, if he listens.
    pub(super) fn handle_timeout(&mut self, now: Instant) {
        if self.deadline.is_none_or(|deadline| deadline > now) {
            return;
        }
        match self.turn {
            Turn::Asking => {
                let why = format!("no whole question came within {PATIENCE:?}");
                self.refuse(Refused { reason: Refusal::TooSlow, why }, now);
            }
            _ => self.turn = Turn::Over,
        }
    }

    /// The next question, if it has come whole; then it is the master's turn.
    pub(super) fn poll_request(&mut self, now: Instant) -> Option<Request> {
        if self.turn != Turn::Asking {
            return None;
        }
        let end = self.input.iter().position(|&byte| byte == b'\n');
        if end.unwrap_or(self.input.len()) >= LONGEST_REQUEST {
            let why = format!("the question is longer than {LONGEST_REQUEST} bytes");
            self.refuse(Refused { reason: Refusal::TooLong, why }, now);
            return None;
        }
        let request = protocol::read_request(&self.input[..end?]);
        self.input.drain(..=end?);
        match request {
            Ok(request) => {
                (self.turn, self.deadline) = (Turn::Answering, None);
                Some(request)
            }
            Err(refused) => {
                self.refuse(refused, now);
                None
            }
        }
    }

    /// What is to be sent next.
    pub(super) fn poll_output(&self) -> &[u8] {
        &self.output[self.sent..]
    }

    /// The question's answer, as a line.
    pub(super) fn answer(&mut self, line: Vec<u8>, now: Instant) {
        if self.turn == Turn::Answering {
            (self.turn, self.deadline) = (Turn::Taking, Some(now + PATIENCE));
            self.output = line;
        }
    }

    /// Says why not, and nothing after it.
    pub(super) fn refuse(&mut self, refused: Refused, now: Instant) {
        self.is_last = true;
        (self.turn, self.deadline) = (Turn::Taking, Some(now + PATIENCE));
        self.output = protocol::write_answer(Answer::Refused(refused));
        self.input = Vec::new();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATUS: &[u8] = b"{\"version\":1,\"request\":\"status\"}\n";
    const RELOAD: &[u8] = b"{\"version\":1,\"request\":\"reload\"}\n";

    fn refusal(session: &Session) -> Refusal {
        match protocol::read_answer(session.poll_output()).expect("an answer") {
            Answer::Refused(refused) => refused.reason,
            other => panic!("{other:?} is no refusal"),
        }
    }

    #[test]
    fn questions_are_answered_one_after_the_other_however_they_come() {
        let now = Instant::now();
        let both = [STATUS, RELOAD].concat();
        for cut in 0..=both.len() {
            let mut session = Session::new(now);
            let mut asked = Vec::new();
            let mut parts = [&both[..cut], &both[cut..]].into_iter();
            while asked.len() < 2 {
                if let Some(request) = session.poll_request(now) {
                    asked.push(request);
                    assert_eq!(
                        (session.turn(), session.deadline()),
                        (Turn::Answering, None),
                        "the master takes its time"
                    );
                    assert_eq!(session.poll_request(now), None, "one at a time");
                    session.answer(b"answer\n".to_vec(), now);
                    assert_eq!(session.poll_output(), b"answer\n");
                    session.handle_sent(3, now);
                    assert_eq!((session.turn(), session.poll_output()), (Turn::Taking, &b"wer\n"[..]));
                    session.handle_sent(4, now);
                } else {
                    session.handle_input(parts.next().expect("both were to be found"));
                }
            }
            assert_eq!(asked, [Request::Status, Request::Reload]);
            session.handle_end_of_input();
            assert_eq!(session.turn(), Turn::Over);
        }
    }

    #[test]
    fn nonsense_is_refused_and_ends_the_conversation() {
        let now = Instant::now();
        let mut session = Session::new(now);
        session.handle_input(b"hello\n");
        session.handle_input(STATUS);
        assert_eq!(session.poll_request(now), None);
        assert_eq!(refusal(&session), Refusal::Malformed);
        session.handle_sent(session.poll_output().len(), now);
        assert_eq!(session.turn(), Turn::Over);
        assert_eq!(session.poll_request(now), None);
    }

    #[test]
    fn a_question_without_an_end_is_refused_at_the_bound_and_not_before() {
        let now = Instant::now();
        let mut session = Session::new(now);
        session.handle_input(&vec![b' '; LONGEST_REQUEST - STATUS.len()]);
        assert_eq!((session.poll_request(now), session.turn()), (None, Turn::Asking));
        session.handle_input(STATUS);
        assert_eq!(session.poll_request(now), Some(Request::Status), "it is just as long as it may be");
        let mut session = Session::new(now);
        session.handle_input(&vec![b' '; LONGEST_REQUEST]);
        assert_eq!(session.poll_request(now), None);
        assert_eq!(refusal(&session), Refusal::TooLong);
    }

    #[test]
    fn who_dribbles_has_no_more_time_than_who_says_nothing() {
        let now = Instant::now();
        let late = now + PATIENCE;
        let mut session = Session::new(now);
        session.handle_input(&STATUS[..5]);
        assert_eq!(session.poll_request(late), None);
        session.handle_timeout(late - Duration::from_millis(1));
        assert_eq!(session.turn(), Turn::Asking);
        session.handle_timeout(late);
        assert_eq!(refusal(&session), Refusal::TooSlow);
        session.handle_timeout(late + PATIENCE);
        assert_eq!(session.turn(), Turn::Over, "he does not listen either");
    }

    #[test]
    fn who_does_not_take_the_answer_is_left_and_who_does_may_ask_again() {
        let now = Instant::now();
        let mut session = Session::new(now);
        session.handle_input(STATUS);
        assert_eq!(session.poll_request(now), Some(Request::Status));
        session.handle_timeout(now + 100 * PATIENCE);
        assert_eq!(session.turn(), Turn::Answering, "it is not the client's turn");
        session.answer(b"long\n".to_vec(), now);
        session.handle_sent(1, now + PATIENCE / 2);
        session.handle_timeout(now + PATIENCE);
        assert_eq!(session.turn(), Turn::Over, "a byte now and then does not help");

        let mut session = Session::new(now);
        session.handle_input(STATUS);
        assert!(session.poll_request(now).is_some());
        session.answer(b"long\n".to_vec(), now);
        session.handle_sent(5, now + PATIENCE / 2);
        assert_eq!(session.deadline(), Some(now + PATIENCE / 2 + PATIENCE));
    }
}
