//! Reading a type from values that are made up as it asks for them, to see what it asks for.
//!
//! One reading sees one variant of each enum and one end of each recursion, so the type is read again and again until
//! nothing new is seen.

use std::fmt::Display;

use serde::Deserializer;
use serde::de::{
    self, DeserializeOwned, DeserializeSeed, EnumAccess, IntoDeserializer, MapAccess, SeqAccess, VariantAccess, Visitor,
};

use super::Shape;
use crate::rpc::descriptor;

/// So often a type is read at most, and so many values it is given in all.
const READINGS: usize = 2_000;
const VALUES: usize = 200_000;

/// After so many readings without news there will be none.
const QUIET: usize = 64;

/// So deep types may lie inside each other.
const DEEPEST: usize = 64;

/// The shape of a type, as far as it is to be seen.
pub(super) fn shape_of<T: DeserializeOwned>(human_readable: bool) -> Shape {
    let mut root = Shape::Open;
    let mut reader = Reader { human_readable, reading: 0, values: 0, inside: Vec::new(), unnoted: 0, quiet: 0 };
    while reader.reading < READINGS && reader.values < VALUES && reader.quiet < QUIET && !root.is_whole() {
        reader.quiet += 1;
        reader.inside.clear();
        reader.unnoted = 0;
        // A failed reading has shown something, too.
        let _ = descriptor::imagine(|| T::deserialize(Tracer { shape: &mut root, reader: &mut reader }).map(drop));
        reader.reading += 1;
    }
    root
}

/// The readings of one type.
struct Reader {
    human_readable: bool,
    reading: usize,
    values: usize,
    /// The types that are being read, the outermost first.
    inside: Vec<&'static str>,
    /// So many of them lie inside themselves, and what they are read from is not noted.
    unnoted: usize,
    /// So many readings have shown nothing new.
    quiet: usize,
}

/// Why a reading ends; nobody asks.
#[derive(Debug, thiserror::Error)]
#[error("no such value can be made up")]
struct Refused;

impl de::Error for Refused {
    fn custom<T: Display>(_: T) -> Refused {
        Refused
    }
}

/// Makes up one value and notes its shape.
struct Tracer<'a> {
    shape: &'a mut Shape,
    reader: &'a mut Reader,
}

impl<'a> Tracer<'a> {
    /// What the type asks for is of this shape.
    fn note(&mut self, shape: impl FnOnce() -> Shape) -> Result<(), Refused> {
        self.reader.values += 1;
        if self.reader.values > VALUES || self.reader.inside.len() > DEEPEST {
            return Err(Refused);
        }
        if *self.shape == Shape::Open {
            *self.shape = shape();
            if self.reader.unnoted == 0 {
                self.reader.quiet = 0;
            }
        }
        Ok(())
    }

    /// Reads a type with a name. Inside itself it is its name alone, and what it is then read from is not noted.
    fn named<T>(
        mut self,
        name: &'static str,
        shape: impl Fn() -> Shape,
        read: impl FnOnce(&mut Shape, &mut Reader) -> Result<T, Refused>,
    ) -> Result<T, Refused> {
        let again = self.reader.inside.contains(&name);
        self.note(|| if again { Shape::Leaf(name) } else { shape() })?;
        self.reader.inside.push(name);
        let read = if again {
            self.reader.unnoted += 1;
            let read = read(&mut shape(), self.reader);
            self.reader.unnoted -= 1;
            read
        } else {
            read(self.shape, self.reader)
        };
        self.reader.inside.pop();
        read
    }
}

macro_rules! leaves {
    ($($deserialize:ident $visit:ident $name:literal $value:expr;)+) => {
        $(fn $deserialize<V: Visitor<'de>>(mut self, visitor: V) -> Result<V::Value, Refused> {
            self.note(|| Shape::Leaf($name))?;
            visitor.$visit($value)
        })+
    };
}

