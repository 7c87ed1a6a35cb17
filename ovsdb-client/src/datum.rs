//! The Rust types a replicated column can have, and how each takes a value or a difference from the wire.

mod visitor;

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::marker::PhantomData;

use serde::Deserialize;
use serde::de::{self, Deserializer};
use uuid::Uuid;

use crate::schema::{AtomicType, ColumnType};
use crate::value::{Atom, Value};
use visitor::{MapVisitor, SetVisitor};

/// A column's Rust type: `String`, `i64`, `f64`, `bool`, [`Uuid`], `Option` and `BTreeSet` of these, and `BTreeMap`.
pub trait Datum: Default + Clone + PartialEq + fmt::Debug + Send + Sync + 'static {
    /// Reads a complete value.
    fn parse<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error>;

    /// Applies a difference as `update2` and `update3` carry it (ovsdb-server(7), section 4.1.14).
    fn apply_difference(&mut self, difference: Self);

    /// True if this type can hold every value of a column of type `column`.
    fn accepts(column: &ColumnType) -> bool;

    /// The type in the words of the schema, for error messages.
    fn describe() -> String;

    /// The value as it is sent.
    fn to_value(&self) -> Value;
}

/// A Rust type for a single value of a column.
pub trait Scalar: Clone + PartialEq + fmt::Debug + Send + Sync + 'static {
    /// The type of the schema that it stands for.
    const TYPE: AtomicType;

    /// The value, if it is of the right type.
    fn from_atom(atom: AtomRef<'_>) -> Option<Self>;

    /// The value as it is sent.
    fn to_atom(&self) -> Atom;
}

/// A single value as it was read.
#[derive(Debug, Clone, Copy)]
pub enum AtomRef<'a> {
    /// A number without a fraction.
    Integer(i64),
    /// A number with one.
    Real(f64),
    /// A truth value.
    Boolean(bool),
    /// A string.
    String(&'a str),
    /// The identity of a row.
    Uuid(Uuid),
}

impl Scalar for i64 {
    const TYPE: AtomicType = AtomicType::Integer;

    fn from_atom(atom: AtomRef<'_>) -> Option<Self> {
        if let AtomRef::Integer(value) = atom { Some(value) } else { None }
    }

    fn to_atom(&self) -> Atom {
        Atom::Integer(*self)
    }
}

impl Scalar for f64 {
    const TYPE: AtomicType = AtomicType::Real;

    fn from_atom(atom: AtomRef<'_>) -> Option<Self> {
        match atom {
            AtomRef::Real(value) => Some(value),
            // JSON does not tell 1.0 from 1: the server writes whole reals without a fraction.
            AtomRef::Integer(value) => Some(value as f64),
            _ => None,
        }
    }

    fn to_atom(&self) -> Atom {
        Atom::Real(*self)
    }
}

impl Scalar for bool {
    const TYPE: AtomicType = AtomicType::Boolean;

    fn from_atom(atom: AtomRef<'_>) -> Option<Self> {
        if let AtomRef::Boolean(value) = atom { Some(value) } else { None }
    }

    fn to_atom(&self) -> Atom {
        Atom::Boolean(*self)
    }
}

impl Scalar for String {
    const TYPE: AtomicType = AtomicType::String;

    fn from_atom(atom: AtomRef<'_>) -> Option<Self> {
        if let AtomRef::String(value) = atom { Some(value.to_owned()) } else { None }
    }

    fn to_atom(&self) -> Atom {
        Atom::String(self.clone())
    }
}

impl Scalar for Uuid {
    const TYPE: AtomicType = AtomicType::Uuid;

    fn from_atom(atom: AtomRef<'_>) -> Option<Self> {
        if let AtomRef::Uuid(value) = atom { Some(value) } else { None }
    }

    fn to_atom(&self) -> Atom {
        Atom::Uuid(*self)
    }
}

macro_rules! scalar_datum {
    ($($type:ty),*) => {$(
        impl Datum for $type {
            fn parse<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                deserializer
                    .deserialize_any(SetVisitor::<Self, Option<Self>>(PhantomData))?
                    .ok_or_else(|| de::Error::custom("no value where exactly one belongs"))
            }

            fn apply_difference(&mut self, difference: Self) {
                *self = difference;
            }

            fn accepts(column: &ColumnType) -> bool {
                column.is_scalar() && column.key == Self::TYPE
            }

            fn describe() -> String {
                Self::TYPE.to_string()
            }

            fn to_value(&self) -> Value {
                Value::Atom(self.to_atom())
            }
        }
    )*};
}

scalar_datum!(i64, f64, bool, String, Uuid);

impl<A: Scalar> Datum for Option<A> {
    fn parse<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(SetVisitor(PhantomData))
    }

    fn apply_difference(&mut self, difference: Self) {
        *self = difference;
    }

    fn accepts(column: &ColumnType) -> bool {
        column.value.is_none() && column.max == Some(1) && column.key == A::TYPE
    }

    fn describe() -> String {
        format!("optional {}", A::TYPE)
    }

    fn to_value(&self) -> Value {
        self.as_ref().map(Scalar::to_atom).into()
    }
}

