//! Calls over several workers, events, futures, finishing and dropping.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::Duration;

use hatchery::proc::{Process, Template};
use hatchery::rpc::{Error, OpenError, Pool, PoolOptions};
use libtest_mimic::Trial;

use super::tasks::{Task, Tasks, pool};
use super::{SOON, eventually, exists};
use crate::entries::tell_test;
use crate::futures::block_on;
use crate::support::{Outcome, test};

pub fn tests() -> Vec<Trial> {
    vec![
        test("a_pool_carries_out_many_calls_over_several_workers", || many("tasks")),
        test("a_pool_carries_out_many_calls_over_several_workers_deferred", || many("tasks_deferred")),
        test("events_of_a_pool_come_with_their_worker_before_the_reply", || events("tasks")),
        test("events_of_a_pool_come_with_their_worker_before_the_reply_deferred", || events("tasks_deferred")),
        test("a_dropped_pool_does_what_was_submitted_and_then_all_its_processes_leave", || dropped("tasks")),
        test("a_dropped_pool_does_what_was_submitted_and_then_all_its_processes_leave_deferred", || {
            dropped("tasks_deferred")
        }),
        test("many_threads_may_call_a_pool_and_its_clones", threads),
        test("futures_of_a_pool_need_no_runtime", futures),
        test("a_future_that_is_dropped_in_the_queue_never_runs", dropped_future),
        test("a_finished_pool_takes_no_call_of_its_clones", finished),
        test("a_pool_that_was_never_called_has_no_process_and_finishes", unused),
        test("a_pool_of_the_default_template_needs_nothing_else", default_template),
        test("an_error_of_a_handler_is_that_calls_alone_in_a_pool", handler_error),
        test("a_callback_of_a_pool_may_submit_and_must_not_wait", in_callback),
        test("options_that_cannot_be_meant_open_no_pool", options),
        test("no_descriptor_and_no_thread_is_left_of_pools", nothing_left),
        test("what_the_handlers_of_a_pool_hold_is_let_go_when_it_has_finished", handlers_let_go),
    ]
}

fn many(entry: &str) -> Outcome {
    let pool = pool(entry, PoolOptions::new().max(4).load(2).start_delay(Duration::ZERO))?;
    let (tell, told) = mpsc::channel();
    for n in 0..10 {
        let tell = tell.clone();
        pool.submit(&Task::Say(n), move |reply| tell_test(&tell, (n, reply)))?;
    }
    let workers = tell.clone();
    for _ in 0..20 {
        let tell = workers.clone();
        pool.submit(&Task::Work(20), move |reply| tell_test(&tell, (99, reply)))?;
    }
    let statistics = pool.finish()?;
    drop((tell, workers));
    let (mut said, mut pids) = (Vec::new(), BTreeSet::new());
    for (n, reply) in told.try_iter() {
        match n {
            99 => drop(pids.insert(reply?)),
            n => said.push((n, reply?)),
        }
    }
    said.sort_unstable();
    assert_eq!(said, (0..10).map(|n| (n, n)).collect::<Vec<_>>());
    assert!((2..=4).contains(&pids.len()), "{pids:?}");
    assert_eq!((statistics.answered, statistics.in_flight, statistics.lost), (30, 0, 0));
    assert!(pids.iter().all(|pid| !exists(*pid as i32)), "a process is left");
    Ok(())
}

fn events(entry: &str) -> Outcome {
    let pool = pool(entry, PoolOptions::new().max(3).start_delay(Duration::ZERO))?;
    let seen = Arc::new(Mutex::new(Vec::new()));
    let told = Arc::clone(&seen);
    pool.on_event(move |worker, event| told.lock().unwrap().push((event, worker)));
    for n in 0..300 {
        let seen = Arc::clone(&seen);
        pool.submit(&Task::Events(3 * n), move |reply| {
            assert_eq!(reply.as_ref().ok(), Some(&(3 * n + 2)));
            let seen = seen.lock().unwrap();
            let own: Vec<_> = seen.iter().filter(|(event, _)| event / 3 == n).collect();
            assert_eq!((own.len(), own[0].0, own[1].0), (2, 3 * n, 3 * n + 1));
            assert_eq!(own[0].1, own[1].1, "both are of one worker");
            assert!(own[0].1.pid.is_some());
        })?;
    }
    assert_eq!(pool.finish()?.answered, 300);
    assert_eq!(seen.lock().unwrap().len(), 600);
    Ok(())
}

