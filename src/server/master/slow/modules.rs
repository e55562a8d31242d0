//! What lies where in a process's memory, so that an address in it finds its file.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::path::PathBuf;

use crate::sys::file_identity::FileIdentity;

/// The files mapped into a process, by address.
#[derive(Debug)]
pub(super) struct Modules {
    /// By start, with the end and the file's place in `files`.
    ranges: BTreeMap<u64, (u64, usize)>,
    files: Vec<Module>,
}

/// One mapped file.
#[derive(Debug)]
struct Module {
    name: PathBuf,
    /// Where its first byte is mapped.
    base: u64,
    identity: FileIdentity,
    /// The executable, held open: its path may name another file by now.
    held: Option<File>,
}

/// An address in terms of the file that it lies in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    /// The file's name, for people.
    pub(super) name: PathBuf,
    /// Which file it is: the path may be used again for another one.
    pub(super) identity: FileIdentity,
    /// Where to open it.
    pub(super) path: PathBuf,
    /// The distance from where the file's first byte is mapped.
    pub(super) offset: u64,
    /// The address itself, as an executable that cannot be moved knows it.
    pub(super) address: u64,
}

impl Modules {
    /// Reads `/proc/PID/maps` of a live process (proc(5)).
    ///
    /// # Errors
    /// Those of reading it: the process is gone, or another user's.
    pub(super) fn of(pid: i32) -> io::Result<Modules> {
        let maps = fs::read_to_string(format!("/proc/{pid}/maps"))?;
        let mut modules = Modules::parse(&maps);
        let executable = fs::read_link(format!("/proc/{pid}/exe"))?;
        if let Some(module) = modules.files.iter_mut().find(|module| module.name == executable) {
            module.held = File::open(format!("/proc/{pid}/exe")).ok();
        }
        Ok(modules)
    }

    fn parse(maps: &str) -> Modules {
        let mut modules = Modules { ranges: BTreeMap::new(), files: Vec::new() };
        for line in maps.lines() {
            modules.add(line);
        }
        modules
    }

    /// A line is `START-END PERMISSIONS OFFSET DEVICE INODE PATH`; what has no path is nobody's code.
    fn add(&mut self, line: &str) -> Option<()> {
        let mut fields = line.splitn(6, ' ');
        let (start, end) = fields.next()?.split_once('-')?;
        let (start, end) = (u64::from_str_radix(start, 16).ok()?, u64::from_str_radix(end, 16).ok()?);
        let offset = u64::from_str_radix(fields.nth(1)?, 16).ok()?;
        let (major, minor) = fields.next()?.split_once(':')?;
        let (major, minor) = (u64::from_str_radix(major, 16).ok()?, u64::from_str_radix(minor, 16).ok()?);
        let identity = FileIdentity::on_device(major, minor, fields.next()?.parse().ok()?);
        let name = fields.next()?.trim_start();
        if !name.starts_with('/') {
            return None;
        }
        let known = self.files.iter().rposition(|module| module.name.as_os_str() == name);
        let index = known.unwrap_or_else(|| {
            self.files.push(Module { name: name.into(), base: start.wrapping_sub(offset), identity, held: None });
            self.files.len() - 1
        });
        self.ranges.insert(start, (end, index));
        Some(())
    }

    /// The file in which an address lies.
    pub(super) fn find(&self, address: u64) -> Option<Place> {
        let (_, &(end, index)) = self.ranges.range(..=address).next_back()?;
        let module = self.files.get(index).filter(|_| address < end)?;
        let path = match &module.held {
            Some(file) => format!("/proc/self/fd/{}", file.as_raw_fd()).into(),
            None => module.name.clone(),
        };
        let (name, identity) = (module.name.clone(), module.identity);
        Some(Place { name, identity, path, offset: address.wrapping_sub(module.base), address })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAPS: &str = "\
55d0c0000000-55d0c0100000 r--p 00000000 fe:00 131 /opt/a server (deleted)
55d0c0100000-55d0c0300000 r-xp 00100000 fe:00 131 /opt/a server (deleted)
55d0c1000000-55d0c1021000 rw-p 00000000 00:00 0   [heap]
7f0000000000-7f0000100000 rw-p 00000000 00:00 0
7f0000200000-7f0000300000 r-xp 00028000 fe:00 77  /usr/lib/libc.so.6
";

    #[test]
    fn an_address_finds_its_file_and_its_place_there() {
        let modules = Modules::parse(MAPS);
        let place = modules.find(0x55d0c0100123).expect("in the executable");
        assert_eq!((place.name.to_str(), place.offset), (Some("/opt/a server (deleted)"), 0x100123));
        let place = modules.find(0x7f0000200010).expect("in the library");
        assert_eq!((place.name.to_str(), place.offset), (Some("/usr/lib/libc.so.6"), 0x28010));
        for nobodys in [0, 0x55d0c1000010, 0x7f0000000010, 0x7f0000300000, u64::MAX] {
            assert_eq!(modules.find(nobodys), None, "{nobodys:x}");
        }
    }

    #[test]
    fn a_function_of_this_very_process_is_found_in_its_executable() {
        let modules = Modules::of(std::process::id() as i32).expect("our own maps");
        let here = a_function_of_this_very_process_is_found_in_its_executable as *const () as u64;
        let place = modules.find(here).expect("it is mapped");
        assert_eq!(place.name, std::env::current_exe().expect("our own program"));
        assert!(place.path.starts_with("/proc/self/fd"));
    }
}
