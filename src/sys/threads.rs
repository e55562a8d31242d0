//! How many threads this process has, and which.
//!
//! A process with a second thread must not fork: the child would have a copy of every lock that the other
//! thread holds and nobody to release it (fork(2), "NOTES"; POSIX allows only async-signal-safe calls there).

use std::fs;
use std::io;
use std::os::linux::fs::MetadataExt;

/// The directory whose entries are this process's threads (proc(5), `/proc/pid/task`).
const TASKS: &str = "/proc/self/task";

/// The number of threads of this process.
///
/// One `stat(2)`: the kernel counts the threads as links of the directory, beside the usual two.
pub(crate) fn count() -> io::Result<u64> {
    Ok(fs::metadata(TASKS)?.st_nlink().saturating_sub(2))
}

/// The names of all threads but the calling process's first one, for an error message.
pub(crate) fn names_of_others() -> Vec<String> {
    let main = std::process::id().to_string();
    let Ok(tasks) = fs::read_dir(TASKS) else {
        return Vec::new();
    };
    tasks
        .flatten()
        .filter(|task| task.file_name() != main.as_str())
        .map(|task| {
            fs::read_to_string(task.path().join("comm"))
                .map_or_else(|_| "(ended)".to_owned(), |name| name.trim_end().to_owned())
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_further_thread_is_counted_and_named() {
        let before = count().expect("/proc is mounted");
        let (stop, stopped) = std::sync::mpsc::channel::<()>();
        let thread = std::thread::Builder::new()
            .name("extra-hand".into())
            .spawn(move || stopped.recv())
            .expect("a thread can be started");
        // Other tests start and end threads at the same time: the name is what is certain.
        assert!(before >= 1);
        while !names_of_others().contains(&"extra-hand".to_owned()) {
            std::thread::yield_now();
        }
        drop(stop);
        let _ = thread.join();
    }
}
