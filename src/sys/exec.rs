//! Replacing this process by another program.

use std::ffi::{CString, OsStr, OsString};
use std::io;
use std::iter;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use nix::unistd;

use super::{descriptors, signals};

/// What to execute, and with what around it.
pub(crate) struct Plan {
    pub(crate) program: OsString,
    pub(crate) arguments: Vec<OsString>,
    /// The whole environment of the program.
    pub(crate) environment: Vec<(OsString, OsString)>,
    pub(crate) directory: Option<PathBuf>,
    /// What becomes its standard input, output and error; `None` keeps what this process has.
    pub(crate) stdio: [Option<OwnedFd>; 3],
}

/// What exec(3) takes, of a plan.
pub(crate) struct Strings {
    pub(crate) program: CString,
    /// The first one is the program's own name.
    pub(crate) arguments: Vec<CString>,
    pub(crate) environment: Vec<CString>,
}

impl Plan {
    /// # Errors
    /// `InvalidInput` for a text with a NUL in it.
    pub(crate) fn strings(&self) -> io::Result<Strings> {
        let program = text(&self.program)?;
        let own = iter::once(Ok(program.clone()));
        let arguments = own.chain(self.arguments.iter().map(text)).collect::<io::Result<_>>()?;
        let environment =
            self.environment.iter().map(|(key, value)| variable(key, value)).collect::<io::Result<_>>()?;
        Ok(Strings { program, arguments, environment })
    }
}

/// A text as C has it.
pub(crate) fn text(text: impl AsRef<OsStr>) -> io::Result<CString> {
    Ok(CString::new(text.as_ref().as_bytes())?)
}

/// An entry of an environment.
pub(crate) fn variable(key: &OsStr, value: &OsStr) -> io::Result<CString> {
    let mut entry = key.to_owned();
    entry.push("=");
    entry.push(value);
    text(entry)
}

/// Executes the plan; it returns only if that failed. Every descriptor but the standard three is closed.
pub(crate) fn exec(plan: Plan) -> io::Error {
    match try_exec(plan) {
        Ok(never) => match never {},
        Err(error) => error,
    }
}

fn try_exec(plan: Plan) -> io::Result<std::convert::Infallible> {
    let strings = plan.strings()?;
    if let Some(directory) = plan.directory {
        unistd::chdir(&directory)?;
    }
    let [stdin, stdout, stderr] = plan.stdio;
    // Received descriptors lie above the standard three, so none of these overwrites another.
    if let Some(fd) = &stdin {
        unistd::dup2_stdin(fd.as_fd())?;
    }
    if let Some(fd) = &stdout {
        unistd::dup2_stdout(fd.as_fd())?;
    }
    if let Some(fd) = &stderr {
        unistd::dup2_stderr(fd.as_fd())?;
    }
    descriptors::close_beyond_standard_at_exec()?;
    signals::default_all();
    signals::unblock_all()?;
    Ok(unistd::execvpe(&strings.program, &strings.arguments, &strings.environment)?)
}

/// Ends this process at once: no exit handlers, no buffers of libc, which a fork has copied from elsewhere.
pub(crate) fn leave(code: i32) -> ! {
    // SAFETY: _exit never returns and touches no memory of this process.
    unsafe { libc::_exit(code) }
}
