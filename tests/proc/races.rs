//! What may happen at the same time: callbacks that call back, handles that are dropped early, many who wait.

use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::Duration;

use hatchery::proc::{Running, Template};
use libtest_mimic::Trial;

use crate::support::{Outcome, test};

const SOON: Duration = Duration::from_secs(60);

pub fn tests() -> Vec<Trial> {
    vec![
        test("a_callback_may_fork_the_next_process", respawning),
        test("a_callback_may_drop_the_last_handles", dropping_in_a_callback),
        test("a_panicking_callback_harms_nobody", panicking_callback),
        test("a_callback_for_an_end_that_has_come_is_called_at_once", late_callback),
        test("processes_run_and_dropped_before_birth_still_do_their_work", dropped_before_birth),
        test("processes_of_a_template_dropped_at_once_still_do_their_work", template_dropped_at_once),
        test("a_child_of_a_process_that_becomes_a_program_is_told_of", child_of_a_program),
        test("many_threads_may_wait_for_one_end", many_wait),
        test("handles_dropped_by_many_threads_while_ends_come_in_harm_nobody", dropped_while_ending),
    ]
}

fn respawning() -> Outcome {
    let template = Arc::new(Mutex::new(Template::spawn()?));
    let (done, finished) = mpsc::channel();
    fn next(template: &Arc<Mutex<Template>>, left: u32, done: mpsc::Sender<Result<(), String>>) {
        let process = template.lock().unwrap().fork().and_then(|process| process.run("nothing"));
        match process {
            Err(error) => drop(done.send(Err(error.to_string()))),
            Ok(_) if left == 0 => drop(done.send(Ok(()))),
            Ok(process) => {
                let template = Arc::clone(template);
                process.on_exit(move |_| next(&template, left - 1, done));
            }
        }
    }
    next(&template, 200, done);
    finished.recv_timeout(SOON)??;
    Ok(())
}

fn dropping_in_a_callback() -> Outcome {
    let (done, finished) = mpsc::channel();
    for _ in 0..20 {
        let mut template = Template::spawn()?;
        let process = template.fork()?.run("nothing")?;
        let bystander = template.fork()?;
        let done = done.clone();
        process.on_exit(move |exit| {
            drop((template, bystander));
            drop(done.send(exit));
        });
        drop(process);
    }
    for _ in 0..20 {
        assert!(finished.recv_timeout(SOON)??.success());
    }
    Ok(())
}

fn panicking_callback() -> Outcome {
    let mut template = Template::spawn()?;
    for _ in 0..3 {
        template.fork()?.run("nothing")?.on_exit(|_| panic!("a callback that panics, as this test wants it"));
    }
    for _ in 0..10 {
        assert!(template.fork()?.run("nothing")?.wait_timeout(SOON)?.success());
    }
    Ok(())
}

fn late_callback() -> Outcome {
    let mut template = Template::spawn()?;
    let process = template.fork()?.run("nothing")?;
    process.wait()?;
    let (told, tell) = mpsc::channel();
    process.on_exit(move |exit| drop(told.send(exit)));
    assert!(tell.try_recv()??.success());
    Ok(())
}

/// Processes that append a line each to a file, none of which is waited for.
fn append(template: &mut Template, file: &std::fs::File, count: u32) -> Outcome {
    for number in 0..count {
        let (process, line) = (template.fork()?.send_fd(file.try_clone()?)?, format!("{number}"));
        // Some have answers under way when their handles go.
        let mut process = process.send_arg(line)?;
        if number % 3 == 0 {
            drop(process.fork()?);
        }
        drop(process.run("append")?);
    }
    Ok(())
}

/// Reads what they wrote once the last of them has closed its end of the pipe.
fn lines_of(mut reader: std::io::PipeReader) -> Result<Vec<u32>, Box<dyn std::error::Error>> {
    use std::io::Read;
    let mut text = String::new();
    reader.read_to_string(&mut text)?;
    let mut lines: Vec<u32> = text.lines().map(str::parse).collect::<Result<_, _>>()?;
    lines.sort_unstable();
    Ok(lines)
}

fn dropped_before_birth() -> Outcome {
    let mut template = Template::spawn()?;
    let (reader, writer) = std::io::pipe()?;
    append(&mut template, &std::fs::File::from(std::os::fd::OwnedFd::from(writer)), 300)?;
    assert!(lines_of(reader)?.into_iter().eq(0..300));
    template.sync()?;
    Ok(())
}

fn template_dropped_at_once() -> Outcome {
    for _ in 0..10 {
        let mut template = Template::spawn()?;
        let (reader, writer) = std::io::pipe()?;
        append(&mut template, &std::fs::File::from(std::os::fd::OwnedFd::from(writer)), 100)?;
        drop(template);
        assert!(lines_of(reader)?.into_iter().eq(0..100));
    }
    Ok(())
}

fn child_of_a_program() -> Outcome {
    let mut template = Template::spawn()?;
    for _ in 0..20 {
        let mut process = template.fork()?;
        let child = process.fork()?.run("wait_for_master")?;
        let program = process.exec(hatchery::proc::ExecCommand::new("true"))?;
        assert!(child.pid()? > 0);
        drop(child.socket()?);
        child.wait_timeout(SOON)?;
        assert!(program.wait_timeout(SOON)?.success());
    }
    Ok(())
}

fn many_wait() -> Outcome {
    let mut template = Template::spawn()?;
    let process = Arc::new(template.fork()?.run("wait_for_master")?);
    let waiting: Vec<_> = (0..8)
        .map(|_| {
            let process = Arc::clone(&process);
            thread::spawn(move || process.wait_timeout(SOON).is_ok_and(|exit| exit.success()))
        })
        .collect();
    drop(process.socket()?);
    for thread in waiting {
        assert!(matches!(thread.join(), Ok(true)));
    }
    Ok(())
}

fn dropped_while_ending() -> Outcome {
    let threads: Vec<_> = (0..4)
        .map(|_| {
            thread::spawn(|| {
                let mut template = Template::spawn()?;
                let mut last: Option<Running> = None;
                for _ in 0..300 {
                    let process = template.fork()?.run("nothing")?;
                    process.on_exit(|_| {});
                    // The one before is dropped just when its end may come in.
                    last = Some(process);
                }
                drop(template);
                last.map_or(Ok(true), |process| process.wait_timeout(SOON).map(|exit| exit.success()))
            })
        })
        .collect();
    for thread in threads {
        assert!(thread.join().map_err(|_| "a thread panicked")??);
    }
    Ok(())
}
