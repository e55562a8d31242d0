//! What the kernel says of a process's memory.

use std::fs;

use nix::unistd::{SysconfVar, sysconf};

/// The resident memory of a process in bytes, shared pages included, as ps(1) shows it: the second field of
/// `/proc/PID/statm`, in pages (proc_pid_statm(5)). None if it has just ended.
pub(crate) fn resident(pid: i32) -> Option<u64> {
    let statm = fs::read_to_string(format!("/proc/{pid}/statm")).ok()?;
    let pages: u64 = statm.split(' ').nth(1)?.parse().ok()?;
    let page = sysconf(SysconfVar::PAGE_SIZE).ok()??;
    Some(pages * u64::try_from(page).ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_resident_memory_is_that_of_the_process() {
        let own = std::process::id() as i32;
        let before = resident(own).expect("this process lives");
        let block = vec![1_u8; 64 << 20];
        let after = resident(own).expect("this process lives");
        assert!(after >= before + (48 << 20), "{before} and {after} with {} bytes more", block.len());
        assert_eq!(resident(i32::MAX), None);
    }
}
