//! Reads the INI files of OpenStack services the way oslo.config does (`iniparser` and `cfg.ConfigParser`).
//!
//! `key = value` or `key: value`, whichever comes first; an indented line continues the value above it; comments start a
//! line with `#` or `;`; a pair of quotes around a value is taken off; sections' names are the same in upper and lower
//! case, but for DEFAULT's; of several values the last one counts. `oslo.rs` compares all of that.
use std::{
    collections::BTreeMap,
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
};

use aws_lc_rs::digest;

/// The section that references name by naming none.
pub(super) const DEFAULT: &str = "DEFAULT";

/// Origin of a value: file and line.
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
    /// The text.
    pub text: String,
    /// For error messages.
    pub origin: Origin,
}

impl Value {
    /// A value that no file has.
    pub(super) fn preset(text: &str) -> Self {
        Self { text: text.to_owned(), origin: Origin { file: Path::new("(default)").into(), line: 0 } }
    }
}

/// An error in reading a file.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file system refused.
    #[error("cannot read {path}: {error}", path = .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The error.
        error: std::io::Error,
    },
    /// A line that is none of the things that a line can be.
    /// The line itself is not shown: it may be the one with the secret.
    #[error("{origin}: {problem}")]
    Syntax {
        /// The origin of the line.
        origin: Origin,
        /// Explanation: what is wrong, and what would be right.
        problem: &'static str,
    },
}

/// All options of some files: section → option → the value that was read last.
#[derive(Debug, Default)]
pub(super) struct Ini {
    /// In the order in which they were read.
    pub files: Vec<PathBuf>,
    /// SHA-256 of the last file's name and text, with that of the files before it; nothing where none was read.
    pub digest: Vec<u8>,
    sections: BTreeMap<String, BTreeMap<String, Value>>,
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
        self.files.push(path.into());
        let mut digest = digest::Context::new(&digest::SHA256);
        for part in [&*self.digest, path.as_os_str().as_encoded_bytes(), b"\0", text.as_bytes()] {
            digest.update(part);
        }
        self.digest = digest.finish().as_ref().to_vec();
        let file: Arc<Path> = path.into();
        let mut section: Option<String> = None;
        let mut open: Option<Open> = None;
        for (index, line) in lines(text).enumerate() {
            let origin = Origin { file: file.clone(), line: index + 1 };
            let syntax = |problem| Error::Syntax { origin: origin.clone(), problem };
            let line = line.trim_end_matches(is_space);
            if line.starts_with([' ', '\t']) {
                let Some(open) = &mut open else {
                    return Err(syntax("an indented line continues the option above it, and there is none"));
                };
                open.lines.push(line.trim_start_matches(is_space).to_owned());
                continue;
            }
            self.close(section.as_deref(), open.take())?;
            if line.is_empty() || line.starts_with(['#', ';']) {
                continue;
            }
            if let Some(rest) = line.strip_prefix('[') {
                section = match rest.strip_suffix(']') {
                    Some("") => return Err(syntax("a section has a name")),
                    Some(name) => Some(normalized(name)),
                    None => return Err(syntax("a section header must end with ']'")),
                };
                continue;
            }
            let Some((key, value)) = line.split_once(['=', ':']) else {
                return Err(syntax("expected 'option = value', a [section], or a comment starting with '#'"));
            };
            let key = key.trim_matches(is_space).to_owned();
            if key.is_empty() {
                return Err(syntax("there is no option name before the sign"));
            }
            open = Some(Open { key, lines: vec![unquote(value.trim_matches(is_space)).to_owned()], origin });
        }
        self.close(section.as_deref(), open)
    }

    fn close(&mut self, section: Option<&str>, option: Option<Open>) -> Result<(), Error> {
        let Some(Open { key, lines, origin }) = option else { return Ok(()) };
        let Some(section) = section else {
            let problem = "the option stands before any section; is a line [DEFAULT] missing above it?";
            return Err(Error::Syntax { origin, problem });
        };
        let value = Value { text: lines.join("\n"), origin };
        self.sections.entry(section.to_owned()).or_default().insert(key, value);
        Ok(())
    }

    /// The last value of an option, references as they stand. `section` is in lower case, unless it is DEFAULT.
    pub(super) fn raw(&self, section: &str, option: &str) -> Option<&Value> {
        self.sections.get(section)?.get(option)
    }

    /// The options that `shown` has a text for, with that text.
    pub(super) fn filtered(&self, shown: impl Fn(&str, &str, &str) -> Option<String>) -> Self {
        let of_section = |(section, options): (&String, &BTreeMap<String, Value>)| {
            let option = |(option, value): (&String, &Value)| {
                let text = shown(section, option, &value.text)?;
                Some((option.clone(), Value { text, origin: value.origin.clone() }))
            };
            (section.clone(), options.iter().filter_map(option).collect())
        };
        Self {
            files: self.files.clone(),
            digest: self.digest.clone(),
            sections: self.sections.iter().map(of_section).collect(),
        }
    }

    /// Names and values' origins of everything in a section.
    pub(super) fn options(&self, section: &str) -> impl Iterator<Item = (&str, &Origin)> {
        let options = self.sections.get(section).into_iter().flatten();
        options.map(|(name, value)| (name.as_str(), &value.origin))
    }
}

