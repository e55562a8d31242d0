//! What `ps` shows of this process: its name (`comm`) and its command line.

use std::ffi::CString;
use std::fs;
use std::ops::Range;
use std::sync::OnceLock;

/// The room that [`spawn`](super::spawn) leaves in a template's command line, in bytes.
pub(crate) const ROOM: usize = 96;

/// Sets the name, of which 15 bytes count (prctl(2), PR_SET_NAME), and, in a process that was spawned as a
/// template or forked from one, the command line (proc(5), `/proc/pid/cmdline`).
///
/// It is a convenience for people: nothing depends on it, so nothing is done about a failure.
pub(crate) fn set(name: &str, command_line: &str) {
    if let Ok(name) = CString::new(name) {
        let _ = nix::sys::prctl::set_name(&name);
    }
    static AREA: OnceLock<Option<Range<usize>>> = OnceLock::new();
    if let Some(area) = AREA.get_or_init(find_area) {
        overwrite(area, command_line.as_bytes());
    }
}

/// Where this process's argument strings lie: only if there is the room that a template's single one has.
fn find_area() -> Option<Range<usize>> {
    let command_line = fs::read("/proc/self/cmdline").ok()?;
    let one_with_room = command_line.len() > ROOM && command_line.iter().filter(|&&byte| byte == 0).count() == 1;
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    // The second field is the name, which may hold anything; the third follows its closing parenthesis.
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace().skip(ARG_START - 3);
    let start = fields.next()?.parse().ok()?;
    let end = fields.next()?.parse().ok()?;
    (one_with_room && start < end).then_some(start..end)
}

/// The number of the field `arg_start` in `/proc/self/stat`, counted from 1; `arg_end` follows (proc(5)).
const ARG_START: usize = 48;

fn overwrite(area: &Range<usize>, text: &[u8]) {
    // The last byte stays the string's end.
    let room = area.len() - 1;
    let length = text.len().min(room);
    let start = std::ptr::with_exposed_provenance_mut::<u8>(area.start);
    // SAFETY: the kernel says that the area is this process's own argument string, which is writable memory on
    // the stack; nobody else holds a reference into it: std copies arguments when it is asked for them.
    unsafe { std::ptr::copy_nonoverlapping(text.as_ptr(), start, length) };
    // SAFETY: as above, and `length` is at most the room.
    let rest = unsafe { start.add(length) };
    // SAFETY: as above; what remains of the room.
    unsafe { std::ptr::write_bytes(rest, 0, room - length) };
}
