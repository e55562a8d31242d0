//! Deadlines, cancels, late replies, and bounds.

use std::collections::BTreeSet;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use hatchery::proc::Template;
use hatchery::rpc::{Client, Error, Options, Postcard};
use libtest_mimic::Trial;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::entries::{Act, Said, client, count, scripted, tell_test, until_begun};
use crate::futures::block_on;
use crate::support::{Outcome, test};

const SOON: Duration = Duration::from_secs(30);

pub fn tests() -> Vec<Trial> {
    vec![
        test("a_call_ends_at_its_deadline_and_its_handler_is_told", || deadline("script")),
        test("a_call_ends_at_its_deadline_and_its_handler_is_told_deferred", || deadline("script_deferred")),
        test("late_replies_go_nowhere", || late("script")),
        test("late_replies_go_nowhere_deferred", || late("script_deferred")),
        test("a_submitted_call_ends_at_its_deadline_and_its_handler_is_told", || submitted("script")),
        test("a_submitted_call_ends_at_its_deadline_and_its_handler_is_told_deferred", || submitted("script_deferred")),
        test("each_of_many_submitted_calls_ends_at_its_own_deadline_and_once", many_submitted),
        test("a_deadline_ends_a_call_while_another_caller_waits", beside_a_caller),
        test("a_future_ends_at_its_deadline", future),
        test("a_future_that_finds_no_room_ends_at_its_deadline", future_without_room),
        test("a_cancelled_call_that_has_not_begun_never_runs", never_begun),
        test("a_submit_beyond_the_bound_is_refused_and_a_call_waits", bound),
        test("a_caller_who_waits_for_room_gets_it_by_a_cancel", room_by_cancel),
        test("bytes_that_wait_are_bounded_too", queued),
        test("a_cancel_is_heard_while_as_many_calls_are_unanswered_as_may_be", cancel_when_full),
    ]
}

fn deadline(entry: &str) -> Outcome {
    let client = scripted(entry)?;
    let (tell, told) = mpsc::channel();
    client.on_event(move |event| tell_test(&tell, event))?;
    for _ in 0..5 {
        until_begun(
            || count(&client),
            |patience| match client.call_timeout(&Act::UntilCancelled, patience) {
                Err(Error::TimedOut { may_have_run: true }) => Ok(()),
                other => panic!("{other:?}"),
            },
        )?;
        // It heard of the deadline.
        assert_eq!((told.recv_timeout(SOON)?, told.recv_timeout(SOON)?), (0, 1));
    }
    assert_eq!(client.call_timeout(&Act::Say(3), SOON)?, Said::Number(3));
    assert!(client.finish()?.success());
    Ok(())
}

fn submitted(entry: &str) -> Outcome {
    let client = scripted(entry)?;
    let (tell, told) = mpsc::channel();
    client.on_event(move |event| tell_test(&tell, event))?;
    for _ in 0..5 {
        until_begun(
            || count(&client),
            |patience| {
                let (tell, replied) = mpsc::channel();
                client.submit_timeout(&Act::UntilCancelled, patience, move |reply| tell_test(&tell, reply))?;
                assert!(matches!(replied.recv_timeout(SOON)?, Err(Error::TimedOut { may_have_run: true })));
                Ok(())
            },
        )?;
        // It heard of the deadline.
        assert_eq!((told.recv_timeout(SOON)?, told.recv_timeout(SOON)?), (0, 1));
        assert_eq!(client.outstanding(), 0);
    }
    let (tell, replied) = mpsc::channel();
    client.submit_timeout(&Act::Say(3), SOON, move |reply| tell_test(&tell, reply))?;
    assert_eq!(replied.recv_timeout(SOON)??, Said::Number(3));
    assert!(client.finish()?.success());
    Ok(())
}

