//! Instructions: arguments, descriptors and calls, of any number and any bytes.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::time::Duration;

use hatchery::proc::{How, Template};
use libtest_mimic::Trial;
use nix::sys::resource::{Resource, getrlimit};

use crate::facts::told;
use crate::support::{Outcome, test};

pub fn tests() -> Vec<Trial> {
    vec![
        test("a_forked_process_is_run_with_its_arguments_in_order", arguments_in_order),
        test("arguments_are_any_bytes_from_none_to_64_mib", arguments_of_any_size),
        test("large_and_small_arguments_and_descriptors_keep_their_order", mixed_order),
        test("ten_thousand_arguments_arrive_in_order", many_arguments),
        test("a_thousand_descriptors_pass_through_one_process", many_descriptors),
        test("a_call_sees_its_own_and_the_held_arguments_and_may_take_them", calls_take),
        test("a_call_may_run_a_subprocess_of_its_own", subprocess_in_a_call),
        test("a_call_that_waits_for_any_child_costs_only_the_exit_code", child_taken_by_a_call),
    ]
}

fn arguments_in_order() -> Outcome {
    let mut template = Template::spawn()?;
    template.send_arg("of the template")?.call("remember", ["of a call"])?;
    let process = template.fork()?.send_arg("first")?.send_arg("")?.send_arg([0u8, 255, 10])?.run("tell")?;
    let (args, _) = told::<Vec<Vec<u8>>>(process.socket()?)?;
    assert_eq!(args, [&b"of the template"[..], b"of a call", b"first", b"", &[0, 255, 10]]);
    assert!(process.wait()?.success());
    Ok(())
}

fn arguments_of_any_size() -> Outcome {
    let sizes = [0, 1, 16 << 10, (16 << 10) + 1, 65_535, 65_536, 65_537, 1 << 20, 64 << 20];
    let mut template = Template::spawn()?;
    let mut process = template.fork()?;
    for size in sizes {
        process = process.send_arg(vec![size as u8; size])?;
    }
    let (told, _) = told::<(Vec<u64>, u64)>(process.run("tell_lengths")?.socket()?)?;
    assert_eq!(told, (sizes.iter().map(|size| *size as u64).collect(), 0));
    Ok(())
}

fn mixed_order() -> Outcome {
    let mut template = Template::spawn()?;
    let mut process = template.fork()?;
    let mut sent = Vec::new();
    for number in 0..300u32 {
        let arg = number.to_le_bytes().repeat(if number % 7 == 0 { 30_000 } else { 1 });
        let (reader, mut writer) = std::io::pipe()?;
        write!(writer, "{number}")?;
        process = process.send_arg(arg.clone())?.send_fd(reader)?;
        sent.push(arg);
    }
    let (args, fds) = told_all(process.run("tell_by_parts")?.socket()?)?;
    assert!(args == sent, "the arguments came in another order");
    for (number, fd) in fds.into_iter().enumerate() {
        let mut text = String::new();
        File::from(fd).read_to_string(&mut text)?;
        assert_eq!(text, number.to_string());
    }
    Ok(())
}

/// Arguments and descriptors that a process was given.
type Given = (Vec<Vec<u8>>, Vec<OwnedFd>);

/// Everything that a process tells in as many messages as it has arguments or descriptors.
fn told_all(socket: OwnedFd) -> Result<Given, Box<dyn std::error::Error>> {
    use hatchery::proc::{Channel, Received};
    let channel = Channel::<(), Vec<u8>>::new(socket);
    let (mut args, mut all) = (Vec::new(), Vec::new());
    while let Received::Message { message, fds, .. } = channel.recv()? {
        args.push(message);
        all.extend(fds);
    }
    Ok((args, all))
}

fn many_arguments() -> Outcome {
    let mut template = Template::spawn()?;
    let mut process = template.fork()?;
    for number in 0..10_000u32 {
        process = process.send_arg(number.to_string())?;
    }
    let (args, _) = told::<Vec<Vec<u8>>>(process.run("tell")?.socket()?)?;
    assert!((0..10_000u32).map(|number| number.to_string().into_bytes()).eq(args));
    Ok(())
}

fn many_descriptors() -> Outcome {
    let mut template = Template::spawn()?;
    let mut process = template.fork()?;
    let null = OwnedFd::from(File::open("/dev/null")?);
    // The other tests need some too, and the process cannot hold more than its limit.
    let (limit, _) = getrlimit(Resource::RLIMIT_NOFILE)?;
    let count = (limit / 4).min(1000);
    for _ in 0..count {
        process = process.send_fd(null.try_clone()?)?;
    }
    let (told, _) = told::<(Vec<u64>, u64)>(process.run("tell_lengths")?.socket()?)?;
    assert_eq!(told, (Vec::new(), count));
    Ok(())
}

fn calls_take() -> Outcome {
    let mut template = Template::spawn()?;
    template.send_arg("kept")?.send_fd(File::open("/dev/null")?)?.call("expect_held", ["1 1"])?;
    template.call("remember", ["one", "two"])?.call("expect_held", ["3 1"])?;
    template.call("take_all", ())?.call("expect_held", ["0 0"])?.sync()?;
    let process = template.fork()?.send_arg("later")?.run("tell")?;
    let (args, fds) = told::<Vec<Vec<u8>>>(process.socket()?)?;
    assert_eq!((args.as_slice(), fds.len()), ([b"later".to_vec()].as_slice(), 0));
    Ok(())
}

fn subprocess_in_a_call() -> Outcome {
    let mut template = Template::spawn()?;
    template.fork()?.run("nothing")?.wait()?;
    // The first waits for its subprocess; the second leaves it to be reaped by the template.
    template.call("run_subprocess", ())?.call("start_subprocess", ())?.sync()?;
    assert!(template.fork()?.run("nothing")?.wait()?.success());
    Ok(())
}

fn child_taken_by_a_call() -> Outcome {
    let mut template = Template::spawn()?;
    let process = template.fork()?.run("echo")?;
    let (mut reader, writer) = std::io::pipe()?;
    template.send_fd(writer)?.call("wait_for_any_child", ())?;
    reader.read_exact(&mut [0; 7])?;
    // With its socket it ends, into the arms of the call.
    drop(process.socket()?);
    assert_eq!(process.wait_timeout(Duration::from_secs(20))?.how, How::Unobserved);
    template.sync_timeout(Duration::from_secs(20))?;
    assert!(template.fork()?.run("nothing")?.wait_timeout(Duration::from_secs(20))?.success());
    Ok(())
}
