//! Attachment of the programs, which stays on its devices, and limits of one port.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use aya::programs::{SchedClassifier, TcAttachType};
use metadata_ebpf::map::LAYOUT;
use metadata_tests::{
    agent::Options,
    check::own_identity,
    cloud::{Chassis as _, Cloud},
    command::{Words as _, run},
    kernel,
    port::Port,
    programs::{Programs, Which},
    stage::{Path, Stage},
    wait::until,
};

fn options(lines: &[&str]) -> Options {
    let more = lines.iter().map(|line| ("metadata_ebpf", (*line).to_owned())).collect();
    Options { more, ..Options::default() }
}

fn cloud(lines: &[&str]) -> Result<Cloud<Stage>> {
    Cloud::on(Stage::start()?, &options(lines))
}

/// The agent's filters on a device, by the handle it gives them.
fn filters(cloud: &Cloud<Stage>, device: &str) -> Result<usize> {
    let shown = run(cloud.chassis.host().command("tc")?.words(format!("filter show dev {device} ingress")))?;
    Ok(shown.matches("handle 0xa9fe").count())
}

#[test]
fn a_removed_qdisc_is_put_back() -> Result<()> {
    let cloud = cloud(&["attach = clsact"])?;
    let [red, blue] = cloud.overlapping_guests()?;
    own_identity(&red)?;
    ensure!(filters(&cloud, &red.port.tap)? == 1);
    for device in [red.port.tap.as_str(), "metadata0"] {
        let mut fastest = Duration::MAX;
        for _ in 0..3 {
            run(cloud.chassis.host().command("tc")?.words(format!("qdisc del dev {device} clsact")))?;
            let removed = Instant::now();
            until("the program is back", Duration::from_secs(5), || {
                ensure!(filters(&cloud, device)? == 1, "{device} has no filter");
                Ok(())
            })?;
            fastest = fastest.min(removed.elapsed());
            own_identity(&red)?;
            own_identity(&blue)?;
        }
        println!("{device} had its program back after {fastest:?}");
        // Other tests keep the machine busy now and then.
        ensure!(fastest < Duration::from_secs(1), "{device}: {fastest:?}");
    }
    Ok(())
}

/// Filters of one priority are of one kind and protocol: where others have the first, ours gets the next.
#[test]
fn others_filters_keep_their_priority() -> Result<()> {
    let mut cloud = cloud(&["attach = clsact"])?;
    let [red, blue] = cloud.overlapping_guests()?;
    cloud.agent.stop()?;
    cloud.agent.clean_up()?;
    let (tap, host) = (&red.port.tap, cloud.chassis.host());
    // Both see each frame before ours and let it go on.
    let foreign = format!("filter add dev {tap} ingress");
    // Programs of the classic kind, which every kernel has that has ours: `ret 0`, no match.
    let add = |words: String| run(host.command("tc")?.words(words).arg("1,6 0 0 0"));
    add(format!("{foreign} pref 1 protocol ip bpf bytecode"))?;
    add(format!("{foreign} pref 2 protocol arp bpf bytecode"))?;
    fs::create_dir_all(cloud.agent.run_dir())?;
    cloud.agent.resume()?;
    for _ in 0..2 {
        cloud.agent.wait_ready()?;
        own_identity(&red)?;
        own_identity(&blue)?;
        let shown = run(cloud.chassis.host().command("tc")?.words(format!("filter show dev {tap} ingress")))?;
        let ours: Vec<_> = shown.lines().filter(|line| line.contains("handle 0xa9fe")).collect();
        ensure!(ours.len() == 1 && ours[0].contains("pref 3 "), "{shown}");
        ensure!(shown.contains("protocol ip pref 1 ") && shown.contains("protocol arp pref 2 "), "{shown}");
        // A successor finds it where it is.
        cloud.agent.kill()?;
        cloud.agent.resume()?;
    }
    cloud.agent.wait_ready()?;
    cloud.agent.stop()?;
    cloud.agent.clean_up()?;
    let shown = run(cloud.chassis.host().command("tc")?.words(format!("filter show dev {tap} ingress")))?;
    ensure!(!shown.contains("0xa9fe") && shown.contains("protocol ip pref 1 "), "{shown}");
    fs::create_dir_all(cloud.agent.run_dir())?;
    cloud.agent.resume()?;
    cloud.agent.wait_ready()
}

