//! The agent looks after its datapath: whatever an operator or another program does to it is repaired, or said.

use std::{fs, net::SocketAddrV6, net::TcpStream, path::Path, time::Duration};

use anyhow::{Context as _, Result, ensure};
use metadata_ebpf::map::LAYOUT;
use metadata_tests::{
    agent::{Options, service_namespace},
    check::{META_DATA, is_identity_of, own_identity},
    cloud::{Chassis as _, Cloud},
    command::{Words as _, run},
    guest::{Generation, Guest, METADATA_V6},
    http::Connection,
    kernel,
    netns::Namespace,
    stage::Stage,
    wait::until,
};

use nix::sys::signal::Signal;

/// Some times as long as it takes on a machine that has nothing else to do.
const HEALED: Duration = Duration::from_secs(30);
/// Time that one attempt of a guest may take: it tries again, as boot clients do.
const ATTEMPT: Duration = Duration::from_secs(1);

/// Accident of the datapath.
type Accident = fn(&Cloud<Stage>, &Guest) -> Result<()>;

fn service(cloud: &Cloud<Stage>) -> Namespace {
    Namespace::existing(&service_namespace(&cloud.chassis))
}

fn ask(guest: &Guest, scope: Option<u32>) -> Result<()> {
    let mut connection = match scope {
        None => guest.connect_with(None, ATTEMPT)?,
        Some(scope) => {
            let address = SocketAddrV6::new(METADATA_V6, 80, 0, scope).into();
            let stream = guest.netns.run(move || TcpStream::connect_timeout(&address, ATTEMPT))??;
            stream.set_read_timeout(Some(ATTEMPT))?;
            Connection::new(stream)
        }
    };
    is_identity_of(&guest.port, &connection.request("GET", META_DATA, &[], b"")?)
}

fn is_served(guest: &Guest) -> Result<()> {
    let scope = guest.netns.ifindex("eth0")?;
    for scope in [None, Some(scope)] {
        until("the guest is answered again", HEALED, || ask(guest, scope))?;
    }
    Ok(())
}

const ACCIDENTS: [(&str, Accident); 10] = [
    ("the host end is down", |cloud, _| cloud.chassis.host().ip("link set metadata0 down").map(drop)),
    ("the host end is deleted", |cloud, _| cloud.chassis.host().ip("link del metadata0").map(drop)),
    ("the inner end was down", |cloud, _| {
        service(cloud).ip("link set metadata1 down")?;
        service(cloud).ip("link set metadata1 up").map(drop)
    }),
    ("the inner end is down", |cloud, _| service(cloud).ip("link set metadata1 down").map(drop)),
    ("the addresses are gone", |cloud, _| service(cloud).ip("addr flush dev metadata1").map(drop)),
    ("the routes are gone", |cloud, _| {
        service(cloud).ip("route flush 240.0.0.0/8")?;
        service(cloud).ip("-6 route flush fd00:a9fe:a9fe::/96").map(drop)
    }),
    ("the next hop is gone", |cloud, _| {
        service(cloud).ip("neigh flush nud permanent dev metadata1").map(drop)
    }),
    ("the namespace has lost its name", |cloud, _| {
        run(std::process::Command::new("ip").words("netns del").arg(service(cloud).name())).map(drop)
    }),
    ("the pin of a tap's link is gone", |cloud, guest| {
        if !kernel::has_tcx()? || std::env::var("METADATA_TEST_ATTACH").is_ok_and(|mode| mode == "clsact") {
            return Ok(());
        }
        let ifindex = cloud.chassis.ifindex(guest)?;
        let links = cloud.agent.run_dir().join(format!("bpf/layout-{LAYOUT}/links"));
        fs::remove_file(links.join(ifindex.to_string()))?;
        fs::remove_file(links.join("service")).context("the service device's link")
    }),
    ("the BPF file system is unmounted", |cloud, _| {
        let bpf = cloud.agent.run_dir().join("bpf");
        run(std::process::Command::new("umount").arg(bpf)).map(drop)
    }),
];

