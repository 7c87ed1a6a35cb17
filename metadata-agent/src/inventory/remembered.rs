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

use nix::libc;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use tracing::{info, warn};

use crate::proxy::directory::Identity;

/// Version of the file; another one is not read.
const VERSION: u32 = 1;
/// How long changes are collected before they are written.
const COLLECT: Duration = Duration::from_secs(1);
/// How long after a failure it is tried again.
const AGAIN: Duration = Duration::from_secs(60);
const FILE: &str = "identities.json";

/// Who was behind each tap.
#[derive(Debug)]
pub(super) struct Remembered {
    path: PathBuf,
    taps: Taps,
    /// When the file is to be brought up to date, if it lacks something.
    due: Option<Instant>,
}

/// Identities by the Neutron port that the tap is plugged for, and by VLAN: 0 for that port itself, others for the
/// subports of its trunk.
type Taps = BTreeMap<String, BTreeMap<u32, Identity>>;

#[derive(Debug, Serialize, Deserialize)]
struct File {
    version: u32,
    identities: Vec<Entry>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Entry {
    #[serde(flatten)]
    identity: Identity,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    trunk: Option<Trunk>,
}

/// Where the frames of a subport are.
#[derive(Debug, Serialize, Deserialize)]
struct Trunk {
    /// The Neutron port that the tap is plugged for.
    parent: String,
    vlan: u32,
}

impl Remembered {
    /// From the file in `folder`. One that cannot be read is as good as none, and says so.
    pub(super) fn read(folder: &Path) -> Self {
        let path = folder.join(FILE);
        let taps = match load(&path) {
            Ok(taps) => taps,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Taps::new(),
            Err(error) => {
                warn!(path = %path.display(), %error, "remembered identities are not used");
                Taps::new()
            }
        };
        if !taps.is_empty() {
            info!(taps = taps.len(), "identities remembered from a former agent");
        }
        Self { path, taps, due: None }
    }

    /// The identity that the port of a tap had.
    pub(super) fn port(&self, port: &str) -> Option<&Identity> {
        self.taps.get(port)?.get(&0)
    }

    /// Those that the subports of its trunk had, by VLAN.
    pub(super) fn subports(&self, parent: &str) -> impl Iterator<Item = (u32, &Identity)> {
        let tap = self.taps.get(parent).into_iter();
        tap.flat_map(|tap| tap.range(1..)).map(|(vlan, identity)| (*vlan, identity))
    }

    /// Remembers these and no others: the port a tap is plugged for, the VLAN, and who that was.
    pub(super) fn replace<'a>(
        &mut self,
        now: Instant,
        known: impl Iterator<Item = (&'a str, u32, &'a Identity)>,
    ) {
        let mut taps = Taps::new();
        for (port, vlan, identity) in known {
            taps.entry(port.to_owned()).or_default().insert(vlan, identity.clone());
        }
        if taps != self.taps {
            self.taps = taps;
            self.due.get_or_insert(now + COLLECT);
        }
    }

    /// When [`Self::write`] should be called: changes that come together are written together.
    pub(super) fn write_at(&self) -> Option<Instant> {
        self.due
    }

    /// Brings the file up to date, in one step: a reader finds the old or the new one. What failed is tried again.
    pub(super) fn write(&mut self, now: Instant) {
        self.due = None;
        if let Err(error) = self.store() {
            self.due = Some(now + AGAIN);
            warn!(path = %self.path.display(), %error, "cannot remember identities; set [DEFAULT] state_path to a folder \
                that the agent can write to");
        }
    }

    fn store(&self) -> io::Result<()> {
        use std::{io::Write as _, os::unix::fs::OpenOptionsExt as _};
        if let Some(folder) = self.path.parent() {
            fs::create_dir_all(folder)?;
        }
        let file = File { version: VERSION, identities: entries(&self.taps) };
        let new = self.path.with_extension("new");
        let mut options = fs::OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600);
        // The folder may be Neutron's, which must not choose what we write to.
        let mut out = options.custom_flags(libc::O_NOFOLLOW).open(&new)?;
        out.write_all(&serde_json::to_vec(&file)?)?;
        out.sync_all()?;
        fs::rename(new, &self.path)
    }
}

fn entries(taps: &Taps) -> Vec<Entry> {
    let all =
        taps.iter().flat_map(|(port, tap)| tap.iter().map(move |(vlan, identity)| (port, *vlan, identity)));
    all.map(|(port, vlan, identity)| Entry {
        identity: identity.clone(),
        trunk: (vlan != 0).then(|| Trunk { parent: port.clone(), vlan }),
    })
    .collect()
}

fn load(path: &Path) -> io::Result<Taps> {
    let file: File = serde_json::from_slice(&fs::read(path)?)?;
    if file.version != VERSION {
        return Err(io::Error::other(format!("its version is {}, this agent reads {VERSION}", file.version)));
    }
    let mut taps = Taps::new();
    for Entry { identity, trunk } in file.identities {
        let Trunk { parent, vlan } =
            trunk.unwrap_or_else(|| Trunk { parent: identity.port.clone(), vlan: 0 });
        taps.entry(parent).or_default().insert(vlan, identity);
    }
    Ok(taps)
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
        assert!(remembered.port("a").is_none());
        let now = Instant::now();
        let (a, b, subport) = (identity("a"), identity("b"), identity("subport"));
        remembered.replace(now, [("a", 0, &a)].into_iter());
        remembered.replace(now + COLLECT, [("a", 0, &a), ("b", 0, &b), ("b", 7, &subport)].into_iter());
        assert_eq!(remembered.write_at(), Some(now + COLLECT), "a stream of changes does not put it off");
        remembered.write(now);
        remembered.replace(now, [("b", 7, &subport), ("b", 0, &b), ("a", 0, &a)].into_iter());
        assert_eq!(remembered.write_at(), None, "the same again is no change");

        let again = Remembered::read(&folder);
        assert_eq!((again.port("b"), again.port("subport")), (Some(&b), None));
        assert_eq!(again.subports("b").collect::<Vec<_>>(), [(7, &subport)]);
        assert_eq!(again.subports("a").count(), 0);
        fs::write(folder.join(FILE), "{\"version\":2,\"identities\":[]}").unwrap();
        assert!(Remembered::read(&folder).port("b").is_none());
        fs::write(folder.join(FILE), "{\"vers").unwrap();
        assert!(Remembered::read(&folder).port("b").is_none());
        fs::remove_dir_all(&folder).unwrap();

        // A file in the folder's place.
        fs::write(&folder, "").unwrap();
        remembered.replace(now, [("a", 0, &a)].into_iter());
        remembered.write(now);
        assert_eq!(remembered.write_at(), Some(now + AGAIN), "what failed is tried again");
        fs::remove_file(&folder).unwrap();
        remembered.write(now);
        assert_eq!((remembered.write_at(), Remembered::read(&folder).port("a")), (None, Some(&a)));
        fs::remove_dir_all(folder).unwrap();
    }
}
