//! `load`: shared objects written in C bring entry points of their own.

use std::error::Error;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use hatchery::proc::{Failure, How, Template};
use libtest_mimic::Trial;
use tempfile::TempDir;

use crate::support::{Outcome, test};

pub fn tests() -> Vec<Trial> {
    vec![
        test("functions_of_a_shared_object_are_called_and_run", called_and_run),
        test("an_object_that_cannot_be_loaded_is_told_and_the_template_serves_on", not_loadable),
    ]
}

/// The table as the documentation gives it, with three functions.
const GOOD: &str = r#"
#include <stdint.h>
#include <stddef.h>
#include <stdio.h>
#include <unistd.h>
struct hatchery_bytes { const unsigned char *data; size_t length; };
struct hatchery_row {
    const char *name;
    int (*call)(const struct hatchery_bytes *args, size_t count, char *error, size_t room);
    int (*run)(int socket, const struct hatchery_bytes *args, size_t args_count, const int *fds, size_t fds_count);
};
struct hatchery_table { uint32_t layout; uint32_t count; const struct hatchery_row *rows; };
static int calls;
static int count(const struct hatchery_bytes *args, size_t n, char *error, size_t room) {
    calls += (int)n;
    return 0;
}
static int refuse(const struct hatchery_bytes *args, size_t n, char *error, size_t room) {
    if (n) snprintf(error, room, "refused: %.*s", (int)args[0].length, (const char *)args[0].data);
    return 5;
}
static int serve(int socket, const struct hatchery_bytes *args, size_t n, const int *fds, size_t fds_count) {
    const unsigned char empty_text[] = { 0, 0 };
    write(socket, empty_text, sizeof empty_text);
    return calls * 10 + (int)n + (int)fds_count;
}
static const struct hatchery_row rows[] = { {"c::count", count, 0}, {"c::refuse", refuse, 0}, {"c::serve", 0, serve} };
static const struct hatchery_table table = { LAYOUT, 3, rows };
const struct hatchery_table *hatchery_entry_points(void) { return &table; }
"#;

fn compile(directory: &TempDir, name: &str, source: &str) -> Result<PathBuf, Box<dyn Error>> {
    let (code, object) = (directory.path().join(format!("{name}.c")), directory.path().join(format!("{name}.so")));
    fs::write(&code, source)?;
    let status = Command::new("cc").args(["-shared", "-fPIC", "-w", "-o"]).args([&object, &code]).status()?;
    if status.success() { Ok(object) } else { Err(format!("cc: {status}").into()) }
}

fn called_and_run() -> Outcome {
    let directory = tempfile::tempdir()?;
    let object = compile(&directory, "good", &GOOD.replace("LAYOUT", "1"))?;
    let mut template = Template::spawn()?;
    template.load(&object)?.call("c::count", ["a", "b"])?.sync()?;
    // The object stays loaded whatever happens to its file.
    fs::remove_file(&object)?;
    let refused = template.call("c::refuse", ["why not"])?.sync().err().ok_or("it was not refused")?;
    assert_eq!(refused.to_string(), "c::refuse: refused: why not");
    let refused = template.call("c::refuse", ())?.sync().err().ok_or("it was not refused")?;
    assert_eq!(refused.to_string(), "c::refuse: it returned 5");
    let null = fs::File::open("/dev/null")?;
    let process = template.fork()?.call("c::count", ["c"])?.send_arg("x")?.send_fd(null)?.run("c::serve")?;
    assert_eq!(crate::facts::told::<String>(process.socket()?)?.0, "");
    assert_eq!(process.wait()?.how, How::Code(32));
    let wrong = template.fork()?.run("c::count")?.wait()?;
    assert!(matches!(wrong.failure, Some(Failure::UnknownEntryPoint { .. })), "{wrong}");
    // A function of the program itself is still there.
    assert!(template.fork()?.run("nothing")?.wait()?.success());
    Ok(())
}

fn not_loadable() -> Outcome {
    let directory = tempfile::tempdir()?;
    let mut template = Template::spawn()?;
    let cases = [
        (directory.path().join("missing.so"), "missing.so"),
        (compile(&directory, "bare", "int unrelated;")?, "hatchery_entry_points"),
        (compile(&directory, "later", &GOOD.replace("LAYOUT", "9"))?, "layout 9, this program reads 1"),
        (compile(&directory, "null", "void *hatchery_entry_points(void) { return 0; }")?, "is null"),
        (compile(&directory, "both", &GOOD.replace("LAYOUT", "1").replace("0, serve", "count, serve"))?, "exactly one"),
    ];
    for (path, words) in cases {
        let error = template.load(&path)?.sync().err().ok_or("it was loaded")?;
        assert!(matches!(error, hatchery::proc::Error::Inside(Failure::Load { .. })), "{error:?}");
        assert!(error.to_string().contains(words), "{error}");
        assert!(template.fork()?.run("nothing")?.wait()?.success());
    }
    Ok(())
}
