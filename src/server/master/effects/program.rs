//! The program that this process runs, for whoever is to run it again.

use std::env;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::sys::file_identity::FileIdentity;
use crate::sys::spawn::Image;

/// The program that this process runs: where it was found, and the file itself.
pub(in crate::server::master) struct Program {
    pub(super) path: PathBuf,
    pub(super) image: Image,
}

impl Program {
    pub(in crate::server::master) fn current() -> io::Result<Program> {
        Ok(Program { path: path_as_started()?, image: Image::current()? })
    }
}

/// Where this program was started from, with the symbolic links on the way: one that leads to another version by then is
/// to be followed. What was found by its name alone, or named itself otherwise, is where the kernel says it is.
fn path_as_started() -> io::Result<PathBuf> {
    let found = env::current_exe()?;
    let Some(written) = env::args_os().next().filter(|name| name.as_bytes().contains(&b'/')) else {
        return Ok(found);
    };
    let written = std::path::absolute(written)?;
    let file = |path: &Path| fs::metadata(path).map(|metadata| FileIdentity::of(&metadata));
    let is_this = matches!((file(&written), file(Path::new("/proc/self/exe"))), (Ok(there), Ok(this)) if there == this);
    Ok(if is_this { written } else { found })
}
