//! A file that names taps and their identities, for hosts without OVN.
use std::{
    collections::HashMap,
    io,
    net::IpAddr,
    path::{Path, PathBuf},
    time::SystemTime,
};

use serde::Deserialize;

use super::{Desired, DesiredPort, LinkTable, Unserved, UnservedPort, Who, untagged};
use crate::{datapath::Device, directory::Identity};

/// The file as last read.
#[derive(Debug)]
pub struct Inventory {
    path: PathBuf,
    stamp: Option<(SystemTime, u64)>,
    entries: Vec<FixedPort>,
}

/// An error in the file.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It cannot be read.
    #[error("cannot read the inventory {path}: {error}", path = .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The error.
        error: io::Error,
    },
    /// It is not what it should be; the text of the TOML parser names line, column and what was expected.
    #[error("{path}: {error}", path = .path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// The place and the error.
        error: Box<toml::de::Error>,
    },
    /// Two entries for one tap.
    #[error("{path}: the tap {tap} is named twice; who is behind it would be a matter of chance", path = .path.display())]
    Twice {
        /// The file.
        path: PathBuf,
        /// The tap.
        tap: String,
    },
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    port: Vec<FixedPort>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct FixedPort {
    /// Name of the device.
    tap: String,
    /// Any id; the tap's name if there is none.
    port: Option<String>,
    instance: String,
    project: String,
    #[serde(default)]
    network: String,
    #[serde(default)]
    fixed_ips: Vec<IpAddr>,
}

impl Inventory {
    /// Reads the file.
    pub fn read(path: &Path) -> Result<Self, Error> {
        Ok(Self { path: path.into(), stamp: stamp(path), entries: parse(path)? })
    }

    /// True if the file has changed since it was last read.
    pub fn is_outdated(&self) -> bool {
        stamp(&self.path) != self.stamp
    }

    /// Reads the file again; a file with an error leaves what was read before.
    pub fn reread(&mut self) -> Result<(), Error> {
        self.stamp = stamp(&self.path);
        self.entries = parse(&self.path)?;
        Ok(())
    }

    /// The ports whose taps exist, and the others.
    pub fn desired(&self, links: &LinkTable) -> (Desired, Unserved) {
        let by_name: HashMap<&str, u32> = links.iter().map(|(index, name)| (name.as_str(), *index)).collect();
        let (mut desired, mut unserved) = (Desired::new(), Unserved::new());
        for entry in &self.entries {
            let name = entry.tap.clone();
            match by_name.get(name.as_str()) {
                Some(&ifindex) => {
                    desired.insert(untagged(ifindex), entry.port_on(Device::tap(ifindex, name)));
                }
                None => {
                    let reason = format!("there is no device {name}");
                    unserved.insert(entry.port_id(), UnservedPort { interface: name, reason });
                }
            }
        }
        (desired, unserved)
    }
}

impl FixedPort {
    fn port_id(&self) -> String {
        self.port.clone().unwrap_or_else(|| self.tap.clone())
    }

    fn port_on(&self, device: Device) -> DesiredPort {
        let port = self.port_id();
        let identity = Identity {
            port: port.clone(),
            instance: self.instance.clone(),
            project: self.project.clone(),
            network: self.network.clone(),
            fixed_ips: self.fixed_ips.clone(),
        };
        DesiredPort::on_tap(device, port, Who::Known(identity), self.fixed_ips.clone())
    }
}

fn parse(path: &Path) -> Result<Vec<FixedPort>, Error> {
    let text = crate::files::read_text(path).map_err(|error| Error::Read { path: path.into(), error })?;
    let file: File =
        toml::from_str(&text).map_err(|error| Error::Syntax { path: path.into(), error: Box::new(error) })?;
    for (index, entry) in file.port.iter().enumerate() {
        if file.port[..index].iter().any(|other| other.tap == entry.tap) {
            return Err(Error::Twice { path: path.into(), tap: entry.tap.clone() });
        }
    }
    Ok(file.port)
}

fn stamp(path: &Path) -> Option<(SystemTime, u64)> {
    let metadata = std::fs::metadata(path).ok()?;
    Some((metadata.modified().ok()?, metadata.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inventory(text: &str) -> Result<Vec<FixedPort>, Error> {
        let path = std::env::temp_dir().join(format!("inventory-{}-{:p}", std::process::id(), text.as_ptr()));
        std::fs::write(&path, text).unwrap();
        let result = parse(&path);
        std::fs::remove_file(path).unwrap();
        result
    }

    const PORT: &str = "[[port]]\ntap = \"tap0\"\ninstance = \"i\"\nproject = \"p\"\n";

    #[test]
    fn taps_that_exist_are_served() {
        let inventory = Inventory { path: "x".into(), stamp: None, entries: inventory(PORT).unwrap() };
        let (desired, unserved) = inventory.desired(&[(7, "tap0".to_owned()), (8, "tap1".to_owned())].into());
        assert!(unserved.is_empty());
        let (none, unserved) = inventory.desired(&[(8, "tap1".to_owned())].into());
        assert_eq!((none.len(), unserved["tap0"].reason.as_str()), (0, "there is no device tap0"));
        let port = &desired[&untagged(7)];
        assert_eq!(desired.len(), 1);
        assert_eq!((port.device.ifindex, port.port.as_str()), (7, "tap0"));
        assert!(matches!(&port.who, Who::Known(identity) if identity.instance == "i"));
    }

    #[test]
    fn errors_name_the_place() {
        let error = inventory("[[port]]\ntap = \"t\"\ninstanec = \"i\"\n").unwrap_err().to_string();
        assert!(error.contains("line 3") && error.contains("instanec"), "{error}");
        let error = inventory(&format!("{PORT}{PORT}")).unwrap_err().to_string();
        assert!(error.contains("tap0 is named twice"), "{error}");
    }
}
