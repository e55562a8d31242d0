//! The shape of a type as text, and what two sides compare of it.
//!
//! It is found by [`reading`] the type from made-up values, so a type needs nothing beside serde's `Deserialize`. What a type does
//! not tell (it refuses a made-up value, or asks for just anything) stays open: the shape is then less telling, but the
//! same on both sides all the same.

mod reading;

use std::fmt::{self, Display, Write};

use serde::de::DeserializeOwned;

/// A longer shape is cut, and a hash stands for the rest, so that it fits the first datagram. In bytes.
const LONGEST: usize = 4 << 10;

/// The shape of a type as text: equal for types that are written alike, and never empty.
pub(super) fn of<T: DeserializeOwned>(human_readable: bool) -> String {
    shortened(reading::shape_of::<T>(human_readable).to_string())
}

/// Whether two shapes may be the same: what was not seen on one side (a made-up descriptor needs a real one, for example)
/// may be anything.
pub(super) fn agree(one: &str, other: &str) -> bool {
    let (mut one, mut other) = (one.as_bytes(), other.as_bytes());
    loop {
        let same = one.iter().zip(other).take_while(|(a, b)| a == b && **a != OPEN).count();
        (one, other) = (&one[same..], &other[same..]);
        match (one.first(), other.first()) {
            (None, None) => return true,
            (one, other) if one != Some(&OPEN) && other != Some(&OPEN) => return false,
            _ => (one, other) = (after_one(one), after_one(other)),
        }
    }
}

/// How a shape that was not seen is written.
const OPEN: u8 = b'?';

/// What follows the shape at the beginning.
fn after_one(text: &[u8]) -> &[u8] {
    let mut depth = 0;
    let end = text.iter().position(|&byte| {
        match byte {
            b'(' | b'{' | b'[' | b'<' => depth += 1,
            b')' | b'}' | b']' | b'>' => depth -= 1,
            _ => {}
        }
        depth < 0 || (depth == 0 && byte == b',')
    });
    &text[end.unwrap_or(text.len())..]
}

