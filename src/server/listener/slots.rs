//! One queue for each slot: sockets of one TCP address that form a group (SO_REUSEPORT, socket(7)), among which the kernel
//! spreads the connections.
//!
//! A socket that closes takes the clients in its queue with it. So the master holds all sockets of a group as long as it
//! listens, whatever becomes of the slots' workers.
//!
//! The first socket is bound alone, and joins the group that it begins only then: so an address at which somebody else
//! listens is refused as ever, even if he would share it.

use std::os::fd::AsFd;

use socket2::SockRef;

use super::{Listener, listen_at, tcp_socket};
use crate::server::address::Address;
use crate::server::{BindError, Slot};

impl Listener {
    /// The slot whose own queue it has; none: all workers share it.
    pub(in crate::server) fn slot(&self) -> Option<Slot> {
        self.slot
    }

    /// Whether it is an address's first listener, and not that of a further slot.
    pub(in crate::server) fn is_first(&self) -> bool {
        matches!(self.slot, None | Some(Slot(0)))
    }

    /// Makes it the listener of slot 0, where that is possible: at a TCP address that this server has bound. What is lent is
    /// left as it is.
    ///
    /// # Errors
    /// Those of setsockopt(2).
    pub(in crate::server) fn begin_group(&mut self) -> Result<(), BindError> {
        if self.slot.is_none() && !self.is_lent && matches!(self.configured, Address::Tcp(_) | Address::Host(..)) {
            let call = BindError::call(&self.address, "setsockopt SO_REUSEPORT");
            SockRef::from(&self.socket.as_fd()).set_reuse_port(true).map_err(call)?;
            self.slot = Some(Slot(0));
        }
        Ok(())
    }

    /// A listener for a further slot, at the address of this one, which is the first.
    fn for_slot(&self, slot: Slot) -> Result<Option<Listener>, BindError> {
        let Address::Tcp(at) = self.address else {
            return Ok(None);
        };
        let socket = tcp_socket(at)?;
        socket.set_reuse_port(true).map_err(BindError::call(&self.address, "setsockopt SO_REUSEPORT"))?;
        let address = listen_at(&socket, at)?;
        let configured = self.configured.clone();
        Ok(Some(Listener { socket, configured, address, file: None, slot: Some(slot), is_lent: false }))
    }
}

/// The listeners that a worker on the queues of `slot` accepts from and no other does, in the order of their addresses.
pub(in crate::server) fn of_slot(listeners: &[Listener], slot: Slot) -> impl Iterator<Item = &Listener> {
    let first = listeners.iter().filter(|listener| listener.slot == Some(Slot(0)));
    first.filter_map(move |first| {
        listeners.iter().find(|listener| listener.slot == Some(slot) && listener.address == first.address)
    })
}

/// Whether each group has a listener for this slot.
pub(in crate::server) fn has_slot(listeners: &[Listener], slot: Slot) -> bool {
    of_slot(listeners, slot).count() == of_slot(listeners, Slot(0)).count()
}

/// Makes the listeners that this slot lacks: all or none.
///
/// # Errors
/// Those of socket(2), setsockopt(2), bind(2) and listen(2), for want of descriptors or memory mostly.
pub(in crate::server) fn open_slot(listeners: &mut Vec<Listener>, slot: Slot) -> Result<(), BindError> {
    let mut opened = Vec::new();
    for first in of_slot(listeners, Slot(0)) {
        if !of_slot(listeners, slot).any(|listener| listener.address == first.address) {
            opened.extend(first.for_slot(slot)?);
        }
    }
    listeners.append(&mut opened);
    Ok(())
}

/// Adds what was inherited for the further slots of the addresses that are `bound`.
pub(super) fn take_further(bound: &mut Vec<Listener>, inherited: &mut Vec<Listener>) {
    let is_further = |listener: &mut Listener| {
        !listener.is_first() && bound.iter().any(|first| first.slot.is_some() && first.address == listener.address)
    };
    let mut further: Vec<_> = inherited.extract_if(.., is_further).collect();
    bound.append(&mut further);
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::net::TcpStream;

    use super::*;

    fn bind(addresses: &[&str]) -> Vec<Listener> {
        let addresses: Vec<Address> = addresses.iter().map(|text| text.parse().expect(text)).collect();
        let mut listeners = Listener::bind_all(&addresses).expect("they are free");
        listeners.iter_mut().for_each(|listener| listener.begin_group().expect("a socket"));
        listeners
    }

    #[test]
    fn each_slot_has_a_socket_at_the_same_port_and_every_queue_gets_clients() {
        for text in ["127.0.0.1:0", "[::1]:0", "tcp:localhost:0"] {
            let mut listeners = bind(&[text]);
            open_slot(&mut listeners, Slot(1)).expect(text);
            open_slot(&mut listeners, Slot(5)).expect(text);
            open_slot(&mut listeners, Slot(5)).expect("it is there already");
            let addresses: BTreeSet<String> = listeners.iter().map(|listener| listener.address().to_string()).collect();
            assert_eq!((listeners.len(), addresses.len()), (3, 1), "{addresses:?}");
            let mut filled = BTreeSet::new();
            // Spread by a hash of the client's port: not to meet one of three in 200 tries is out of the question.
            let clients: Vec<_> =
                (0..200).map(|_| TcpStream::connect(addresses.first().expect("one")).expect("it listens")).collect();
            for _ in &clients {
                let queue = listeners.iter().find(|listener| listener.socket.accept().is_ok()).expect("a queue");
                filled.insert(queue.slot());
            }
            assert_eq!(filled, [0, 1, 5].map(|slot| Some(Slot(slot))).into());
        }
    }

    #[test]
    fn unix_and_inherited_sockets_have_one_queue_for_all() {
        let name = format!("unix:@hatchery-slots-{}", std::process::id());
        let mut listeners = bind(&["127.0.0.1:0", &name, "[::1]:0"]);
        for slot in [2, 1] {
            open_slot(&mut listeners, Slot(slot)).expect("ports are shared");
        }
        assert!(has_slot(&listeners, Slot(2)) && !has_slot(&listeners, Slot(3)));
        let of_two: Vec<_> = of_slot(&listeners, Slot(2)).map(|listener| listener.address().clone()).collect();
        assert_eq!(of_two, [listeners[0].address().clone(), listeners[2].address().clone()]);
        assert_eq!(listeners[1].slot(), None);
    }

    #[test]
    fn a_port_of_somebody_else_is_refused_even_if_he_would_share_it() {
        let held = bind(&["127.0.0.1:0"]);
        let again = Listener::bind(held[0].address());
        assert!(matches!(again, Err(BindError::InUse { .. })), "{again:?}");
    }

    #[test]
    fn an_inherited_group_is_taken_whole() {
        let mut old = bind(&["127.0.0.1:0", "[::1]:0"]);
        open_slot(&mut old, Slot(1)).expect("ports are shared");
        let passed = old.iter().map(|listener| listener.pass().expect("a descriptor"));
        let mut inherited: Vec<_> =
            passed.map(|(passed, fd)| Listener::inherit(&passed, fd).expect("a listener")).collect();
        let wanted = ["[::1]:0".parse().expect("an address")];
        let new = Listener::bind_all_but(&wanted, &mut inherited).expect("nothing to bind");
        let slots: Vec<_> = new.iter().map(Listener::slot).collect();
        assert_eq!(slots, [Some(Slot(0)), Some(Slot(1))]);
        assert!(new.iter().all(|listener| listener.address() == old[1].address()));
        assert_eq!(inherited.len(), 2, "what is not wanted stays");
    }
}
