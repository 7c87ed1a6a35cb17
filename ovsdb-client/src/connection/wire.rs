//! The log of messages as they travel: records of the target `ovsdb_client::wire` at level trace.

use std::fmt;

use crate::remote::Remote;

/// As much of a message as is written: the rows of a region are a hundred megabytes.
const SHOWN: usize = 4096;

pub(super) fn sent(remote: &Remote, message: &[u8]) {
    tracing::trace!(target: "ovsdb_client::wire", %remote, bytes = message.len(), "sent {}", Shown(message));
}

pub(super) fn received(remote: &Remote, message: &[u8]) {
    tracing::trace!(target: "ovsdb_client::wire", %remote, bytes = message.len(), "received {}", Shown(message));
}

/// The beginning of a message.
struct Shown<'a>(&'a [u8]);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = self.0.get(..SHOWN).unwrap_or(self.0);
        formatter.write_str(&String::from_utf8_lossy(shown))?;
        formatter.write_str(if shown.len() < self.0.len() { " …" } else { "" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_long_is_cut_and_says_so() {
        assert_eq!(Shown(b"{}").to_string(), "{}");
        let long = vec![b'x'; SHOWN + 1];
        let shown = Shown(&long).to_string();
        assert_eq!((shown.len(), shown.ends_with("x …")), (SHOWN + " …".len(), true));
    }
}
