//! The packaged unit under a real systemd: runs in the virtual machines of `cargo xtask vm-test`.
//!
//! Guests sit on taps of the machine itself, whose first process systemd is.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
};

use anyhow::{Context as _, Result, ensure};
use metadata_tests::{
    check::{META_DATA, is_identity_of, was_signed_for},
    cloud::Chassis as _,
    command::{Words as _, run},
    guest::Guest,
    nova::Nova,
    port::Port,
    service::{NETNS, PATIENCE, RUN_DIR, Service},
    stage::{self, Nic, Stage},
    wait::until,
};

mod confinement;
mod ends;
mod packages;

/// `EX_CONFIG` of sysexits.h.
const EX_CONFIG: &str = "78";
/// Parts of lines of /proc/mounts.
const MOUNTS: [&str; 2] = [" /run/metadata-agent/bpf bpf ", " /run/netns/metadata nsfs "];
/// The device of the agent's own guest.
const PROBE: &str = "metadata-probe";
const SERVICE_DEVICE: &str = "/sys/class/net/metadata0";

/// The machine with the service and two guests that have one address in two networks.
struct Host {
    service: Service,
    guests: [Guest; 2],
    nova: Nova,
    stage: Stage,
}

/// Host that a test left in order, for the next one. The last is not dropped, and ends with its machine.
static SPARE: Mutex<Option<Host>> = Mutex::new(None);

/// Runs the test while the service is active. After a failure there is no machine for the others.
fn on_host(test: impl FnOnce(&Host) -> Result<()>) -> Result<()> {
    static STARTED: AtomicBool = AtomicBool::new(false);
    let spare = || SPARE.lock().unwrap_or_else(PoisonError::into_inner);
    let host = match spare().take() {
        Some(host) => host,
        None if STARTED.swap(true, Ordering::Relaxed) => {
            anyhow::bail!("another test did not leave the machine as it was")
        }
        None => Host::start()?,
    };
    let left_in_order = || host.service.has(&["ActiveState=active", "SubState=running", "Result=success"]);
    test(&host)
        .and_then(|()| left_in_order())
        .with_context(|| format!("systemd and the agent say\n{}", host.service.log().unwrap_or_default()))?;
    *spare() = Some(host);
    Ok(())
}

impl Host {
    fn start() -> Result<Self> {
        let stage = Stage::start_on_machine(Nic::Tap)?;
        let nova = Nova::start(stage.host())?;
        let guests = [
            stage.add_guest(&stage.add_network("red")?, stage::Path::OnLink)?,
            stage.add_guest(&stage.add_network("blue")?, stage::Path::ViaGateway)?,
        ];
        stage.write_inventory(&guests.each_ref().map(|guest| &guest.port))?;
        guests.iter().for_each(|guest| nova.add_instance(&guest.port));
        let service = Service::install(&stage)?;
        service.systemctl("start")?;
        Ok(Self { service, guests, nova, stage })
    }

    /// Each guest is answered as itself.
    fn serves(&self) -> Result<()> {
        self.guests.iter().try_for_each(|guest| is_answered_as(guest, &guest.port))
    }
}

/// A guest that goes on trying, as those do that boot.
fn is_answered_as(guest: &Guest, port: &Port) -> Result<()> {
    let mut connection = guest.connect_with(None, PATIENCE)?;
    is_identity_of(port, &connection.request("GET", META_DATA, &[("Connection", "close")], b"")?)
}

