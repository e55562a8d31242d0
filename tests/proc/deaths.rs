//! Sudden deaths: of templates in the middle of something, of the master; and templates that stop.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use hatchery::proc::{Error, How, Process, Running, Template};
use libtest_mimic::Trial;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;

use crate::support::scenario::{self, Scenario};
use crate::support::{Outcome, test};

pub const SCENARIOS: &[Scenario] = &[("a_master_with_everything", a_master_with_everything)];

/// Well over the second in which each failure is to be told, for machines with other things to do.
const SOON: Duration = Duration::from_secs(5);

pub fn tests() -> Vec<Trial> {
    vec![
        test("a_template_killed_in_a_call_is_told", killed_in_a_call),
        test("a_waiting_process_that_hangs_in_a_call_can_be_killed", process_killed_in_a_call),
        test("a_template_killed_with_forks_in_its_queue_answers_each_of_them", killed_with_forks),
        test("processes_of_a_killed_template_go_on_and_their_ends_are_seen", orphans_go_on),
        test("waiting_processes_of_a_killed_template_can_still_be_run", orphans_wait),
        test("every_operation_on_a_dead_template_is_a_typed_error", all_operations),
        test("the_death_of_a_template_is_called_back", death_called_back),
        test("templates_killed_at_any_moment_leave_no_question_open", killed_at_any_moment),
        test("a_stopped_template_times_out_and_does_not_block_who_sends", stopped),
        test("a_master_that_is_killed_leaves_no_process_behind", killed_master),
        test("a_terminals_interrupt_reaches_the_master_alone", interrupt),
    ]
}

fn kill_template(template: &Template) -> Outcome {
    Ok(kill(Pid::from_raw(template.pid()?), Signal::SIGKILL)?)
}

fn killed_in_a_call() -> Outcome {
    let mut template = Template::spawn()?;
    let (reader, mut writer) = std::io::pipe()?;
    template.send_fd(reader)?.call("wait_for_eof", ())?.send_arg("more")?.call("remember", ["x"])?;
    let queued = template.fork()?;
    kill_template(&template)?;
    let start = Instant::now();
    match template.sync_timeout(SOON) {
        Err(Error::Gone { exit, .. }) => {
            assert!(exit.is_none_or(|exit| matches!(exit.how, How::Signal { signal: 9, .. })));
        }
        other => panic!("{other:?}"),
    }
    assert!(queued.pid().is_err() && start.elapsed() < SOON);
    // The call's descriptor went with it.
    while writer.write(b"x").is_ok() {}
    Ok(())
}

fn process_killed_in_a_call() -> Outcome {
    let mut template = Template::spawn()?;
    let (reader, mut writer) = std::io::pipe()?;
    let process = template.fork()?.send_fd(reader)?.call("wait_for_eof", ())?;
    let pidfd = process.pidfd()?;
    assert!(process.try_wait().is_none());
    process.kill(9)?;
    poll(&mut [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)], PollTimeout::NONE)?;
    // Its parent tells how it ended.
    let end = loop {
        match process.try_wait() {
            Some(end) => break end?,
            None => std::thread::yield_now(),
        }
    };
    assert!(matches!(end.how, How::Signal { signal: 9, .. }), "{end}");
    process.kill(9)?;
    while writer.write(b"x").is_ok() {}
    assert!(template.fork()?.run("nothing")?.wait()?.success());
    Ok(())
}

fn killed_with_forks() -> Outcome {
    let mut template = Template::spawn()?;
    let mut processes = Vec::new();
    for _ in 0..1000 {
        processes.push(template.fork()?.run("nothing")?);
    }
    kill_template(&template)?;
    let start = Instant::now();
    for process in &processes {
        match process.wait_timeout(SOON) {
            Ok(_) | Err(Error::Gone { .. }) => {}
            Err(other) => return Err(other.into()),
        }
    }
    assert!(start.elapsed() < SOON, "{:?}", start.elapsed());
    assert!(template.fork().and_then(|process| process.pid()).is_err());
    Ok(())
}

