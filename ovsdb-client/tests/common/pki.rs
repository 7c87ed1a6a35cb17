//! Certificates, made by the tool that deployments make theirs with.
use std::fs;

use ovsdb_client::TlsConfig;

use super::{TempDir, run};

/// Certificates as deployments make them.
pub struct Pki(pub TempDir);

impl Pki {
    pub fn new() -> Self {
        let pki = Self(TempDir::new());
        pki.run(&["init"]);
        pki
    }

    fn run(&self, arguments: &[&str]) {
        let directory = &self.0.0;
        let mut all = vec!["-B", "2048", "-b", "-u", "--log=log"];
        let top = format!("--dir={}", directory.join("pki").display());
        all.push(&top);
        all.extend(arguments);
        run("ovs-pki", &all, directory);
    }

    /// A key and a certificate `<name>` from the `switch` or the `controller` authority.
    pub fn issue(&self, name: &str, authority: &str) {
        self.run(&["req+sign", name, authority]);
    }

    /// The same with a certificate of long ago.
    pub fn issue_expired(&self, name: &str, authority: &str) {
        self.run(&["req", name]);
        let (request, certificate) =
            (self.file(&format!("{name}-req.pem")), self.file(&format!("{name}-cert.pem")));
        let dates = ["-startdate", "20200101000000Z", "-enddate", "20200102000000Z"];
        let files = ["-in", &request, "-out", &certificate];
        let arguments: Vec<&str> =
            ["ca", "-config", "ca.cnf", "-batch"].into_iter().chain(files).chain(dates).collect();
        run("openssl", &arguments, &self.0.0.join(format!("pki/{authority}ca")));
    }

    /// A key and a certificate `<name>` that the key has signed itself, as an authority does.
    pub fn issue_own(&self, name: &str, expired: bool) {
        self.run(&["req", name]);
        let file = |suffix: &str| self.file(&format!("{name}-{suffix}"));
        let (request, key, certificate, extensions) =
            (file("req.pem"), file("privkey.pem"), file("cert.pem"), file("extensions"));
        fs::write(&extensions, format!("basicConstraints=CA:TRUE\nsubjectAltName=DNS:{name}\n")).unwrap();
        let mut arguments = vec!["ca", "-config", "ca.cnf", "-batch", "-selfsign", "-keyfile", &key];
        arguments.extend(["-in", &request, "-out", &certificate, "-extfile", &extensions]);
        if expired {
            arguments.extend(["-startdate", "20200101000000Z", "-enddate", "20200102000000Z"]);
        }
        run("openssl", &arguments, &self.0.0.join("pki/switchca"));
    }

    /// A certificate of X.509 version 1, which openssl makes without a configuration, for a key of this kind.
    pub fn issue_v1(&self, name: &str, authority: &str, key: &[&str]) {
        let file = |suffix: &str| self.file(&format!("{name}-{suffix}"));
        let (request, key_file, certificate) = (file("req.pem"), file("privkey.pem"), file("cert.pem"));
        let key = [&["genpkey", "-out", &key_file, "-algorithm"], key].concat();
        run("openssl", &key, &self.0.0);
        let request_of = ["req", "-new", "-key", &key_file, "-subj", "/CN=x", "-out", &request];
        run("openssl", &request_of, &self.0.0);
        let signer_key = self.file(&format!("pki/{authority}ca/private/cakey.pem"));
        let (signer, files) = (self.authority(authority), ["-in", &request, "-out", &certificate]);
        let signer = ["-CA", &signer, "-CAkey", &signer_key, "-CAcreateserial"];
        run("openssl", &[&["x509", "-req"], &files[..], &signer].concat(), &self.0.0);
    }

    pub fn authority(&self, authority: &str) -> String {
        self.file(&format!("pki/{authority}ca/cacert.pem"))
    }

    pub fn file(&self, name: &str) -> String {
        self.0.path(name).to_str().unwrap().to_owned()
    }

    /// A client's configuration: `name` signed by the controller authority, servers by the switch authority.
    pub fn tls(&self, name: &str) -> TlsConfig {
        TlsConfig {
            private_key: self.file(&format!("{name}-privkey.pem")).into(),
            certificate: self.file(&format!("{name}-cert.pem")).into(),
            ca_certificates: self.authority("switch").into(),
            verify_hostname: false,
        }
    }

    /// The arguments of a server that listens on `port` with the certificate `name`.
    pub fn server_arguments(&self, name: &str, port: u16) -> Vec<String> {
        vec![
            format!("--remote=pssl:{port}:127.0.0.1"),
            format!("--private-key={}", self.file(&format!("{name}-privkey.pem"))),
            format!("--certificate={}", self.file(&format!("{name}-cert.pem"))),
            format!("--ca-cert={}", self.authority("controller")),
        ]
    }
}
