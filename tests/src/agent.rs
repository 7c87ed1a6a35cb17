//! The program under test: the real `metadata-agent`, started inside a chassis' namespace.

use std::{
    collections::BTreeMap,
    fs,
    net::IpAddr,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Command, ExitStatus},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde::Deserialize;

use crate::{
    cloud::Chassis,
    command::{Words as _, run},
    guest::Guest,
    http::{Connection, Response},
    netns, nova,
    ovn::Lab,
    port::Port,
    process::{Daemon, family},
    program, sandbox,
    wait::until,
};

/// Variable with the way in which the agent is to attach its programs, where a test does not say: the tests pass with
/// each way there is.
const ATTACH: &str = "METADATA_TEST_ATTACH";
const START: Duration = Duration::from_secs(90);
const REACTION: Duration = Duration::from_secs(30);
const SETTLED: Duration = Duration::from_millis(100);

/// Options of a test's agent.
#[derive(Debug, Clone)]
pub struct Options {
    /// Seconds for which a request of an unknown instance is held.
    pub hold: u32,
    pub debug: bool,
    /// More lines of its configuration, each with its section.
    pub more: Vec<(&'static str, String)>,
}

impl Default for Options {
    fn default() -> Self {
        Self { hold: 8, debug: false, more: Vec::new() }
    }
}

/// One element of `GET /ports`.
#[derive(Debug, Clone, Deserialize)]
pub struct PortStatus {
    pub port: String,
    pub tap: String,
    #[serde(default)]
    pub ifindex: u32,
    /// On a network's device.
    #[serde(default)]
    pub mac: Option<String>,
    #[serde(default)]
    pub index: u32,
    #[serde(default)]
    pub generation: u64,
    #[serde(default)]
    pub instance: Option<String>,
    #[serde(default)]
    pub fixed_ips: Vec<IpAddr>,
    /// Frames by outcome.
    #[serde(default)]
    pub frames: BTreeMap<String, u64>,
    pub state: String,
    /// Reason for which it is not served, if it is not.
    pub reason: String,
}

#[derive(Debug)]
pub struct Agent {
    daemon: Option<Daemon>,
    binary: PathBuf,
    config: PathBuf,
    run_dir: PathBuf,
    state: PathBuf,
    log: PathBuf,
    /// Path by which to enter the chassis once more, for each start and for the clean-up.
    host: PathBuf,
}

impl Agent {
    /// Starts the agent and waits until it is ready.
    pub fn start(chassis: &impl Chassis, options: &Options) -> Result<Self> {
        let sandbox = chassis.sandbox();
        let mut agent = Self {
            daemon: None,
            binary: program::of_agent()?,
            config: sandbox.path("agent.conf"),
            run_dir: sandbox.path("agent"),
            state: sandbox.path("state"),
            log: sandbox.log("agent"),
            host: chassis.host().path(),
        };
        fs::create_dir(&agent.run_dir)?;
        agent.configure(chassis, options)?;
        agent.resume()?;
        agent.wait_ready()?;
        Ok(agent)
    }

    /// Gives the next start these options.
    pub fn configure(&self, chassis: &impl Chassis, options: &Options) -> Result<()> {
        Ok(fs::write(&self.config, self.configuration(chassis, options))?)
    }

    /// Starts it again after a stop; it is on its way then, not yet ready.
    pub fn resume(&mut self) -> Result<()> {
        self.daemon = Some(self.another(&[])?);
        Ok(())
    }

    /// Starts it beside the one that runs, which it is to take over from; that one is given back.
    pub fn replace(&mut self) -> Result<Daemon> {
        let successor = self.another(&[])?;
        self.daemon.replace(successor).context("the agent does not run")
    }

    /// Starts another process with the same files, and more arguments.
    pub fn another(&self, arguments: &[&str]) -> Result<Daemon> {
        let mut command = netns::command_in(&self.host, &self.binary)?;
        command.arg("run").arg("--config-file").arg(&self.config).args(arguments);
        Daemon::spawn("metadata-agent", command, self.log.clone())
    }

    /// Uses that program from now on.
    pub fn set_program(&mut self, binary: &Path) {
        binary.clone_into(&mut self.binary);
    }