/// Open vSwitch and libvirt limit what a guest sends by an `ingress` qdisc, which has no room beside it for a clsact: one
/// that was there serves us as well, and is put back as what it was.
#[test]
fn an_ingress_qdisc_comes_back_as_one() -> Result<()> {
    let mut cloud = cloud(&["attach = clsact"])?;
    let [red, _] = cloud.overlapping_guests()?;
    cloud.agent.stop()?;
    cloud.agent.clean_up()?;
    let tap = &red.port.tap;
    let host = cloud.chassis.host();
    let tc = |words: String| run(host.command("tc")?.words(words));
    tc(format!("qdisc del dev {tap} clsact"))?;
    tc(format!("qdisc add dev {tap} ingress"))?;
    fs::create_dir_all(cloud.agent.run_dir())?;
    cloud.agent.resume()?;
    cloud.agent.wait_ready()?;
    own_identity(&red)?;
    for _ in 0..2 {
        tc(format!("qdisc del dev {tap} ingress"))?;
        until("the program is back", Duration::from_secs(30), || {
            let qdiscs = tc(format!("qdisc show dev {tap}"))?;
            ensure!(qdiscs.contains("qdisc ingress ffff:") && !qdiscs.contains("clsact"), "{qdiscs}");
            ensure!(filters(&cloud, tap)? == 1);
            Ok(())
        })?;
        own_identity(&red)?;
    }
    Ok(())
}

#[test]
fn a_restarted_agent_replaces_its_filters() -> Result<()> {
    let mut cloud = cloud(&["attach = clsact"])?;
    let [red, blue] = cloud.overlapping_guests()?;
    own_identity(&red)?;
    cloud.agent.kill()?;
    cloud.agent.resume()?;
    cloud.agent.wait_ready()?;
    for guest in [&red, &blue] {
        own_identity(guest)?;
        ensure!(filters(&cloud, &guest.port.tap)? == 1);
    }
    cloud.agent.stop()?;
    cloud.agent.clean_up()?;
    ensure!(filters(&cloud, &red.port.tap)? == 0, "a filter was left behind");
    cloud.agent.resume()?;
    cloud.agent.wait_ready()?;
    own_identity(&red)
}

/// An agent that shall use nothing but TCX says so where there is none, instead of a test that cannot run there.
fn has_tcx() -> Result<bool> {
    if kernel::has_tcx()? {
        return Ok(true);
    }
    let Err(error) = cloud(&["attach = tcx"]) else {
        bail!("this kernel has TCX, which came with Linux 6.6")
    };
    ensure!(format!("{error:#}").contains("this kernel has no TCX links"), "{error:#}");
    Ok(false)
}

/// Programs on a device by TCX links.
fn links(cloud: &Cloud<Stage>, device: &str) -> Result<usize> {
    let query = || SchedClassifier::query_tcx(device, TcAttachType::Ingress);
    let (_, programs) = cloud.chassis.host().run(query)??;
    Ok(programs.len())
}

/// Waits until a device has so many links and filters: the kernel removes a link a moment after its pin.
fn attached(cloud: &Cloud<Stage>, device: &str, expected: (usize, usize)) -> Result<()> {
    until("the device has its program", Duration::from_secs(30), || {
        let found = (links(cloud, device)?, filters(cloud, device)?);
        ensure!(found == expected, "{device} has {found:?} links and filters, not {expected:?}");
        Ok(())
    })
}

#[test]
fn the_way_to_attach_can_be_changed_by_a_restart() -> Result<()> {
    if !has_tcx()? {
        return Ok(());
    }
    let mut cloud = cloud(&["attach = tcx"])?;
    let [red, blue] = cloud.overlapping_guests()?;
    own_identity(&red)?;
    let learned = cloud.agent.counter("source_learned")?;
    for (mode, expected) in [("clsact", (0, 1)), ("tcx", (1, 0)), ("clsact", (0, 1))] {
        cloud.agent.stop()?;
        cloud.agent.configure(&cloud.chassis, &options(&[&format!("attach = {mode}")]))?;
        cloud.agent.resume()?;
        cloud.agent.wait_ready()?;
        own_identity(&red)?;
        for device in [red.port.tap.as_str(), "metadata0"] {
            attached(&cloud, device, expected).context(mode)?;
        }
        assert_eq!(cloud.agent.counter("source_learned")?, learned);
    }
    // A port that went while the agent was away is not left with the program of the other kind.
    cloud.agent.stop()?;
    cloud.agent.configure(&cloud.chassis, &options(&["attach = tcx"]))?;
    cloud.chassis.write_inventory(&[&blue.port])?;
    cloud.agent.resume()?;
    cloud.agent.wait_gone(&red.port.tap)?;
    own_identity(&blue)?;
    attached(&cloud, &red.port.tap, (0, 0))
}

