//! The encodings of sets, maps and atoms (RFC 7047, section 5.1), read into Rust types.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::marker::PhantomData;

use serde::Deserialize;
use serde::de::{self, DeserializeSeed, Deserializer, SeqAccess, Visitor};

use super::{AtomRef, Name, Scalar};

/// Container for the elements of a set.
pub(super) trait Elements<A>: Default {
    /// True if there was room for `element`.
    fn put(&mut self, element: A) -> bool;
}

impl<A> Elements<A> for Option<A> {
    fn put(&mut self, element: A) -> bool {
        self.replace(element).is_none()
    }
}

impl<A: Ord> Elements<A> for BTreeSet<A> {
    fn put(&mut self, element: A) -> bool {
        self.insert(element);
        true
    }
}

fn typed<A: Scalar, E: de::Error>(atom: AtomRef<'_>) -> Result<A, E> {
    A::from_atom(atom)
        .ok_or_else(|| E::custom(format_args!("{atom:?} where a value of type {} belongs", A::TYPE)))
}

fn integer<E: de::Error>(value: u64) -> Result<AtomRef<'static>, E> {
    i64::try_from(value)
        .map(AtomRef::Integer)
        .map_err(|_| E::custom(format_args!("{value} does not fit a 64-bit integer")))
}

macro_rules! visit_atoms {
    ($take:expr) => {
        fn visit_i64<E: de::Error>(self, value: i64) -> Result<Self::Value, E> {
            $take(AtomRef::Integer(value))
        }

        fn visit_u64<E: de::Error>(self, value: u64) -> Result<Self::Value, E> {
            $take(integer(value)?)
        }

        fn visit_f64<E: de::Error>(self, value: f64) -> Result<Self::Value, E> {
            $take(AtomRef::Real(value))
        }

        fn visit_bool<E: de::Error>(self, value: bool) -> Result<Self::Value, E> {
            $take(AtomRef::Boolean(value))
        }

        fn visit_str<E: de::Error>(self, value: &str) -> Result<Self::Value, E> {
            $take(AtomRef::String(value))
        }
    };
}

/// Reads one atom.
struct AtomVisitor<A>(PhantomData<A>);

impl<'de, A: Scalar> DeserializeSeed<'de> for AtomVisitor<A> {
    type Value = A;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<A, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de, A: Scalar> Visitor<'de> for AtomVisitor<A> {
    type Value = A;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "a value of type {}", A::TYPE)
    }

    visit_atoms!(typed);

    fn visit_seq<S: SeqAccess<'de>>(self, mut items: S) -> Result<A, S::Error> {
        match tag(&mut items)?.0.as_ref() {
            "uuid" => typed(AtomRef::Uuid(contents(&mut items)?)),
            other => {
                Err(de::Error::custom(format_args!("{other:?} where a value of type {} belongs", A::TYPE)))
            }
        }
    }
}

/// Reads a set: `["set", [...]]`, or its only element by itself.
pub(super) struct SetVisitor<A, C>(pub(super) PhantomData<(A, C)>);

impl<A: Scalar, C: Elements<A>> SetVisitor<A, C> {
    fn single<E: de::Error>(atom: AtomRef<'_>) -> Result<C, E> {
        let mut set = C::default();
        set.put(typed(atom)?);
        Ok(set)
    }
}

impl<'de, A: Scalar, C: Elements<A>> Visitor<'de> for SetVisitor<A, C> {
    type Value = C;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "a set of {}", A::TYPE)
    }

    visit_atoms!(Self::single);

    fn visit_seq<S: SeqAccess<'de>>(self, mut items: S) -> Result<C, S::Error> {
        match tag(&mut items)?.0.as_ref() {
            "set" => items.next_element_seed(ElementsVisitor::<A, C>(PhantomData))?.ok_or_else(short),
            "uuid" => Self::single(AtomRef::Uuid(contents(&mut items)?)),
            other => Err(de::Error::custom(format_args!("{other:?} where a set of {} belongs", A::TYPE))),
        }
    }
}

/// Reads the list of a set's elements.
struct ElementsVisitor<A, C>(PhantomData<(A, C)>);

impl<'de, A: Scalar, C: Elements<A>> DeserializeSeed<'de> for ElementsVisitor<A, C> {
    type Value = C;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<C, D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de, A: Scalar, C: Elements<A>> Visitor<'de> for ElementsVisitor<A, C> {
    type Value = C;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "a list of {}", A::TYPE)
    }

    fn visit_seq<S: SeqAccess<'de>>(self, mut items: S) -> Result<C, S::Error> {
        let mut set = C::default();
        while let Some(element) = items.next_element_seed(AtomVisitor(PhantomData))? {
            if !set.put(element) {
                return Err(de::Error::custom("several values where at most one belongs"));
            }
        }
        Ok(set)
    }
}

/// Reads a map: `["map", [[key, value], ...]]`.
pub(super) struct MapVisitor<K, V>(pub(super) PhantomData<(K, V)>);

impl<'de, K: Scalar + Ord, V: Scalar> Visitor<'de> for MapVisitor<K, V> {
    type Value = BTreeMap<K, V>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "a map from {} to {}", K::TYPE, V::TYPE)
    }

    fn visit_seq<S: SeqAccess<'de>>(self, mut items: S) -> Result<Self::Value, S::Error> {
        match tag(&mut items)?.0.as_ref() {
            "map" => items.next_element_seed(PairsVisitor(PhantomData))?.ok_or_else(short),
            other => Err(de::Error::custom(format_args!("{other:?} where a map belongs"))),
        }
    }
}

/// Reads the list of a map's pairs.
struct PairsVisitor<K, V>(PhantomData<(K, V)>);

impl<'de, K: Scalar + Ord, V: Scalar> DeserializeSeed<'de> for PairsVisitor<K, V> {
    type Value = BTreeMap<K, V>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de, K: Scalar + Ord, V: Scalar> Visitor<'de> for PairsVisitor<K, V> {
    type Value = BTreeMap<K, V>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a list of pairs")
    }

    fn visit_seq<S: SeqAccess<'de>>(self, mut items: S) -> Result<Self::Value, S::Error> {
        let mut map = BTreeMap::new();
        while let Some((key, value)) = items.next_element_seed(PairVisitor(PhantomData))? {
            map.insert(key, value);
        }
        Ok(map)
    }
}

/// Reads one pair of a map.
struct PairVisitor<K, V>(PhantomData<(K, V)>);

impl<'de, K: Scalar, V: Scalar> DeserializeSeed<'de> for PairVisitor<K, V> {
    type Value = (K, V);

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(K, V), D::Error> {
        deserializer.deserialize_tuple(2, self)
    }
}

impl<'de, K: Scalar, V: Scalar> Visitor<'de> for PairVisitor<K, V> {
    type Value = (K, V);

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a pair of key and value")
    }

    fn visit_seq<S: SeqAccess<'de>>(self, mut items: S) -> Result<(K, V), S::Error> {
        let key = items.next_element_seed(AtomVisitor(PhantomData))?.ok_or_else(short)?;
        let value = items.next_element_seed(AtomVisitor(PhantomData))?.ok_or_else(short)?;
        Ok((key, value))
    }
}

fn tag<'de, S: SeqAccess<'de>>(items: &mut S) -> Result<Name<'de>, S::Error> {
    items.next_element()?.ok_or_else(short)
}

fn contents<'de, T: Deserialize<'de>, S: SeqAccess<'de>>(items: &mut S) -> Result<T, S::Error> {
    items.next_element()?.ok_or_else(short)
}

fn short<E: de::Error>() -> E {
    E::custom("a list that ends too early")
}
