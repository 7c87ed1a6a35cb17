//! Neutron's own metadata agent for OVN, installed by pip, on the chassis of a lab: what its documentation names is set, and
//! nothing else.

use std::{
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use metadata_tests::{
    cloud::Chassis as _,
    command::{Words as _, run},
    guest::Guest,
    nova,
    ovn::Lab,
    port::Network,
    process::{Daemon, cpu_time_of, memory_of},
    wait::until,
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

const PROGRAM: &str = "neutron-ovn-metadata-agent";
/// It makes one network after the other, each in about a second.
const PROVISION: Duration = Duration::from_secs(300);
const REMOVAL: Duration = Duration::from_secs(60);
/// In which an agent that is idle takes hardly any time.
const QUIET: Duration = Duration::from_secs(1);

/// The agent with all that it starts.
#[derive(Debug)]
pub(crate) struct Neutron {
    agent: Option<Daemon>,
    /// Folder in which pip put it.
    environment: PathBuf,
    /// Its state; each of its processes names it on its command line.
    folder: PathBuf,
    log: PathBuf,
}

impl Neutron {
    /// Writes its configuration. With no number of workers it is the agent's own choice, which is none with OVN.
    pub(crate) fn install(lab: &Lab, environment: &Path, workers: Option<u32>) -> Result<Self> {
        let folder = lab.sandbox().path("neutron");
        if folder.exists() {
            fs::remove_dir_all(&folder)?;
        }
        fs::create_dir_all(folder.join("lock"))?;
        let workers = workers.map(|number| format!("metadata_workers = {number}\n")).unwrap_or_default();
        let configuration = format!(
            "[DEFAULT]\nstate_path = {state}\nlog_file = {state}/agent.log\nnova_metadata_host = {}\nnova_metadata_port = {}\n\
             metadata_proxy_shared_secret = {}\n{workers}[agent]\nroot_helper = env\n[ovs]\novsdb_connection = {}\n\
             [ovn]\novn_sb_connection = {}\n[oslo_concurrency]\nlock_path = {state}/lock\n",
            nova::ADDRESS.ip(),
            nova::ADDRESS.port(),
            nova::SECRET,
            lab.ovs_remote(),
            lab.southbound_socket(),
            state = folder.display(),
        );
        fs::write(folder.join("neutron.conf"), configuration)?;
        let environment = environment.to_owned();
        Ok(Self { agent: None, environment, folder, log: lab.sandbox().log("neutron") })
    }

    /// The version that is installed.
    pub(crate) fn version(environment: &Path) -> Result<String> {
        let mut python = Command::new(environment.join("bin/python"));
        let version =
            run(python.args(["-c", "import importlib.metadata as m; print(m.version('neutron'))"]))?;
        Ok(version.trim().to_owned())
    }

    fn program(&self) -> PathBuf {
        self.environment.join("bin").join(PROGRAM)
    }

    /// Starts it beside the switch, whose ports it makes.
    pub(crate) fn start(&mut self, lab: &Lab) -> Result<()> {
        let mut command = lab.switch().command(self.program())?;
        command.arg("--config-file").arg(self.folder.join("neutron.conf")).env("PATH", self.path()?);
        self.agent = Some(Daemon::spawn(PROGRAM, command, self.log.clone())?);
        Ok(())
    }

    /// The same as a line for a shell, which an operator's command has; nothing happens if it runs.
    pub(crate) fn start_command(&self, lab: &Lab) -> Result<String> {
        let (program, conf, log) = (self.program(), self.folder.join("neutron.conf"), &self.log);
        let (pid, switch, path) = (self.folder.join("pid"), lab.switch().path(), self.path()?);
        Ok(format!(
            "grep -qs . /proc/$(cat {pid} || echo none)/cmdline || PATH={path} setsid --fork nsenter --net={switch} \
             sh -c 'echo $$ >{pid}; exec {program} --config-file {conf} >>{log} 2>&1'",
            pid = pid.display(),
            path = path.display(),
            switch = switch.display(),
            program = program.display(),
            conf = conf.display(),
            log = log.display(),
        ))
    }

    /// A line for a shell that stops what the former one started.
    pub(crate) fn stop_command(&self) -> String {
        format!("kill $(cat {})", self.folder.join("pid").display())
    }

    /// Its own programs come first; privilege separation starts one of them by name.
    fn path(&self) -> Result<PathBuf> {
        let own = self.environment.join("bin").into_os_string();
        let path = std::env::var_os("PATH").unwrap_or_default();
        Ok([own, ":".into(), path, ":/usr/sbin:/sbin".into()].into_iter().collect::<OsString>().into())
    }

    /// Stops the agent. Its haproxies and namespaces stay, as in production.
    pub(crate) fn stop(&mut self) -> Result<()> {
        let mut agent = self.agent.take().context("it does not run")?;
        agent.stop()?;
        Ok(())
    }

    /// Every process: the agent, three for privileges, and haproxy for each network.
    fn processes(&self) -> Result<Vec<u32>> {
        let folder = self.folder.as_os_str().as_encoded_bytes();
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc")? {
            let Some(process) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) else {
                continue;
            };
            // It may be gone.
            let command = fs::read(format!("/proc/{process}/cmdline")).unwrap_or_default();
            if command.windows(folder.len()).any(|words| words == folder) {
                found.push(process);
            }
        }
        Ok(found)
    }

    pub(crate) fn is_there(&self) -> Result<bool> {
        Ok(!self.processes()?.is_empty())
    }

    /// Proportional share of memory of all of them, in bytes.
    pub(crate) fn memory(&self) -> Result<u64> {
        self.processes()?.into_iter().map(memory_of).sum()
    }

    pub(crate) fn cpu_time(&self) -> Result<Duration> {
        self.processes()?.into_iter().map(cpu_time_of).sum()
    }

    /// Stops all of them for a while, or lets them go on: neither is to take time from what is measured of the other.
    pub(crate) fn signal(&self, signal: Signal) -> Result<()> {
        for process in self.processes()? {
            kill(Pid::from_raw(process.cast_signed()), signal)?;
        }
        Ok(())
    }

    /// Waits until it has a network, and has the inner device send whole checksums, which the switch in user space wants: the
    /// agent's own rule for that does not see packets that are to be cut.
    pub(crate) fn wait_provisioned(&self, network: &str) -> Result<()> {
        until(&format!("neutron serves network {network}"), PROVISION, || {
            let pid = fs::read_to_string(self.folder.join(format!("external/pids/{network}.pid.haproxy")))?;
            ensure!(!pid.trim().is_empty() && Path::new("/proc").join(pid.trim()).exists());
            Ok(())
        })?;
        whole_checksums(network)
    }

    /// Waits until it has nothing to do.
    pub(crate) fn wait_idle(&self) -> Result<()> {
        let mut before = self.cpu_time()?;
        until("neutron's agent is idle", PROVISION, || {
            thread::sleep(QUIET);
            let now = self.cpu_time()?;
            let took = now.saturating_sub(before);
            before = now;
            ensure!(took < QUIET / 50, "it took {took:?}");
            Ok(())
        })
    }

    /// Waits until it has removed what it made for a network.
    pub(crate) fn wait_removed(&self, network: &str) -> Result<()> {
        let namespace = Path::new("/run/netns").join(namespace(network));
        until(&format!("neutron has removed network {network}"), REMOVAL, || {
            ensure!(!namespace.exists());
            Ok(())
        })
    }

    /// Ends all of it, and removes what is left.
    pub(crate) fn remove(&mut self, lab: &Lab, networks: &[&Network]) -> Result<()> {
        self.signal(Signal::SIGCONT)?;
        if self.agent.is_some() {
            self.stop()?;
        }
        until("all processes of neutron have ended", REMOVAL, || {
            let left = self.processes()?;
            for process in &left {
                // It may have ended just now.
                let _ = kill(Pid::from_raw(process.cast_signed()), Signal::SIGKILL);
            }
            ensure!(left.is_empty(), "{left:?}");
            Ok(())
        })?;
        for network in networks {
            let (namespace, device) = (namespace(&network.id), format!("tap{}0", &network.id[..10]));
            run(lab.vsctl().words(format!("--if-exists del-port br-int {device}")))?;
            if Path::new("/run/netns").join(&namespace).exists() {
                run(Command::new("ip").words("netns del").arg(&namespace))?;
            }
        }
        Ok(())
    }
}

fn namespace(network: &str) -> String {
    format!("ovnmeta-{network}")
}

fn whole_checksums(network: &str) -> Result<()> {
    let device = format!("tap{}1", &network[..10]);
    let mut ethtool = Command::new("ip");
    ethtool.words(format!("netns exec {} ethtool -K {device} tx off", namespace(network)));
    run(&mut ethtool)?;
    Ok(())
}

/// Sends what a guest asks for 169.254.169.254 to the network's metadata port, as its lease would.
pub(crate) fn configure(lab: &Lab, guest: &Guest, network: &Network) -> Result<()> {
    let (_, mac) = lab.metadata_port(network)?;
    guest.configure(Some((metadata_tests::port::METADATA_PORT, &mac)))
}
