//! Rules of session tokens, as options have them: modes, for whom, and for which paths.
use super::setting::{Choice, Kind as _, number};

/// Stands for every path.
pub const EVERY_PATH: &str = "*";

/// Mode of session tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenMode {
    /// There are none; Nova answers what is asked.
    Off,
    /// They are given, and checked where one is sent.
    Optional,
    /// Some paths are for those only who send one.
    Required,
}

/// Modes by their names.
pub(super) const MODES: &[(&str, TokenMode)] =
    &[("off", TokenMode::Off), ("optional", TokenMode::Optional), ("required", TokenMode::Required)];

/// Mode of the projects or networks whose id is like that.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    pattern: String,
    /// The mode.
    pub(super) mode: TokenMode,
}

impl Rule {
    /// Tells whether it is for that project or network.
    pub(super) fn is_for(&self, id: &str) -> bool {
        is_like(self.pattern.as_bytes(), id.as_bytes())
    }
}

fn mode(text: &str) -> Result<TokenMode, String> {
    Choice(MODES).parse(text)
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| c == ',' || c.is_whitespace()).filter(|word| !word.is_empty())
}

/// `PATTERN:MODE`, several with commas or space between them.
pub(super) fn rules(text: &str) -> Result<Vec<Rule>, String> {
    let rule = |word: &str| {
        let expected = || format!("{word:?} is no PATTERN:MODE, as in 51bb*:required");
        let (pattern, named) = word.rsplit_once(':').ok_or_else(expected)?;
        if pattern.is_empty() {
            return Err(expected());
        }
        Ok(Rule {
            pattern: pattern.to_owned(),
            mode: mode(named).map_err(|problem| format!("{word:?}: {problem}"))?,
        })
    };
    words(text).map(rule).collect()
}

/// Names of documents and folders.
pub(super) fn parts(text: &str) -> Result<Vec<String>, String> {
    let part = |word: &str| {
        // As it stands in a path when nothing is left to decode.
        let is_plain = |c: char| c.is_ascii_graphic() && !"/\\%;?#*".contains(c);
        (word == EVERY_PATH || word.chars().all(is_plain)).then(|| word.to_owned()).ok_or_else(|| {
            format!("{word:?} is no part of a path: name documents or folders as in user_data, or all paths by {EVERY_PATH}")
        })
    };
    let parts = words(text).map(part).collect::<Result<Vec<_>, _>>()?;
    if parts.is_empty() { Err("expected at least one part of a path".into()) } else { Ok(parts) }
}

/// 0 for the system's default.
pub(super) fn hops(text: &str) -> Result<Option<u8>, String> {
    Ok(Some(number(text, &0, &64)?).filter(|hops| *hops > 0))
}

/// Tells whether an id is like a pattern, in which `*` stands for any characters and `?` for one.
fn is_like(pattern: &[u8], id: &[u8]) -> bool {
    // Where the last star was, and how much of the id it stands for by now.
    let (mut pattern_at, mut id_at, mut star) = (0, 0, None);
    while id_at < id.len() {
        match pattern.get(pattern_at) {
            Some(b'*') => {
                star = Some((pattern_at, id_at));
                pattern_at += 1;
            }
            Some(byte) if *byte == b'?' || *byte == id[id_at] => {
                pattern_at += 1;
                id_at += 1;
            }
            _ => match &mut star {
                Some((of_pattern, of_id)) => {
                    *of_id += 1;
                    (pattern_at, id_at) = (*of_pattern + 1, *of_id);
                }
                None => return false,
            },
        }
    }
    pattern[pattern_at..].iter().all(|byte| *byte == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_are_like_ids() {
        for (pattern, id, expected) in [
            ("*", "", true),
            ("*", "abc", true),
            ("abc", "abc", true),
            ("abc", "abcd", false),
            ("abcd", "abc", false),
            ("a*", "abc", true),
            ("*c", "abc", true),
            ("a*c*e", "abcdce", true),
            ("a*c*e", "abcdcf", false),
            ("a?c", "abc", true),
            ("a?c", "ac", false),
            ("", "", true),
            ("", "a", false),
            ("**a**", "bab", true),
        ] {
            assert_eq!(is_like(pattern.as_bytes(), id.as_bytes()), expected, "{pattern} {id}");
        }
        // Going back to the last star only, it takes no time that matters.
        assert!(!is_like("*a".repeat(50).as_bytes(), "ab".repeat(40).as_bytes()));
    }

    #[test]
    fn mistakes_are_told() {
        for (text, problem) in [
            ("51bb", "is no PATTERN:MODE"),
            (":required", "is no PATTERN:MODE"),
            ("a:on", "expected off, optional or required"),
        ] {
            assert!(rules(text).unwrap_err().contains(problem), "{text}");
        }
        for text in ["/latest/user-data", "user%2ddata", "user*", ""] {
            assert!(parts(text).is_err(), "{text}");
        }
        assert_eq!(parts("user-data,\n meta_data.json").unwrap(), ["user-data", "meta_data.json"]);
        assert_eq!((hops("0"), hops("1")), (Ok(None), Ok(Some(1))));
        assert!(hops("65").is_err() && mode("Required").is_err());
    }
}
