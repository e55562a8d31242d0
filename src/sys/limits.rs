//! How many descriptors this process may hold.

use std::io;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// The soft limit of open files before and after [`raise_open_files`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct OpenFiles {
    pub(crate) old: u64,
    pub(crate) new: u64,
}

/// Raises the soft limit of open files to the hard one.
///
/// Every parked connection is a descriptor, and the soft limit is 1,024 nearly everywhere, for the
/// sake of programs that use select(2). Children inherit the raised limit.
///
/// # Errors
/// The kernel's refusal; the old limit stays.
pub(crate) fn raise_open_files() -> io::Result<OpenFiles> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if soft < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    }
    Ok(OpenFiles { old: soft, new: soft.max(hard) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_soft_limit_becomes_the_hard_one_and_stays_there() {
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("the limit");
        let raised = raise_open_files().expect("raise to the hard limit");
        assert_eq!(raised.new, hard);
        assert!(raised.old <= raised.new);
        assert_eq!(raise_open_files().expect("raise again"), OpenFiles { old: hard, new: hard });
    }
}
