//! The node's key, from which those of ports are derived: kept for one boot of the host, and replaced once a day, with the former
//! one beside it for tokens that still last.
use std::{fmt, fs, io, path::Path, time::Duration};

use aws_lc_rs::{
    error::Unspecified,
    hkdf::{HKDF_SHA256, Salt},
    rand,
};
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use tracing::{info, warn};

use super::Error;
use crate::{
    datapath::Assignment,
    directory::{Identity, TokenKey, TokenKeys},
    files::Folder,
};

/// The file in the run directory.
pub(super) const FILE: &str = "token.key";

/// Tells boots of the host from each other (random(4)): the boot clock begins anew with each.
pub(super) const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// Age at which a key is replaced: longer than a token may last, so that the former key opens all that still do.
const LIFETIME: Duration = Duration::from_secs(24 * 3600);

/// Domain separation (RFC 5869, section 3.1).
const SALT: &[u8] = b"metadata-agent: session tokens";

/// The identifier of this boot.
pub(super) fn boot_id() -> Result<String, Error> {
    Ok(fs::read_to_string(BOOT_ID).map_err(Error::Boot)?.trim().to_owned())
}

/// The node's keys, and the folder that keeps them.
#[derive(Debug)]
pub(super) struct NodeKeys {
    folder: Folder,
    kept: Kept,
}

/// The file's contents.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Kept {
    /// The boot that the times are of.
    boot: String,
    current: NodeKey,
    previous: Option<NodeKey>,
}

/// A key, and the time of the boot clock at which it was made.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
struct NodeKey {
    made: Duration,
    #[serde(with = "text")]
    key: [u8; 32],
}

impl fmt::Debug for NodeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NodeKey").field("made", &self.made).finish_non_exhaustive()
    }
}

impl NodeKeys {
    /// Those of a former agent of this boot, or a new one. A file that is no good any more is replaced: tokens that were made
    /// with it end, and clients take others.
    pub(super) fn open(run_dir: &Path, boot: &str, now: Duration) -> Result<Self, Error> {
        let folder = Folder::open(run_dir).map_err(Error::keep(run_dir))?;
        let kept = match folder.read_secret(FILE) {
            Ok(text) => parse(&text).map_err(|error| error.to_string()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err("there is none yet".to_owned()),
            Err(error) => Err(error.to_string()),
        };
        let kept = kept.and_then(|kept| {
            let is_ours = kept.boot == boot && kept.current.made <= now;
            if is_ours { Ok(kept) } else { Err("it is of another boot".to_owned()) }
        });
        let keys = match kept {
            Ok(kept) => Self { folder, kept },
            Err(reason) => {
                info!(%reason, "making a new key for session tokens");
                let kept = Kept { boot: boot.to_owned(), current: NodeKey::new(now)?, previous: None };
                let keys = Self { folder, kept };
                keys.write().map_err(Error::keep(&run_dir.join(FILE)))?;
                keys
            }
        };
        Ok(keys)
    }

    /// Replaces the key if it has served its time; whether it did. A file that cannot be written leaves the key as it is: tokens
    /// of a key that is kept nowhere would end with this process.
    pub(super) fn renew(&mut self, now: Duration) -> Result<bool, Error> {
        if now.saturating_sub(self.kept.current.made) < LIFETIME {
            return Ok(false);
        }
        let former = self.kept.clone();
        self.kept.previous = Some(std::mem::replace(&mut self.kept.current, NodeKey::new(now)?));
        if let Err(error) = self.write() {
            warn!(%error, file = FILE, "cannot replace the key for session tokens, keeping the former one");
            self.kept = former;
            return Ok(false);
        }
        info!("replaced the key for session tokens; those that were given last to their end");
        Ok(true)
    }

    /// The keys of one assignment of a port.
    pub(super) fn for_assignment(
        &self,
        identity: &Identity,
        assignment: Assignment,
    ) -> Result<TokenKeys, Error> {
        let derived = |key: &NodeKey| key.derive(identity, assignment).map_err(|_| Error::Library);
        let previous = self.kept.previous.as_ref().map(derived).transpose()?;
        Ok(TokenKeys { current: derived(&self.kept.current)?, previous })
    }

    fn write(&self) -> io::Result<()> {
        self.folder.replace(FILE, &serde_json::to_vec(&self.kept)?)
    }
}

impl NodeKey {
    fn new(now: Duration) -> Result<Self, Error> {
        let mut key = [0; 32];
        rand::fill(&mut key).map_err(|_| Error::Library)?;
        Ok(Self { made: now, key })
    }

