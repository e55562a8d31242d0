//! Shared objects that bring entry points of their own (dlopen(3)).
//!
//! The boundary is plain C, so an object may be written in any language and built by any compiler: it exports
//! one function, `hatchery_entry_points`, that gives a table.

use std::ffi::{CStr, OsStr, c_char, c_int};
use std::io;
use std::os::fd::{IntoRawFd, OwnedFd, RawFd};
use std::rc::Rc;

use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};

/// The version of the table's layout that this crate understands.
const LAYOUT: u32 = 1;

/// Room for the error text of a call.
const ERROR_ROOM: usize = 4096;

/// Some bytes, as C sees them.
#[repr(C)]
struct Bytes {
    data: *const u8,
    length: usize,
}

/// One row of the table. Exactly one of the two functions is set.
#[repr(C)]
struct Row {
    name: *const c_char,
    /// Returns 0, or not 0 and an error text written (with its terminator) to `error`.
    call: Option<extern "C" fn(args: *const Bytes, count: usize, error: *mut c_char, room: usize) -> c_int>,
    /// Takes the process over; what it returns is the exit code. It owns the socket and the descriptors.
    run: Option<
        extern "C" fn(
            socket: c_int,
            args: *const Bytes,
            args_count: usize,
            fds: *const c_int,
            fds_count: usize,
        ) -> c_int,
    >,
}

#[repr(C)]
struct Table {
    layout: u32,
    count: u32,
    rows: *const Row,
}

/// An entry point out of a shared object.
#[derive(Clone)]
pub(crate) struct ForeignEntry {
    pub(crate) name: String,
    call: Option<extern "C" fn(*const Bytes, usize, *mut c_char, usize) -> c_int>,
    run: Option<extern "C" fn(c_int, *const Bytes, usize, *const c_int, usize) -> c_int>,
    /// Keeps the code mapped as long as a function of it can be called.
    _library: Rc<Library>,
}

/// Opens a shared object and gives the entry points that it exports.
pub(crate) fn load(path: &OsStr) -> io::Result<Vec<ForeignEntry>> {
    // SAFETY: running the object's constructors is what the user asked for by naming this file to `load`.
    let library = unsafe { Library::open(Some(path), RTLD_NOW | RTLD_LOCAL) }.map_err(io::Error::other)?;
    let library = Rc::new(library);
    // SAFETY: the symbol's documented type is this function; a name that only this crate defines.
    let table = unsafe { library.get::<extern "C" fn() -> *const Table>(c"hatchery_entry_points") }
        .map_err(io::Error::other)?;
    let table = table();
    if table.is_null() {
        return Err(invalid("its table of entry points is null"));
    }
    // SAFETY: not null, and by the agreement of the layout it points to a table that lives as long as the object.
    let table = unsafe { table.read() };
    if table.layout != LAYOUT {
        return Err(invalid(&format!("its table has layout {}, this program reads {LAYOUT}", table.layout)));
    }
    (0..table.count as usize).map(|index| read_row(table.rows, index, &library)).collect()
}

fn read_row(rows: *const Row, index: usize, library: &Rc<Library>) -> io::Result<ForeignEntry> {
    // SAFETY: the table says that it has more than `index` rows.
    let row = unsafe { rows.add(index) };
    // SAFETY: in range as above, and rows are plain data.
    let row = unsafe { row.read() };
    if row.name.is_null() || row.call.is_some() == row.run.is_some() {
        return Err(invalid("a row of its table needs a name and exactly one function"));
    }
    // SAFETY: not null, and by the agreement of the layout it is a C string that lives as long as the object.
    let name = unsafe { CStr::from_ptr(row.name) };
    Ok(ForeignEntry {
        name: name.to_string_lossy().into_owned(),
        call: row.call,
        run: row.run,
        _library: Rc::clone(library),
    })
}

fn invalid(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why.to_owned())
}

impl ForeignEntry {
    /// Calls it; `None` if it is not of the kind that is called, and the error text if it fails.
    pub(crate) fn call(&self, args: &[Vec<u8>]) -> Option<Result<(), String>> {
        let call = self.call?;
        let args = borrow(args);
        let mut error = vec![0u8; ERROR_ROOM];
        let code = call(args.as_ptr(), args.len(), error.as_mut_ptr().cast(), error.len());
        Some(if code == 0 { Ok(()) } else { Err(error_text(&error, code)) })
    }

    /// Whether it takes a process over.
    pub(crate) fn is_run(&self) -> bool {
        self.run.is_some()
    }

    /// Lets it take this process over; its exit code comes back.
    pub(crate) fn run(&self, socket: OwnedFd, args: &[Vec<u8>], fds: Vec<OwnedFd>) -> Option<i32> {
        let run = self.run?;
        let args = borrow(args);
        let fds: Vec<RawFd> = fds.into_iter().map(IntoRawFd::into_raw_fd).collect();
        Some(run(socket.into_raw_fd(), args.as_ptr(), args.len(), fds.as_ptr(), fds.len()))
    }
}

fn borrow(args: &[Vec<u8>]) -> Vec<Bytes> {
    args.iter().map(|arg| Bytes { data: arg.as_ptr(), length: arg.len() }).collect()
}

fn error_text(room: &[u8], code: c_int) -> String {
    let text = CStr::from_bytes_until_nul(room).map(|text| text.to_string_lossy().into_owned()).unwrap_or_default();
    if text.is_empty() { format!("it returned {code}") } else { text }
}
