//! What goes wrong with a call, and what ends a conversation.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, mpsc};
use std::task::{Context, Wake, Waker};
use std::thread;
use std::time::{Duration, Instant};

use hatchery::proc::{Failure, How, Template};
use hatchery::rpc::{Client, Error, Json, Lost, Options, Postcard};
use libtest_mimic::Trial;

use crate::entries::{Act, OneWay, Said, client, orders, scripted, tell_test};
use crate::support::scenario::{self, Scenario};
use crate::support::{Outcome, test};

const SOON: Duration = Duration::from_secs(30);

/// It holds up the callbacks of a whole program.
pub const SCENARIOS: [Scenario; 1] = [("waiting_callback", waiting_callback)];

pub fn tests() -> Vec<Trial> {
    vec![
        test("an_error_of_the_handler_is_that_calls_alone", handler_error),
        test("a_responder_that_is_dropped_tells_its_caller", unanswered),
        test("a_reply_that_cannot_be_sent_tells_its_caller", reply_error),
        test("a_panic_of_the_handler_ends_the_process_with_its_words", panic),
        test("a_panic_loses_no_earlier_reply", panic_after_replies),
        test("an_error_of_init_is_told_by_the_first_call", init_error),
        test("an_unknown_entry_point_is_told_by_the_first_call", unknown_entry),
        test("another_codec_is_refused_and_both_are_named", other_codec),
        test("other_types_are_refused_and_both_are_named", other_types),
        test("types_of_the_same_name_with_other_fields_are_refused_and_both_shapes_are_named", other_fields),
        test("a_call_that_the_process_cannot_decode_ends_all", undecodable_call),
        test("a_reply_that_cannot_be_decoded_ends_all", undecodable_reply),
        test("a_codec_that_panics_at_a_reply_ends_its_conversation_alone", panicking_codec),
        test("a_call_to_an_ended_process_has_not_run", ended),
        test("waiting_in_a_callback_is_refused", in_callback),
        test("a_callback_that_waits_holds_up_neither_processes_nor_callers_who_wait", || {
            scenario::pass("waiting_callback").map(drop)
        }),
        test("a_panicking_callback_harms_nobody", panicking_callback),
        test("a_waker_that_panics_harms_nobody", panicking_waker),
        test("a_process_that_cannot_be_born_is_told", never_born),
    ]
}

fn handler_error() -> Outcome {
    for entry in ["script", "script_deferred"] {
        let client = scripted(entry)?;
        match client.call(&Act::Fail("it would not".to_owned())) {
            Err(error @ Error::Handler { .. }) => {
                assert_eq!(error.to_string(), "it would not");
                assert!(error.may_have_run());
            }
            other => panic!("{other:?}"),
        }
        assert_eq!(client.call(&Act::Count)?, Said::Number(1));
        assert!(client.finish()?.success());
    }
    Ok(())
}

fn unanswered() -> Outcome {
    let client = scripted("script_deferred")?;
    assert!(matches!(client.call(&Act::Forget), Err(Error::Unanswered)));
    assert_eq!(client.call(&Act::Say(7))?, Said::Number(7));
    Ok(())
}

fn reply_error() -> Outcome {
    for entry in ["script", "script_deferred"] {
        let client: Client<Act, Said, u32> = client(entry, Options::<Postcard>::new().max_message(1000))?;
        for act in [Act::Unwritable, Act::Long(1001)] {
            match client.call(&act) {
                Err(error @ Error::Reply { .. }) => assert!(error.may_have_run()),
                other => panic!("{other:?}"),
            }
        }
        match client.call(&Act::Fail("x".repeat(1001))) {
            Err(Error::TooLong { length, limit: 1000 }) => assert!(length > 1001),
            other => panic!("{other:?}"),
        }
        assert_eq!(client.call(&Act::Count)?, Said::Number(2));
    }
    Ok(())
}

fn panic() -> Outcome {
    for entry in ["script", "script_deferred"] {
        let client = scripted(entry)?;
        match client.call(&Act::Panic("as this test wants it".to_owned())) {
            Err(Error::Lost { may_have_run: true, why: Lost::Died(exit) }) => {
                assert_eq!(exit.how, How::Code(101));
                assert!(exit.to_string().contains("as this test wants it"), "{exit}");
            }
            other => panic!("{other:?}"),
        }
    }
    Ok(())
}

fn panic_after_replies() -> Outcome {
    for entry in ["script", "script_deferred"] {
        let client = scripted(entry)?;
        let (tell, told) = mpsc::channel();
        for n in 0..2000 {
            let tell = tell.clone();
            let act = if n == 1500 { Act::Panic("as this test wants it".to_owned()) } else { Act::Say(n) };
            let submitted = client.submit(&act, move |reply| tell_test(&tell, (n, reply)));
            if n <= 1500 {
                submitted?;
            }
        }
        drop(tell);
        let told: Vec<_> = told.iter().collect();
        for (n, reply) in told.iter().filter(|(n, _)| *n < 1500) {
            assert!(matches!(reply, Ok(Said::Number(said)) if said == n), "{n}: {reply:?}");
        }
        assert_eq!(told.iter().filter(|(n, _)| *n < 1500).count(), 1500);
        for (n, reply) in told.iter().filter(|(n, _)| *n >= 1500) {
            assert!(matches!(reply, Err(Error::Lost { .. })), "{n}: {reply:?}");
        }
    }
    Ok(())
}