fn orphans_go_on() -> Outcome {
    let mut template = Template::spawn()?;
    let running: Vec<Running> = (0..10).map(|_| template.fork()?.run("wait_for_master")).collect::<Result<_, _>>()?;
    for process in &running {
        process.pid()?;
    }
    kill_template(&template)?;
    assert!(template.sync().is_err());
    for process in &running {
        assert!(process.try_wait().is_none());
        drop(process.socket()?);
    }
    for process in running {
        let exit = process.wait_timeout(SOON)?;
        // How it ended is known only where init reaps it soon and the kernel is new enough.
        assert!(exit.success() || exit.how == How::Unobserved, "{exit}");
    }
    Ok(())
}

fn orphans_wait() -> Outcome {
    let mut template = Template::spawn()?;
    let mut orphan = template.fork()?;
    orphan.pid()?;
    kill_template(&template)?;
    assert!(template.sync().is_err());
    let child = orphan.fork()?.send_arg("6")?.run("exit")?;
    assert_eq!(child.wait_timeout(SOON)?.to_string(), "exit code 6");
    orphan.run("nothing")?.wait_timeout(SOON)?;
    Ok(())
}

fn all_operations() -> Outcome {
    let mut template = Template::spawn()?;
    kill_template(&template)?;
    assert!(template.sync().is_err());
    let gone = |result: Result<(), Error>| match result {
        Err(error @ Error::Gone { .. }) => error.to_string(),
        other => panic!("{other:?}"),
    };
    gone(template.fork().map(drop));
    gone(template.send_arg("x").map(drop));
    gone(template.send_fd(std::fs::File::open("/dev/null")?).map(drop));
    gone(template.call("remember", ()).map(drop));
    gone(template.load("/nowhere.so").map(drop));
    let words = gone(template.sync().map(drop));
    assert_eq!(words, "cannot carry out the instructions: the process has ended (signal SIGKILL)");
    assert!(matches!(template.try_wait(), Some(Ok(_))));
    Ok(())
}

fn death_called_back() -> Outcome {
    let template = Template::spawn()?;
    let (told, tell) = std::sync::mpsc::channel();
    template.on_exit(move |exit| drop(told.send(exit)));
    kill_template(&template)?;
    assert_eq!(tell.recv_timeout(SOON)??.to_string(), "signal SIGKILL");
    Ok(())
}

fn killed_at_any_moment() -> Outcome {
    for round in 0..60u32 {
        let mut template = Template::spawn()?;
        let pid = Pid::from_raw(template.pid()?);
        let (told, tells) = std::sync::mpsc::channel();
        for number in 0..40 {
            if number == round % 40 {
                kill(pid, Signal::SIGKILL)?;
            }
            let Ok(process) = template.fork().and_then(|process| process.send_arg("x")?.run("nothing")) else {
                continue;
            };
            let told = told.clone();
            process.on_exit(move |end| drop(told.send(end)));
        }
        drop(told);
        while let Ok(end) = tells.recv_timeout(SOON) {
            assert!(matches!(end, Ok(_) | Err(Error::Gone { .. })), "{end:?}");
        }
        // All callbacks were called or they would still hold the channel's other end.
        assert!(matches!(tells.try_recv(), Err(std::sync::mpsc::TryRecvError::Disconnected)));
    }
    Ok(())
}

fn stopped() -> Outcome {
    let mut template = Template::spawn()?;
    template.sync()?;
    let pid = Pid::from_raw(template.pid()?);
    kill(pid, Signal::SIGSTOP)?;
    let start = Instant::now();
    assert!(matches!(template.sync_timeout(Duration::from_millis(50)), Err(Error::TimedOut { .. })));
    let null = std::fs::File::open("/dev/null")?;
    let mut processes = Vec::new();
    for number in 0..2000u32 {
        if number % 20 == 0 {
            processes.push(template.fork()?.send_arg(vec![0; 1000])?);
        }
        template.send_arg(number.to_string())?.call("remember", [vec![1; 1000]])?;
        if number % 10 == 0 {
            // They are held open here until they are on their way.
            template.send_fd(null.try_clone()?)?;
        }
    }
    assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
    kill(pid, Signal::SIGCONT)?;
    template.sync()?;
    for process in processes {
        process.run("nothing")?.wait()?;
    }
    Ok(())
}

