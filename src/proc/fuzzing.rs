//! What holds for every message that comes from another process.

use std::fmt::Debug;
use std::io::ErrorKind;
use std::os::fd::{AsFd, AsRawFd};

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::channel::{Channel, Packet, Received, decode};
use super::message::{Command, Frame, Obituary, Report};
use crate::sys::{memfd, seqpacket};

pub(crate) fn commands(datagram: &[u8]) {
    message::<Frame<Command>>(datagram);
}

pub(crate) fn reports(datagram: &[u8]) {
    message::<Frame<Report>>(datagram);
}

pub(crate) fn obituary(datagram: &[u8]) {
    message::<Obituary>(datagram);
}

/// A datagram as it comes from a socket; its first byte says how the message travels.
pub(crate) fn message<T: Serialize + DeserializeOwned + Debug>(datagram: &[u8]) {
    let Some((&way, bytes)) = datagram.split_first() else {
        return; // An empty datagram is the conversation's end.
    };
    let (here, there) = seqpacket::pair().expect("a pair");
    let typed = Channel::<(), T>::new(there);
    let file = memfd::seal(bytes).expect("a memory file");
    seqpacket::send(here.as_fd(), datagram, &[]).expect("sent");
    seqpacket::send(here.as_fd(), &[1], &[file.as_raw_fd()]).expect("sent");
    drop(here);

    let read = decode::<T>(bytes).inspect_err(|error| assert_eq!(error.kind(), ErrorKind::InvalidData)).ok();
    let read = read.map(written_and_read_again);
    // What is no message harms none that comes after it.
    assert_eq!(heard(&typed), read.clone().filter(|_| way == 0));
    assert_eq!(heard(&typed), read);
    assert!(matches!(typed.try_recv(), Ok(Received::Eof)));
}

/// The message in words, which stay the same when it is written and read again.
fn written_and_read_again<T: Serialize + DeserializeOwned + Debug>(message: T) -> String {
    let words = format!("{message:?}");
    let (here, there) = Channel::<T, T>::pair().expect("a pair");
    assert!(Packet::encode(&message).expect("it was read").send(here.as_fd(), &[]).expect("sent"));
    assert_eq!(heard(&there).as_ref(), Some(&words));
    words
}

/// The next message in words; none for what is no message.
fn heard<Out: Serialize, In: DeserializeOwned + Debug>(channel: &Channel<Out, In>) -> Option<String> {
    match channel.try_recv() {
        Ok(Received::Message { message, fds, lost_descriptors }) => {
            assert!(fds.is_empty() && !lost_descriptors, "a descriptor from nowhere");
            Some(format!("{message:?}"))
        }
        Ok(other) => panic!("{other:?} instead of a message"),
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::InvalidData);
            None
        }
    }
}
