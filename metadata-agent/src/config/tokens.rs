//! Settings of session tokens (IMDSv2), and of what else a guest's request has to be like.
use std::time::Duration;

use super::{
    Error, SECTION,
    options::{Options, boolean, number, seconds},
};

/// Documents in which Nova hands out secrets, by the parts of a path that name them: user data and vendor data of both
/// interfaces, the password, and files that were given to an instance (`openstack/content/`).
const SECRETS: [&str; 6] =
    ["user-data", "user_data", "password", "vendor_data.json", "vendor_data2.json", "content"];

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

/// Settings of session tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tokens {
    /// `token_mode`, where no rule says otherwise.
    pub mode: TokenMode,
    /// `token_projects`.
    pub projects: Vec<Rule>,
    /// `token_networks`, which come before those of projects.
    pub networks: Vec<Rule>,
    /// `token_required_after`: time from a port's first appearance in which nobody needs a token.
    pub required_after: Duration,
    /// `token_required_for`: parts of a path that need a token, or [`EVERY_PATH`].
    pub required_for: Vec<String>,
    /// `token_hop_limit`: routers that the answer with a token may pass, and one more; the system's default if none.
    pub token_hop_limit: Option<u8>,
    /// `answer_hop_limit`: the same for all answers.
    pub answer_hop_limit: Option<u8>,
    /// `refuse_forwarded`: refuse requests that a proxy passed on.
    pub refuse_forwarded: bool,
}

/// Mode of the projects or networks whose id is like that.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    pattern: String,
    mode: TokenMode,
}

impl Default for Tokens {
    fn default() -> Self {
        Self {
            mode: TokenMode::Off,
            projects: Vec::new(),
            networks: Vec::new(),
            required_after: Duration::ZERO,
            required_for: SECRETS.map(str::to_owned).to_vec(),
            token_hop_limit: None,
            answer_hop_limit: None,
            refuse_forwarded: false,
        }
    }
}

impl Tokens {
    /// As the options have them.
    pub(super) fn from_ini(options: &Options<'_>) -> Result<Self, Error> {
        let default = Self::default();
        Ok(Self {
            mode: options.parse(SECTION, "token_mode", default.mode, mode)?,
            projects: options.parse(SECTION, "token_projects", default.projects, rules)?,
            networks: options.parse(SECTION, "token_networks", default.networks, rules)?,
            required_after: options.parse(
                SECTION,
                "token_required_after",
                default.required_after,
                seconds,
            )?,
            required_for: options.parse(SECTION, "token_required_for", default.required_for, parts)?,
            token_hop_limit: options.parse(SECTION, "token_hop_limit", None, hops)?,
            answer_hop_limit: options.parse(SECTION, "answer_hop_limit", None, hops)?,
            refuse_forwarded: options.parse(
                SECTION,
                "refuse_forwarded",
                default.refuse_forwarded,
                boolean,
            )?,
        })
    }

    /// Mode for a port of that project and network: that of the first rule for its network, else of the first one for its
    /// project, else that of the node.
    pub fn mode_of(&self, project: &str, network: &str) -> TokenMode {
        let first = |rules: &[Rule], id: &str| {
            rules.iter().find(|rule| is_like(rule.pattern.as_bytes(), id.as_bytes())).map(|rule| rule.mode)
        };
        first(&self.networks, network).or_else(|| first(&self.projects, project)).unwrap_or(self.mode)
    }

    /// Tells whether any port may have tokens.
    pub fn are_used(&self) -> bool {
        self.modes().any(|mode| mode != TokenMode::Off)
    }

    /// Tells whether a guest may need a token from its first request on.
    pub(super) fn are_required_at_once(&self) -> bool {
        self.required_after.is_zero() && self.modes().any(|mode| mode == TokenMode::Required)
    }

    /// Modes that a port may have.
    fn modes(&self) -> impl Iterator<Item = TokenMode> {
        let rules = self.projects.iter().chain(&self.networks).map(|rule| rule.mode);
        rules.chain([self.mode])
    }
}

fn mode(text: &str) -> Result<TokenMode, String> {
    match text {
        "off" => Ok(TokenMode::Off),
        "optional" => Ok(TokenMode::Optional),
        "required" => Ok(TokenMode::Required),
        _ => Err("expected off, optional or required".into()),
    }
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| c == ',' || c.is_whitespace()).filter(|word| !word.is_empty())
}

/// `PATTERN:MODE`, several with commas or space between them.
fn rules(text: &str) -> Result<Vec<Rule>, String> {
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
fn parts(text: &str) -> Result<Vec<String>, String> {
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
fn hops(text: &str) -> Result<Option<u8>, String> {
    Ok(Some(number(text, 0, 64)? as u8).filter(|hops| *hops > 0))
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
    fn the_network_counts_before_the_project_and_that_before_the_node() {
        let tokens = Tokens {
            mode: TokenMode::Optional,
            projects: rules("51bb*:required, 7*:off, *7:required").unwrap(),
            networks: rules("dmz:off front-*:required").unwrap(),
            ..Tokens::default()
        };
        for (project, network, mode) in [
            ("51bb33", "n", TokenMode::Required),
            ("51bb33", "dmz", TokenMode::Off),
            ("77", "n", TokenMode::Off),
            ("67", "n", TokenMode::Required),
            ("77", "front-1", TokenMode::Required),
            ("x", "", TokenMode::Optional),
        ] {
            assert_eq!(tokens.mode_of(project, network), mode, "{project} {network}");
        }
        assert!(tokens.are_used() && !Tokens::default().are_used());
        assert!(!Tokens { projects: rules("a:off").unwrap(), ..Tokens::default() }.are_used());
        assert!(Tokens { projects: rules("a:optional").unwrap(), ..Tokens::default() }.are_used());
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