fn dropped(entry: &str) -> Outcome {
    let template = Template::spawn()?;
    let template_pid = template.pid()?;
    let pool: Tasks = template.pool(entry, PoolOptions::new().min(1).max(3).start_delay(Duration::ZERO))?;
    let (tell, told) = mpsc::channel();
    for n in 0..50 {
        let tell = tell.clone();
        let task = if n % 10 == 9 { Task::Work(5) } else { Task::Who };
        pool.submit(&task, move |reply| tell_test(&tell, reply))?;
    }
    drop((pool, tell));
    let pids: Vec<u32> = told.iter().collect::<Result<_, _>>()?;
    assert_eq!(pids.len(), 50);
    for pid in pids {
        eventually("its workers are gone", || !exists(pid as i32))?;
    }
    eventually("its template is gone", || !exists(template_pid))
}

fn threads() -> Outcome {
    let pool = pool("tasks", PoolOptions::new().max(3).start_delay(Duration::ZERO))?;
    thread::scope(|scope| {
        let threads: Vec<_> = (0..6)
            .map(|thread| {
                let pool = pool.clone();
                scope.spawn(move || {
                    for n in 0..200 {
                        let number = thread * 1000 + n;
                        let said = match n % 3 {
                            0 => block_on(pool.call_async(&Task::Say(number))),
                            1 => pool.call_timeout(&Task::Say(number), SOON),
                            _ => pool.call(&Task::Say(number)),
                        };
                        assert_eq!(said.as_ref().ok(), Some(&number), "{said:?}");
                    }
                })
            })
            .collect();
        threads.into_iter().try_for_each(|thread| thread.join().map_err(|_| "a thread failed"))
    })?;
    let statistics = pool.finish()?;
    assert_eq!((statistics.answered, statistics.timed_out, statistics.cancelled), (1200, 0, 0));
    Ok(())
}

fn futures() -> Outcome {
    let pool = pool("tasks", PoolOptions::new().max(2).queue(3).start_delay(Duration::ZERO))?;
    let futures: Vec<_> = (0..100).map(|n| pool.call_async(&Task::Say(n))).collect();
    for (n, future) in futures.into_iter().enumerate() {
        assert_eq!(block_on(future)?, n as u32);
    }
    assert!(matches!(block_on(pool.call_async(&Task::Abort)), Err(Error::Lost { may_have_run: true, .. })));
    assert_eq!(block_on(pool.call_async(&Task::Say(5)))?, 5);
    pool.finish()?;
    Ok(())
}

fn dropped_future() -> Outcome {
    let pool = pool("tasks", PoolOptions::new().max(1))?;
    assert_eq!(pool.call(&Task::Count)?, 1);
    let (tell, told) = mpsc::channel();
    pool.on_event(move |_, event| tell_test(&tell, event));
    let held = pool.call_async(&Task::UntilCancelled);
    assert_eq!(told.recv_timeout(SOON)?, 0);
    let others: Vec<_> = (0..20).map(|_| pool.call_async(&Task::Count)).collect();
    drop(others);
    drop(held);
    assert_eq!(pool.call(&Task::Count)?, 3);
    assert_eq!(pool.statistics().cancelled, 21);
    Ok(())
}

fn finished() -> Outcome {
    let pool = pool("tasks", PoolOptions::new())?;
    let clone = pool.clone();
    pool.call(&Task::Say(1))?;
    pool.finish()?;
    assert!(matches!(clone.call(&Task::Say(1)), Err(Error::Finished)));
    assert!(matches!(clone.submit(&Task::Say(1), |_| ()), Err(Error::Finished)));
    assert!(matches!(block_on(clone.call_async(&Task::Say(1))), Err(Error::Finished)));
    assert_eq!(clone.finish()?.answered, 1);
    Ok(())
}

