//! Full tables: descriptors on either side, processes; each a typed error, and all goes on once there is room.

use std::fs::File;
use std::os::fd::OwnedFd;

use hatchery::proc::{Error, Failure, How, Process, Running, Template};
use libtest_mimic::Trial;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Gid, Pid, Uid, setgid, setgroups, setuid};

use crate::facts::count_descriptors;
use crate::support::scenario::{self, Scenario};
use crate::support::{Outcome, test};

pub const SCENARIOS: &[Scenario] = &[
    ("full_master", full_master),
    ("room_again", room_again),
    ("full_at_every_size", full_at_every_size),
    ("no_more_processes", no_more_processes),
    ("many_on_their_way", many_on_their_way),
];

pub fn tests() -> Vec<Trial> {
    vec![
        test("a_template_without_room_for_descriptors_says_so_and_serves_on", full_template),
        test("a_template_without_room_to_fork_says_so_and_serves_on", no_room_to_fork),
        test("a_master_without_descriptors_gets_typed_errors_and_goes_on_once_there_is_room", || {
            scenario::pass("full_master").map(drop)
        }),
        test("forks_that_found_no_descriptor_in_the_master_go_on_once_there_is_room", || {
            scenario::pass("room_again").map(drop)
        }),
        test("wherever_a_masters_descriptors_run_out_nothing_hangs_or_is_lost", || {
            scenario::pass("full_at_every_size").map(drop)
        }),
        test("a_fork_over_the_limit_of_processes_is_refused_and_the_template_serves_on", || {
            scenario::pass("no_more_processes").map(drop)
        }),
        test("more_descriptors_than_may_be_on_their_way_still_arrive", || {
            scenario::pass("many_on_their_way").map(drop)
        }),
    ]
}

fn limit_descriptors(limit: u64) -> Outcome {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    Ok(setrlimit(Resource::RLIMIT_NOFILE, limit, hard)?)
}

/// Becomes an ordinary user, whom limits bind; one who already is stays it.
fn become_ordinary() -> Outcome {
    if Uid::effective().is_root() {
        // A user number that nobody else has: RLIMIT_NPROC counts all processes of the user.
        let ordinary = 100_000 + std::process::id();
        setgroups(&[])?;
        setgid(Gid::from_raw(ordinary))?;
        setuid(Uid::from_raw(ordinary))?;
    }
    Ok(())
}

fn full_template() -> Outcome {
    let mut template = Template::spawn()?;
    template.call("limit_descriptors", ["20"])?.sync()?;
    let null = OwnedFd::from(File::open("/dev/null")?);
    for _ in 0..40 {
        template.send_fd(null.try_clone()?)?;
    }
    assert!(matches!(template.sync(), Err(Error::Inside(Failure::DescriptorsLost))));
    // A large argument needs a descriptor on its way too.
    template.call("take_all", ())?.sync()?;
    template.send_arg(vec![1; 200_000])?.call("expect_held", ["1 0"])?.sync()?;
    assert!(template.fork()?.run("nothing")?.wait()?.success());
    Ok(())
}

fn no_room_to_fork() -> Outcome {
    let mut template = Template::spawn()?;
    // Room for 0 to 2, the conversation and few more.
    for limit in 4..12 {
        template.call("limit_descriptors", [limit.to_string()])?.sync()?;
        // The refusal may come in while the process is still given its instructions.
        let process = template.fork().and_then(|process| process.run("nothing"));
        match process.and_then(|process| process.wait()) {
            Ok(exit) => assert!(exit.success(), "with {limit}: {exit}"),
            Err(Error::Inside(Failure::ForkRefused { errno })) => assert_eq!(errno, nix::libc::EMFILE),
            Err(Error::Inside(Failure::DescriptorsLost)) => {}
            Err(other) => panic!("with {limit}: {other:?}"),
        }
        // Where the new process's socket was lost on its way, this tells it.
        match template.sync() {
            Ok(_) | Err(Error::Inside(Failure::DescriptorsLost)) => {}
            other => panic!("with {limit}: {other:?}"),
        }
    }
    template.call("limit_descriptors", ["100"])?.sync()?;
    assert!(template.fork()?.run("nothing")?.wait()?.success());
    Ok(())
}

