//! Reads the INI files of OpenStack services the way oslo.config does.
//!
//! Rules, from oslo.config's `iniparser` and `cfg`: `key = value` or `key: value`, whichever comes first; an indented
//! line continues the value above it; comments start a line with `#` or `;`; a pair of quotes around a value is taken
//! off; `$name`, `${name}` and `${group.name}` are replaced, `$$` is a dollar; of several values the last one counts.
use std::{
    collections::BTreeMap,
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
};

/// Section used before any header, and when a reference names no other.
pub(super) const DEFAULT: &str = "DEFAULT";

/// Where a value stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// The file.
    pub file: Arc<Path>,
    /// Line number, from 1.
    pub line: usize,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file.display(), self.line)
    }
}

/// A value and where it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Value {
    /// The text, references already replaced.
    pub text: String,
    /// For error messages.
    pub origin: Origin,
}

impl Value {
    /// A value that no file has.
    pub(super) fn default(text: &str) -> Self {
        Self { text: text.to_owned(), origin: Origin { file: Path::new("(default)").into(), line: 0 } }
    }
}

/// What keeps a file from being read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file system refused.
    #[error("cannot read {path}: {error}", path = .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// A line that is none of the things that a line can be.
    /// The line itself is not shown: it may be the one with the secret.
    #[error("{origin}: {problem}")]
    Syntax {
        /// Where.
        origin: Origin,
        /// What is wrong and what would be right.
        problem: &'static str,
    },
}

/// All options of some files: section → option → values in the order they were read.
#[derive(Debug, Default)]
pub(super) struct Ini {
    sections: BTreeMap<String, BTreeMap<String, Vec<Value>>>,
}

impl Ini {
    /// Adds a file; its values come after, and so win over, those that are there.
    pub(super) fn read(&mut self, path: &Path) -> Result<(), Error> {
        let bytes = std::fs::read(path).map_err(|error| Error::Read { path: path.into(), error })?;
        let text = String::from_utf8(bytes).map_err(|error| Error::Syntax {
            origin: Origin {
                file: path.into(),
                line: error.as_bytes()[..error.utf8_error().valid_up_to()]
                    .iter()
                    .filter(|b| **b == b'\n')
                    .count()
                    + 1,
            },
            problem: "the file must be UTF-8",
        })?;
        self.parse(path, &text)
    }

    /// Adds the text of a file; `path` is for messages.
    pub(super) fn parse(&mut self, path: &Path, text: &str) -> Result<(), Error> {
        let file: Arc<Path> = path.into();
        let mut section = DEFAULT.to_owned();
        let mut open: Option<(String, Vec<String>, usize)> = None;
        for (index, line) in text.lines().enumerate() {
            let origin = Origin { file: file.clone(), line: index + 1 };
            let syntax = |problem| Error::Syntax { origin: origin.clone(), problem };
            if line.trim().is_empty() {
                self.close(&section, open.take(), &file);
            } else if line.starts_with([' ', '\t']) {
                match &mut open {
                    Some((_, lines, _)) => lines.push(line.trim().to_owned()),
                    None => {
                        return Err(syntax(
                            "an indented line continues the option above it, and there is none",
                        ));
                    }
                }
            } else if line.starts_with(['#', ';']) {
                self.close(&section, open.take(), &file);
            } else if let Some(rest) = line.strip_prefix('[') {
                self.close(&section, open.take(), &file);
                let Some(name) = rest.trim_end().strip_suffix(']') else {
                    return Err(syntax("a section header must end with ']'"));
                };
                section = name.to_owned();
            } else {
                self.close(&section, open.take(), &file);
                let Some(at) = line.find(['=', ':']) else {
                    return Err(syntax(
                        "expected 'option = value', a [section], or a comment starting with '#'",
                    ));
                };
                let key = line[..at].trim();
                if key.is_empty() {
                    return Err(syntax("there is no option name before the sign"));
                }
                open = Some((key.to_owned(), vec![unquote(line[at + 1..].trim()).to_owned()], index + 1));
            }
        }
        self.close(&section, open.take(), &file);
        Ok(())
    }

    fn close(&mut self, section: &str, option: Option<(String, Vec<String>, usize)>, file: &Arc<Path>) {
        if let Some((key, lines, line)) = option {
            let value = Value { text: lines.join("\n"), origin: Origin { file: file.clone(), line } };
            self.sections.entry(section.to_owned()).or_default().entry(key).or_default().push(value);
        }
    }

    /// The last value of an option, references replaced.
    pub(super) fn get(&self, section: &str, option: &str) -> Option<Value> {
        self.get_nested(section, option, 0)
    }

    /// Names and values' origins of everything in a section.
    pub(super) fn options(&self, section: &str) -> impl Iterator<Item = (&str, &Origin)> {
        let options = self.sections.get(section).into_iter().flatten();
        options.filter_map(|(name, values)| Some((name.as_str(), &values.last()?.origin)))
    }

    fn get_nested(&self, section: &str, option: &str, depth: usize) -> Option<Value> {
        let value = self.sections.get(section)?.get(option)?.last()?;
        Some(Value { text: self.substitute(section, &value.text, depth), origin: value.origin.clone() })
    }