fn many_submitted() -> Outcome {
    const CALLS: u64 = 2_000;
    let process = Template::spawn()?.fork()?;
    let pid = Pid::from_raw(process.pid()?);
    let client = process.rpc::<Act, Said, u32>("script", Options::<Postcard>::new())?;
    assert_eq!(client.call(&Act::Count)?, Said::Number(0));
    kill(pid, Signal::SIGSTOP)?;
    let (tell, told) = mpsc::channel();
    for n in 0..CALLS {
        let (tell, begun) = (tell.clone(), Instant::now());
        // Later calls may have earlier deadlines.
        let patience = Duration::from_millis(5 + n * 7 % 50);
        client.submit_timeout(&Act::Say(0), patience, move |reply| {
            tell_test(&tell, (n, reply, begun.elapsed() >= patience));
        })?;
    }
    let mut ended = BTreeSet::new();
    for _ in 0..CALLS {
        let (n, reply, in_time) = told.recv_timeout(SOON)?;
        assert!(matches!(reply, Err(Error::TimedOut { .. })), "{reply:?}");
        assert!(in_time, "call {n} ended before its deadline");
        assert!(ended.insert(n), "call {n} ended twice");
    }
    assert_eq!(client.outstanding(), 0);
    kill(pid, Signal::SIGCONT)?;
    // What it may have said to them goes nowhere.
    assert_eq!(client.call(&Act::Say(5))?, Said::Number(5));
    drop(tell);
    assert!(client.finish()?.success());
    assert!(told.try_recv().is_err());
    Ok(())
}

fn beside_a_caller() -> Outcome {
    let client = scripted("script_deferred")?;
    let (tell, told) = mpsc::channel();
    client.on_event(move |event| tell_test(&tell, event))?;
    let held = client.call_async(&Act::UntilCancelled);
    assert_eq!(told.recv_timeout(SOON)?, 0);
    let waiting = || client.call_timeout(&Act::UntilCancelled, SOON * 2);
    let begin_and_end = || -> Outcome {
        // By then the caller receives.
        assert_eq!(told.recv_timeout(SOON)?, 0);
        let (tell, replied) = mpsc::channel();
        client.submit_timeout(&Act::Linger(60_000), Duration::from_millis(20), move |reply| tell_test(&tell, reply))?;
        assert!(matches!(replied.recv_timeout(SOON)?, Err(Error::TimedOut { may_have_run: true })));
        Ok(())
    };
    std::thread::scope(|scope| {
        scope.spawn(waiting);
        let ended = begin_and_end();
        drop(held);
        // It would wait for its own deadline.
        let killed = client.submit(&Act::Exit(0), |_| ());
        ended.and(killed.map_err(Into::into))
    })
}

fn future() -> Outcome {
    let client = scripted("script")?;
    let (tell, told) = mpsc::channel();
    client.on_event(move |event| tell_test(&tell, event))?;
    until_begun(
        || count(&client),
        |patience| {
            let late = block_on(client.call_async_timeout(&Act::UntilCancelled, patience));
            assert!(matches!(late, Err(Error::TimedOut { may_have_run: true })), "{late:?}");
            Ok(())
        },
    )?;
    assert_eq!((told.recv_timeout(SOON)?, told.recv_timeout(SOON)?), (0, 1));
    assert_eq!(block_on(client.call_async_timeout(&Act::Say(8), SOON))?, Said::Number(8));
    assert!(client.finish()?.success());
    Ok(())
}

fn future_without_room() -> Outcome {
    let client: Client<Act, Said, u32> = client("script", Options::<Postcard>::new().max_outstanding(1))?;
    let held = client.call_async(&Act::UntilCancelled);
    let late = block_on(client.call_async_timeout(&Act::Say(1), Duration::from_millis(20)));
    assert!(matches!(late, Err(Error::TimedOut { may_have_run: false })), "{late:?}");
    let waiting = client.call_async_timeout(&Act::Say(2), SOON);
    drop(held);
    assert_eq!(block_on(waiting)?, Said::Number(2));
    Ok(())
}

fn late(entry: &str) -> Outcome {
    let client = scripted(entry)?;
    for n in 0..100 {
        // Some replies come in time, most are late by a little.
        match client.call_timeout(&Act::Linger(u64::from(n % 3)), Duration::from_millis(1)) {
            Ok(_) | Err(Error::TimedOut { .. }) => {}
            other => panic!("{other:?}"),
        }
        assert_eq!(client.call(&Act::Say(1000 + n))?, Said::Number(1000 + n));
    }
    assert!(client.finish()?.success());
    Ok(())
}

