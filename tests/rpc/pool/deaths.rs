//! Workers that die: by themselves, by poison, by a deadline, by anybody.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use hatchery::proc::{How, Template};
use hatchery::rpc::{Cause, Descriptor, Error, Late, Lost, Pool, PoolOptions, WorkerExit};
use libtest_mimic::Trial;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::tasks::{Task, Tasks, pool};
use super::{SOON, eventually, exists};
use crate::entries::{Append, tell_test};
use crate::support::{Outcome, test};

pub fn tests() -> Vec<Trial> {
    vec![
        test("poison_kills_one_process_and_nobody_elses_call", poison),
        test("a_deadline_kills_and_replaces_just_that_process", deadline),
        test("a_deadline_of_the_pool_holds_for_each_call", deadline_of_the_pool),
        test("others_in_the_hand_of_a_killed_process_are_lost_or_repeated", in_hand),
        test("a_repeatable_call_is_repeated_so_often_and_no_more", repeated),
        test("a_call_that_is_not_repeatable_runs_once", not_repeated),
        test("however_workers_are_killed_each_call_ends_once", || storm("tasks", 1)),
        test("however_workers_are_killed_each_call_ends_once_pipelined", || storm("tasks", 8)),
        test("however_workers_are_killed_each_call_ends_once_deferred", || storm("tasks_deferred", 8)),
        test("an_exit_is_told_with_pid_how_why_and_what_was_in_hand", exits),
        test("a_handler_of_exits_may_set_another", handler_sets_another),
        test("a_killed_template_is_replaced_and_the_pool_goes_on", template_killed),
        test("a_repeated_call_that_cannot_begin_again_is_told_that_it_may_have_run", begun_before),
    ]
}

/// Sets it at the end of a scope, be it by a panic: other threads would go on for ever.
struct SetAtEnd<'a>(&'a AtomicBool);

impl Drop for SetAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn poison() -> Outcome {
    let pool = pool("tasks", PoolOptions::new().max(4).min(4))?;
    let stop = AtomicBool::new(false);
    let said = AtomicU32::new(0);
    thread::scope(|scope| {
        let stops = SetAtEnd(&stop);
        let innocent: Vec<_> = (0..2)
            .map(|_| {
                scope.spawn(|| {
                    while !stop.load(Ordering::Relaxed) {
                        let number = said.fetch_add(1, Ordering::Relaxed);
                        assert_eq!(pool.call(&Task::Say(number)).ok(), Some(number));
                    }
                })
            })
            .collect();
        for round in 0..10 {
            for (poison, how) in [
                (Task::Abort, How::Signal { signal: 6, core: false }),
                (Task::Exit(3), How::Code(3)),
                (Task::Overflow, How::Signal { signal: 6, core: false }),
                (Task::Kill, How::Signal { signal: 9, core: false }),
            ] {
                match pool.call(&poison) {
                    Err(Error::Lost { may_have_run: true, why: Lost::Died(exit) }) => match (exit.how, how) {
                        (How::Signal { signal, .. }, How::Signal { signal: other, .. }) => assert_eq!(signal, other),
                        (how, other) => assert_eq!(how, other),
                    },
                    other => panic!("{round}: {poison:?}: {other:?}"),
                }
            }
        }
        drop(stops);
        innocent.into_iter().try_for_each(|thread| thread.join().map_err(|_| "an innocent call was harmed"))
    })?;
    let statistics = pool.finish()?;
    assert_eq!((statistics.lost, statistics.restarts), (40, 40));
    assert_eq!(statistics.answered, u64::from(said.load(Ordering::Relaxed)));
    Ok(())
}