#[test]
fn accidents_are_repaired() -> Result<()> {
    let mut cloud = Cloud::with_inventory()?;
    let [guest, other] = cloud.overlapping_guests()?;
    guest.enable_ipv6(Generation::Eui64)?;
    is_served(&guest)?;
    for (name, accident) in ACCIDENTS {
        println!("{name}");
        accident(&cloud, &guest).context(name)?;
        is_served(&guest).context(name)?;
        cloud.agent.wait_ready().context(name)?;
        let maps = cloud.agent.run_dir().join(format!("bpf/layout-{LAYOUT}/SOURCES"));
        for path in [service(&cloud).path(), maps] {
            let is_there = || path.try_exists()?.then_some(()).context("it is not");
            until(&format!("{} is there", path.display()), HEALED, is_there).context(name)?;
        }
    }
    // A successor finds everything that it adopts.
    let learned = cloud.agent.counter("source_learned")?;
    cloud.agent.kill()?;
    cloud.agent.resume()?;
    cloud.agent.wait_ready()?;
    is_served(&guest)?;
    is_identity_of(&other.port, &other.get(META_DATA)?)?;
    ensure!(cloud.agent.counter("source_learned")? <= learned + 1, "the maps were made anew");
    Ok(())
}

/// Trouble that cannot be repaired is said, and the node is not ready for as long as it lasts.
#[test]
fn a_broken_path_that_cannot_be_repaired_is_said() -> Result<()> {
    let mut cloud = Cloud::with_inventory()?;
    let [guest, _] = cloud.overlapping_guests()?;
    is_answered(&guest)?;
    // More particular than any route of ours.
    let routes = ["240.0.0.0/9", "240.128.0.0/9"];
    for route in routes {
        service(&cloud).ip(format!("route add blackhole {route}"))?;
    }
    cloud.agent.wait_pending("guests do not reach the service")?;
    ensure!(cloud.agent.metric("metadata_ready")? == 0.0);
    for route in routes {
        service(&cloud).ip(format!("route del blackhole {route}"))?;
    }
    cloud.agent.wait_ready()?;
    is_answered(&guest)
}

fn is_answered(guest: &Guest) -> Result<()> {
    until("the guest is answered", HEALED, || ask(guest, None))
}

/// The agent's own connections are nobody's: neither counted nor logged.
#[test]
fn looking_after_it_leaves_no_trace() -> Result<()> {
    let cloud = Cloud::with_inventory()?;
    let before = cloud.agent.settled_counters()?;
    std::thread::sleep(Duration::from_secs(5));
    ensure!(cloud.agent.counters()? == before, "{:?} after {before:?}", cloud.agent.counters()?);
    ensure!(cloud.agent.metric("metadata_connections_accepted_total")? == 0.0);
    ensure!(!cloud.agent.log()?.contains("access"), "{}", cloud.agent.log()?);
    Ok(())
}

/// The programs hear that the agent lives, whatever cannot be put back: guests are served on.
#[test]
fn a_name_that_cannot_be_given_back_costs_guests_nothing() -> Result<()> {
    let lease = Duration::from_secs(10);
    let more = vec![("metadata_ebpf", format!("lease = {}", lease.as_secs()))];
    let cloud = Cloud::on(Stage::start()?, &Options { more, ..Options::default() })?;
    let [guest, _] = cloud.overlapping_guests()?;
    is_answered(&guest)?;
    let name = service(&cloud).path();
    run(std::process::Command::new("umount").arg("--lazy").arg(&name))?;
    fs::remove_file(&name)?;
    // Nothing can be mounted on what is neither.
    fs::create_dir(&name)?;
    let why = cloud.agent.wait_pending("giving it its name");
    std::thread::sleep(lease + Duration::from_secs(5));
    let served = ask(&guest, None);
    let log = cloud.agent.wait_logged(&["cannot be looked after"]);
    cloud.chassis.host().ip("link del metadata0")?;
    let repaired = is_answered(&guest);
    fs::remove_dir(&name)?;
    why.and(served)?;
    repaired.context("with its name, it could not have its device back either")?;
    let said = log?.matches("cannot be looked after").count();
    ensure!(said == 1, "said {said} times\n{}", cloud.agent.log()?);
    Ok(())
}

/// Accidents of the agent's own guest.
const ACCIDENTS_OF_THE_PROBE: [(&str, &[&str]); 3] = [
    ("its device is down", &["link set metadata-probe down"]),
    ("its device is deleted", &["link del metadata-probe"]),
    (
        "its device is down and another one has its name",
        &["link set metadata-probe down name lost", "link add metadata-probe type veth peer name other"],
    ),
];

