//! Identities that were known, kept on disk: an agent that starts while the Southbound is away serves the guests it
//! served before.
//!
//! Only where the local Open vSwitch names the same instance: then nothing can have changed that matters.
use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use tracing::{info, warn};

use crate::proxy::directory::Identity;

/// Version of the file; another one is not read.
const VERSION: u32 = 1;
/// How long changes are collected before they are written.
const COLLECT: Duration = Duration::from_secs(1);
const FILE: &str = "identities.json";

/// Identities by Neutron port.
#[derive(Debug)]
pub(super) struct Remembered {
    path: PathBuf,
    identities: BTreeMap<String, Identity>,
    /// Since when the file lacks what is here.
    dirty: Option<Instant>,
}

#[derive(Debug, Serialize, Deserialize)]
struct File {
    version: u32,
    identities: Vec<Identity>,
}

impl Remembered {
    /// From the file in `folder`. One that cannot be read is as good as none, and says so.
    pub(super) fn read(folder: &Path) -> Self {
        let path = folder.join(FILE);
        let identities = match load(&path) {
            Ok(identities) => identities,
            Err(error) if error.kind() == io::ErrorKind::NotFound => BTreeMap::new(),
            Err(error) => {
                warn!(path = %path.display(), %error, "remembered identities are not used");
                BTreeMap::new()
            }
        };
        if !identities.is_empty() {
            info!(ports = identities.len(), "identities remembered from a former agent");
        }
        Self { path, identities, dirty: None }
    }

    /// The identity a port had.
    pub(super) fn get(&self, port: &str) -> Option<&Identity> {
        self.identities.get(port)
    }

    /// Remembers these and no others.
    pub(super) fn replace<'a>(&mut self, now: Instant, known: impl Iterator<Item = &'a Identity>) {
        let known: BTreeMap<String, Identity> =
            known.map(|identity| (identity.port.clone(), identity.clone())).collect();
        if known != self.identities {
            self.identities = known;
            self.dirty.get_or_insert(now);
        }
    }

    /// When [`Self::write`] should be called: changes that come together are written together.
    pub(super) fn write_at(&self) -> Option<Instant> {
        self.dirty.map(|since| since + COLLECT)
    }

    /// Brings the file up to date, in one step: a reader finds the old or the new one.
    pub(super) fn write(&mut self) {
        self.dirty = None;
        if let Err(error) = self.store() {
            warn!(path = %self.path.display(), %error, "cannot remember identities; set [DEFAULT] state_path to a folder \
                that the agent can write to");
        }
    }

    fn store(&self) -> io::Result<()> {
        use std::{io::Write as _, os::unix::fs::OpenOptionsExt as _};
        if let Some(folder) = self.path.parent() {
            fs::create_dir_all(folder)?;
        }
        let file = File { version: VERSION, identities: self.identities.values().cloned().collect() };
        let new = self.path.with_extension("new");
        let mut out =
            fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        out.write_all(&serde_json::to_vec(&file)?)?;
        out.sync_all()?;
        fs::rename(new, &self.path)
    }
}

fn load(path: &Path) -> io::Result<BTreeMap<String, Identity>> {
    let file: File = serde_json::from_slice(&fs::read(path)?)?;
    if file.version != VERSION {
        return Err(io::Error::other(format!("its version is {}, this agent reads {VERSION}", file.version)));
    }
    Ok(file.identities.into_iter().map(|identity| (identity.port.clone(), identity)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(port: &str) -> Identity {
        Identity {
            port: port.into(),
            instance: "i".into(),
            project: "p".into(),
            network: "n".into(),
            fixed_ips: vec!["192.168.1.10".parse().unwrap()],
        }
    }

    #[test]
    fn written_and_read_again() {
        let folder = std::env::temp_dir().join(format!("remembered-{}", std::process::id()));
        let mut remembered = Remembered::read(&folder);
        assert!(remembered.get("a").is_none());
        let now = Instant::now();
        remembered.replace(now, [identity("a")].iter());
        remembered.replace(now + COLLECT, [identity("a"), identity("b")].iter());
        assert_eq!(remembered.write_at(), Some(now + COLLECT), "a stream of changes does not put it off");
        remembered.write();
        remembered.replace(now, [identity("b"), identity("a")].iter());
        assert_eq!(remembered.write_at(), None, "the same again is no change");

        assert_eq!(Remembered::read(&folder).get("b"), Some(&identity("b")));
        fs::write(folder.join(FILE), "{\"version\":2,\"identities\":[]}").unwrap();
        assert!(Remembered::read(&folder).get("b").is_none());
        fs::write(folder.join(FILE), "{\"vers").unwrap();
        assert!(Remembered::read(&folder).get("b").is_none());
        fs::remove_dir_all(folder).unwrap();
    }
}
