//! The queue's bound, back-pressure and refusal, and the patience of callers.

use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use hatchery::proc::Template;
use hatchery::rpc::{Error, Pool, PoolOptions, WhenFull};
use libtest_mimic::Trial;

use super::tasks::{Task, Tasks, pool};
use super::{SOON, eventually};
use crate::entries::{tell_test, until_begun};
use crate::support::{Outcome, test};

pub fn tests() -> Vec<Trial> {
    vec![
        test("a_submit_beyond_the_queue_of_a_pool_is_refused_and_a_call_waits_in_order", full),
        test("a_pool_that_is_told_to_refuses_calls_beyond_its_queue", refused),
        test("bytes_in_the_queue_of_a_pool_are_bounded_too", bytes),
        test("a_caller_of_a_pool_waits_no_longer_than_his_patience", impatient),
        test("at_the_end_of_patience_the_handler_is_told_and_its_worker_lives", || told("tasks")),
        test("at_the_end_of_patience_the_handler_is_told_and_its_worker_lives_deferred", || told("tasks_deferred")),
        test("a_call_that_began_and_waits_to_be_repeated_may_have_run_when_patience_ends", waits_again),
        test("calls_of_a_pool_begin_in_the_order_in_which_they_were_made", in_order),
    ]
}

/// Keeps the one worker of the pool busy until the future is dropped.
fn held(pool: &Tasks) -> Result<hatchery::rpc::PoolFuture<u32>, Box<dyn std::error::Error>> {
    let (tell, told) = mpsc::channel();
    pool.on_event(move |_, event| tell_test(&tell, event));
    let held = pool.call_async(&Task::UntilCancelled);
    assert_eq!(told.recv_timeout(SOON)?, 0);
    Ok(held)
}

fn full() -> Outcome {
    let pool = pool("tasks", PoolOptions::new().max(1).queue(3))?;
    let held = held(&pool)?;
    let (tell, told) = mpsc::channel();
    for n in 0..3 {
        let tell = tell.clone();
        pool.submit(&Task::Say(n), move |reply| tell_test(&tell, reply))?;
    }
    assert!(matches!(pool.submit(&Task::Say(9), |_| ()), Err(Error::Full)));
    thread::scope(|scope| {
        let waiting = scope.spawn(|| pool.call(&Task::Say(3)));
        eventually("a caller waits for room", || pool.statistics().waiting == 1)?;
        assert!(matches!(pool.submit(&Task::Say(9), |_| ()), Err(Error::Full)));
        assert_eq!(pool.statistics().queued, 3);
        drop(held);
        for n in 0..3 {
            assert_eq!(told.recv_timeout(SOON)??, n);
        }
        assert!(matches!(waiting.join(), Ok(Ok(3))));
        Ok(())
    })
}

fn refused() -> Outcome {
    let pool = pool("tasks", PoolOptions::new().max(1).queue(1).when_full(WhenFull::Refuse))?;
    let held = held(&pool)?;
    pool.submit(&Task::Say(1), |_| ())?;
    for _ in 0..3 {
        let refused = pool.call(&Task::Say(9));
        assert!(matches!(refused, Err(Error::Full)), "{refused:?}");
        assert!(!refused.is_err_and(|error| error.may_have_run()));
    }
    drop(held);
    eventually("there is room", || pool.statistics().queued == 0)?;
    assert_eq!(pool.call(&Task::Say(5))?, 5);
    assert_eq!(pool.finish()?.refused, 3);
    Ok(())
}