fn init_error() -> Outcome {
    let client: Client<u32, String, ()> = client("init", Options::<Postcard>::new())?;
    match client.call(&0) {
        Err(Error::Lost { why: Lost::Died(exit), .. }) => {
            assert!(matches!(&exit.failure, Some(Failure::Returned { words, .. }) if words == "it was given nothing"));
        }
        other => panic!("{other:?}"),
    }
    Ok(())
}

fn unknown_entry() -> Outcome {
    let client = scripted("nobody")?;
    match client.call(&Act::Say(1)) {
        Err(Error::Lost { why: Lost::Died(exit), .. }) => {
            assert!(
                matches!(&exit.failure, Some(Failure::UnknownEntryPoint { name, .. }) if name == "nobody"),
                "{exit}"
            );
        }
        other => panic!("{other:?}"),
    }
    Ok(())
}

fn other_codec() -> Outcome {
    let client: Client<Act, Said, u32> = client("script", Options::new().codec::<Json>())?;
    match client.call(&Act::Say(1)) {
        Err(Error::Lost { why: Lost::Disagreement { ours, theirs }, .. }) => {
            assert_eq!((ours.codec.as_str(), theirs.codec.as_str()), ("json", "postcard"));
        }
        other => panic!("{other:?}"),
    }
    Ok(())
}

fn other_types() -> Outcome {
    let client: Client<Act, u8, u32> = client("script", Options::<Postcard>::new())?;
    let (tell, told) = mpsc::channel();
    client.on_error(move |lost| tell_test(&tell, lost))?;
    let lost = told.recv_timeout(SOON)?;
    match &lost {
        Lost::Disagreement { ours, theirs } => {
            assert_eq!(ours.reply.name, "u8");
            assert!(theirs.reply.name.ends_with("Said"));
            assert_eq!(ours.call, theirs.call);
        }
        other => panic!("{other:?}"),
    }
    let words = lost.to_string();
    assert!(words.contains("reply u8") && words.contains("Said"), "{words}");
    Ok(())
}

fn other_fields() -> Outcome {
    let (_, call_of_another_version) = orders();
    let lost = match call_of_another_version()? {
        Err(Error::Lost { why, may_have_run: false }) => why,
        other => panic!("{other:?}"),
    };
    let words = lost.to_string();
    for part in ["Order{text: text, copies: u64}", "Order{text: text, amount: u32}"] {
        assert!(words.contains(part), "{words}");
    }
    match lost {
        Lost::Disagreement { ours, theirs } => {
            assert_eq!((&ours.call.name, &ours.reply), (&theirs.call.name, &theirs.reply));
            assert_ne!(ours.call.shape, theirs.call.shape);
        }
        other => panic!("{other:?}"),
    }
    Ok(())
}

fn undecodable_call() -> Outcome {
    let client: Client<String, String, String> = client("one_way", Options::new().codec::<OneWay>())?;
    assert_eq!(client.call(&"good".to_owned())?, "good");
    match client.call(&"bad".to_owned()) {
        Err(Error::Lost { why: Lost::Codec { words }, .. }) => assert_eq!(words, "this cannot be read"),
        other => panic!("{other:?}"),
    }
    Ok(())
}

fn undecodable_reply() -> Outcome {
    let client: Client<String, String, String> = client("one_way", Options::new().codec::<OneWay>())?;
    let (tell, told) = mpsc::channel();
    client.on_error(move |lost| tell_test(&tell, lost))?;
    match client.call(&"worse".to_owned()) {
        Err(Error::Lost { why: Lost::Codec { words }, may_have_run: true }) => assert_eq!(words, "this cannot be read"),
        other => panic!("{other:?}"),
    }
    assert!(matches!(told.recv_timeout(SOON)?, Lost::Codec { .. }));
    assert!(matches!(client.call(&"good".to_owned()), Err(Error::Lost { may_have_run: false, .. })));
    Ok(())
}

fn panicking_codec() -> Outcome {
    let client: Client<String, String, String> = client("one_way", Options::new().codec::<OneWay>())?;
    let (tell, told) = mpsc::channel();
    // Its reply is read on the crate's own thread, which goes on for all others.
    client.submit(&"worst".to_owned(), move |reply| tell_test(&tell, reply))?;
    match told.recv_timeout(SOON)? {
        Err(Error::Lost { why: Lost::Codec { words }, may_have_run: true }) => assert!(words.contains("panicked")),
        other => panic!("{other:?}"),
    }
    let (tell, told) = mpsc::channel();
    scripted("script")?.submit(&Act::Say(1), move |reply| tell_test(&tell, reply))?;
    assert_eq!(told.recv_timeout(SOON)??, Said::Number(1));
    Ok(())
}

