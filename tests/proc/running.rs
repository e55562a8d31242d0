//! Processes that were run: pid, socket, signals, the end and what they used.

use std::io::Read;
use std::os::fd::AsFd;
use std::sync::mpsc;
use std::time::Duration;

use hatchery::proc::{Channel, Error, How, Received, Template};
use libtest_mimic::Trial;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::facts::{Facts, facts_of, told};
use crate::support::{Outcome, test};

pub fn tests() -> Vec<Trial> {
    vec![
        test("the_pid_is_the_processs_own_and_its_pidfd_tells_its_end", pid_and_pidfd),
        test("an_exit_code_is_told", exit_codes),
        test("a_fatal_signal_is_told", fatal_signals),
        test("a_running_process_is_signalled_and_a_dead_one_is_no_error", kill),
        test("what_a_process_used_is_told", usage),
        test("messages_and_descriptors_come_back_over_the_socket", echo),
        test("the_socket_is_taken_once", socket_once),
        test("nothing_is_blocked_in_a_process_and_sigpipe_is_ignored", signals),
        test("a_write_to_nobody_is_an_error_and_not_the_end", sigpipe),
        test("a_waiting_process_that_is_dropped_ends", dropped_waiting),
        test("a_running_process_outlives_its_handle", dropped_running),
        test("a_dropped_handle_closes_the_socket_even_when_the_exit_is_awaited", dropped_with_callback),
        test("waiting_with_a_limit_gives_up_in_time", wait_in_time),
        test("children_of_a_run_process_leave_no_zombie_and_their_ends_are_seen", children_of_the_run),
        test("a_run_process_keeps_its_own_subprocesses", own_subprocesses),
        test("a_run_process_can_be_a_master_itself", run_master),
    ]
}

fn pid_and_pidfd() -> Outcome {
    let mut template = Template::spawn()?;
    let process = template.fork()?;
    let (pid, pidfd) = (process.pid()?, process.pidfd()?);
    let running = process.run("facts")?;
    assert_eq!(running.pid()?, pid);
    assert_eq!(facts_of(&running)?.pid as i32, pid);
    running.wait()?;
    let mut watched = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
    assert_eq!(poll(&mut watched, PollTimeout::ZERO)?, 1);
    Ok(())
}

fn exit_codes() -> Outcome {
    let mut template = Template::spawn()?;
    for code in [0, 1, 7, 255] {
        let exit = template.fork()?.send_arg(code.to_string())?.run("exit")?.wait()?;
        assert_eq!(exit.how, How::Code(code));
        assert_eq!(exit.success(), code == 0);
    }
    Ok(())
}

fn fatal_signals() -> Outcome {
    let mut template = Template::spawn()?;
    for (fatal, name) in [(9, "signal SIGKILL"), (15, "signal SIGTERM"), (14, "signal SIGALRM")] {
        let exit = template.fork()?.send_arg(fatal.to_string())?.run("raise")?.wait()?;
        assert!(matches!(exit.how, How::Signal { signal, .. } if signal == fatal), "{exit}");
        assert_eq!(exit.to_string(), name);
    }
    Ok(())
}

fn kill() -> Outcome {
    let mut template = Template::spawn()?;
    let process = template.fork()?.run("wait_for_master")?;
    assert!(process.try_wait().is_none());
    process.kill(15)?;
    assert_eq!(process.wait()?.to_string(), "signal SIGTERM");
    process.kill(15)?;
    assert!(matches!(template.fork()?.run("wait_for_master")?.kill(1000), Err(Error::System { .. })));
    Ok(())
}

fn usage() -> Outcome {
    let mut template = Template::spawn()?;
    let used = template.fork()?.run("burn")?.wait()?.usage.ok_or("no usage was told")?;
    assert!(used.user >= Duration::from_millis(10), "{used:?}");
    assert!(used.max_resident >= 32 << 20, "{used:?}");
    Ok(())
}

fn echo() -> Outcome {
    let mut template = Template::spawn()?;
    let process = template.fork()?.run("echo")?;
    let channel = Channel::<String, String>::new(process.socket()?);
    for text in ["", "one", &"long".repeat(100_000)] {
        let (mut reader, writer) = std::io::pipe()?;
        channel.send(&text.to_owned(), &[writer.into()])?;
        match channel.recv()? {
            Received::Message { message, fds, .. } => {
                assert_eq!(message, text);
                assert_eq!(fds.len(), 1);
                drop(fds);
                assert_eq!(reader.read(&mut [0])?, 0);
            }
            other => panic!("{other:?}"),
        }
    }
    drop(channel);
    assert!(process.wait()?.success());
    Ok(())
}

fn socket_once() -> Outcome {
    let mut template = Template::spawn()?;
    let process = template.fork()?.sync()?.run("echo")?;
    let socket = process.socket()?;
    assert!(matches!(process.socket(), Err(Error::SocketTaken { .. })));
    drop(socket);
    process.wait()?;
    assert!(matches!(process.socket(), Err(Error::SocketTaken { .. })));
    Ok(())
}

