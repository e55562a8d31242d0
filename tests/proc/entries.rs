//! The entry points that the tests use.

use std::error::Error;
use std::fs::File;
use std::hint::black_box;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use hatchery::proc::{BoxError, CallCx, Channel, Process, Received, Registry, RunCx};
use nix::sys::resource::{Resource, UsageWho, getrlimit, getrusage, setrlimit};
use nix::sys::signal::{Signal, raise};
use nix::sys::socket::{MsgFlags, send};

use crate::facts::Facts;

pub fn registry() -> Registry {
    Registry::new()
        .call("remember", |cx| {
            cx.held_args.extend(cx.args.iter().cloned());
            Ok(())
        })
        .call("take_all", |cx| {
            cx.held_args.clear();
            cx.held_fds.clear();
            Ok(())
        })
        .call("expect_held", expect_held)
        .call("fail", |_| Err(Box::new(Layered("the outer error", Some(Box::new(Layered("the inner cause", None)))))))
        .call("fail_at_length", |cx| Err("x".repeat(cx.arg_str(0)?.parse()?).into()))
        .call("panic", |cx| panic!("a call went wrong: {}", cx.arg_str(0).unwrap_or("?")))
        .call("tell_facts", |cx| {
            let socket = cx.held_fds.pop().ok_or("send a socket first")?;
            Ok(Channel::<Facts, ()>::new(socket).send(&Facts::gather(cx.held_args)?, &[])?)
        })
        .call("wait_for_eof", |cx| {
            let file = cx.held_fds.pop().ok_or("send a pipe first")?;
            Ok(wait_for_eof(file)?)
        })
        .call("limit_descriptors", |cx| {
            let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
            Ok(setrlimit(Resource::RLIMIT_NOFILE, cx.arg_str(0)?.parse()?, hard)?)
        })
        .call("limit_processes", |cx| {
            let (_, hard) = getrlimit(Resource::RLIMIT_NPROC)?;
            Ok(setrlimit(Resource::RLIMIT_NPROC, cx.arg_str(0)?.parse()?, hard)?)
        })
        .call("say_on_descriptor_3", |cx| {
            // A template's own conversation.
            for message in cx.args {
                send(3, message, MsgFlags::empty())?;
            }
            Ok(())
        })
        .call("start_thread", |_| {
            // A thread takes its name a little after its start.
            let (named, is_named) = std::sync::mpsc::channel();
            std::thread::Builder::new().name("extra-hand".into()).spawn(move || {
                let told = named.send(());
                while told.is_ok() {
                    std::thread::park();
                }
            })?;
            Ok(is_named.recv()?)
        })
        .call("open_carelessly", |cx| {
            // dup(2) gives a descriptor that exec does not close; it stays open for good.
            std::mem::forget(nix::unistd::dup(cx.held_fds.first().ok_or("send a file first")?)?);
            Ok(())
        })
        .call("wait_for_any_child", |cx| {
            let mut told = File::from(cx.held_fds.pop().ok_or("send a pipe first")?);
            told.write_all(b"waiting")?;
            // Carelessly: the template's own children are among them.
            nix::sys::wait::waitpid(None, None)?;
            Ok(())
        })
        .call("start_subprocess", |_| {
            std::process::Command::new("true").spawn()?;
            Ok(())
        })
        .call("run_subprocess", |_| {
            let status = std::process::Command::new("true").status()?;
            if status.success() { Ok(()) } else { Err(status.to_string().into()) }
        })
        .run("tell", |cx| Ok(Channel::<Vec<Vec<u8>>, ()>::new(cx.socket).send(&cx.args, &cx.fds)?))
        .run("tell_by_parts", |cx| {
            let channel = Channel::<Vec<u8>, ()>::new(cx.socket);
            let mut fds = cx.fds.into_iter();
            for arg in &cx.args {
                channel.send(arg, fds.by_ref().take(1).collect::<Vec<_>>().as_slice())?;
            }
            Ok(())
        })
        .run("tell_lengths", |cx| {
            let lengths: Vec<u64> = cx.args.iter().map(|arg| arg.len() as u64).collect();
            Ok(Channel::<(Vec<u64>, u64), ()>::new(cx.socket).send(&(lengths, cx.fds.len() as u64), &[])?)
        })
        .run("facts", |cx| Ok(Channel::<Facts, ()>::new(cx.socket).send(&Facts::gather(&cx.args)?, &[])?))
        .run("append", |cx| {
            let mut log = File::from(cx.fds.into_iter().next().ok_or("send a file first")?);
            Ok(log.write_all(format!("{}\n", String::from_utf8_lossy(&cx.args.concat())).as_bytes())?)
        })
        .run("nothing", |_| Ok(()))
        .run("fail_run", |_| Err("the service could not start".into()))
        .run("panic_run", |_| panic!("a run went wrong"))
        .run("exit", |cx| std::process::exit(cx.arg_str(0)?.parse()?))
        .run("raise", |cx| Ok(raise(Signal::try_from(cx.arg_str(0)?.parse::<i32>()?)?)?))
        .run("burn", burn)
        .run("echo", echo)
        .run("wait_for_master", |cx| Ok(wait_for_eof(cx.socket)?))
        .run("write_to_nobody", write_to_nobody)
        .run("adopt", adopt)
        .run("own_subprocess", own_subprocess)
        .run("master", master)
        .run("thread_panics", |cx| {
            nix::unistd::dup2_stderr(cx.fds.first().ok_or("send a pipe first")?)?;
            let panicked = std::thread::spawn(|| panic!("a thread went wrong")).join();
            if panicked.is_err() { Ok(()) } else { Err("the thread did not panic".into()) }
        })
}

