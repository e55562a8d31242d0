//! Memory shared between processes, mapped a page at a time and seen as atomics, or copied.
//!
//! The memory is a memfd whose length is sealed, so no mapping can ever fault for want of a page
//! behind it (memfd_create(2), "File sealing").

use std::ffi::c_void;
use std::io;
use std::mem;
use std::num::NonZeroUsize;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::ptr::{self, NonNull};
use std::slice;
use std::sync::atomic::AtomicU64;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use nix::unistd::ftruncate;

/// Bytes in a page, or in as many as the largest page that Linux has on this architecture: only there can a mapping begin.
pub(crate) const PAGE: usize = if cfg!(any(target_arch = "x86_64", target_arch = "x86")) { 4 << 10 } else { 64 << 10 };

/// Words in a page.
pub(crate) const WORDS: usize = PAGE / size_of::<AtomicU64>();

/// Makes zeroed memory of `pages` pages under a name that shows in `/proc/PID/maps`.
pub(crate) fn create(name: &str, pages: usize) -> Result<OwnedFd, Errno> {
    let length = pages.checked_mul(PAGE).ok_or(Errno::EOVERFLOW)?;
    let length = i64::try_from(length).map_err(|_| Errno::EOVERFLOW)?;
    let fd = memfd_create(name, MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?;
    ftruncate(&fd, length)?;
    let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
    fcntl(&fd, FcntlArg::F_ADD_SEALS(seals))?;
    Ok(fd)
}

/// What a mapping may do with its pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    /// Load. A store through such a mapping is a SIGSEGV, so its owner must not offer one.
    Read,
    /// Load and store.
    ReadWrite,
}

/// Some pages of shared memory in this process; unmapped when dropped.
#[derive(Debug)]
pub(crate) struct Mapping {
    start: NonNull<c_void>,
    length: NonZeroUsize,
}

