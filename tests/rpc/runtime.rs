//! Handlers and callers in tokio.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::mpsc;
use std::time::Duration;

use hatchery::proc::{BoxError, Registry, Template};
use hatchery::rpc::{AsyncCx, Client, Entry, Error, Options, Postcard};
use libtest_mimic::Trial;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::sync::Notify;

use crate::entries::{Act, Said, client, scripted, tell_test};
use crate::support::{Outcome, test};

const SOON: Duration = Duration::from_secs(30);

pub fn tests() -> Vec<Trial> {
    vec![
        test("tokio_answers_come_in_any_order_and_reach_their_callers", any_order),
        test("tokio_events_and_replies_come_in_the_order_of_their_making", order),
        test("no_more_calls_are_in_flight_in_tokio_than_may_be", bound),
        test("a_cancel_wakes_the_future_that_waits_for_it", cancel),
        test("a_future_that_panics_leaves_its_call_alone_unanswered", panicking),
        test("an_event_is_not_kept_while_its_future_waits", event_before_waiting),
        test("a_call_is_awaited_in_tokio", awaited),
        test("tokio_finishes_what_was_begun_before_it_leaves", finishing),
    ]
}

/// Calls wait for each other inside the process.
struct Gates {
    open: Notify,
    waiting: std::cell::Cell<u32>,
}

pub fn add_to(registry: Registry) -> Registry {
    let init = |_: &mut hatchery::rpc::InitCx| Ok(Gates { open: Notify::new(), waiting: std::cell::Cell::new(0) });
    registry.rpc("tokio", Entry::tokio(1000, init, script)).rpc("tokio_few", Entry::tokio(4, init, script))
}

/// `Linger` waits for a timer, `Count` opens the gate for all that wait there, and `Forget` waits there.
async fn script(gates: Rc<Gates>, act: Act, cx: AsyncCx<u32>) -> Result<Said, BoxError> {
    match act {
        Act::Say(number) => Ok(Said::Number(number)),
        Act::Events(events, number) => {
            for event in events {
                cx.events.send(&event)?;
                tokio::task::yield_now().await;
            }
            Ok(Said::Number(number))
        }
        Act::Fail(words) => Err(words.into()),
        Act::Panic(words) => panic!("{words}"),
        Act::Exit(code) => std::process::exit(code),
        Act::Forget => {
            gates.waiting.set(gates.waiting.get() + 1);
            let opened = gates.open.notified();
            cx.events.send(&gates.waiting.get())?;
            opened.await;
            Ok(Said::Number(gates.waiting.get()))
        }
        Act::Long(length) => Ok(Said::Text("0".repeat(length as usize))),
        Act::Unwritable => Ok(Said::Nothing),
        Act::UntilCancelled => {
            cx.events.send(&0)?;
            cx.until_cancelled().await;
            cx.events.send(&1)?;
            Ok(Said::Number(0))
        }
        Act::Count => {
            gates.open.notify_waiters();
            Ok(Said::Number(gates.waiting.get()))
        }
        Act::Linger(millis) => {
            tokio::time::sleep(Duration::from_millis(millis)).await;
            Ok(Said::Number(millis as u32))
        }
    }
}

fn any_order() -> Outcome {
    let client = scripted("tokio")?;
    let (tell, told) = mpsc::channel();
    for n in (0..200u64).rev() {
        let tell = tell.clone();
        client.submit(&Act::Linger(n % 20), move |reply| tell_test(&tell, (n, reply)))?;
    }
    let mut replies = BTreeMap::new();
    for _ in 0..200 {
        let (n, reply) = told.recv_timeout(SOON)?;
        assert_eq!(reply?, Said::Number((n % 20) as u32));
        assert!(replies.insert(n, ()).is_none(), "call {n} ended twice");
    }
    assert!(client.finish()?.success());
    Ok(())
}

fn order() -> Outcome {
    let client = scripted("tokio")?;
    let (tell, told) = mpsc::channel();
    let (tell_event, tell_reply) = (tell.clone(), tell);
    client.on_event(move |event| tell_test(&tell_event, format!("event {event}")))?;
    for n in 0..20 {
        let tell = tell_reply.clone();
        client.submit(&Act::Events(vec![n, n + 100], n), move |reply| tell_test(&tell, format!("{reply:?}")))?;
        // The calls do not come between each other's events.
        let told: Vec<String> = (0..3).map(|_| told.recv_timeout(SOON)).collect::<Result<_, _>>()?;
        assert_eq!(told, [format!("event {n}"), format!("event {}", n + 100), format!("Ok(Number({n}))")]);
    }
    assert!(client.finish()?.success());
    Ok(())
}

