//! Processes that are killed at any moment.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use hatchery::proc::{How, Template};
use hatchery::rpc::{Error, Lost, Options, Postcard};
use libtest_mimic::Trial;

use crate::entries::{Act, Said, tell_test};
use crate::support::{Outcome, test};

const SOON: Duration = Duration::from_secs(30);

pub fn tests() -> Vec<Trial> {
    vec![
        test("however_a_process_is_killed_each_call_ends_once", || killed("script", HeldUp::AllBehindIt)),
        test("however_a_process_is_killed_each_call_ends_once_deferred", || killed("script_deferred", HeldUp::Nobody)),
        test("a_waiting_caller_hears_of_a_death", waiting),
    ]
}

const ROUNDS: u32 = 150;

/// Whom a call that never ends keeps from being carried out.
#[derive(Clone, Copy)]
enum HeldUp {
    AllBehindIt,
    Nobody,
}

/// What became of the calls of one process.
#[derive(Default)]
struct Seen {
    ended: HashMap<u32, u32>,
    order: Vec<u32>,
    lost: Vec<(u32, bool)>,
}

/// In each round one call is answered before the others are made; in each second one, a call that never ends is among those
/// made before the kill, so it is certainly lost, and so is what waits behind it.
fn killed(entry: &str, held_up: HeldUp) -> Outcome {
    let mut template = Template::spawn()?;
    let mut chance = 0x9e37_79b9_7f4a_7c15u64;
    let mut random = move |below: u64| {
        chance ^= chance << 13;
        chance ^= chance >> 7;
        chance ^= chance << 17;
        chance % below
    };
    let (mut answered, mut lost) = (0, 0);
    let mut certainly_lost = 0;
    for round in 0..ROUNDS {
        let process = template.fork()?;
        let pid = process.pid()?;
        let client = process.rpc::<Act, Said, u32>(entry, Options::<Postcard>::new())?;
        let seen = Arc::new(Mutex::new(Seen::default()));
        let (tell, told) = mpsc::channel();
        client.on_error(move |lost| tell_test(&tell, lost))?;
        let calls = 1 + random(200) as u32;
        let kill_at = random(u64::from(calls) + 1) as u32;
        let endless = (round % 2 == 0 && kill_at > 0).then(|| random(u64::from(kill_at)) as u32);
        certainly_lost += match (endless, held_up) {
            (None, _) => 0,
            (Some(_), HeldUp::Nobody) => 1,
            (Some(at), HeldUp::AllBehindIt) => (kill_at - at) as usize,
        };
        assert_eq!(client.call(&Act::Say(round))?, Said::Number(round));
        let linger = Duration::from_micros(random(1500));
        let mut made = 0;
        for n in 0..calls {
            if n == kill_at {
                let since = Instant::now();
                while since.elapsed() < linger {
                    std::hint::spin_loop();
                }
                nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL)?;
            }
            let act = match n % 3 {
                _ if endless == Some(n) => Act::UntilCancelled,
                0 => Act::Say(n),
                1 => Act::Events(vec![n; 3], n),
                _ => Act::Long(random(100_000)),
            };
            let ends = Arc::clone(&seen);
            let submitted = client.submit(&act, move |reply| {
                let mut seen = ends.lock().unwrap();
                *seen.ended.entry(n).or_default() += 1;
                match reply {
                    Ok(Said::Number(said)) => {
                        assert_eq!(said, n);
                        seen.order.push(n);
                    }
                    Ok(_) => seen.order.push(n),
                    Err(Error::Lost { may_have_run, why: Lost::Died(_) }) => seen.lost.push((n, may_have_run)),
                    Err(other) => panic!("{other:?}"),
                }
            });
            match submitted {
                Ok(()) => made = n + 1,
                Err(Error::Lost { may_have_run: false, .. }) => break,
                Err(other) => return Err(other.into()),
            }
        }
        if kill_at == calls {
            nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL)?;
        }
        let why = told.recv_timeout(SOON).map_err(|error| format!("round {round}: {error}"))?;
        assert!(matches!(why, Lost::Died(exit) if matches!(exit.how, How::Signal { signal: 9, .. })));
        let seen = seen.lock().unwrap();
        assert_eq!(seen.ended.len() as u32, made, "round {round}: each call has ended");
        assert!(seen.ended.values().all(|times| *times == 1), "round {round}: once");
        assert!(seen.order.is_sorted(), "round {round}");
        assert!(seen.lost.is_sorted_by_key(|(n, _)| *n), "round {round}");
        // What was never sent comes after all that may have run.
        assert!(seen.lost.is_sorted_by_key(|(_, may_have_run)| !may_have_run), "round {round}");
        assert_eq!(client.outstanding(), 0);
        answered += 1 + seen.order.len();
        lost += seen.lost.len();
    }
    println!("{answered} calls were answered, {lost} lost, of which {certainly_lost} for certain");
    assert!(answered >= ROUNDS as usize && lost >= certainly_lost && certainly_lost > 0);
    Ok(())
}

fn waiting() -> Outcome {
    let mut template = Template::spawn()?;
    for patience in [None, Some(SOON)] {
        let process = template.fork()?;
        let pid = process.pid()?;
        let client = process.rpc::<Act, Said, u32>("script", Options::<Postcard>::new())?;
        // It has begun when it says so.
        client.on_event(move |_| {
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
        })?;
        let outcome = match patience {
            None => client.call(&Act::UntilCancelled),
            Some(patience) => client.call_timeout(&Act::UntilCancelled, patience),
        };
        assert!(matches!(outcome, Err(Error::Lost { may_have_run: true, why: Lost::Died(_) })), "{outcome:?}");
    }
    Ok(())
}
