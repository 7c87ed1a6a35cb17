//! Certificates made by openssl, and servers that show them.
use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::TcpStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use rustls::{ClientConnection, StreamOwned};
use tls_peer::{Refusal, Settings, refusal, server_name};

/// Longer than anything takes on a machine that is busy.
const PATIENCE: Duration = Duration::from_secs(60);

/// A folder with keys and certificates: `<name>.key` and `<name>.pem`.
pub(crate) struct Workshop(PathBuf);

impl Workshop {
    pub(crate) fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("tls-peer-{name}-{}", std::process::id()));
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    pub(crate) fn folder(&self) -> &Path {
        &self.0
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    pub(crate) fn certificate(&self, name: &str) -> PathBuf {
        self.file(&format!("{name}.pem"))
    }

    pub(crate) fn openssl(&self, arguments: &[&str]) {
        let output = openssl(arguments).current_dir(&self.0).output();
        let output =
            output.unwrap_or_else(|error| panic!("openssl: {error}: install the Debian package openssl"));
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// Makes a key; certificates whose key was not made have one of P-256.
    pub(crate) fn key(&self, name: &str, algorithm: &[&str]) {
        let out = format!("{name}.key");
        self.openssl(&[&["genpkey", "-out", &out, "-algorithm"], algorithm].concat());
    }

    /// Gives a certificate the key of another.
    pub(crate) fn key_of(&self, name: &str, other: &str) {
        fs::copy(self.file(&format!("{other}.key")), self.file(&format!("{name}.key"))).unwrap();
    }

    /// The key in the encoding that only curves have, as `<name>.sec1.key`.
    pub(crate) fn sec1(&self, name: &str) {
        self.openssl(&["ec", "-in", &format!("{name}.key"), "-out", &format!("{name}.sec1.key")]);
    }

    /// An authority, as `openssl req -x509` makes it.
    pub(crate) fn authority(&self, name: &str) {
        self.request(name);
        let (key, out, subject) = (format!("{name}.key"), format!("{name}.pem"), format!("/CN={name}"));
        self.openssl(&["req", "-x509", "-key", &key, "-subj", &subject, "-days", "2", "-out", &out]);
    }

    /// One that has signed itself, of version 1.
    pub(crate) fn authority_v1(&self, name: &str) {
        self.request(name);
        let (request, key, out) = (format!("{name}.csr"), format!("{name}.key"), format!("{name}.pem"));
        self.openssl(&["x509", "-req", "-in", &request, "-signkey", &key, "-days", "2", "-out", &out]);
    }

    fn request(&self, name: &str) {
        let key = format!("{name}.key");
        if !self.file(&key).exists() {
            self.key(name, &["ec", "-pkeyopt", "ec_paramgen_curve:P-256"]);
        }
        // Servers and those who sign are told apart by their names.
        let subject = if name.starts_with("intermediate") || name.starts_with("ca") {
            format!("/CN={name}")
        } else {
            "/CN=localhost".to_owned()
        };
        self.openssl(&["req", "-new", "-key", &key, "-subj", &subject, "-out", &format!("{name}.csr")]);
    }

    /// A certificate with these extensions.
    pub(crate) fn issue(&self, name: &str, issuer: &str, extensions: &[&str]) {
        fs::write(self.file("extensions"), extensions.join("\n") + "\nsubjectKeyIdentifier=hash\n").unwrap();
        self.sign(name, issuer, &["-days", "2", "-extfile", "extensions"]);
    }

    /// A certificate without extensions, which openssl makes one of version 1.
    pub(crate) fn issue_v1(&self, name: &str, issuer: &str) {
        self.sign(name, issuer, &["-days", "2"]);
        let version =
            openssl(&["x509", "-noout", "-text", "-in"]).arg(self.certificate(name)).output().unwrap();
        assert!(
            String::from_utf8_lossy(&version.stdout).contains("Version: 1 (0x0)"),
            "{name} is not of version 1"
        );
    }

    /// One that ended yesterday.
    pub(crate) fn issue_v1_expired(&self, name: &str, issuer: &str) {
        self.sign(name, issuer, &["-days", "-1"]);
    }

    fn sign(&self, name: &str, issuer: &str, arguments: &[&str]) {
        self.request(name);
        let (request, out) = (format!("{name}.csr"), format!("{name}.pem"));
        let (certificate, key) = (format!("{issuer}.pem"), format!("{issuer}.key"));
        let files = ["-in", &request, "-out", &out, "-CA", &certificate, "-CAkey", &key, "-CAcreateserial"];
        self.openssl(&[&["x509", "-req"], &files[..], arguments].concat());
        if issuer.starts_with("intermediate") {
            let both = fs::read_to_string(self.file(&out)).unwrap()
                + &fs::read_to_string(self.file(&certificate)).unwrap();
            fs::write(self.file(&format!("{name}.chain")), both).unwrap();
        }
    }

    /// Replaces bytes in a certificate by as many others.
    pub(crate) fn alter(&self, name: &str, from: &[u8], to: &[u8]) {
        let (pem, der) = (format!("{name}.pem"), format!("{name}.der"));
        self.openssl(&["x509", "-in", &pem, "-outform", "DER", "-out", &der]);
        let mut bytes = fs::read(self.file(&der)).unwrap();
        let at = bytes.windows(from.len()).position(|window| window == from).unwrap();
        bytes[at..at + to.len()].copy_from_slice(to);
        fs::write(self.file(&der), bytes).unwrap();
        self.openssl(&["x509", "-in", &der, "-inform", "DER", "-out", &pem]);
    }

    /// The same certificate by another label.
    pub(crate) fn relabelled(&self, name: &str, label: &str) -> PathBuf {
        let text = fs::read_to_string(self.certificate(name)).unwrap().replace("CERTIFICATE", label);
        fs::write(self.file("relabelled.pem"), text).unwrap();
        self.file("relabelled.pem")
    }

    /// All in one file.
    pub(crate) fn bundle(&self, names: &[&str]) -> PathBuf {
        let text: String =
            names.iter().map(|name| fs::read_to_string(self.certificate(name)).unwrap()).collect();
        fs::write(self.file("bundle.pem"), text).unwrap();
        self.file("bundle.pem")
    }

    /// A folder as `openssl rehash` makes it.
    pub(crate) fn hashed(&self, names: &[&str]) -> PathBuf {
        let folder = self.file(&format!("hashed-{}", names.join("-")));
        fs::create_dir(&folder).unwrap();
        for name in names {
            fs::copy(self.certificate(name), folder.join(format!("{name}.pem"))).unwrap();
        }
        self.openssl(&["rehash", folder.to_str().unwrap()]);
        folder
    }
}

impl Drop for Workshop {
    fn drop(&mut self) {
        drop(fs::remove_dir_all(&self.0));
    }
}

fn openssl(arguments: &[&str]) -> Command {
    let mut command = Command::new("openssl");
    command.args(arguments).stdin(Stdio::null());
    command
}

/// `openssl s_server`, which answers requests by HTTP with a page.
pub(crate) struct Server {
    child: Child,
    port: String,
}

impl Server {
    pub(crate) fn start(shop: &Workshop, name: &str, arguments: &[&str]) -> Self {
        let (certificate, key) = (format!("{name}.pem"), format!("{name}.key"));
        let mut command = openssl(&["s_server", "-accept", "127.0.0.1:0", "-www", "-naccept", "1000"]);
        command.args(["-cert", &certificate, "-key", &key]);
        let chain = shop.file(&format!("{name}.chain"));
        if chain.exists() {
            command.arg("-cert_chain").arg(chain);
        }
        // A small key is shown, however little it is worth.
        command.args(["-cipher", "DEFAULT@SECLEVEL=0"]).args(arguments).current_dir(shop.folder());
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let port = lines.find_map(|line| Some(line.unwrap().strip_prefix("ACCEPT 127.0.0.1:")?.to_owned()));
        let port = port.unwrap_or_else(|| panic!("s_server does not start with {name}: {:?}", child.wait()));
        // It must not stop for a pipe that is full.
        std::thread::spawn(move || lines.for_each(drop));
        Self { child, port }
    }

    /// Asks for a page; an error is what is said of the handshake.
    pub(crate) fn visit(&self, settings: &Settings) -> Result<(), String> {
        let client = settings.load().map_err(|error| error.to_string())?;
        let tcp = TcpStream::connect(format!("127.0.0.1:{}", self.port)).unwrap();
        tcp.set_read_timeout(Some(PATIENCE)).unwrap();
        let connection = ClientConnection::new(client, server_name("localhost.").unwrap()).unwrap();
        let mut stream = StreamOwned::new(connection, tcp);
        let mut page = Vec::new();
        let result = stream.write_all(b"GET / HTTP/1.0\r\n\r\n").and_then(|()| {
            // It does not end TLS before it ends TCP.
            match stream.read_to_end(&mut page) {
                Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => Ok(0),
                other => other,
            }
        });
        result.map_err(|error| match refusal(&error) {
            Some(Refusal::UnknownIssuer) => "no certificate that is trusted has signed it".to_owned(),
            Some(Refusal::Certificate(problem) | Refusal::Alert(problem)) => problem,
            None => error.to_string(),
        })?;
        assert!(page.starts_with(b"HTTP/1.0 200"), "{:?}", String::from_utf8_lossy(&page));
        Ok(())
    }

    /// The same with `openssl s_client`.
    pub(crate) fn visit_with_openssl(&self, trust: &Path, verify_name: bool) -> Result<(), String> {
        let mut command = openssl(&["s_client", "-verify_return_error", "-connect"]);
        command.arg(format!("127.0.0.1:{}", self.port)).arg(if trust.is_dir() {
            "-CApath"
        } else {
            "-CAfile"
        });
        command.arg(trust).args(["-no-CAstore", if trust.is_dir() { "-no-CAfile" } else { "-no-CApath" }]);
        if verify_name {
            command.args(["-verify_hostname", "localhost"]);
        }
        let output = command.output().unwrap();
        if output.status.success() {
            Ok(())
        } else {
            Err(String::from_utf8_lossy(&output.stderr).into_owned())
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