fn signals() -> Outcome {
    let mut template = Template::spawn()?;
    // Having forked, a template blocks SIGCHLD; what it forks later must not.
    template.fork()?.run("nothing")?.wait()?;
    let mut process = template.fork()?;
    let grandchild = process.fork()?.run("facts")?;
    for facts in [facts_of(&grandchild)?, facts_of(&process.run("facts")?)?] {
        assert_eq!(facts.blocked, 0, "{facts:?}");
        assert_eq!(facts.ignored, 1 << (13 - 1), "{facts:?}");
    }
    Ok(())
}

fn sigpipe() -> Outcome {
    let exit = Template::spawn()?.fork()?.run("write_to_nobody")?.wait()?;
    assert!(exit.success(), "{exit}");
    Ok(())
}

fn dropped_waiting() -> Outcome {
    let mut template = Template::spawn()?;
    let process = template.fork()?;
    let pidfd = process.pidfd()?;
    drop(process);
    poll(&mut [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)], PollTimeout::NONE)?;
    template.sync()?;
    Ok(())
}

fn dropped_running() -> Outcome {
    let mut template = Template::spawn()?;
    let (here, there) = Channel::<(), Facts>::pair()?;
    let (reader, writer) = std::io::pipe()?;
    let process = template.fork()?.send_fd(reader)?.call("wait_for_eof", ())?;
    drop(process.send_fd(there.into_fd())?.call("tell_facts", ())?.run("nothing")?);
    drop(writer);
    // It went on without its handle.
    told::<Facts>(here.into_fd())?;
    Ok(())
}

fn dropped_with_callback() -> Outcome {
    let mut template = Template::spawn()?;
    let (ended, ends) = mpsc::channel();
    for synced in [false, true] {
        let ended = ended.clone();
        let process = template.fork()?;
        let process = if synced { process.sync()? } else { process };
        process.run("wait_for_master")?.on_exit(move |exit| drop(ended.send(exit)));
        assert!(ends.recv_timeout(Duration::from_secs(20))??.success());
    }
    Ok(())
}

fn wait_in_time() -> Outcome {
    let mut template = Template::spawn()?;
    let process = template.fork()?.run("wait_for_master")?;
    assert!(matches!(process.wait_timeout(Duration::from_millis(1)), Err(Error::TimedOut { .. })));
    assert!(process.try_wait().is_none());
    drop(process.socket()?);
    assert!(process.wait_timeout(Duration::from_secs(20))?.success());
    assert!(matches!(process.try_wait(), Some(Ok(exit)) if exit.success()));
    Ok(())
}

fn children_of_the_run() -> Outcome {
    let mut template = Template::spawn()?;
    let mut parent = template.fork()?;
    let mut children = Vec::new();
    for code in 10..20 {
        children.push((code, parent.fork()?.run("wait_for_master")?, parent.fork()?.send_arg(code.to_string())?));
    }
    let parent = parent.run("wait_for_master")?;
    let parent_socket = parent.socket()?;
    for (code, first, second) in children {
        drop(first.socket()?);
        let exit = first.wait()?;
        assert!(exit.success() || exit.how == How::Unobserved, "{exit}");
        let exit = second.run("exit")?.wait()?;
        assert!(exit.how == How::Code(code) || exit.how == How::Unobserved, "{exit}");
        if kernel_tells_exits()? {
            assert_eq!(exit.how, How::Code(code));
        }
        let pid = first.pid()?;
        // Its parent reaps it in a signal handler, at any time now.
        while std::fs::exists(format!("/proc/{pid}"))? {
            std::thread::yield_now();
        }
    }
    drop(parent_socket);
    assert!(parent.wait()?.success());
    Ok(())
}

/// Whether a pidfd tells how its process ended: since Linux 6.15.
pub fn kernel_tells_exits() -> Result<bool, Box<dyn std::error::Error>> {
    let release = nix::sys::utsname::uname()?.release().to_string_lossy().into_owned();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
    let (major, minor) = (numbers.next().ok_or("no version")??, numbers.next().ok_or("no version")??);
    Ok((major, minor) >= (6, 15))
}

fn own_subprocesses() -> Outcome {
    let mut template = Template::spawn()?;
    let mut parent = template.fork()?;
    let child = parent.fork()?.run("nothing")?;
    let parent = parent.run("own_subprocess")?;
    drop(parent.socket()?);
    child.wait()?;
    let exit = parent.wait()?;
    assert!(exit.success(), "{exit}");
    Ok(())
}

fn run_master() -> Outcome {
    let process = Template::spawn()?.fork()?.run("master")?;
    let told = told::<String>(process.socket()?);
    let exit = process.wait()?;
    assert!(exit.success(), "{exit}");
    assert_eq!(told?.0, "exit code 9");
    Ok(())
}