/// Does `work` while guests ask again and again; each of them must be answered, once at least after it as well.
fn while_guests_ask(host: &Host, work: impl FnOnce() -> Result<()>) -> Result<()> {
    let (going, answers) = (AtomicBool::new(true), AtomicUsize::new(0));
    let ask = |guest: &Guest| -> Result<()> {
        while going.load(Ordering::Relaxed) {
            is_answered_as(guest, &guest.port)?;
            answers.fetch_add(1, Ordering::Relaxed);
        }
        is_answered_as(guest, &guest.port)
    };
    thread::scope(|scope| {
        let asking = host.guests.each_ref().map(|guest| scope.spawn(|| ask(guest)));
        let done = until("guests are answered", PATIENCE, || {
            ensure!(answers.load(Ordering::Relaxed) > 1);
            Ok(())
        })
        .and_then(|()| work());
        going.store(false, Ordering::Relaxed);
        for guest in asking {
            guest.join().ok().context("a guest's thread panicked")??;
        }
        done
    })
}

#[test]
#[ignore = "for a machine whose init is systemd: cargo xtask vm-test"]
fn a_started_unit_serves() -> Result<()> {
    on_host(|host| {
        host.service.has(&["Type=notify", "ActiveState=active", "SubState=running"])?;
        host.nova.take_requests();
        for guest in &host.guests {
            is_answered_as(guest, &guest.port)?;
            let requests = host.nova.take_requests();
            ensure!(requests.len() == 1, "{requests:?}");
            was_signed_for(&guest.port, &requests[0])?;
        }
        let wants = run(Command::new("systemctl").words("is-active openvswitch-switch"))?;
        assert_eq!(wants.trim(), "active");
        let complaints = Command::new("systemd-analyze").words("verify metadata-agent.service").output()?;
        let complaints = String::from_utf8_lossy(&complaints.stderr).into_owned();
        ensure!(!complaints.contains("metadata-agent"), "{complaints}");
        let exposure =
            Command::new("systemd-analyze").words("security --no-pager metadata-agent.service").output()?;
        let exposure = String::from_utf8_lossy(&exposure.stdout).into_owned();
        println!("{}", exposure.lines().rfind(|line| line.contains("exposure level")).unwrap_or_default());
        Ok(())
    })
}

/// Mounts of the agent are the machine's, else nothing of them would be there for the next process, nor for a person.
#[test]
#[ignore = "for a machine whose init is systemd: cargo xtask vm-test"]
fn what_it_mounts_is_seen_by_all() -> Result<()> {
    on_host(|host| {
        let namespace = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/mnt"));
        assert_eq!(namespace(&host.service.pid()?.to_string())?, namespace("1")?);
        let mounts = fs::read_to_string("/proc/1/mounts")?;
        for mount in MOUNTS {
            ensure!(mounts.contains(mount), "no {mount} in\n{mounts}");
        }
        let names = run(Command::new("ip").words("netns list"))?;
        ensure!(names.lines().any(|line| line.split(' ').next() == Some(NETNS)), "{names}");
        let inside = run(Command::new("ip").words(format!("netns exec {NETNS} ip -4 addr show metadata1")))?;
        ensure!(inside.contains("169.254.169.254/32"), "{inside}");
        Ok(())
    })
}

/// A successor with the configuration and the inventory of now takes over, and systemd follows.
#[test]
#[ignore = "for a machine whose init is systemd: cargo xtask vm-test"]
fn a_reload_is_a_takeover() -> Result<()> {
    on_host(|host| {
        host.serves()?;
        let (before, learned) = (left_behind()?, counter(host, "source_learned")?);
        let [one, other] = &host.guests;
        let heir = Port {
            instance: other.port.instance.clone(),
            project: other.port.project.clone(),
            ..one.port.clone()
        };
        let restarts = host.service.property("NRestarts")?;
        let replaced = || host.service.reload().map(drop);
        for port in [&heir, &one.port] {
            host.stage.write_inventory(&[port, &other.port])?;
            replaced()?;
            is_answered_as(one, port)?;
        }
        while_guests_ask(host, replaced)?;
        assert_eq!(left_behind()?, before);
        // A port of another instance is another port.
        assert_eq!(counter(host, "source_learned")?, learned + 2);
        host.service.has(&["ActiveState=active", &format!("NRestarts={restarts}")])?;
        // One that cannot start changes nothing.
        host.service.configure("inventry = /nowhere\n")?;
        let pid = host.service.pid()?;
        host.service.systemctl("reload")?;
        host.service.wait_said("the successor ended, this agent goes on", 0)?;
        assert_eq!(host.service.pid()?, pid);
        host.service.configure("")?;
        host.serves()
    })
}

