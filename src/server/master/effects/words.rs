//! What the process layer tells, in the supervisor's words.

use crate::proc::{self, Exit, Failure, How};
use crate::server::supervisor::{self, StartFailure};

pub(super) fn as_told(exit: &Exit) -> supervisor::Exit {
    match exit.how {
        How::Code(0) => supervisor::Exit::Clean,
        How::Code(code) => supervisor::Exit::Code(code),
        How::Signal { signal, .. } => supervisor::Exit::Signal(signal),
        How::Unobserved => supervisor::Exit::Unknown,
    }
}

/// Whether the process is gone, which its end tells better.
pub(super) fn is_gone(error: &proc::Error) -> bool {
    matches!(error, proc::Error::Gone { .. })
}

/// Why no process came to be: for want of something that every fork needs, or because of the template.
pub(super) fn why_no_process(error: &proc::Error) -> StartFailure {
    use nix::libc::{EAGAIN, EMFILE, ENFILE, ENOBUFS, ENOMEM};
    let errno = match error {
        proc::Error::DescriptorsExhausted { .. } | proc::Error::Inside(Failure::DescriptorsLost) => Some(EMFILE),
        proc::Error::Inside(Failure::ForkRefused { errno }) => Some(*errno),
        proc::Error::System { source, .. } => source.raw_os_error(),
        _ => None,
    };
    let words = format!("cannot fork a worker: {}", words_of(error));
    match errno {
        Some(EAGAIN | EMFILE | ENFILE | ENOBUFS | ENOMEM) => StartFailure::Resource { words },
        _ => StartFailure::NoProcess { words },
    }
}

/// An error's own words; those of a service without the name of the entry point around them.
pub(super) fn words_of(error: &proc::Error) -> String {
    match error {
        proc::Error::Inside(failure) => words_of_failure(failure),
        error => proc::words_of(error),
    }
}

pub(super) fn words_of_failure(failure: &Failure) -> String {
    match failure {
        Failure::Returned { words, .. } => words.clone(),
        Failure::Panicked { words, .. } => format!("panicked: {words}"),
        failure => failure.to_string(),
    }
}