impl<'de> Deserializer<'de> for Tracer<'_> {
    type Error = Refused;

    // Zero is refused by some types, and one by hardly any.
    leaves! {
        deserialize_bool visit_bool "bool" false;
        deserialize_i8 visit_i8 "i8" 1;
        deserialize_i16 visit_i16 "i16" 1;
        deserialize_i32 visit_i32 "i32" 1;
        deserialize_i64 visit_i64 "i64" 1;
        deserialize_i128 visit_i128 "i128" 1;
        deserialize_u8 visit_u8 "u8" 1;
        deserialize_u16 visit_u16 "u16" 1;
        deserialize_u32 visit_u32 "u32" 1;
        deserialize_u64 visit_u64 "u64" 1;
        deserialize_u128 visit_u128 "u128" 1;
        deserialize_f32 visit_f32 "f32" 1.0;
        deserialize_f64 visit_f64 "f64" 1.0;
        deserialize_char visit_char "char" 'a';
        deserialize_str visit_str "text" "";
        deserialize_string visit_string "text" String::new();
        deserialize_bytes visit_bytes "bytes" &[];
        deserialize_byte_buf visit_byte_buf "bytes" Vec::new();
    }

    fn deserialize_any<V: Visitor<'de>>(mut self, visitor: V) -> Result<V::Value, Refused> {
        self.note(|| Shape::Leaf("any"))?;
        visitor.visit_unit()
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refused> {
        self.deserialize_any(visitor)
    }

    fn deserialize_identifier<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refused> {
        self.deserialize_any(visitor)
    }

    fn deserialize_unit<V: Visitor<'de>>(mut self, visitor: V) -> Result<V::Value, Refused> {
        self.note(|| Shape::Leaf("()"))?;
        visitor.visit_unit()
    }

    fn deserialize_unit_struct<V: Visitor<'de>>(mut self, name: &'static str, visitor: V) -> Result<V::Value, Refused> {
        self.note(|| Shape::Leaf(name))?;
        visitor.visit_unit()
    }

    fn deserialize_option<V: Visitor<'de>>(mut self, visitor: V) -> Result<V::Value, Refused> {
        self.note(|| Shape::Option(Box::default()))?;
        let Shape::Option(inner) = &mut *self.shape else { return Err(Refused) };
        if inner.is_whole() || self.reader.unnoted > 0 {
            return visitor.visit_none();
        }
        visitor.visit_some(Tracer { shape: inner, reader: self.reader })
    }

    fn deserialize_seq<V: Visitor<'de>>(mut self, visitor: V) -> Result<V::Value, Refused> {
        self.note(|| Shape::Seq(Box::default()))?;
        let Shape::Seq(inner) = &mut *self.shape else { return Err(Refused) };
        let is_enough = inner.is_whole() || self.reader.unnoted > 0;
        let items = if is_enough { &mut [] } else { std::slice::from_mut(&mut **inner) };
        visitor.visit_seq(Items { items: items.iter_mut(), reader: self.reader })
    }

    fn deserialize_map<V: Visitor<'de>>(mut self, visitor: V) -> Result<V::Value, Refused> {
        self.note(|| Shape::Map(Box::default()))?;
        let Shape::Map(inner) = &mut *self.shape else { return Err(Refused) };
        let is_enough = inner.iter().all(Shape::is_whole) || self.reader.unnoted > 0;
        let items = if is_enough { &mut inner[..0] } else { &mut inner[..] };
        visitor.visit_map(Items { items: items.iter_mut(), reader: self.reader })
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, name: &'static str, visitor: V) -> Result<V::Value, Refused> {
        self.named(
            name,
            || Shape::Newtype(name, Box::default()),
            |shape, reader| {
                let Shape::Newtype(_, inner) = shape else { return Err(Refused) };
                visitor.visit_newtype_struct(Tracer { shape: inner, reader })
            },
        )
    }

    fn deserialize_tuple<V: Visitor<'de>>(mut self, length: usize, visitor: V) -> Result<V::Value, Refused> {
        self.note(|| tuple("", length))?;
        let Shape::Tuple(_, items) = &mut *self.shape else { return Err(Refused) };
        visitor.visit_seq(Items { items: items.iter_mut(), reader: self.reader })
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        length: usize,
        visitor: V,
    ) -> Result<V::Value, Refused> {
        self.named(
            name,
            || tuple(name, length),
            |shape, reader| {
                let Shape::Tuple(_, items) = shape else { return Err(Refused) };
                visitor.visit_seq(Items { items: items.iter_mut(), reader })
            },
        )
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Refused> {
        self.named(
            name,
            || structure(name, fields),
            |shape, reader| {
                let Shape::Struct(_, _, items) = shape else { return Err(Refused) };
                visitor.visit_seq(Items { items: items.iter_mut(), reader })
            },
        )
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Refused> {
        let open = || Shape::Enum(name, variants, open(variants.len()));
        self.named(name, open, |shape, reader| {
            let Shape::Enum(_, _, items) = shape else { return Err(Refused) };
            let unseen = items.iter().position(|variant| !variant.is_whole());
            // In turn: one of them ends a recursion. An unseen one may be what this type is not read from.
            let turn = reader.reading % variants.len().max(1);
            let index = if reader.unnoted > 0 { turn } else { unseen.unwrap_or(turn) };
            let variant = items.get_mut(index).ok_or(Refused)?;
            visitor.visit_enum(Variant { index, tracer: Tracer { shape: variant, reader } })
        })
    }

    fn is_human_readable(&self) -> bool {
        self.reader.human_readable
    }
}

fn open(count: usize) -> Vec<Shape> {
    std::iter::repeat_with(Shape::default).take(count).collect()
}

fn tuple(name: &'static str, length: usize) -> Shape {
    // What is as long as that is an array of something, which a few items tell as well.
    match length {
        0..=256 => Shape::Tuple(name, open(length)),
        _ => Shape::Leaf("long array"),
    }
}

fn structure(name: &'static str, fields: &'static [&'static str]) -> Shape {
    Shape::Struct(name, fields, open(fields.len()))
}

/// The items of what has several.
struct Items<'a> {
    items: std::slice::IterMut<'a, Shape>,
    reader: &'a mut Reader,
}

impl<'de> SeqAccess<'de> for Items<'_> {
    type Error = Refused;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Refused> {
        let Some(shape) = self.items.next() else { return Ok(None) };
        seed.deserialize(Tracer { shape, reader: &mut *self.reader }).map(Some)
    }
}