/// A link is on its tap, and the filter that an agent of the other kind has left there cannot be taken off for want of
/// descriptors: it is taken off with the link.
#[test]
fn a_filter_that_could_not_be_removed_goes_with_its_port() -> Result<()> {
    if !has_tcx()? {
        return Ok(());
    }
    let cloud = cloud(&["attach = tcx"])?;
    let [red, _] = cloud.overlapping_guests()?;
    let guest = cloud.chassis.add_guest(&cloud.chassis.add_network("green")?, Path::OnLink)?;
    let tap = guest.port.tap.as_str();
    let mut programs = Programs::load()?;
    cloud.chassis.host().run(|| programs.leave_filter(Which::FromGuest, tap, 0xa9fe))??;
    attached(&cloud, tap, (0, 1))?;
    // Enough for the link and a socket, and not for what asking for filters takes.
    let agent = cloud.agent.id()?;
    let limit = limit_with_room(agent, 3)?;
    let allow = |limit: &str| run(Command::new("prlimit").words(format!("--pid {agent} --nofile={limit}:")));
    let before =
        run(Command::new("prlimit").words(format!("--pid {agent} --nofile --noheadings --output SOFT")))?;
    allow(&limit.to_string())?;
    cloud.chassis.write_inventory(&[&red.port, &guest.port])?;
    cloud.agent.reload()?;
    let half = attached(&cloud, tap, (1, 1));
    cloud.agent.wait_logged(&[&format!("cannot attach to {tap} "), "Too many open files"])?;
    cloud.chassis.write_inventory(&[&red.port])?;
    allow(before.trim())?;
    half?;
    cloud.agent.reload()?;
    cloud.agent.wait_gone(tap)?;
    attached(&cloud, tap, (0, 0))?;
    own_identity(&red)
}

/// Limit on a process' descriptors with which it can have that many more.
fn limit_with_room(process: u32, room: usize) -> Result<usize> {
    let mut used = BTreeSet::new();
    for entry in fs::read_dir(format!("/proc/{process}/fd"))? {
        used.insert(entry?.file_name().to_string_lossy().parse::<usize>()?);
    }
    (0..).filter(|number| !used.contains(number)).nth(room).context("there are infinitely many numbers")
}

/// Filters come after links: an agent that has maps of its own could not take its predecessor's frames over.
#[test]
fn filters_do_not_succeed_links_of_another_layout() -> Result<()> {
    if !has_tcx()? {
        return Ok(());
    }
    let mut cloud = cloud(&["attach = tcx"])?;
    let [red, _] = cloud.overlapping_guests()?;
    own_identity(&red)?;
    cloud.agent.stop()?;
    let pins = cloud.agent.run_dir().join("bpf");
    let [own, other] = [LAYOUT, LAYOUT + 1].map(|layout| pins.join(format!("layout-{layout}")));
    fs::rename(own, &other)?;
    cloud.agent.configure(&cloud.chassis, &options(&["attach = clsact"]))?;
    cloud.agent.resume()?;
    until("the agent says why it does not start", Duration::from_secs(30), || {
        let log = cloud.agent.log()?;
        let said = format!("{}/links/service is the link of an agent of another version", other.display());
        ensure!(log.contains(&said) && log.contains("attach = tcx"), "{log}");
        Ok(())
    })?;
    ensure!(cloud.agent.stop().is_err(), "it runs all the same");
    cloud.agent.configure(&cloud.chassis, &options(&["attach = tcx"]))?;
    cloud.agent.resume()?;
    cloud.agent.wait_ready()?;
    own_identity(&red)
}

#[test]
fn links_do_not_mind_what_happens_to_qdiscs() -> Result<()> {
    if !has_tcx()? {
        return Ok(());
    }
    let cloud = cloud(&["attach = tcx"])?;
    let [red, _] = cloud.overlapping_guests()?;
    for action in ["add", "del"] {
        let mut tc = cloud.chassis.host().command("tc")?;
        run(tc.words(format!("qdisc {action} dev {} clsact", red.port.tap)))?;
        own_identity(&red)?;
    }
    Ok(())
}

