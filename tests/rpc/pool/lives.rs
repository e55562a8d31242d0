//! How many workers there are, how long they live, and what comes of those that cannot be started.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use hatchery::proc::Template;
use hatchery::rpc::{Cause, Error, Late, Lost, Pool, PoolOptions};
use libtest_mimic::Trial;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::tasks::{Task, Tasks, pool};
use super::{SOON, eventually, exists};
use crate::entries::tell_test;
use crate::support::{Outcome, test};

pub fn tests() -> Vec<Trial> {
    vec![
        test("a_pool_keeps_its_least_number_of_workers", least),
        test("a_pool_grows_one_by_one_after_the_delay_and_never_beyond_max", grows),
        test("idle_workers_leave_after_the_delay_and_some_are_kept", shrinks),
        test("a_worker_gets_no_more_calls_than_it_may", by_calls),
        test("one_call_for_each_process_if_that_is_wanted", one_call_each),
        test("a_leaking_worker_is_replaced", by_memory),
        test("an_old_worker_is_replaced_and_calls_go_on", by_age),
        test("a_worker_that_cannot_start_is_told_to_the_callers_with_its_words", never_starts),
        test("a_pool_recovers_when_its_workers_can_start_again", recovers),
        test("a_worker_that_hangs_in_its_init_is_killed", hangs),
        test("workers_that_die_idle_are_started_with_growing_delays", die_idle),
    ]
}

fn least() -> Outcome {
    let pool = pool("tasks", PoolOptions::new().min(2).max(3))?;
    for _ in 0..3 {
        eventually("both are there", || pool.statistics().idle == 2)?;
        for worker in pool.workers() {
            let pid = worker.pid.ok_or("an idle worker has a pid")?;
            // One that dies within a second without a call would count as a failed start.
            kill(Pid::from_raw(pid), Signal::SIGKILL)?;
            eventually("it is gone", || !exists(pid))?;
        }
        // The pool may hear of a death a moment later.
        assert_eq!(pool.prepare(&Task::Say(1)).repeatable(2).call()?, 1);
    }
    eventually("both are there", || pool.statistics().idle == 2)?;
    let pids: Vec<_> = pool.workers().into_iter().filter_map(|worker| worker.pid).collect();
    drop(pool);
    for pid in pids {
        eventually("it is gone", || !exists(pid))?;
    }
    Ok(())
}

fn grows() -> Outcome {
    let delay = Duration::from_millis(60);
    let pool = pool("tasks", PoolOptions::new().max(3).start_delay(delay))?;
    pool.call(&Task::Say(1))?;
    let (tell, told) = mpsc::channel();
    pool.on_event(move |worker, _| tell_test(&tell, (worker, Instant::now())));
    let begun = Instant::now();
    let held: Vec<_> = (0..6).map(|_| pool.call_async(&Task::UntilCancelled)).collect();
    let mut workers = BTreeSet::new();
    for number in 0..3 {
        let (worker, at) = told.recv_timeout(SOON)?;
        workers.insert(worker.number);
        assert!(at >= begun + delay * number, "worker {number} came {:?} after the calls", at - begun);
    }
    assert_eq!(workers.len(), 3);
    assert_eq!(pool.statistics().queued, 3);
    assert_eq!((pool.statistics().started, pool.workers().len()), (3, 3));
    drop(held);
    pool.finish()?;
    Ok(())
}

fn shrinks() -> Outcome {
    let delay = Duration::from_millis(80);
    let options = PoolOptions::new().max(4).idle(1).start_delay(Duration::ZERO).stop_delay(delay);
    let pool = pool("tasks", options)?;
    let (tell, told) = mpsc::channel();
    pool.on_worker_exit(move |exit| tell_test(&tell, (exit.cause, exit.exit, Instant::now())));
    let held: Vec<_> = (0..4).map(|_| pool.call_async(&Task::UntilCancelled)).collect();
    eventually("all are busy", || pool.statistics().busy == 4)?;
    let idle = Instant::now();
    drop(held);
    for _ in 0..3 {
        let (cause, exit, at) = told.recv_timeout(SOON)?;
        assert_eq!(cause, Cause::Idle);
        assert!(exit?.success());
        assert!(at >= idle + delay, "it left after {:?}", at - idle);
    }
    assert_eq!(pool.statistics().idle, 1);
    // The one that is kept stays: for several delays nobody leaves.
    assert!(told.recv_timeout(4 * delay).is_err());
    assert_eq!(pool.statistics().idle, 1);
    Ok(())
}

fn by_calls() -> Outcome {
    let pool = pool("tasks", PoolOptions::new().max(2).max_calls(10))?;
    let mut calls: BTreeMap<u32, u32> = BTreeMap::new();
    for _ in 0..100 {
        *calls.entry(pool.call(&Task::Who)?).or_default() += 1;
    }
    assert!(calls.values().all(|calls| *calls <= 10), "{calls:?}");
    assert!(calls.len() >= 10, "{calls:?}");
    let statistics = pool.finish()?;
    assert_eq!((statistics.answered, statistics.restarts), (100, 0));
    assert!(statistics.recycled >= 9, "{statistics:?}");
    Ok(())
}

