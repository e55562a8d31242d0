//! What can go wrong with a call, and with a whole conversation.

use std::io;
use std::sync::Arc;

use super::contract::Contract;
use super::pool::Late;
use crate::proc::{self, Exit};

/// A call, or another operation of a [`Client`](super::Client), failed.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// As many calls are outstanding, or as many bytes wait to be sent, as the options allow. Submit again when a reply has
    /// come; [`call`](super::Client::call) waits by itself. An [event](super::Events::send) of a server's worker may be sent
    /// again when the master has listened, and after the request in hand.
    #[error("there is no room: as many calls are outstanding, or as many bytes wait to be sent, as the options allow")]
    Full,
    /// The message is longer than the [`Options`](super::Options) allow.
    #[error("cannot send a message of {length} bytes: the limit is {limit}")]
    TooLong {
        /// Its length in bytes.
        length: u64,
        /// The limit in bytes.
        limit: u64,
    },
    /// The codec could not write the message, or it has more descriptors than one message may carry.
    #[error("cannot encode a message: {words}")]
    Encode {
        /// What the codec says.
        words: String,
    },
    /// A system call failed. EMFILE: a message over 64 KiB needs a descriptor for its memory file.
    #[error("cannot {operation}")]
    System {
        /// What was tried.
        operation: &'static str,
        /// What the kernel says.
        #[source]
        source: Arc<io::Error>,
    },
    /// The deadline has passed. The process was told, and a reply that still comes goes nowhere.
    #[error("the call was not answered in time")]
    TimedOut {
        /// Whether the handler may have run: not, if the call was never sent.
        may_have_run: bool,
    },
    /// The handler returned an error. The process serves on.
    #[error("{words}")]
    Handler {
        /// The handler's error and its sources.
        words: String,
    },
    /// The handler dropped its [`Responder`](super::Responder) without an answer. The process serves on.
    #[error("the call's responder was dropped without an answer")]
    Unanswered,
    /// The handler has run, but its reply could not be sent: it is too long, or cannot be encoded. The process serves on.
    #[error("the reply could not be sent: {words}")]
    Reply {
        /// Why.
        words: String,
    },
    /// The descriptors or the memory file of the call or the reply found no room in the receiver's descriptor
    /// table (EMFILE). Raise RLIMIT_NOFILE there, or send fewer.
    #[error("descriptors of the call were lost on their way: the receiver's descriptor table is full (EMFILE)")]
    DescriptorsLost {
        /// Whether the handler may have run: not, if those of the call were lost.
        may_have_run: bool,
    },
    /// No process of a [`Pool`](super::Pool) becomes ready: [so many](super::PoolOptions::start_attempts) starts have failed in a
    /// row. The pool tries again after a growing delay.
    #[error("no worker of the pool becomes ready: {why}")]
    NoWorker {
        /// Whether the handler may have run: not, unless the call is repeatable and its first worker has died.
        may_have_run: bool,
        /// Why the last start failed.
        #[source]
        why: Lost,
    },
    /// The [`Pool`](super::Pool) was told to finish, and takes no further call.
    #[error("cannot call: the pool has been told to finish")]
    Finished,
    /// A callback must not wait: it may be what has to deliver what it would wait for. Submit instead.
    #[error("cannot wait for a reply inside a callback")]
    InCallback,
    /// The conversation has ended before the call was answered.
    #[error("the call was lost: {why}")]
    Lost {
        /// Whether the handler may have run: not, if the call was never sent.
        may_have_run: bool,
        /// How the conversation ended.
        #[source]
        why: Lost,
    },
}

/// How a conversation ended, other than by [`finish`](super::Client::finish). There is no further one with this process.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum Lost {
    /// The process has ended: it crashed, was killed, left by itself; its `init` or its handler failed or panicked.
    #[error("the process has ended ({0})")]
    Died(Box<Exit>),
    /// The process was never there.
    #[error("the process could not be made")]
    NeverBorn(#[source] Box<proc::Error>),
    /// The process said what nobody may say. It was killed: what runs in it is not this library, or was overwritten.
    #[error("the process broke the protocol: {words}")]
    Protocol {
        /// What was wrong.
        words: String,
    },
    /// A message could not be decoded, here or in the process, which has ended.
    #[error("a message could not be decoded: {words}")]
    Codec {
        /// What the codec says.
        words: String,
    },
    /// The process has closed this conversation, and lives on: a server's worker that had
    /// [offered](crate::server::WorkerCx::offer) it.
    #[error("the worker has closed the conversation that it had offered")]
    Left,
    /// It was killed because it, or a call in it, was late; only in a [`Pool`](super::Pool).
    #[error("the process was killed: {late}")]
    Killed {
        /// What it was late with.
        late: Late,
    },
    /// Master and process do not agree on the codec or the types of the messages: most likely one of them is of another
    /// version. Nothing was called. The words name what differs, on each side.
    #[error("master and process do not agree: here {}; there {}", ours.differences(theirs)[0], ours.differences(theirs)[1])]
    Disagreement {
        /// What is spoken here.
        ours: Box<Contract>,
        /// What the process speaks.
        theirs: Box<Contract>,
    },
}

impl Error {
    /// Whether the handler may have run, wholly or in part. If not, the call can be made again elsewhere without harm.
    pub fn may_have_run(&self) -> bool {
        match self {
            Error::Full | Error::TooLong { .. } | Error::Encode { .. } | Error::System { .. } | Error::InCallback => {
                false
            }
            Error::Finished => false,
            Error::Handler { .. } | Error::Unanswered | Error::Reply { .. } => true,
            Error::TimedOut { may_have_run }
            | Error::DescriptorsLost { may_have_run }
            | Error::NoWorker { may_have_run, .. }
            | Error::Lost { may_have_run, .. } => *may_have_run,
        }
    }

    pub(super) fn system(operation: &'static str, source: io::Error) -> Error {
        Error::System { operation, source: Arc::new(source) }
    }
}