// SAFETY: the pages are reached as atomics, or copied by raw pointers, and stay mapped wherever the owner goes.
unsafe impl Send for Mapping {}
// SAFETY: as above: `&Mapping` gives `&[AtomicU64]`, and copies.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `pages` pages of `memory`, from page `first` on.
    ///
    /// # Errors
    /// `EINVAL` for a range that is empty or reaches beyond the memory's end.
    pub(crate) fn new(memory: BorrowedFd<'_>, first: usize, pages: usize, access: Access) -> Result<Self, Errno> {
        let offset = first.checked_mul(PAGE).ok_or(Errno::EINVAL)?;
        let length = pages.checked_mul(PAGE).ok_or(Errno::EINVAL)?;
        let end = offset.checked_add(length).ok_or(Errno::EINVAL)?;
        let size = nix::sys::stat::fstat(memory)?.st_size;
        if usize::try_from(size).map_or(true, |size| end > size) {
            return Err(Errno::EINVAL);
        }
        let length = NonZeroUsize::new(length).ok_or(Errno::EINVAL)?;
        let offset = i64::try_from(offset).map_err(|_| Errno::EINVAL)?;
        let protection = match access {
            Access::Read => ProtFlags::PROT_READ,
            Access::ReadWrite => ProtFlags::PROT_READ | ProtFlags::PROT_WRITE,
        };
        // SAFETY: the kernel chooses the address, so no existing mapping is replaced; the file's
        // length is sealed and was compared above, so every page has memory behind it.
        let start = unsafe { mmap(None, length, protection, MapFlags::MAP_SHARED, memory, offset) }?;
        Ok(Self { start, length })
    }

    /// The pages' words.
    pub(crate) fn words(&self) -> &[AtomicU64] {
        let count = self.length.get() / size_of::<AtomicU64>();
        // SAFETY: the mapping is page-aligned, `length` bytes long, lives as long as `self`, and
        // every process reaches these bytes as atomics. A load needs no write permission.
        unsafe { slice::from_raw_parts(self.start.cast().as_ptr(), count) }
    }

    /// How many bytes are mapped.
    pub(crate) fn bytes(&self) -> usize {
        self.length.get()
    }

    /// Copies bytes to that place. Other processes may see them half-written. False, if they do not fit.
    pub(crate) fn write_at(&self, at: usize, bytes: &[u8]) -> bool {
        if self.length.get().checked_sub(at).is_none_or(|room| bytes.len() > room) {
            return false;
        }
        // SAFETY: `at` is inside the mapping.
        let to = unsafe { self.start.cast::<u8>().add(at) };
        // SAFETY: there is room for so many bytes behind `to`, as was checked; they overlap no memory of this process's
        // own, and no reference into the mapping but those to atomics exists.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), to.as_ptr(), bytes.len()) };
        true
    }

    /// A copy of so many bytes from that place, whatever another process makes of them meanwhile.
    ///
    /// # Errors
    /// `OutOfMemory`; `InvalidInput` for what is not inside.
    pub(crate) fn read_at(&self, at: usize, length: usize) -> io::Result<Vec<u8>> {
        if self.length.get().checked_sub(at).is_none_or(|room| length > room) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let mut bytes: Vec<u8> = Vec::new();
        bytes.try_reserve_exact(length).map_err(|_| io::ErrorKind::OutOfMemory)?;
        // SAFETY: `at` is inside the mapping.
        let from = unsafe { self.start.cast::<u8>().add(at) };
        // SAFETY: so many bytes are mapped from `from` on, as was checked, and the vector has room for them. Any bytes
        // are bytes: nothing depends on their staying the same.
        unsafe { ptr::copy_nonoverlapping(from.as_ptr(), bytes.as_mut_ptr(), length) };
        // SAFETY: so many bytes were just written.
        unsafe { bytes.set_len(length) };
        Ok(bytes)
    }

    /// The pages' words, mapped for the rest of the process's life.
    pub(crate) fn leak(self) -> &'static [AtomicU64] {
        let words: *const [AtomicU64] = self.words();
        mem::forget(self);
        // SAFETY: as above, and nobody is left to unmap them.
        unsafe { &*words }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: `new` mapped exactly this range and no reference into it outlives `self`.
        let _ = unsafe { munmap(self.start, self.length.get()) };
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::sync::atomic::Ordering;

    use nix::sys::wait::waitpid;
    use nix::unistd::{ForkResult, fork};

    use super::*;

    #[test]
    fn what_a_forked_child_writes_its_parent_reads() {
        let memory = create("test", 2).unwrap();
        let whole = Mapping::new(memory.as_fd(), 0, 2, Access::Read).unwrap();
        // SAFETY: until it exits the child makes system calls and one atomic store, nothing else.
        match unsafe { fork() }.unwrap() {
            ForkResult::Child => {
                let own = Mapping::new(memory.as_fd(), 1, 1, Access::ReadWrite);
                let own = own.inspect(|own| own.words()[3].store(42, Ordering::Relaxed));
                // SAFETY: _exit is async-signal-safe and runs nothing of the parent's.
                unsafe { libc::_exit(i32::from(own.is_err())) };
            }
            ForkResult::Parent { child } => {
                waitpid(child, None).unwrap();
                assert_eq!(whole.words()[WORDS + 3].load(Ordering::Relaxed), 42);
            }
        }
    }

    #[test]
    fn the_memory_can_neither_shrink_nor_grow() {
        let memory = create("test", 1).unwrap();
        assert_eq!(ftruncate(&memory, 0), Err(Errno::EPERM));
        assert_eq!(ftruncate(&memory, 2 * PAGE as i64), Err(Errno::EPERM));
    }

    #[test]
    fn a_range_beyond_the_end_is_refused() {
        let memory = create("test", 2).unwrap();
        for (first, pages) in [(0, 0), (0, 3), (2, 1), (usize::MAX, 1)] {
            let mapping = Mapping::new(memory.as_fd(), first, pages, Access::Read);
            assert_eq!(mapping.err(), Some(Errno::EINVAL));
        }
    }
}
