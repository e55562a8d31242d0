//! Failures inside a process: each typed, told soon, and the process serves on.

use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use hatchery::proc::{Error, Failure, How, Template};
use libtest_mimic::Trial;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::support::{Outcome, test};

pub fn tests() -> Vec<Trial> {
    vec![
        test("an_unknown_entry_point_is_told_with_those_there_are", unknown_call),
        test("running_an_unknown_entry_point_ends_the_process_and_its_exit_says_so", unknown_run),
        test("a_function_to_call_is_not_run_nor_one_to_run_called", wrong_kind),
        test("a_failing_calls_error_and_its_sources_are_told", failing_call),
        test("a_panicking_entry_point_is_told_with_its_place_and_the_template_serves_on", panicking_call),
        test("a_failing_or_panicking_run_is_told_by_its_exit", failing_run),
        test("what_follows_a_failure_is_skipped_until_a_sync", skipped_until_sync),
        test("a_fork_of_a_failed_process_is_refused_with_its_failure", fork_of_the_failed),
        test("a_failure_that_a_timed_out_sync_missed_is_told_by_the_next", failure_after_timeout),
        test("an_error_text_of_any_length_is_told", long_words),
        test("a_process_with_a_second_thread_refuses_to_fork_and_names_it", threads),
        test("a_panic_of_another_thread_of_a_run_process_is_printed", thread_panics),
        test("a_failure_is_told_within_a_second", soon),
        test("a_process_cannot_pass_itself_off_as_another", forged_identity),
        test("a_process_that_sends_nonsense_is_given_up_and_leaves_no_zombie", nonsense),
    ]
}

/// The failure that a sync told.
fn failure<T: std::fmt::Debug>(result: Result<T, Error>) -> Result<Failure, Box<dyn std::error::Error>> {
    match result {
        Err(Error::Inside(failure)) => Ok(failure),
        other => Err(format!("not a failure inside the process: {other:?}").into()),
    }
}

fn unknown_call() -> Outcome {
    let mut template = Template::spawn()?;
    match failure(template.call("nobody", ())?.sync())? {
        Failure::UnknownEntryPoint { name, verb, known } => {
            assert_eq!((name.as_str(), verb.as_str()), ("nobody", "call"));
            assert!(known.iter().any(|name| name == "remember") && !known.iter().any(|name| name == "tell"));
        }
        other => panic!("{other:?}"),
    }
    assert!(template.fork()?.run("nothing")?.wait()?.success());
    Ok(())
}

fn unknown_run() -> Outcome {
    let mut template = Template::spawn()?;
    let exit = template.fork()?.run("nobody")?.wait()?;
    assert_eq!(exit.how, How::Code(1));
    assert!(matches!(&exit.failure, Some(Failure::UnknownEntryPoint { name, .. }) if name == "nobody"), "{exit}");
    assert!(template.fork()?.run("nothing")?.wait()?.success());
    Ok(())
}

fn wrong_kind() -> Outcome {
    let mut template = Template::spawn()?;
    assert!(matches!(failure(template.call("tell", ())?.sync())?, Failure::UnknownEntryPoint { .. }));
    let exit = template.fork()?.run("remember")?.wait()?;
    assert!(matches!(exit.failure, Some(Failure::UnknownEntryPoint { .. })), "{exit}");
    Ok(())
}

fn failing_call() -> Outcome {
    let mut template = Template::spawn()?;
    let failure = failure(template.call("fail", ())?.sync())?;
    assert_eq!(failure.to_string(), "fail: the outer error: the inner cause");
    assert!(template.fork()?.run("nothing")?.wait()?.success());
    Ok(())
}

fn panicking_call() -> Outcome {
    let mut template = Template::spawn()?;
    match failure(template.call("panic", ["badly"])?.sync())? {
        Failure::Panicked { name, words } => {
            assert_eq!(name, "panic");
            assert!(words.starts_with("a call went wrong: badly (") && words.contains("entries.rs:"), "{words}");
        }
        other => panic!("{other:?}"),
    }
    assert!(template.fork()?.run("nothing")?.wait()?.success());
    Ok(())
}

fn failing_run() -> Outcome {
    let mut template = Template::spawn()?;
    let failed = template.fork()?.run("fail_run")?;
    let panicked = template.fork()?.run("panic_run")?;
    let exit = failed.wait()?;
    assert_eq!(exit.to_string(), "exit code 1: fail_run: the service could not start");
    let exit = panicked.wait()?;
    assert_eq!(exit.how, How::Code(101));
    let words = exit.to_string();
    assert!(words.contains("panic_run panicked: a run went wrong (") && words.contains("entries.rs:"), "{words}");
    Ok(())
}

