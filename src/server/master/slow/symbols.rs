//! Addresses of a worker's code, told as functions and lines. It takes milliseconds: the debug information is read from the
//! files, in this process and not in the one that has ended.

use super::modules::Modules;

/// What one record may say of a stack. A record is to stay within what a pipe takes as a whole (PIPE_BUF, pipe(7)).
const LONGEST: usize = 2_500;

/// Below this function is the worker loop, which is the same for every request.
const WORKER_LOOP: &str = "hatchery::server::attend::";

/// The functions from the innermost to the outermost, separated by ` < `.
pub(super) fn describe(resolver: &mut Resolver, modules: Option<&Modules>, addresses: &[u64]) -> String {
    let mut told = String::new();
    for &address in addresses {
        for frame in resolver.frames(modules, address) {
            if frame.contains(WORKER_LOOP) {
                return told;
            }
            if told.len() + frame.len() > LONGEST {
                told.push_str(" < ...");
                return told;
            }
            if !told.is_empty() {
                told.push_str(" < ");
            }
            told.push_str(&frame);
        }
    }
    told
}

/// The same, as files and places in them; it takes no time.
pub(super) fn locate(modules: Option<&Modules>, addresses: &[u64]) -> String {
    let places: Vec<String> = addresses.iter().map(|&address| unresolved(modules, address)).collect();
    places.join(" < ")
}

/// Without debug information there is the file, and the place in it.
fn unresolved(modules: Option<&Modules>, address: u64) -> String {
    match modules.and_then(|modules| modules.find(address)) {
        Some(place) => format!("{}+{:#x}", place.name.display(), place.offset),
        None => format!("{address:#x}"),
    }
}

/// A lean library has no reader of debug information.
#[cfg(not(feature = "cli"))]
#[derive(Default)]
pub(super) struct Resolver {}

#[cfg(not(feature = "cli"))]
impl Resolver {
    fn frames(&mut self, modules: Option<&Modules>, address: u64) -> Vec<String> {
        vec![unresolved(modules, address)]
    }
}

#[cfg(feature = "cli")]
pub(super) use self::dwarf::Resolver;

#[cfg(feature = "cli")]
mod dwarf {
    use std::collections::HashMap;
    use std::fs::File;
    use std::io::Read;
    use std::path::Path;

    use addr2line::{Frame, Loader};

    use super::unresolved;
    use crate::server::master::slow::modules::{Modules, Place};
    use crate::sys::file_identity::FileIdentity;

    /// Where an ELF file says whether it can be moved, and the word for one that cannot (elf(5)).
    const E_TYPE: usize = 16;
    const ET_EXEC: u16 = 2;

    /// Reads each file once.
    #[derive(Default)]
    pub(in crate::server::master::slow) struct Resolver(HashMap<FileIdentity, Option<Object>>);

    struct Object {
        loader: Loader,
        movable: bool,
    }

    impl Resolver {
        /// The functions at an address: more than one where some are inlined, the innermost first.
        pub(super) fn frames(&mut self, modules: Option<&Modules>, address: u64) -> Vec<String> {
            let place = modules.and_then(|modules| modules.find(address));
            let found = place.map(|place| self.resolve(&place)).unwrap_or_default();
            if found.is_empty() { vec![unresolved(modules, address)] } else { found }
        }

        fn resolve(&mut self, place: &Place) -> Vec<String> {
            let object = self.0.entry(place.identity).or_insert_with(|| Object::open(&place.path));
            object.as_ref().map(|object| object.resolve(place)).unwrap_or_default()
        }
    }

    impl Object {
        fn open(path: &Path) -> Option<Object> {
            let mut head = [0; E_TYPE + 2];
            File::open(path).ok()?.read_exact(&mut head).ok()?;
            let movable = u16::from_ne_bytes([head[E_TYPE], head[E_TYPE + 1]]) != ET_EXEC;
            Some(Object { loader: Loader::new(path).ok()?, movable })
        }

        fn resolve(&self, place: &Place) -> Vec<String> {
            let address = if self.movable { place.offset } else { place.address };
            let mut told = Vec::new();
            if let Ok(mut frames) = self.loader.find_frames(address) {
                while let Ok(Some(frame)) = frames.next() {
                    told.extend(describe(&frame));
                }
            }
            if told.is_empty() {
                let symbol = self.loader.find_symbol(address);
                told.extend(symbol.map(|name| without_hash(&addr2line::demangle_auto(name.into(), None)).to_owned()));
            }
            told
        }
    }

    fn describe<R: addr2line::gimli::Reader>(frame: &Frame<'_, R>) -> Option<String> {
        let name = frame.function.as_ref()?.demangle().ok()?.into_owned();
        let name = without_hash(&name);
        let place = frame.location.as_ref().and_then(|location| {
            let file = Path::new(location.file?).file_name()?.to_string_lossy().into_owned();
            Some(format!(" at {file}:{}", location.line?))
        });
        Some(format!("{name}{}", place.unwrap_or_default()))
    }

    /// A Rust symbol ends with `::h` and 16 digits, which say nothing to people.
    fn without_hash(name: &str) -> &str {
        match name.rsplit_once("::h") {
            Some((path, hash)) if hash.len() == 16 && hash.bytes().all(|digit| digit.is_ascii_hexdigit()) => path,
            _ => name,
        }
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn only_a_hash_is_cut_off() {
            assert_eq!(without_hash("a::b::h0123456789abcdef"), "a::b");
            assert_eq!(without_hash("a::help"), "a::help");
            assert_eq!(without_hash("main"), "main");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[inline(never)]
    fn a_function_to_be_found() -> u32 {
        std::hint::black_box(7)
    }

    #[test]
    fn an_address_is_told_as_function_and_line_or_as_its_place_in_the_file() {
        let modules = Modules::of(std::process::id() as i32).expect("our own maps");
        let address = a_function_to_be_found as *const () as u64;
        let told = describe(&mut Resolver::default(), Some(&modules), &[address, 1]);
        let expected = if cfg!(feature = "cli") { "a_function_to_be_found at symbols.rs:" } else { "+0x" };
        assert!(told.contains(expected) && told.ends_with(" < 0x1"), "{told}");
        assert_eq!(describe(&mut Resolver::default(), None, &[0x10]), "0x10");
        assert!(locate(Some(&modules), &[address, 1]).ends_with(" < 0x1"));
        assert_eq!(a_function_to_be_found(), 7);
    }

    #[test]
    fn a_record_stays_short_whatever_the_depth() {
        let modules = Modules::of(std::process::id() as i32).expect("our own maps");
        let address = a_function_to_be_found as *const () as u64;
        let told = describe(&mut Resolver::default(), Some(&modules), &vec![address; 500]);
        assert!(told.len() < LONGEST + 10 && told.ends_with(" < ..."));
    }
}
