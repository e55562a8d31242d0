//! Which file a name or a descriptor stands for: a path may lead to another file by now.

use std::fs::Metadata;
use std::io::{self, ErrorKind};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use serde::{Deserialize, Serialize};

/// A file among all that exist: no two have the same identity at one time (inode(7)). It is used again once the file is gone,
/// and it is not gone while anybody holds it open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct FileIdentity {
    device: u64,
    inode: u64,
}

impl FileIdentity {
    pub(crate) fn of(metadata: &Metadata) -> Self {
        Self { device: metadata.dev(), inode: metadata.ino() }
    }

    /// The file with this inode on the device of these numbers.
    pub(crate) fn on_device(major: u64, minor: u64, inode: u64) -> Self {
        Self { device: nix::sys::stat::makedev(major, minor), inode }
    }

    /// What stands at the path itself, be it a symbolic link; none where nothing does.
    ///
    /// # Errors
    /// Those of lstat(2).
    pub(crate) fn at(path: &Path) -> io::Result<Option<Self>> {
        match path.symlink_metadata() {
            Ok(metadata) => Ok(Some(Self::of(&metadata))),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }
}
