//! What the kernel says of a process that takes long: its state, the system call it is in and what it sleeps on.

use std::fmt;
use std::fs;

/// A glance at a process, taken from `/proc/PID/{stat,syscall,wchan}` (proc(5)).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct KernelState {
    /// One letter: R runs, S and D sleep, T stands still.
    pub(super) state: char,
    /// The system call, or "running"; none where this process may not know it.
    pub(super) syscall: Option<String>,
    /// The kernel's function in which it sleeps; none where it does not sleep, or the kernel does not tell.
    pub(super) wchan: Option<String>,
}

impl KernelState {
    /// Looks at a process; none if it is gone.
    pub(super) fn of(pid: i32) -> Option<KernelState> {
        let read = |name| fs::read_to_string(format!("/proc/{pid}/{name}")).ok();
        let stat = read("stat")?;
        let state = state_in(&stat)?;
        let syscall = read("syscall").map(|line| syscall_in(&line));
        let wchan = read("wchan").filter(|name| !name.is_empty() && name != "0");
        Some(KernelState { state, syscall, wchan })
    }
}

impl fmt::Display for KernelState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "state {}", self.state)?;
        if let Some(syscall) = &self.syscall {
            write!(f, ", {syscall}")?;
        }
        if let Some(wchan) = &self.wchan {
            write!(f, ", in {wchan}")?;
        }
        Ok(())
    }
}

/// The state's letter stands after the name, which stands in parentheses and may hold any character.
fn state_in(stat: &str) -> Option<char> {
    stat.rsplit_once(')')?.1.split_whitespace().next()?.chars().next()
}

/// `running`, or the number of the system call and its arguments; -1 where it is in none.
fn syscall_in(line: &str) -> String {
    let first = line.split_whitespace().next().unwrap_or_default();
    match first.parse() {
        Ok(-1) => "in no system call".to_owned(),
        Ok(number) => name_of(number).map_or_else(|| format!("system call {number}"), str::to_owned),
        Err(_) => first.to_owned(),
    }
}

#[cfg(feature = "cli")]
fn name_of(number: i64) -> Option<&'static str> {
    syscalls::Sysno::new(usize::try_from(number).ok()?).map(|call| call.name())
}

#[cfg(not(feature = "cli"))]
fn name_of(_: i64) -> Option<&'static str> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_parentheses_does_not_hide_the_state() {
        assert_eq!(state_in("12 (a) (b) S 1 12 12"), Some('S'));
        assert_eq!(state_in("12"), None);
    }

    #[test]
    fn a_system_call_is_told_by_its_name() {
        let sleeping = format!("{} 0x0 0x7ffc 0x0 0x0 0x0 0x0 0x7ffc 0x7f00\n", nix::libc::SYS_clock_nanosleep);
        let told = if cfg!(feature = "cli") { "clock_nanosleep" } else { "system call " };
        assert!(syscall_in(&sleeping).starts_with(told), "{}", syscall_in(&sleeping));
        assert_eq!(syscall_in("running\n"), "running");
        assert_eq!(syscall_in("-1 0x7ffc 0x7f00\n"), "in no system call");
    }

    #[test]
    fn a_sleeping_process_is_seen_in_its_sleep() {
        let mut sleeper = std::process::Command::new("sleep").arg("60").spawn().expect("sleep is there");
        let pid = sleeper.id() as i32;
        let began = std::time::Instant::now();
        let asleep = |state: &KernelState| state.state == 'S';
        // It has to start first.
        while !KernelState::of(pid).as_ref().is_some_and(asleep) && began.elapsed().as_secs() < 20 {
            std::thread::yield_now();
        }
        let seen = KernelState::of(pid);
        sleeper.kill().expect("it is our child");
        sleeper.wait().expect("it is our child");
        assert!(seen.as_ref().is_some_and(asleep), "{seen:?}");
        assert_eq!(KernelState::of(pid), None);
    }
}
