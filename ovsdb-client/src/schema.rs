//! Schema of a database: the parts of `get_schema` (RFC 7047, section 3.2) that a client acts on.

use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;

/// A database's tables and columns.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Schema {
    /// The database's name.
    pub name: String,
    /// The schema's own version, such as `20.27.0`.
    #[serde(default)]
    pub version: String,
    /// The tables by name.
    pub tables: BTreeMap<String, TableSchema>,
}

/// A table's columns.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct TableSchema {
    /// The columns by name, without `_uuid` and `_version`, which every table has.
    pub columns: BTreeMap<String, ColumnSchema>,
}

impl TableSchema {
    /// The type of a column, those that every table has included.
    pub(crate) fn kind(&self, column: &str) -> Option<ColumnType> {
        match column {
            "_uuid" | "_version" => {
                Some(ColumnType { key: AtomicType::Uuid, value: None, min: 1, max: Some(1) })
            }
            _ => self.columns.get(column).map(|column| column.kind),
        }
    }
}

/// One column.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct ColumnSchema {
    /// The type of the column's values.
    #[serde(rename = "type")]
    pub kind: ColumnType,
}

/// The types that keys and values can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum AtomicType {
    /// A 64-bit integer.
    Integer,
    /// A floating-point number.
    Real,
    /// A truth value.
    Boolean,
    /// A string.
    String,
    /// The identity of a row.
    Uuid,
    /// A type that this client does not know. Columns that have it cannot be monitored; all others can.
    #[serde(other)]
    Unknown,
}

/// A column's type: of what, and how many.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(from = "WireType")]
pub struct ColumnType {
    /// The type of each element, of each key in a map.
    pub key: AtomicType,
    /// The type of a map's values; `None` in anything but a map.
    pub value: Option<AtomicType>,
    /// The least number of elements, 0 or 1.
    pub min: u64,
    /// The greatest number of elements; `None` without a limit.
    pub max: Option<u64>,
}

impl ColumnType {
    /// True if the column can hold more than one element. Changes of such columns travel as differences
    /// (ovsdb-server(7), section 4.1.14), those of all others as the new value.
    pub fn is_composite(&self) -> bool {
        self.max != Some(1)
    }

    /// True if the column always holds exactly one value.
    pub fn is_scalar(&self) -> bool {
        self.value.is_none() && self.min == 1 && self.max == Some(1)
    }
}

impl fmt::Display for AtomicType {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Integer => "integer",
            Self::Real => "real",
            Self::Boolean => "boolean",
            Self::String => "string",
            Self::Uuid => "uuid",
            Self::Unknown => "unknown",
        })
    }
}

impl fmt::Display for ColumnType {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.value, self.min, self.max) {
            (Some(value), _, _) => write!(formatter, "map from {} to {value}", self.key),
            (None, 1, Some(1)) => write!(formatter, "{}", self.key),
            (None, _, Some(1)) => write!(formatter, "optional {}", self.key),
            (None, _, _) => write!(formatter, "set of {}", self.key),
        }
    }
}

#[derive(Deserialize)]
#[serde(untagged)]
enum WireType {
    Plain(AtomicType),
    Full {
        key: WireBase,
        value: Option<WireBase>,
        #[serde(default = "one")]
        min: u64,
        #[serde(default)]
        max: WireMax,
    },
}

#[derive(Deserialize)]
#[serde(untagged)]
enum WireBase {
    Plain(AtomicType),
    Full {
        #[serde(rename = "type")]
        kind: AtomicType,
    },
}

#[derive(Deserialize)]
#[serde(untagged)]
enum WireMax {
    Count(u64),
    Unlimited(Unlimited),
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Unlimited {
    Unlimited,
}

impl Default for WireMax {
    fn default() -> Self {
        Self::Count(1)
    }
}

fn one() -> u64 {
    1
}

impl WireBase {
    fn atomic(&self) -> AtomicType {
        match *self {
            Self::Plain(kind) | Self::Full { kind } => kind,
        }
    }
}

impl From<WireType> for ColumnType {
    fn from(wire: WireType) -> Self {
        match wire {
            WireType::Plain(key) => Self { key, value: None, min: 1, max: Some(1) },
            WireType::Full { key, value, min, max } => Self {
                key: key.atomic(),
                value: value.map(|base| base.atomic()),
                min,
                max: match max {
                    WireMax::Count(count) => Some(count),
                    WireMax::Unlimited(Unlimited::Unlimited) => None,
                },
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn column_types_read_as_the_rfc_writes_them() {
        let cases = [
            (r#""string""#, "string", false),
            (r#"{"key":{"type":"integer","minInteger":1},"min":0,"max":1}"#, "optional integer", false),
            (r#"{"key":"string","min":0,"max":"unlimited"}"#, "set of string", true),
            (r#"{"key":{"type":"uuid","refTable":"Port"},"max":"unlimited"}"#, "set of uuid", true),
            (
                r#"{"key":"string","value":"string","min":0,"max":"unlimited"}"#,
                "map from string to string",
                true,
            ),
            (r#""decimal""#, "unknown", false),
            (r#"{"key":{"type":"decimal"},"min":0}"#, "optional unknown", false),
            (r#"{"key":{"type":"string","enum":["set",["a","b"]]}}"#, "string", false),
        ];
        for (text, meaning, composite) in cases {
            let kind: ColumnType = serde_json::from_str(text).unwrap();
            assert_eq!((kind.to_string().as_str(), kind.is_composite()), (meaning, composite), "{text}");
        }
    }
}
