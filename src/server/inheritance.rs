//! What a master hands over to the next one at an upgrade, and what the two say to each other.
//!
//! The two may be different versions of a program: whoever changes a message here changes the number of the protocol
//! in `sys/spawn.rs`, so that a master which is not understood is left alone.

use std::ffi::OsString;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::listener::Listener;
use super::service::BoxError;
use crate::proc::{self, Channel, Received};
use crate::sys::file_identity::FileIdentity;

/// From a master to the next one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum ToNext {
    /// Some listeners, with a descriptor for each.
    Listeners(Vec<PassedListener>),
    /// The pid file at this path (its bytes), with the descriptor that holds its lock.
    PidFile(Vec<u8>),
    /// The control socket, with its descriptor.
    Control(PassedListener),
    /// That is all there is to inherit.
    All,
    /// From now on it is yours: I drain my workers and leave.
    HandOver,
}

/// From the next master to the one before it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum FromNext {
    /// Every slot has a ready worker.
    Serving,
    /// I shall not serve, for this reason, and end.
    Failed { words: String },
}

/// A master's end of the conversation with the next one.
pub(crate) type WithNext = Channel<ToNext, FromNext>;

/// The next master's end of it.
pub(crate) type WithOld = Channel<FromNext, ToNext>;

/// A listener on its way to the next master.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PassedListener {
    /// The address as it was configured, with a port 0 or a host's name.
    pub(crate) configured: String,
    /// The address at which it is reached.
    pub(crate) address: String,
    /// The file that stands for a Unix socket which the server has bound.
    pub(crate) file: Option<FileIdentity>,
    /// The slot whose own queue it has.
    pub(crate) slot: Option<u32>,
}

/// What the master before this one has left to it.
#[derive(Debug, Default)]
pub(crate) struct Inheritance {
    pub(crate) listeners: Vec<Listener>,
    pub(crate) pid_file: Option<(PathBuf, File)>,
    pub(crate) control: Option<Listener>,
}

impl Inheritance {
    /// What there is to inherit, and the conversation with whom it comes from, if this process was started for that; it
    /// can be received once.
    ///
    /// It was sent before this process was started, so there is nothing to wait for. If it cannot be taken, who sent it is
    /// told why.
    pub(crate) fn receive() -> Result<Option<(WithOld, Inheritance)>, BoxError> {
        let Some(socket) = proc::take_inheritance() else {
            return Ok(None);
        };
        let conversation = WithOld::new(socket);
        let inheritance = Inheritance::take_or_decline(&conversation)?;
        Ok(Some((conversation, inheritance)))
    }

    fn take_or_decline(conversation: &WithOld) -> Result<Inheritance, BoxError> {
        Inheritance::take_from(conversation).inspect_err(|error| {
            // It sees our end in any case.
            let _ = conversation.try_send(&FromNext::Failed { words: error.to_string() }, &[]);
        })
    }

    fn take_from(conversation: &WithOld) -> Result<Inheritance, BoxError> {
        let mut inheritance = Inheritance::default();
        loop {
            match conversation.try_recv()? {
                Received::Message { lost_descriptors: true, .. } => {
                    return Err("no descriptor is left: raise the limit of open files (`ulimit -n`)".into());
                }
                Received::Message { message: ToNext::Listeners(passed), fds, .. } => {
                    for (passed, fd) in passed.iter().zip(fds) {
                        inheritance.listeners.push(Listener::inherit(passed, fd)?);
                    }
                }
                Received::Message { message: ToNext::PidFile(path), fds, .. } => {
                    let file = fds.into_iter().next().map(File::from);
                    inheritance.pid_file = file.map(|file| (PathBuf::from(OsString::from_vec(path)), file));
                }
                Received::Message { message: ToNext::Control(passed), fds, .. } => {
                    let fd = fds.into_iter().next();
                    inheritance.control = fd.map(|fd| Listener::inherit(&passed, fd)).transpose()?;
                }
                Received::Message { message: ToNext::All, .. } => return Ok(inheritance),
                Received::Message { message: ToNext::HandOver, .. } | Received::Empty | Received::Eof => {
                    return Err("the inheritance is not whole".into());
                }
            }
        }
    }
}

/// Puts everything there is to inherit into the conversation, before its other end is anybody's.
///
/// # Errors
/// No descriptor is left, or the inheritance is too much for the socket's buffer.
pub(crate) fn pass_on(
    conversation: &WithNext,
    listeners: &[Listener],
    pid_file: Option<(&Path, OwnedFd)>,
    control: Option<&Listener>,
) -> std::io::Result<()> {
    let send = |message: &ToNext, fds: &[OwnedFd]| match conversation.try_send(message, fds)? {
        true => Ok(()),
        false => Err(std::io::Error::other("there is too much for the socket's buffer")),
    };
    // So many descriptors fit one message, and leave room for the memory file of a large one.
    for some in listeners.chunks(crate::sys::seqpacket::MAX_DESCRIPTORS - 1) {
        let (passed, fds): (Vec<_>, Vec<_>) = some.iter().map(Listener::pass).collect::<Result<_, _>>()?;
        send(&ToNext::Listeners(passed), &fds)?;
    }
    if let Some((path, lock)) = pid_file {
        send(&ToNext::PidFile(path.as_os_str().as_bytes().to_vec()), &[lock])?;
    }
    if let Some(control) = control {
        let (passed, fd) = control.pass()?;
        send(&ToNext::Control(passed), &[fd])?;
    }
    send(&ToNext::All, &[])
}

/// Tells the master before this one, if there is one and no server has been run, why this process will not serve.
#[cfg_attr(not(feature = "cli"), expect(dead_code, reason = "said by the command line alone"))]
pub(crate) fn decline(words: &str) {
    if let Some(socket) = proc::take_inheritance() {
        // It sees our end in any case.
        let _ = WithOld::new(socket).try_send(&FromNext::Failed { words: words.to_owned() }, &[]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_leaves_what_cannot_be_taken_is_told_why() {
        let (old, next): (WithNext, WithOld) = Channel::pair().unwrap();
        old.try_send(&ToNext::Listeners(Vec::new()), &[]).unwrap();
        assert_eq!(Inheritance::take_or_decline(&next).unwrap_err().to_string(), "the inheritance is not whole");
        let Ok(Received::Message { message: FromNext::Failed { words }, .. }) = old.try_recv() else {
            panic!("it was to be told");
        };
        assert_eq!(words, "the inheritance is not whole");
    }
}