fn deadline() -> Outcome {
    let pool = pool("tasks", PoolOptions::new().max(2).min(2))?;
    eventually("both are ready", || pool.statistics().idle == 2)?;
    let before = pool.workers();
    let (tell, told) = mpsc::channel();
    pool.on_event(move |worker, _| tell_test(&tell, worker));
    for call in 0..2 {
        let outcome = if call == 0 {
            pool.prepare(&Task::Spin).deadline(Duration::from_millis(50)).call()
        } else {
            let (tell, told) = mpsc::channel();
            let spin = pool.prepare(&Task::Spin).deadline(Duration::from_millis(50)).repeatable(3);
            spin.submit(move |reply| tell_test(&tell, reply))?;
            told.recv_timeout(SOON)?
        };
        assert!(matches!(outcome, Err(Error::TimedOut { may_have_run: true })), "{outcome:?}");
        let stuck = told.recv_timeout(SOON)?;
        eventually("the stuck process is gone", || stuck.pid.is_some_and(|pid| !exists(pid)))?;
        eventually("there is another", || pool.statistics().idle == 2)?;
        if call == 0 {
            let after = pool.workers();
            assert_eq!(after.iter().filter(|worker| before.contains(worker)).count(), 1, "the other one lives on");
            assert!(!after.contains(&stuck));
        }
    }
    let statistics = pool.finish()?;
    assert_eq!((statistics.overdue, statistics.timed_out, statistics.retried), (2, 2, 0));
    Ok(())
}

fn deadline_of_the_pool() -> Outcome {
    let pool = pool("tasks", PoolOptions::new().max(1).deadline(Duration::from_millis(40)))?;
    let outcome = pool.call(&Task::Spin);
    assert!(matches!(outcome, Err(Error::TimedOut { may_have_run: true })), "{outcome:?}");
    assert_eq!(pool.prepare(&Task::Work(60)).deadline(SOON).call().map(drop).ok(), Some(()));
    assert_eq!(pool.finish()?.overdue, 1);
    Ok(())
}

fn in_hand() -> Outcome {
    // The first process comes when all calls wait for it: it is handed them at once, however busy the machine is.
    let (release, released) = mpsc::channel::<()>();
    let pool: Tasks = Pool::of_templates("tasks", PoolOptions::new().max(1).load(4), move || {
        let _ = released.recv();
        Template::spawn()
    })?;
    let (begun, beginning) = mpsc::channel();
    pool.on_event(move |worker, event| tell_test(&begun, (worker.pid, event)));
    let (tell, told) = mpsc::channel();
    for (name, task) in
        [("spin", Task::Spin), ("lost", Task::Say(1)), ("repeated", Task::Who), ("queued", Task::Say(3))]
    {
        let tell = tell.clone();
        let call = pool.prepare(&task);
        let call = match name {
            "spin" => call.deadline(Duration::from_millis(50)),
            "repeated" => call.repeatable(1),
            _ => call,
        };
        call.submit(move |reply| tell_test(&tell, (name, reply)))?;
    }
    let fifth = tell.clone();
    pool.submit(&Task::Say(4), move |reply| tell_test(&fifth, ("fifth", reply)))?;
    drop(release);
    let (pid, event) = beginning.recv_timeout(SOON)?;
    assert_eq!(event, 0);
    let pid = pid.and_then(|pid| u32::try_from(pid).ok()).ok_or("whoever speaks has a pid")?;
    let told: BTreeMap<_, _> = (0..5).map(|_| told.recv_timeout(SOON)).collect::<Result<_, _>>()?;
    assert!(matches!(told["spin"], Err(Error::TimedOut { may_have_run: true })), "{told:?}");
    let killed = |outcome: &Result<u32, Error>| {
        matches!(outcome, Err(Error::Lost { may_have_run: true, why: Lost::Killed { late: Late::Call } }))
    };
    assert!(killed(&told["lost"]) && killed(&told["queued"]), "{told:?}");
    assert!(told["repeated"].as_ref().is_ok_and(|other| *other != pid), "{told:?}");
    assert_eq!(told["fifth"].as_ref().ok(), Some(&4), "it had not been with that worker");
    Ok(())
}

fn repeated() -> Outcome {
    let pool = pool("tasks", PoolOptions::new().max(1))?;
    let ends = Arc::new(Mutex::new(Vec::new()));
    let noted = Arc::clone(&ends);
    pool.on_worker_exit(move |exit| noted.lock().unwrap().push(exit.cause));
    let outcome = pool.prepare(&Task::Kill).repeatable(3).call();
    assert!(matches!(outcome, Err(Error::Lost { may_have_run: true, why: Lost::Died(_) })), "{outcome:?}");
    let statistics = pool.finish()?;
    assert_eq!((statistics.retried, statistics.lost, statistics.restarts), (3, 1, 4));
    assert_eq!(*ends.lock().unwrap(), [Cause::Unasked; 4]);
    Ok(())
}