fn shortened(mut text: String) -> String {
    if text.len() > LONGEST {
        let hash = text.bytes().fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| {
            // FNV-1a: no guard against malice, which a process could do in simpler ways.
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        text.truncate(text.floor_char_boundary(LONGEST));
        // Writing to a string cannot fail.
        let _ = write!(text, "… #{hash:016x}");
    }
    text
}

/// What is known of a type.
#[derive(Debug, Default, PartialEq, Eq)]
enum Shape {
    /// Not yet seen.
    #[default]
    Open,
    /// Numbers, texts and the like; or a type that lies inside itself, by its name.
    Leaf(&'static str),
    Option(Box<Shape>),
    Seq(Box<Shape>),
    Map(Box<[Shape; 2]>),
    Newtype(&'static str, Box<Shape>),
    Tuple(&'static str, Vec<Shape>),
    Struct(&'static str, &'static [&'static str], Vec<Shape>),
    Enum(&'static str, &'static [&'static str], Vec<Shape>),
}

impl Shape {
    /// Whether another reading would show nothing new.
    fn is_whole(&self) -> bool {
        match self {
            Shape::Open => false,
            Shape::Leaf(_) => true,
            Shape::Option(inner) | Shape::Seq(inner) | Shape::Newtype(_, inner) => inner.is_whole(),
            Shape::Map(inner) => inner.iter().all(Shape::is_whole),
            Shape::Tuple(_, inner) | Shape::Struct(_, _, inner) | Shape::Enum(_, _, inner) => {
                inner.iter().all(Shape::is_whole)
            }
        }
    }
}

impl Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fn list(f: &mut fmt::Formatter<'_>, items: &[Shape], names: &[&str], between: &str) -> fmt::Result {
            for (index, item) in items.iter().enumerate() {
                f.write_str(if index == 0 { "" } else { ", " })?;
                match names.get(index) {
                    Some(name) => write!(f, "{name}{between}{item}")?,
                    None => write!(f, "{item}")?,
                }
            }
            Ok(())
        }
        match self {
            Shape::Open => f.write_str("?"),
            Shape::Leaf(name) => f.write_str(name),
            Shape::Option(inner) => write!(f, "Option<{inner}>"),
            Shape::Seq(inner) => write!(f, "[{inner}]"),
            Shape::Map(inner) => write!(f, "{{{}: {}}}", inner[0], inner[1]),
            Shape::Newtype(name, inner) => write!(f, "{name}({inner})"),
            Shape::Tuple(name, items) => {
                write!(f, "{name}(")?;
                list(f, items, &[], "")?;
                f.write_str(")")
            }
            Shape::Struct(name, names, items) => {
                write!(f, "{name}{{")?;
                list(f, items, names, ": ")?;
                f.write_str("}")
            }
            Shape::Enum(name, names, items) => {
                write!(f, "{name}<")?;
                list(f, items, names, " ")?;
                f.write_str(">")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, HashSet};
    use std::num::NonZeroU16;
    use std::time::Duration;

    use serde::Deserialize;

    use super::*;
    use crate::rpc::Descriptor;

    /// The same name for types of different shapes, as two versions of a program have.
    macro_rules! version {
        ($module:ident: $($item:item)+) => {
            #[allow(dead_code, reason = "only their shapes count")]
            mod $module {
                use super::*;
                $(#[derive(Deserialize)] $item)+
            }
        };
    }

    version!(first: pub struct Call { pub text: String, pub limit: u32 });
    version!(renamed: pub struct Call { pub text: String, pub most: u32 });
    version!(widened: pub struct Call { pub text: String, pub limit: u64 });
    version!(longer: pub struct Call { pub text: String, pub limit: u32, pub dry: bool });
    version!(reordered: pub struct Call { pub limit: u32, pub text: String });
    version!(optional: pub struct Call { pub text: String, pub limit: Option<u32> });

    #[test]
    fn a_type_that_keeps_its_name_and_changes_its_fields_changes_its_shape() {
        let shapes = [
            of::<first::Call>(false),
            of::<renamed::Call>(false),
            of::<widened::Call>(false),
            of::<longer::Call>(false),
            of::<reordered::Call>(false),
            of::<optional::Call>(false),
        ];
        assert_eq!(shapes[0], "Call{text: text, limit: u32}");
        assert_eq!(shapes[5], "Call{text: text, limit: Option<u32>}");
        assert_eq!(shapes.iter().collect::<HashSet<_>>().len(), shapes.len(), "{shapes:?}");
    }

    version!(many:
        pub enum Act { Stop, Say(String), Move { x: i8, y: i16 }, Pair(u8, char), Deep(Option<Vec<Act>>), Last(f64) }
        pub struct Node { pub next: Option<Box<Node>>, pub children: Vec<Node>, pub name: String }
        pub enum Tree { Add(Box<Tree>, Box<Tree>), Number(u64), Named { of: Box<Tree>, name: String } }
        pub struct Id(pub NonZeroU16);
        pub struct Unit;
    );

    #[test]
    fn all_variants_and_what_lies_behind_a_recursion_are_seen() {
        assert_eq!(
            of::<many::Act>(false),
            "Act<Stop (), Say (text), Move {x: i8, y: i16}, Pair (u8, char), Deep (Option<[Act]>), Last (f64)>"
        );
        assert_eq!(of::<many::Node>(false), "Node{next: Option<Node>, children: [Node], name: text}");
        assert_eq!(of::<many::Tree>(false), "Tree<Add (Tree, Tree), Number (u64), Named {of: Tree, name: text}>");
    }

    #[test]
    fn types_of_the_standard_library_have_shapes_too() {
        assert_eq!(of::<u32>(false), "u32");
        assert_eq!(of::<()>(false), "()");
        assert_eq!(of::<many::Unit>(false), "Unit");
        assert_eq!(of::<Vec<(u8, many::Id)>>(false), "[(u8, Id(u16))]");
        assert_eq!(of::<BTreeMap<String, [bool; 2]>>(false), "{text: (bool, bool)}");
        assert_eq!(of::<Duration>(false), "Duration{secs: u64, nanos: u32}");
        assert_eq!(of::<Result<u8, String>>(false), "Result<Ok (u8), Err (text)>");
        // Written in another way for people.
        assert_ne!(of::<std::net::Ipv4Addr>(false), of::<std::net::Ipv4Addr>(true));
    }

    #[test]
    fn what_was_not_seen_agrees_with_anything_and_all_else_must_be_the_same() {
        for (one, other) in [
            ("A{x: u8, y: ?}", "A{x: u8, y: B{z: [u8], w: (u8, u8)}}"),
            ("A{x: ?, y: u8}", "A{x: Option<B<C (u8), D ()>>, y: u8}"),
            ("?", "[u8]"),
            ("(?, ?)", "(u8, ?)"),
            ("", ""),
        ] {
            assert!(agree(one, other) && agree(other, one), "{one} and {other}");
        }
        for (one, other) in [
            ("A{x: ?, y: u8}", "A{x: B{z: u8}, y: u16}"),
            ("A{x: ?}", "A{x: u8, y: u8}"),
            ("u8", "u16"),
            ("u8", ""),
            ("é", "è"),
        ] {
            assert!(!agree(one, other) && !agree(other, one), "{one} and {other}");
        }
    }

    #[test]
    fn a_descriptor_hides_nothing_behind_it() {
        assert_eq!(of::<(Descriptor, bool, Descriptor, u8)>(false), "(Descriptor(u32), bool, Descriptor(u32), u8)");
    }

    #[test]
    fn a_shape_that_is_very_long_is_cut_and_tells_apart_all_the_same() {
        type Ten<T> = (T, T, T, T, T, T, T, T, T, T);
        let (one, other) = (of::<Ten<Ten<Ten<u8>>>>(false), of::<Ten<(Ten<Ten<u8>>, u8)>>(false));
        assert!(one.len() < LONGEST + 100);
        assert_ne!(one, other);
        assert_eq!(one, of::<Ten<Ten<Ten<u8>>>>(false));
    }
}
