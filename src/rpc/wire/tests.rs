use std::os::fd::{AsFd, OwnedFd};

use proptest::prelude::*;

use super::*;
use crate::rpc::contract::{Body, Encoded};
use crate::rpc::lanes::Arrivals;
use crate::sys::lane::Lane;
use crate::sys::{memfd, seqpacket};

const LIMIT: u64 = 1 << 20;

fn of(bytes: &[u8], fds: Vec<OwnedFd>) -> (Vec<Frame>, Result<(), Broken>) {
    let mut frames = Vec::new();
    let mut lanes = Arrivals::default();
    let end = split(bytes, seqpacket::Datagram { fds, lost_descriptors: false }, LIMIT, &mut lanes, &mut frames);
    (frames, end)
}

fn frame(kind: u8, place: u8, count: u16, length: u64, message: &[u8]) -> Vec<u8> {
    let mut bytes = vec![kind, place];
    bytes.extend(count.to_le_bytes());
    bytes.extend([7, 0, 0, 0, 9, 0, 0, 0]);
    bytes.extend(length.to_le_bytes());
    bytes.extend(message);
    bytes
}

#[test]
fn whatever_is_packed_comes_out_in_its_order() {
    let (here, there) = seqpacket::pair().expect("a pair");
    let mut outbox = Outbox::default();
    for number in 0..5_000u32 {
        let fds = if number % 100 == 0 { vec![here.try_clone().expect("a copy")] } else { Vec::new() };
        let bytes = number.to_le_bytes().to_vec();
        let message = Encoded { length: 4, body: Body::Inline(bytes), fds };
        outbox.push(Kind::Call, CallId { place: number, generation: 3 }, message, u64::from(number) + 1);
    }
    let (mut next, mut buffer, mut datagrams) = (0u32, Vec::new(), 0);
    while let Some(mut batch) = outbox.pop() {
        assert!(matches!(batch.send(here.as_fd()), Sent::Whole));
        datagrams += 1;
        let datagram = seqpacket::receive(there.as_fd(), &mut buffer).expect("received").expect("a datagram");
        let mut frames = Vec::new();
        split(&buffer, datagram, LIMIT, &mut Arrivals::default(), &mut frames).expect("whole");
        for frame in frames {
            assert_eq!((frame.kind, frame.id), (Kind::Call, CallId { place: next, generation: 3 }));
            assert_eq!(frame.message.bytes(&buffer), Some(next.to_le_bytes().as_slice()));
            assert_eq!(frame.fds.len(), usize::from(next % 100 == 0));
            next += 1;
        }
        assert_eq!(batch.last_call, u64::from(next));
    }
    assert_eq!((next, outbox.weight()), (5_000, 0));
    assert!(datagrams < 10, "{datagrams}");
}

#[test]
fn each_kind_of_nonsense_is_told_and_what_came_before_it_is_kept() {
    let good = frame(4, 0, 0, 2, b"ok");
    for (nonsense, says) in [
        (vec![4; 19], "cut after 19 bytes"),
        (frame(0, 0, 0, 0, b""), "unknown kind 0"),
        (frame(99, 0, 0, 0, b""), "unknown kind 99"),
        (frame(4, 4, 0, 0, b""), "unknown place 4"),
        (frame(4, 2, 0, 5, &[1, 2, 3]), "without a number"),
        (frame(4, 2, 0, 5, &[1, 0, 0, 0]), "never made lane 1"),
        (frame(4, 3, 0, 5, &[1, 0, 0, 0]), "without its file"),
        (frame(4, 0, 0, 3, b"ok"), "2 of 3 bytes"),
        (frame(4, 0, 0, 1 << 63, b"ok"), "9223372036854775808 bytes is over the limit"),
        (frame(4, 1, 0, 5, b""), "without its memory file"),
        (frame(4, 0, 2, 0, b""), "0 of 2 descriptors"),
    ] {
        let (frames, end) = of(&[good.as_slice(), &nonsense].concat(), Vec::new());
        assert_eq!(frames.len(), 1, "{says}");
        let Broken(words) = end.expect_err(says);
        assert!(words.contains(says), "{words}");
    }
    let (_, end) = of(&good, vec![memfd::seal(b"").expect("a file")]);
    assert!(end.is_err_and(|Broken(words)| words.contains("belong to no message")));
}

