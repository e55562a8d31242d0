//! `exec`: another program in place of a forked process.

use std::fs::File;
use std::io::{Read, Write};

use hatchery::proc::{ExecCommand, Failure, How, Template};
use libtest_mimic::Trial;

use crate::support::{Outcome, test};

pub fn tests() -> Vec<Trial> {
    vec![
        test("a_program_reads_and_writes_what_it_was_given", standard_three),
        test("a_program_gets_its_environment_and_directory", surroundings),
        test("a_program_inherits_the_standard_three_and_nothing_else", descriptors),
        test("a_program_starts_with_default_signals_and_none_blocked", signals),
        test("a_program_that_is_missing_is_told_by_the_exit", missing),
        test("a_program_is_not_executed_after_a_failure", after_failure),
        test("a_programs_socket_is_closed_when_it_ends", pid_and_end),
    ]
}

/// Executes a shell command and reads what it writes.
fn output_of(template: &mut Template, command: ExecCommand) -> Result<String, Box<dyn std::error::Error>> {
    let (mut reader, writer) = std::io::pipe()?;
    let process = template.fork()?.exec(command.stdout(writer))?;
    let mut output = String::new();
    reader.read_to_string(&mut output)?;
    let exit = process.wait()?;
    if exit.success() { Ok(output) } else { Err(format!("{exit}: {output}").into()) }
}

fn standard_three() -> Outcome {
    let mut template = Template::spawn()?;
    let (input, mut feed) = std::io::pipe()?;
    let (mut output, out) = std::io::pipe()?;
    let (mut errors, err) = std::io::pipe()?;
    let command = ExecCommand::new("sh").args(["-c", "cat; echo \"$0 $1\" >&2; exit 3", "zero", "one two"]);
    let process = template.fork()?.exec(command.stdin(input).stdout(out).stderr(err))?;
    feed.write_all(b"fed")?;
    drop(feed);
    let (mut written, mut complained) = (String::new(), String::new());
    output.read_to_string(&mut written)?;
    errors.read_to_string(&mut complained)?;
    assert_eq!((written.as_str(), complained.as_str()), ("fed", "zero one two\n"));
    assert_eq!(process.wait()?.how, How::Code(3));
    Ok(())
}

fn surroundings() -> Outcome {
    let mut template = Template::spawn()?;
    let shell = |script: &str| ExecCommand::new("/bin/sh").args(["-c", script]);
    let directory = tempfile::tempdir()?;
    let command = shell("pwd; echo $GIVEN").env("GIVEN", "a b").current_dir(directory.path());
    let expected = format!("{}\na b\n", directory.path().canonicalize()?.display());
    assert_eq!(output_of(&mut template, command)?, expected);
    assert_ne!(output_of(&mut template, shell("echo $PATH"))?, "\n");
    assert_eq!(output_of(&mut template, shell("echo ${HOME-none}").env_remove("HOME"))?, "none\n");
    let bare = ExecCommand::new("/usr/bin/env").env("LOST", "1").env_clear().env("ONLY", "2");
    assert_eq!(output_of(&mut template, bare)?, "ONLY=2\n");
    // A template's marker is no business of the programs it becomes.
    assert!(!output_of(&mut template, ExecCommand::new("env"))?.contains("HATCHERY_TEMPLATE"));
    Ok(())
}

fn descriptors() -> Outcome {
    let mut template = Template::spawn()?;
    template.send_fd(File::open("/dev/null")?)?.call("open_carelessly", ())?.sync()?;
    // The shell's own pattern: it needs a descriptor of its own for the directory, which is gone in the check.
    let command =
        ExecCommand::new("sh").args(["-c", "for fd in /proc/$$/fd/*; do [ -e $fd ] && echo ${fd##*/}; done; exit 0"]);
    assert_eq!(output_of(&mut template, command)?, "0\n1\n2\n");
    Ok(())
}

fn signals() -> Outcome {
    let mut template = Template::spawn()?;
    template.fork()?.run("nothing")?.wait()?;
    let status = output_of(&mut template, ExecCommand::new("cat").arg("/proc/self/status"))?;
    let mask = |key: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(key)).unwrap_or_default();
        u64::from_str_radix(line.trim(), 16)
    };
    assert_eq!((mask("SigBlk:")?, mask("SigCgt:")?), (0, 0));
    // Without 32 and 33, which glibc keeps to itself and ignores in what posix_spawn starts.
    assert_eq!(mask("SigIgn:")? & !(3 << 31), 0);
    let piped = ExecCommand::new("sh").args(["-c", "kill -PIPE $$"]);
    let exit = template.fork()?.exec(piped)?.wait()?;
    assert!(matches!(exit.how, How::Signal { signal: 13, .. }), "{exit}");
    Ok(())
}

fn missing() -> Outcome {
    let mut template = Template::spawn()?;
    let exit = template.fork()?.exec(ExecCommand::new("/nowhere/at-all"))?.wait()?;
    assert_eq!(exit.how, How::Code(127));
    assert!(exit.to_string().contains("cannot execute /nowhere/at-all: No such file or directory"), "{exit}");
    let nowhere = ExecCommand::new("true").current_dir("/nowhere/at-all");
    let exit = template.fork()?.exec(nowhere)?.wait()?;
    assert!(matches!(exit.failure, Some(Failure::Exec { .. })), "{exit}");
    let with_nul = template.fork()?.exec(ExecCommand::new("true\0"))?.wait()?;
    assert!(matches!(with_nul.failure, Some(Failure::Exec { .. })), "{with_nul}");
    Ok(())
}

fn after_failure() -> Outcome {
    let mut template = Template::spawn()?;
    let exit = template.fork()?.call("fail", ())?.exec(ExecCommand::new("true"))?.wait()?;
    assert_eq!(exit.how, How::Code(1));
    assert!(matches!(exit.failure, Some(Failure::Returned { .. })), "{exit}");
    Ok(())
}

fn pid_and_end() -> Outcome {
    let mut template = Template::spawn()?;
    let process = template.fork()?.exec(ExecCommand::new("sleep").arg("1000"))?;
    assert!(process.pid()? > 0);
    process.kill(9)?;
    assert!(matches!(process.wait()?.how, How::Signal { signal: 9, .. }));
    Ok(())
}
