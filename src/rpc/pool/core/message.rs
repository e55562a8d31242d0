//! What the core hears, and what it wants done.

use std::fmt;
use std::time::Duration;

/// A call's number, in the order of calling.
pub(in crate::rpc::pool) type CallNumber = u64;

/// A worker's number, in the order of starting; none comes twice.
pub(in crate::rpc::pool) type WorkerNumber = u64;

/// What a caller has asked for besides the reply.
#[derive(Debug, Clone, Copy, Default)]
pub(in crate::rpc::pool) struct Terms {
    /// The length of its message.
    pub(in crate::rpc::pool) bytes: u64,
    /// From the calling on; then nobody waits any more.
    pub(in crate::rpc::pool) patience: Option<Duration>,
    /// From the handing over to a worker on; then that worker is killed.
    pub(in crate::rpc::pool) deadline: Option<Duration>,
    /// How often it may be begun again after it may have run.
    pub(in crate::rpc::pool) repeats: u32,
}

#[derive(Debug, Clone, Copy)]
pub(in crate::rpc::pool) enum Event {
    /// A call that [`Core::refusal`](super::Core::refusal) does not speak against.
    Called { call: CallNumber, terms: Terms },
    /// Its caller does not wait any more.
    GivenUp { call: CallNumber },
    /// Its caller has waited for as long as he had patience, and does not wait any more.
    Impatient { call: CallNumber },
    /// It has a reply, or a failure of its own.
    Answered { call: CallNumber, well: bool },
    /// The conversation with its worker had ended before it could be sent.
    Unsent { call: CallNumber },
    /// The conversation with its worker has ended before it was answered.
    Lost { call: CallNumber, may_have_run: bool },
    /// The worker's process has come from its source, and was told to run its `init`.
    Made { worker: WorkerNumber },
    /// The worker has run its `init`.
    Ready { worker: WorkerNumber },
    /// The conversation with the worker is over.
    Broken { worker: WorkerNumber },
    /// The process is gone, or was never born; what it had in hand was told before.
    Exited { worker: WorkerNumber },
    /// So many bytes of memory are resident.
    Measured { worker: WorkerNumber, resident: u64 },
    /// No further call comes.
    Closed,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::rpc::pool) enum Action {
    Start {
        worker: WorkerNumber,
    },
    Send {
        worker: WorkerNumber,
        call: CallNumber,
    },
    /// The worker is told that nobody waits for the call.
    Discourage {
        call: CallNumber,
    },
    /// The caller is told that there will be no reply.
    End {
        call: CallNumber,
        why: NoReply,
    },
    Kill {
        worker: WorkerNumber,
        late: Late,
    },
    /// It is told that no further call comes.
    Dismiss {
        worker: WorkerNumber,
    },
    Measure {
        workers: Vec<WorkerNumber>,
    },
    /// It is gone.
    Left {
        worker: WorkerNumber,
        cause: Cause,
    },
    /// The last worker of a closed pool is gone, and every call has ended.
    Finished,
}

/// Why a call has no reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::rpc::pool) enum NoReply {
    TimedOut {
        may_have_run: bool,
    },
    Lost {
        may_have_run: bool,
    },
    /// No worker becomes ready.
    NoWorker {
        may_have_run: bool,
    },
}

/// Why a call is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::rpc::pool) enum Refusal {
    Closed,
    NoWorker,
    Full,
}

/// What a worker that has to be killed was late with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Late {
    /// A call in hand met its deadline.
    Call,
    /// It had not become ready in time.
    Ready,
    /// It had not left in time after it was dismissed.
    Leaving,
}

impl fmt::Display for Late {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Late::Call => "a call in hand had met its deadline",
            Late::Ready => "it had not become ready in time",
            Late::Leaving => "it had not left in time",
        })
    }
}

/// Why a worker of a [`Pool`](crate::rpc::Pool) has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Cause {
    /// Nobody had asked it to: it crashed, was killed by somebody else, left by itself, broke the protocol, or its `init` failed.
    Unasked,
    /// It was not needed any more.
    Idle,
    /// It has carried out as many calls as a worker may.
    Calls,
    /// It has served for as long as a worker may.
    Age,
    /// It held more memory than a worker may.
    Memory,
    /// It was killed because it was late.
    Late(Late),
    /// The pool has finished.
    Finished,
}
