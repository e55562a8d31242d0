//! Calls that travel together: each datagram costs its sender a system call, and its receiver another.

use std::os::fd::{AsFd, AsRawFd};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use hatchery::proc::{BoxError, Channel, Registry, RunCx};
use hatchery::rpc::{Client, Options, Postcard};
use libtest_mimic::Trial;
use nix::sys::socket::{MsgFlags, recv, send};

use crate::entries::{client, tell_test};
use crate::nonsense::{CALL, EVENT, HEAD, frame};
use crate::support::{Outcome, test};

const SOON: Duration = Duration::from_secs(30);

const CALLS: u32 = 5_000;

pub fn tests() -> Vec<Trial> {
    vec![test("calls_that_come_faster_than_replies_travel_together", together)]
}

pub fn register(registry: Registry) -> Registry {
    registry.run("counts_datagrams", count_datagrams)
}

/// Agrees with whatever the master says first, asks for calls by the event 0, and tells by another event in how many
/// datagrams they came.
fn count_datagrams(cx: RunCx) -> Result<(), BoxError> {
    let channel = Channel::<(), ()>::new(cx.socket);
    let raw = channel.as_fd().as_raw_fd();
    let mut buffer = [0; 1 << 16];
    let event = |number: u32| -> Result<Vec<u8>, BoxError> {
        let message = postcard::to_allocvec(&number)?;
        Ok(frame(EVENT, 0, 0, 0, message.len() as u64, &message))
    };
    let length = recv(raw, &mut buffer, MsgFlags::empty())?;
    send(raw, &buffer[..length], MsgFlags::empty())?;
    send(raw, &event(0)?, MsgFlags::empty())?;
    let (mut calls, mut datagrams) = (0, 0);
    while calls < CALLS {
        let length = recv(raw, &mut buffer, MsgFlags::empty())?;
        datagrams += 1;
        let mut left = &buffer[..length];
        while let Some((head, behind)) = left.split_first_chunk::<HEAD>() {
            assert_eq!(head[0], CALL);
            let message = u64::from_le_bytes(*head.last_chunk().ok_or("a head has a length")?);
            left = &behind[message as usize..];
            calls += 1;
        }
    }
    send(raw, &event(datagrams)?, MsgFlags::empty())?;
    // Until the master leaves.
    recv(raw, &mut buffer, MsgFlags::empty())?;
    Ok(())
}

/// The calls are made by the thread that would otherwise send what has gathered, so nothing is sent but what is full.
fn together() -> Outcome {
    let client: Arc<Client<u32, u32, u32>> = Arc::new(client("counts_datagrams", Options::<Postcard>::new())?);
    let (tell, told) = mpsc::channel();
    let caller = Arc::clone(&client);
    client.on_event(move |event| match event {
        0 => {
            for n in 0..CALLS {
                caller.submit(&n, |_| ()).expect("there is room for it");
            }
        }
        datagrams => tell_test(&tell, datagrams),
    })?;
    let datagrams = told.recv_timeout(SOON)?;
    assert!(datagrams <= CALLS / 50, "{CALLS} calls came in {datagrams} datagrams");
    Ok(())
}
