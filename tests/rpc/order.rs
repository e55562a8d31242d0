//! Replies and events, in the order in which the process made them.

use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use hatchery::proc::Template;
use hatchery::rpc::{Client, Json, Options, Postcard};
use libtest_mimic::Trial;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::entries::{Act, Said, Script, client, scripted, tell_test};
use crate::support::{Outcome, test};

const SOON: Duration = Duration::from_secs(30);

pub fn tests() -> Vec<Trial> {
    vec![
        test("events_and_replies_come_in_the_order_of_their_making", || in_order(scripted("script")?)),
        test("events_and_replies_come_in_the_order_of_their_making_deferred", || {
            in_order(scripted("script_deferred")?)
        }),
        test("events_and_replies_come_in_the_order_of_their_making_in_json", || {
            in_order(client("script_json", Options::new().codec::<Json>())?)
        }),
        test("a_waiting_caller_has_seen_all_events_before_its_reply", || waiting(scripted("script")?)),
        test("a_waiting_caller_has_seen_all_events_before_its_reply_deferred", || {
            waiting(scripted("script_deferred")?)
        }),
        test("answers_may_come_in_any_order_and_reach_their_callers", reversed),
        test("answers_of_many_threads_reach_their_callers", of_threads),
        test("a_hundred_thousand_pipelined_calls_are_answered_in_order", || pipelined(scripted("script")?)),
        test("a_hundred_thousand_pipelined_calls_are_answered_in_order_deferred", || {
            pipelined(scripted("script_deferred")?)
        }),
        test("many_threads_may_call_at_once", || many_threads(scripted("script")?)),
        test("many_threads_may_call_at_once_deferred", || many_threads(scripted("script_deferred_few")?)),
        test("init_runs_once_with_arguments_and_descriptors", init),
        test("an_event_of_a_process_at_rest_arrives_though_the_last_caller_waited_itself", event_at_rest),
        test("a_reply_is_not_kept_by_a_slow_call_behind_it", quick_before_slow),
    ]
}

/// Call `n` has the events `3n` and `3n + 1` and the reply `3n + 2`: all numbers, in their order.
fn in_order(client: Script) -> Outcome {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let events = Arc::clone(&seen);
    client.on_event(move |event| events.lock().unwrap().push(event))?;
    for n in 0..1000 {
        let replies = Arc::clone(&seen);
        client.submit(&Act::Events(vec![3 * n, 3 * n + 1], 3 * n + 2), move |reply| {
            let Ok(Said::Number(number)) = reply else { panic!("{reply:?}") };
            replies.lock().unwrap().push(number);
        })?;
    }
    assert!(client.finish()?.success());
    assert_eq!(*seen.lock().unwrap(), (0..3000).collect::<Vec<u32>>());
    Ok(())
}

fn waiting(client: Script) -> Outcome {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let events = Arc::clone(&seen);
    client.on_event(move |event| events.lock().unwrap().push(event))?;
    for n in 0..300 {
        let reply = client.call(&Act::Events(vec![3 * n, 3 * n + 1], 3 * n + 2))?;
        assert_eq!(reply, Said::Number(3 * n + 2));
        seen.lock().unwrap().push(3 * n + 2);
        assert_eq!(seen.lock().unwrap().len() as u32, 3 * n + 3);
    }
    assert_eq!(*seen.lock().unwrap(), (0..900).collect::<Vec<u32>>());
    assert!(client.finish()?.success());
    Ok(())
}

fn reversed() -> Outcome {
    let client: Client<u32, u32, u32> = client("reversed", Options::<Postcard>::new())?;
    let seen = Arc::new(Mutex::new(Vec::new()));
    let events = Arc::clone(&seen);
    client.on_event(move |event| events.lock().unwrap().push(event))?;
    for call in 0..500 {
        let replies = Arc::clone(&seen);
        client.submit(&call, move |reply| {
            assert_eq!(reply.as_ref().ok(), Some(&call));
            replies.lock().unwrap().push(call);
        })?;
    }
    assert!(client.finish()?.success());
    let tens = (0..50).flat_map(|ten| (0..10).rev().flat_map(move |call| [ten * 10 + call; 2]));
    assert_eq!(*seen.lock().unwrap(), tens.collect::<Vec<u32>>());
    Ok(())
}

