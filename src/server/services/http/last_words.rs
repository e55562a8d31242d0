//! The responses of a worker that dies: constants, because a signal handler sends them.
//!
//! They go without a date, which RFC 9110 §6.6.1 leaves open for a 5xx.

use crate::server::LastWords;

macro_rules! response {
    ($status:literal, $length:literal, $text:literal) => {
        concat!(
            "HTTP/1.1 ",
            $status,
            "\r\nContent-Type: text/plain\r\nContent-Length: ",
            $length,
            "\r\nConnection: close\r\n\r\n",
            $status,
            ": ",
            $text,
            "\n"
        )
        .as_bytes()
    };
}

const TOO_LATE: &[u8] = response!("504 Gateway Timeout", 71, "the request took too long, and was ended by force");
const CRASHED: &[u8] = response!("502 Bad Gateway", 52, "the worker crashed on this request");

const WHOLE: LastWords = LastWords { deadline: TOO_LATE, crash: CRASHED };
const HEADS: LastWords = LastWords { deadline: without_body(TOO_LATE), crash: without_body(CRASHED) };

/// What a client of HTTP is told; in answer to a HEAD, without the body.
pub(crate) const fn last_words(head_only: bool) -> LastWords {
    if head_only { HEADS } else { WHOLE }
}

/// Up to the empty line.
const fn without_body(response: &'static [u8]) -> &'static [u8] {
    let mut rest = response;
    while let [_, tail @ ..] = rest {
        if let [b'\r', b'\n', b'\r', b'\n', body @ ..] = rest {
            return response.split_at(response.len() - body.len()).0;
        }
        rest = tail;
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_a_whole_response_that_ends_the_connection() {
        let (whole, heads) = (last_words(false), last_words(true));
        for (response, head_only, status) in
            [(whole.deadline, heads.deadline, "504 Gateway Timeout"), (whole.crash, heads.crash, "502 Bad Gateway")]
        {
            let text = str::from_utf8(response).expect("text");
            let (head, body) = text.split_once("\r\n\r\n").expect("an empty line");
            let mut lines = head.lines();
            assert_eq!(lines.next(), Some(format!("HTTP/1.1 {status}").as_str()));
            let fields: Vec<&str> = lines.collect();
            let length = format!("Content-Length: {}", body.len());
            assert_eq!(fields, ["Content-Type: text/plain", &length, "Connection: close"]);
            assert!(body.starts_with(&format!("{status}: ")) && body.ends_with('\n'), "{body:?}");
            assert_eq!(head_only, format!("{head}\r\n\r\n").as_bytes());
        }
    }
}
