//! The process layer on real processes.
//!
//! This binary is its own template: `hatchery::init` comes first in its `main`, and a process that was spawned
//! from it never gets to the tests.

mod support;

use std::error::Error;
use std::os::fd::OwnedFd;

use hatchery::proc::{Channel, Received, Registry, Template};
use libtest_mimic::{Arguments, Trial};

type Outcome = Result<(), Box<dyn Error>>;

fn registry() -> Registry {
    Registry::new()
        .call("remember", |cx| {
            cx.held_args.extend(cx.args.iter().cloned());
            Ok(())
        })
        .run("tell", |cx| {
            let channel = Channel::<Vec<Vec<u8>>, ()>::new(cx.socket);
            channel.send(&cx.args, cx.fds)?;
            Ok(())
        })
        .run("nothing", |_| Ok(()))
}

fn main() {
    hatchery::init(&registry());
    let tests = vec![
        Trial::test("a_forked_process_is_run_with_its_arguments_in_order", || Ok(arguments_in_order()?)),
        Trial::test("ten_thousand_queued_forks_neither_deadlock_nor_lose_order", || Ok(ten_thousand()?)),
    ];
    libtest_mimic::run(&Arguments::from_args(), tests).exit();
}

/// What a process was given, as it tells.
type Given = (Vec<Vec<u8>>, Vec<OwnedFd>);

fn told(socket: OwnedFd) -> Result<Given, Box<dyn Error>> {
    match Channel::<(), Vec<Vec<u8>>>::new(socket).recv()? {
        Received::Message { message, fds, .. } => Ok((message, fds)),
        other => Err(format!("{other:?}").into()),
    }
}

fn arguments_in_order() -> Outcome {
    let mut template = Template::spawn()?;
    template.send_arg("of the template")?.call("remember", ["of a call"])?;
    let process = template.fork()?.send_arg("first")?.send_arg("")?.send_arg([0u8, 255, 10])?.run("tell")?;
    let (args, _) = told(process.socket()?)?;
    assert_eq!(args, [&b"of the template"[..], b"of a call", b"first", b"", &[0, 255, 10]]);
    assert!(process.wait()?.success());
    Ok(())
}

fn ten_thousand() -> Outcome {
    let mut template = Template::spawn()?;
    let (ended, ends) = std::sync::mpsc::channel();
    for number in 0..10_000u32 {
        let ended = ended.clone();
        let process = template.fork()?.send_arg(number.to_string())?.run("nothing")?;
        process.on_exit(move |exit| drop(ended.send(exit)));
    }
    drop(ended);
    let mut count = 0;
    for exit in ends {
        assert!(exit?.success());
        count += 1;
    }
    assert_eq!(count, 10_000);
    Ok(())
}