/// An option whose value may go on.
struct Open {
    key: String,
    lines: Vec<String>,
    origin: Origin,
}

/// Lines as Python reads them from a file: each of LF, CR and CR LF ends one.
fn lines(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = Some(text);
    std::iter::from_fn(move || {
        let text = rest?;
        let Some(end) = text.find(['\n', '\r']) else { return rest.take() };
        let after = &text[end..];
        rest = after.strip_prefix("\r\n").or_else(|| after.get(1..));
        Some(&text[..end])
    })
}

/// White space as Python's `strip` takes it off: Unicode's, and the separators of ASCII.
fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\x1c'..='\x1f').contains(&c)
}

/// The name that a section goes by.
pub(super) fn normalized(section: &str) -> String {
    if section == DEFAULT { DEFAULT.to_owned() } else { section.to_lowercase() }
}

fn unquote(text: &str) -> &str {
    for quote in ['"', '\''] {
        if let Some(rest) = text.strip_prefix(quote) {
            // A quote that stands alone is its own end.
            return if rest.is_empty() { "" } else { rest.strip_suffix(quote).unwrap_or(text) };
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
            ("[a]\nx = \"", ""),
            ("[a]\nx = a # not a comment", "a # not a comment"),
            ("[a]\nx = one,\n    two,\n\tthree\ny = 1", "one,\ntwo,\nthree"),
            ("[a]\nx = old\nx = new", "new"),
            ("[a]\nx = 1\n[b]\nx = 2\n[a]\nx = 3", "3"),
            ("[a]\nx = 1\n[A]\nx = 2", "2"),
            ("[a]\nx =", ""),
            ("# c\n; c\n\n[a]\nx = 1", "1"),
            ("[a]\r\nx = 1\r\n", "1"),
            ("[a]\rx = 1\ry = 2\r", "1"),
        ];
        for (text, expected) in cases {
            assert_eq!(parse(text).unwrap().raw("a", "x").unwrap().text, expected, "{text:?}");
        }
    }

    #[test]
    fn the_section_default_is_written_so() {
        for header in ["default", "Default"] {
            assert_eq!(parse(&format!("[{header}]\nx = 1")).unwrap().raw(DEFAULT, "x"), None, "{header}");
        }
    }

    #[test]
    fn later_files_win() {
        let mut ini = parse("[a]\nx = 1\ny = 1").unwrap();
        ini.parse(Path::new("second.ini"), "[a]\nx = 2").unwrap();
        assert_eq!(ini.raw("a", "x").unwrap().text, "2");
        assert_eq!(ini.raw("a", "x").unwrap().origin.to_string(), "second.ini:2");
        assert_eq!(ini.raw("a", "y").unwrap().text, "1");
    }

    #[test]
    fn bad_lines_are_named() {
        let cases = [
            ("[a]\nno sign", "test.ini:2: expected 'option = value'"),
            ("[a\nx = 1", "test.ini:1: a section header must end with ']'"),
            ("[]\nx = 1", "test.ini:1: a section has a name"),
            ("  x = 1", "test.ini:1: an indented line continues"),
            ("[a]\n= 1", "test.ini:2: there is no option name"),
            ("\nx = 1", "test.ini:2: the option stands before any section"),
        ];
        for (text, expected) in cases {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.starts_with(expected), "{error}");
        }
        let error = parse("metadata_proxy_shared_secret s3cret").unwrap_err();
        assert!(!error.to_string().contains("s3cret"), "{error}");
    }
}