fn bytes() -> Outcome {
    let pool = pool("tasks", PoolOptions::new().max(1).max_queued(100_000))?;
    let held = held(&pool)?;
    let long = Task::Fail("x".repeat(30_000));
    let mut submitted = 0;
    let refused = loop {
        match pool.submit(&long, |_| ()) {
            Ok(()) => submitted += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(refused, Error::Full));
    assert_eq!(submitted, 4);
    drop(held);
    assert_eq!(pool.finish()?.failed, 4);
    Ok(())
}

fn impatient() -> Outcome {
    let pool = pool("tasks", PoolOptions::new().max(1).queue(1))?;
    let held = held(&pool)?;
    let soon = Duration::from_millis(20);
    let (tell, told) = mpsc::channel();
    // One in the queue, and one that waits for room.
    pool.prepare(&Task::Say(1)).timeout(soon).submit(move |reply| tell_test(&tell, reply))?;
    let waiting = pool.call_timeout(&Task::Say(2), soon);
    assert!(matches!(waiting, Err(Error::TimedOut { may_have_run: false })), "{waiting:?}");
    let queued = told.recv_timeout(SOON)?;
    assert!(matches!(queued, Err(Error::TimedOut { may_have_run: false })), "{queued:?}");
    let statistics = pool.statistics();
    assert_eq!((statistics.queued, statistics.waiting), (0, 0));
    assert_eq!((statistics.timed_out, statistics.cancelled), (2, 0));
    drop(held);
    assert_eq!(pool.call(&Task::Count)?, 2, "what was given up has not run");
    Ok(())
}

fn told(entry: &str) -> Outcome {
    let pool = pool(entry, PoolOptions::new().max(1))?;
    let pid = pool.call(&Task::Who)?;
    let (tell, told) = mpsc::channel();
    pool.on_event(move |_, event| tell_test(&tell, event));
    let count = || pool.call(&Task::Count);
    let mut made = 0;
    for _ in 0..5 {
        made += until_begun(count, |patience| {
            let waited = pool.call_timeout(&Task::UntilCancelled, patience);
            assert!(matches!(waited, Err(Error::TimedOut { may_have_run: true })), "{waited:?}");
            Ok(())
        })?;
        assert_eq!((told.recv_timeout(SOON)?, told.recv_timeout(SOON)?), (0, 1));
        made += until_begun(count, |patience| {
            let (tell, ended) = mpsc::channel();
            pool.prepare(&Task::UntilCancelled).timeout(patience).submit(move |reply| tell_test(&tell, reply))?;
            let submitted = ended.recv_timeout(SOON)?;
            assert!(matches!(submitted, Err(Error::TimedOut { may_have_run: true })), "{submitted:?}");
            Ok(())
        })?;
        assert_eq!((told.recv_timeout(SOON)?, told.recv_timeout(SOON)?), (0, 1));
    }
    assert_eq!(pool.call(&Task::Who)?, pid);
    let statistics = pool.statistics();
    assert_eq!((statistics.timed_out, statistics.cancelled), (made, 0));
    Ok(())
}

/// With one worker, the order of beginning is that of the replies.
fn waits_again() -> Outcome {
    let mut template = Template::spawn()?;
    let (open, gate) = mpsc::channel::<()>();
    let mut first = true;
    // There is no second worker before the caller's patience has ended.
    let pool: Tasks = Pool::new("tasks", PoolOptions::new().max(1), move || {
        if !std::mem::take(&mut first) {
            let _ = gate.recv();
        }
        template.fork()
    })?;
    assert_eq!(pool.call(&Task::Say(1))?, 1);
    let outcome = pool.prepare(&Task::Kill).repeatable(1).timeout(Duration::from_millis(300)).call();
    assert!(matches!(outcome, Err(Error::TimedOut { may_have_run: true })), "{outcome:?}");
    drop(open);
    pool.finish()?;
    Ok(())
}

fn in_order() -> Outcome {
    let pool = pool("tasks", PoolOptions::new().max(1).load(4))?;
    let (tell, told) = mpsc::channel();
    for n in 0..2_000 {
        let tell = tell.clone();
        pool.submit(&Task::Say(n), move |reply| tell_test(&tell, reply))?;
    }
    for n in 0..2_000 {
        assert_eq!(told.recv_timeout(SOON)??, n);
    }
    pool.finish()?;
    Ok(())
}