/// Takes descriptors until none is left.
fn take_all_descriptors() -> Result<Vec<File>, Box<dyn std::error::Error>> {
    let mut taken = Vec::new();
    loop {
        match File::open("/dev/null") {
            Ok(file) => taken.push(file),
            Err(error) if error.raw_os_error() == Some(nix::libc::EMFILE) => return Ok(taken),
            Err(error) => return Err(error.into()),
        }
    }
}

fn exhausted<T: std::fmt::Debug>(result: Result<T, Error>) {
    assert!(matches!(result, Err(Error::DescriptorsExhausted { .. })), "{result:?}");
}

fn full_master() -> Outcome {
    let mut template = Template::spawn()?;
    template.sync()?;
    template.fork()?.run("nothing")?.wait()?;
    limit_descriptors(count_descriptors()? as u64 + 10)?;
    let mut taken = take_all_descriptors()?;
    exhausted(Template::spawn());
    template.send_arg("kept")?;
    exhausted(template.fork()?.pid());
    exhausted(template.fork()?.run("nothing").and_then(|process| process.wait()));
    exhausted(
        template.send_arg(vec![0; 200_000]).map(drop).and_then(|()| template.send_arg(vec![0; 200_000]).map(drop)),
    );
    // One place is not enough for a socket pair, two leave none for the pidfd.
    for _ in 0..2 {
        taken.pop();
        let forked = template.fork().and_then(|process| process.run("nothing"));
        if let Err(error) = forked.and_then(|process| process.wait()) {
            assert!(matches!(error, Error::DescriptorsExhausted { .. }), "{error:?}");
        }
    }
    drop(taken);
    let process = template.fork()?.run("tell_lengths")?;
    let (told, _) = crate::facts::told::<(Vec<u64>, u64)>(process.socket()?)?;
    assert_eq!(told.0.first(), Some(&4), "what was sent before was lost: {told:?}");
    Ok(())
}

/// At each of the two places where a fork needs a descriptor here: for its socket, and for its pidfd.
fn room_again() -> Outcome {
    let mut template = Template::spawn()?;
    template.fork()?.run("nothing")?.wait()?;
    limit_descriptors(count_descriptors()? as u64 + 10)?;

    let taken = take_all_descriptors()?;
    let queued = template.fork()?.run("nothing")?;
    drop(taken);
    assert!(queued.wait()?.success());

    for ends_unseen in [false, true] {
        let mut attempts = 0;
        while !finds_room_in_time(&mut template, ends_unseen)? {
            attempts += 1;
            assert!(attempts < 10, "this thread gets no processor");
        }
    }
    Ok(())
}

/// A fork whose pidfd finds no room at first; false, if the half second for which it is asked for has passed before there was room.
fn finds_room_in_time(template: &mut Template, ends_unseen: bool) -> Result<bool, Box<dyn std::error::Error>> {
    let template_pid = Pid::from_raw(template.pid()?);
    kill(template_pid, Signal::SIGSTOP)?;
    let forked = template.fork()?.run("wait_for_master")?;
    let children = File::open(format!("/proc/{template_pid}/task/{template_pid}/children"))?;
    let (born, birth) = std::sync::mpsc::channel();
    forked.on_birth(move |pid| {
        let _ = born.send(pid);
    });
    let taken = take_all_descriptors()?;
    kill(template_pid, Signal::SIGCONT)?;
    // Reports come in the order of the instructions, so the birth was told when this is.
    template.sync()?;
    assert!(birth.try_recv().is_err(), "there was room for its pidfd");
    let children = std::io::read_to_string(children)?;
    if let (true, Ok(child)) = (ends_unseen, children.trim().parse()) {
        kill(Pid::from_raw(child), Signal::SIGKILL)?;
        match forked.wait() {
            Err(Error::DescriptorsExhausted { .. }) => return Ok(false),
            exit => assert!(matches!(exit?.how, How::Signal { signal: 9, .. })),
        }
    }
    drop(taken);
    match forked.pid() {
        Err(Error::DescriptorsExhausted { .. }) => return Ok(false),
        pid => assert_eq!((pid?, birth.recv()?), (children.trim().parse()?, children.trim().parse()?)),
    }
    if !ends_unseen {
        drop(forked.socket()?);
        assert!(forked.wait()?.success());
    }
    Ok(true)
}

