//! Descriptors: what a process holds, and that the master is left with as many as before.

use std::fs::File;

use hatchery::proc::{Process, Template};
use libtest_mimic::Trial;

use crate::facts::{count_descriptors, facts_of};
use crate::image::facts_of_template;
use crate::support::scenario::{self, Scenario};
use crate::support::{Outcome, test};

pub const SCENARIOS: &[Scenario] = &[
    ("a_thousand_processes", a_thousand_processes),
    ("templates_come_and_go", templates_come_and_go),
    ("abandoned_in_every_state", abandoned_in_every_state),
];

pub fn tests() -> Vec<Trial> {
    vec![
        test("a_process_and_its_grandchild_hold_exactly_what_they_were_given", allow_list),
        test("after_a_thousand_processes_master_and_template_have_as_many_descriptors_as_before", || {
            scenario::pass("a_thousand_processes").map(drop)
        }),
        test("templates_that_come_and_go_leave_no_descriptor_and_no_zombie", || {
            scenario::pass("templates_come_and_go").map(drop)
        }),
        test("processes_abandoned_in_every_state_leave_nothing", || {
            scenario::pass("abandoned_in_every_state").map(drop)
        }),
    ]
}

fn allow_list() -> Outcome {
    let mut template = Template::spawn()?;
    template.send_fd(File::open("/dev/null")?)?;
    // Others that the template has forked, and what was sent to them, are no business of the next.
    let other = template.fork()?.send_fd(File::open("/dev/zero")?)?;
    let sibling = template.fork()?.run("wait_for_master")?;
    let mut process = template.fork()?.send_fd(File::open("/dev/full")?)?;
    let grandchild = process.fork()?.run("facts")?;
    // Its socket, the end for last words to its parent, and what was sent, in whichever order.
    let expected = ["/dev/full", "/dev/null", "socket", "socket"];
    let sorted = |facts: &crate::facts::Facts| {
        let mut kinds: Vec<String> = facts.kinds_beyond_standard().into_iter().map(str::to_owned).collect();
        kinds.sort();
        kinds
    };
    assert_eq!(sorted(&facts_of(&grandchild)?), expected);
    let single = facts_of(&template.fork()?.send_fd(File::open("/dev/full")?)?.run("facts")?)?;
    assert_eq!(sorted(&single), expected);
    // One that has children of its own and is run lets go of what it needed to watch them.
    let parent = facts_of(&process.run("facts")?)?;
    assert!(parent.descriptors.iter().all(|(_, kind)| !kind.contains("signalfd")), "{parent:?}");
    drop((other, sibling));
    Ok(())
}

fn a_thousand_processes() -> Outcome {
    let mut template = Template::spawn()?;
    template.fork()?.run("nothing")?.wait()?;
    template.sync()?;
    let before = (count_descriptors()?, facts_of_template(&mut template)?.descriptors.len());
    for round in 0..10 {
        let mut processes = Vec::new();
        for number in 0..100u32 {
            let process = template.fork()?.send_arg(vec![0; 100_000 * usize::from(number % 50 == 0)])?;
            processes.push(process.send_fd(File::open("/dev/null")?)?.run(if number % 3 == 0 {
                "fail_run"
            } else {
                "nothing"
            })?);
        }
        for process in processes {
            process.wait()?;
        }
        let after = count_descriptors()?;
        assert_eq!(after, before.0, "in round {round}");
    }
    assert_eq!(facts_of_template(&mut template)?.descriptors.len(), before.1);
    assert_eq!(children_of(template.pid()?)?, 0);
    Ok(())
}

/// How many children a process has, zombies included.
fn children_of(pid: i32) -> Result<usize, Box<dyn std::error::Error>> {
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))?;
    Ok(children.split_whitespace().count())
}

/// Waits until this process has no child left, nor the pidfd of one: they are reaped and closed in the background.
fn until_childless() -> Outcome {
    let own = std::process::id() as i32;
    while children_of(own)? > 0 || holds_pidfd()? {
        std::thread::yield_now();
    }
    Ok(())
}

fn holds_pidfd() -> std::io::Result<bool> {
    let is_pidfd = |entry: std::fs::DirEntry| {
        // It may be closed meanwhile.
        std::fs::read_link(entry.path()).is_ok_and(|target| target.to_string_lossy().contains("pidfd"))
    };
    Ok(std::fs::read_dir("/proc/self/fd")?.flatten().any(is_pidfd))
}

fn templates_come_and_go() -> Outcome {
    Template::spawn()?.sync()?;
    until_childless()?;
    let before = count_descriptors()?;
    for round in 0..30 {
        let mut template = Template::spawn()?;
        match round % 3 {
            0 => {}
            1 => drop(template.sync()?),
            _ => drop(template.fork()?.run("nothing")?.wait()?),
        }
    }
    until_childless()?;
    assert_eq!(count_descriptors()?, before);
    Ok(())
}

fn abandoned_in_every_state() -> Outcome {
    let mut template = Template::spawn()?;
    template.fork()?.run("nothing")?.wait()?;
    template.sync()?;
    let before = (count_descriptors()?, facts_of_template(&mut template)?.descriptors.len());
    for _ in 0..20 {
        let just_forked = template.fork()?;
        let mut known = template.fork()?;
        known.pid()?;
        let mut forked: Vec<Process> = (0..3).map(|_| known.fork()).collect::<Result<_, _>>()?;
        let grandchild = forked[0].fork()?;
        forked.push(grandchild);
        let with_letters =
            template.fork()?.send_arg("x")?.send_fd(File::open("/dev/null")?)?.call("remember", ["y"])?;
        let run_unborn = template.fork()?.run("wait_for_master")?;
        let run_announced = template.fork()?.sync()?.run("wait_for_master")?;
        drop((just_forked, known, forked, with_letters, run_unborn, run_announced));
    }
    let template_pid = template.pid()?;
    while children_of(template_pid)? > 0 {
        template.sync()?;
    }
    assert_eq!(facts_of_template(&mut template)?.descriptors.len(), before.1);
    assert_eq!(count_descriptors()?, before.0);
    Ok(())
}
