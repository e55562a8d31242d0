//! Messages of all lengths.

use hatchery::proc::Template;
use hatchery::rpc::{Client, Error, Octets, Options};
use libtest_mimic::Trial;

use crate::entries::{client, tell_test};
use crate::support::{Outcome, test};

pub fn tests() -> Vec<Trial> {
    vec![
        test("messages_of_any_length_come_back_as_they_went", lengths),
        test("sixty_four_mebibytes_come_back_as_they_went", very_long),
        test("many_long_messages_at_a_time_come_back_as_they_went", || many_long("octets")),
        test("many_long_messages_at_a_time_come_back_as_they_went_deferred", || many_long("octets_deferred")),
        test("long_messages_over_and_over_take_no_further_memory_file_nor_descriptor", over_and_over),
        test("long_and_short_messages_keep_their_order", mixed),
        test("a_message_over_the_limit_is_refused_before_it_is_sent", too_long),
    ]
}

type Echo = Client<Vec<u8>, Vec<u8>, ()>;

fn bytes(length: usize) -> Vec<u8> {
    (0..length).map(|n| (n ^ (n >> 8) ^ (n >> 16)) as u8).collect()
}

fn lengths() -> Outcome {
    let client: Echo = client("octets", Options::new().codec::<Octets>())?;
    for length in [0, 1, 31, 4096, 16_364, 16_365, 65_515, 65_516, 65_517, 65_536, 65_537, 1 << 20] {
        let sent = bytes(length);
        assert!(client.call(&sent)? == sent, "{length} bytes changed on their way");
    }
    assert!(client.finish()?.success());
    Ok(())
}

fn very_long() -> Outcome {
    let client: Echo = client("octets", Options::new().codec::<Octets>())?;
    let sent = bytes(64 << 20);
    assert!(client.call(&sent)? == sent);
    Ok(())
}

/// More than fit all lanes, of lengths that do not fit each other's.
fn many_long(entry: &str) -> Outcome {
    let client: Echo = client(entry, Options::new().codec::<Octets>())?;
    let (tell, told) = std::sync::mpsc::channel();
    let lengths: Vec<usize> = (0..48).map(|n| 70_000 + (n * 37 % 48) * 20_000).collect();
    for _ in 0..2 {
        for length in &lengths {
            let (tell, length) = (tell.clone(), *length);
            let is_whole = move |reply: Vec<u8>| reply == bytes(length);
            client.submit(&bytes(length), move |reply| tell_test(&tell, reply.map(is_whole)))?;
        }
    }
    assert!(client.finish()?.success());
    drop(tell);
    let whole: Vec<bool> = told.try_iter().collect::<Result<_, _>>()?;
    assert_eq!(whole, vec![true; 2 * lengths.len()]);
    Ok(())
}

fn over_and_over() -> Outcome {
    let process = Template::spawn()?.fork()?;
    let pid = process.pid()?;
    let client: Echo = process.rpc("octets", Options::new().codec::<Octets>())?;
    let sent = bytes(1 << 20);
    let state = || -> Result<_, std::io::Error> {
        let descriptors = std::fs::read_dir(format!("/proc/{pid}/fd"))?.count();
        let maps = std::fs::read_to_string(format!("/proc/{pid}/maps"))?;
        Ok((descriptors, maps.lines().filter(|line| line.contains("hatchery lane")).count()))
    };
    // When it takes the second call, it has closed what the first one needed.
    for _ in 0..2 {
        assert!(client.call(&sent)? == sent);
    }
    let (descriptors, lanes) = state()?;
    assert_eq!(lanes, 2, "one there, one back");
    for _ in 0..50 {
        assert!(client.call(&sent)? == sent);
    }
    assert_eq!(state()?, (descriptors, lanes));
    Ok(())
}

fn mixed() -> Outcome {
    let client: Echo = client("octets", Options::new().codec::<Octets>())?;
    let (tell, told) = std::sync::mpsc::channel();
    let lengths: Vec<usize> = (0..600).map(|n| if n % 7 == 3 { 60_000 + 10_000 * (n % 5) } else { n }).collect();
    for length in &lengths {
        let tell = tell.clone();
        client.submit(&bytes(*length), move |reply| tell_test(&tell, reply))?;
    }
    assert!(client.finish()?.success());
    drop(tell);
    let replies: Vec<Vec<u8>> = told.try_iter().collect::<Result<_, _>>()?;
    assert_eq!(replies.len(), lengths.len());
    assert!(replies.iter().zip(&lengths).all(|(reply, length)| *reply == bytes(*length)));
    Ok(())
}

fn too_long() -> Outcome {
    let client: Echo = client("octets", Options::new().codec::<Octets>().max_message(100))?;
    match client.call(&vec![0; 101]) {
        Err(error @ Error::TooLong { length: 101, limit: 100 }) => assert!(!error.may_have_run()),
        other => panic!("{other:?}"),
    }
    assert_eq!(client.call(&vec![7; 100])?, [7; 100]);
    Ok(())
}
