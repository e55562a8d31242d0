//! Passing a process's handle on to another process.

use std::fs::File;
use std::time::Duration;

use hatchery::proc::{Channel, Error, Process, Template};
use libtest_mimic::Trial;

use crate::facts::told;
use crate::running::kernel_tells_exits;
use crate::support::{Outcome, test};

pub fn tests() -> Vec<Trial> {
    vec![
        test("a_process_is_passed_on_to_another_which_forks_and_runs_it", passed_on),
        test("a_passed_on_process_has_what_it_was_sent_and_its_end_is_seen", adopted_here),
        test("children_of_a_passed_on_process_keep_their_handles", children_keep),
        test("what_is_no_conversation_is_refused", not_a_conversation),
    ]
}

fn passed_on() -> Outcome {
    let mut template = Template::spawn()?;
    let passed = template.fork()?.send_arg("ignored")?.call("take_all", ())?;
    let pid = passed.pid()?;
    let pidfd = passed.pidfd()?;
    let adopter = template.fork()?.send_fd(passed.into_fd()?)?.run("adopt")?;
    let told = told::<((i32, i32), (String, String))>(adopter.socket()?);
    let exit = adopter.wait()?;
    assert!(exit.success(), "{exit}");
    let ((adopted, forked), (forked_exit, adopted_exit)) = told?.0;
    assert_eq!(adopted, pid);
    assert_ne!(forked, pid);
    assert_eq!(forked_exit, "exit code 3");
    if kernel_tells_exits()? {
        assert_eq!(adopted_exit, "exit code 5");
    }
    drop(pidfd);
    Ok(())
}

fn adopted_here() -> Outcome {
    let mut template = Template::spawn()?;
    let passed = template.fork()?.send_arg("one")?.send_fd(File::open("/dev/null")?)?;
    let pid = passed.pid()?;
    let adopted = Process::from_fd(passed.into_fd()?)?;
    assert_eq!(adopted.pid()?, pid);
    let running = adopted.send_arg("two")?.run("tell")?;
    let (args, fds) = told::<Vec<Vec<u8>>>(running.socket()?)?;
    assert_eq!((args.as_slice(), fds.len()), ([b"one".to_vec(), b"two".to_vec()].as_slice(), 1));
    let exit = running.wait_timeout(Duration::from_secs(20))?;
    assert!(exit.success() || !kernel_tells_exits()?, "{exit}");
    Ok(())
}

fn children_keep() -> Outcome {
    let mut template = Template::spawn()?;
    let mut passed = template.fork()?;
    let mut before = Vec::new();
    for code in 20..25 {
        before.push((code, passed.fork()?.send_arg(code.to_string())?));
    }
    let mut adopted = Process::from_fd(passed.into_fd()?)?;
    let after = adopted.fork()?.run("wait_for_master")?;
    let later = adopted.fork()?.run("wait_for_master")?;
    for (code, process) in before {
        let exit = process.run("exit")?.wait_timeout(Duration::from_secs(20))?;
        if kernel_tells_exits()? {
            assert_eq!(exit.to_string(), format!("exit code {code}"));
        }
    }
    adopted = adopted.sync()?;
    assert!(after.try_wait().is_none() && later.try_wait().is_none(), "another process's end was taken for its own");
    drop((after.socket()?, later.socket()?));
    assert!(after.wait()?.success() && later.wait()?.success());
    drop(adopted);
    Ok(())
}

fn not_a_conversation() -> Outcome {
    assert!(Process::from_fd(File::open("/dev/null")?.into()).is_err());
    let (here, there) = Channel::<(), ()>::pair()?;
    drop(there);
    assert!(matches!(Process::from_fd(here.into_fd()), Err(Error::Gone { .. })));
    Ok(())
}
