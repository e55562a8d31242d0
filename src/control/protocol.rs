//! What is said at a control socket, as types and as lines.

use serde::{Deserialize, Serialize};

use crate::server::{ReloadEnd, Status};

/// The version of what is said.
pub const VERSION: u32 = 1;

/// The longest question in bytes, with the newline at its end.
pub const LONGEST_REQUEST: usize = 4096;

/// What can be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Request {
    /// How the server stands.
    Status,
    /// Reload, and say how it ended.
    Reload,
}

/// What is answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "snake_case")]
pub(crate) enum Answer {
    Status(Status),
    Reload(ReloadEnd),
    Refused(Refused),
}

/// A question is not answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{why}")]
#[non_exhaustive]
pub struct Refused {
    /// For programs.
    pub reason: Refusal,
    /// For people, with what to do.
    pub why: String,
}

/// Why a question is not answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Refusal {
    /// It is no question of this version.
    Malformed,
    /// It is of another version.
    OtherVersion,
    /// It is longer than [`LONGEST_REQUEST`].
    TooLong,
    /// It did not come whole within [`PATIENCE`](super::PATIENCE).
    TooSlow,
    /// Too many ask already.
    Busy,
    /// Only the user of the master and root may ask.
    OtherUser,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RequestLine {
    version: u32,
    request: Request,
}

/// What each version has in common.
#[derive(Deserialize)]
struct AnyLine {
    version: u32,
}

#[derive(Serialize, Deserialize)]
struct AnswerLine {
    version: u32,
    #[serde(flatten)]
    answer: Answer,
}

/// Reads a question, without the newline at its end.
pub(crate) fn read_request(line: &[u8]) -> Result<Request, Refused> {
    let malformed = |error: serde_json::Error| Refused {
        reason: Refusal::Malformed,
        why: format!(
            "this is no question: {error}; write for example {{\"version\":{VERSION},\"request\":\"status\"}}"
        ),
    };
    let AnyLine { version } = serde_json::from_slice(line).map_err(malformed)?;
    if version != VERSION {
        let why = format!("the question is of version {version}, this server speaks version {VERSION}");
        return Err(Refused { reason: Refusal::OtherVersion, why });
    }
    let RequestLine { request, .. } = serde_json::from_slice(line).map_err(malformed)?;
    Ok(request)
}

/// Writes a question, with the newline at its end.
pub(crate) fn write_request(request: Request) -> Vec<u8> {
    line_of(&RequestLine { version: VERSION, request })
}

/// Reads an answer.
pub(crate) fn read_answer(line: &[u8]) -> Result<Answer, serde_json::Error> {
    let AnswerLine { answer, .. } = serde_json::from_slice(line)?;
    Ok(answer)
}

/// Writes an answer, with the newline at its end.
pub(crate) fn write_answer(answer: Answer) -> Vec<u8> {
    line_of(&AnswerLine { version: VERSION, answer })
}

fn line_of(value: &impl Serialize) -> Vec<u8> {
    let mut line = serde_json::to_vec(value).expect("numbers and texts can be written");
    line.push(b'\n');
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::{Generation, ReloadOutcome};

    #[test]
    fn questions_are_written_as_the_documentation_says_and_read_again() {
        for (request, line) in [
            (Request::Status, "{\"version\":1,\"request\":\"status\"}\n"),
            (Request::Reload, "{\"version\":1,\"request\":\"reload\"}\n"),
        ] {
            assert_eq!(String::from_utf8(write_request(request)).expect("text"), line);
            assert_eq!(read_request(line.trim_end().as_bytes()), Ok(request));
        }
    }

    #[test]
    fn what_is_no_question_of_this_version_is_refused_and_told_apart() {
        for (line, reason) in [
            ("", Refusal::Malformed),
            ("GET / HTTP/1.1\r", Refusal::Malformed),
            ("{}", Refusal::Malformed),
            ("[1]", Refusal::Malformed),
            ("{\"version\":1}", Refusal::Malformed),
            ("{\"version\":1,\"request\":\"halt\"}", Refusal::Malformed),
            ("{\"version\":1,\"request\":\"status\",\"verbose\":true}", Refusal::Malformed),
            ("{\"version\":1,\"request\":\"status\"} {}", Refusal::Malformed),
            ("{\"version\":2,\"request\":\"halt\",\"now\":true}", Refusal::OtherVersion),
        ] {
            let refused = read_request(line.as_bytes()).expect_err(line);
            assert_eq!(refused.reason, reason, "{line}");
        }
        assert!(read_request(&b"[".repeat(LONGEST_REQUEST)).is_err());
    }

    #[test]
    fn an_answer_is_one_line_of_flat_fields_whatever_the_words_hold() {
        let why = "two\nlines and \"quotes\"".to_owned();
        let end =
            ReloadEnd { generation: Some(Generation(7)), outcome: ReloadOutcome::RolledBack { why }, took_ms: 12 };
        let line = String::from_utf8(write_answer(Answer::Reload(end.clone()))).expect("text");
        assert_eq!(
            line,
            "{\"version\":1,\"answer\":\"reload\",\"generation\":7,\"outcome\":\"rolled_back\",\
             \"why\":\"two\\nlines and \\\"quotes\\\"\",\"took_ms\":12}\n"
        );
        assert_eq!(read_answer(line.as_bytes()).expect("an answer"), Answer::Reload(end));
    }

    #[test]
    fn a_status_reads_again_as_it_was_written() {
        let status = r#"{"version":1,"answer":"status","pid":7,"hatchery_version":"0.1.0","state":"degraded","health":"short","upgrading":true,"uptime_ms":5,"generation":3,"incoming":4,"workers":2,"last_reload":{"generation":3,"outcome":"called_off","why":"x","took_ms":1,"ago_ms":2},"slots":[{"slot":0,"workers":[{"pid":null,"generation":3,"state":"starting","age_ms":1,"request_ms":null,"requests":0,"connections":0,"parked":0,"label":""}]},{"slot":1,"workers":[]}]}"#;
        let answer = read_answer(status.as_bytes()).expect("an answer");
        assert_eq!(String::from_utf8(write_answer(answer)).expect("text"), format!("{status}\n"));
    }
}