    /// The program that is used.
    pub fn program(&self) -> &Path {
        &self.binary
    }

    /// Its process, when it runs.
    pub fn id(&self) -> Result<u32> {
        Ok(self.daemon.as_ref().context("the agent does not run")?.id())
    }

    /// Its guest-facing process.
    pub fn guest_process(&self) -> Result<u32> {
        match family(self.id()?)?[..] {
            [_, process] => Ok(process),
            ref others => bail!("the agent's processes are {others:?}"),
        }
    }

    /// SIGTERM.
    pub fn stop(&mut self) -> Result<()> {
        if let Some(mut daemon) = self.daemon.take() {
            let status = daemon.stop()?;
            ensure!(status.success(), "the agent was told to stop and ended with {status}");
        }
        Ok(())
    }

    /// SIGKILL, for both processes: nobody is there any more.
    pub fn kill_both(&mut self) -> Result<()> {
        let guests = self.guest_process()?;
        self.kill()?;
        kill(Pid::from_raw(guests.cast_signed()), Signal::SIGKILL)
            .context("the guest-facing process ended as well")?;
        until("both processes have ended", START, || {
            ensure!(!Path::new("/proc").join(guests.to_string()).exists());
            Ok(())
        })
    }

    /// SIGKILL. Its guest-facing process is left, and serves known guests until the next agent comes.
    pub fn kill(&mut self) -> Result<()> {
        if let Some(mut daemon) = self.daemon.take() {
            daemon.kill()?;
        }
        Ok(())
    }

    /// Waits until it has ended by itself.
    pub fn wait_end(&mut self) -> Result<ExitStatus> {
        self.daemon.take().context("the agent is stopped")?.wait()
    }

    /// SIGHUP: reads the inventory again.
    pub fn reload(&self) -> Result<()> {
        self.signal(Signal::SIGHUP)
    }

    pub fn signal(&self, signal: Signal) -> Result<()> {
        self.daemon.as_ref().context("the agent is stopped")?.signal(signal)
    }

    pub fn wait_ready(&mut self) -> Result<()> {
        let waited = until("the agent is ready", START, || {
            let daemon = self.daemon.as_mut().context("the agent is stopped")?;
            if let Err(ended) = daemon.check_running() {
                // Waiting longer would not help.
                return Ok(Err(ended));
            }
            let ready = self.admin("GET", "/ready")?;
            ensure!(ready.status == 200, "pending: {}", ready.text());
            Ok(Ok(()))
        });
        waited.with_context(|| format!("the agent says\n{}", sandbox::tail(&self.log)))?
    }

    /// Waits until it says that something is missing, in words that contain these, and returns them all.
    pub fn wait_pending(&self, words: &str) -> Result<String> {
        until(&format!("the agent misses something: {words}"), START, || {
            let ready = self.admin("GET", "/ready")?;
            let text = ready.text();
            ensure!(ready.status == 503 && text.contains(words), "{}: {text}", ready.status);
            Ok(text)
        })
    }

    /// Run directory, with its pins.
    pub fn run_dir(&self) -> &Path {
        &self.run_dir
    }

    /// The log so far, former runs included. A thread of the agent's own writes it: the last records may be missing.
    pub fn log(&self) -> Result<String> {
        Ok(fs::read_to_string(&self.log)?)
    }

    /// Waits for a line of the log with all of the words, and returns the log.
    pub fn wait_logged(&self, words: &[&str]) -> Result<String> {
        until(&format!("the log has a line with {words:?}"), REACTION, || {
            let log = self.log()?;
            let told = log.lines().any(|line| words.iter().all(|word| line.contains(word)));
            ensure!(told, "the log is\n{log}");
            Ok(log)
        })
    }

    /// Empties the log, which grows with each request.
    pub fn discard_log(&self) -> Result<()> {
        Ok(fs::File::options().write(true).open(&self.log)?.set_len(0)?)
    }

    pub fn ports(&self) -> Result<Vec<PortStatus>> {
        let response = self.admin("GET", "/ports")?;
        ensure!(response.status == 200, "GET /ports: {}", response.status);
        serde_json::from_slice(&response.body).with_context(|| format!("GET /ports: {}", response.text()))
    }

