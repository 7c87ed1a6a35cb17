//! Values as they travel: atoms, sets and maps of RFC 7047, section 5.1, when their types are not known at compile time.
//!
//! Conditions and operations are made of these, and the rows a `select` gives. Replicated rows have types of their own
//! (see [`crate::Datum`]).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::Deserialize;
use serde::de::{self, Deserializer, SeqAccess, Visitor};
use serde_json::json;
use uuid::Uuid;

use crate::message::{self, Unsendable};

/// A single value.
#[derive(Debug, Clone, PartialEq)]
pub enum Atom {
    /// A 64-bit integer.
    Integer(i64),
    /// A floating-point number.
    Real(f64),
    /// A truth value.
    Boolean(bool),
    /// A string.
    String(String),
    /// The identity of a row.
    Uuid(Uuid),
    /// A row inserted by the same transaction, by the name that its insert gave it. Only ever sent.
    NamedUuid(String),
}

/// Value of a column.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// Exactly one value; a set with one element looks the same on the wire.
    Atom(Atom),
    /// Any number of values.
    Set(Vec<Atom>),
    /// Keys and values.
    Map(Vec<(Atom, Atom)>),
}

impl Atom {
    pub(crate) fn json(&self) -> serde_json::Value {
        match self {
            Self::Integer(value) => json!(value),
            Self::Real(value) => json!(value),
            Self::Boolean(value) => json!(value),
            Self::String(value) => json!(value),
            Self::Uuid(value) => json!(["uuid", value.to_string()]),
            Self::NamedUuid(name) => json!(["named-uuid", name]),
        }
    }
}

impl Atom {
    /// A real that is not finite becomes null in JSON, which tells nobody what was wrong.
    fn check(&self) -> Result<(), Unsendable> {
        match self {
            Self::Real(value) => message::check_real(*value),
            Self::String(text) | Self::NamedUuid(text) => message::check_text(text),
            Self::Integer(_) | Self::Boolean(_) | Self::Uuid(_) => Ok(()),
        }
    }
}

impl Value {
    /// Finds what a server would not take for JSON.
    pub(crate) fn check(&self) -> Result<(), Unsendable> {
        match self {
            Self::Atom(atom) => atom.check(),
            Self::Set(atoms) => atoms.iter().try_for_each(Atom::check),
            Self::Map(pairs) => {
                pairs.iter().try_for_each(|(key, value)| key.check().and_then(|()| value.check()))
            }
        }
    }

    /// The empty set: an optional column without a value.
    pub const EMPTY: Self = Self::Set(Vec::new());

    /// A reference to a row that an insert of the same transaction names.
    pub fn named_uuid(name: impl Into<String>) -> Self {
        Self::Atom(Atom::NamedUuid(name.into()))
    }

    pub(crate) fn json(&self) -> serde_json::Value {
        match self {
            Self::Atom(atom) => atom.json(),
            Self::Set(atoms) => json!(["set", atoms.iter().map(Atom::json).collect::<Vec<_>>()]),
            Self::Map(pairs) => {
                json!([
                    "map",
                    pairs.iter().map(|(key, value)| json!([key.json(), value.json()])).collect::<Vec<_>>()
                ])
            }
        }
    }
}

macro_rules! from_atoms {
    ($($type:ty => |$value:ident| $atom:expr),* $(,)?) => {$(
        impl From<$type> for Atom {
            fn from($value: $type) -> Self {
                $atom
            }
        }
        impl From<$type> for Value {
            fn from(value: $type) -> Self {
                Self::Atom(value.into())
            }
        }
    )*};
}

from_atoms! {
    i64 => |value| Self::Integer(value),
    f64 => |value| Self::Real(value),
    bool => |value| Self::Boolean(value),
    String => |value| Self::String(value),
    &str => |value| Self::String(value.to_owned()),
    Uuid => |value| Self::Uuid(value),
}

impl<A: Into<Atom>> From<Option<A>> for Value {
    fn from(value: Option<A>) -> Self {
        value.map_or(Self::EMPTY, |atom| Self::Atom(atom.into()))
    }
}

impl<A: Into<Atom>> From<Vec<A>> for Value {
    fn from(values: Vec<A>) -> Self {
        Self::Set(values.into_iter().map(Into::into).collect())
    }
}

impl<A: Into<Atom>> From<BTreeSet<A>> for Value {
    fn from(values: BTreeSet<A>) -> Self {
        Self::Set(values.into_iter().map(Into::into).collect())
    }
}

impl<K: Into<Atom>, V: Into<Atom>> From<BTreeMap<K, V>> for Value {
    fn from(pairs: BTreeMap<K, V>) -> Self {
        Self::Map(pairs.into_iter().map(|(key, value)| (key.into(), value.into())).collect())
    }
}

impl<'de> Deserialize<'de> for Atom {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Value::deserialize(deserializer)? {
            Value::Atom(atom) => Ok(atom),
            Value::Set(_) | Value::Map(_) => {
                Err(de::Error::custom("a set or map where a single value belongs"))
            }
        }
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ValueVisitor)
    }
}

struct ValueVisitor;

impl<'de> Visitor<'de> for ValueVisitor {
    type Value = Value;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an OVSDB value")
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<Value, E> {
        i64::try_from(value)
            .map(Into::into)
            .map_err(|_| E::custom(format_args!("{value} is not a 64-bit integer")))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let short = || de::Error::custom("an OVSDB value has two elements: a tag and its contents");
        let tag: String = items.next_element()?.ok_or_else(short)?;
        match tag.as_str() {
            "set" => Ok(Value::Set(items.next_element()?.ok_or_else(short)?)),
            "map" => Ok(Value::Map(items.next_element()?.ok_or_else(short)?)),
            "uuid" => Ok(Value::Atom(Atom::Uuid(items.next_element()?.ok_or_else(short)?))),
            "named-uuid" => Ok(Value::named_uuid(items.next_element::<String>()?.ok_or_else(short)?)),
            other => Err(de::Error::custom(format_args!("unknown tag {other:?}: expected set, map or uuid"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_survive_the_wire() {
        let uuid = Uuid::from_u128(7);
        let cases: [(Value, serde_json::Value); 9] = [
            (5.into(), json!(5)),
            (2.5.into(), json!(2.5)),
            (true.into(), json!(true)),
            ("a\"b".into(), json!("a\"b")),
            (uuid.into(), json!(["uuid", uuid.to_string()])),
            (Value::named_uuid("new"), json!(["named-uuid", "new"])),
            (None::<i64>.into(), json!(["set", []])),
            (vec!["a", "b"].into(), json!(["set", ["a", "b"]])),
            (BTreeMap::from([("k", 1)]).into(), json!(["map", [["k", 1]]])),
        ];
        for (value, wire) in cases {
            assert_eq!(value.json(), wire);
            assert_eq!(serde_json::from_value::<Value>(wire.clone()).unwrap(), value, "{wire}");
        }
    }

    #[test]
    fn what_is_no_value_is_refused() {
        for text in
            ["null", "{}", "[]", r#"["set"]"#, r#"["tree",[]]"#, r#"["uuid","x"]"#, "18446744073709551615"]
        {
            assert!(serde_json::from_str::<Value>(text).is_err(), "{text}");
        }
    }
}
