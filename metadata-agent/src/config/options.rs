//! Typed access to options, with errors that name the place.
use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use super::{
    Error, OWN, Rate, SECTION,
    ini::{Ini, Value},
    references,
};

/// The options of all files.
pub(super) struct Options<'a>(pub(super) &'a Ini);

impl Options<'_> {
    /// The last value, if there is one, references replaced.
    pub(super) fn text(&self, section: &'static str, option: &'static str) -> Result<Option<Value>, Error> {
        let Some(Value { text, origin }) = self.0.raw(section, option) else { return Ok(None) };
        match references::resolve(self.0, section, text) {
            Ok(text) => Ok(Some(Value { text, origin: origin.clone() })),
            Err(references::Unresolved) => Err(Error::Reference { origin: origin.clone(), section, option }),
        }
    }

    /// The value as `parse` understands it.
    pub(super) fn parse<T>(
        &self,
        section: &'static str,
        option: &'static str,
        default: T,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Result<T, Error> {
        let Some(value) = self.text(section, option)? else { return Ok(default) };
        parse(value.text.trim()).map_err(|problem| Error::new(section, option, value, problem))
    }

    /// A path, if one is named.
    pub(super) fn path(&self, section: &'static str, option: &'static str) -> Result<Option<PathBuf>, Error> {
        let value = self.text(section, option)?.filter(|value| !value.text.is_empty());
        value.map(|value| absolute(section, option, &value)).transpose()
    }

    /// Two of ours, which are one.
    pub(super) fn rate(&self, rate: &'static str, burst: &'static str, default: Rate) -> Result<Rate, Error> {
        Ok(Rate {
            rate: self.parse(SECTION, rate, default.rate, |text| Ok(number(text, 0, 1_000_000)? as u32))?,
            burst: self.parse(
                SECTION,
                burst,
                default.burst,
                |text| Ok(number(text, 1, 1_000_000)? as u32),
            )?,
        })
    }

    /// Other services' sections may hold what they like, ours may not: a misspelt option would silently not count.
    pub(super) fn check_own(&self) -> Result<(), Error> {
        for (option, origin) in self.0.options(SECTION) {
            if !OWN.contains(&option) {
                return Err(Error::Unknown {
                    origin: origin.clone(),
                    option: option.to_owned(),
                    known: OWN.join(", "),
                });
            }
        }
        Ok(())
    }
}

pub(super) fn absolute(section: &'static str, option: &'static str, value: &Value) -> Result<PathBuf, Error> {
    let path = Path::new(&value.text);
    if path.is_absolute() {
        return Ok(path.into());
    }
    Err(Error::new(section, option, value.clone(), "expected an absolute path".into()))
}

pub(super) fn boolean(text: &str) -> Result<bool, String> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "1" | "on" | "yes" => Ok(true),
        "false" | "0" | "off" | "no" => Ok(false),
        _ => Err("expected true or false".into()),
    }
}

pub(super) fn number(text: &str, least: usize, most: usize) -> Result<usize, String> {
    let value = text.parse().ok().filter(|value| (least..=most).contains(value));
    value.ok_or_else(|| format!("expected a whole number from {least} to {most}"))
}

pub(super) fn seconds(text: &str) -> Result<Duration, String> {
    let value: Option<f64> = text.parse().ok().filter(|value| (0.0..=86_400.0).contains(value));
    value.map(Duration::from_secs_f64).ok_or_else(|| "expected seconds, 0 to 86400".into())
}

pub(super) fn milliseconds(text: &str) -> Result<Duration, String> {
    let value = text.parse().ok().filter(|value| *value <= 86_400_000);
    value.map(Duration::from_millis).ok_or_else(|| "expected milliseconds, 0 to 86400000".into())
}

/// A time that must not be over before it began.
pub(super) fn timeout(text: &str) -> Result<Duration, String> {
    match seconds(text) {
        Ok(time) if !time.is_zero() => Ok(time),
        _ => Err("expected seconds, more than 0 and up to 86400".into()),
    }
}