fn one_call_each() -> Outcome {
    let pool = pool("tasks", PoolOptions::new().max(3).max_calls(1).start_delay(Duration::ZERO))?;
    let (tell, told) = mpsc::channel();
    for _ in 0..40 {
        let tell = tell.clone();
        pool.submit(&Task::Count, move |reply| tell_test(&tell, reply))?;
    }
    for _ in 0..40 {
        assert_eq!(told.recv_timeout(SOON)??, 1, "it is its worker's first");
    }
    assert_eq!(pool.finish()?.recycled, 40);
    Ok(())
}

fn by_memory() -> Outcome {
    let pool = pool("tasks", PoolOptions::new().max(2).min(1).max_memory(192 << 20))?;
    let (tell, told) = mpsc::channel();
    pool.on_worker_exit(move |exit| tell_test(&tell, exit));
    let leaking = pool.call(&Task::Leak(32 << 20))?;
    let mut other = leaking;
    for call in 0..200 {
        // It is looked at within 100 ms after a call: meanwhile it leaks on, but not for long.
        if call > 5 && other == leaking {
            eventually("it is looked at", || pool.statistics().leaving > 0 || pool.statistics().recycled > 0)?;
        }
        other = pool.call(&Task::Leak(32 << 20))?;
        if other != leaking {
            break;
        }
    }
    assert_ne!(other, leaking, "it was not replaced");
    let exit = told.recv_timeout(SOON)?;
    assert_eq!((exit.cause, exit.worker.pid), (Cause::Memory, Some(leaking as i32)));
    assert!(exit.in_hand.is_empty() && exit.exit.is_ok_and(|exit| exit.success()));
    assert_eq!(pool.statistics().lost, 0);
    Ok(())
}

fn by_age() -> Outcome {
    let pool = pool("tasks", PoolOptions::new().max(2).min(1).max_age(Duration::from_millis(60)))?;
    let mut pids = BTreeSet::new();
    let deadline = Instant::now() + SOON;
    while pids.len() < 5 && Instant::now() < deadline {
        pids.insert(pool.call(&Task::Who)?);
    }
    assert!(pids.len() >= 5, "{pids:?}");
    let statistics = pool.finish()?;
    assert_eq!((statistics.lost, statistics.failed_starts, statistics.restarts), (0, 0, 0));
    Ok(())
}

/// A pool whose workers start only if there is such a file.
fn conditional(path: &std::path::Path, options: PoolOptions) -> Result<Tasks, Box<dyn std::error::Error>> {
    let mut template = Template::spawn()?;
    template.send_arg(path.to_str().ok_or("a path in UTF-8")?)?;
    Ok(template.pool("tasks_if", options)?)
}

fn never_starts() -> Outcome {
    let folder = tempfile::tempdir()?;
    let pool = conditional(&folder.path().join("words"), PoolOptions::new().max(2).start_attempts(3))?;
    let (tell, told) = mpsc::channel();
    for _ in 0..5 {
        let tell = tell.clone();
        pool.submit(&Task::Say(1), move |reply| tell_test(&tell, reply))?;
    }
    for _ in 0..5 {
        match told.recv_timeout(SOON)? {
            Err(Error::NoWorker { may_have_run: false, why: Lost::Died(exit) }) => {
                let words = exit.to_string();
                assert!(words.contains("the dictionary") && words.contains("is missing"), "{words}");
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(pool.statistics().failed_starts, 3);
    // From now on it is told at once.
    assert!(matches!(pool.call(&Task::Say(1)), Err(Error::NoWorker { .. })));
    let statistics = pool.finish()?;
    assert!(statistics.failed_starts <= 4, "it spins: {statistics:?}");
    Ok(())
}

fn recovers() -> Outcome {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("words");
    let pool = conditional(&path, PoolOptions::new().max(2).start_attempts(2))?;
    assert!(matches!(pool.call(&Task::Say(1)), Err(Error::NoWorker { .. })));
    std::fs::write(&path, "to be or not to be")?;
    eventually("it serves again", || pool.call(&Task::Say(1)).is_ok())?;
    std::fs::remove_file(&path)?;
    // Those who serve go on.
    assert_eq!(pool.call(&Task::Say(2))?, 2);
    pool.finish()?;
    Ok(())
}

fn hangs() -> Outcome {
    let options = PoolOptions::new().max(1).start_attempts(2).start_within(Duration::from_millis(50));
    let pool = pool("tasks_never", options)?;
    let (tell, told) = mpsc::channel();
    pool.on_worker_exit(move |exit| tell_test(&tell, exit));
    match pool.call(&Task::Say(1)) {
        Err(Error::NoWorker { may_have_run: false, why: Lost::Killed { late: Late::Ready } }) => {}
        other => panic!("{other:?}"),
    }
    for _ in 0..2 {
        let exit = told.recv_timeout(SOON)?;
        assert_eq!(exit.cause, Cause::Late(Late::Ready));
        assert!(exit.worker.pid.is_some_and(|pid| !exists(pid)));
    }
    pool.finish()?;
    Ok(())
}

fn die_idle() -> Outcome {
    let pool: Tasks = Pool::new("tasks_die_idle", PoolOptions::new().max(2).min(2), {
        let mut template = Template::spawn()?;
        move || template.fork()
    })?;
    eventually("several have died", || pool.statistics().failed_starts >= 4)?;
    // The fifth comes 700 ms after the first at the earliest: 100, 200 and 400, a quarter less.
    assert!(pool.statistics().started <= 6, "{:?}", pool.statistics());
    Ok(())
}