fn not_repeated() -> Outcome {
    let pool = pool("tasks", PoolOptions::new().max(1))?;
    let outcome = pool.call(&Task::Kill);
    assert!(outcome.is_err_and(|error| error.may_have_run()));
    let statistics = pool.finish()?;
    assert_eq!((statistics.retried, statistics.started), (0, 1));
    Ok(())
}

/// Thousands of calls, while somebody kills workers all the time.
fn storm(entry: &str, load: usize) -> Outcome {
    const CALLS: u32 = 3_000;
    const KILLS: u32 = 40;
    let pool = pool(entry, PoolOptions::new().max(4).min(2).load(load).start_delay(Duration::ZERO))?;
    let ended = Arc::new(Mutex::new(Vec::new()));
    let kills = AtomicU32::new(0);
    let made = AtomicBool::new(false);
    let calls = thread::scope(|scope| -> Result<u32, Box<dyn std::error::Error>> {
        let _made = SetAtEnd(&made);
        scope.spawn(|| {
            let mut chance = 0x9e37_79b9_7f4a_7c15u64;
            while !made.load(Ordering::Relaxed) {
                chance ^= chance << 13;
                chance ^= chance >> 7;
                chance ^= chance << 17;
                let workers = pool.workers();
                let pid = workers.get(chance as usize % workers.len().max(1)).and_then(|worker| worker.pid);
                // It may have ended by now.
                if pid.is_some_and(|pid| kill(Pid::from_raw(pid), Signal::SIGKILL).is_ok()) {
                    kills.fetch_add(1, Ordering::Relaxed);
                }
                // Some work is to be done between the kills.
                let target = pool.statistics().answered + chance % 60;
                while pool.statistics().answered < target && !made.load(Ordering::Relaxed) {
                    thread::yield_now();
                }
            }
        });
        let mut calls = 0;
        let mut call = || {
            let number = calls;
            let (task, right) =
                if number % 7 == 0 { (Task::Events(number), number + 2) } else { (Task::Say(number), number) };
            // Some may be lost, some may be lost after three times, and some must not be lost.
            let repeats = [0, 2, 1_000][number as usize % 3];
            let ended = Arc::clone(&ended);
            calls += 1;
            pool.prepare(&task).repeatable(repeats).submit(move |reply| {
                let lost = match reply {
                    Ok(said) if said == right => false,
                    Err(Error::Lost { why: Lost::Died(_), .. }) if repeats < 1_000 => true,
                    other => panic!("{number}: {other:?}"),
                };
                ended.lock().unwrap().push((number, lost));
            })
        };
        (0..CALLS).try_for_each(|_| call())?;
        let until = Instant::now() + SOON;
        while kills.load(Ordering::Relaxed) < KILLS {
            match pool.statistics().queued {
                0..100 => call()?,
                _ if Instant::now() > until => return Err(format!("it stands still: {:?}", pool.statistics()).into()),
                _ => thread::yield_now(),
            }
        }
        Ok(calls)
    })?;
    let statistics = pool.finish()?;
    let mut ended = std::mem::take(&mut *ended.lock().unwrap());
    ended.sort_unstable();
    let numbers: Vec<u32> = ended.iter().map(|(number, _)| *number).collect();
    assert_eq!(numbers, (0..calls).collect::<Vec<_>>(), "each ends once");
    let lost = ended.iter().filter(|(_, lost)| *lost).count() as u64;
    assert_eq!((statistics.answered + lost, statistics.lost), (u64::from(calls), lost));
    assert!(statistics.retried > 0 && lost > 0, "{statistics:?}");
    assert_eq!((statistics.queued, statistics.in_flight, statistics.idle), (0, 0, 0));
    Ok(())
}

