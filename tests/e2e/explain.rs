//! Faults by an operator, which `explain` names: the stage, by its exit status, and the words that lead to the remedy.

use std::{fs, os::unix::fs::PermissionsExt as _, time::Duration};

use anyhow::{Context as _, Result, ensure};
use metadata_tests::{
    agent::Options,
    check::{META_DATA, own_identity},
    cloud::{Chassis, Cloud},
    command::{Words as _, run},
    guest::Guest,
    nova::SECRET,
    ovn::{Lab, Routing},
    port::{METADATA_PORT, Port, uuid},
    process::Daemon,
    stage::Stage,
    wait::until,
};
use serde_json::Value;

/// Some times as long as it takes on a machine that has nothing else to do.
const SOON: Duration = Duration::from_secs(60);

/// Exit statuses, as docs/troubleshooting.md has them.
const GOOD: i32 = 0;
const NO_AGENT: i32 = 9;
const DEVICE: i32 = 11;
const OPEN_VSWITCH: i32 = 12;
const SOUTHBOUND: i32 = 13;
const IDENTITY: i32 = 14;
const PROGRAM: i32 = 15;
const LIMITS: i32 = 18;
const NOVA: i32 = 20;

/// Waits until what is wrong with something is found at that stage, in words that contain these; returns all of them.
fn wait_explained<C: Chassis>(
    cloud: &Cloud<C>,
    arguments: &[&str],
    status: i32,
    words: &[&str],
) -> Result<String> {
    let arguments = [&["explain"], arguments].concat();
    until(&format!("{arguments:?} ends with {status} and says {words:?}"), SOON, || {
        let (ended, text) = cloud.agent.tells(&arguments)?;
        let missing = words.iter().find(|word| !text.contains(**word));
        ensure!(ended == status && missing.is_none(), "it ended with {ended} and lacks {missing:?}:\n{text}");
        Ok(text)
    })
}

/// A port whose rows are there as told, plugged and with an address.
fn plugged(cloud: &Cloud<Lab>, port: Port, row: Option<&Port>) -> Result<Guest> {
    if let Some(row) = row {
        cloud.chassis.create_port(row)?;
    }
    let guest = cloud.chassis.boot(port)?;
    guest.configure(Some((METADATA_PORT, "fa:16:3e:aa:bb:cc")))?;
    cloud.chassis.plug(&guest)?;
    Ok(guest)
}

#[test]
fn a_port_is_found_by_all_its_names_and_asked_for() -> Result<()> {
    let cloud = Cloud::with_ovn()?;
    let [guest, other] = cloud.overlapping_guests()?;
    own_identity(&guest)?;
    let Port { id, tap, instance, address, .. } = &guest.port;
    for name in [id, tap, instance] {
        let text = wait_explained(&cloud, &[name], GOOD, &["good", "=> nothing is wrong"])?;
        for words in [
            format!("port {id} on {tap}"),
            format!("instance {instance}"),
            format!("Interface {tap} is plugged for {id}"),
            "as the hypervisor says as well".to_owned(),
            format!("the kernel has it on {tap}"),
            "redirected ".to_owned(),
            format!("{address} ({}", guest.port.mac),
            "the last one, GET of meta-data, was answered 200 by Nova".to_owned(),
        ] {
            ensure!(text.contains(&words), "{words} is not in\n{text}");
        }
        ensure!(!text.contains(&other.port.id) && !text.contains(SECRET), "{text}");
    }
    // Two tenants have that address.
    let text = wait_explained(&cloud, &[&address.to_string()], GOOD, &[id])?;
    ensure!(text.contains(&other.port.id), "{text}");

    // One request for that port, and none for another.
    cloud.nova.take_requests();
    wait_explained(&cloud, &[id, "--probe"], GOOD, &["it answers 200 within", "asked just now"])?;
    let requests = cloud.nova.take_requests();
    ensure!(!requests.is_empty(), "Nova was not asked");
    let asked = requests.iter().map(|request| request.header("X-Instance-ID"));
    ensure!(asked.into_iter().all(|ids| ids == [instance.clone()]), "{requests:?}");

    let (status, text) = cloud.agent.tells(&["explain", id, "--json"])?;
    let told: Value = serde_json::from_str(&text)?;
    ensure!(status == GOOD && told["status"] == 0, "{text}");
    ensure!(told["explained"][0]["port"] == **id && told["explained"][0]["failed"].is_null(), "{text}");
    ensure!(told["explained"][0]["stages"].as_array().context("stages")?.len() >= 11, "{text}");
    // Nothing is wrong with the whole node.
    wait_explained(&cloud, &[], GOOD, &["this node", "=> nothing is wrong"])?;
    // What nobody knows.
    let stranger = uuid()?;
    wait_explained(&cloud, &[&stranger], OPEN_VSWITCH, &["no Interface", &stranger])?;
    wait_explained(&cloud, &["lo"], OPEN_VSWITCH, &["lo has index 1", "no Interface"])?;
    Ok(())
}