fn of_threads() -> Outcome {
    let client: Client<u32, u32, u32> = client("threads", Options::<Postcard>::new())?;
    let (tell, told) = mpsc::channel();
    let events = tell.clone();
    client.on_event(move |event| tell_test(&events, (event, "event")))?;
    for call in 0..3000 {
        let tell = tell.clone();
        client.submit(&call, move |reply| {
            assert_eq!(reply.as_ref().ok(), Some(&call));
            tell_test(&tell, (call, "reply"));
        })?;
    }
    assert!(client.finish()?.success());
    drop(tell);
    let told: Vec<(u32, &str)> = told.try_iter().collect();
    assert_eq!(told.len(), 6000);
    for call in 0..3000 {
        let of_call: Vec<&str> = told.iter().filter(|(other, _)| *other == call).map(|(_, what)| *what).collect();
        assert_eq!(of_call, ["event", "reply"], "call {call}");
    }
    Ok(())
}

fn pipelined(client: Script) -> Outcome {
    let (tell, told) = mpsc::sync_channel(200_000);
    for n in 0..100_000 {
        let mut made = false;
        while !made {
            let tell = tell.clone();
            made = match client.submit(&Act::Say(n), move |reply| drop(tell.try_send(reply))) {
                Ok(()) => true,
                Err(hatchery::rpc::Error::Full) => {
                    std::thread::yield_now();
                    false
                }
                Err(error) => return Err(error.into()),
            };
        }
    }
    for n in 0..100_000 {
        assert_eq!(told.recv_timeout(SOON)??, Said::Number(n));
    }
    assert!(client.finish()?.success());
    Ok(())
}

fn many_threads(client: Script) -> Outcome {
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8)
            .map(|thread| {
                let client = &client;
                scope.spawn(move || {
                    for n in 0..500 {
                        let number = thread * 1000 + n;
                        match client.call(&Act::Say(number)) {
                            Ok(Said::Number(said)) if said == number => {}
                            other => panic!("{number}: {other:?}"),
                        }
                    }
                })
            })
            .collect();
        for thread in threads {
            thread.join().map_err(|_| "a thread failed")?;
        }
        Ok::<(), Box<dyn std::error::Error>>(())
    })?;
    assert_eq!(client.outstanding(), 0);
    assert!(client.finish()?.success());
    Ok(())
}

fn init() -> Outcome {
    let mut file = tempfile::tempfile()?;
    std::io::Write::write_all(&mut file, b"in a file")?;
    std::io::Seek::rewind(&mut file)?;
    let process = Template::spawn()?.fork()?.send_arg("an argument")?.send_fd(file)?;
    let client: Client<u32, String, ()> = process.rpc("init", Options::<Postcard>::new())?;
    assert_eq!(client.call(&0)?, "an argument");
    assert_eq!(client.call(&1)?, "in a file");
    assert_eq!(client.call(&1)?, "in a file");
    assert!(client.finish()?.success());
    Ok(())
}

fn event_at_rest() -> Outcome {
    let client = scripted("script_deferred")?;
    let (tell, told) = mpsc::channel();
    client.on_event(move |event| tell_test(&tell, event))?;
    for _ in 0..20 {
        // Its thread goes on after the call's future is dropped, and after the next reply.
        let cancelled = client.call_async(&Act::UntilCancelled);
        assert_eq!(told.recv_timeout(SOON)?, 0);
        client.call(&Act::Say(1))?;
        drop(cancelled);
        assert_eq!(told.recv_timeout(SOON)?, 1);
    }
    Ok(())
}

/// Many calls wait together, the last of which goes on until it is cancelled.
fn quick_before_slow() -> Outcome {
    let process = Template::spawn()?.fork()?;
    let pid = Pid::from_raw(process.pid()?);
    let client = process.rpc::<Act, Said, u32>("script", Options::<Postcard>::new())?;
    let (tell, told) = mpsc::channel();
    for slow_after in [1, 8, 12, 15] {
        kill(pid, Signal::SIGSTOP)?;
        for n in 0..slow_after {
            let tell = tell.clone();
            client.submit(&Act::Say(n), move |reply| tell_test(&tell, reply))?;
        }
        let slow = client.call_async(&Act::UntilCancelled);
        kill(pid, Signal::SIGCONT)?;
        for n in 0..slow_after {
            assert_eq!(told.recv_timeout(SOON)??, Said::Number(n));
        }
        drop(slow);
    }
    assert!(client.finish()?.success());
    Ok(())
}
