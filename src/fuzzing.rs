//! What the fuzz targets under `tests/fuzz` call: one function for each thing that comes from outside.
//!
//! Each takes any bytes and panics when a promise is broken. What they check is private, so the checks stand beside the
//! code that they check; this module is the door to them, and open only with the feature `fuzzing`. The cases that
//! were found or that lead far into the code are kept in `tests/fuzz/corpus` and are a part of `cargo test`.
//!
//! | target | what comes from outside | what holds beside "no panic" |
//! | --- | --- | --- |
//! | [`http`] | a stream of requests | the same requests however it is cut; what is accepted means the same when written anew; a body ends where an independent reading of it ends |
//! | [`hello`] | the same, to the whole service | one answer for each request, in order, with the right status; the connection ends when it must |
//! | [`messages`] | messages between processes | what is read is written and read again as the same; nonsense is `InvalidData`, and the conversation goes on |
//! | [`control`] | a client of the control socket | the same questions and refusals however its words are cut, within the bounds |
//! | [`configuration`] | flags, addresses, durations | what `--check-config` shows is read as the same configuration; an error names flag and value |

use crate::{cli, proc, server};

/// A stream of HTTP requests, read without a connection. The first four bytes say how it is cut.
pub fn http(data: &[u8]) {
    server::services::fuzzing::http(data);
}

/// A stream of HTTP requests, sent to the service `hello`. The first four bytes say how it is cut, and whether the
/// worker drains.
pub fn hello(data: &[u8]) {
    server::services::fuzzing::hello(data);
}

/// A message between processes; the first byte says of which type.
pub fn messages(data: &[u8]) {
    let Some((kind, datagram)) = data.split_first() else {
        return;
    };
    match kind % 9 {
        0 => proc::fuzzing::commands(datagram),
        1 => proc::fuzzing::reports(datagram),
        2 => proc::fuzzing::obituary(datagram),
        kind => server::fuzzing::message_of(kind - 3, datagram),
    }
}

/// What a client says at the control socket. The first byte says how it is cut.
pub fn control(data: &[u8]) {
    crate::control::fuzzing::control(data);
}

/// The arguments of a command line, a zero byte between them. The first byte says of which command, and whether values
/// are given to the flags directly.
pub fn configuration(data: &[u8]) {
    cli::fuzzing::configuration(data);
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    /// Runs the target over each case that is kept for it; which one it was, the last line of output says.
    fn replay(name: &str, target: fn(&[u8])) {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus").join(name);
        let mut cases: Vec<_> = fs::read_dir(&folder)
            .unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
            .map(|entry| entry.expect("an entry").path())
            .collect();
        cases.sort();
        assert!(!cases.is_empty(), "no cases in {}", folder.display());
        for case in cases {
            println!("{}", case.display());
            target(&fs::read(&case).expect("readable"));
        }
    }

    #[test]
    fn every_kept_stream_of_requests_is_read_in_one_way() {
        replay("http", super::http);
    }

    #[test]
    fn every_kept_stream_of_requests_gets_its_answers() {
        replay("hello", super::hello);
    }

    #[test]
    fn every_kept_message_is_read_as_it_was_written_or_refused() {
        replay("messages", super::messages);
    }

    #[test]
    fn every_kept_client_of_the_control_socket_is_answered_or_refused_however_it_is_cut() {
        replay("control", super::control);
    }

    #[test]
    fn every_kept_command_line_is_understood_or_refused_by_name() {
        replay("configuration", super::configuration);
    }
}
