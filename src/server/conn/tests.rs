use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::Duration;

use super::output::MUCH;
use super::*;
use crate::server::Acceptor;
use crate::server::testing::conn_pair;
use crate::sys::last_words::Words;

#[test]
fn lines_lose_their_ends_and_the_last_needs_none() {
    let (mut conn, mut client) = conn_pair();
    client.write_all(b"one\r\ntwo\n\nlast").unwrap();
    drop(client);
    let mut line = || conn.read_line(4).unwrap();
    assert_eq!(line().as_deref(), Some("one"));
    assert_eq!(line().as_deref(), Some("two"));
    assert_eq!(line().as_deref(), Some(""));
    assert_eq!(line().as_deref(), Some("last"));
    assert_eq!(line(), None);
    assert!(conn.has_ended());
}

#[test]
fn a_line_that_is_too_long_is_an_error_with_and_without_its_end() {
    for sent in [&b"12345\n"[..], b"123456", b"12345\r\n"] {
        let (mut conn, mut client) = conn_pair();
        client.write_all(sent).unwrap();
        let error = conn.read_line(4).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{error}");
    }
    let (mut conn, mut client) = conn_pair();
    client.write_all(b"1234\r\n").unwrap();
    assert_eq!(conn.read_line(4).unwrap().as_deref(), Some("1234"));
}

#[test]
fn a_line_that_is_not_utf8_is_an_error() {
    let (mut conn, mut client) = conn_pair();
    client.write_all(b"\xff\n").unwrap();
    assert_eq!(conn.read_line(4).unwrap_err().kind(), io::ErrorKind::InvalidData);
}

#[test]
fn nothing_waits_that_need_not() {
    let (mut conn, mut client) = conn_pair();
    assert_eq!(conn.try_fill().unwrap(), Fill::WouldBlock);
    client.write_all(b"abc").unwrap();
    assert_eq!(conn.try_fill().unwrap(), Fill::Read(3));
    drop(client);
    assert_eq!(conn.try_fill().unwrap(), Fill::Eof);
    assert_eq!(conn.buffer(), b"abc");
    assert_eq!(conn.fill().unwrap(), 0);
}

#[test]
fn waiting_for_input_sends_what_is_unsent_first() {
    let (mut conn, mut client) = conn_pair();
    conn.write_all(b"question\n").unwrap();
    let client = thread::spawn(move || {
        let mut question = [0; 9];
        client.read_exact(&mut question).unwrap();
        client.write_all(b"answer\n").unwrap();
        question
    });
    assert_eq!(conn.read_line(80).unwrap().as_deref(), Some("answer"));
    assert_eq!(&client.join().unwrap(), b"question\n");
}

#[test]
fn waiting_ends_at_the_deadline_in_both_directions() {
    let (mut conn, _client) = conn_pair();
    let deadline = Instant::now() + Duration::from_millis(30);
    conn.set_deadline(Some(deadline));
    assert_eq!(conn.fill().unwrap_err().kind(), io::ErrorKind::TimedOut);
    assert!(Instant::now() >= deadline);

    let much = vec![b'x'; 16 << 20];
    assert_eq!(conn.write_all(&much).unwrap_err().kind(), io::ErrorKind::TimedOut);
}

#[test]
fn after_the_deadline_a_short_answer_still_goes_out() {
    let (mut conn, mut client) = conn_pair();
    conn.set_deadline(Some(Instant::now()));
    conn.write_all(b"late\n").unwrap();
    conn.flush().unwrap();
    drop(conn);
    let mut answer = String::new();
    client.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "late\n");
}

#[test]
fn a_client_that_is_gone_is_an_error_and_no_signal() {
    let (mut conn, client) = conn_pair();
    drop(client);
    conn.write_all(b"anybody?").unwrap();
    assert_eq!(conn.flush().unwrap_err().kind(), io::ErrorKind::BrokenPipe);
}

#[test]
fn output_larger_than_any_buffer_arrives_whole() {
    let (mut conn, mut client) = conn_pair();
    let sent: Vec<u8> = (0..3 << 20).map(|i: u32| (i % 251) as u8).collect();
    let reader = thread::spawn(move || {
        let mut got = Vec::new();
        client.read_to_end(&mut got).unwrap();
        got
    });
    for piece in sent.chunks(5000) {
        conn.write_all(piece).unwrap();
    }
    conn.flush().unwrap();
    drop(conn);
    assert!(reader.join().unwrap() == sent);
}

