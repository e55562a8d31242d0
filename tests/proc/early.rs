//! Early templates: forked from the calling program itself. All need a program without threads of their own.

use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use hatchery::proc::{Error, Registry, Template};
use libtest_mimic::Trial;

use crate::entries;
use crate::facts::facts_of;
use crate::support::scenario::{self, Scenario};
use crate::support::{Outcome, test};

pub const SCENARIOS: &[Scenario] = &[
    ("early", early),
    ("early_with_threads", early_with_threads),
    ("early_is_killed", early_is_killed),
    ("early_twice", early_twice),
    ("early_is_dropped", early_is_dropped),
];

pub fn tests() -> Vec<Trial> {
    vec![
        test("an_early_template_has_what_the_program_had_loaded", || scenario::pass("early").map(drop)),
        test("an_early_template_is_refused_beside_threads_and_they_are_named", || {
            scenario::pass("early_with_threads").map(drop)
        }),
        test("an_early_templates_death_is_seen", || scenario::pass("early_is_killed").map(drop)),
        test("a_second_early_template_holds_nothing_of_the_first", || scenario::pass("early_twice").map(drop)),
        test("a_dropped_early_template_leaves_no_zombie", || scenario::pass("early_is_dropped").map(drop)),
    ]
}

static LOADED: AtomicU32 = AtomicU32::new(0);

fn registry() -> Registry {
    entries::registry().run("exit_with_loaded", |_| std::process::exit(LOADED.load(Ordering::Relaxed) as i32))
}

fn early() -> Outcome {
    LOADED.store(42, Ordering::Relaxed);
    let mut template = Template::early(&registry())?;
    LOADED.store(1, Ordering::Relaxed);
    let loaded = template.fork()?.run("exit_with_loaded")?;
    let facts = facts_of(&template.fork()?.run("facts")?)?;
    assert_eq!(facts.parent as i32, template.pid()?);
    assert_eq!(facts.group, template.pid()?);
    assert_eq!((facts.blocked, facts.ignored), (0, 1 << (13 - 1)));
    assert_eq!(loaded.wait()?.to_string(), "exit code 42");
    assert!(template.fork()?.run("write_to_nobody")?.wait()?.success());
    // A spawned one lives beside it.
    assert!(Template::spawn()?.fork()?.run("nothing")?.wait()?.success());
    // From here on this program has the hub's thread.
    assert!(matches!(Template::early(&registry()), Err(Error::Threads { .. })));
    Ok(())
}

fn early_with_threads() -> Outcome {
    let (stop, stopped) = std::sync::mpsc::channel::<()>();
    let extra = thread::Builder::new().name("extra-hand".into()).spawn(move || stopped.recv())?;
    loop {
        // The thread names itself a little after its start.
        match Template::early(&registry()) {
            Err(Error::Threads { names }) if names == ["extra-hand"] => break,
            Err(Error::Threads { .. }) => thread::yield_now(),
            other => return Err(format!("{other:?}").into()),
        }
    }
    drop(stop);
    assert!(extra.join().is_ok());
    Ok(())
}

fn early_is_killed() -> Outcome {
    let mut template = Template::early(&registry())?;
    template.sync()?;
    let running = template.fork()?.run("wait_for_master")?;
    running.pid()?;
    let pid = nix::unistd::Pid::from_raw(template.pid()?);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL)?;
    assert!(matches!(template.sync(), Err(Error::Gone { .. })));
    drop(running.socket()?);
    running.wait()?;
    while std::fs::exists(format!("/proc/{pid}"))? {
        thread::yield_now();
    }
    Ok(())
}

fn early_twice() -> Outcome {
    let first = Template::early(&registry())?;
    let mut second = Template::early(&registry())?;
    let pid = first.pid()?;
    let facts = facts_of(&second.fork()?.run("facts")?)?;
    // Its own socket and its parent's end for last words; what else it has is the calling program's.
    let sockets = facts.kinds_beyond_standard().into_iter().filter(|kind| *kind == "socket").count();
    assert_eq!(sockets, 2, "{facts:?}");
    drop(first);
    while std::fs::exists(format!("/proc/{pid}"))? {
        thread::yield_now();
    }
    second.sync()?;
    Ok(())
}

fn early_is_dropped() -> Outcome {
    let template = Template::early(&registry())?;
    let pid = template.pid()?;
    drop(template);
    // Dropping starts no thread, so this is still possible.
    let mut next = Template::early(&registry())?;
    next.sync()?;
    while std::fs::exists(format!("/proc/{pid}"))? {
        thread::yield_now();
    }
    Ok(())
}