impl<A: Scalar + Ord> Datum for BTreeSet<A> {
    fn parse<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(SetVisitor(PhantomData))
    }

    /// The difference holds the elements that only one of the two sets has.
    fn apply_difference(&mut self, difference: Self) {
        for element in difference {
            if !self.remove(&element) {
                self.insert(element);
            }
        }
    }

    fn accepts(column: &ColumnType) -> bool {
        column.value.is_none() && column.key == A::TYPE
    }

    fn describe() -> String {
        format!("set of {}", A::TYPE)
    }

    fn to_value(&self) -> Value {
        Value::Set(self.iter().map(Scalar::to_atom).collect())
    }
}

impl<K: Scalar + Ord, V: Scalar> Datum for BTreeMap<K, V> {
    fn parse<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(MapVisitor(PhantomData))
    }

    /// A key with the value it has already was removed; any other pair is new.
    fn apply_difference(&mut self, difference: Self) {
        for (key, value) in difference {
            if self.get(&key) == Some(&value) {
                self.remove(&key);
            } else {
                self.insert(key, value);
            }
        }
    }

    fn accepts(column: &ColumnType) -> bool {
        column.value == Some(V::TYPE) && column.key == K::TYPE
    }

    fn describe() -> String {
        format!("map from {} to {}", K::TYPE, V::TYPE)
    }

    fn to_value(&self) -> Value {
        Value::Map(self.iter().map(|(key, value)| (key.to_atom(), value.to_atom())).collect())
    }
}

/// A name that is borrowed from the message unless it has escapes.
#[derive(Deserialize, PartialEq, Eq, Hash)]
pub(crate) struct Name<'a>(#[serde(borrow)] pub(crate) Cow<'a, str>);

impl std::borrow::Borrow<str> for Name<'_> {
    fn borrow(&self) -> &str {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse<T: Datum>(text: &str) -> Result<T, String> {
        T::parse(&mut serde_json::Deserializer::from_str(text)).map_err(|error| error.to_string())
    }

    fn set(items: &[&str]) -> BTreeSet<String> {
        items.iter().map(|s| (*s).to_owned()).collect()
    }

    fn map(pairs: &[(&str, i64)]) -> BTreeMap<String, i64> {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), *v)).collect()
    }

    #[test]
    fn columns_are_read_in_every_encoding() {
        let id = Uuid::from_u128(1);
        let wire = format!(r#"["uuid","{id}"]"#);
        assert_eq!(parse::<i64>("5"), Ok(5));
        assert_eq!(parse::<f64>("5"), Ok(5.0));
        assert_eq!(parse::<String>(r#""a\n\u00e9""#), Ok("a\né".into()));
        assert_eq!(parse::<Uuid>(&wire), Ok(id));
        assert_eq!(parse::<Option<Uuid>>(&wire), Ok(Some(id)));
        assert_eq!(parse::<Option<Uuid>>(r#"["set",[]]"#), Ok(None));
        assert_eq!(parse::<Option<bool>>(r#"["set",[true]]"#), Ok(Some(true)));
        assert_eq!(parse::<BTreeSet<Uuid>>(&wire), Ok(BTreeSet::from([id])));
        assert_eq!(parse::<BTreeSet<Uuid>>(&format!(r#"["set",[{wire}]]"#)), Ok(BTreeSet::from([id])));
        assert_eq!(parse::<BTreeSet<String>>(r#"["set",["a","b"]]"#), Ok(set(&["a", "b"])));
        assert_eq!(parse::<BTreeSet<String>>(r#""set""#), Ok(set(&["set"])));
        assert_eq!(
            parse::<BTreeMap<String, i64>>(r#"["map",[["a",1],["b",2]]]"#),
            Ok(map(&[("a", 1), ("b", 2)]))
        );
        let by_id = parse::<BTreeMap<Uuid, String>>(&format!(r#"["map",[[{wire},"x"]]]"#));
        assert_eq!(by_id, Ok(BTreeMap::from([(id, "x".into())])));
    }

    #[test]
    fn wrong_types_are_errors() {
        assert!(parse::<i64>("1.5").is_err());
        assert!(parse::<i64>(r#"["set",[]]"#).unwrap_err().contains("exactly one"));
        assert!(parse::<Option<i64>>(r#"["set",[1,2]]"#).unwrap_err().contains("at most one"));
        assert!(parse::<String>("7").unwrap_err().contains("type string"));
        assert!(parse::<BTreeSet<String>>(r#"["map",[]]"#).is_err());
        assert!(parse::<BTreeMap<String, i64>>(r#"["map",[["a"]]]"#).is_err());
        assert!(parse::<Uuid>(r#"["uuid","zz"]"#).is_err());
        assert!(parse::<Uuid>("[]").is_err());
    }

    #[test]
    fn differences_toggle_elements_and_pairs() {
        let mut elements = set(&["a", "b"]);
        elements.apply_difference(set(&["b", "c"]));
        assert_eq!(elements, set(&["a", "c"]));

        let mut pairs = map(&[("same", 1), ("gone", 2), ("changed", 3)]);
        pairs.apply_difference(map(&[("gone", 2), ("changed", 4), ("new", 5)]));
        assert_eq!(pairs, map(&[("same", 1), ("changed", 4), ("new", 5)]));
    }
}