    /// Waits until the guest's tap is served, as that device and that instance.
    pub fn wait_served(&self, guest: &Guest, ifindex: u32) -> Result<PortStatus> {
        self.wait_port_served(&guest.port, ifindex)
    }

    /// The same for whatever is behind a port's tap.
    pub fn wait_port_served(&self, port: &Port, ifindex: u32) -> Result<PortStatus> {
        until(&format!("{} is served", port.tap), REACTION, || {
            let ports = self.ports()?;
            let found = ports.iter().find(|status| {
                status.port == port.id
                    && status.tap == port.tap
                    && status.ifindex == ifindex
                    && status.state == "known"
                    && status.reason.is_empty()
                    && status.instance.as_ref() == Some(&port.instance)
            });
            found.cloned().with_context(|| format!("/ports says {ports:?}"))
        })
    }

    /// Waits until a guest without a tap is served by the device of its network.
    pub fn wait_station(&self, guest: &Guest) -> Result<PortStatus> {
        self.wait_station_of(&guest.port)
    }

    /// The same for a port that no guest of ours has.
    pub fn wait_station_of(&self, port: &Port) -> Result<PortStatus> {
        let device = Lab::network_device(&port.network);
        until(&format!("{} is served by {device}", port.id), REACTION, || {
            let ports = self.ports()?;
            let found = ports.iter().find(|status| {
                status.port == port.id
                    && status.tap == device
                    && status.mac.as_ref() == Some(&port.mac)
                    && status.state == "known"
                    && status.reason.is_empty()
                    && status.instance.as_ref() == Some(&port.instance)
            });
            found.cloned().with_context(|| format!("/ports says {ports:?}"))
        })
    }

    /// Waits until a port is listed as one that is not served, for a reason with these words.
    pub fn wait_unserved(&self, port: &str, words: &str) -> Result<PortStatus> {
        until(&format!("{port} is not served: {words}"), REACTION, || {
            let ports = self.ports()?;
            let found = ports.iter().find(|status| status.port == port && status.state == "unserved");
            let found = found.with_context(|| format!("{ports:?}"))?;
            ensure!(found.reason.contains(words), "{found:?}");
            Ok(found.clone())
        })
    }

    /// Waits until the guest's identity is on disk, which is not written at once.
    pub fn wait_remembered(&self, guest: &Guest) -> Result<()> {
        let file = self.state.join("metadata-agent/identities.json");
        until(&format!("{} remembers {}", file.display(), guest.port.id), REACTION, || {
            let text = fs::read_to_string(&file)?;
            ensure!(text.contains(&guest.port.id), "{text}");
            Ok(())
        })
    }

    /// Waits until nothing is served on that tap.
    pub fn wait_gone(&self, tap: &str) -> Result<()> {
        until(&format!("{tap} is no longer served"), REACTION, || {
            let ports = self.ports()?;
            let is_served = |status: &PortStatus| status.tap == tap && status.state != "unserved";
            ensure!(!ports.iter().any(is_served), "/ports says {ports:?}");
            Ok(())
        })
    }

    /// Waits until a port is not even listed as one that is not served.
    pub fn wait_unlisted(&self, port: &Port) -> Result<()> {
        until(&format!("{} is not listed", port.id), REACTION, || {
            let ports = self.ports()?;
            ensure!(ports.iter().all(|status| status.port != port.id), "/ports says {ports:?}");
            Ok(())
        })
    }

    pub fn counters(&self) -> Result<BTreeMap<String, u64>> {
        let response = self.admin("GET", "/counters")?;
        ensure!(response.status == 200, "GET /counters: {}", response.status);
        serde_json::from_slice(&response.body).with_context(|| format!("GET /counters: {}", response.text()))
    }

    /// The counters once nothing moves any more: a closed connection's last segments may still be on their way.
    pub fn settled_counters(&self) -> Result<BTreeMap<String, u64>> {
        let mut before = self.counters()?;
        until("nothing is counted any more", REACTION, || {
            thread::sleep(SETTLED);
            let now = self.counters()?;
            let moved = before != now;
            before.clone_from(&now);
            ensure!(!moved, "now {now:?}");
            Ok(now)
        })
    }

