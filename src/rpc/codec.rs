//! How messages are written as bytes.

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::shape;
use crate::proc::BoxError;

/// A way to write messages of the type `T` as bytes, and to read them.
///
/// One codec serves a whole conversation: calls, replies and events. Master and process tell each other its name at the
/// start, so two that do not understand each other never exchange a call.
///
/// One of your own is a type without values:
///
/// ```
/// use hatchery::proc::BoxError;
/// use hatchery::rpc::Codec;
///
/// /// Texts, as they are.
/// enum Text {}
///
/// impl Codec<String> for Text {
///     const NAME: &'static str = "text";
///
///     fn encode(message: &String, into: &mut Vec<u8>) -> Result<(), BoxError> {
///         into.extend_from_slice(message.as_bytes());
///         Ok(())
///     }
///
///     fn decode(bytes: &[u8]) -> Result<String, BoxError> {
///         Ok(std::str::from_utf8(bytes)?.to_owned())
///     }
/// }
///
/// let mut bytes = Vec::new();
/// Text::encode(&"cat".to_owned(), &mut bytes)?;
/// assert_eq!(Text::decode(&bytes)?, "cat");
/// # Ok::<(), BoxError>(())
/// ```
pub trait Codec<T>: 'static {
    /// What both sides call it; another way of writing needs another name.
    const NAME: &'static str;

    /// Appends the message.
    ///
    /// # Errors
    /// The message cannot be written; the call, reply or event is not sent.
    fn encode(message: &T, into: &mut Vec<u8>) -> Result<(), BoxError>;

    /// Reads a message from exactly these bytes.
    ///
    /// # Errors
    /// They are not such a message. That ends the conversation: the two sides do not understand each other.
    fn decode(bytes: &[u8]) -> Result<T, BoxError>;

    /// How messages of the type are laid out, so that two sides whose types have the same name but not the same
    /// fields find out at the start. For [`Postcard`] and `Json` it is found by itself, from what the type's `Deserialize`
    /// asks for; by default it is empty, and the type's name is all that is compared.
    fn shape() -> String {
        String::new()
    }

    /// The message as the bytes that [`encode`](Codec::encode) would append, where it holds them as they are: then long
    /// ones are not copied to be sent. By default it does not.
    fn as_bytes(message: &T) -> Option<&[u8]> {
        let _ = message;
        None
    }

    /// As [`decode`](Codec::decode), of bytes that the message may keep; by default it does not.
    ///
    /// # Errors
    /// As `decode`.
    fn decode_owned(bytes: Vec<u8>) -> Result<T, BoxError> {
        Self::decode(&bytes)
    }
}

/// Any type of serde's, in few bytes: the format [Postcard](https://postcard.jamesmunns.com). The default.
///
/// A `Vec<u8>` is written byte by byte, which takes its time: for long ones use `serde_bytes`, or [`Octets`].
#[derive(Debug)]
pub enum Postcard {}

impl<T: Serialize + DeserializeOwned> Codec<T> for Postcard {
    const NAME: &'static str = "postcard";

    fn encode(message: &T, into: &mut Vec<u8>) -> Result<(), BoxError> {
        *into = postcard::to_extend(message, std::mem::take(into))?;
        Ok(())
    }

    fn decode(bytes: &[u8]) -> Result<T, BoxError> {
        match postcard::take_from_bytes(bytes)? {
            (message, []) => Ok(message),
            (_, left) => Err(format!("{} bytes are left over", left.len()).into()),
        }
    }

    fn shape() -> String {
        shape::of::<T>(false)
    }
}

/// Any type of serde's, as JSON (RFC 8259): for a look at what is said, or a program in another language.
#[cfg(feature = "json")]
#[derive(Debug)]
pub enum Json {}

#[cfg(feature = "json")]
impl<T: Serialize + DeserializeOwned> Codec<T> for Json {
    const NAME: &'static str = "json";

    fn encode(message: &T, into: &mut Vec<u8>) -> Result<(), BoxError> {
        Ok(serde_json::to_writer(into, message)?)
    }

    fn decode(bytes: &[u8]) -> Result<T, BoxError> {
        Ok(serde_json::from_slice(bytes)?)
    }

    fn shape() -> String {
        shape::of::<T>(true)
    }
}

/// Bytes as they are, for `Vec<u8>`; and `()`, for calls, replies or events that say nothing.
#[derive(Debug)]
pub enum Octets {}

impl Codec<Vec<u8>> for Octets {
    const NAME: &'static str = "octets";

    fn encode(message: &Vec<u8>, into: &mut Vec<u8>) -> Result<(), BoxError> {
        into.extend_from_slice(message);
        Ok(())
    }

    fn decode(bytes: &[u8]) -> Result<Vec<u8>, BoxError> {
        Ok(bytes.to_vec())
    }

    fn as_bytes(message: &Vec<u8>) -> Option<&[u8]> {
        Some(message)
    }

    fn decode_owned(bytes: Vec<u8>) -> Result<Vec<u8>, BoxError> {
        Ok(bytes)
    }
}

impl Codec<()> for Octets {
    const NAME: &'static str = "octets";

    fn encode((): &(), _: &mut Vec<u8>) -> Result<(), BoxError> {
        Ok(())
    }

    fn decode(bytes: &[u8]) -> Result<(), BoxError> {
        if bytes.is_empty() { Ok(()) } else { Err(format!("{} bytes where none belong", bytes.len()).into()) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn round_trip<C: Codec<T>, T>(message: &T) -> T {
        let mut bytes = Vec::new();
        C::encode(message, &mut bytes).expect("written");
        assert!(C::as_bytes(message).is_none_or(|own| own == bytes));
        C::decode(&bytes).expect("read")
    }

    proptest! {
        #[test]
        fn every_codec_gives_back_what_it_was_given(text: String, numbers: Vec<u32>, octets: Vec<u8>) {
            let message = (text, numbers);
            prop_assert_eq!(&round_trip::<Postcard, _>(&message), &message);
            #[cfg(feature = "json")]
            prop_assert_eq!(&round_trip::<Json, _>(&message), &message);
            prop_assert_eq!(&round_trip::<Octets, _>(&octets), &octets);
            prop_assert_eq!(&<Octets as Codec<Vec<u8>>>::decode_owned(octets.clone()).expect("read"), &octets);
        }

        #[test]
        fn noise_never_panics(noise: Vec<u8>) {
            let _ = <Postcard as Codec<(String, Vec<u32>)>>::decode(&noise);
            #[cfg(feature = "json")]
            let _ = <Json as Codec<(String, Vec<u32>)>>::decode(&noise);
        }
    }

    #[test]
    fn bytes_left_over_are_an_error() {
        assert!(<Postcard as Codec<u8>>::decode(&[1, 2]).is_err());
        assert!(<Octets as Codec<()>>::decode(&[1]).is_err());
    }
}
