//! A peer's address as words of the scoreboard.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::PEER_WORDS;
use crate::server::conn::Peer;

const NOBODY: u64 = 0;
const V4: u64 = 1;
const V6: u64 = 2;
const UNIX: u64 = 3;
const GONE: u64 = 4;

/// In the first word the port stands above what kind of address it is.
const PORT: u32 = 8;

pub(super) fn to_words(peer: Peer) -> [u64; PEER_WORDS] {
    match peer {
        Peer::Unix => [UNIX, 0, 0],
        Peer::Gone => [GONE, 0, 0],
        Peer::Inet(address) => {
            let port = u64::from(address.port()) << PORT;
            match address.ip() {
                IpAddr::V4(ip) => [V4 | port, ip.to_bits().into(), 0],
                IpAddr::V6(ip) => [V6 | port, (ip.to_bits() >> 64) as u64, ip.to_bits() as u64],
            }
        }
    }
}

/// None where there was nobody yet, or words that mean nothing.
pub(super) fn from_words(words: [u64; PEER_WORDS]) -> Option<Peer> {
    let [first, high, low] = words;
    let port = (first >> PORT) as u16;
    let ip = match first & ((1 << PORT) - 1) {
        NOBODY => return None,
        UNIX => return Some(Peer::Unix),
        GONE => return Some(Peer::Gone),
        V4 => IpAddr::V4(Ipv4Addr::from_bits(high as u32)),
        V6 => IpAddr::V6(Ipv6Addr::from_bits(u128::from(high) << 64 | u128::from(low))),
        _ => return None,
    };
    Some(Peer::Inet(SocketAddr::new(ip, port)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_peer_comes_back_from_its_words() {
        let inet = |address: &str| Peer::Inet(address.parse().expect("an address"));
        for peer in [inet("127.0.0.1:8080"), inet("255.1.2.3:65535"), inet("[2001:db8::1:2]:1"), Peer::Unix, Peer::Gone]
        {
            assert_eq!(from_words(to_words(peer)), Some(peer));
        }
        assert_eq!(from_words([0; PEER_WORDS]), None);
        assert_eq!(from_words([u64::MAX; PEER_WORDS]), None);
    }
}