#[test]
fn a_memory_file_is_believed_only_if_it_is_sealed_and_as_long_as_told() {
    let file = |bytes: &[u8]| vec![memfd::seal(bytes).expect("a file")];
    assert!(of(&frame(4, 1, 0, 5, b""), file(b"12345")).1.is_ok());
    assert!(of(&frame(4, 1, 0, 6, b""), file(b"12345")).1.is_err());
    assert!(of(&frame(4, 1, 0, 4, b""), file(b"12345")).1.is_err());
    let (pipe, _writer) = std::io::pipe().expect("a pipe");
    assert!(of(&frame(4, 1, 0, 5, b""), vec![pipe.into()]).1.is_err());
}

#[test]
fn a_lane_is_believed_only_if_its_length_is_sealed_and_as_far_as_it_reaches() {
    let new = |length| frame(4, 3, 0, length, &[7, 0, 0, 0]);
    let file = || Lane::create(4096).expect("a lane").1;
    assert!(of(&new(4096), vec![file()]).1.is_ok());
    assert!(of(&new(1 << 19), vec![file()]).1.is_err());
    assert!(of(&new(5), vec![memfd::seal(b"12345").expect("a file")]).1.is_err());
    let (pipe, _writer) = std::io::pipe().expect("a pipe");
    assert!(of(&new(5), vec![pipe.into()]).1.is_err());
    assert!(of(&[new(5), new(5)].concat(), vec![file(), file()]).1.is_err(), "one number is one lane");
}

#[test]
fn however_many_frames_a_datagram_holds_it_makes_nobody_keep_more_than_its_lanes_and_one_file() {
    let lane = || Lane::create(1 << 19).expect("a lane").1;
    let (new, again) = (frame(4, 3, 0, 1 << 19, &[7, 0, 0, 0]), frame(4, 2, 0, 1 << 19, &[7, 0, 0, 0]));
    let many = [new.clone(), again.repeat(2_700)].concat();
    let (frames, end) = of(&many, vec![lane()]);
    assert_eq!(frames.len(), 1);
    assert!(end.is_err_and(|Broken(words)| words == "lane 7 came twice in one datagram"));
    // In the next datagram it may come again.
    let mut lanes = Arrivals::default();
    for (bytes, fds) in [(new, vec![lane()]), (again, Vec::new())] {
        let datagram = seqpacket::Datagram { fds, lost_descriptors: false };
        split(&bytes, datagram, LIMIT, &mut lanes, &mut Vec::new()).expect("once in each");
    }

    let file = || memfd::seal(b"12345").expect("a file");
    let (frames, end) = of(&frame(4, 1, 0, 5, b"").repeat(2), vec![file(), file()]);
    assert_eq!(frames.len(), 1);
    assert!(end.is_err_and(|Broken(words)| words.contains("a second memory file")));
    let mut outbox = Outbox::default();
    for _ in 0..3 {
        let message = Encoded { length: 5, body: Body::File(file()), fds: Vec::new() };
        outbox.push(Kind::Call, CallId::default(), message, 1);
        outbox.push(Kind::Call, CallId::default(), Encoded::default(), 1);
    }
    let batches: Vec<Batch> = std::iter::from_fn(|| outbox.pop()).collect();
    assert_eq!(batches.iter().map(|batch| batch.fds.len()).collect::<Vec<_>>(), [1, 1, 1]);
}

proptest! {
    #[test]
    fn noise_never_panics(noise in proptest::collection::vec(0u8..8, 0..200)) {
        let (frames, _) = of(&noise, Vec::new());
        for frame in frames {
            prop_assert!(frame.message.bytes(&noise).is_some());
        }
    }
}
