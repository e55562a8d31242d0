//! How soon a thread that wakes up gets the processor, where more threads want it than there are processors.
//!
//! The scheduler gives the processor to whoever has the earliest deadline, and a deadline is the longer away the longer
//! the slice that a thread asks for (sched(7), EEVDF). Those who watch over others run for some microseconds at a time:
//! with a short slice they are let in soon after they are woken, and take no more of the processor than before. A slice
//! of one's own is known since Linux 6.12 and needs no privilege; an older kernel ignores the wish.

use std::time::Duration;

/// The shortest slice that there is.
const SHORT: Duration = Duration::from_micros(100);

/// `struct sched_attr` of sched_setattr(2) in its first published size, 48 bytes.
#[repr(C)]
#[derive(Default)]
struct Attributes {
    size: u32,
    policy: u32,
    flags: u64,
    nice: i32,
    priority: u32,
    runtime: u64,
    deadline: u64,
    period: u64,
}

const SIZE: u32 = size_of::<Attributes>() as u32;

/// The calling thread asks to be let in soon until this is dropped; so do meanwhile the threads and processes that it
/// starts, to their end.
#[derive(Debug)]
pub(crate) struct Prompt(());

impl Prompt {
    pub(crate) fn begin() -> Prompt {
        be_prompt();
        Prompt(())
    }
}

impl Drop for Prompt {
    fn drop(&mut self) {
        be_ordinary();
    }
}

/// The calling thread asks to be let in soon after it is woken.
pub(crate) fn be_prompt() {
    ask_for(SHORT);
}

/// The calling thread has the slice that everybody has.
pub(crate) fn be_ordinary() {
    ask_for(Duration::ZERO);
}

/// It is a wish: a kernel or a sandbox that refuses it takes nothing from anybody.
fn ask_for(slice: Duration) {
    if let Some(attributes) = attributes() {
        let runtime = slice.as_nanos() as u64;
        let wished = Attributes { runtime, ..attributes };
        // SAFETY: the kernel reads the struct, whose size it is told, and keeps no pointer to it; 0 is this thread.
        unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const wished, 0) };
    }
}

/// What the scheduler knows of this thread, if that has a slice: a real-time thread has none.
fn attributes() -> Option<Attributes> {
    let mut attributes = Attributes::default();
    // SAFETY: the kernel writes no more than the size that it is told, into a live struct; 0 is this thread.
    let told = unsafe { libc::syscall(libc::SYS_sched_getattr, 0, &raw mut attributes, SIZE, 0) };
    let is_fair = matches!(attributes.policy as i32, libc::SCHED_OTHER | libc::SCHED_BATCH);
    (told == 0 && is_fair).then_some(Attributes { size: SIZE, ..attributes })
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    fn slice() -> u64 {
        attributes().expect("a thread of a test is an ordinary one").runtime
    }

    /// The kernel knows slices of one's own if an ordinary thread has one at all.
    #[test]
    fn a_prompt_thread_has_the_short_slice_until_it_is_ordinary_again() {
        // On a thread of its own: the others of this process keep theirs.
        let slices = thread::spawn(|| {
            be_ordinary();
            let ordinary = slice();
            let prompt = Prompt::begin();
            let meanwhile = slice();
            let inherited = thread::spawn(slice).join().expect("it reads a number");
            drop(prompt);
            (ordinary, meanwhile, inherited, slice())
        });
        let (ordinary, meanwhile, inherited, afterwards) = slices.join().expect("it reads numbers");
        let short = if ordinary == 0 { 0 } else { SHORT.as_nanos() as u64 };
        assert_eq!((meanwhile, inherited, afterwards), (short, short, ordinary));
    }

    #[test]
    fn the_nice_value_stays() {
        let nice = || attributes().expect("an ordinary thread").nice;
        let nices = thread::spawn(move || {
            let before = nice();
            be_prompt();
            let meanwhile = nice();
            be_ordinary();
            (before, meanwhile, nice())
        });
        let (before, meanwhile, afterwards) = nices.join().expect("it reads numbers");
        assert_eq!((meanwhile, afterwards), (before, before));
    }
}
