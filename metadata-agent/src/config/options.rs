//! Typed access to options, with errors that name the place.
use std::{
    cell::RefCell,
    collections::BTreeSet,
    fmt::Display,
    path::{Path, PathBuf},
    time::Duration,
};

use super::{
    Error, OWN, Rate, SECTION,
    ini::{Ini, Value},
    references,
};

/// The options of all files, and a record of those that differ from their defaults.
pub(super) struct Options<'a> {
    ini: &'a Ini,
    differing: RefCell<BTreeSet<String>>,
}

impl<'a> Options<'a> {
    pub(super) fn new(ini: &'a Ini) -> Self {
        Self { ini, differing: RefCell::default() }
    }

    /// The files that they are from.
    pub(super) fn files(&self) -> Vec<PathBuf> {
        self.ini.files.clone()
    }

    /// Those read so far that differ from their defaults.
    pub(super) fn differing(&self) -> Vec<String> {
        self.differing.borrow().iter().cloned().collect()
    }

    /// Records that an option differs from its default.
    pub(super) fn differs(&self, section: &str, option: &str, shown: impl Display) {
        self.differing.borrow_mut().insert(format!("[{section}] {option} = {shown}"));
    }

    /// The same, as it stands: a reference might lead to a secret.
    pub(super) fn differs_as_it_stands(&self, section: &str, option: &str) {
        if let Some(value) = self.ini.raw(section, option) {
            self.differs(section, option, &value.text);
        }
    }

    /// The last value, if there is one, references replaced.
    pub(super) fn text(&self, section: &'static str, option: &'static str) -> Result<Option<Value>, Error> {
        let Some(Value { text, origin }) = self.ini.raw(section, option) else { return Ok(None) };
        match references::resolve(self.ini, section, text) {
            Ok(text) => Ok(Some(Value { text, origin: origin.clone() })),
            Err(references::Unresolved) => Err(Error::Reference { origin: origin.clone(), section, option }),
        }
    }

    /// The value as `parse` understands it.
    pub(super) fn parse<T: PartialEq>(
        &self,
        section: &'static str,
        option: &'static str,
        default: T,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Result<T, Error> {
        let Some(value) = self.text(section, option)? else { return Ok(default) };
        let parsed =
            parse(value.text.trim()).map_err(|problem| Error::new(section, option, value, problem))?;
        if parsed != default {
            self.differs_as_it_stands(section, option);
        }
        Ok(parsed)
    }

    /// A path, if one is named.
    pub(super) fn path(&self, section: &'static str, option: &'static str) -> Result<Option<PathBuf>, Error> {
        let path = self.named_path(section, option)?;
        if path.is_some() {
            self.differs_as_it_stands(section, option);
        }
        Ok(path)
    }

    /// A path that has a default.
    pub(super) fn path_or(
        &self,
        section: &'static str,
        option: &'static str,
        default: &str,
    ) -> Result<PathBuf, Error> {
        let path = self.named_path(section, option)?.unwrap_or_else(|| default.into());
        if path != Path::new(default) {
            self.differs_as_it_stands(section, option);
        }
        Ok(path)
    }

    fn named_path(&self, section: &'static str, option: &'static str) -> Result<Option<PathBuf>, Error> {
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
        for (option, origin) in self.ini.options(SECTION) {
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

fn absolute(section: &'static str, option: &'static str, value: &Value) -> Result<PathBuf, Error> {
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
