//! Replacing this process by another program.

use std::ffi::{CString, OsString};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
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

/// Executes the plan; it returns only if that failed. Every descriptor but the standard three is closed.
pub(crate) fn exec(plan: Plan) -> io::Error {
    match try_exec(plan) {
        Ok(never) => match never {},
        Err(error) => error,
    }
}

fn try_exec(plan: Plan) -> io::Result<std::convert::Infallible> {
    let program = CString::new(plan.program.into_vec())?;
    let mut arguments = vec![program.clone()];
    for argument in plan.arguments {
        arguments.push(CString::new(argument.into_vec())?);
    }
    let mut environment = Vec::with_capacity(plan.environment.len());
    for (key, value) in plan.environment {
        let mut entry = key.into_vec();
        entry.push(b'=');
        entry.extend(value.into_vec());
        environment.push(CString::new(entry)?);
    }
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
    Ok(unistd::execvpe(&program, &arguments, &environment)?)
}

/// Ends this process at once: no exit handlers, no buffers of libc, which a fork has copied from elsewhere.
pub(crate) fn leave(code: i32) -> ! {
    // SAFETY: _exit never returns and touches no memory of this process.
    unsafe { libc::_exit(code) }
}
