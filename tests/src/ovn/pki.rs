//! Certificates as deployments make them, with ovs-pki.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::Result;

use crate::command::{Words as _, run};

/// One pair of authorities: one for switches, which is what servers are here, one for controllers, their clients.
#[derive(Debug)]
pub struct Pki {
    dir: PathBuf,
}

/// Credentials of one side of a TLS connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credentials {
    pub private_key: PathBuf,
    pub certificate: PathBuf,
    /// The authorities whose certificates are accepted.
    pub ca_certificates: PathBuf,
}

impl Pki {
    pub fn create(dir: PathBuf) -> Result<Self> {
        fs::create_dir(&dir)?;
        let pki = Self { dir };
        run(pki.command().words("init"))?;
        // Both in one file, as in deployments that have one authority only.
        let mut both = Vec::new();
        for authority in ["switchca", "controllerca"] {
            both.extend(fs::read(pki.dir.join("ca").join(authority).join("cacert.pem"))?);
        }
        fs::write(pki.authorities(), both)?;
        Ok(pki)
    }

    /// A new key, and a certificate for a `switch` or a `controller`.
    pub fn issue(&self, name: &str, authority: &str) -> Result<Credentials> {
        run(self.command().words(format!("-u req+sign {name} {authority}")))?;
        Ok(Credentials {
            private_key: self.dir.join(format!("{name}-privkey.pem")),
            certificate: self.dir.join(format!("{name}-cert.pem")),
            ca_certificates: self.authorities(),
        })
    }

    /// The same with a certificate that was good for a day, years ago.
    pub fn issue_expired(&self, name: &str, authority: &str) -> Result<Credentials> {
        let credentials = self.issue(name, authority)?;
        let folder = self.dir.join("ca").join(format!("{authority}ca"));
        let config = folder.join("ca.cnf");
        // It has issued one for that subject, and makes no second one unless it forgets the first.
        fs::write(folder.join("index.txt"), "")?;
        let mut command = Command::new("openssl");
        command
            .current_dir(&folder)
            .words("ca -batch -notext -startdate 20200101000000Z -enddate 20200102000000Z");
        command.arg("-config").arg(config).arg("-in").arg(self.dir.join(format!("{name}-req.pem")));
        run(command.arg("-out").arg(&credentials.certificate))?;
        Ok(credentials)
    }

    fn authorities(&self) -> PathBuf {
        self.dir.join("cacert.pem")
    }

    fn command(&self) -> Command {
        let mut command = Command::new("ovs-pki");
        let option = |name: &str, path: &Path| format!("--{name}={}", path.display());
        command.current_dir(&self.dir).words("-b -B 2048");
        command.arg(option("dir", &self.dir.join("ca"))).arg(option("log", &self.dir.join("log")));
        command
    }
}

impl Credentials {
    /// Puts the contents of another's files in the place of these, each in one step, as tools that renew them do.
    pub fn replace(&self, with: &Self) -> Result<()> {
        for (ours, theirs) in [
            (&self.private_key, &with.private_key),
            (&self.certificate, &with.certificate),
            (&self.ca_certificates, &with.ca_certificates),
        ] {
            let draft = ours.with_extension("new");
            fs::copy(theirs, &draft)?;
            fs::rename(&draft, ours)?;
        }
        Ok(())
    }
}
