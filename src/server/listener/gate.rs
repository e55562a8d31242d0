//! The last stop of a listener: the gate is shut, whoever has come through is served, and then nobody listens.
//!
//! | listener | its gate | who is still waiting | after that |
//! | --- | --- | --- | --- |
//! | TCP | [`sys::gate`](crate::sys::gate): new clients are refused, handshakes under way complete | its queue, and its half-open handshakes | |
//! | Unix path | the path is removed: new clients find nobody | its queue | shutdown(2), as below |
//! | Unix abstract | there is none: the name lasts as long as the socket | cannot be told, new ones keep coming | shutdown(2): new clients are refused, queued ones can still be accepted |
//! | `fd:N`, or lent by the master before this one | none: who gave the descriptor holds it too, and with it the queue | | |
//!
//! All of this is done to the socket, not to one process's descriptor, and so holds for every process that shares it. None
//! of it can be taken back: a listener that a successor takes over must not come here.

use std::io;
use std::os::fd::AsFd;

use super::Listener;
use crate::server::address::Address;
use crate::server::half_open;
use crate::sys::{gate, stream};

/// Who has come through before the gates were shut, and is not accepted yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::server) struct Waiting {
    /// Somebody is in a queue.
    pub(in crate::server) queued: bool,
    /// Somebody's handshake is under way.
    pub(in crate::server) half_open: bool,
}

impl Waiting {
    /// Who waits at these listeners, as far as their gates are shut.
    pub(in crate::server) fn at(listeners: &[Listener]) -> Waiting {
        let gated = || listeners.iter().filter(|listener| listener.is_gated());
        let ports: Vec<u16> = gated().filter_map(Listener::port).collect();
        // The handshakes first: one that completes in between is seen in the queue.
        let half_open = half_open::are_there_any(&ports);
        Waiting { queued: gated().any(Listener::has_queue), half_open }
    }
}

impl Listener {
    /// Shuts the gate, where there is one.
    ///
    /// # Errors
    /// Those of the calls in the table above; new clients then keep coming until the listener is closed.
    pub(in crate::server) fn shut_gate(&self) -> io::Result<()> {
        match self.address {
            _ if !self.is_ours() => Ok(()),
            Address::Tcp(_) => Ok(gate::shut(self.as_fd())?),
            _ => self.remove_path(),
        }
    }

    /// For a Unix socket, refuses whoever comes from now on; those who are queued can still be accepted.
    ///
    /// # Errors
    /// Those of shutdown(2).
    pub(in crate::server) fn turn_away(&self) -> io::Result<()> {
        match self.address {
            Address::Unix(_) | Address::Abstract(_) if self.is_ours() => Ok(gate::turn_away(self.as_fd())?),
            _ => Ok(()),
        }
    }

    /// Whether nobody comes to the queue but those who are on the way already.
    fn is_gated(&self) -> bool {
        self.is_ours() && (self.file.is_some() || gate::is_shut(self.as_fd()))
    }

    /// Whether nobody else listens on it: neither the master before this one nor who gave the descriptor.
    fn is_ours(&self) -> bool {
        !self.is_lent && !matches!(self.configured, Address::Inherited(_))
    }

    fn port(&self) -> Option<u16> {
        match self.address {
            Address::Tcp(at) => Some(at.port()),
            _ => None,
        }
    }

    /// A listening socket is readable while somebody is in its queue (accept(2)).
    fn has_queue(&self) -> bool {
        stream::is_readable(self.as_fd())
    }
}
