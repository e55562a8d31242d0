//! Processes that say what nobody may say.

use std::os::fd::OwnedFd;
use std::sync::mpsc;
use std::time::Duration;

use hatchery::proc::Template;
use hatchery::rpc::{Client, Error, Lost, Options, Postcard};
use libtest_mimic::Trial;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::unistd::ftruncate;

use crate::entries::tell_test;
use crate::support::{Outcome, test};

const SOON: Duration = Duration::from_secs(30);

/// Kinds of frames, as the library counts them.
const HELLO: u8 = 1;
pub const CALL: u8 = 2;
const REPLY: u8 = 4;
pub const EVENT: u8 = 6;

/// The length of what stands before a frame's message.
pub const HEAD: usize = 20;

pub fn tests() -> Vec<Trial> {
    vec![
        test("each_kind_of_nonsense_is_a_typed_error_and_ends_its_process", each_kind),
        test("a_file_of_2_to_the_62_bytes_is_refused_before_memory_is_taken", endless_file),
        test("noise_is_a_typed_error", noise),
        test("a_process_that_closes_its_socket_and_lives_on_is_ended", closes),
    ]
}

pub fn frame(kind: u8, in_file: u8, descriptors: u16, place: u32, length: u64, message: &[u8]) -> Vec<u8> {
    let mut bytes = vec![kind, in_file];
    bytes.extend(descriptors.to_le_bytes());
    bytes.extend(place.to_le_bytes());
    bytes.extend(0u32.to_le_bytes());
    bytes.extend(length.to_le_bytes());
    bytes.extend(message);
    bytes
}

/// The first word of a process that serves calls of `u32`, with replies and events of the same.
fn hello() -> Vec<u8> {
    let message = ("u32", "u32");
    let hello = (2u32, ("postcard", message, message, message), 0u64);
    let bytes = postcard::to_allocvec(&hello).expect("written");
    frame(HELLO, 0, 0, 0, bytes.len() as u64, &bytes)
}

/// How a conversation with a process ends that says this.
fn said(datagrams: &[Vec<u8>], fds: Vec<OwnedFd>) -> Result<Lost, Box<dyn std::error::Error>> {
    let mut process = Template::spawn()?.fork()?;
    for datagram in datagrams {
        process = process.send_arg(datagram.clone())?;
    }
    for fd in fds {
        process = process.send_fd(fd)?;
    }
    let pidfd = process.pidfd()?;
    let client: Client<u32, u32, u32> = process.rpc("nonsense", Options::<Postcard>::new().max_message(1 << 20))?;
    let (tell, told) = mpsc::channel();
    client.on_event(|_| ())?;
    client.on_error(move |lost| tell_test(&tell, lost))?;
    // It may have ended before, or end now, but not hang.
    match client.call_timeout(&1, SOON) {
        Err(Error::Lost { .. }) => {}
        other => return Err(format!("{other:?}").into()),
    }
    let lost = told.recv_timeout(SOON)?;
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    let mut watched = [PollFd::new(std::os::fd::AsFd::as_fd(&pidfd), PollFlags::POLLIN)];
    if poll(&mut watched, PollTimeout::from(30_000u16))? == 0 {
        return Err("its process goes on".into());
    }
    Ok(lost)
}

fn each_kind() -> Outcome {
    for (datagram, says) in [
        (vec![EVENT; 7], "cut after 7 bytes"),
        (frame(EVENT, 0, 0, 0, 4, &[0; 3]), "3 of 4 bytes"),
        (frame(EVENT, 0, 0, 0, 1 << 63, &[]), "over the limit"),
        (frame(EVENT, 0, 0, 0, u64::MAX, &[]), "over the limit"),
        (frame(EVENT, 1, 0, 0, 4, &[]), "without its memory file"),
        (frame(EVENT, 0, 3, 0, 0, &[]), "0 of 3 descriptors"),
        (frame(0, 0, 0, 0, 0, &[]), "unknown kind"),
        (frame(CALL, 0, 0, 0, 0, &[]), "nothing that a process may say"),
        (frame(REPLY, 0, 0, 77, 1, &[1]), "never made"),
        (hello(), "nothing that a process may say"),
    ] {
        match said(&[hello(), datagram], Vec::new())? {
            Lost::Protocol { words } => assert!(words.contains(says), "{words}: not {says}"),
            other => panic!("{says}: {other:?}"),
        }
    }
    match said(&[frame(EVENT, 0, 0, 0, 0, &[])], Vec::new())? {
        Lost::Protocol { words } => assert!(words.contains("first word"), "{words}"),
        other => panic!("{other:?}"),
    }
    // The beginning of a number.
    assert!(matches!(said(&[hello(), frame(EVENT, 0, 0, 0, 1, &[0x80])], Vec::new())?, Lost::Codec { .. }));
    Ok(())
}

fn endless_file() -> Outcome {
    let file = memfd_create("endless", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?;
    ftruncate(&file, 1 << 62)?;
    let seals = SealFlag::F_SEAL_SEAL | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_WRITE;
    fcntl(&file, FcntlArg::F_ADD_SEALS(seals))?;
    for told in [5, 1 << 20] {
        match said(&[hello(), frame(EVENT, 1, 0, 0, told, &[])], vec![file.try_clone()?])? {
            Lost::Protocol { words } => assert!(words.contains("over the limit"), "{words}"),
            other => panic!("{other:?}"),
        }
    }
    Ok(())
}

fn noise() -> Outcome {
    let mut chance = 7u64;
    for length in [1, 19, 20, 21, 100, 5000, 60_000] {
        let noise: Vec<u8> = (0..length)
            .map(|_| {
                chance = chance.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (chance >> 56) as u8
            })
            .collect();
        assert!(matches!(said(&[noise], Vec::new())?, Lost::Protocol { .. }));
    }
    Ok(())
}

fn closes() -> Outcome {
    // An empty datagram looks like the end of the conversation.
    match said(&[hello(), Vec::new()], Vec::new())? {
        Lost::Protocol { words } => assert!(words.contains("closed its socket"), "{words}"),
        other => panic!("{other:?}"),
    }
    Ok(())
}
