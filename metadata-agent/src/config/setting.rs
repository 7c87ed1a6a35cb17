//! An option as it is declared: its place, its default, the values it takes and their meaning.
use std::{
    fmt::{self, Display},
    path::{Path as FilePath, PathBuf},
    str::FromStr,
    time::Duration,
};

/// A declared option. `K` says which values it takes, and which type they have for the program.
#[derive(Debug)]
pub(super) struct Setting<K> {
    /// Its section.
    pub section: &'static str,
    /// Its name.
    pub name: &'static str,
    /// Its value where no file has it.
    pub preset: Preset,
    /// Its values.
    pub kind: K,
    /// Its meaning, for the documentation and the sample configuration: text, in which `` ` `` quotes words of a file.
    pub meaning: &'static str,
}

/// The value of an option that no file has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Preset {
    /// As it would stand in a file; empty for none.
    Text(&'static str),
    /// There is none: it must be set.
    Required {
        /// Advice for who has not.
        remedy: &'static str,
    },
}

/// The values of an option.
pub(super) trait Kind {
    /// A value for the program.
    type Value: PartialEq;
    /// An option without a text counts as one that is not set.
    const EMPTY_IS_UNSET: bool = false;

    /// The value of a text in a file, references replaced. The error says what would be right.
    fn parse(&self, text: &str) -> Result<Self::Value, String>;

    /// The values that there are, in words.
    fn range(&self) -> String;

    /// A text as it may be shown to anybody.
    fn shown(&self, text: &str) -> String {
        text.to_owned()
    }
}

/// A setting of any kind, for who goes through all of them.
pub(super) trait Entry: Sync {
    /// Its section.
    fn section(&self) -> &'static str;
    /// Its name.
    fn name(&self) -> &'static str;
    /// Its value where no file has it.
    fn preset(&self) -> Preset;
    /// The values that there are, in words.
    fn range(&self) -> String;
    /// Its meaning.
    fn meaning(&self) -> &'static str;
    /// A text as it may be shown to anybody.
    fn shown(&self, text: &str) -> String;
    /// Fails for a text that is none of its values.
    #[cfg(test)]
    fn check(&self, text: &str) -> Result<(), String>;
}

impl<K: Kind + Sync> Entry for Setting<K> {
    fn section(&self) -> &'static str {
        self.section
    }

    fn name(&self) -> &'static str {
        self.name
    }

    fn preset(&self) -> Preset {
        self.preset
    }

    fn range(&self) -> String {
        self.kind.range()
    }

    fn meaning(&self) -> &'static str {
        self.meaning
    }

    fn shown(&self, text: &str) -> String {
        self.kind.shown(text)
    }

    #[cfg(test)]
    fn check(&self, text: &str) -> Result<(), String> {
        self.kind.parse(text).map(drop)
    }
}

/// True or false, as oslo.config writes it.
#[derive(Debug)]
pub(super) struct Boolean;

impl Kind for Boolean {
    type Value = bool;

    fn parse(&self, text: &str) -> Result<bool, String> {
        match text.trim().to_ascii_lowercase().as_str() {
            "true" | "1" | "on" | "yes" => Ok(true),
            "false" | "0" | "off" | "no" => Ok(false),
            _ => Err("expected true or false".into()),
        }
    }

    fn range(&self) -> String {
        "true or false".into()
    }
}

/// A whole number from `least` to `most`.
#[derive(Debug)]
pub(super) struct Number<T> {
    /// The least.
    pub least: T,
    /// The most.
    pub most: T,
}

impl<T: FromStr + PartialOrd + Display> Kind for Number<T> {
    type Value = T;

    fn parse(&self, text: &str) -> Result<T, String> {
        number(text.trim(), &self.least, &self.most)
    }

    fn range(&self) -> String {
        format!("{} to {}", self.least, self.most)
    }
}

/// A whole number from `least` to `most`.
pub(super) fn number<T: FromStr + PartialOrd + Display>(
    text: &str,
    least: &T,
    most: &T,
) -> Result<T, String> {
    let value = text.parse().ok().filter(|value| (least..=most).contains(&value));
    value.ok_or_else(|| format!("expected a whole number from {least} to {most}"))
}