fn exits() -> Outcome {
    let pool = pool("tasks", PoolOptions::new().max(1).load(3))?;
    let (tell, told) = mpsc::channel::<WorkerExit>();
    pool.on_worker_exit(move |exit| tell_test(&tell, exit));
    let pid = pool.call(&Task::Who)?;
    let (begun, beginning) = mpsc::channel();
    pool.on_event(move |worker, _| tell_test(&begun, worker));
    pool.prepare(&Task::Spin).label("page 7").submit(|_| ())?;
    pool.submit(&Task::Say(1), |_| ())?;
    let worker = beginning.recv_timeout(SOON)?;
    assert_eq!(worker.pid, Some(pid as i32));
    kill(Pid::from_raw(pid as i32), Signal::SIGTERM)?;
    let exit = told.recv_timeout(SOON)?;
    assert_eq!((exit.worker, exit.cause), (worker, Cause::Unasked));
    assert!(exit.exit.is_ok_and(|exit| matches!(exit.how, How::Signal { signal: 15, .. })));
    let labels: Vec<_> = exit.in_hand.iter().map(|call| (call.label.as_deref(), call.may_have_run)).collect();
    assert_eq!(labels, [(Some("page 7"), true), (None, true)]);
    let spin = pool.prepare(&Task::Spin).deadline(Duration::from_millis(20)).label("page 8").call();
    assert!(matches!(spin, Err(Error::TimedOut { .. })));
    let exit = told.recv_timeout(SOON)?;
    assert_eq!((exit.cause, exit.in_hand.len()), (Cause::Late(Late::Call), 1));
    assert!(exit.in_hand[0].since >= Duration::from_millis(20), "{exit:?}");
    pool.call(&Task::Say(1))?;
    pool.finish()?;
    let exit = told.recv_timeout(SOON)?;
    assert_eq!(exit.cause, Cause::Finished);
    assert!(exit.in_hand.is_empty() && exit.exit.is_ok_and(|exit| exit.success()));
    Ok(())
}

fn handler_sets_another() -> Outcome {
    let pool = pool("tasks", PoolOptions::new().max(1))?;
    let (tell, told) = mpsc::channel();
    let same = pool.clone();
    pool.on_worker_exit(move |_| {
        tell_test(&tell, "the first");
        let tell = tell.clone();
        same.on_worker_exit(move |_| tell_test(&tell, "the second"));
    });
    for who in ["the first", "the second", "the second"] {
        assert!(pool.call(&Task::Kill).is_err());
        assert_eq!(told.recv_timeout(SOON)?, who);
    }
    pool.finish()?;
    Ok(())
}

fn template_killed() -> Outcome {
    let (tell, told) = mpsc::channel();
    let pool: Tasks = Pool::of_templates("tasks", PoolOptions::new().max(1), move || {
        let template = Template::spawn()?;
        tell_test(&tell, template.pid()?);
        Ok(template)
    })?;
    assert_eq!(pool.call(&Task::Say(1))?, 1);
    let first = told.recv_timeout(SOON)?;
    kill(Pid::from_raw(first), Signal::SIGKILL)?;
    // Its process lives on, and dies; others come of another template.
    assert_eq!(pool.call(&Task::Say(2))?, 2);
    assert!(matches!(pool.call(&Task::Abort), Err(Error::Lost { .. })));
    assert_eq!(pool.call(&Task::Say(3))?, 3);
    assert_ne!(told.recv_timeout(SOON)?, first);
    pool.finish()?;
    Ok(())
}

/// The second worker has no room for the call's descriptor.
fn begun_before() -> Outcome {
    let mut template = Template::spawn()?;
    let mut first = true;
    let pool: Pool<Append, u64, ()> = Pool::new("append", PoolOptions::new().max(1), move || {
        let process = template.fork()?;
        if std::mem::take(&mut first) { Ok(process) } else { process.call("no_further_descriptor", ()) }
    })?;
    let file = tempfile::tempfile()?;
    let append = || -> Result<Append, std::io::Error> {
        Ok(Append { to: Descriptor::from(file.try_clone()?), text: "a line".to_owned() })
    };
    pool.call(&append()?)?;
    let pid = pool.workers().first().and_then(|worker| worker.pid).map(Pid::from_raw).ok_or("it has no worker")?;
    kill(pid, Signal::SIGSTOP)?;
    let (tell, told) = mpsc::channel();
    pool.prepare(&append()?).repeatable(1).submit(move |reply| tell_test(&tell, reply))?;
    kill(pid, Signal::SIGKILL)?;
    let outcome = told.recv_timeout(SOON)?;
    assert!(matches!(outcome, Err(Error::DescriptorsLost { may_have_run: true })), "{outcome:?}");
    assert_eq!(pool.finish()?.retried, 1);
    Ok(())
}