/// The node is as well as its guests are: its own one is put back like everything else, and nothing of the former is left.
#[test]
fn the_agents_own_guest_is_repaired_as_well() -> Result<()> {
    let mut cloud = Cloud::with_inventory()?;
    let [guest, _other] = cloud.overlapping_guests()?;
    let host = cloud.chassis.host();
    let links = cloud.agent.run_dir().join(format!("bpf/layout-{LAYOUT}/links"));
    let (threads, pins) = (threads_of(&cloud)?, fs::read_dir(&links)?.count());
    for (name, accidents) in ACCIDENTS_OF_THE_PROBE {
        println!("{name}");
        for accident in accidents {
            host.ip(*accident).context(name)?;
        }
        // It is noticed, or healed at once.
        std::thread::sleep(Duration::from_secs(9));
        cloud.agent.wait_ready().context(name)?;
        host.ip("link show up dev metadata-probe").context(name)?;
        ensure!(host.ip("link show dev lost").is_err(), "{name}: the former device is left");
        ensure!(threads_of(&cloud)? == threads, "{name}: {} threads", threads_of(&cloud)?);
        ensure!(fs::read_dir(&links)?.count() == pins, "{name}: pins are left");
    }
    is_answered(&guest)?;
    let log = cloud.agent.log()?;
    ensure!(
        log.matches("guests do not reach the service").count() <= 2 * ACCIDENTS_OF_THE_PROBE.len(),
        "{log}"
    );
    Ok(())
}

fn threads_of(cloud: &Cloud<Stage>) -> Result<usize> {
    Ok(fs::read_dir(format!("/proc/{}/task", cloud.agent.id()?))?.count())
}

/// The run directory is all that an operator needs, and no file with the secret.
#[test]
fn an_operator_asks_with_the_run_directory_alone() -> Result<()> {
    let cloud = Cloud::with_inventory()?;
    let [guest, other] = cloud.overlapping_guests()?;
    own_identity(&guest)?;
    let show = |words: &str| -> Result<String> {
        let mut command = std::process::Command::new(cloud.agent.program());
        run(command.args(["show", "--run-dir"]).arg(cloud.agent.run_dir()).args(words.split(' ')))
    };
    assert_eq!(show("ready")?, "ready\n");
    let ports = show("ports")?;
    for Guest { port, .. } in [&guest, &other] {
        let line = ports.lines().find(|line| line.starts_with(&port.tap)).context("no line")?;
        let address = port.address.to_string();
        for cell in [port.id.as_str(), &port.instance, &address, "known"] {
            ensure!(line.split("  ").any(|word| word.trim() == cell), "no {cell} in {line}");
        }
    }
    ensure!(ports.ends_with("\n2 of 2 ports are served as somebody\n"), "{ports}");
    let object: serde_json::Value = serde_json::from_str(&show("ports --json")?)?;
    assert_eq!(object.as_array().map(Vec::len), Some(2));
    ensure!(show("counters")?.contains("source_learned"), "it learned one");
    ensure!(show("metrics")?.contains("metadata_ready 1\n"));
    let nowhere = Path::new("/nowhere");
    let mut command = std::process::Command::new(cloud.agent.program());
    let error =
        run(command.args(["show", "ready", "--run-dir"]).arg(nowhere)).err().context("somebody answers")?;
    ensure!(format!("{error:#}").contains("no agent answers at /nowhere/admin.sock"), "{error:#}");
    Ok(())
}

/// Callers of an agent that hangs hear so.
#[test]
fn an_agent_that_hangs_is_not_waited_for_without_end() -> Result<()> {
    let cloud = Cloud::with_inventory()?;
    cloud.agent.signal(Signal::SIGSTOP)?;
    let mut show = std::process::Command::new("timeout");
    let asked = run(show.args(["60", "sh", "-c", &cloud.agent.command_line("show ready")]));
    cloud.agent.signal(Signal::SIGCONT)?;
    let error = format!("{:#}", asked.err().context("it is ready")?);
    ensure!(error.contains("is there and does not answer"), "{error}");
    Ok(())
}
