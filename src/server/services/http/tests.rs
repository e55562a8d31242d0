//! What a head may look like, and what is refused: one row, one rule.

use super::body::{Body, MAX_BODY};
use super::*;

fn head(received: &str) -> Head<'_> {
    match parse(received.as_bytes()) {
        Ok(Parsed::Head(head)) => head,
        other => panic!("{received:?} gives {other:?}"),
    }
}

fn refused(received: &[u8]) -> u16 {
    match parse(received) {
        Err(refusal) => refusal.status as u16,
        other => panic!("{:?} gives {other:?}", String::from_utf8_lossy(received)),
    }
}

/// A request with a Host field and these lines beside it.
fn with(lines: &str) -> String {
    format!("GET / HTTP/1.1\r\nHost: h\r\n{lines}\r\n")
}

#[test]
fn a_head_is_taken_apart() {
    let text = "POST /a/b?x=1&y=2 HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\nabc";
    assert_eq!(
        head(text),
        Head {
            method: "POST",
            path: "/a/b",
            query: "x=1&y=2",
            label: b"POST /a/b",
            length: text.len() - 3,
            framing: Framing::Length(3),
            persistence: Persistence::Keep,
            expects_continue: true,
        }
    );
}

#[test]
fn targets_come_in_origin_absolute_and_asterisk_form() {
    for (line, path, query) in [
        ("GET /p?q", "/p", "q"),
        ("GET //p//?", "//p//", ""),
        ("GET http://h/p?q", "/p", "q"),
        ("GET HTTPS://h", "/", ""),
        ("GET http://h?q", "/", "q"),
        ("OPTIONS *", "*", ""),
    ] {
        let text = format!("{line} HTTP/1.1\r\nHost: h\r\n\r\n");
        assert_eq!((head(&text).path, head(&text).query), (path, query), "{line}");
    }
}

#[test]
fn keep_alive_follows_the_version_and_the_connection_field() {
    use Persistence::{Close, Keep, KeepSaid};
    for (minor, field, expected) in [
        (1, "", Keep),
        (1, "Connection: keep-alive\r\n", Keep),
        (1, "Connection: close\r\n", Close),
        (1, "connection: Foo,\tCLOSE , bar\r\n", Close),
        (1, "Connection: closed\r\n", Keep),
        (1, "Connection: keep-alive\r\nConnection: close\r\n", Close),
        (0, "", Close),
        (0, "Connection: Keep-Alive\r\n", KeepSaid),
        (0, "Connection: keep-alive, close\r\n", Close),
    ] {
        let text = format!("GET / HTTP/1.{minor}\r\nHost: h\r\n{field}\r\n");
        assert_eq!(head(&text).persistence, expected, "1.{minor} {field:?}");
    }
}

#[test]
fn framing_that_can_be_read_in_one_way_is_taken() {
    for (lines, expected) in [
        ("", Framing::None),
        ("Content-Length: 0\r\n", Framing::None),
        ("Content-Length: 0042\r\n", Framing::Length(42)),
        ("Content-Length: 42\r\nContent-Length: 42\r\n", Framing::Length(42)),
        ("Content-Length: 42, 42\r\n", Framing::Length(42)),
        ("Content-Length: 1048576\r\n", Framing::Length(MAX_BODY)),
        ("Transfer-Encoding: Chunked\r\n", Framing::Chunked),
    ] {
        assert_eq!(head(&with(lines)).framing, expected, "{lines:?}");
    }
}

