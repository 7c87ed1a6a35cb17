//! JSON-RPC 1.0 as OVSDB speaks it (RFC 7047, section 4): reading an envelope, writing requests and answers.

use std::borrow::Cow;
use std::ops::Range;

use serde::Deserialize;
use serde_json::json;
use serde_json::value::RawValue;

/// A message whose contents are still text.
#[derive(Debug, Deserialize)]
pub(crate) struct Envelope<'a> {
    #[serde(borrow, default)]
    pub(crate) id: Option<&'a RawValue>,
    #[serde(borrow, default)]
    pub(crate) method: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    pub(crate) params: Option<&'a RawValue>,
    #[serde(borrow, default)]
    pub(crate) result: Option<&'a RawValue>,
    #[serde(borrow, default)]
    pub(crate) error: Option<&'a RawValue>,
}

/// A part of a message, kept with the message so that nothing is copied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Payload {
    message: Vec<u8>,
    range: Range<usize>,
}

impl Payload {
    /// The payload that `part`, a slice of the text of `message`, is.
    pub(crate) fn range_of(message: &[u8], part: &RawValue) -> Range<usize> {
        let start = part.get().as_ptr().addr().saturating_sub(message.as_ptr().addr());
        start..start + part.get().len()
    }

    pub(crate) fn new(message: Vec<u8>, range: Range<usize>) -> Self {
        Self { message, range }
    }

    /// Where `part`, a slice of the payload's text, is in the message.
    pub(crate) fn subrange_of(&self, part: &RawValue) -> Range<usize> {
        Self::range_of(&self.message, part)
    }

    /// The part of the message at `range`.
    pub(crate) fn narrow(self, range: Range<usize>) -> Self {
        Self { range, ..self }
    }

    /// The JSON text.
    pub fn as_bytes(&self) -> &[u8] {
        self.message.get(self.range.clone()).unwrap_or_default()
    }
}

pub(crate) fn request(id: u64, method: &str, params: &serde_json::Value) -> Vec<u8> {
    json!({ "id": id, "method": method, "params": params }).to_string().into_bytes()
}

/// The answer to a request whose id, any JSON value, is `id`.
pub(crate) fn reply(id: &RawValue, result: Option<&RawValue>) -> Vec<u8> {
    format!(r#"{{"id":{},"result":{},"error":null}}"#, id.get(), result.map_or("[]", RawValue::get))
        .into_bytes()
}

pub(crate) fn unknown_method(id: &RawValue) -> Vec<u8> {
    format!(r#"{{"id":{},"result":null,"error":"unknown method"}}"#, id.get()).into_bytes()
}
