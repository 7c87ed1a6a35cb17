//! Typed access to options, with errors that name the place.
use std::{cell::RefCell, collections::BTreeSet, path::PathBuf};

use super::{
    Error, Rate,
    ini::{Ini, Value},
    references,
    setting::{Kind, Number, Preset, Setting},
    table::{OWN, TABLE},
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

    /// Digest of those files.
    pub(super) fn digest(&self) -> Vec<u8> {
        self.ini.digest.clone()
    }

    /// Those read so far that differ from their defaults.
    pub(super) fn differing(&self) -> Vec<String> {
        self.differing.borrow().iter().cloned().collect()
    }

    /// The last value, if there is one, references replaced.
    pub(super) fn text(&self, section: &'static str, option: &'static str) -> Result<Option<Value>, Error> {
        let Some(Value { text, origin }) = self.ini.raw(section, option) else { return Ok(None) };
        match references::resolve(self.ini, section, text) {
            Ok(text) => Ok(Some(Value { text, origin: origin.clone() })),
            Err(references::Unresolved) => Err(Error::Reference { origin: origin.clone(), section, option }),
        }
    }

    /// The value of an option, which is its default where no file has it.
    pub(super) fn get<K: Kind>(&self, setting: &Setting<K>) -> Result<K::Value, Error> {
        let Setting { section, name, preset, ref kind, .. } = *setting;
        let parse = |value: Value| {
            let parsed = kind.parse(&value.text);
            parsed.map_err(|problem| Error::new(section, name, value, problem))
        };
        let default = match preset {
            Preset::Text(text) => Ok(parse(Value::preset(text))?),
            Preset::Required { remedy } => Err(Error::missing(setting, remedy)),
        };
        let set = self.text(section, name)?.filter(|value| !(K::EMPTY_IS_UNSET && value.text.is_empty()));
        let Some(value) = set else { return default };
        let parsed = parse(value)?;
        if default.ok().as_ref() != Some(&parsed)
            // As it stands: a reference might lead to a secret.
            && let Some(value) = self.ini.raw(section, name)
        {
            let shown = kind.shown(&value.text);
            self.differing.borrow_mut().insert(format!("[{section}] {name} = {shown}"));
        }
        Ok(parsed)
    }

    /// Two options that are one rate.
    pub(super) fn rate(
        &self,
        rate: &Setting<Number<u32>>,
        burst: &Setting<Number<u32>>,
    ) -> Result<Rate, Error> {
        Ok(Rate { rate: self.get(rate)?, burst: self.get(burst)? })
    }

    /// The error for a value that is good by itself and not beside others.
    pub(super) fn unusable<K>(&self, setting: &Setting<K>, problem: String) -> Error {
        let value = self.ini.raw(setting.section, setting.name).cloned();
        Error::new(setting.section, setting.name, value.unwrap_or_else(|| Value::preset("")), problem)
    }

    /// Other services' sections may hold what they like, ours may not: a misspelt option would silently not count.
    pub(super) fn check_own(&self) -> Result<(), Error> {
        let own = TABLE.iter().filter(|entry| entry.section() == OWN);
        let known: Vec<_> = own.map(|entry| entry.name()).collect();
        match self.ini.options(OWN).find(|(option, _)| !known.contains(option)) {
            None => Ok(()),
            Some((option, origin)) => Err(Error::Unknown {
                origin: origin.clone(),
                option: option.to_owned(),
                known: known.join(", "),
            }),
        }
    }
}
