//! Finishing and dropping a client.

use std::sync::{Arc, mpsc};
use std::time::Duration;

use hatchery::proc::{How, Template};
use hatchery::rpc::{Error, Options, Postcard};
use libtest_mimic::Trial;

use crate::entries::{Act, Said, scripted, tell_test};
use crate::support::{Outcome, test};

const SOON: Duration = Duration::from_secs(30);

pub fn tests() -> Vec<Trial> {
    vec![
        test("finish_waits_for_all_calls_and_tells_the_end", || finish("script")),
        test("finish_waits_for_all_calls_and_tells_the_end_deferred", || finish("script_deferred")),
        test("a_dropped_client_lets_the_process_do_what_was_submitted", || dropped("script")),
        test("a_dropped_client_lets_the_process_do_what_was_submitted_deferred", || dropped("script_deferred")),
        test("a_client_that_never_called_leaves_no_process", unused),
        test("finish_of_a_process_that_dies_meanwhile_tells_how", dying),
        test("no_descriptor_is_left_of_finished_clients", none_left),
        test("what_a_handler_of_events_holds_is_let_go_at_the_end", handler_let_go),
    ]
}

fn finish(entry: &str) -> Outcome {
    let client = scripted(entry)?;
    let (tell, told) = mpsc::channel();
    for n in 0..300 {
        let tell = tell.clone();
        let act = if n % 100 == 99 { Act::Linger(5) } else { Act::Say(n) };
        client.submit(&act, move |reply| tell_test(&tell, reply))?;
    }
    client.on_error(|lost| panic!("{lost}"))?;
    assert!(client.finish()?.success());
    drop(tell);
    assert_eq!(told.try_iter().filter(Result::is_ok).count(), 300);
    Ok(())
}

fn dropped(entry: &str) -> Outcome {
    let process = Template::spawn()?.fork()?;
    let pidfd = process.pidfd()?;
    let client = process.rpc::<Act, Said, u32>(entry, Options::<Postcard>::new())?;
    let (tell, told) = mpsc::channel();
    for n in 0..300 {
        let tell = tell.clone();
        let act = if n % 100 == 99 { Act::Linger(5) } else { Act::Say(n) };
        client.submit(&act, move |reply| tell_test(&tell, reply))?;
    }
    let lost = tell.clone();
    client.on_error(move |why| tell_test(&lost, Err(Error::Encode { words: why.to_string() })))?;
    drop((client, tell));
    let told: Vec<_> = told.iter().collect();
    assert_eq!(told.iter().filter(|reply| reply.is_ok()).count(), 300);
    assert_eq!(told.len(), 300, "{:?}", told.last());
    await_end(&pidfd)
}

fn await_end(pidfd: &std::os::fd::OwnedFd) -> Outcome {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    let ended =
        poll(&mut [PollFd::new(std::os::fd::AsFd::as_fd(pidfd), PollFlags::POLLIN)], PollTimeout::from(30_000u16))?;
    if ended == 1 { Ok(()) } else { Err("the process goes on".into()) }
}

fn unused() -> Outcome {
    let mut template = Template::spawn()?;
    let process = template.fork()?;
    let pidfd = process.pidfd()?;
    drop(process.rpc::<Act, Said, u32>("script", Options::<Postcard>::new())?);
    await_end(&pidfd)?;
    assert!(template.fork()?.rpc::<Act, Said, u32>("script", Options::<Postcard>::new())?.finish()?.success());
    Ok(())
}

fn dying() -> Outcome {
    let client = scripted("script")?;
    let (tell, told) = mpsc::channel();
    client.on_error(move |lost| tell_test(&tell, lost))?;
    client.submit(&Act::Exit(9), |_| ())?;
    assert_eq!(client.finish()?.how, How::Code(9));
    told.recv_timeout(SOON)?;
    Ok(())
}

fn none_left() -> Outcome {
    let mut template = Template::spawn()?;
    let before = sockets()?;
    for _ in 0..150 {
        let client = template.fork()?.rpc::<Act, Said, u32>("script", Options::<Postcard>::new())?;
        client.call(&Act::Say(1))?;
        client.finish()?;
    }
    // Other tests have clients at the same time, but not so many.
    assert!(sockets()? < before + 75);
    Ok(())
}

/// It holds its own client, as one does that submits.
fn handler_let_go() -> Outcome {
    let client = Arc::new(scripted("script")?);
    let (tell, told) = mpsc::channel();
    let held = (Arc::clone(&client), tell);
    client.on_event(move |event| tell_test(&held.1, (event, held.0.outstanding())))?;
    assert!(matches!(client.call(&Act::Events(vec![5], 1)), Ok(Said::Number(1))));
    assert_eq!(told.recv_timeout(SOON)?.0, 5);
    assert!(matches!(client.call(&Act::Exit(0)), Err(Error::Lost { .. })));
    assert_eq!(told.recv_timeout(SOON), Err(mpsc::RecvTimeoutError::Disconnected));
    Ok(())
}

/// How many sockets this process has.
fn sockets() -> Result<usize, std::io::Error> {
    let targets = std::fs::read_dir("/proc/self/fd")?.flatten().map(|entry| std::fs::read_link(entry.path()));
    Ok(targets.filter(|target| target.as_ref().is_ok_and(|to| to.to_string_lossy().starts_with("socket:"))).count())
}
