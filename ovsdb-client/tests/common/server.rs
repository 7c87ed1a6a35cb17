//! A real ovsdb-server in a temporary directory, gone when dropped.
use std::{
    fs,
    net::TcpStream,
    os::unix::net::UnixStream,
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::{
    WAIT,
    tools::{TempDir, free_port, missing, run},
};

/// An ovsdb-server with one database.
pub struct Server {
    pub directory: TempDir,
    pub port: u16,
    arguments: Vec<String>,
    child: Option<Child>,
}

impl Server {
    /// A standalone server on a Unix socket and a TCP port, with `schema`.
    pub fn start(schema: &str) -> Self {
        Self::start_with(schema, |port| vec![format!("--remote=ptcp:{port}:127.0.0.1")])
    }

    /// The same with the arguments that `arguments` gives for a free port.
    pub fn start_with(schema: &str, arguments: impl FnOnce(u16) -> Vec<String>) -> Self {
        let directory = TempDir::new();
        fs::write(directory.path("schema"), schema).unwrap();
        run("ovsdb-tool", &["create", "db", "schema"], &directory.0);
        Self::serve(directory, arguments)
    }

    /// Serves the database `db` in `directory`.
    pub fn serve(directory: TempDir, arguments: impl FnOnce(u16) -> Vec<String>) -> Self {
        let port = free_port();
        let mut server = Self { arguments: arguments(port), directory, port, child: None };
        server.restart();
        server
    }

    /// Starts the server, after it was stopped or for the first time, and waits until it listens.
    pub fn restart(&mut self) {
        self.stop();
        let directory = &self.directory.0;
        drop(fs::remove_file(directory.join("sock")));
        let child = Command::new("ovsdb-server")
            .args([
                "db",
                "--remote=punix:sock",
                "--unixctl=ctl",
                "--no-chdir",
                "-vconsole:off",
                "-vsyslog:off",
            ])
            .args(["--log-file=log", "-vfile:info"])
            .args(&self.arguments)
            .current_dir(directory)
            .env("OVS_RUNDIR", directory)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| missing("ovsdb-server", &error));
        self.child = Some(child);
        let socket = directory.join("sock");
        let deadline = Instant::now() + WAIT;
        while UnixStream::connect(&socket).is_err() || TcpStream::connect(("127.0.0.1", self.port)).is_err() {
            let log = || fs::read_to_string(directory.join("log")).unwrap_or_default();
            assert!(Instant::now() < deadline, "ovsdb-server does not listen: {}", log());
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Kills the server as a crash would.
    pub fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// Exit status of the server, if it ended although nobody stopped it.
    pub fn crashed(&mut self) -> Option<ExitStatus> {
        self.child.as_mut()?.try_wait().unwrap()
    }

    pub fn is_running(&self) -> bool {
        self.child.is_some()
    }

    pub fn signal(&self, signal: Signal) {
        let pid = self.child.as_ref().unwrap().id();
        kill(Pid::from_raw(pid.cast_signed()), signal).unwrap();
    }

    pub fn unix(&self) -> String {
        format!("unix:{}", self.directory.path("sock").display())
    }

    pub fn tcp(&self) -> String {
        format!("tcp:127.0.0.1:{}", self.port)
    }

    /// Asks the server over its control socket.
    pub fn appctl(&self, arguments: &[&str]) -> String {
        let control = self.directory.path("ctl");
        let mut all = vec!["-t", control.to_str().unwrap()];
        all.extend(arguments);
        run("ovs-appctl", &all, &self.directory.0)
    }

    /// Waits until a server of a cluster has found it.
    pub fn await_connected(&self) {
        let arguments = ["--timeout=20", "wait", &self.unix(), "Inventory", "connected"];
        run("ovsdb-client", &arguments, &self.directory.0);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}