fn full_at_every_size() -> Outcome {
    for room in 0..16u64 {
        limit_descriptors(1000)?;
        let mut template = Template::spawn()?;
        template.sync()?;
        let lowest = File::open("/dev/null")?;
        limit_descriptors(std::os::fd::AsRawFd::as_raw_fd(&lowest) as u64 + 1 + room)?;
        let mut processes: Vec<Result<Running, Error>> = Vec::new();
        for _ in 0..20 {
            processes.push(template.fork().and_then(|process: Process| process.run("wait_for_master")));
        }
        let mut born = Vec::new();
        for process in processes {
            match process.and_then(|process| process.pid().map(|_| process)) {
                Ok(process) => born.push(process),
                Err(error) => assert!(matches!(error, Error::DescriptorsExhausted { .. }), "{error:?}"),
            }
        }
        template.sync()?;
        limit_descriptors(1000)?;
        for process in born {
            drop(process.socket()?);
            assert!(process.wait()?.success());
        }
        // Those that could not be supervised are gone as well.
        let pid = template.pid()?;
        while !std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))?.is_empty() {
            template.sync()?;
        }
    }
    Ok(())
}

fn no_more_processes() -> Outcome {
    become_ordinary()?;
    let mut template = Template::spawn()?;
    template.sync()?;
    let (_, hard) = getrlimit(Resource::RLIMIT_NPROC)?;
    template.call("limit_processes", ["1"])?.sync()?;
    match template.fork()?.pid() {
        Err(Error::Inside(failure @ Failure::ForkRefused { errno: nix::libc::EAGAIN })) => {
            assert!(failure.to_string().starts_with("cannot fork: Resource temporarily unavailable"), "{failure}");
        }
        other => panic!("{other:?}"),
    }
    let refused = template.fork()?.run("nothing");
    assert!(refused.and_then(|process| process.wait()).is_err());
    template.call("limit_processes", [hard.to_string()])?.sync()?;
    assert!(template.fork()?.run("nothing")?.wait()?.success());
    // The same where the master itself may start no process.
    setrlimit(Resource::RLIMIT_NPROC, 1, hard)?;
    match Template::spawn() {
        Err(Error::Spawn { source, .. }) => assert_eq!(source.raw_os_error(), Some(nix::libc::EAGAIN)),
        other => panic!("{other:?}"),
    }
    setrlimit(Resource::RLIMIT_NPROC, hard, hard)?;
    assert!(Template::spawn()?.fork()?.run("nothing")?.wait()?.success());
    Ok(())
}

/// An ordinary user may have only so many descriptors on their way as RLIMIT_NOFILE says.
fn many_on_their_way() -> Outcome {
    become_ordinary()?;
    limit_descriptors(2000)?;
    let mut template = Template::spawn()?;
    template.sync()?;
    let pid = nix::unistd::Pid::from_raw(template.pid()?);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGSTOP)?;
    limit_descriptors(300)?;
    let null = OwnedFd::from(File::open("/dev/null")?);
    for _ in 0..8 {
        for _ in 0..50 {
            template.send_fd(null.try_clone()?)?;
        }
        template.call("remember", ())?;
    }
    template.call("expect_held", ["0 400"])?;
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGCONT)?;
    template.sync()?;
    assert!(template.fork()?.run("nothing")?.wait()?.success());
    Ok(())
}
