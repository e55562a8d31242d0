//! Handshakes that a client has begun and not completed: asked for by netlink or, where a sandbox has none, read from the
//! kernel's lists (proc_pid_net(5), `tcp` and `tcp6`), which are as long as there are connections on the machine.
//!
//! A client whose connect(2) has returned may still be half open here: its last ACK is on the way, was lost, or found the
//! queue full. It counts on its connection all the same.

use std::fs::File;
use std::io::{self, BufRead, BufReader};

use crate::sys::sock_diag;

/// TCP_SYN_RECV of the kernel's `tcp_states.h`, in its way of writing.
const SYN_RECV: &str = "03";

/// Whether a handshake with one of these local ports is under way. What cannot be read is taken for none: a system that
/// hides it leaves nothing to wait for.
pub(super) fn are_there_any(ports: &[u16]) -> bool {
    let asked: io::Result<Vec<bool>> = ports.iter().map(|&port| sock_diag::has_half_open(port)).collect();
    match asked {
        Ok(found) => found.contains(&true),
        Err(_) => is_listed_in("/proc/self/net/tcp", ports) || is_listed_in("/proc/self/net/tcp6", ports),
    }
}

fn is_listed_in(path: &str, ports: &[u16]) -> bool {
    File::open(path).and_then(|file| is_listed(BufReader::new(file), ports)).unwrap_or(false)
}

fn is_listed(list: impl BufRead, ports: &[u16]) -> io::Result<bool> {
    // The first line names the columns.
    for line in list.lines().skip(1) {
        if half_open_port(&line?).is_some_and(|port| ports.contains(&port)) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The local port of a line, if it is about a handshake under way.
fn half_open_port(line: &str) -> Option<u16> {
    let mut columns = line.split_ascii_whitespace().skip(1);
    let (local, _remote, state) = (columns.next()?, columns.next()?, columns.next()?);
    let (_, port) = local.rsplit_once(':')?;
    (state == SYN_RECV).then(|| u16::from_str_radix(port, 16).ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIST: &str = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid\n\
         \x20  0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0\n\
         \x20  1: 0100007F:1F90 0100007F:C350 03 00000000:00000000 01:00000064 00000000     0\n\
         \x20  2: 0100007F:0050 0100007F:C351 01 00000000:00000000 00:00000000 00000000     0\n\
         \x20  3: 00000000000000000000000001000000:01BB 00000000000000000000000001000000:C352 03 0:0 0:0 0 0\n";

    #[test]
    fn half_open_connections_are_found_by_their_local_port() {
        for (ports, found) in [(&[8080][..], true), (&[443], true), (&[80], false), (&[1, 8080], true), (&[], false)] {
            assert_eq!(is_listed(LIST.as_bytes(), ports).expect("a list"), found, "{ports:?}");
        }
    }

    #[test]
    fn nonsense_is_nobody() {
        for line in ["", "0:", "0: : : 03", "0: 7F:G 7F:1 03", "0: 7F 7F 03", "0: 7F:FFFFF 7F:1 03"] {
            assert_eq!(half_open_port(line), None, "{line}");
        }
    }
}
