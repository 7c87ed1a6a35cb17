//! Targets for input by operators: remotes, and the files of keys and certificates.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::config::TlsConfig;
use crate::remote::Remotes;
use crate::tls::{Connector, TlsError};
use fuzz::{Random, fuzz};
use tls_peer::FileError;

const REMOTES: &[&str] = &[
    "ssl:192.0.2.1:6642,ssl:192.0.2.2:6642",
    "tcp:[2001:db8::1]:6642, tcp:[fe80::1%eth0]",
    "unix:/run/ovn/ovnsb_db.sock",
    "ssl:sb.example.org:16642,unix:a b",
];

const REMOTE_WORDS: &[&str] =
    &["tcp:", "ssl:", "unix:", "ptcp:", ",", ":", "[", "]", "%", "::", "0", "65536", "-1", " ", "é", "\0"];

const PEM_WORDS: &[&str] = &[
    "-----BEGIN CERTIFICATE-----\n",
    "-----END CERTIFICATE-----\n",
    "-----BEGIN PRIVATE KEY-----\n",
    "-----END PRIVATE KEY-----\n",
    "-----BEGIN RSA PRIVATE KEY-----\n",
    "-----",
    "=",
    "\n",
    "\r\n",
    "MII",
    "A",
    "\0",
];

/// Parsing a remote is cheap, and loading files is not.
const REMOTES_PER_FILE: usize = 20;

#[test]
fn files() {
    let directory = Directory::new();
    let good = directory.certificate();
    let originals =
        [&good.private_key, &good.certificate, &good.ca_certificates].map(|path| fs::read(path).unwrap());
    assert!(Connector::load(&good).is_ok(), "what openssl made is not taken");
    fuzz("files::files", |random| {
        for _ in 0..REMOTES_PER_FILE {
            remotes(random);
        }
        let broken = TlsConfig {
            private_key: directory.0.join("broken-key"),
            certificate: directory.0.join("broken-cert"),
            ca_certificates: directory.0.join("broken-ca"),
            verify_hostname: false,
        };
        let paths = [&broken.private_key, &broken.certificate, &broken.ca_certificates];
        for (path, original) in paths.iter().zip(&originals) {
            let mut bytes = original.clone();
            if random.once_in(2) {
                random.damage(&mut bytes, PEM_WORDS);
            }
            fs::write(path, bytes).unwrap();
        }
        match Connector::load(&broken) {
            Ok(_) => {}
            Err(TlsError::File(FileError { path, problem, .. })) => {
                assert!(paths.contains(&&path) && !problem.is_empty(), "{path:?}: {problem}");
            }
            Err(other) => panic!("it does not say which file: {other}"),
        }
    });
}

fn remotes(random: &mut Random) {
    let mut bytes = random.pick(REMOTES).as_bytes().to_vec();
    random.damage(&mut bytes, REMOTE_WORDS);
    let text = String::from_utf8_lossy(&bytes);
    match text.parse::<Remotes>() {
        Ok(remotes) => assert_eq!(remotes.to_string().parse(), Ok(remotes), "{text:?}"),
        Err(error) => assert!(error.to_string().starts_with("OVSDB remote "), "{error}"),
    }
}

/// A directory of its own, removed when dropped.
struct Directory(PathBuf);

impl Directory {
    fn new() -> Self {
        let path = std::env::temp_dir().join(format!("ovsdb-fuzz-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    /// A key with a certificate that it signed itself, with a description before it as ovs-pki makes one.
    fn certificate(&self) -> TlsConfig {
        let (key, certificate) = (self.0.join("key"), self.0.join("cert"));
        let status = Command::new("openssl")
            .args(["req", "-x509", "-nodes", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"])
            .args(["-subj", "/CN=fuzz", "-text", "-keyout"])
            .args([key.as_path(), Path::new("-out"), &certificate])
            .output()
            .unwrap_or_else(|error| panic!("openssl: {error}: install the Debian package openssl"));
        assert!(status.status.success(), "{}", String::from_utf8_lossy(&status.stderr));
        TlsConfig {
            private_key: key,
            ca_certificates: certificate.clone(),
            certificate,
            verify_hostname: false,
        }
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        drop(fs::remove_dir_all(&self.0));
    }
}
