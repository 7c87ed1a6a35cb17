//! First appearance of guests on taps: when each was served first, kept in the run directory for the next agent. Neither a
//! restart nor maps of another layout give anybody a second time without tokens, so that it is by the device and not by the
//! assignment, which may be another one then.
use std::{io, path::Path};

use metadata_ebpf::map::{Owner, PortKey};
use serde::{Deserialize, Serialize};
use tracing::warn;

use super::{Error, FirstServed};
use crate::files::Folder;

/// The file in the run directory.
pub(super) const FILE: &str = "first-served.json";

/// First appearances, and the folder that keeps them.
#[derive(Debug)]
pub(super) struct Appearances {
    folder: Folder,
    kept: Kept,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Kept {
    /// The boot that the times are of.
    boot: String,
    served: Vec<Appearance>,
}

/// A guest on a tap: a device that is made anew has another index.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Appearance {
    ifindex: u32,
    vlan: u32,
    /// Fingerprint of the port.
    port: [u64; 2],
    /// Fingerprint of instance and project.
    identity: [u64; 2],
    first: FirstServed,
}

impl Appearances {
    /// Those that a former agent of this boot has kept. Of a file that cannot be read nothing is known, so that nobody is new.
    pub(super) fn open(run_dir: &Path, boot: String) -> Result<Self, Error> {
        let folder = Folder::open(run_dir).map_err(Error::keep(run_dir))?;
        let kept = match folder.read_secret(FILE) {
            Ok(text) => serde_json::from_slice(&text).map_err(io::Error::from),
            Err(error) => Err(error),
        };
        let served = match kept {
            Ok(Kept { boot: former, served }) if former == boot => served,
            Ok(_) => Vec::new(),
            Err(error) => {
                if error.kind() != io::ErrorKind::NotFound {
                    warn!(%error, file = FILE, "when ports were served first is not known: those that are there need tokens at once");
                }
                Vec::new()
            }
        };
        Ok(Self { folder, kept: Kept { boot, served } })
    }

    /// First time that owner's guest was served behind a tap, if it was noted. While it is not known who is behind the
    /// port, it is the one that was there before.
    pub(super) fn of(&self, key: PortKey, owner: Owner) -> Option<FirstServed> {
        let found = self.kept.served.iter().find(|appearance| {
            let is_same = appearance.identity == owner.identity || owner.identity == [0; 2];
            appearance.ifindex == key.ifindex
                && appearance.vlan == key.vlan
                && appearance.port == owner.port
                && is_same
        });
        found.map(|appearance| appearance.first)
    }

    /// Keeps these and no others.
    pub(super) fn replace(
        &mut self,
        served: impl Iterator<Item = (PortKey, Owner, FirstServed)>,
    ) -> io::Result<()> {
        let appearance = |(key, owner, first): (PortKey, Owner, _)| Appearance {
            ifindex: key.ifindex,
            vlan: key.vlan,
            port: owner.port,
            identity: owner.identity,
            first,
        };
        let served: Vec<_> = served.map(appearance).collect();
        if served == self.kept.served {
            return Ok(());
        }
        let kept = Kept { boot: self.kept.boot.clone(), served };
        self.folder.replace(FILE, &serde_json::to_vec(&kept)?)?;
        self.kept = kept;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, time::Duration};

    use super::*;

    #[test]
    fn nobody_is_new_twice() {
        let path = std::env::temp_dir().join(format!("metadata-agent-appearance-{}", std::process::id()));
        fs::create_dir(&path).unwrap();
        let open = |boot: &str| Appearances::open(&path, boot.to_owned()).unwrap();
        let key = PortKey::tap(7, 0);
        let owner = Owner { port: [1, 2], identity: [3, 4] };
        let first = FirstServed::At(Duration::from_millis(1234));
        let mut kept = open("boot");
        assert_eq!(kept.of(key, owner), None);
        kept.replace([(key, owner, first)].into_iter()).unwrap();
        assert_eq!(kept.of(key, owner), Some(first));
        assert_eq!(open("boot").of(key, owner), Some(first));
        assert_eq!(open("boot").of(key, Owner { identity: [0; 2], ..owner }), Some(first));
        for (other, another) in [
            (PortKey { ifindex: 8, ..key }, owner),
            (PortKey { vlan: 5, ..key }, owner),
            (key, Owner { port: [1, 3], ..owner }),
            (key, Owner { identity: [3, 5], ..owner }),
        ] {
            assert_eq!(open("boot").of(other, another), None);
        }
        // Times of another boot say nothing.
        assert_eq!(open("another").of(key, owner), None);
        // What is as it was is not written again.
        fs::remove_file(path.join(FILE)).unwrap();
        kept.replace([(key, owner, first)].into_iter()).unwrap();
        assert!(!path.join(FILE).exists());
        kept.replace([].into_iter()).unwrap();
        assert_eq!(open("boot").of(key, owner), None);
        fs::write(path.join(FILE), "damaged").unwrap();
        assert_eq!(open("boot").of(key, owner), None);
        fs::remove_dir_all(path).unwrap();
    }
}