#[test]
fn framing_that_can_be_read_in_two_ways_is_refused() {
    for (lines, status) in [
        ("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", 400),
        ("Transfer-Encoding: chunked\r\nContent-Length: 0\r\n", 400),
        ("Transfer-Encoding: gzip\r\nContent-Length: 5\r\n", 400),
        ("Content-Length: 5\r\nContent-Length: 6\r\n", 400),
        ("Content-Length: 5, 6\r\n", 400),
        ("Content-Length: +5\r\n", 400),
        ("Content-Length: -1\r\n", 400),
        ("Content-Length: 0x5\r\n", 400),
        ("Content-Length: 5 5\r\n", 400),
        ("Content-Length: 5,\r\n", 400),
        ("Content-Length:\r\n", 400),
        ("Content-Length: 1048577\r\n", 413),
        ("Content-Length: 18446744073709551621\r\n", 413),
        ("Transfer-Encoding: identity\r\n", 501),
        ("Transfer-Encoding: gzip, chunked\r\n", 501),
        ("Transfer-Encoding: chunked, chunked\r\n", 501),
        ("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", 501),
        ("Transfer-Encoding: \x0bchunked\r\n", 400),
        ("Transfer-Encoding: xchunked\r\n", 501),
        ("Transfer-Encoding:\r\n", 501),
        ("Transfer-Encoding : chunked\r\n", 400),
        ("X: a\r\n Transfer-Encoding: chunked\r\n", 400),
        ("X: a\rTransfer-Encoding: chunked\r\n", 400),
        ("X: a\0b\r\n", 400),
        ("X\r\n", 400),
        (": x\r\n", 400),
    ] {
        assert_eq!(refused(with(lines).as_bytes()), status, "{lines:?}");
    }
    assert_eq!(refused(b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n"), 400);
    assert_eq!(refused(b"GET / HTTP/1.1\r\n Host: h\r\n\r\n"), 400);
}

#[test]
fn a_1_1_request_has_exactly_one_sound_host() {
    for (lines, status) in [
        ("\r\n", 400),
        ("Host: a\r\nHost: a\r\n\r\n", 400),
        ("Host: a b\r\n\r\n", 400),
        ("Host: a/b\r\n\r\n", 400),
        ("Host: a@b\r\n\r\n", 400),
        ("Host: a,b\r\n\r\n", 400),
    ] {
        assert_eq!(refused(format!("GET / HTTP/1.1\r\n{lines}").as_bytes()), status, "{lines:?}");
    }
    head("GET / HTTP/1.1\r\nhost:\r\n\r\n");
    head("GET / HTTP/1.1\r\nHOST: [::1]:8080\r\n\r\n");
    head("GET / HTTP/1.0\r\n\r\n");
}

#[test]
fn a_request_line_is_three_words_and_a_version_that_is_spoken() {
    for (line, status) in [
        ("GET / HTTP/2.0", 505),
        ("PRI * HTTP/2.0", 505),
        ("GET / HTTP/1.2", 505),
        ("GET / HTTP/0.9", 505),
        ("GET / HTTP/1.10", 400),
        ("GET / http/1.1", 400),
        ("GET / XTTP/1.1", 400),
        ("GET / HTTP/1", 400),
        ("GET /", 400),
        ("GET", 400),
        ("GET  / HTTP/1.1", 400),
        ("GET / HTTP/1.1 ", 400),
        (" GET / HTTP/1.1", 400),
        ("G(T / HTTP/1.1", 400),
        ("GET p HTTP/1.1", 400),
        ("GET * HTTP/1.1", 400),
        ("GET /\u{e9} HTTP/1.1", 400),
        ("GET /#f HTTP/1.1", 400),
        ("GET ftp://h/ HTTP/1.1", 400),
        ("GET http:///p HTTP/1.1", 400),
        ("CONNECT h:443 HTTP/1.1", 501),
    ] {
        assert_eq!(refused(format!("{line}\r\nHost: h\r\n\r\n").as_bytes()), status, "{line:?}");
    }
    assert_eq!(refused(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"), 400, "a TLS greeting");
    assert_eq!(refused(&[0; 40]), 400, "no method, however long");
}

#[test]
fn an_expectation_other_than_100_continue_fails() {
    assert_eq!(refused(with("Expect: 200-ok\r\n").as_bytes()), 417);
    assert_eq!(refused(with("Expect: x\r\nExpect: 100-continue\r\n").as_bytes()), 417);
    assert!(head(&with("Expect: 100-Continue\r\n")).expects_continue);
    assert!(!head("GET / HTTP/1.0\r\nExpect: 100-continue\r\n\r\n").expects_continue);
}

#[test]
fn limits_hold_whether_the_head_is_whole_or_not() {
    let field = |length: usize| with(&format!("X: {}\r\n", "x".repeat(length)));
    let fields = |count: usize| with(&"X: y\r\n".repeat(count));
    let target = |length: usize| format!("GET /{} HTTP/1.1\r\nHost: h\r\n\r\n", "x".repeat(length - 1));
    let bare = field(0).len();
    for (text, status) in [
        (field(MAX_HEAD - bare), 200),
        (field(MAX_HEAD - bare + 1), 431),
        (fields(MAX_FIELDS - 1), 200),
        (fields(MAX_FIELDS), 431),
        (target(MAX_TARGET), 200),
        (target(MAX_TARGET + 1), 414),
        (format!("{} / HTTP/1.1\r\nHost: h\r\n\r\n", "M".repeat(33)), 501),
    ] {
        let mut beginnings = (1..text.len()).step_by(101).chain(text.len() - 3..text.len());
        let early = beginnings.find_map(|length| parse(&text.as_bytes()[..length]).err());
        match status {
            200 => assert_eq!((head(&text).length, early), (text.len(), None)),
            _ => {
                assert_eq!(refused(text.as_bytes()), status);
                assert_eq!(early.map(|refusal| refusal.status as u16), Some(status));
            }
        }
    }
}

#[test]
fn every_beginning_of_a_sound_head_is_incomplete_and_never_refused() {
    for text in
        ["GET http://h:80/p?q HTTP/1.1\r\nHost: h\r\nX:y\r\nContent-Length: 3\r\n\r\n", "OPTIONS * HTTP/1.0\n\n"]
    {
        for length in 0..text.len() {
            assert_eq!(parse(&text.as_bytes()[..length]), Ok(Parsed::Incomplete), "{length}");
        }
        assert_eq!(head(text).length, text.len());
    }
    for length in 0.."GET / HTTP/2.0".len() {
        assert_eq!(parse(&b"GET / HTTP/2.0\r\n"[..length]), Ok(Parsed::Incomplete), "{length}");
    }
}

#[test]
fn empty_lines_before_a_request_are_counted() {
    for (received, blank) in [("", 0), ("\r", 0), ("\r\n", 2), ("\r\n\n\r\nGET", 5), ("GET", 0), ("\r\r\n", 0)] {
        assert_eq!(leading_blank(received.as_bytes()), blank, "{received:?}");
    }
}

/// What a chunked body comes to: the bytes it takes, if it ends.
fn chunked(text: &[u8]) -> Result<Option<usize>, u16> {
    let progress = Body::new(Framing::Chunked).advance(text);
    progress.map(|progress| progress.done.then_some(progress.used)).map_err(|refusal| refusal.status as u16)
}

#[test]
fn a_chunked_body_ends_where_its_trailer_ends() {
    for body in [
        "0\r\n\r\n",
        "5\r\nhello\r\n0\r\n\r\n",
        "0005;a=b; c=\"d;\"\r\nhello\r\n00\r\n\r\n",
        "5 \t;a\r\nhello\r\nA\r\n0123456789\r\n0;last\r\nX: y\r\nZ:\r\n\r\n",
        "1\r\n\r\r\n0\r\n\r\n",
    ] {
        let followed = format!("{body}GET / HTTP/1.1\r\n");
        assert_eq!(chunked(followed.as_bytes()), Ok(Some(body.len())), "{body:?}");
        for length in 0..body.len() {
            assert_eq!(chunked(&body.as_bytes()[..length]), Ok(None), "{body:?} {length}");
        }
    }
}

#[test]
fn a_malformed_or_boundless_chunk_is_refused() {
    for (body, status) in [
        ("\r\n", 400),
        ("g\r\n", 400),
        ("-1\r\n", 400),
        ("0x5\r\nhello\r\n", 400),
        (" 5\r\nhello\r\n", 400),
        ("5\nhello\n", 400),
        ("5\rhello\r\n", 400),
        ("5 x\r\nhello\r\n", 400),
        ("5;a\nhello\r\n", 400),
        ("5;a\0\r\nhello\r\n", 400),
        ("5\r\nhello!\r\n", 400),
        ("5\r\nhello\n0\r\n\r\n", 400),
        ("5\r\nhello\r\r", 400),
        ("10000000000000005\r\nhello", 400),
        ("00000000000000005\r\nhello", 400),
        ("ffffffffffffffff\r\n", 413),
        ("100001\r\n", 413),
        ("0\r\nX y\r\n\r\n", 400),
        ("0\r\nX: y\r\n folded\r\n\r\n", 400),
        ("0\r\nX: y\n\r\n", 400),
        ("0\r\n\n", 400),
        ("0\r\n: y\r\n\r\n", 400),
    ] {
        assert_eq!(chunked(body.as_bytes()), Err(status), "{body:?}");
    }
    let long = "x".repeat(16 * 1024 + 1);
    assert_eq!(chunked(format!("5;{long}").as_bytes()), Err(400));
    assert_eq!(chunked(format!("0\r\nX:{long}").as_bytes()), Err(431));
    let chunk = format!("80000\r\n{}\r\n", "x".repeat(0x80000));
    assert_eq!(chunked(format!("{chunk}{chunk}0\r\n\r\n").as_bytes()).map(|end| end.is_some()), Ok(true));
    assert_eq!(chunked(format!("{chunk}{chunk}1\r\n").as_bytes()), Err(413));
}
