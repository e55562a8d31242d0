//! The control socket, as the master holds it: bound or inherited, answered at, handed over, and removed with the server.

use std::io;
use std::os::fd::AsFd;

use slog::Logger;

use super::desk::Desk;
use crate::server::address::Address;
use crate::server::control_point::{Attendant, ControlPoint};
use crate::server::listener::Listener;

/// The control socket and who answers there.
#[derive(Debug)]
pub(super) struct Control {
    point: ControlPoint,
    /// None once the next master has it.
    listener: Option<Listener>,
    /// None before the master before this one has handed over.
    attendant: Option<Box<dyn Attendant>>,
}

impl Control {
    pub(super) fn new(point: ControlPoint, listener: Listener) -> Control {
        Control { point, listener: Some(listener), attendant: None }
    }

    pub(super) fn address(&self) -> &Address {
        self.point.address().as_address()
    }

    pub(super) fn listener(&self) -> Option<&Listener> {
        self.listener.as_ref()
    }

    /// From now on questions are answered; until then they wait in the queue.
    pub(super) fn attend(&mut self, desk: Desk, log: Logger) -> io::Result<()> {
        if let Some(listener) = &self.listener {
            let socket = listener.as_fd().try_clone_to_owned()?;
            self.attendant = Some(self.point.attend(socket, desk, log)?);
        }
        Ok(())
    }

    /// It is this master's own now, with the file that stands for it.
    pub(super) fn own(&mut self) {
        if let Some(listener) = &mut self.listener {
            listener.own();
        }
    }

    /// The next master has it; those who have asked this one are still answered.
    pub(super) fn hand_over(&mut self) {
        if let Some(attendant) = &self.attendant {
            attendant.close_door();
        }
        self.listener = None;
    }

    /// The server ends: nobody is to find the socket any more.
    pub(super) fn close(self) -> io::Result<()> {
        self.listener.as_ref().map_or(Ok(()), Listener::remove_path)
    }
}
