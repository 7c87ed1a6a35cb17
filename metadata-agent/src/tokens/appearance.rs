//! First appearance of assignments: when each was served first, kept in the run directory for the next agent. A restart must not
//! give anybody a second time without tokens.
use std::{io, path::Path, time::Duration};

use serde::{Deserialize, Serialize};
use tracing::warn;

use super::Error;
use crate::{datapath::Assignment, files::Folder};

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

/// One assignment, which is for one port, instance and project.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Appearance {
    index: u32,
    generation: u8,
    port: String,
    /// By the boot clock.
    first: Duration,
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

    /// Time at which that assignment of a port was served first, if it was noted.
    pub(super) fn of(&self, assignment: Assignment, port: &str) -> Option<Duration> {
        let Assignment { index, generation } = assignment;
        let found = self.kept.served.iter().find(|appearance| {
            appearance.index == index && appearance.generation == generation && appearance.port == port
        });
        found.map(|appearance| appearance.first)
    }

    /// Keeps these and no others.
    pub(super) fn replace<'a>(
        &mut self,
        served: impl Iterator<Item = (Assignment, &'a str, Duration)>,
    ) -> io::Result<()> {
        let appearance = |(Assignment { index, generation }, port, first): (_, &str, _)| Appearance {
            index,
            generation,
            port: port.to_owned(),
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
    use std::fs;

    use super::*;

    #[test]
    fn nobody_is_new_twice() {
        let path = std::env::temp_dir().join(format!("metadata-agent-appearance-{}", std::process::id()));
        fs::create_dir(&path).unwrap();
        let open = |boot: &str| Appearances::open(&path, boot.to_owned()).unwrap();
        let assignment = Assignment { index: 7, generation: 2 };
        let first = Duration::from_millis(1234);
        let mut kept = open("boot");
        assert_eq!(kept.of(assignment, "p"), None);
        kept.replace([(assignment, "p", first)].into_iter()).unwrap();
        assert_eq!(kept.of(assignment, "p"), Some(first));
        assert_eq!(open("boot").of(assignment, "p"), Some(first));
        for (other, port) in [
            (Assignment { index: 8, ..assignment }, "p"),
            (Assignment { generation: 3, ..assignment }, "p"),
            (assignment, "q"),
        ] {
            assert_eq!(open("boot").of(other, port), None);
        }
        // Times of another boot say nothing.
        assert_eq!(open("another").of(assignment, "p"), None);
        // What is as it was is not written again.
        fs::remove_file(path.join(FILE)).unwrap();
        kept.replace([(assignment, "p", first)].into_iter()).unwrap();
        assert!(!path.join(FILE).exists());
        kept.replace([].into_iter()).unwrap();
        assert_eq!(open("boot").of(assignment, "p"), None);
        fs::write(path.join(FILE), "damaged").unwrap();
        assert_eq!(open("boot").of(assignment, "p"), None);
        fs::remove_dir_all(path).unwrap();
    }
}