#[test]
fn what_a_client_does_not_take_is_kept_up_to_a_mebibyte_without_waiting() {
    let (mut conn, mut client) = conn_pair();
    let sent: Vec<u8> = (0..1 << 20).map(|i: u32| (i % 251) as u8).collect();
    // A wait would be without end: there is no deadline, and nobody reads.
    conn.write_all(&sent[..700_000]).unwrap();
    assert!(conn.unsent() > 0 && !conn.has_room());
    for piece in sent[700_000..].chunks(100) {
        conn.write_all(piece).unwrap();
    }
    assert!(!conn.try_flush().unwrap());
    assert_eq!(conn.write(b"").unwrap(), 0);
    let mut spare = Buffers::default();
    conn.return_buffers(&mut spare);
    assert!(conn.output.capacity() < conn.unsent() + 4096, "no more memory than bytes");

    let mut received = vec![0; sent.len()];
    let mut at = 0;
    while at < received.len() {
        at += client.read(&mut received[at..]).unwrap();
        conn.try_flush().unwrap();
    }
    assert!(received == sent);
    assert_eq!(conn.unsent(), 0);
    assert!(conn.has_room());
}

#[test]
fn a_state_is_kept_until_somebody_takes_it_by_its_type() {
    let (mut conn, _client) = conn_pair();
    assert_eq!(conn.take_state::<u32>(), None);
    conn.keep_state(1_u32);
    conn.keep_state(2_u32);
    assert_eq!(conn.take_state::<String>(), None);
    assert_eq!(conn.take_state(), Some(2_u32));
    assert_eq!(conn.take_state::<u32>(), None);
}

#[test]
fn a_service_that_consumes_nothing_is_stopped_at_a_mebibyte() {
    let (mut conn, mut client) = conn_pair();
    let writer = thread::spawn(move || client.write_all(&vec![0; 2 << 20]));
    let error = loop {
        if let Err(error) = conn.fill() {
            break error;
        }
    };
    assert_eq!(error.kind(), io::ErrorKind::FileTooLarge);
    assert_eq!(conn.buffer().len(), 1 << 20);
    drop(conn);
    assert!(writer.join().unwrap().is_err());
}

#[test]
fn a_parked_connection_holds_no_more_than_its_bytes() {
    let (mut conn, mut client) = conn_pair();
    let mut spare = Buffers::default();
    for sent in [&b"GET / HT"[..], b"TP/1.1\r\n"] {
        client.write_all(sent).unwrap();
        conn.borrow_buffers(&mut spare);
        assert_eq!(conn.try_fill().unwrap(), Fill::Read(8));
        conn.return_buffers(&mut spare);
        assert!(conn.input.capacity() < 64, "{}", conn.input.capacity());
    }
    assert_eq!(conn.buffer(), b"GET / HTTP/1.1\r\n");

    conn.borrow_buffers(&mut spare);
    conn.consume(16);
    conn.write_all(b"200").unwrap();
    conn.flush().unwrap();
    conn.return_buffers(&mut spare);
    assert_eq!(conn.input.capacity() + conn.output.capacity(), 0);
    assert!(spare.input.capacity() > 0 && spare.output.capacity() > 0);
}

#[test]
fn an_accepted_tcp_connection_knows_its_peer_and_sends_without_delay() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let acceptor = Acceptor::from_fd(listener.into(), address.to_string()).unwrap();
    assert!(acceptor.accept().unwrap().is_none());
    let client = TcpStream::connect(address).unwrap();
    let conn = acceptor.accept().unwrap().unwrap();
    assert_eq!(conn.peer(), Peer::Inet(client.local_addr().unwrap()));
    assert!(SockRef::from(&conn).tcp_nodelay().unwrap());
    assert_eq!(conn_pair().0.peer(), Peer::Unix);
}

#[test]
fn a_socket_that_does_not_listen_is_no_acceptor() {
    let (conn, _client) = conn_pair();
    let error = Acceptor::from_fd(conn.as_fd().try_clone_to_owned().unwrap(), "fd:3".to_owned()).unwrap_err();
    assert_eq!(error.to_string(), "the socket of fd:3 does not listen");
}

