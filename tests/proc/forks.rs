//! Forks: of templates, of waiting processes, of the default template; inheritance and order.

use std::fs::File;
use std::io::{Read, Seek};
use std::os::fd::OwnedFd;
use std::thread;

use hatchery::proc::{Process, Running, Template};
use libtest_mimic::Trial;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::facts::{facts_of, told};
use crate::support::scenario::{self, Scenario};
use crate::support::{Outcome, test};

pub const SCENARIOS: &[Scenario] = &[
    ("ten_thousand_with_256", || ten_thousand_with(256)),
    ("ten_thousand_with_96", || ten_thousand_with(96)),
    ("default_template", default_template),
];

pub fn tests() -> Vec<Trial> {
    vec![
        test("three_generations_inherit_descriptors_and_arguments_in_order", three_generations),
        test("a_template_of_templates_forks_what_it_was_given", template_of_templates),
        test("children_of_a_waiting_process_are_its_own_and_their_ends_are_told", parents),
        test("what_a_called_function_built_is_shared_with_every_fork", built_by_calls),
        test("a_new_process_comes_from_a_default_template_that_is_kept_and_replaced_when_killed", || {
            scenario::pass("default_template").map(drop)
        }),
        test("ten_workers_are_forked_from_one_template", ten_workers),
        test("ten_thousand_queued_forks_neither_deadlock_nor_lose_order", || ten_thousand(10_000)),
        test("ten_thousand_queued_forks_pass_with_256_descriptors", || {
            scenario::pass("ten_thousand_with_256").map(drop)
        }),
        test("ten_thousand_queued_forks_pass_with_96_descriptors", || scenario::pass("ten_thousand_with_96").map(drop)),
        test("queued_forks_keep_their_order_while_the_handle_moves_between_threads", moved_between_threads),
        test("forks_by_many_templates_at_once_do_not_meet", many_templates),
    ]
}

/// An open file with a text, to be told apart from others.
fn file(text: &str) -> Result<OwnedFd, Box<dyn std::error::Error>> {
    use std::io::Write;
    let mut file = tempfile::tempfile()?;
    file.write_all(text.as_bytes())?;
    Ok(file.into())
}

fn told_texts(process: &Running) -> Result<(Vec<String>, Vec<String>), Box<dyn std::error::Error>> {
    let (args, fds) = told::<Vec<Vec<u8>>>(process.socket()?)?;
    let args = args.into_iter().map(String::from_utf8).collect::<Result<_, _>>()?;
    let texts = fds.into_iter().map(|fd| {
        let mut file = File::from(fd);
        let mut text = String::new();
        // The position is shared by all who inherited the file.
        file.rewind()?;
        file.read_to_string(&mut text)?;
        Ok::<_, std::io::Error>(text)
    });
    Ok((args, texts.collect::<Result<_, _>>()?))
}

fn three_generations() -> Outcome {
    let mut first = Template::spawn()?;
    first.send_arg("a1")?.send_fd(file("f1")?)?;
    let mut second = first.fork()?.send_arg("a2")?.send_fd(file("f2")?)?;
    let mut third = second.fork()?.send_arg("a3")?.send_fd(file("f3")?)?;
    // What an elder gets now is no business of those forked before.
    first.send_arg("late")?.send_fd(file("late")?)?;
    let second = second.send_arg("later")?;
    let fourth = third.fork()?.run("tell")?;
    let third = third.run("tell")?;
    let cousin = first.fork()?.run("tell")?;
    let own = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
    assert_eq!(told_texts(&fourth)?, (own(&["a1", "a2", "a3"]), own(&["f1", "f2", "f3"])));
    assert_eq!(told_texts(&third)?, (own(&["a1", "a2", "a3"]), own(&["f1", "f2", "f3"])));
    assert_eq!(told_texts(&second.run("tell")?)?, (own(&["a1", "a2", "later"]), own(&["f1", "f2"])));
    assert_eq!(told_texts(&cousin)?, (own(&["a1", "late"]), own(&["f1", "late"])));
    Ok(())
}

fn template_of_templates() -> Outcome {
    let mut elder = Template::spawn()?;
    elder.send_arg("elder")?;
    let mut younger = elder.fork()?.into_template();
    younger.call("remember", ["younger"])?.sync()?;
    let mut youngest = younger.fork()?.into_template();
    let process = youngest.fork()?.run("tell")?;
    assert_eq!(told_texts(&process)?.0, ["elder", "younger"]);
    assert!(process.wait()?.success());
    drop(younger);
    assert!(youngest.fork()?.run("nothing")?.wait()?.success());
    Ok(())
}