fn never_begun() -> Outcome {
    let client = scripted("script")?;
    let (tell, told) = mpsc::channel();
    client.on_event(move |event| tell_test(&tell, event))?;
    let first = client.call_async(&Act::UntilCancelled);
    assert_eq!(told.recv_timeout(SOON)?, 0);
    let others: Vec<_> = (0..50).map(|_| client.call_async(&Act::Say(1))).collect();
    drop(others);
    drop(first);
    // The first one looks for its cancel, and finds those of the others, which were cancelled before, as well.
    assert_eq!(client.call(&Act::Count)?, Said::Number(1));
    Ok(())
}

fn bound() -> Outcome {
    let client: Client<Act, Said, u32> = client("script", Options::<Postcard>::new().max_outstanding(3))?;
    let (tell, told) = mpsc::channel();
    client.on_event(move |event| tell_test(&tell, event))?;
    let held = client.call_async(&Act::UntilCancelled);
    assert_eq!(told.recv_timeout(SOON)?, 0);
    let (tell_reply, replies) = mpsc::channel();
    for n in 0..2 {
        let tell = tell_reply.clone();
        client.submit(&Act::Say(n), move |reply| tell_test(&tell, reply))?;
    }
    assert_eq!(client.outstanding(), 3);
    assert!(matches!(client.submit(&Act::Say(9), |_| ()), Err(Error::Full)));
    match client.call_timeout(&Act::Say(9), Duration::from_millis(5)) {
        Err(Error::TimedOut { may_have_run: false }) => {}
        other => panic!("{other:?}"),
    }
    drop(held);
    for n in 0..2 {
        assert_eq!(replies.recv_timeout(SOON)??, Said::Number(n));
    }
    for n in 0..100 {
        assert_eq!(client.call(&Act::Say(n))?, Said::Number(n));
    }
    assert!(client.finish()?.success());
    Ok(())
}

fn room_by_cancel() -> Outcome {
    let client: Client<Act, Said, u32> = client("script", Options::<Postcard>::new().max_outstanding(1))?;
    let (tell, told) = mpsc::channel();
    client.on_event(move |event| tell_test(&tell, event))?;
    for _ in 0..20 {
        let held = client.call_async(&Act::UntilCancelled);
        assert_eq!(told.recv_timeout(SOON)?, 0);
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| client.call(&Act::Say(5)));
            std::thread::yield_now();
            drop(held);
            assert!(matches!(waiting.join(), Ok(Ok(Said::Number(5)))));
        });
        assert_eq!(told.recv_timeout(SOON)?, 1);
    }
    Ok(())
}

fn queued() -> Outcome {
    let process = Template::spawn()?.fork()?;
    let pid = Pid::from_raw(process.pid()?);
    let client = process.rpc::<Act, Said, u32>("script", Options::<Postcard>::new().max_queued(1 << 20))?;
    kill(pid, Signal::SIGSTOP)?;
    let mut submitted = 0u32;
    let refused = loop {
        let act = Act::Fail("x".repeat(30_000));
        match client.submit(&act, |reply| assert!(matches!(reply, Err(Error::Handler { .. })))) {
            Ok(()) => submitted += 1,
            Err(error) => break error,
        }
        assert!(submitted < 1000, "nothing was refused");
    };
    assert!(matches!(refused, Error::Full));
    kill(pid, Signal::SIGCONT)?;
    assert_eq!(client.call(&Act::Count)?, Said::Number(submitted));
    assert!(client.finish()?.success());
    Ok(())
}

fn cancel_when_full() -> Outcome {
    let client = scripted("script_deferred_few")?;
    let (tell, told) = mpsc::channel();
    client.on_event(move |event| tell_test(&tell, event))?;
    let held: Vec<_> = (0..4).map(|_| client.call_async(&Act::UntilCancelled)).collect();
    for _ in 0..4 {
        assert_eq!(told.recv_timeout(SOON)?, 0);
    }
    // This one does not fit in any more.
    let last = client.call_async(&Act::UntilCancelled);
    drop(held);
    let mut heard: Vec<u32> = (0..5).map(|_| told.recv_timeout(SOON)).collect::<Result<_, _>>()?;
    heard.sort_unstable();
    assert_eq!(heard, [0, 1, 1, 1, 1]);
    drop(last);
    assert_eq!(told.recv_timeout(SOON)?, 1);
    Ok(())
}
