//! Typed columns and the operations on typed rows: a program writes rows in the words in which it reads them.
//!
//! [`row!`](crate::row!) makes a [`Field`] of each field of a row, under the field's name.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::marker::PhantomData;
use std::time::Duration;

use uuid::Uuid;

use crate::condition::Clause;
use crate::datum::{Datum, Scalar};
use crate::operation::{Columns, Mutation, Mutator, Operation};
use crate::row::Row;
use crate::value::Value;

/// A column of the rows `R`, which holds a `T`.
///
/// ```
/// use std::collections::BTreeMap;
/// use ovsdb_client::{Operation, Uuid};
///
/// ovsdb_client::row! {
///     pub struct Chassis in "Chassis" {
///         name: String,
///         nb_cfg: i64,
///         external_ids: BTreeMap<String, String>,
///     }
/// }
///
/// # let chassis = Uuid::nil();
/// // Unless somebody else changed the number meanwhile:
/// let operations = [
///     Operation::verify_row(chassis, [Chassis::nb_cfg.is(6)]),
///     Operation::update_row(chassis, [Chassis::nb_cfg.is(7)]),
///     Operation::mutate_row(chassis, [Chassis::external_ids.delete_keys(["old".to_owned()])]),
/// ];
/// ```
pub struct Field<R, T> {
    name: &'static str,
    marker: PhantomData<fn() -> (R, T)>,
}

/// A column with a value: what an update sets, or a wait compares with.
#[derive(Debug, Clone, PartialEq)]
pub struct Setting<R> {
    column: &'static str,
    value: Value,
    marker: PhantomData<fn() -> R>,
}

/// A change of a column relative to what it holds.
#[derive(Debug, Clone, PartialEq)]
pub struct FieldMutation<R> {
    mutation: Mutation,
    marker: PhantomData<fn() -> R>,
}

/// A row to be inserted.
#[derive(Debug, Clone, PartialEq)]
pub struct NewRow<R> {
    columns: Columns,
    name: Option<String>,
    marker: PhantomData<fn() -> R>,
}

impl<R, T> Clone for Field<R, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<R, T> Copy for Field<R, T> {}

impl<R, T> fmt::Debug for Field<R, T> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_tuple("Field").field(&self.name).finish()
    }
}

impl<R: Row, T: Datum> Field<R, T> {
    /// For the macro, which knows the type.
    #[doc(hidden)]
    pub const fn new(name: &'static str) -> Self {
        Self { name, marker: PhantomData }
    }

    /// The column's name in the schema.
    pub const fn name(self) -> &'static str {
        self.name
    }

    /// The column with this value.
    pub fn is(self, value: impl Into<T>) -> Setting<R> {
        self.setting(value.into().to_value())
    }

    /// The condition that the column has this value.
    pub fn equals(self, value: impl Into<T>) -> Clause {
        Clause::equal(self.name, value.into().to_value())
    }

    fn setting(self, value: Value) -> Setting<R> {
        Setting { column: self.name, value, marker: PhantomData }
    }

    fn mutation(self, mutator: Mutator, value: impl Into<Value>) -> FieldMutation<R> {
        FieldMutation { mutation: Mutation::new(self.name, mutator, value), marker: PhantomData }
    }
}

impl<R: Row> Field<R, i64> {
    /// Adds to the number.
    pub fn increase(self, amount: i64) -> FieldMutation<R> {
        self.mutation(Mutator::Add, amount)
    }
}

impl<R: Row> Field<R, Uuid> {
    /// The column with the row that an insert of the same transaction names.
    pub fn is_new(self, name: impl Into<String>) -> Setting<R> {
        self.setting(Value::named_uuid(name))
    }
}

impl<R: Row> Field<R, Option<Uuid>> {
    /// The column with the row that an insert of the same transaction names.
    pub fn is_new(self, name: impl Into<String>) -> Setting<R> {
        self.setting(Value::named_uuid(name))
    }
}

impl<R: Row, A: Scalar + Ord> Field<R, BTreeSet<A>> {
    /// Adds elements to the set.
    pub fn insert(self, elements: impl IntoIterator<Item = A>) -> FieldMutation<R> {
        self.mutation(Mutator::Insert, elements.into_iter().collect::<BTreeSet<A>>().to_value())
    }

    /// Takes elements out of the set.
    pub fn delete(self, elements: impl IntoIterator<Item = A>) -> FieldMutation<R> {
        self.mutation(Mutator::Delete, elements.into_iter().collect::<BTreeSet<A>>().to_value())
    }
}

impl<R: Row, K: Scalar + Ord, V: Scalar> Field<R, BTreeMap<K, V>> {
    /// Adds pairs whose keys the map does not have: those that it has keep their values.
    pub fn insert(self, pairs: impl IntoIterator<Item = (K, V)>) -> FieldMutation<R> {
        self.mutation(Mutator::Insert, pairs.into_iter().collect::<BTreeMap<K, V>>().to_value())
    }

    /// Takes the pairs with these keys out of the map.
    pub fn delete_keys(self, keys: impl IntoIterator<Item = K>) -> FieldMutation<R> {
        self.mutation(Mutator::Delete, keys.into_iter().collect::<BTreeSet<K>>().to_value())
    }
}

