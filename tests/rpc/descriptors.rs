//! Descriptors inside calls, replies and events.

use std::fs::File;
use std::io::{Read, Seek};
use std::sync::mpsc;
use std::time::Duration;

use hatchery::proc::Template;
use hatchery::rpc::{Client, Descriptor, Error, Options, Postcard};
use libtest_mimic::Trial;

use crate::entries::{Append, client, tell_test};
use crate::support::{Outcome, test};

const SOON: Duration = Duration::from_secs(30);

pub fn tests() -> Vec<Trial> {
    vec![
        test("descriptors_travel_inside_calls_in_order_and_batched", calls),
        test("descriptors_travel_inside_replies_and_events", replies),
        test("no_descriptor_is_left_in_the_process", none_left),
        test("descriptors_that_find_no_room_are_told_and_the_process_serves_on", no_room),
        test("too_many_descriptors_for_one_message_are_refused", too_many),
    ]
}

fn calls() -> Outcome {
    let client: Client<Append, u64, ()> = client("append", Options::<Postcard>::new())?;
    let mut file = tempfile::tempfile()?;
    for n in 0..1000 {
        let to = Descriptor::from(file.try_clone()?);
        client.submit(&Append { to, text: format!("{n}\n") }, |reply| assert!(reply.is_ok(), "{reply:?}"))?;
    }
    assert!(client.finish()?.success());
    file.rewind()?;
    let mut text = String::new();
    file.read_to_string(&mut text)?;
    assert_eq!(text, (0..1000).map(|n| format!("{n}\n")).collect::<String>());
    Ok(())
}

fn numbers(pipes: Vec<Descriptor>) -> Result<Vec<u32>, std::io::Error> {
    pipes
        .into_iter()
        .map(|pipe| {
            let mut number = [0; 4];
            File::from(pipe.into_fd()).read_exact(&mut number)?;
            Ok(u32::from_le_bytes(number))
        })
        .collect()
}

fn replies() -> Outcome {
    let client: Client<u32, Vec<Descriptor>, Vec<Descriptor>> = client("pipes", Options::<Postcard>::new())?;
    let (tell, told) = mpsc::channel();
    client.on_event(move |pipes: Vec<Descriptor>| tell_test(&tell, pipes.len()))?;
    for count in [0, 1, 2, 100, 252] {
        assert_eq!(numbers(client.call(&count)?)?, (0..count).collect::<Vec<u32>>());
        assert_eq!(told.recv_timeout(SOON)?, count as usize);
    }
    for _ in 0..200 {
        client.submit(&5, |reply| {
            let numbers = reply.map(numbers);
            assert!(matches!(&numbers, Ok(Ok(numbers)) if *numbers == [0, 1, 2, 3, 4]), "{numbers:?}");
        })?;
    }
    assert!(client.finish()?.success());
    Ok(())
}

fn none_left() -> Outcome {
    let client: Client<(), u64, ()> = client("open_files", Options::<Postcard>::new())?;
    let before = client.call(&())?;
    for _ in 0..10 {
        assert_eq!(client.call(&())?, before);
    }
    Ok(())
}

fn no_room() -> Outcome {
    let process = Template::spawn()?.fork()?.call("no_further_descriptor", ())?;
    let client: Client<Append, u64, ()> = process.rpc("append", Options::<Postcard>::new())?;
    for text in ["short".to_owned(), "in a file of its own".repeat(10_000)] {
        match client.call(&Append { to: Descriptor::from(tempfile::tempfile()?), text }) {
            Err(error @ Error::DescriptorsLost { .. }) => assert!(!error.may_have_run()),
            other => panic!("{other:?}"),
        }
    }
    assert!(client.finish()?.success());
    Ok(())
}

fn too_many() -> Outcome {
    let client: Client<u32, Vec<Descriptor>, Vec<Descriptor>> = client("pipes", Options::<Postcard>::new())?;
    match client.call(&253) {
        Err(Error::Handler { words }) => assert!(words.contains("253 descriptors"), "{words}"),
        other => panic!("{other:?}"),
    }
    assert_eq!(client.call(&3)?.len(), 3);
    Ok(())
}