    /// A reference that leads nowhere stays as it stands, as in oslo.config (`safe_substitute`).
    fn substitute(&self, section: &str, text: &str, depth: usize) -> String {
        /// Deeper nesting than this can only be a circle.
        const MAX_DEPTH: usize = 16;
        if depth >= MAX_DEPTH {
            return text.to_owned();
        }
        let text = text.replace("\\$", "$$");
        let mut out = String::with_capacity(text.len());
        let mut rest = text.as_str();
        while let Some(at) = rest.find('$') {
            out.push_str(&rest[..at]);
            rest = &rest[at + 1..];
            if let Some(after) = rest.strip_prefix('$') {
                out.push('$');
                rest = after;
                continue;
            }
            let (name, length) = reference(rest);
            let found = name.and_then(|name| match name.split_once('.') {
                Some((group, option)) => self.get_nested(group, option, depth + 1),
                None => self
                    .get_nested(section, name, depth + 1)
                    .or_else(|| self.get_nested(DEFAULT, name, depth + 1)),
            });
            match found {
                Some(value) => out.push_str(&value.text),
                None => {
                    out.push('$');
                    out.push_str(&rest[..length]);
                }
            }
            rest = &rest[length..];
        }
        out.push_str(rest);
        out
    }
}

/// The name a `$` refers to, and how many bytes of what follows the `$` belong to the reference.
fn reference(rest: &str) -> (Option<&str>, usize) {
    if let Some(inner) = rest.strip_prefix('{') {
        return match inner.find('}') {
            Some(end) => (Some(&inner[..end]), end + 2),
            None => (None, 0),
        };
    }
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '.';
    let end = rest.find(|c| !word(c)).unwrap_or(rest.len());
    let name = rest[..end].trim_end_matches('.');
    if name.is_empty() || name.starts_with(|c: char| c.is_ascii_digit()) {
        (None, 0)
    } else {
        (Some(name), name.len())
    }
}

fn unquote(text: &str) -> &str {
    for quote in ['"', '\''] {
        if let Some(inner) = text.strip_prefix(quote).and_then(|rest| rest.strip_suffix(quote)) {
            return inner;
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Ini, Error> {
        let mut ini = Ini::default();
        ini.parse(Path::new("test.ini"), text)?;
        Ok(ini)
    }

    fn get(text: &str, section: &str, option: &str) -> Option<String> {
        parse(text).unwrap().get(section, option).map(|value| value.text)
    }

    #[test]
    fn values_as_oslo_reads_them() {
        let cases = [
            ("[a]\nx = 1", "1"),
            ("[a]\nx=1", "1"),
            ("[a]\nx: 1", "1"),
            ("[a]\nx = tcp:127.0.0.1:6642", "tcp:127.0.0.1:6642"),
            ("[a]\nx: a=b", "a=b"),
            ("[a]\nx = 'quoted '", "quoted "),
            ("[a]\nx = \"quoted\"", "quoted"),
            ("[a]\nx = \"one sided", "\"one sided"),
            ("[a]\nx = a # not a comment", "a # not a comment"),
            ("[a]\nx = one,\n    two,\n\tthree\ny = 1", "one,\ntwo,\nthree"),
            ("[a]\nx = old\nx = new", "new"),
            ("[a]\nx = 1\n[b]\nx = 2\n[a]\nx = 3", "3"),
            ("[a]\nx =", ""),
            ("# c\n; c\n\n[a]\nx = 1", "1"),
            ("[a]\nx = pa\\$\\$word", "pa$$word"),
            ("[a]\nx = back\\slash", "back\\slash"),
        ];
        for (text, expected) in cases {
            assert_eq!(get(text, "a", "x").as_deref(), Some(expected), "{text:?}");
        }
    }

    #[test]
    fn references() {
        let text = "state_path = /var/lib\n[a]\nx = $state_path/y and ${state_path}, ${b.z}; $unknown $$5 $\n[b]\nz = $state_path";
        assert_eq!(get(text, "a", "x").as_deref(), Some("/var/lib/y and /var/lib, /var/lib; $unknown $5 $"));
        // A circle ends, in whatever text.
        assert!(get("[a]\nx = $y\ny = $x", "a", "x").is_some());
    }

    #[test]
    fn later_files_win() {
        let mut ini = parse("[a]\nx = 1\ny = 1").unwrap();
        ini.parse(Path::new("second.ini"), "[a]\nx = 2").unwrap();
        assert_eq!(ini.get("a", "x").unwrap().text, "2");
        assert_eq!(ini.get("a", "x").unwrap().origin.to_string(), "second.ini:2");
        assert_eq!(ini.get("a", "y").unwrap().text, "1");
    }

    #[test]
    fn bad_lines_are_named() {
        let cases = [
            ("[a]\nno sign", "test.ini:2: expected 'option = value'"),
            ("[a\nx = 1", "test.ini:1: a section header must end with ']'"),
            ("  x = 1", "test.ini:1: an indented line continues"),
            ("[a]\n= 1", "test.ini:2: there is no option name"),
        ];
        for (text, expected) in cases {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.starts_with(expected), "{error}");
        }
        let error = parse("metadata_proxy_shared_secret s3cret").unwrap_err();
        assert!(!error.to_string().contains("s3cret"), "{error}");
    }
}