fn bound() -> Outcome {
    let process = Template::spawn()?.fork()?;
    let pid = Pid::from_raw(process.pid()?);
    let client = process.rpc::<Act, Said, u32>("tokio_few", Options::<Postcard>::new())?;
    let (tell, told) = mpsc::channel();
    client.on_event(move |event| tell_test(&tell, event))?;
    let (tell, replies) = mpsc::channel();
    for _ in 0..4 {
        let tell = tell.clone();
        client.submit(&Act::Forget, move |reply| tell_test(&tell, reply))?;
    }
    for n in 1..=4 {
        assert_eq!(told.recv_timeout(SOON)?, n);
    }
    // It would open the gate, and finds no room.
    let late = client.call_timeout(&Act::Count, Duration::from_millis(50));
    assert!(matches!(late, Err(Error::TimedOut { .. })), "{late:?}");
    assert!(replies.try_recv().is_err());
    kill(pid, Signal::SIGKILL)?;
    for _ in 0..4 {
        assert!(matches!(replies.recv_timeout(SOON)?, Err(Error::Lost { may_have_run: true, .. })));
    }
    Ok(())
}

fn cancel() -> Outcome {
    let client = scripted("tokio_few")?;
    let (tell, told) = mpsc::channel();
    client.on_event(move |event| tell_test(&tell, event))?;
    for _ in 0..5 {
        let held: Vec<_> = (0..4).map(|_| client.call_async(&Act::UntilCancelled)).collect();
        for _ in 0..4 {
            assert_eq!(told.recv_timeout(SOON)?, 0);
        }
        // As many as may be are unanswered, and the cancels are heard all the same.
        drop(held);
        for _ in 0..4 {
            assert_eq!(told.recv_timeout(SOON)?, 1);
        }
    }
    assert_eq!(client.call(&Act::Say(5))?, Said::Number(5));
    assert!(client.finish()?.success());
    Ok(())
}

fn panicking() -> Outcome {
    let client = scripted("tokio")?;
    let unanswered = client.call(&Act::Panic("a future that panics, as this test wants it".to_owned()));
    assert!(matches!(unanswered, Err(Error::Unanswered)), "{unanswered:?}");
    assert!(matches!(client.call(&Act::Fail("no".to_owned())), Err(Error::Handler { .. })));
    assert!(matches!(client.call(&Act::Unwritable), Err(Error::Reply { .. })));
    assert_eq!(client.call(&Act::Say(6))?, Said::Number(6));
    assert!(client.finish()?.success());
    Ok(())
}

fn event_before_waiting() -> Outcome {
    let client = scripted("tokio")?;
    let (tell, told) = mpsc::channel();
    client.on_event(move |event| tell_test(&tell, event))?;
    let waiting = client.call_async(&Act::Forget);
    assert_eq!(told.recv_timeout(SOON)?, 1);
    assert_eq!(client.call(&Act::Count)?, Said::Number(1));
    assert_eq!(crate::futures::block_on(waiting)?, Said::Number(1));
    assert!(client.finish()?.success());
    Ok(())
}

fn awaited() -> Outcome {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let client: Client<Act, Said, u32> = client("tokio", Options::<Postcard>::new().max_outstanding(7))?;
    runtime.block_on(async {
        let calls: Vec<_> = (0..100).map(|n| client.call_async(&Act::Say(n))).collect();
        for (n, call) in calls.into_iter().enumerate() {
            assert_eq!(call.await?, Said::Number(n as u32));
        }
        // A timeout of tokio's drops the future, which cancels the call.
        let late = tokio::time::timeout(Duration::from_millis(20), client.call_async(&Act::UntilCancelled)).await;
        assert!(late.is_err());
        assert_eq!(client.outstanding(), 0);
        let late = client.call_async_timeout(&Act::UntilCancelled, Duration::from_millis(20)).await;
        assert!(matches!(late, Err(Error::TimedOut { may_have_run: true })), "{late:?}");
        Ok::<(), Error>(())
    })?;
    assert!(client.finish()?.success());
    Ok(())
}

fn finishing() -> Outcome {
    let client = scripted("tokio")?;
    let (tell, told) = mpsc::channel();
    for n in 0..50 {
        let tell = tell.clone();
        client.submit(&Act::Linger(n % 7), move |reply| tell_test(&tell, reply.is_ok()))?;
    }
    drop(tell);
    assert!(client.finish()?.success());
    assert_eq!(told.try_iter().filter(|answered| *answered).count(), 50);
    Ok(())
}