/// Seconds, of which there may be a part, from `least` to a day.
#[derive(Debug)]
pub(super) struct Seconds {
    /// The least; for none a time must not be over before it began.
    pub least: Option<u32>,
}

/// The longest time that can be set.
const DAY: f64 = 86_400.0;

impl Kind for Seconds {
    type Value = Duration;

    fn parse(&self, text: &str) -> Result<Duration, String> {
        let is_enough = |value: &f64| match self.least {
            Some(least) => *value >= f64::from(least),
            None => *value > 0.0,
        };
        let value = text.trim().parse().ok().filter(|value| is_enough(value) && *value <= DAY);
        value.map(Duration::from_secs_f64).ok_or_else(|| format!("expected seconds, {}", self.range()))
    }

    fn range(&self) -> String {
        match self.least {
            Some(least) => format!("{least} to {DAY}"),
            None => format!("more than 0 and up to {DAY}"),
        }
    }
}

/// Milliseconds, up to a day.
#[derive(Debug)]
pub(super) struct Milliseconds;

impl Kind for Milliseconds {
    type Value = Duration;

    fn parse(&self, text: &str) -> Result<Duration, String> {
        let value = text.trim().parse().ok().filter(|value| *value <= 86_400_000);
        value.map(Duration::from_millis).ok_or_else(|| format!("expected milliseconds, {}", self.range()))
    }

    fn range(&self) -> String {
        "0 to 86400000".into()
    }
}

/// One of some words.
#[derive(Debug)]
pub(super) struct Choice<T: 'static>(pub &'static [(&'static str, T)]);

impl<T: Copy + PartialEq> Kind for Choice<T> {
    type Value = T;

    fn parse(&self, text: &str) -> Result<T, String> {
        let chosen = self.0.iter().find(|(word, _)| *word == text.trim());
        chosen.map(|(_, value)| *value).ok_or_else(|| format!("expected {}", self.range()))
    }

    fn range(&self) -> String {
        let words: Vec<_> = self.0.iter().map(|(word, _)| *word).collect();
        match &words[..] {
            [others @ .., last] if !others.is_empty() => format!("{} or {last}", others.join(", ")),
            _ => words.concat(),
        }
    }
}

/// Text with a meaning of its own.
#[derive(Debug)]
pub(super) struct Words<T> {
    /// Reads it; the error says what would be right.
    pub parse: fn(&str) -> Result<T, String>,
    /// The values that there are, in words.
    pub range: &'static str,
}

impl<T: PartialEq> Kind for Words<T> {
    type Value = T;

    fn parse(&self, text: &str) -> Result<T, String> {
        (self.parse)(text.trim())
    }

    fn range(&self) -> String {
        self.range.into()
    }
}

/// A file or folder, by its absolute path.
#[derive(Debug)]
pub(super) struct Path;

impl Kind for Path {
    type Value = PathBuf;
    const EMPTY_IS_UNSET: bool = true;

    fn parse(&self, text: &str) -> Result<PathBuf, String> {
        let path = FilePath::new(text);
        path.is_absolute().then(|| path.into()).ok_or_else(|| "expected an absolute path".into())
    }

    fn range(&self) -> String {
        "an absolute path".into()
    }
}

/// A file or folder that need not be named.
#[derive(Debug)]
pub(super) struct OptionalPath;

impl Kind for OptionalPath {
    type Value = Option<PathBuf>;
    const EMPTY_IS_UNSET: bool = true;

    fn parse(&self, text: &str) -> Result<Option<PathBuf>, String> {
        if text.is_empty() { Ok(None) } else { Path.parse(text).map(Some) }
    }

    fn range(&self) -> String {
        Path.range()
    }
}

/// A text that is shown to nobody.
#[derive(Debug)]
pub(super) struct Hidden;

impl Kind for Hidden {
    type Value = Secret;

    fn parse(&self, text: &str) -> Result<Secret, String> {
        Ok(Secret::new(text))
    }

    fn range(&self) -> String {
        "any text".into()
    }

    fn shown(&self, text: &str) -> String {
        format!("{:?}", Secret::new(text))
    }
}

/// A text that never appears in logs.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    pub(super) fn new(text: &str) -> Self {
        Self(text.to_owned())
    }

    /// The secret itself.
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// True if it is known to everybody.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_empty() { "(empty)" } else { "(set)" })
    }
}
