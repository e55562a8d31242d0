//! What a template is: a fresh lean image of this very program, or a typed refusal.

use std::fs;
use std::io::Read;
use std::os::fd::OwnedFd;

use hatchery::proc::{Channel, Error, Template};
use libtest_mimic::Trial;

use crate::facts::{Facts, facts_of, told};
use crate::program::copy_program;
use crate::support::scenario::{self, Scenario};
use crate::support::{Outcome, test};

/// The scenario that leaves out `hatchery::init`.
pub const WITHOUT_INIT: &str = "without_init";

pub const SCENARIOS: &[Scenario] =
    &[(WITHOUT_INIT, without_init), ("replaced_file", replaced_file), ("careless_master", careless_master)];

pub fn tests() -> Vec<Trial> {
    vec![
        test("a_template_is_lean_and_has_one_thread", lean),
        test("a_template_has_its_own_process_group", own_group),
        test("a_template_is_the_same_executable_even_if_its_file_was_replaced_or_removed", same_file),
        test("another_program_is_spawned_by_its_path", by_path),
        test("a_missing_program_is_a_typed_error", missing),
        test("a_program_without_init_is_told_so", || scenario::pass(WITHOUT_INIT).map(drop)),
        test("a_careless_descriptor_of_the_master_reaches_no_template", || scenario::pass("careless_master").map(drop)),
    ]
}

/// What a template sees of itself.
pub fn facts_of_template(template: &mut Template) -> Result<Facts, Box<dyn std::error::Error>> {
    let (here, there) = Channel::<(), Facts>::pair()?;
    template.send_fd(there.into_fd())?.call("tell_facts", ())?.sync()?;
    Ok(told::<Facts>(here.into_fd())?.0)
}

fn lean() -> Outcome {
    // Much in the master: memory, descriptors and threads that a fork of it would copy.
    let ballast = vec![1u8; 64 << 20];
    let open: Vec<fs::File> = (0..100).map(|_| fs::File::open("/dev/null")).collect::<Result<_, _>>()?;
    let mut template = Template::spawn()?;
    let facts = facts_of_template(&mut template)?;
    assert_eq!(facts.threads, 1);
    assert_eq!(facts.pid as i32, template.pid()?);
    assert!(facts.mappings < 60, "{} mappings", facts.mappings);
    // Its conversation and the socket that it tells this over.
    assert_eq!(facts.kinds_beyond_standard(), ["socket", "socket"], "{facts:?}");
    assert_eq!(facts.descriptors[0], (0, "/dev/null".to_owned()));
    drop((ballast, open));
    Ok(())
}

fn own_group() -> Outcome {
    let mut template = Template::spawn()?;
    let facts = facts_of_template(&mut template)?;
    assert_eq!(facts.group, facts.pid as i32);
    let child = facts_of(&template.fork()?.run("facts")?)?;
    assert_eq!(child.group, facts.group);
    assert_ne!(child.group, nix::unistd::getpgrp().as_raw());
    Ok(())
}

fn same_file() -> Outcome {
    let directory = tempfile::tempdir()?;
    for removed in ["removed", "replaced"] {
        let copy = directory.path().join(removed);
        copy_program(std::env::current_exe()?, &copy);
        scenario::finish(scenario::command_of(&copy, "replaced_file").env("REPLACE", removed))?;
    }
    Ok(())
}

fn replaced_file() -> Outcome {
    let own = std::env::current_exe()?;
    let before = fs::metadata("/proc/self/exe")?;
    fs::remove_file(&own)?;
    if std::env::var("REPLACE")? == "replaced" {
        fs::write(&own, "not a program at all")?;
    }
    let mut template = Template::spawn()?;
    template.sync()?;
    use std::os::unix::fs::MetadataExt;
    let after = fs::metadata(format!("/proc/{}/exe", template.pid()?))?;
    assert_eq!((after.dev(), after.ino()), (before.dev(), before.ino()));
    assert!(template.fork()?.run("nothing")?.wait()?.success());
    Ok(())
}

fn by_path() -> Outcome {
    let mut template = Template::spawn_program(std::env::current_exe()?)?;
    template.sync()?;
    assert!(template.fork()?.run("nothing")?.wait()?.success());
    // A program that knows nothing of us ends or stays silent; it is not taken for a template.
    let mut stranger = Template::spawn_program("/bin/true")?;
    assert!(matches!(stranger.sync(), Err(Error::Gone { .. })));
    Ok(())
}

fn missing() -> Outcome {
    match Template::spawn_program("/nowhere/at-all") {
        Err(Error::Spawn { program, .. }) => assert_eq!(program, "/nowhere/at-all"),
        other => panic!("{other:?}"),
    }
    match Template::spawn_program("/dev/null") {
        Err(Error::Spawn { program, .. }) => assert_eq!(program, "/dev/null"),
        other => panic!("{other:?}"),
    }
    Ok(())
}

fn without_init() -> Outcome {
    match Template::spawn() {
        Err(Error::NotInitialised) => Ok(()),
        other => Err(format!("{other:?}").into()),
    }
}

fn careless_master() -> Outcome {
    // dup(2) gives a descriptor that is not closed by exec, as careless libraries do.
    let (mut reader, writer) = std::io::pipe()?;
    let careless: Vec<OwnedFd> = (0..20).map(|_| nix::unistd::dup(&writer)).collect::<Result<_, _>>()?;
    let mut template = Template::spawn()?;
    let facts = facts_of_template(&mut template)?;
    assert_eq!(facts.kinds_beyond_standard(), ["socket", "socket"], "{facts:?}");
    drop((writer, careless));
    assert_eq!(reader.read(&mut [0])?, 0);
    Ok(())
}
