//! One agent takes over from another while guests ask, and no guest notices.

use std::{
    fs,
    io::{IoSlice, IoSliceMut},
    os::unix::fs::symlink,
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use aya::maps::{Array, Map, MapData};
use metadata_ebpf::map::{LAYOUT, OpenSources};
use metadata_tests::{
    agent::Options,
    check::{META_DATA, is_identity_of, own_identity},
    cloud::{Chassis as _, Cloud},
    guest::Guest,
    ovn::Routing,
    process::Daemon,
    stage::{self, Stage},
    traffic::while_asking,
    wait::until,
};
use nix::{
    cmsg_space,
    sys::{
        signal::{Signal, kill},
        socket::{ControlMessageOwned, MsgFlags, recvmsg, sendmsg},
    },
    unistd::{Pid, close},
};
use socket2::{Domain, SockAddr, Socket, Type};

const TAKEOVERS: usize = 4;
const KEPT: usize = 10;
const SOON: Duration = Duration::from_secs(60);

/// Asks in every way that a guest can until told to stop; gives the number of answers, and the slowest.
fn ask_without_end(guest: &Guest, stop: &AtomicBool) -> Result<(usize, Duration)> {
    let ask = |kept: bool| -> Result<(usize, Duration)> {
        let (mut answers, mut slowest, mut connection) = (0, Duration::ZERO, None);
        while !stop.load(Ordering::Relaxed) {
            let began = Instant::now();
            let mut used = match connection.take() {
                Some(connection) => connection,
                None => guest.connect()?,
            };
            let response = used.request("GET", META_DATA, &[], b"")?;
            is_identity_of(&guest.port, &response)?;
            (answers, slowest) = (answers + 1, slowest.max(began.elapsed()));
            // As clients do: not again on one that the server ends.
            if kept && response.header("Connection") != Some("close") {
                connection = Some(used);
            }
            thread::sleep(Duration::from_millis(if kept { 150 } else { 50 }));
        }
        Ok((answers, slowest))
    };
    thread::scope(|scope| {
        let kept: Vec<_> = (0..KEPT).map(|_| scope.spawn(|| ask(true))).collect();
        let new = scope.spawn(|| ask(false));
        let mut all = (0, Duration::ZERO);
        for asking in kept.into_iter().chain([new]) {
            let (answers, slowest) = asking.join().ok().context("a guest panicked")??;
            all = (all.0 + answers, all.1.max(slowest));
        }
        Ok(all)
    })
}

/// Lets the guest ask while something is done.
fn unnoticed(guest: &Guest, done: impl FnOnce() -> Result<()>) -> Result<()> {
    let (stop, repeated) = (AtomicBool::new(false), guest.netns.repeated_syns()?);
    let (answers, slowest) = thread::scope(|scope| {
        let asking = scope.spawn(|| ask_without_end(guest, &stop));
        thread::sleep(Duration::from_millis(500));
        let done = done();
        thread::sleep(Duration::from_millis(500));
        stop.store(true, Ordering::Relaxed);
        let asked = asking.join().ok().context("the guest panicked")?;
        done.and(asked)
    })?;
    println!("{answers} answers, the slowest after {slowest:?}");
    ensure!(answers > 2 * KEPT, "{answers} answers");
    // Whoever finds nobody sends its SYN once more, a second later. How long a request takes says less on a busy machine.
    let repeated = guest.netns.repeated_syns()? - repeated;
    ensure!(
        repeated == 0,
        "{repeated} connections were not accepted at once; the slowest request took {slowest:?}"
    );
    Ok(())
}

fn ends_well(mut former: Daemon) -> Result<()> {
    let status = former.wait()?;
    ensure!(status.success(), "the former agent ended with {status}");
    Ok(())
}

#[test]
fn no_guest_notices_a_takeover() -> Result<()> {
    let mut cloud = Cloud::with_ovn()?;
    let [guest, other] = cloud.overlapping_guests()?;
    let network = cloud.chassis.add_network("green", Routing::Routed)?;
    let Cloud { agent, chassis, .. } = &mut cloud;
    unnoticed(&guest, || {
        for number in 0..TAKEOVERS {
            // Sockets for which there is no worker of their own are another one's.
            let more = vec![("metadata_ebpf", format!("workers = {}", 1 + 2 * (number % 2)))];
            agent.configure(chassis, &Options { more, ..Options::default() })?;
            let former = agent.replace()?;
            ends_well(former)?;
            agent.wait_ready()?;
        }
        Ok(())
    })?;
    own_identity(&other)?;
    // What comes later is served by the last one.
    let newcomer = cloud.add_guest(&network)?;
    cloud.agent.wait_served(&newcomer, cloud.chassis.ifindex(&newcomer)?)?;
    own_identity(&newcomer)?;
    let log = cloud.agent.log()?;
    assert_eq!(log.matches("another agent has taken over").count(), TAKEOVERS, "{log}");
    assert_eq!(cloud.agent.counter("stale_tag")?, 0);
    assert_eq!(cloud.agent.counter("source_learned")?, 3, "nothing was learned twice");
    cloud.agent.stop()?;
    cloud.agent.clean_up()
}

/// Maps that the successor cannot read: connections are lost, and guests that try again are served.
#[test]
fn an_agent_of_another_layout_is_taken_over_from() -> Result<()> {
    let mut cloud = Cloud::with_ovn()?;
    let [guest, other] = cloud.overlapping_guests()?;
    let asked = while_asking(&guest, |asked| {
        // As an agent with the next layout would have pinned them.
        let pins = cloud.agent.run_dir().join("bpf");
        let [own, next] = [LAYOUT, LAYOUT + 1].map(|layout| pins.join(format!("layout-{layout}")));
        fs::rename(own, next)?;
        ends_well(cloud.agent.replace()?)?;
        cloud.agent.wait_ready()?;
        asked.wait_answers()
    })?;
    println!(
        "{} answers, {} failed, the longest time without {:?}",
        asked.count(),
        asked.failed(),
        asked.gap()
    );
    // A client that tries again waits no longer than for the service's device and its tap's program to be made.
    ensure!(asked.gap() < Duration::from_secs(20), "no answer for {:?}", asked.gap());
    own_identity(&guest)?;
    own_identity(&other)
}

/// The former agent ends what it has begun, and holds up nobody who comes in place of its successor.
#[test]
fn a_successor_that_ends_at_once_is_followed_at_once() -> Result<()> {
    let mut cloud = Cloud::with_inventory()?;
    let [guest, other] = cloud.overlapping_guests()?;
    // It is answered by the former agent, and keeps that from ending.
    let mut kept = guest.connect()?;
    is_identity_of(&guest.port, &kept.request("GET", META_DATA, &[], b"")?)?;
    let agent = &mut cloud.agent;
    let mut former = agent.replace()?;
    agent.wait_ready()?;
    agent.wait_logged(&["another agent has taken over"])?;
    agent.kill()?;
    agent.resume()?;
    agent.wait_ready()?;
    former.check_running()?;
    own_identity(&other)?;
    let response = kept.request("GET", META_DATA, &[], b"")?;
    is_identity_of(&guest.port, &response)?;
    assert_eq!(response.header("Connection"), Some("close"), "another agent's connection: {response:?}");
    let status = former.wait()?;
    ensure!(status.success(), "the former agent ended with {status}");
    own_identity(&guest)?;
    own_identity(&other)
}

/// The connections of a former agent that does not live to end them are not counted for ever.
#[test]
fn a_former_agent_that_is_killed_leaves_no_open_connection() -> Result<()> {
    let mut cloud = Cloud::with_inventory()?;
    let [guest, _] = cloud.overlapping_guests()?;
    let pin = cloud.agent.run_dir().join(format!("bpf/layout-{LAYOUT}/OPEN"));
    let open = || -> Result<u32> {
        let map = Map::Array(MapData::from_pin(&pin)?);
        let counters = Array::<_, OpenSources>::try_from(map)?;
        let ports = counters.iter().collect::<Result<Vec<_>, _>>()?;
        Ok(ports.iter().flat_map(|port| port.connections).sum())
    };
    let is_open = |wanted: u32| {
        until(&format!("{wanted} connections are counted"), SOON, || {
            let found = open()?;
            ensure!(found == wanted, "{found}");
            Ok(())
        })
    };
    let kept = |count: usize| -> Result<Vec<_>> {
        let open = (0..count).map(|_| Ok(guest.connect()?)).collect::<Result<Vec<_>>>()?;
        Ok(open)
    };
    let _of_the_former = kept(5)?;
    is_open(5)?;
    let mut former = cloud.agent.replace()?;
    cloud.agent.wait_logged(&["another agent has taken over"])?;
    thread::sleep(Duration::from_millis(1000));
    let _of_the_successor = kept(3)?;
    is_open(8)?;
    former.kill()?;
    is_open(3)?;
    own_identity(&guest)
}

/// The same on a signal, with the program that is installed by then.
#[test]
fn an_agent_starts_its_successor_from_what_is_installed() -> Result<()> {
    let mut cloud = Cloud::with_inventory()?;
    let [guest, _] = cloud.overlapping_guests()?;
    let installed = cloud.chassis.sandbox().path("metadata-agent");
    fs::copy(cloud.agent.program(), &installed)?;
    let built = cloud.agent.program().to_owned();
    cloud.agent.set_program(&installed);
    ends_well(cloud.agent.replace()?)?;
    cloud.agent.wait_ready()?;
    let former = cloud.agent.id()?;
    let mut heir = None;
    unnoticed(&guest, || {
        // As a package manager does it.
        let new = installed.with_extension("new");
        fs::copy(&built, &new)?;
        fs::rename(&new, &installed)?;
        cloud.agent.signal(Signal::SIGUSR2)?;
        let log = cloud.agent.wait_logged(&["starting a successor", "pid="])?;
        let pid = log
            .lines()
            .rev()
            .find_map(|line| line.split_once("starting a successor pid="))
            .map(|(_, rest)| rest);
        let pid = pid.and_then(|rest| rest.split(' ').next()).context("no pid is said")?.parse()?;
        heir = Some(Stray(pid));
        let successor = format!("successor={pid}");
        cloud.agent.wait_logged(&["another agent has taken over", &successor])?;
        Ok(())
    })?;
    let heir = heir.context("there is no successor")?;
    ensure!(fs::read_link(format!("/proc/{}/exe", heir.0))? == installed, "it is the former program");
    ensure!(heir.0 != i32::try_from(former)?);
    ensure!(cloud.agent.wait_end()?.success());
    own_identity(&guest)?;
    drop(heir);
    Ok(())
}

/// A process that nobody waits for.
struct Stray(i32);

impl Drop for Stray {
    fn drop(&mut self) {
        if let Err(error) = kill(Pid::from_raw(self.0), Signal::SIGKILL) {
            eprintln!("warning: cannot end {}: {error}", self.0);
        }
    }
}

/// Errors of a successor are found before the running agent is disturbed.
#[test]
fn a_successor_that_cannot_start_leaves_the_running_agent_to_serve() -> Result<()> {
    let mut cloud = Cloud::with_inventory()?;
    let [guest, other] = cloud.overlapping_guests()?;
    let (default, ebpf) = ("DEFAULT", "metadata_ebpf");
    let wrong = [
        (vec![(default, "nova_metadata_protocol = https"), (default, "auth_ca_cert = /missing")], "/missing"),
        (vec![(ebpf, "admin_listen = 192.0.2.77:9000")], "192.0.2.77:9000"),
        (vec![(ebpf, "netns = elsewhere")], "is to have elsewhere"),
        (vec![(ebpf, "inventory = /none")], "/none"),
        (vec![(ebpf, "nonsense = 1")], "nonsense"),
    ];
    let agent = &cloud.agent;
    unnoticed(&guest, || {
        for (lines, said) in wrong {
            let more = lines.iter().map(|(section, line)| (*section, (*line).to_owned())).collect();
            agent.configure(&cloud.chassis, &Options { more, ..Options::default() })?;
            let mut successor = agent.another(&[])?;
            let status = successor.wait()?;
            ensure!(!status.success(), "{lines:?}: it started");
            agent.wait_logged(&[said])?;
        }
        // Also when the agent started it.
        agent.signal(Signal::SIGUSR2)?;
        agent.wait_logged(&["the successor ended, this agent goes on"])?;
        agent.configure(&cloud.chassis, &Options::default())?;
        let mut forbidden = agent.another(&["--no-takeover"])?;
        ensure!(!forbidden.wait()?.success(), "it took over");
        agent.wait_logged(&["--no-takeover leaves it alone"])?;
        Ok(())
    })?;
    let log = cloud.agent.log()?;
    ensure!(!log.contains("standing still"), "{log}");
    own_identity(&other)?;
    ends_well(cloud.agent.replace()?)?;
    own_identity(&guest)
}

/// One that has everything but time: the running agent stands still for it, and goes on.
#[test]
fn a_successor_that_learns_of_no_interface_leaves_the_running_agent_to_serve() -> Result<()> {
    let mut cloud = Cloud::with_ovn()?;
    let [guest, other] = cloud.overlapping_guests()?;
    let Cloud { agent, chassis, .. } = &mut cloud;
    unnoticed(&guest, || {
        chassis.kill_ovs_database()?;
        for workers in [2, 5] {
            let more = vec![("metadata_ebpf", format!("workers = {workers}"))];
            agent.configure(chassis, &Options { more, ..Options::default() })?;
            let status = agent.another(&[])?.wait()?;
            ensure!(!status.success(), "with {workers} workers it took over");
            agent.wait_logged(&["which interfaces there are did not become known"])?;
            agent.wait_logged(&["there is no takeover, going on"])?;
            until("the agent goes on", SOON, || agent.admin("GET", "/ports").map(drop))?;
        }
        chassis.start_ovs_database()
    })?;
    let log = cloud.agent.log()?;
    assert_eq!(log.matches("there is no takeover, going on").count(), 2, "{log}");
    ensure!(!log.contains("repairing"), "{log}");
    cloud.agent.wait_ready()?;
    // ovn-controller comes back to it some seconds later.
    until("the switch answers for the router", SOON, || own_identity(&other))?;
    own_identity(&guest)
}

/// The service device is one for each network namespace: an agent with files of its own leaves it to the one that has it, and
/// so does a clean-up.
#[test]
fn an_agent_of_another_run_directory_is_refused() -> Result<()> {
    let cloud = Cloud::on(Stage::start()?, &Options::default())?;
    let [guest, other] = cloud.overlapping_guests()?;
    let (agent, device) = (&cloud.agent, cloud.chassis.host().ifindex("metadata0")?);
    let (run_dir, own) = (agent.run_dir().to_owned(), cloud.chassis.sandbox().path("another"));
    let named = format!("with the run directory {}", run_dir.display());
    unnoticed(&guest, || {
        let options = |run_dir: &Path| {
            let netns = ("metadata_ebpf", format!("netns = {}-other", cloud.chassis.sandbox().prefix()));
            let run_dir = ("metadata_ebpf", format!("run_dir = {}", run_dir.display()));
            Options { more: vec![netns, run_dir], ..Options::default() }
        };
        agent.configure(&cloud.chassis, &options(&own))?;
        ensure!(!agent.another(&[])?.wait()?.success(), "it started");
        agent.wait_logged(&["another agent runs in this network namespace", &named])?;
        let cleaned = agent.clean_up();
        ensure!(cleaned.is_err_and(|error| format!("{error:#}").contains(&named)), "it cleaned up");
        // The same folder under another name.
        let link = cloud.chassis.sandbox().path("link");
        symlink(&run_dir, &link)?;
        agent.configure(&cloud.chassis, &options(&link))?;
        ensure!(!agent.another(&[])?.wait()?.success(), "it started");
        agent.wait_logged(&["the running agent's service namespace is"])?;
        agent.configure(&cloud.chassis, &Options::default())
    })?;
    assert_eq!(cloud.chassis.host().ifindex("metadata0")?, device, "the service device was made anew");
    assert!(!own.exists(), "it left a run directory");
    own_identity(&other)
}

/// Another agent as the running one sees it.
struct Pretender(Socket);

impl Pretender {
    fn new(run_dir: &Path) -> Result<Self> {
        let socket = Socket::new(Domain::UNIX, Type::SEQPACKET, None)?;
        socket.connect(&SockAddr::unix(run_dir.join("takeover.sock"))?)?;
        Ok(Self(socket))
    }

    fn say(&self, message: &str) -> Result<()> {
        use std::os::fd::AsRawFd as _;
        let flags = MsgFlags::MSG_NOSIGNAL;
        sendmsg::<()>(self.0.as_raw_fd(), &[IoSlice::new(message.as_bytes())], &[], flags, None)?;
        Ok(())
    }

    /// Receives a message, with the number of its descriptors.
    fn hear(&self) -> Result<(String, usize)> {
        use std::os::fd::AsRawFd as _;
        self.0.set_read_timeout(Some(SOON))?;
        let mut text = vec![0; 1 << 14];
        let mut control = cmsg_space!([i32; 64]);
        let mut buffers = [IoSliceMut::new(&mut text)];
        let received =
            recvmsg::<()>(self.0.as_raw_fd(), &mut buffers, Some(&mut control), MsgFlags::MSG_CMSG_CLOEXEC)?;
        let (length, mut count) = (received.bytes, 0);
        for message in received.cmsgs()? {
            if let ControlMessageOwned::ScmRights(descriptors) = message {
                count += descriptors.len();
                descriptors.into_iter().try_for_each(close)?;
            }
        }
        Ok((String::from_utf8(text[..length].to_vec())?, count))
    }

    fn begin(run_dir: &Path) -> Result<Self> {
        let pretender = Self::new(run_dir)?;
        pretender.say(r#"{"Hello":{"protocol":1,"version":"0.0.0"}}"#)?;
        let (offer, descriptors) = pretender.hear()?;
        // The lock, and for each of two workers one socket of each family.
        ensure!(offer.contains("\"Offer\"") && descriptors == 5, "{offer} with {descriptors}");
        Ok(pretender)
    }

    fn freeze(&self) -> Result<()> {
        self.say("\"Freeze\"")?;
        let (frozen, _) = self.hear()?;
        ensure!(frozen == "\"Frozen\"", "{frozen}");
        Ok(())
    }
}

/// One that goes away, hangs or talks nonsense at any point costs guests nothing, and new ones seconds.
#[test]
fn the_running_agent_goes_on_when_there_is_no_takeover() -> Result<()> {
    let mut cloud = Cloud::on(Stage::start()?, &Options::default())?;
    let [guest, other] = cloud.overlapping_guests()?;
    let network = cloud.chassis.add_network("green")?;
    let run_dir = cloud.agent.run_dir().to_owned();
    let newcomer_is_served = || -> Result<()> {
        let newcomer = cloud.chassis.add_guest(&network, stage::Path::OnLink)?;
        cloud.nova.add_instance(&newcomer.port);
        cloud.chassis.write_inventory(&[&guest.port, &other.port, &newcomer.port])?;
        cloud.agent.reload()?;
        cloud.agent.wait_served(&newcomer, cloud.chassis.ifindex(&newcomer)?)?;
        own_identity(&newcomer)
    };
    unnoticed(&guest, || {
        for nonsense in ["", "{", "\"Commit\"", r#"{"Hello":{"protocol":2,"version":"9"}}"#] {
            let pretender = Pretender::new(&run_dir)?;
            pretender.say(nonsense)?;
            let (answer, descriptors) = pretender.hear()?;
            ensure!(descriptors == 0, "{nonsense}: {answer} with {descriptors} descriptors");
        }
        drop(Pretender::begin(&run_dir)?);
        newcomer_is_served()?;
        // Gone while the agent stands still.
        let pretender = Pretender::begin(&run_dir)?;
        pretender.freeze()?;
        ensure!(cloud.agent.admin("GET", "/ready").is_err(), "it does not stand still");
        drop(pretender);
        until("the agent goes on", SOON, || cloud.agent.admin("GET", "/ready").map(drop))?;
        newcomer_is_served()?;
        // And one that hangs.
        let hanging = Pretender::begin(&run_dir)?;
        hanging.freeze()?;
        until("the agent goes on", SOON, || cloud.agent.admin("GET", "/ready").map(drop))?;
        newcomer_is_served()
    })?;
    // One that went away after it had taken everything leaves nobody, which the service manager is told.
    let lost = Pretender::begin(&run_dir)?;
    lost.freeze()?;
    lost.say("\"Commit\"")?;
    ensure!(lost.hear()?.0 == "\"Yours\"");
    drop(lost);
    let status = cloud.agent.wait_end()?;
    ensure!(!status.success(), "{status}");
    cloud.agent.wait_logged(&["nobody is left"])?;
    cloud.agent.resume()?;
    cloud.agent.wait_ready()?;
    own_identity(&guest)
}