    /// HKDF (RFC 5869). Lengths stand before texts, since a tenant may choose some.
    fn derive(&self, identity: &Identity, assignment: Assignment) -> Result<TokenKey, Unspecified> {
        let texts = [&identity.port, &identity.instance, &identity.project];
        let mut info = Vec::new();
        for text in texts {
            info.extend_from_slice(&(text.len() as u64).to_be_bytes());
            info.extend_from_slice(text.as_bytes());
        }
        info.extend_from_slice(&assignment.index.to_be_bytes());
        info.push(assignment.generation);
        let mut key = TokenKey([0; 32]);
        let extracted = Salt::new(HKDF_SHA256, SALT).extract(&self.key);
        extracted.expand(&[&info], HKDF_SHA256)?.fill(&mut key.0)?;
        Ok(key)
    }
}

fn parse(text: &[u8]) -> Result<Kept, serde_json::Error> {
    // The parser's own words show parts of the text.
    serde_json::from_slice(text).map_err(|_| serde::de::Error::custom("it is damaged"))
}

/// Bytes as text, in base64.
mod text {
    use base64::Engine as _;
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    use super::STANDARD;

    pub(super) fn serialize<S: Serializer>(key: &[u8; 32], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(key))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<[u8; 32], D::Error> {
        let bytes =
            STANDARD.decode(String::deserialize(deserializer)?).map_err(|_| D::Error::custom("no base64"))?;
        bytes.try_into().map_err(|_| D::Error::custom("another length"))
    }
}

#[cfg(test)]
mod tests {
    use std::{os::unix::fs::PermissionsExt as _, path::PathBuf};

    use base64::Engine as _;

    use super::*;
    use crate::files;

    const BOOT: &str = "3c0c8f4e-0000-4000-8000-000000000001";

    fn scratch(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("metadata-agent-key-{name}-{}", std::process::id()));
        fs::create_dir(&path).unwrap();
        path
    }

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn identity() -> Identity {
        Identity {
            port: "p".into(),
            instance: "i".into(),
            project: "t".into(),
            network: "n".into(),
            fixed_ips: Vec::new(),
        }
    }

    const ASSIGNMENT: Assignment = Assignment { index: 3, generation: 1 };

    #[test]
    fn a_key_is_for_one_assignment_only() {
        let path = scratch("derived");
        let keys = NodeKeys::open(&path, BOOT, seconds(10)).unwrap();
        let own = keys.for_assignment(&identity(), ASSIGNMENT).unwrap();
        assert_eq!(keys.for_assignment(&identity(), ASSIGNMENT).unwrap(), own);
        assert_eq!(own.previous, None);
        let others = [
            (Identity { port: "q".into(), ..identity() }, ASSIGNMENT),
            (Identity { instance: "j".into(), ..identity() }, ASSIGNMENT),
            (Identity { project: "u".into(), ..identity() }, ASSIGNMENT),
            // What is one text's end is not another's beginning.
            (Identity { port: "pi".into(), instance: String::new(), ..identity() }, ASSIGNMENT),
            (identity(), Assignment { index: 4, ..ASSIGNMENT }),
            (identity(), Assignment { generation: 2, ..ASSIGNMENT }),
        ];
        for (other, assignment) in others {
            let theirs = keys.for_assignment(&other, assignment).unwrap();
            assert_ne!(theirs.current, own.current, "{other:?} {assignment:?}");
        }
        // Addresses may change under an assignment, and a network's name is for the log.
        let moved =
            Identity { network: "m".into(), fixed_ips: vec!["10.0.0.1".parse().unwrap()], ..identity() };
        assert_eq!(keys.for_assignment(&moved, ASSIGNMENT).unwrap(), own);
        fs::remove_dir_all(path).unwrap();
    }