impl<R: Row> NewRow<R> {
    /// A row with the contents of `row`. Columns with default values are left to the server, so that it may lack those
    /// that are optional.
    pub fn new(row: &R) -> Self {
        Self { columns: row.columns(), name: None, marker: PhantomData }
    }

    /// Gives it a name for the rest of the transaction ([`Field::is_new`]).
    #[must_use]
    pub fn named(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Sets a column otherwise, as to a row of the same transaction.
    #[must_use]
    pub fn with(mut self, setting: Setting<R>) -> Self {
        self.columns.insert(setting.column.to_owned(), setting.value);
        self
    }

    /// The operation.
    pub fn insert(self) -> Operation {
        Operation::Insert { table: R::TABLE.to_owned(), row: self.columns, name: self.name }
    }
}

impl Operation {
    /// Sets columns of one row.
    pub fn update_row<R: Row>(uuid: Uuid, settings: impl IntoIterator<Item = Setting<R>>) -> Self {
        Self::Update { table: R::TABLE.to_owned(), condition: only(uuid), row: columns(settings) }
    }

    /// Changes columns of one row relative to what they hold.
    pub fn mutate_row<R: Row>(uuid: Uuid, mutations: impl IntoIterator<Item = FieldMutation<R>>) -> Self {
        let mutations = mutations.into_iter().map(|change| change.mutation).collect();
        Self::Mutate { table: R::TABLE.to_owned(), condition: only(uuid), mutations }
    }

    /// Removes one row.
    pub fn delete_row<R: Row>(uuid: Uuid) -> Self {
        Self::Delete { table: R::TABLE.to_owned(), condition: only(uuid) }
    }

    /// Fails the transaction unless the row has these values; [`Error::retry`](crate::Error::retry) says then to try again
    /// with what the row has.
    pub fn verify_row<R: Row>(uuid: Uuid, settings: impl IntoIterator<Item = Setting<R>>) -> Self {
        Self::await_row(uuid, Duration::ZERO, settings)
    }

    /// Waits until the row has these values, and fails the transaction if it has not in time.
    pub fn await_row<R: Row>(
        uuid: Uuid,
        timeout: Duration,
        settings: impl IntoIterator<Item = Setting<R>>,
    ) -> Self {
        let row = columns(settings);
        Self::Wait {
            timeout: Some(u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX)),
            table: R::TABLE.to_owned(),
            condition: only(uuid),
            columns: row.keys().cloned().collect(),
            until_equal: true,
            rows: vec![row],
        }
    }
}

fn only(uuid: Uuid) -> Vec<Clause> {
    vec![Clause::equal("_uuid", uuid)]
}

fn columns<R>(settings: impl IntoIterator<Item = Setting<R>>) -> Columns {
    settings.into_iter().map(|setting| (setting.column.to_owned(), setting.value)).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    crate::row! {
        struct Port in "Port" {
            name: String,
            kind: String = "type",
            count: i64,
            tag: Option<i64>,
            peer: Option<Uuid>,
            tags: BTreeSet<i64>,
            ids: BTreeMap<String, String>,
        }
    }

    #[test]
    fn typed_operations_read_as_the_rfc_writes_them() {
        let uuid = Uuid::from_u128(7);
        let id = json!([["_uuid", "==", ["uuid", uuid.to_string()]]]);
        let row = Port { name: "a".into(), tags: [1, 2].into(), ..Port::default() };
        let cases = [
            (
                NewRow::new(&row).named("new").with(Port::peer.is_new("other")).insert(),
                json!({"op": "insert", "table": "Port", "uuid-name": "new",
                       "row": {"name": "a", "tags": ["set", [1, 2]], "peer": ["named-uuid", "other"]}}),
            ),
            (
                Operation::update_row(uuid, [Port::kind.is("x"), Port::tag.is(None)]),
                json!({"op": "update", "table": "Port", "where": id,
                       "row": {"type": "x", "tag": ["set", []]}}),
            ),
            (
                Operation::mutate_row(
                    uuid,
                    [
                        Port::count.increase(2),
                        Port::tags.insert([3]),
                        Port::ids.delete_keys(["k".to_owned()]),
                        Port::ids.insert([("k".to_owned(), "v".to_owned())]),
                    ],
                ),
                json!({"op": "mutate", "table": "Port", "where": id, "mutations": [
                    ["count", "+=", 2], ["tags", "insert", ["set", [3]]],
                    ["ids", "delete", ["set", ["k"]]], ["ids", "insert", ["map", [["k", "v"]]]]]}),
            ),
            (
                Operation::verify_row(uuid, [Port::tag.is(Some(5))]),
                json!({"op": "wait", "table": "Port", "where": id, "timeout": 0, "columns": ["tag"],
                       "until": "==", "rows": [{"tag": 5}]}),
            ),
            (Operation::delete_row::<Port>(uuid), json!({"op": "delete", "table": "Port", "where": id})),
        ];
        for (operation, expected) in cases {
            assert_eq!(operation.json(), expected);
        }
        assert_eq!(Port::name.equals("a"), Clause::equal("name", "a"));
    }
}