impl<'de> MapAccess<'de> for Items<'_> {
    type Error = Refused;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Refused> {
        self.next_element_seed(seed)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Refused> {
        self.next_element_seed(seed)?.ok_or(Refused)
    }
}

/// One variant of an enum.
struct Variant<'a> {
    index: usize,
    tracer: Tracer<'a>,
}

impl<'de, 'a> EnumAccess<'de> for Variant<'a> {
    type Error = Refused;
    type Variant = Tracer<'a>;

    fn variant_seed<V: DeserializeSeed<'de>>(self, seed: V) -> Result<(V::Value, Tracer<'a>), Refused> {
        let index: de::value::U64Deserializer<Refused> = (self.index as u64).into_deserializer();
        Ok((seed.deserialize(index)?, self.tracer))
    }
}

impl<'de> VariantAccess<'de> for Tracer<'_> {
    type Error = Refused;

    fn unit_variant(mut self) -> Result<(), Refused> {
        self.note(|| Shape::Leaf("()"))
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(mut self, seed: T) -> Result<T::Value, Refused> {
        self.note(|| Shape::Newtype("", Box::default()))?;
        let Shape::Newtype(_, inner) = &mut *self.shape else { return Err(Refused) };
        seed.deserialize(Tracer { shape: inner, reader: self.reader })
    }

    fn tuple_variant<V: Visitor<'de>>(self, length: usize, visitor: V) -> Result<V::Value, Refused> {
        self.deserialize_tuple(length, visitor)
    }

    fn struct_variant<V: Visitor<'de>>(
        mut self,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Refused> {
        self.note(|| structure("", fields))?;
        let Shape::Struct(_, _, items) = &mut *self.shape else { return Err(Refused) };
        visitor.visit_seq(Items { items: items.iter_mut(), reader: self.reader })
    }
}