    pub fn counter(&self, name: &str) -> Result<u64> {
        self.counters()?.get(name).copied().with_context(|| format!("/counters has no {name}"))
    }

    /// One line of `/metrics`, by its name with its labels.
    pub fn metric(&self, name: &str) -> Result<f64> {
        let response = self.admin("GET", "/metrics")?;
        ensure!(response.status == 200, "GET /metrics: {}", response.status);
        let text = response.text();
        let found = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        // What was never counted is not listed.
        found.map_or(Ok(0.0), |value| value.parse().with_context(|| format!("{name} {value}")))
    }

    /// One request on the admin socket.
    pub fn admin(&self, method: &str, target: &str) -> Result<Response> {
        let stream = UnixStream::connect(self.run_dir.join("admin.sock"))
            .context("the agent's admin socket does not answer")?;
        stream.set_read_timeout(Some(REACTION))?;
        Ok(Connection::new(stream).request(method, target, &[("Connection", "close")], b"")?)
    }

    /// Output of a command about the agent of this run directory, with its status.
    pub fn tells(&self, arguments: &[&str]) -> Result<(i32, String)> {
        let output = Command::new(program::of_agent()?)
            .args(arguments)
            .arg("--run-dir")
            .arg(&self.run_dir)
            .output()?;
        let text = String::from_utf8(output.stdout)? + &String::from_utf8(output.stderr)?;
        Ok((output.status.code().context("it was killed")?, text))
    }

    /// Command line of a person who asks this agent something.
    pub fn command_line(&self, subcommand: &str) -> String {
        format!("{} {subcommand} --config-file {}", self.binary.display(), self.config.display())
    }

    /// Contents of a deployment's files, with Neutron's names.
    fn configuration(&self, chassis: &impl Chassis, options: &Options) -> String {
        let mut lines = vec![
            ("DEFAULT", format!("nova_metadata_host = {}", nova::ADDRESS.ip())),
            ("DEFAULT", format!("nova_metadata_port = {}", nova::ADDRESS.port())),
            ("DEFAULT", "nova_metadata_protocol = http".to_owned()),
            ("DEFAULT", format!("metadata_proxy_shared_secret = {}", nova::SECRET)),
            ("DEFAULT", format!("state_path = {}", self.state.display())),
            ("DEFAULT", format!("debug = {}", options.debug)),
            ("metadata_ebpf", format!("netns = {}", service_namespace(chassis))),
            ("metadata_ebpf", format!("run_dir = {}", self.run_dir.display())),
            ("metadata_ebpf", format!("unknown_identity_hold = {}", options.hold)),
            // Tests ask as fast as they can.
            ("metadata_ebpf", "request_rate = 0".to_owned()),
            // A connection may have to outlast whatever a test does meanwhile, on a machine that is busy.
            ("metadata_haproxy", "timeout_http_request = 300".to_owned()),
            ("metadata_haproxy", "timeout_http_keep_alive = 300".to_owned()),
        ];
        if let Ok(mode) = std::env::var(ATTACH) {
            lines.push(("metadata_ebpf", format!("attach = {mode}")));
        }
        lines.extend(chassis.agent_options());
        lines.extend(options.more.iter().cloned());
        let mut sections = BTreeMap::<_, Vec<_>>::new();
        for (section, line) in lines {
            sections.entry(section).or_default().push(line);
        }
        sections.iter().map(|(name, lines)| format!("[{name}]\n{}\n\n", lines.join("\n"))).collect()
    }

    /// Removes what a stopped agent leaves for its successor.
    pub fn clean_up(&self) -> Result<()> {
        let mut command = netns::command_in(&self.host, &self.binary)?;
        run(command.words("cleanup --config-file").arg(&self.config))?;
        Ok(())
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.daemon = None;
        if let Err(error) = self.clean_up() {
            eprintln!("warning: the agent's clean-up failed: {error:#}");
        }
    }
}

/// The name of the namespace in which that chassis' agent listens.
pub fn service_namespace(chassis: &impl Chassis) -> String {
    format!("{}-svc", chassis.sandbox().prefix())
}
