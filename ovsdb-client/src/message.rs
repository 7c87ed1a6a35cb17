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

    /// Range in the message of `part`, a slice of the payload's text.
    pub(crate) fn subrange_of(&self, part: &RawValue) -> Range<usize> {
        Self::range_of(&self.message, part)
    }

    /// The part of the message at `range`.
    pub(crate) fn narrow(self, range: Range<usize>) -> Self {
        Self { range, ..self }
    }

    /// The text at `range` of the message.
    pub(crate) fn part(&self, range: Range<usize>) -> &str {
        self.message.get(range).and_then(|part| std::str::from_utf8(part).ok()).unwrap_or_default()
    }

    /// The length of the whole message, which is what is kept.
    pub(crate) fn weight(&self) -> usize {
        self.message.len()
    }

    /// The JSON text.
    pub fn as_bytes(&self) -> &[u8] {
        self.message.get(self.range.clone()).unwrap_or_default()
    }
}

/// Text that Open vSwitch's reader of JSON refuses, and hangs up for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Unsendable {
    /// A string with a NUL.
    #[error("{0:?} has a NUL in it, which no string of a database can have")]
    Nul(String),
    /// A number other than zero that is too small to have all digits.
    #[error("{0} is too close to zero: the least number that a server reads is {min:e}", min = f64::MIN_POSITIVE)]
    Subnormal(String),
    /// Infinity, or no number.
    #[error("{0} is no number that a database can hold")]
    NotFinite(String),
}

/// Finds what a server would not take for JSON.
pub(crate) fn check(value: &serde_json::Value) -> Result<(), Unsendable> {
    match value {
        serde_json::Value::String(text) => check_text(text),
        serde_json::Value::Number(number) => number.as_f64().map_or(Ok(()), check_real),
        serde_json::Value::Array(items) => items.iter().try_for_each(check),
        serde_json::Value::Object(fields) => {
            fields.iter().try_for_each(|(name, value)| check_text(name).and_then(|()| check(value)))
        }
        serde_json::Value::Null | serde_json::Value::Bool(_) => Ok(()),
    }
}

pub(crate) fn check_text(text: &str) -> Result<(), Unsendable> {
    if text.contains('\0') { Err(Unsendable::Nul(text.chars().take(100).collect())) } else { Ok(()) }
}

pub(crate) fn check_real(value: f64) -> Result<(), Unsendable> {
    if value.is_subnormal() {
        Err(Unsendable::Subnormal(format!("{value:e}")))
    } else if value.is_finite() {
        Ok(())
    } else {
        Err(Unsendable::NotFinite(value.to_string()))
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