fn unused() -> Outcome {
    let pool = pool("tasks", PoolOptions::new())?;
    assert!(pool.workers().is_empty());
    assert_eq!(pool.finish()?.started, 0);
    Ok(())
}

fn default_template() -> Outcome {
    let pool: Tasks = Pool::new("tasks", PoolOptions::new(), Process::new)?;
    assert_eq!(pool.call(&Task::Say(7))?, 7);
    pool.finish()?;
    Ok(())
}

fn handler_error() -> Outcome {
    let pool = pool("tasks", PoolOptions::new().max(1))?;
    let pid = pool.call(&Task::Who)?;
    match pool.call(&Task::Fail("this one is wrong".to_owned())) {
        Err(Error::Handler { words }) => assert_eq!(words, "this one is wrong"),
        other => panic!("{other:?}"),
    }
    assert_eq!(pool.call(&Task::Who)?, pid);
    assert_eq!((pool.statistics().failed, pool.statistics().answered), (1, 2));
    Ok(())
}

fn in_callback() -> Outcome {
    let pool = pool("tasks", PoolOptions::new())?;
    let (tell, told) = mpsc::channel();
    let again = pool.clone();
    pool.submit(&Task::Say(1), move |_| {
        assert!(matches!(again.call(&Task::Say(2)), Err(Error::InCallback)));
        let told = tell.clone();
        let submitted = again.submit(&Task::Say(3), move |reply| tell_test(&told, reply));
        assert!(submitted.is_ok());
        assert!(matches!(again.finish(), Err(Error::InCallback)));
    })?;
    assert_eq!(told.recv_timeout(SOON)??, 3);
    Ok(())
}

fn options() -> Outcome {
    let opened: Result<Tasks, OpenError> = Pool::new("tasks", PoolOptions::new().max(2).min(3), Process::new);
    let error = opened.err().ok_or("it is open")?;
    assert_eq!(error.to_string(), "the option min of a pool is 3: it must be at most max, which is 2");
    Ok(())
}

fn nothing_left() -> Outcome {
    let mut template = Template::spawn()?;
    let before = (descriptors()?, keepers()?);
    for _ in 0..60 {
        let pool: Tasks = template.fork()?.into_template().pool("tasks", PoolOptions::new().max(2))?;
        pool.call(&Task::Say(1))?;
        assert!(matches!(pool.call(&Task::Abort), Err(Error::Lost { .. })));
        pool.finish()?;
    }
    // Other tests have pools at the same time, but not so many.
    eventually("descriptors are closed", || descriptors().is_ok_and(|now| now < before.0 + 100))?;
    eventually("threads have ended", || keepers().is_ok_and(|now| now < before.1 + 30))
}

/// Each of them holds a clone of the pool, as one does that submits.
fn handlers_let_go() -> Outcome {
    let pool = pool("tasks", PoolOptions::new())?;
    let (tell, told) = mpsc::channel();
    let (of_events, of_exits) = ((pool.clone(), tell.clone()), (pool.clone(), tell));
    pool.on_event(move |_, _| tell_test(&of_events.1, of_events.0.statistics().busy));
    pool.on_worker_exit(move |_| tell_test(&of_exits.1, of_exits.0.statistics().busy));
    assert_eq!(pool.call(&Task::Events(1))?, 3);
    pool.finish()?;
    assert_eq!(told.try_iter().collect::<Vec<_>>(), [1, 1, 0]);
    assert_eq!(told.try_recv(), Err(mpsc::TryRecvError::Disconnected));
    Ok(())
}

fn descriptors() -> Result<usize, std::io::Error> {
    Ok(std::fs::read_dir("/proc/self/fd")?.count())
}

/// How many threads of pools this process has.
fn keepers() -> Result<usize, std::io::Error> {
    let names =
        std::fs::read_dir("/proc/self/task")?.flatten().map(|entry| std::fs::read_to_string(entry.path().join("comm")));
    let mut count = BTreeMap::new();
    names.flatten().for_each(|name| *count.entry(name).or_insert(0) += 1);
    Ok(count.get("hatchery-pool\n").copied().unwrap_or(0))
}
