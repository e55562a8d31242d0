//! Memory that carries long messages from one process to another, one at a time, over and over: so that neither the
//! memory nor its mapping has to be made for each.
//!
//! Two pages of the kernel's own are not needed, nor is a system call: the sender copies a message in, the receiver copies
//! it out and says so in the first word. Nothing that the other side writes there is believed: at worst a message is
//! garbled, as if its sender had sent garbage. The length is sealed, and there is always memory behind it, so no access can
//! fault: huge pages, of which there may be none left (memfd_create(2), MFD_HUGETLB), are refused.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::stat::fstat;
use nix::sys::statfs::{TMPFS_MAGIC, fstatfs};

use super::shared::{self, Access, Mapping, PAGE};

/// The first word while a message is on its way; else it is 0.
const TAKEN: u64 = 1;

/// One end of a lane: a page for the first word, and then room for one message.
#[derive(Debug)]
pub(crate) struct Lane {
    mapping: Mapping,
}

impl Lane {
    /// Makes a lane, taken, for messages of at most so many bytes, and the file by which the receiver opens it.
    pub(crate) fn create(capacity: usize) -> io::Result<(Lane, OwnedFd)> {
        let pages = 1 + capacity.div_ceil(PAGE);
        let file = shared::create("hatchery lane", pages)?;
        let lane = Lane { mapping: Mapping::new(file.as_fd(), 0, pages, Access::ReadWrite)? };
        lane.state().store(TAKEN, Ordering::Relaxed);
        Ok((lane, file))
    }

    /// Opens a lane of somebody who is not to be trusted, for messages of at most so many bytes.
    ///
    /// # Errors
    /// It is no memory file of ordinary pages, may change its length, or is longer than that.
    pub(crate) fn open(file: &OwnedFd, longest: u64) -> io::Result<Lane> {
        let sealed = SealFlag::from_bits_truncate(fcntl(file, FcntlArg::F_GET_SEALS)?);
        if !sealed.contains(SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "its length is not sealed"));
        }
        if fstatfs(file)?.filesystem_type() != TMPFS_MAGIC {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "its pages are no ordinary memory"));
        }
        let length = u64::try_from(fstat(file)?.st_size).unwrap_or(u64::MAX);
        let most = longest.next_multiple_of(PAGE as u64).saturating_add(PAGE as u64);
        if length > most {
            let why = format!("it is {length} bytes long, and {most} are allowed");
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, why));
        }
        let pages = usize::try_from(length).unwrap_or(0) / PAGE;
        if pages < 2 {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "it has no room for a message"));
        }
        Ok(Lane { mapping: Mapping::new(file.as_fd(), 0, pages, Access::ReadWrite)? })
    }

    /// How long a message may be, in bytes.
    pub(crate) fn capacity(&self) -> usize {
        self.mapping.bytes() - PAGE
    }

    /// Takes the lane for a message; false, if one is on its way.
    pub(crate) fn claim(&self) -> bool {
        self.state().compare_exchange(0, TAKEN, Ordering::Acquire, Ordering::Relaxed).is_ok()
    }

    /// The message is out, or will not be sent.
    pub(crate) fn release(&self) {
        self.state().store(0, Ordering::Release);
    }

    /// Copies a message in. It must fit: true if it did.
    #[must_use]
    pub(crate) fn put(&self, message: &[u8]) -> bool {
        self.mapping.write_at(PAGE, message)
    }

    /// Copies a message of that length out, and frees the lane.
    ///
    /// # Errors
    /// It is longer than the lane, or there is no memory for it.
    pub(crate) fn take(&self, length: usize) -> io::Result<Vec<u8>> {
        if length > self.capacity() {
            let why = format!("a message of {length} bytes does not fit its lane of {}", self.capacity());
            return Err(io::Error::new(io::ErrorKind::InvalidData, why));
        }
        let message = self.mapping.read_at(PAGE, length);
        self.release();
        message
    }

    fn state(&self) -> &AtomicU64 {
        &self.mapping.words()[0]
    }
}

#[cfg(test)]
mod tests {
    use nix::sys::memfd::{MFdFlags, memfd_create};
    use nix::unistd::ftruncate;

    use super::*;
    use crate::sys::memfd;

    #[test]
    fn messages_go_through_one_at_a_time_and_come_out_as_they_went_in() {
        let (sender, file) = Lane::create(100_000).expect("a lane");
        let receiver = Lane::open(&file, 100_000).expect("the same lane");
        for length in [0, 1, 7, 4096, 100_000] {
            let message: Vec<u8> = (0..length).map(|n: u32| ((n * 31) >> 3) as u8).collect();
            assert!(!sender.claim(), "it is taken");
            assert!(sender.put(&message));
            assert_eq!(receiver.take(message.len()).expect("a message"), message);
            assert!(sender.claim(), "it is free again");
        }
    }

    #[test]
    fn what_does_not_fit_is_refused_on_both_sides() {
        let (sender, file) = Lane::create(4096).expect("a lane");
        assert!(!sender.put(&vec![0; sender.capacity() + 1]));
        let receiver = Lane::open(&file, 4096).expect("the same lane");
        assert!(receiver.take(receiver.capacity() + 1).is_err());
        assert!(receiver.take(usize::MAX).is_err());
        assert!(Lane::open(&file, 1).is_ok_and(|lane| lane.capacity() == PAGE), "a page is the least");
        assert_eq!(
            Lane::create(3 * PAGE).and_then(|(_, file)| Lane::open(&file, 1)).unwrap_err().kind(),
            io::ErrorKind::FileTooLarge
        );
    }

    #[test]
    fn a_file_that_may_change_its_length_or_is_of_huge_pages_is_refused() {
        let file: OwnedFd = tempfile::tempfile().expect("a file").into();
        assert!(Lane::open(&file, 1 << 20).is_err());
        let (pipe, _writer) = io::pipe().expect("a pipe");
        assert!(Lane::open(&pipe.into(), 1 << 20).is_err());
        // A kernel without huge pages makes none (EINVAL, ENOSYS), and so does no sender.
        if let Ok(huge) = memfd_create("huge", MFdFlags::MFD_HUGETLB | MFdFlags::MFD_ALLOW_SEALING) {
            ftruncate(&huge, 2 << 20).expect("a length");
            let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW;
            fcntl(&huge, FcntlArg::F_ADD_SEALS(seals)).expect("sealed");
            let why = Lane::open(&huge, 4 << 20).expect_err("refused").to_string();
            assert_eq!(why, "its pages are no ordinary memory");
        }
        let too_short = memfd::seal(b"short").expect("a memory file");
        assert!(Lane::open(&too_short, 1 << 20).is_err());
    }
}
