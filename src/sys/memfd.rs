//! Large messages: a memory file, sealed so that its reader can trust its length and content.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};

/// The seals after which neither length nor content can change (fcntl(2), F_ADD_SEALS).
const SEALS: SealFlag =
    SealFlag::F_SEAL_SEAL.union(SealFlag::F_SEAL_SHRINK).union(SealFlag::F_SEAL_GROW).union(SealFlag::F_SEAL_WRITE);

/// A sealed memory file with these bytes.
pub(crate) fn seal(bytes: &[u8]) -> io::Result<OwnedFd> {
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let mut file = File::from(memfd_create("hatchery message", flags)?);
    file.write_all(bytes)?;
    fcntl(&file, FcntlArg::F_ADD_SEALS(SEALS))?;
    Ok(file.into())
}

/// Reads a sealed memory file from its beginning, at most `limit` bytes of it.
///
/// The length is checked before any memory is taken for it.
pub(crate) fn read(fd: OwnedFd, limit: u64) -> io::Result<Vec<u8>> {
    require_seals(fd.as_fd())?;
    let file = File::from(fd);
    let length = file.metadata()?.len();
    if length > limit {
        let why = format!("a message of {length} bytes is over the limit of {limit}");
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, why));
    }
    let mut bytes = Vec::new();
    // A file may be long without holding anything, so the memory may well not be there.
    bytes.try_reserve_exact(usize::try_from(length).unwrap_or(usize::MAX)).map_err(|_| io::ErrorKind::OutOfMemory)?;
    // The writer's file position is shared with us and stands at the end.
    let mut at = Positioned { file: &file, offset: 0 };
    at.read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn require_seals(fd: BorrowedFd<'_>) -> io::Result<()> {
    let seals = fcntl(fd, FcntlArg::F_GET_SEALS)?;
    if SealFlag::from_bits_truncate(seals).contains(SEALS) {
        return Ok(());
    }
    Err(io::Error::new(io::ErrorKind::InvalidData, "a memory file came without its seals"))
}

struct Positioned<'a> {
    file: &'a File,
    offset: u64,
}

impl Read for Positioned<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = std::os::unix::fs::FileExt::read_at(self.file, buffer, self.offset)?;
        self.offset += read as u64;
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_sealed_is_read_whole() {
        let bytes: Vec<u8> = (0..100_000u32).map(|n| n as u8).collect();
        let sealed = seal(&bytes).expect("a memory file");
        assert_eq!(read(sealed, 1 << 20).expect("readable"), bytes);
    }

    #[test]
    fn a_sealed_file_cannot_be_changed() {
        let sealed = seal(b"fixed").expect("a memory file");
        let mut file = File::from(sealed);
        assert!(file.write_all(b"x").is_err());
        assert!(file.set_len(1).is_err());
    }

    #[test]
    fn a_file_over_the_limit_or_without_seals_is_refused() {
        let sealed = seal(&[0; 11]).expect("a memory file");
        assert_eq!(read(sealed, 10).unwrap_err().kind(), io::ErrorKind::FileTooLarge);
        let plain = memfd_create("plain", MFdFlags::MFD_ALLOW_SEALING).expect("a memory file");
        assert_eq!(read(plain, 10).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
}