/// Prints its pid once it has a template, waiting processes and running ones, and waits to be killed.
fn a_master_with_everything() -> Outcome {
    let mut template = Template::spawn()?;
    let mut waiting: Vec<Process> = (0..5).map(|_| template.fork()).collect::<Result<_, _>>()?;
    let running: Vec<Running> = (0..5).map(|_| template.fork()?.run("wait_for_master")).collect::<Result<_, _>>()?;
    let grandchild = waiting[0].fork()?;
    let mut second = waiting[1].fork()?.into_template();
    second.sync()?;
    let mut pids = vec![template.pid()?, grandchild.pid()?, second.pid()?];
    for process in &waiting {
        pids.push(process.pid()?);
    }
    for process in &running {
        pids.push(process.pid()?);
    }
    println!("{}", pids.iter().map(i32::to_string).collect::<Vec<_>>().join(" "));
    // Until the test lets go of us.
    std::io::stdin().read_to_end(&mut Vec::new())?;
    template.sync_timeout(SOON)?;
    println!("the template serves on");
    Ok(())
}

fn killed_master() -> Outcome {
    let mut started = scenario::start("a_master_with_everything")?;
    let mut printed = BufReader::new(started.0.stdout.take().ok_or("no pipe")?);
    let mut pids = String::new();
    printed.read_line(&mut pids)?;
    assert_eq!(pids.split_whitespace().count(), 13, "{pids}");
    started.0.kill()?;
    let start = Instant::now();
    // Every process of the master holds its standard output, so this ends with the last of them.
    let mut watched = [PollFd::new(printed.get_ref().as_fd(), PollFlags::POLLHUP)];
    assert_eq!(poll(&mut watched, PollTimeout::try_from(SOON)?)?, 1, "somebody lives on");
    printed.read_to_end(&mut Vec::new())?;
    assert!(start.elapsed() < SOON, "{:?}", start.elapsed());
    started.0.wait()?;
    for pid in pids.split_whitespace() {
        // It has closed everything; it is gone or a zombie for init once it has ended its last steps.
        while std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z ")) {
            assert!(start.elapsed() < SOON, "{pid} lives on");
            std::thread::yield_now();
        }
    }
    Ok(())
}

fn interrupt() -> Outcome {
    let mut started = scenario::start("a_master_with_everything")?;
    let mut printed = BufReader::new(started.0.stdout.take().ok_or("no pipe")?);
    printed.read_line(&mut String::new())?;
    let master = Pid::from_raw(started.0.id() as i32);
    // The master leads the group that a terminal would interrupt; SIGURG is ignored, SIGINT would end it.
    let template: Vec<String> = group_members(master)?;
    assert_eq!(template, [master.to_string()]);
    killpg(master, Signal::SIGURG)?;
    drop(started.0.stdin.take());
    let mut rest = String::new();
    printed.read_to_string(&mut rest)?;
    assert_eq!(rest, "the template serves on\n");
    Ok(())
}

/// The processes of a process group.
fn group_members(group: Pid) -> Result<Vec<String>, Box<dyn std::error::Error>> {
    let mut members = Vec::new();
    for entry in std::fs::read_dir("/proc")? {
        let pid = entry?.file_name().to_string_lossy().into_owned();
        // Processes come and go; what is gone is no member.
        let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else { continue };
        let fields = stat.rsplit_once(") ").map_or("", |(_, fields)| fields);
        if fields.split(' ').nth(2) == Some(group.to_string().as_str()) {
            members.push(pid);
        }
    }
    Ok(members)
}