#[test]
fn what_is_wrong_with_a_port_is_named() -> Result<()> {
    let mut cloud = Cloud::with_ovn()?;
    let network = cloud.chassis.add_network("red", Routing::Routed)?;
    let good = cloud.add_guest(&network)?;
    cloud.agent.wait_served(&good, cloud.chassis.ifindex(&good)?)?;

    // Neutron does not say whose it is.
    let port = Port::new(&network)?;
    let nobody = plugged(&cloud, port.clone(), Some(&Port { instance: String::new(), ..port }))?;
    wait_explained(&cloud, &[&nobody.port.id], IDENTITY, &["device_id", "openstack server add port"])?;
    // Two say different things.
    let port = Port::new(&network)?;
    let claims = Port { instance: good.port.instance.clone(), ..port.clone() };
    let claiming = plugged(&cloud, port, Some(&claims))?;
    wait_explained(&cloud, &[&claiming.port.tap], IDENTITY, &["the local Open vSwitch", "hypervisor runs"])?;
    // No row in the Southbound.
    let rowless = plugged(&cloud, Port::new(&network)?, None)?;
    wait_explained(&cloud, &[&rowless.port.id], SOUTHBOUND, &["no row of Port_Binding", "ovn-northd"])?;
    // A row, and nothing that is plugged: it may be on any host.
    let elsewhere = Port::new(&network)?;
    cloud.chassis.create_port(&elsewhere)?;
    wait_explained(&cloud, &[&elsewhere.id], OPEN_VSWITCH, &["no Interface", "openstack server show"])?;

    // All of that, and nothing else, is wrong on this node.
    let text =
        wait_explained(&cloud, &[], SOUTHBOUND, &[&nobody.port.id, &claiming.port.id, &rowless.port.id])?;
    ensure!(!text.contains(&good.port.id), "{text}");

    // Who asks hears of it, and so does who explains.
    let answer = nobody.get(META_DATA)?;
    ensure!(answer.status == 503, "{answer:?}");
    wait_explained(&cloud, &[&nobody.port.id], IDENTITY, &["was answered 503 by the agent", "see identity"])?;

    // A tap that has another name by now, under both of its names.
    let (host, tap) = (cloud.chassis.host(), &good.port.tap);
    for words in [format!("link set {tap} down"), format!("link set {tap} name renamed0")] {
        host.ip(words)?;
    }
    let words = [format!("there is no device {tap}"), format!("ip link set NAME name {tap}")];
    wait_explained(&cloud, &[&good.port.id], DEVICE, &[&words[0], &words[1]])?;
    wait_explained(&cloud, &["renamed0"], OPEN_VSWITCH, &["renamed0 has index"])?;
    for words in [format!("link set renamed0 name {tap}"), format!("link set {tap} up")] {
        host.ip(words)?;
    }
    wait_explained(&cloud, &[&good.port.id], GOOD, &["nothing is wrong"])?;

    // Nobody looks after the rows of Open vSwitch.
    cloud.chassis.kill_vswitchd()?;
    let port = Port::new(&network)?;
    cloud.chassis.create_port(&port)?;
    let late = cloud.chassis.boot(port)?;
    run(cloud
        .chassis
        .vsctl()
        .words(format!("--no-wait add-port br-int {} -- set Interface {}", late.port.tap, late.port.tap))
        .arg(format!("external_ids={{iface-id=\"{}\"}}", late.port.id)))?;
    wait_explained(
        &cloud,
        &[&late.port.id],
        OPEN_VSWITCH,
        &["has not looked for its device", "ovs-vswitchd"],
    )?;

    // The databases are away.
    cloud.chassis.kill_southbound()?;
    wait_explained(
        &cloud,
        &[&good.port.id],
        SOUTHBOUND,
        &["the Southbound is not connected", "ovn_sb_connection"],
    )?;
    cloud.chassis.kill_ovs_database()?;
    wait_explained(
        &cloud,
        &[],
        OPEN_VSWITCH,
        &["this node", "the local Open vSwitch's database is not connected"],
    )?;

    cloud.agent.stop()?;
    wait_explained(&cloud, &[&good.port.id], NO_AGENT, &["no agent answers", "--run-dir"])?;
    Ok(())
}

