//! Which kernel this is, and whether it has what the process layer stands on.
//!
//! Linux 5.10 is the floor: pidfd_open (5.3), close_range (5.9) and waiting on pidfds are used without a
//! second way for older kernels.

use std::ffi::CStr;

const OLDEST: (u32, u32) = (5, 10);

/// The kernel is older than Linux 5.10, or its release cannot be read.
///
/// Likely cause: an old distribution, or a sandbox that reports an old release of its own. Run on
/// a newer kernel.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("Hatchery needs Linux 5.10 or newer, and this kernel's release is `{release}`")]
pub struct KernelTooOld {
    /// What uname(2) says.
    pub release: String,
}

/// Refuses kernels older than Linux 5.10.
///
/// # Errors
/// [`KernelTooOld`] with the release that was found.
pub(crate) fn require_linux_5_10() -> Result<(), KernelTooOld> {
    require_in(&release())
}

fn require_in(release: &str) -> Result<(), KernelTooOld> {
    match version(release) {
        Some(version) if version >= OLDEST => Ok(()),
        _ => Err(KernelTooOld { release: release.to_owned() }),
    }
}

/// Major and minor version from a release such as `6.1.0-18-amd64` or `5.10-rc3`.
fn version(release: &str) -> Option<(u32, u32)> {
    let (major, rest) = release.split_once('.')?;
    let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
    Some((major.parse().ok()?, rest[..digits].parse().ok()?))
}

fn release() -> String {
    // SAFETY: `utsname` is arrays of bytes, for which zeroes are a valid value.
    let mut names: libc::utsname = unsafe { std::mem::zeroed() };
    // SAFETY: `names` is a live, writable `utsname`.
    let failed = unsafe { libc::uname(&mut names) } != 0;
    if failed {
        return String::new();
    }
    // SAFETY: `uname` succeeded, so that `release` holds text closed by a NUL inside the array.
    let text = unsafe { CStr::from_ptr(names.release.as_ptr()) };
    text.to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_from_5_10_on_are_taken() {
        for release in ["5.10", "5.10.0-23-amd64", "5.10-rc3", "5.15.0", "6.0+", "6.18.1", "10.0.0"] {
            assert_eq!(require_in(release), Ok(()), "{release}");
        }
    }

    #[test]
    fn older_and_unreadable_releases_are_refused_by_name() {
        for release in ["5.9.16", "5.1.0", "4.19.0-amd64", "3.10", "", "5", "5.", "six.1", "5.x"] {
            let words = require_in(release).expect_err(release).to_string();
            assert!(words.contains("Linux 5.10"), "{words}");
            assert!(words.contains(&format!("`{release}`")), "{words}");
        }
    }

    #[test]
    fn the_kernel_that_runs_the_tests_is_taken() {
        assert_eq!(require_linux_5_10(), Ok(()), "{}", release());
    }
}
