//! What can go wrong inside a process, as it tells its master.

use serde::{Deserialize, Serialize};

/// An error that happened inside a process, in that process's own words.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[non_exhaustive]
pub enum Failure {
    /// No entry point of that name and kind is registered. Register it in the [`Registry`](super::Registry)
    /// that `main` gives to [`init`](crate::init), or [`load`](super::Process::load) the object that has it.
    #[error("there is no entry point {name:?} to {verb}; there are: {}", known.join(", "))]
    UnknownEntryPoint {
        /// The name that was asked for.
        name: String,
        /// `call` or `run`.
        verb: String,
        /// The names that would have been right.
        known: Vec<String>,
    },
    /// The entry point returned an error.
    #[error("{name}: {words}")]
    Returned {
        /// The entry point.
        name: String,
        /// The error and its sources.
        words: String,
    },
    /// The entry point panicked.
    #[error("{name} panicked: {words}")]
    Panicked {
        /// The entry point.
        name: String,
        /// The panic's message and place.
        words: String,
    },
    /// The shared object could not be loaded.
    #[error("cannot load {path}: {words}")]
    Load {
        /// The shared object.
        path: String,
        /// What the dynamic loader says.
        words: String,
    },
    /// The program could not be executed.
    #[error("cannot execute {program}: {words}")]
    Exec {
        /// The program.
        program: String,
        /// What the kernel says.
        words: String,
    },
    /// The process could not fork: a limit on processes (EAGAIN: RLIMIT_NPROC, pids.max), memory
    /// (ENOMEM) or descriptors (EMFILE). It serves on; ask again when there is room.
    #[error("cannot fork: {}", std::io::Error::from_raw_os_error(*errno))]
    ForkRefused {
        /// The kernel's error number.
        errno: i32,
    },
    /// The process has more than one thread, so it must not fork: something that was loaded or called in
    /// it has started threads. Start them after the fork.
    #[error("cannot fork: the process has more than one thread ({})", names.join(", "))]
    Threads {
        /// The names of the threads beside the main one.
        names: Vec<String>,
    },
    /// The process's descriptor table was full when descriptors arrived. Raise RLIMIT_NOFILE, or send fewer.
    #[error("descriptors were lost on their way into the process: its descriptor table is full (EMFILE)")]
    DescriptorsLost,
    /// The process could not read what it was sent, or broke a rule of the conversation.
    #[error("the conversation with the process broke: {words}")]
    Protocol {
        /// What was wrong.
        words: String,
    },
}

/// The longest words that are passed on, in bytes: they fit one message without a memory file.
const LONGEST: usize = 8 << 10;

/// Names in a list are told so far, in bytes.
const NAME: usize = 256;

impl Failure {
    /// The failure with words that a process can tell even if it has no descriptor left.
    pub(crate) fn shortened(mut self) -> Failure {
        let texts: &mut [&mut String] = match &mut self {
            Failure::Returned { name, words } | Failure::Panicked { name, words } => &mut [name, words],
            Failure::Load { path, words } => &mut [path, words],
            Failure::Exec { program, words } => &mut [program, words],
            Failure::Protocol { words } => &mut [words],
            Failure::UnknownEntryPoint { name, known, .. } => {
                // So many names are told that a short list is whole and a long one fits.
                known.truncate(LONGEST / NAME);
                known.iter_mut().for_each(|name| name.truncate(name.floor_char_boundary(NAME)));
                &mut [name]
            }
            Failure::Threads { names } => {
                // The kernel's names of threads are short (15 bytes).
                names.truncate(LONGEST / NAME);
                &mut []
            }
            Failure::ForkRefused { .. } | Failure::DescriptorsLost => &mut [],
        };
        for text in texts {
            text.truncate(text.floor_char_boundary(LONGEST));
        }
        self
    }
}

/// An error and its sources in one line.
pub(crate) fn words_of(error: &(dyn std::error::Error + 'static)) -> String {
    let mut words = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_words = cause.to_string();
        // Many errors repeat their source in their own text.
        if !words.contains(&cause_words) {
            words.push_str(": ");
            words.push_str(&cause_words);
        }
        source = cause.source();
    }
    words
}
