//! Descriptors inside messages.

use std::cell::RefCell;
use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::thread::LocalKey;

use serde::de::{Error as _, Visitor};
use serde::ser::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A descriptor that travels inside a call, a reply or an event: an open file, a socket, a pipe.
///
/// It may stand anywhere in a message, as often as the kernel lets one message carry descriptors (252 times). The
/// receiver gets one of its own for the same open file, close-on-exec; the sender keeps its own. It takes a codec
/// of serde's: [`Postcard`](super::Postcard), [`Json`](super::Json).
///
/// ```
/// use hatchery::rpc::Descriptor;
/// use serde::{Deserialize, Serialize};
///
/// #[derive(Serialize, Deserialize)]
/// struct Parse {
///     document: Descriptor,
///     password: Option<String>,
/// }
///
/// let document = Descriptor::from(std::fs::File::open("/dev/null")?);
/// let call = Parse { document, password: None };
/// # let _ = call;
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Debug)]
pub struct Descriptor(OwnedFd);

impl Descriptor {
    /// The descriptor itself, for `File::from` and its like.
    pub fn into_fd(self) -> OwnedFd {
        self.0
    }
}

impl<T: Into<OwnedFd>> From<T> for Descriptor {
    fn from(fd: T) -> Descriptor {
        Descriptor(fd.into())
    }
}

impl AsFd for Descriptor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

thread_local! {
    /// Those of the message that is being written on this thread.
    static LEAVING: Place<Vec<OwnedFd>> = const { RefCell::new(None) };
    /// Those of the message that is being read on this thread, until they are taken.
    static ARRIVED: Place<Vec<Option<OwnedFd>>> = const { RefCell::new(None) };
    /// Messages on this thread are made up.
    static IMAGINING: Place<()> = const { RefCell::new(None) };
}

/// Where something lies while a message is written or read.
type Place<T> = RefCell<Option<T>>;

/// Puts something there, and back what lay there before, even if the user's code panics meanwhile.
struct Lent<T: 'static> {
    place: &'static LocalKey<Place<T>>,
    outer: Option<T>,
}

impl<T> Lent<T> {
    fn new(place: &'static LocalKey<Place<T>>, inner: T) -> Lent<T> {
        Lent { place, outer: place.replace(Some(inner)) }
    }
}

impl<T> Drop for Lent<T> {
    fn drop(&mut self) {
        self.place.replace(self.outer.take());
    }
}

/// What serde knows it by.
const NAME: &str = "Descriptor";

const ELSEWHERE: &str = "a descriptor travels only inside a message of the RPC";

impl Serialize for Descriptor {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let place = LEAVING.with_borrow_mut(|leaving| {
            let leaving = leaving.as_mut().ok_or_else(|| S::Error::custom(ELSEWHERE))?;
            // The message may wait to be sent, and the sender's own may be closed by then.
            leaving.push(self.0.try_clone().map_err(S::Error::custom)?);
            u32::try_from(leaving.len() - 1).map_err(S::Error::custom)
        })?;
        serializer.serialize_newtype_struct(NAME, &place)
    }
}

impl<'de> Deserialize<'de> for Descriptor {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_newtype_struct(NAME, Arriving)
    }
}

/// Takes the descriptor whose place is read.
struct Arriving;

impl<'de> Visitor<'de> for Arriving {
    type Value = Descriptor;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the place of a descriptor")
    }

    fn visit_newtype_struct<D: Deserializer<'de>>(self, deserializer: D) -> Result<Descriptor, D::Error> {
        let place = u32::deserialize(deserializer)? as usize;
        if IMAGINING.with_borrow(Option::is_some) {
            let (reader, _) = std::io::pipe().map_err(D::Error::custom)?;
            return Ok(Descriptor::from(reader));
        }
        ARRIVED.with_borrow_mut(|arrived| {
            let arrived = arrived.as_mut().ok_or_else(|| D::Error::custom(ELSEWHERE))?;
            let fd = arrived.get_mut(place).and_then(Option::take);
            fd.map(Descriptor).ok_or_else(|| D::Error::custom(format!("descriptor {place} did not come with it")))
        })
    }
}

/// Runs `read`, which may read messages from made-up values: descriptors are made up too.
pub(super) fn imagine<T>(read: impl FnOnce() -> T) -> T {
    let _lent = Lent::new(&IMAGINING, ());
    read()
}

/// Runs `write`, and gives what it has written with the descriptors in it.
pub(super) fn gather<T>(write: impl FnOnce() -> T) -> (T, Vec<OwnedFd>) {
    let _lent = Lent::new(&LEAVING, Vec::new());
    let written = write();
    (written, LEAVING.take().unwrap_or_default())
}

/// Runs `read` with descriptors to take; says how many it has left.
pub(super) fn supply<T>(fds: Vec<OwnedFd>, read: impl FnOnce() -> T) -> (T, usize) {
    let _lent = Lent::new(&ARRIVED, fds.into_iter().map(Some).collect());
    let read = read();
    let left = ARRIVED.take().unwrap_or_default();
    (read, left.iter().flatten().count())
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::panic::catch_unwind;

    use super::*;

    #[test]
    fn descriptors_are_taken_each_once_and_only_inside_a_message() {
        let file = || Descriptor::from(File::open("/dev/null").expect("a file"));
        assert!(postcard::to_allocvec(&file()).is_err());
        let (bytes, fds) = gather(|| postcard::to_allocvec(&[file(), file()]).expect("written"));
        assert_eq!(fds.len(), 2);
        let (read, left) = supply(fds, || postcard::from_bytes::<[Descriptor; 2]>(&bytes));
        assert!(read.is_ok());
        assert_eq!(left, 0);
        let (read, left) = supply(vec![file().into_fd()], || postcard::from_bytes::<[Descriptor; 2]>(&[0, 0]));
        assert!(read.is_err());
        assert_eq!(left, 0);
        assert!(postcard::from_bytes::<Descriptor>(&[0]).is_err());
    }

    #[test]
    fn a_panic_while_a_message_is_written_read_or_made_up_leaves_nothing_behind() {
        let file = || Descriptor::from(File::open("/dev/null").expect("a file"));
        let panicked = [
            catch_unwind(|| imagine(|| panic!("a made-up value, as this test wants it"))),
            catch_unwind(|| {
                let write = || {
                    postcard::to_allocvec(&file()).expect("written");
                    panic!("in the middle of a message, as this test wants it")
                };
                gather(write).0
            }),
            catch_unwind(|| supply(vec![file().into_fd()], || panic!("at its end, as this test wants it")).0),
        ];
        assert!(panicked.iter().all(Result::is_err));
        assert!(postcard::to_allocvec(&file()).is_err());
        assert!(postcard::from_bytes::<Descriptor>(&[0]).is_err());
    }
}