fn ended() -> Outcome {
    let client = scripted("script")?;
    let (tell, told) = mpsc::channel();
    client.on_error(move |lost| tell_test(&tell, lost))?;
    match client.call(&Act::Exit(7)) {
        Err(Error::Lost { may_have_run: true, why: Lost::Died(exit) }) => assert_eq!(exit.how, How::Code(7)),
        other => panic!("{other:?}"),
    }
    assert!(matches!(told.recv_timeout(SOON)?, Lost::Died(exit) if exit.how == How::Code(7)));
    assert!(told.recv().is_err(), "it is told once");
    match client.call(&Act::Say(1)) {
        Err(error @ Error::Lost { .. }) => assert!(!error.may_have_run()),
        other => panic!("{other:?}"),
    }
    assert!(matches!(client.submit(&Act::Say(1), |_| ()), Err(Error::Lost { may_have_run: false, .. })));
    assert_eq!(client.finish()?.how, How::Code(7));
    Ok(())
}

fn in_callback() -> Outcome {
    let client = Arc::new(scripted("script")?);
    let (tell, told) = mpsc::channel();
    let inner = Arc::clone(&client);
    client.submit(&Act::Say(1), move |_| tell_test(&tell, inner.call(&Act::Say(2))))?;
    assert!(matches!(told.recv_timeout(SOON)?, Err(Error::InCallback)));
    assert_eq!(client.call(&Act::Count)?, Said::Number(1));
    Ok(())
}

fn waiting_callback() -> Outcome {
    let client = scripted("script")?;
    let (enter, entered) = mpsc::channel();
    let (release, released) = mpsc::channel::<()>();
    client.submit(&Act::Say(1), move |_| {
        tell_test(&enter, ());
        let _ = released.recv();
    })?;
    entered.recv_timeout(SOON)?;
    Template::spawn()?.fork()?.sync_timeout(SOON)?;
    let other = scripted("script")?;
    assert_eq!(other.call_timeout(&Act::Say(2), SOON)?, Said::Number(2));
    match other.call_timeout(&Act::Panic("as this test wants it".to_owned()), SOON) {
        Err(Error::Lost { why: Lost::Died(_), .. }) => {}
        end => panic!("{end:?}"),
    }
    assert!(scripted("script")?.finish()?.success());
    drop(release);
    assert!(client.finish()?.success());
    Ok(())
}

fn panicking_callback() -> Outcome {
    let client = scripted("script")?;
    client.on_event(|event| assert_ne!(event, 1, "a handler that panics, as this test wants it"))?;
    client.submit(&Act::Events(vec![1], 1), |_| panic!("a callback that panics, as this test wants it"))?;
    assert_eq!(client.call(&Act::Events(vec![2], 3))?, Said::Number(3));
    assert!(client.finish()?.success());
    Ok(())
}

struct Terrible;

impl Wake for Terrible {
    fn wake(self: Arc<Self>) {
        panic!("a waker that panics, as this test wants it")
    }
}

/// One waits for a reply, the other one for room.
fn panicking_waker() -> Outcome {
    let client: Client<Act, Said, u32> = client("script", Options::<Postcard>::new().max_outstanding(1))?;
    let waker = Waker::from(Arc::new(Terrible));
    let mut futures = [client.call_async(&Act::Linger(20)), client.call_async(&Act::Say(2))];
    for future in &mut futures {
        // It may have its reply already.
        let _ = Pin::new(future).poll(&mut Context::from_waker(&waker));
    }
    // The thread that has woken them goes on.
    let (tell, told) = mpsc::channel();
    let until = Instant::now() + SOON;
    loop {
        let tell = tell.clone();
        match client.submit(&Act::Say(3), move |reply| tell_test(&tell, reply)) {
            Err(Error::Full) if Instant::now() < until => thread::yield_now(),
            other => break other?,
        }
    }
    assert_eq!(told.recv_timeout(SOON)??, Said::Number(3));
    drop(futures);
    assert!(client.finish()?.success());
    Ok(())
}

fn never_born() -> Outcome {
    let mut template = Template::spawn()?;
    let process = template.fork()?;
    template.kill(9)?;
    // Whether its fork came before the end of its template is a matter of chance.
    let Ok(client) = process.rpc::<Act, Said, u32>("script", Options::<Postcard>::new()) else { return Ok(()) };
    match client.call(&Act::Say(1)) {
        Ok(said) => assert_eq!(said, Said::Number(1)),
        Err(Error::Lost { why: Lost::NeverBorn(_) | Lost::Died(_), .. }) => {}
        Err(other) => panic!("{other:?}"),
    }
    Ok(())
}
