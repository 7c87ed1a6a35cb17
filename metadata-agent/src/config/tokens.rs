//! Settings of session tokens (IMDSv2), and of what else a guest's request has to be like.
use std::time::Duration;

use super::{Error, TokenMode, options::Options, rules::Rule, table};

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
    /// `token_required_for`: parts of a path that need a token, or [`EVERY_PATH`](super::EVERY_PATH).
    pub required_for: Vec<String>,
    /// `token_hop_limit`: routers that the answer with a token may pass, and one more; the system's default if none.
    pub token_hop_limit: Option<u8>,
    /// `answer_hop_limit`: the same for all answers.
    pub answer_hop_limit: Option<u8>,
    /// `refuse_forwarded`: refuse requests that a proxy passed on.
    pub refuse_forwarded: bool,
}

#[cfg(test)]
impl Default for Tokens {
    fn default() -> Self {
        Self::from_ini(&Options::new(&super::Ini::default())).unwrap()
    }
}

impl Tokens {
    /// As the options have them.
    pub(super) fn from_ini(options: &Options<'_>) -> Result<Self, Error> {
        Ok(Self {
            mode: options.get(&table::TOKEN_MODE)?,
            projects: options.get(&table::TOKEN_PROJECTS)?,
            networks: options.get(&table::TOKEN_NETWORKS)?,
            required_after: options.get(&table::TOKEN_REQUIRED_AFTER)?,
            required_for: options.get(&table::TOKEN_REQUIRED_FOR)?,
            token_hop_limit: options.get(&table::TOKEN_HOP_LIMIT)?,
            answer_hop_limit: options.get(&table::ANSWER_HOP_LIMIT)?,
            refuse_forwarded: options.get(&table::REFUSE_FORWARDED)?,
        })
    }

    /// Mode for a port of that project and network: that of the first rule for its network, else of the first one for its
    /// project, else that of the node.
    pub fn mode_of(&self, project: &str, network: &str) -> TokenMode {
        let first =
            |rules: &[Rule], id: &str| rules.iter().find(|rule| rule.is_for(id)).map(|rule| rule.mode);
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

#[cfg(test)]
mod tests {
    use super::{super::rules::rules, *};

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
}