fn parents() -> Outcome {
    let mut template = Template::spawn()?;
    let mut parent = template.fork()?;
    let child = parent.fork()?.run("facts")?;
    let facts = facts_of(&child)?;
    assert_eq!((facts.pid as i32, facts.parent as i32), (child.pid()?, parent.pid()?));
    assert!(child.wait()?.success());
    let grandchild = parent.fork()?.fork()?.send_arg("4")?.run("exit")?;
    assert_eq!(grandchild.wait()?.to_string(), "exit code 4");
    Ok(())
}

fn built_by_calls() -> Outcome {
    let mut template = Template::spawn()?;
    template.call("remember", ["built once"])?;
    for _ in 0..3 {
        assert_eq!(told_texts(&template.fork()?.run("tell")?)?.0, ["built once"]);
    }
    Ok(())
}

fn default_template() -> Outcome {
    let first = Process::new()?.run("facts")?;
    let template = facts_of(&first)?.parent;
    let second = facts_of(&Process::new()?.run("facts")?)?;
    assert_eq!(second.parent, template);
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(template as i32), nix::sys::signal::Signal::SIGKILL)?;
    // Until the death is seen here, a process may be asked of the dead template; it is never born.
    let replaced = loop {
        let process = Process::new()?.run("facts");
        if let Ok(facts) = process.map_err(Into::into).and_then(|process| facts_of(&process)) {
            break facts;
        }
    };
    assert_ne!(replaced.parent, template);
    Ok(())
}

fn ten_workers() -> Outcome {
    let mut template = Template::spawn()?;
    let workers: Vec<Running> =
        (0..10).map(|id: i32| template.fork()?.send_arg(id.to_string())?.run("tell")).collect::<Result<_, _>>()?;
    for (id, worker) in workers.iter().enumerate() {
        assert_eq!(told_texts(worker)?.0, [id.to_string()]);
        assert!(worker.wait()?.success());
    }
    Ok(())
}

/// Queues forks faster than they can be carried out; the order is shown by what the template had when it forked.
fn ten_thousand(forks: u32) -> Outcome {
    let mut template = Template::spawn()?;
    let (ended, ends) = std::sync::mpsc::channel();
    let mut probes = Vec::new();
    for number in 0..forks {
        let ended = ended.clone();
        if number % 500 == 0 {
            template.send_arg(number.to_string())?;
            probes.push(template.fork()?.run("tell")?);
        }
        template.fork()?.run("nothing")?.on_exit(move |exit| drop(ended.send(exit)));
    }
    drop(ended);
    let mut count = 0;
    for exit in ends {
        assert!(exit?.success());
        count += 1;
    }
    assert_eq!(count, forks);
    for (index, probe) in probes.iter().enumerate() {
        let expected: Vec<String> = (0..=index).map(|number| (number * 500).to_string()).collect();
        assert_eq!(told_texts(probe)?.0, expected);
    }
    Ok(())
}

/// A queue holds no descriptors, only what is under way and alive does: however many live at a time, the others wait.
fn ten_thousand_with(descriptors: u64) -> Outcome {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, descriptors, hard)?;
    ten_thousand(10_000)
}

fn moved_between_threads() -> Outcome {
    let mut template = Template::spawn()?;
    let mut processes = Vec::new();
    for turn in 0..20u32 {
        let moved = thread::spawn(move || {
            let mut forked = Vec::new();
            template.send_arg(turn.to_string())?;
            for _ in 0..20 {
                forked.push(template.fork()?.run("tell")?);
            }
            Ok::<_, hatchery::proc::Error>((template, forked))
        });
        let (back, forked) = moved.join().map_err(|_| "the thread panicked")??;
        template = back;
        processes.push(forked);
    }
    for (turn, forked) in processes.into_iter().enumerate() {
        let expected: Vec<String> = (0..=turn).map(|turn| turn.to_string()).collect();
        for process in forked {
            assert_eq!(told_texts(&process)?.0, expected);
        }
    }
    Ok(())
}

fn many_templates() -> Outcome {
    let threads: Vec<_> = (0..8)
        .map(|thread: u32| {
            thread::spawn(move || {
                let mut template = Template::spawn().map_err(|error| error.to_string())?;
                for turn in 0..20u32 {
                    let text = format!("{thread} {turn}");
                    let process = template.fork().and_then(|process| process.send_arg(text.clone())?.run("tell"));
                    let process = process.map_err(|error| error.to_string())?;
                    let told = told_texts(&process).map_err(|error| error.to_string())?;
                    assert_eq!(told.0, [text]);
                }
                Ok::<_, String>(())
            })
        })
        .collect();
    for thread in threads {
        thread.join().map_err(|_| "a thread panicked")??;
    }
    Ok(())
}
