//! What holds for whatever a client of the control socket says.

use std::time::Instant;

use super::protocol::{self, Answer, LONGEST_REQUEST, Refusal};
use super::session::{Session, Turn};

/// A client's words; the first byte says how they are cut. Each question is answered or refused, in its order, however the
/// words are cut, and nothing is kept beyond the bounds.
pub(crate) fn control(data: &[u8]) {
    let Some((&cut, words)) = data.split_first() else {
        return;
    };
    let whole = converse(words, words.len().max(1));
    assert_eq!(converse(words, usize::from(cut).max(1)), whole, "cut into pieces of {cut}");
    for line in words.split(|&byte| byte == b'\n') {
        if let Ok(request) = protocol::read_request(line) {
            let written = protocol::write_request(request);
            assert_eq!(protocol::read_request(&written[..written.len() - 1]), Ok(request));
        }
    }
}

/// What the words lead to, in pieces of so many bytes.
fn converse(words: &[u8], piece: usize) -> Vec<Result<protocol::Request, Refusal>> {
    let now = Instant::now();
    let mut session = Session::new(now);
    let mut heard = Vec::new();
    for piece in words.chunks(piece) {
        session.handle_input(piece);
        loop {
            match (session.poll_request(now), session.turn()) {
                (Some(request), _) => {
                    heard.push(Ok(request));
                    session.answer(b"\n".to_vec(), now);
                }
                (None, Turn::Taking) => {
                    if let Ok(Answer::Refused(refused)) = protocol::read_answer(session.poll_output()) {
                        heard.push(Err(refused.reason));
                    }
                    session.handle_sent(session.poll_output().len(), now);
                }
                (None, Turn::Over) => return heard,
                (None, turn) => {
                    assert_eq!(turn, Turn::Asking);
                    assert!(session.poll_output().is_empty());
                    break;
                }
            }
        }
    }
    let tail = words.rsplit(|&byte| byte == b'\n').next().unwrap_or_default();
    assert!(tail.len() < LONGEST_REQUEST, "who never ends a question is refused");
    heard
}