#[test]
#[ignore = "for a machine whose init is systemd: cargo xtask vm-test"]
fn a_bad_configuration_is_named_and_not_tried_again() -> Result<()> {
    on_host(|host| {
        host.service.configure("inventry = /nowhere\n")?;
        ensure!(host.service.systemctl("restart").is_err(), "an agent without a configuration was started");
        let status = format!("ExecMainStatus={EX_CONFIG}");
        host.service.has(&["ActiveState=failed", "Result=exit-code", "NRestarts=0", &status])?;
        let problem = r#"/etc/metadata-agent.conf:3: [metadata_ebpf] has no option "inventry""#;
        host.service.wait_said(problem, 0)?;
        host.service.configure("")?;
        host.service.systemctl("start")?;
        host.serves()
    })
}

#[test]
#[ignore = "for a machine whose init is systemd: cargo xtask vm-test"]
fn nothing_is_left_after_a_cleanup() -> Result<()> {
    on_host(|host| {
        host.service.systemctl("stop")?;
        host.service.clean_up()?;
        let mounts = fs::read_to_string("/proc/1/mounts")?;
        for mount in MOUNTS {
            ensure!(!mounts.contains(mount), "{mount} is left in\n{mounts}");
        }
        for path in [Path::new(RUN_DIR), &Path::new("/run/netns").join(NETNS), Path::new(SERVICE_DEVICE)] {
            ensure!(!path.exists(), "{} is left", path.display());
        }
        host.service.systemctl("start")?;
        host.serves()
    })
}

/// Inodes that must be the same after a restart: the run directory with its pins, the namespace and the service device.
/// The agent's own guest is another one each time, and so is what is on its device.
fn left_behind() -> Result<BTreeMap<PathBuf, u64>> {
    let mut found = BTreeMap::new();
    let mut devices = BTreeSet::new();
    for device in fs::read_dir("/sys/class/net")? {
        let device = device?;
        if device.file_name() != PROBE && device.path().is_dir() {
            devices.insert(fs::read_to_string(device.path().join("ifindex"))?.trim().to_owned());
        }
    }
    let is_of_device = |path: &Path| {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        !path.parent().is_some_and(|folder| folder.ends_with("links"))
            || name == "service"
            || devices.contains(name)
    };
    let mut folders = vec![PathBuf::from(RUN_DIR)];
    while let Some(folder) = folders.pop() {
        found.insert(folder.clone(), folder.metadata()?.ino());
        for entry in fs::read_dir(&folder)? {
            let (path, kind) = entry.map(|entry| (entry.path(), entry.file_type()))?;
            if kind?.is_dir() {
                folders.push(path);
            } else if path.ends_with("lock")
                || (path.starts_with(Path::new(RUN_DIR).join("bpf")) && is_of_device(&path))
            {
                found.insert(path.clone(), path.metadata()?.ino());
            }
        }
    }
    ensure!(found.keys().any(|path| path.ends_with("SOURCES")), "nothing is pinned: {found:?}");
    let namespace = Path::new("/run/netns").join(NETNS);
    found.insert(namespace.clone(), namespace.metadata()?.ino());
    let device = fs::read_to_string(Path::new(SERVICE_DEVICE).join("ifindex"))?;
    found.insert(SERVICE_DEVICE.into(), device.trim().parse()?);
    Ok(found)
}

fn counter(host: &Host, name: &str) -> Result<u64> {
    let counters: BTreeMap<String, u64> = serde_json::from_str(&host.service.show("counters --json")?)?;
    counters.get(name).copied().with_context(|| format!("no counter {name}"))
}