#[test]
fn what_is_wrong_with_nova_is_named() -> Result<()> {
    let mut cloud = Cloud::with_inventory()?;
    let [guest, _other] = cloud.overlapping_guests()?;
    cloud.nova.pause();
    ensure!(guest.get(META_DATA)?.status == 502);
    wait_explained(
        &cloud,
        &[&guest.port.tap],
        NOVA,
        &["answered 502 by the agent", "see nova", "nova_metadata_host"],
    )?;
    wait_explained(&cloud, &[&guest.port.tap, "--probe"], NOVA, &["got as far as the way to it"])?;
    wait_explained(&cloud, &[], NOVA, &["this node", "127.0.0.1"])?;
    cloud.nova.resume(cloud.chassis.host())?;
    wait_explained(&cloud, &[&guest.port.tap, "--probe"], GOOD, &["it answers 200"])?;

    // Another secret than Nova's.
    cloud.agent.stop()?;
    let more = vec![("DEFAULT", "metadata_proxy_shared_secret = another".to_owned())];
    cloud.agent.configure(&cloud.chassis, &Options { more, ..Options::default() })?;
    cloud.agent.resume()?;
    cloud.agent.wait_ready()?;
    wait_explained(&cloud, &[&guest.port.tap, "--probe"], NOVA, &["refuses the agent's signature"])?;
    ensure!(guest.get(META_DATA)?.status == 403);
    let text = wait_explained(&cloud, &[&guest.port.tap], NOVA, &["(403)", "metadata_proxy_shared_secret"])?;
    ensure!(!text.contains(SECRET) && !text.contains("another"), "{text}");
    wait_explained(&cloud, &[], NOVA, &["(403)", &guest.port.id])?;
    Ok(())
}

#[test]
fn a_limit_that_is_met_and_a_program_that_is_gone_are_named() -> Result<()> {
    let more = [("metadata_ebpf", "port_connections = 2"), ("metadata_ebpf", "attach = clsact")];
    let more = more.map(|(section, line)| (section, line.to_owned())).to_vec();
    let cloud = Cloud::on(Stage::start()?, &Options { more, ..Options::default() })?;
    let [guest, other] = cloud.overlapping_guests()?;
    let held: Vec<_> = (0..3).map(|_| guest.connect()).collect::<Result<_, _>>()?;
    wait_explained(
        &cloud,
        &[&guest.port.tap],
        LIMITS,
        &["the limit port_connections was met", "raise [metadata_ebpf]"],
    )?;
    let text = wait_explained(&cloud, &[], LIMITS, &[&guest.port.id])?;
    ensure!(!text.contains(&other.port.id), "{text}");
    drop(held);

    // The agent puts it back at once: somebody who removes it again and again is seen.
    let tap = &other.port.tap;
    let mut remover = cloud.chassis.host().command("sh")?;
    remover.arg("-c").arg(format!("while :; do tc qdisc del dev {tap} clsact 2>/dev/null; done"));
    let remover = Daemon::spawn("remover", remover, cloud.chassis.sandbox().log("remover"))?;
    wait_explained(&cloud, &[tap], PROGRAM, &["somebody removed it", "tc monitor"])?;
    drop(remover);
    wait_explained(&cloud, &[tap], GOOD, &["the kernel has it"])?;
    own_identity(&other)
}

#[test]
fn a_certificate_that_has_expired_is_named() -> Result<()> {
    let mut cloud = Cloud::on(Lab::start_with_cluster()?, &Options::default())?;
    let network = cloud.chassis.add_network("red", Routing::Routed)?;
    let guest = cloud.add_guest(&network)?;
    cloud.agent.wait_served(&guest, cloud.chassis.ifindex(&guest)?)?;
    let expired = cloud.chassis.pki()?.issue_expired("expired", "controller")?;
    cloud.chassis.agent_credentials()?.replace(&expired)?;
    cloud.chassis.kill_southbound()?;
    cloud.chassis.start_southbound()?;
    let words = ["the Southbound is not connected", "CertificateExpired", "renew the certificate"];
    wait_explained(&cloud, &[&guest.port.id], SOUTHBOUND, &words)?;
    own_identity(&guest)
}

/// An agent with mounts of its own, as a container gives it without `shared`.
#[test]
fn a_run_directory_that_is_not_shared_is_named() -> Result<()> {
    let mut cloud = Cloud::with_inventory()?;
    let [guest, _other] = cloud.overlapping_guests()?;
    wait_explained(&cloud, &[&guest.port.tap], GOOD, &["nothing is wrong"])?;
    cloud.agent.stop()?;
    cloud.agent.clean_up()?;
    let wrapper = cloud.chassis.sandbox().path("in-a-container");
    let program = cloud.agent.program().to_owned();
    fs::write(
        &wrapper,
        format!("#!/bin/sh\nexec unshare --mount --propagation private {} \"$@\"\n", program.display()),
    )?;
    fs::set_permissions(&wrapper, fs::Permissions::from_mode(0o755))?;
    cloud.agent.set_program(&wrapper);
    let started = cloud.agent.resume().and_then(|()| cloud.agent.wait_ready());
    let said = started.err().context("it serves")?.to_string();
    ensure!(said.contains("not shared with the host's"), "{said}");
    wait_explained(&cloud, &[&guest.port.tap], NO_AGENT, &["no agent answers"])?;
    cloud.agent.set_program(&program);
    Ok(())
}