    #[test]
    fn keys_outlive_an_agent_and_overlap() {
        let path = scratch("renewed");
        let mut keys = NodeKeys::open(&path, BOOT, seconds(10)).unwrap();
        let first = keys.for_assignment(&identity(), ASSIGNMENT).unwrap().current;
        let mode = fs::metadata(path.join(FILE)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(!keys.renew(seconds(9) + LIFETIME).unwrap());
        assert!(keys.renew(seconds(10) + LIFETIME).unwrap());
        let second = keys.for_assignment(&identity(), ASSIGNMENT).unwrap();
        assert!(second.current != first && second.previous == Some(first.clone()));
        // Another agent goes on with both.
        let mut keys = NodeKeys::open(&path, BOOT, seconds(20) + LIFETIME).unwrap();
        assert_eq!(keys.for_assignment(&identity(), ASSIGNMENT).unwrap(), second);
        assert!(keys.renew(seconds(10) + 2 * LIFETIME).unwrap());
        let third = keys.for_assignment(&identity(), ASSIGNMENT).unwrap();
        assert!(third.previous == Some(second.current) && third.current != first);
        // Whatever shows them shows no key.
        let shown = format!("{keys:?} {third:?}");
        assert!(!shown.contains(&STANDARD.encode(keys.kept.current.key)), "{shown}");
        assert!(
            !shown.contains(&format!("{}, ", third.current.0[0])) && shown.contains("(a key)"),
            "{shown}"
        );
        fs::remove_dir_all(path).unwrap();
    }

    #[test]
    fn what_is_no_good_is_replaced() {
        let path = scratch("replaced");
        let key = |boot: &str| {
            let keys = NodeKeys::open(&path, boot, seconds(100)).unwrap();
            keys.for_assignment(&identity(), ASSIGNMENT).unwrap().current
        };
        let first = key(BOOT);
        assert_eq!(key(BOOT), first);
        // Times of another boot say nothing.
        let second = key("another");
        assert_ne!(second, first);
        assert_ne!(key(BOOT), first);
        let file = path.join(FILE);
        for damage in [
            "",
            "{}",
            "{\"boot\":\"another\",\"current\":{\"made\":{\"secs\":1,\"nanos\":0},\"key\":\"AAAA\"}}",
        ] {
            fs::write(&file, damage).unwrap();
            key("another");
            assert_eq!(parse(&fs::read(&file).unwrap()).unwrap().boot, "another");
        }
        // One that others could read is known to them.
        let before = key(BOOT);
        fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
        assert_ne!(key(BOOT), before);
        fs::remove_file(&file).unwrap();
        files::tests::each_oddity(&file, |words| {
            match NodeKeys::open(&path, BOOT, seconds(100)) {
                Ok(_) => assert!(!file.is_symlink() && parse(&fs::read(&file).unwrap()).is_ok(), "{words}"),
                Err(error) => {
                    let error = error.to_string();
                    assert!(file.is_dir() && error.contains("token.key"), "{error}");
                    return;
                }
            }
            // For the next to be removed.
            fs::write(&file, "").unwrap();
        });
        fs::remove_dir_all(path).unwrap();
    }

    #[test]
    fn a_key_that_cannot_be_kept_is_not_used() {
        let path = scratch("kept");
        let mut keys = NodeKeys::open(&path, BOOT, seconds(0)).unwrap();
        let first = keys.for_assignment(&identity(), ASSIGNMENT).unwrap();
        // A folder that is not empty is in the way of the file.
        fs::remove_file(path.join(FILE)).unwrap();
        fs::create_dir_all(path.join(FILE).join("x")).unwrap();
        assert!(!keys.renew(LIFETIME).unwrap());
        assert_eq!(keys.for_assignment(&identity(), ASSIGNMENT).unwrap(), first);
        fs::remove_dir_all(path.join(FILE)).unwrap();
        assert!(keys.renew(LIFETIME).unwrap());
        assert_ne!(keys.for_assignment(&identity(), ASSIGNMENT).unwrap(), first);
        fs::remove_dir_all(path).unwrap();
    }
}