/// An error with a source.
#[derive(Debug)]
struct Layered(&'static str, Option<Box<Layered>>);

impl std::fmt::Display for Layered {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.0)
    }
}

impl Error for Layered {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.1.as_deref().map(|source| source as &(dyn Error + 'static))
    }
}

/// Fails if the process does not hold as many arguments and descriptors as it is told.
fn expect_held(cx: &mut CallCx<'_>) -> Result<(), BoxError> {
    let held = format!("{} {}", cx.held_args.len(), cx.held_fds.len());
    if held == cx.arg_str(0)? { Ok(()) } else { Err(format!("held: {held}").into()) }
}

fn wait_for_eof(fd: OwnedFd) -> io::Result<()> {
    let mut file = File::from(fd);
    while file.read(&mut [0; 64])? > 0 {}
    Ok(())
}

/// Uses a visible amount of processor time and memory.
fn burn(_: RunCx) -> Result<(), BoxError> {
    let start = Instant::now();
    let mut memory = vec![0u8; 32 << 20];
    loop {
        let used = getrusage(UsageWho::RUSAGE_SELF)?.user_time();
        if used.tv_sec() > 0 || used.tv_usec() >= 20_000 {
            return Ok(());
        }
        memory.iter_mut().for_each(|byte| *byte = byte.wrapping_add(1));
        black_box(&memory);
        if start.elapsed() > Duration::from_secs(60) {
            return Err("no processor time was counted".into());
        }
    }
}

fn echo(cx: RunCx) -> Result<(), BoxError> {
    let channel = Channel::<String, String>::new(cx.socket);
    while let Received::Message { message, fds, .. } = channel.recv()? {
        channel.send(&message, &fds)?;
    }
    Ok(())
}

/// Where SIGPIPE is ignored, as everywhere in Rust, this is an error and not the end.
fn write_to_nobody(_: RunCx) -> Result<(), BoxError> {
    let (reader, mut writer) = io::pipe()?;
    drop(reader);
    match writer.write(b"x") {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => Err(format!("{other:?}").into()),
    }
}

/// Gets the conversation of a waiting process, forks it and runs both; tells their pids and how they ended.
fn adopt(cx: RunCx) -> Result<(), BoxError> {
    let conversation = cx.fds.into_iter().next().ok_or("send a conversation first")?;
    let mut adopted = Process::from_fd(conversation)?;
    let forked = adopted.fork()?.send_arg("3")?.run("exit")?;
    let pids = (adopted.pid()?, forked.pid()?);
    let exits = (forked.wait()?.to_string(), adopted.send_arg("5")?.run("exit")?.wait()?.to_string());
    Ok(Channel::<((i32, i32), (String, String)), ()>::new(cx.socket).send(&(pids, exits), &[])?)
}

/// What a process does for itself must not meet what the process layer does for its children.
fn own_subprocess(cx: RunCx) -> Result<(), BoxError> {
    wait_for_eof(cx.socket)?;
    for _ in 0..50 {
        let status = std::process::Command::new("sh").args(["-c", "exit 7"]).status()?;
        if status.code() != Some(7) {
            return Err(format!("a subprocess: {status}").into());
        }
    }
    Ok(())
}

/// A process that was forked from a template is the master of a template of its own.
fn master(cx: RunCx) -> Result<(), BoxError> {
    let mut template = hatchery::proc::Template::spawn()?;
    let exit = template.fork()?.send_arg("9")?.run("exit")?.wait()?;
    Ok(Channel::<String, ()>::new(cx.socket).send(&exit.to_string(), &[])?)
}
