//! A client of OVSDB (RFC 7047 with the extensions of Open vSwitch) for tokio.
//!
//! A [`Client`] keeps typed copies of the tables and rows that a program is interested in, over any number of
//! connections and servers, and tells what changes in them. [`Handle`]s make transactions and other requests.
//!
//! ```no_run
//! use std::collections::BTreeMap;
//! use ovsdb_client::{Clause, Client, Columns, Conditions, Config, Event, Operation};
//!
//! ovsdb_client::row! {
//!     /// The columns of a logical port that this program needs.
//!     pub struct PortBinding in "Port_Binding" {
//!         logical_port: String,
//!         kind: String = "type",
//!         parent_port: Option<String>,
//!         external_ids: BTreeMap<String, String>,
//!         up: Option<bool> as optional,
//!     }
//! }
//!
//! # async fn example() -> Result<(), ovsdb_client::Error> {
//! let config = Config::new("ssl:192.0.2.1:6642,ssl:192.0.2.2:6642".parse()?, "OVN_Southbound");
//! let mut client = Client::builder(config)
//!     .monitor::<PortBinding>(Conditions::any_of([Clause::equal("logical_port", "lsp1")]))
//!     .connect();
//! loop {
//!     match client.recv().await {
//!         Event::Connected { remote } => println!("connected to {remote}"),
//!         Event::Disconnected { remote, reason, retry } => println!("{remote}: {reason}; again in {retry:?}"),
//!         Event::Synced => println!("{} ports", client.table::<PortBinding>().len()),
//!         Event::Batch(batch) => {
//!             for change in batch.of::<PortBinding>() {
//!                 match (&change.old, &change.new) {
//!                     (None, Some(new)) => println!("{} is new", new.logical_port),
//!                     (Some(old), None) => println!("{} is gone", old.logical_port),
//!                     _ => println!("{} changed", change.uuid),
//!                 }
//!             }
//!             // Conditions can follow what the program learns.
//!             client.set_condition::<PortBinding>(Conditions::any_of([
//!                 Clause::equal("logical_port", "lsp1"),
//!                 Clause::equal("parent_port", "lsp1"),
//!             ]))?;
//!         }
//!         Event::ConditionInForce(generation) => println!("conditions {generation} are in force"),
//!         Event::Waiting { remote, awaited } => println!("{remote} has not sent {awaited} yet"),
//!         Event::ConditionRefused { error, .. } => println!("{error}"),
//!         Event::ClauseLeftOut { table, column, problem } => println!("{table}: {column}: {problem}"),
//!         Event::Closed => return Ok(()),
//!         _ => {}
//!     }
//! }
//! # }
//! # async fn write(handle: ovsdb_client::Handle) -> Result<(), ovsdb_client::Error> {
//! // Elsewhere, with `let handle = client.handle()`:
//! let row = Columns::from([("nb_cfg".to_owned(), 7.into())]);
//! let results = handle
//!     .transact(vec![Operation::Update { table: "SB_Global".into(), condition: vec![], row }])
//!     .await?;
//! assert_eq!(results[0].count, 1);
//! # Ok(())
//! # }
//! ```
//!
//! # What can be relied on
//!
//! - Tables change only inside of [`Client::recv`], and each batch leads from one consistent state of the database to a
//!   later one: by one transaction, or by several, which a server merges for clients that are slow to read. Folding all
//!   batches gives the tables.
//! - After a reconnection, to the same server or another, only differences are told, whether the server could resume or
//!   sent everything again. Rows stay while there is no server.
//! - A client that is paused ([`Client::pause`]) keeps its tables and its connection, and nothing is sent to it; what
//!   happened meanwhile comes as differences when it resumes.
//! - A server is left for another one when it does not answer probes, takes the connection and says nothing of use
//!   ([`Config::greeting_timeout`]), is cut off from its cluster, lost the database, or
//!   lacks what an earlier one had a minute before it was left. When for half a minute all that can be reached do, as
//!   after the restoration of a backup, they are taken as they are.
//! - A consumer that takes no events stops the socket from being read, except while somebody waits for the answer to a
//!   request. Updates that come before it are kept up to [`Config::message_limit`]; beyond that the request fails with
//!   [`Error::Overrun`], so that a consumer that waits for it itself goes on. The connection survives a consumer that
//!   takes no events as long as the server has nothing left to send.
//! - A server that knows no conditions (before Open vSwitch 2.6) sends all rows.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod backoff;
mod builder;
mod client;
mod condition;
mod config;
mod connection;
mod counters;
mod datum;
mod error;
mod event;
mod field;
#[cfg(test)]
mod fuzz;
mod index;
mod message;
mod operation;
mod remote;
mod replica;
mod row;
mod schema;
mod session;
mod splitter;
mod tls;
mod transport;
mod value;

pub use builder::Builder;
pub use client::{Client, Commit, Handle};
pub use condition::{Clause, Conditions, Function};
pub use config::{Config, TlsConfig};
pub use connection::DisconnectReason;
pub use counters::Counters;
pub use datum::{AtomRef, Datum, Scalar};
pub use error::{Error, Retry};
pub use event::{Event, Generation, Mark};
pub use field::{Field, FieldMutation, NewRow, Setting};
pub use index::Index;
pub use message::{Payload, Unsendable};
pub use operation::{Columns, Mutation, Mutator, Operation, OperationResult};
pub use remote::{Endpoint, Remote, RemoteError, Remotes};
pub use replica::{Batch, Change, Dialect, Table};
pub use row::{Column, Row};
pub use schema::{AtomicType, ColumnSchema, ColumnType, Schema, TableSchema};
pub use session::{Awaited, Hangup};
pub use splitter::{SplitError, Splitter};
pub use tls::TlsError;
pub use tls_peer::{FileError, Role};
pub use transport::ConnectError;
pub use uuid::Uuid;
pub use value::{Atom, Value};

/// Items that the macros need; not part of the interface.
#[doc(hidden)]
pub mod __private {
    pub use crate::row::{read_column, skip};
    pub use serde::Deserializer;
}