fn skipped_until_sync() -> Outcome {
    let mut template = Template::spawn()?;
    template.call("remember", ["before"])?.call("fail", ())?.call("remember", ["after"])?.send_arg("after")?;
    assert!(matches!(failure(template.sync())?, Failure::Returned { .. }));
    template.call("expect_held", ["1 0"])?.call("remember", ["again"])?.call("expect_held", ["2 0"])?.sync()?;
    let failed = template.fork()?.call("fail", ())?.run("nothing")?.wait()?;
    assert!(matches!(failed.failure, Some(Failure::Returned { .. })), "{failed}");
    Ok(())
}

fn fork_of_the_failed() -> Outcome {
    let mut template = Template::spawn()?;
    let child = template.call("fail", ())?.fork()?;
    assert!(matches!(failure(child.pid())?, Failure::Returned { .. }));
    assert!(matches!(failure(child.run("nothing"))?, Failure::Returned { .. }));
    assert!(template.sync().is_err());
    assert!(template.fork()?.run("nothing")?.wait()?.success());
    Ok(())
}

fn failure_after_timeout() -> Outcome {
    let mut template = Template::spawn()?;
    let (reader, writer) = std::io::pipe()?;
    template.send_fd(reader)?.call("wait_for_eof", ())?.call("fail", ())?;
    assert!(matches!(template.sync_timeout(Duration::from_millis(10)), Err(Error::TimedOut { .. })));
    drop(writer);
    assert!(matches!(failure(template.sync())?, Failure::Returned { .. }));
    template.sync()?;
    Ok(())
}

fn long_words() -> Outcome {
    let mut template = Template::spawn()?;
    for length in [0, 100, 100_000, 10_000_000] {
        let told = failure(template.call("fail_at_length", [length.to_string()])?.sync())?.to_string();
        assert!(told.starts_with("fail_at_length: ") && told.len() >= length.min(1000), "{} bytes", told.len());
    }
    Ok(())
}

fn threads() -> Outcome {
    let mut template = Template::spawn()?;
    template.call("start_thread", ())?.sync()?;
    let refused = failure(template.fork()?.pid())?;
    assert_eq!(refused, Failure::Threads { names: vec!["extra-hand".into()] });
    // It cannot fork, but it still carries out what it is told.
    template.call("remember", ["x"])?.call("expect_held", ["1 0"])?.sync()?;
    Ok(())
}

fn thread_panics() -> Outcome {
    use std::io::Read;
    // What the process prints goes to a pipe that replaces its standard error.
    let mut template = Template::spawn()?;
    let (mut reader, writer) = std::io::pipe()?;
    let process = template.fork()?.send_fd(writer)?.run("thread_panics")?;
    let mut printed = String::new();
    reader.read_to_string(&mut printed)?;
    assert!(process.wait()?.success());
    assert!(printed.contains("a thread went wrong"), "{printed:?}");
    Ok(())
}

fn soon() -> Outcome {
    let mut template = Template::spawn()?;
    template.sync()?;
    for call in ["nobody", "fail", "panic"] {
        let start = Instant::now();
        assert!(template.call(call, ())?.sync().is_err());
        let took = start.elapsed();
        assert!(took < Duration::from_secs(5), "{call}: {took:?}");
    }
    Ok(())
}

fn forged_identity() -> Outcome {
    let mut template = Template::spawn()?;
    let pid = template.pid()?;
    // `Report::Identity { pid: 1 }` as the conversation has it: inline, one report, the variant, the number in zigzag.
    template.call("say_on_descriptor_3", [[0, 1, 5, 2]])?.sync()?;
    assert_eq!(template.pid()?, pid);
    assert!(template.fork()?.run("nothing")?.wait()?.success());
    let pidfd = template.pidfd()?;
    drop(template);
    await_reaped(pid, &pidfd)
}

fn nonsense() -> Outcome {
    let mut template = Template::spawn()?;
    let (pid, pidfd) = (template.pid()?, template.pidfd()?);
    template.call("say_on_descriptor_3", [vec![0, 0xFF, 0xFF], vec![9], vec![1], vec![0, 3, 0x80]])?;
    assert!(template.sync().is_err());
    assert!(template.fork().and_then(|process| process.run("nothing")).and_then(|running| running.wait()).is_err());
    drop(template);
    await_reaped(pid, &pidfd)
}

/// Waits for the process's end, which its pidfd tells, and for its being reaped, for which the same wakes this crate's thread.
fn await_reaped(pid: i32, pidfd: &OwnedFd) -> Outcome {
    let mut end = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
    assert_eq!(poll(&mut end, PollTimeout::from(20_000_u16))?, 1, "process {pid} does not end");
    let deadline = Instant::now() + Duration::from_secs(20);
    while std::path::Path::new("/proc").join(pid.to_string()).exists() {
        assert!(Instant::now() < deadline, "nobody reaps process {pid}");
        std::thread::yield_now();
    }
    Ok(())
}
