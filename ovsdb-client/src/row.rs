//! Typed rows: which columns of a table a program wants, as a struct.

use serde::Deserializer;

use crate::datum::Datum;
use crate::operation::Columns;
use crate::schema::ColumnType;

/// A row of one table as a struct; made by [`row!`](crate::row!).
pub trait Row: Default + Clone + PartialEq + std::fmt::Debug + Send + Sync + 'static {
    /// The table's name.
    const TABLE: &'static str;

    /// The columns to replicate.
    const COLUMNS: &'static [Column];

    /// Reads `column` from `value`, as a difference to what the row holds if `difference`. Unknown columns are skipped.
    fn read<'de, D: Deserializer<'de>>(
        &mut self,
        column: &str,
        value: D,
        difference: bool,
    ) -> Result<(), D::Error>;

    /// The columns whose values are not their types' defaults.
    fn columns(&self) -> Columns;
}

/// One column of a [`Row`].
#[derive(Debug, Clone, Copy)]
pub struct Column {
    /// The column's name in the schema.
    pub name: &'static str,
    /// True if servers may lack the column; it then keeps its default value.
    pub optional: bool,
    /// True if the field can hold what a column of this type holds.
    pub accepts: fn(&ColumnType) -> bool,
    /// The type of the field in the words of the schema.
    pub describe: fn() -> String,
}

/// Declares a struct for rows of one table.
///
/// Each field is a column, of a type that implements [`Datum`]. A column whose name is no good
/// field name is given with `= "name"`; a column that older (or newer) schemas lack is marked `as optional`, and holds
/// its type's default value where it is missing. A required column that is missing, or has another type, is an
/// [`Event::Disconnected`](crate::Event::Disconnected) that names table and column.
///
/// The struct has a constant of each field's name as well, a [`Field`](crate::Field), to write and compare with.
///
/// ```
/// use std::collections::{BTreeMap, BTreeSet};
/// use ovsdb_client::Uuid;
///
/// ovsdb_client::row! {
///     /// A logical port.
///     pub struct PortBinding in "Port_Binding" {
///         logical_port: String,
///         kind: String = "type",
///         parent_port: Option<String>,
///         chassis: Option<Uuid>,
///         mac: BTreeSet<String>,
///         additional_chassis: BTreeSet<Uuid> as optional,
///         external_ids: BTreeMap<String, String>,
///     }
/// }
/// ```
#[macro_export]
macro_rules! row {
    (
        $(#[$attribute:meta])*
        $visibility:vis struct $name:ident in $table:literal {
            $( $(#[$field_attribute:meta])* $field:ident : $type:ty $(= $column:literal)? $(as $optional:ident)? ),*
            $(,)?
        }
    ) => {
        $(#[$attribute])*
        #[derive(Debug, Clone, Default, PartialEq)]
        $visibility struct $name {
            $( $(#[$field_attribute])* pub $field: $type ),*
        }

        #[allow(non_upper_case_globals, dead_code, reason = "a column has the name of its field, needed or not")]
        impl $name {
            $(
                #[doc = concat!("The column `", $crate::row!(@name $field $($column)?), "`.")]
                $visibility const $field: $crate::Field<Self, $type> =
                    $crate::Field::new($crate::row!(@name $field $($column)?));
            )*
        }

        impl $crate::Row for $name {
            const TABLE: &'static str = $table;

            const COLUMNS: &'static [$crate::Column] = &[$(
                $crate::Column {
                    name: $crate::row!(@name $field $($column)?),
                    optional: $crate::row!(@optional $($optional)?),
                    accepts: <$type as $crate::Datum>::accepts,
                    describe: <$type as $crate::Datum>::describe,
                }
            ),*];

            fn read<'de, D: $crate::__private::Deserializer<'de>>(
                &mut self,
                column: &str,
                value: D,
                difference: bool,
            ) -> ::core::result::Result<(), D::Error> {
                $(
                    if column == $crate::row!(@name $field $($column)?) {
                        return $crate::__private::read_column(&mut self.$field, value, difference);
                    }
                )*
                $crate::__private::skip(value)
            }

            fn columns(&self) -> $crate::Columns {
                let mut columns = $crate::Columns::new();
                $(
                    if self.$field != <$type as ::core::default::Default>::default() {
                        let value = $crate::Datum::to_value(&self.$field);
                        columns.insert($crate::row!(@name $field $($column)?).to_owned(), value);
                    }
                )*
                columns
            }
        }
    };
    (@name $field:ident) => { ::core::stringify!($field) };
    (@name $field:ident $column:literal) => { $column };
    (@optional) => { false };
    (@optional optional) => { true };
}

/// Reads one field of a row.
pub fn read_column<'de, T: Datum, D: Deserializer<'de>>(
    field: &mut T,
    value: D,
    difference: bool,
) -> Result<(), D::Error> {
    let value = T::parse(value)?;
    if difference {
        field.apply_difference(value);
    } else {
        *field = value;
    }
    Ok(())
}

/// Reads over a value.
pub fn skip<'de, D: Deserializer<'de>>(value: D) -> Result<(), D::Error> {
    serde::Deserialize::deserialize(value).map(|serde::de::IgnoredAny| ())
}
