//! Identities that were known, kept on disk: an agent that starts while the Southbound is away serves the guests it
//! served before.
//!
//! Only where the local Open vSwitch names the same instance: then nothing can have changed that matters. Writing takes as long as
//! the disk does, and is done by a thread of its own (`writer.rs`).
mod writer;

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use tracing::{info, warn};

use self::writer::Writer;
use crate::{directory::Identity, files::Folder};

/// Version of the file; another one is not read.
const VERSION: u32 = 1;
/// Time for which changes are collected before they are written.
const COLLECT: Duration = Duration::from_secs(1);
const FILE: &str = "identities.json";

/// Cache of the identities behind taps, on disk.
#[derive(Debug)]
pub(super) struct Remembered {
    folder: PathBuf,
    taps: Taps,
    /// Time at which the file is to be brought up to date, if it lacks something.
    due: Option<Instant>,
    /// Begun when there is something to write.
    writer: Option<Writer>,
}

/// Identities by the Neutron port that the tap is plugged for, and by VLAN: 0 for that port itself, others for the
/// subports of its trunk. Nearly all taps have one, for which a map of their own would be much.
type Taps = BTreeMap<String, Vec<(u32, Identity)>>;

#[derive(Debug, Serialize, Deserialize)]
struct File {
    version: u32,
    identities: Vec<RememberedPort>,
}

#[derive(Debug, Serialize, Deserialize)]
struct RememberedPort {
    #[serde(flatten)]
    identity: Identity,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    trunk: Option<Trunk>,
}

/// Trunk and VLAN of a subport, by which its frames come.
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
        let taps = match load(folder) {
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
        Self { folder: folder.to_owned(), taps, due: None, writer: None }
    }

    /// The identity that the port of a tap had.
    pub(super) fn port(&self, port: &str) -> Option<&Identity> {
        self.taps.get(port)?.iter().find(|(vlan, _)| *vlan == 0).map(|(_, identity)| identity)
    }

    /// Those that the subports of its trunk had, by VLAN.
    pub(super) fn subports(&self, parent: &str) -> impl Iterator<Item = (u32, &Identity)> {
        let tap = self.taps.get(parent).into_iter();
        tap.flatten().filter(|(vlan, _)| *vlan != 0).map(|(vlan, identity)| (*vlan, identity))
    }

    /// Remembers these and no others: the port a tap is plugged for, the VLAN, and who that was.
    pub(super) fn replace<'a>(
        &mut self,
        now: Instant,
        known: impl Iterator<Item = (&'a str, u32, &'a Identity)>,
    ) {
        let taps = of(known.map(|(port, vlan, identity)| (port.to_owned(), vlan, identity.clone())));
        if taps != self.taps {
            self.taps = taps;
            self.due.get_or_insert(now + COLLECT);
        }
    }

    /// Time at which [`Self::write`] should be called: changes that come together are written together.
    pub(super) fn write_at(&self) -> Option<Instant> {
        self.due
    }

    /// Has the file brought up to date, and waits for nothing. What fails is tried again.
    pub(super) fn write(&mut self, now: Instant) {
        self.due = None;
        let file = File { version: VERSION, identities: entries(&self.taps) };
        let written = serde_json::to_vec(&file).map_err(io::Error::from).and_then(|contents| {
            let writer = match &mut self.writer {
                Some(writer) => writer,
                none => none.insert(Writer::start(&self.folder)?),
            };
            writer.write(contents);
            Ok(())
        });
        if let Err(error) = written {
            self.due = Some(now + writer::AGAIN);
            warn!(%error, "cannot remember identities");
        }
    }
}

fn of(known: impl Iterator<Item = (String, u32, Identity)>) -> Taps {
    let mut taps = Taps::new();
    for (port, vlan, identity) in known {
        let tap = taps.entry(port).or_default();
        // The last one counts, and there is no room for more of them than there are.
        tap.retain(|(of, _)| *of != vlan);
        tap.reserve_exact(1);
        tap.push((vlan, identity));
    }
    for tap in taps.values_mut() {
        tap.sort_by_key(|(vlan, _)| *vlan);
    }
    taps
}

fn entries(taps: &Taps) -> Vec<RememberedPort> {
    let all =
        taps.iter().flat_map(|(port, tap)| tap.iter().map(move |(vlan, identity)| (port, *vlan, identity)));
    all.map(|(port, vlan, identity)| RememberedPort {
        identity: identity.clone(),
        trunk: (vlan != 0).then(|| Trunk { parent: port.clone(), vlan }),
    })
    .collect()
}

fn load(folder: &Path) -> io::Result<Taps> {
    let file: File = serde_json::from_slice(&Folder::open(folder)?.read(FILE)?)?;
    if file.version != VERSION {
        return Err(io::Error::other(format!("its version is {}, this agent reads {VERSION}", file.version)));
    }
    Ok(of(file.identities.into_iter().map(|RememberedPort { identity, trunk }| match trunk {
        Some(Trunk { parent, vlan }) => (parent, vlan, identity),
        None => (identity.port.clone(), 0, identity),
    })))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::files::tests::each_oddity;

    fn identity(port: &str) -> Identity {
        Identity {
            port: port.into(),
            instance: "i".into(),
            project: "p".into(),
            network: "n".into(),
            fixed_ips: vec!["192.168.1.10".parse().unwrap()],
        }
    }

    fn scratch(name: &str) -> PathBuf {
        std::env::temp_dir().join(format!("remembered-{name}-{}", std::process::id()))
    }

    #[test]
    fn written_and_read_again() {
        let folder = scratch("again");
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
        // What was to be written is, however the agent ends.
        drop(remembered);

        let again = Remembered::read(&folder);
        assert_eq!((again.port("b"), again.port("subport")), (Some(&b), None));
        assert_eq!(again.subports("b").collect::<Vec<_>>(), [(7, &subport)]);
        assert_eq!(again.subports("a").count(), 0);
        fs::write(folder.join(FILE), "{\"version\":2,\"identities\":[]}").unwrap();
        assert!(Remembered::read(&folder).port("b").is_none());
        fs::write(folder.join(FILE), "{\"vers").unwrap();
        assert!(Remembered::read(&folder).port("b").is_none());
        fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn whatever_is_in_the_files_place_is_not_waited_for() {
        let folder = scratch("odd");
        fs::create_dir(&folder).unwrap();
        let (a, file) = (identity("a"), folder.join(FILE));
        each_oddity(&file, |_| {
            let mut remembered = Remembered::read(&folder);
            assert!(remembered.port("a").is_none());
            remembered.replace(Instant::now(), [("a", 0, &a)].into_iter());
            remembered.write(Instant::now());
            drop(remembered);
            if file.is_dir() {
                assert!(Remembered::read(&folder).port("a").is_none());
            } else {
                assert_eq!(Remembered::read(&folder).port("a"), Some(&a));
            }
        });
        fs::remove_dir_all(folder).unwrap();
    }
}