/// Each link waits for the kernel; the agent answers meanwhile, and serves those that it has done.
#[test]
fn many_taps_do_not_keep_the_agent_from_its_other_work() -> Result<()> {
    const TAPS: u32 = 200;
    let cloud = cloud(&[])?;
    let network = cloud.chassis.add_network("green")?;
    let ports = (0..TAPS).map(|_| Port::new(&network)).collect::<Result<Vec<_>>>()?;
    for Port { tap, .. } in &ports {
        cloud.chassis.host().ip(format!("link add {tap} type veth peer name p{}", &tap[3..]))?;
    }
    cloud.chassis.write_inventory(&ports.iter().collect::<Vec<_>>())?;
    let started = Instant::now();
    cloud.agent.reload()?;
    let (mut answers_meanwhile, mut slowest) = (0, Duration::ZERO);
    until("all taps have the program", Duration::from_secs(120), || {
        let asked = Instant::now();
        let statuses = cloud.agent.ports()?;
        slowest = slowest.max(asked.elapsed());
        let left = statuses.iter().filter(|status| !status.reason.is_empty()).count();
        answers_meanwhile += usize::from(left > 0);
        ensure!(statuses.len() == ports.len() && left == 0, "{left} of {} are left", statuses.len());
        Ok(())
    })?;
    let took = started.elapsed();
    println!("{TAPS} taps in {took:?}, {answers_meanwhile} answers meanwhile, the slowest after {slowest:?}");
    // A kernel that does not wait leaves no time to ask.
    ensure!(answers_meanwhile > 0 || took < Duration::from_secs(1), "the agent was busy for {took:?}");
    Ok(())
}

/// Of many that wait it is the newest one whose guest has just booted.
#[test]
fn the_newest_tap_is_attached_first() -> Result<()> {
    const TAPS: usize = 30;
    let stage = Stage::start()?;
    let network = stage.add_network("green")?;
    let taps = (0..TAPS).map(|_| stage.add_tap(Port::new(&network)?)).collect::<Result<Vec<_>>>()?;
    stage.write_inventory(&taps.iter().map(|tap| &tap.port).collect::<Vec<_>>())?;
    let cloud = Cloud::on(stage, &Options { debug: true, ..Options::default() })?;
    let oldest = &taps.first().context("there are some")?.port.tap;
    let log = cloud.agent.wait_logged(&["reconcile: attached", oldest])?;
    let attached = log.lines().filter(|line| line.contains("reconcile: attached"));
    let order: Vec<_> = attached
        .filter_map(|line| taps.iter().find(|tap| line.contains(&tap.port.tap)).map(|tap| tap.ifindex))
        .collect();
    ensure!(order.len() == TAPS && order.is_sorted_by(|one, next| one > next), "{order:?}\n{log}");
    Ok(())
}

/// Opens connections as fast as it can for a moment, from a guest whose limit is low.
#[test]
fn new_connections_are_limited_per_port() -> Result<()> {
    let cloud = cloud(&["connection_rate = 20", "connection_burst = 20"])?;
    let [greedy, other] = cloud.overlapping_guests()?;
    let before = cloud.agent.settled_counters()?;
    let started = Instant::now();
    let mut opened = Vec::new();
    while started.elapsed() < Duration::from_secs(2) && opened.len() < 2_000 {
        match greedy.connect_with(None, Duration::from_millis(50)) {
            Ok(connection) => opened.push(connection),
            Err(error) => ensure!(matches!(error, metadata_tests::http::Error::Timeout), "{error}"),
        }
    }
    let allowed = 20 + 20 * started.elapsed().as_secs() as usize + 20;
    ensure!(opened.len() <= allowed, "{} connections in {:?}", opened.len(), started.elapsed());
    ensure!(opened.len() >= 20, "the burst was not allowed: {}", opened.len());
    own_identity(&other)?;
    drop(opened);
    let after: BTreeMap<_, _> = cloud.agent.settled_counters()?.into_iter().collect();
    ensure!(after["connections_limited"] > before["connections_limited"], "{after:?}");
    Ok(())
}

#[test]
fn answers_are_limited_per_port() -> Result<()> {
    let cloud = cloud(&["answer_rate = 5", "answer_burst = 5"])?;
    let [guest, other] = cloud.overlapping_guests()?;
    let mut ping = guest.netns.command("ping")?;
    // All but the first few are lost, which is a failure to ping.
    let _ = run(ping.words("-f -c 200 -w 1 169.254.169.254"));
    let counters = cloud.agent.settled_counters()?;
    ensure!(counters["answers_limited"] > 0 && counters["echo_answered"] <= 20, "{counters:?}");
    own_identity(&other)
}
