//! What holds for every client of `hello`: answers stay in step however the bytes come, and noise
//! ends.

use std::time::Duration;

use proptest::prelude::*;

use super::super::http::response::CONTINUE;
use super::tests::{client, responses};

/// A valid request with the method and the status that it gets.
fn request() -> impl Strategy<Value = (String, &'static str, u16)> {
    let line = prop::sample::select(vec![
        ("GET", "/", 200),
        ("HEAD", "/?a=b", 200),
        ("GET", "http://h:1/", 200),
        ("GET", "/nowhere", 404),
        ("HEAD", "/nowhere", 404),
        ("POST", "/", 405),
        ("PURGE", "/", 501),
    ]);
    let fields = prop::collection::vec("X-[a-z]{1,5}: [ -~]{0,20}\r\n", 0..4).prop_map(|lines| lines.concat());
    let extension = prop::sample::select(vec!["", ";a", " ; a=\"b;c\""]);
    let chunk = ("[ -~\r\n]{1,40}", extension).prop_map(|(data, ext)| format!("{:x}{ext}\r\n{data}\r\n", data.len()));
    let trailer = prop::sample::select(vec!["", "T: r\r\n", "A:\r\nB: GET / HTTP/1.1\r\n"]);
    let body = prop_oneof![
        Just("\r\n".to_owned()),
        "[ -~\r\n]{0,60}".prop_map(|body| format!("Content-Length: {}\r\n\r\n{body}", body.len())),
        (prop::collection::vec(chunk, 0..4), trailer).prop_map(|(chunks, trailer)| format!(
            "Transfer-Encoding: chunked\r\n\r\n{}0\r\n{trailer}\r\n",
            chunks.concat()
        )),
    ];
    ("(\r\n){0,2}", line, fields, body).prop_map(|(blank, (method, target, status), fields, body)| {
        let text = format!("{blank}{method} {target} HTTP/1.1\r\nHost: h\r\n{fields}{body}");
        (text, method, status)
    })
}

/// Bytes that look like HTTP often enough to get somewhere.
fn noise() -> impl Strategy<Value = Vec<u8>> {
    let word = prop::sample::select(vec![
        "GET ",
        "POST ",
        "/",
        " HTTP/1.1",
        " HTTP/1.0",
        " HTTP/2",
        "\r\n",
        "\n",
        "\r",
        "Host: h\r\n",
        "Host:",
        "Content-Length: 5\r\n",
        "Content-Length: 99999\r\n",
        "Transfer-Encoding: chunked\r\n",
        "\r\n\r\n",
        "5\r\n",
        "0\r\n",
        "Connection: close\r\n",
        "Expect: 100-continue\r\n",
        "hello",
        ":",
        " ",
        "ffffffffffffffff",
        ";",
    ]);
    let piece = prop_oneof![
        6 => word.prop_map(|word| word.as_bytes().to_vec()),
        1 => prop::collection::vec(any::<u8>(), 0..20),
        2 => Just(b"GET / HTTP/1.1\r\nHost: h\r\n".to_vec()),
    ];
    prop::collection::vec(piece, 0..30).prop_map(|pieces| pieces.concat())
}

/// Cuts text where the numbers say.
fn cut<'t>(text: &'t [u8], at: &[prop::sample::Index]) -> Vec<&'t [u8]> {
    let mut ends: Vec<usize> = at.iter().map(|index| index.index(text.len() + 1)).collect();
    ends.push(text.len());
    ends.sort_unstable();
    let starts = [0].into_iter().chain(ends.iter().copied());
    starts.zip(&ends).map(|(start, &end)| &text[start..end]).collect()
}

proptest! {
    #[test]
    fn requests_get_the_same_answers_in_the_same_order_however_they_are_cut(
        requests in prop::collection::vec(request(), 1..6),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..12),
    ) {
        let stream: String = requests.iter().map(|(text, ..)| text.as_str()).collect();
        let methods: Vec<&str> = requests.iter().map(|(_, method, _)| *method).collect();
        let expected: Vec<u16> = requests.iter().map(|(.., status)| *status).collect();
        let mut client = client();
        let mut answers = String::new();
        for piece in cut(stream.as_bytes(), &cuts) {
            answers += &client.say(piece);
        }
        let seen = responses(&answers, &methods);
        prop_assert_eq!(seen.iter().map(|(status, ..)| *status).collect::<Vec<_>>(), expected);
        prop_assert!(!client.is_closed());
    }

    #[test]
    fn even_noise_gets_the_same_answers_however_it_is_cut(
        bytes in noise(),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..8),
    ) {
        let answers = [vec![&bytes[..]], cut(&bytes, &cuts)].map(|pieces| {
            let mut client = client();
            let heard: String = pieces.into_iter().map(|piece| client.say(piece)).collect();
            // Whether the interim response is still needed depends on what has come by then.
            let heard = heard.replace(&*String::from_utf8_lossy(CONTINUE), "");
            (responses(&heard, &[]), client.is_closed())
        });
        prop_assert_eq!(&answers[0], &answers[1]);
    }

    #[test]
    fn noise_never_panics_and_always_ends_in_a_close(
        bytes in noise(),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..4),
        leaves in any::<bool>(),
    ) {
        let mut client = client();
        client.left = Duration::from_millis(1);
        for piece in cut(&bytes, &cuts) {
            client.say(piece);
        }
        if leaves {
            client.hang_up();
        } else {
            client.time_out();
        }
        prop_assert!(client.is_closed());
        prop_assert_eq!(client.error, None);
    }
}