/// A connection with an unsent answer to an earlier request, and the next request in hand with words.
fn second_request(earlier: &[u8]) -> (Conn, UnixStream, &'static InHand) {
    let (mut conn, client) = conn_pair();
    conn.write_all(earlier).unwrap();
    let in_hand = InHand::of_worker();
    conn.begin(in_hand);
    in_hand.last_words.set(Words { deadline: b"late", crash: b"crashed" });
    assert!(in_hand.last_words.is_ready());
    (conn, client, in_hand)
}

#[test]
fn last_words_are_ready_until_the_first_byte_of_the_response_is_sent() {
    let (mut conn, _client, in_hand) = second_request(b"");
    conn.write_all(b"answer").unwrap();
    assert!(in_hand.last_words.is_ready(), "nothing is sent yet");
    conn.flush().unwrap();
    assert!(!in_hand.last_words.is_ready());
    in_hand.last_words.set(Words { deadline: b"too late", crash: b"too late" });
    assert!(!in_hand.last_words.is_ready());
    // A request that stays incomplete after it has said something is still that request.
    for (leave, ready) in [(Conn::set_aside as fn(&mut Conn), false), (Conn::end, true)] {
        leave(&mut conn);
        conn.begin(in_hand);
        in_hand.last_words.set(Words { deadline: b"late", crash: b"crashed" });
        assert_eq!(in_hand.last_words.is_ready(), ready);
    }
}

#[test]
fn a_write_that_is_sent_at_once_begins_the_response_too() {
    let (mut conn, mut client, in_hand) = second_request(b"earlier");
    let reader = thread::spawn(move || {
        let mut got = Vec::new();
        client.read_to_end(&mut got).map(|_| got)
    });
    conn.write_all(&[b'x'; MUCH + 1]).unwrap();
    assert!(!in_hand.last_words.is_ready());
    drop(conn);
    assert_eq!(reader.join().unwrap().unwrap().len(), "earlier".len() + MUCH + 1);
}

#[test]
fn earlier_answers_that_are_sent_leave_the_words_ready() {
    let (mut conn, mut client, in_hand) = second_request(b"earlier");
    conn.flush().unwrap();
    assert!(in_hand.last_words.is_ready());
    let mut earlier = [0; 7];
    client.read_exact(&mut earlier).unwrap();
    conn.begin_response();
    assert!(!in_hand.last_words.is_ready(), "somebody sends through the descriptor");
}

#[test]
fn last_words_end_with_the_request_and_with_the_connection() {
    let (mut conn, _client, in_hand) = second_request(b"");
    conn.end();
    assert!(!in_hand.last_words.is_ready());
    let (conn, _client, in_hand) = second_request(b"");
    drop(conn);
    assert!(!in_hand.last_words.is_ready());
}

#[test]
fn of_a_response_that_failed_nothing_unsent_goes_out_even_if_earlier_ones_were_sent_meanwhile() {
    let (mut conn, mut client, _) = second_request(b"earlier");
    conn.write_all(b"half an ans").unwrap();
    conn.forget_response();
    conn.flush().unwrap();
    let mut got = [0; 7];
    client.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"earlier");
    conn.write_all(b"wer").unwrap();
    conn.forget_response();
    drop(conn);
    let mut rest = Vec::new();
    client.read_to_end(&mut rest).unwrap();
    assert_eq!(rest, b"");
}

#[test]
fn a_connection_that_a_service_has_kept_has_no_part_in_the_next_request() {
    let (mut kept, mut client, in_hand) = second_request(b"");
    in_hand.end();
    let (mut other, _other_client) = conn_pair();
    other.begin(in_hand);
    in_hand.set_due(Some(Monotonic::now()));
    in_hand.last_words.set(Words { deadline: b"late", crash: b"crashed" });
    client.write_all(b"bytes").unwrap();
    assert_eq!(kept.fill().unwrap(), 5, "the deadline is another's");
    kept.write_all(b"answer").unwrap();
    kept.flush().unwrap();
    drop(kept);
    assert!(in_hand.last_words.is_ready(), "the words are another's");
}
