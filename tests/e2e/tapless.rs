//! Ports without a tap: outside of the switch, or on a device that is not the host's. One device for each network serves
//! those of them that are this chassis' own, as themselves, and nobody else.

use std::{
    net::{Ipv4Addr, SocketAddrV4},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use metadata_tests::{
    agent::{Options, service_namespace},
    check::{META_DATA, is_identity_of, own_identity, was_signed_for},
    cloud::{Chassis as _, Cloud},
    command::{Words as _, require, run},
    guest::{Generation, Guest, METADATA},
    http::Error,
    netns::Namespace,
    ovn::{Datapath, Fabric, Lab, Routing},
    port::{METADATA_PORT, Network, Port, uuid},
    wait::until,
};

const BODY: usize = 1 << 20;
/// Long enough for a SYN and its first retransmission.
const NO_ANSWER: Duration = Duration::from_millis(1500);

fn fabric(cloud: &Cloud<Lab>) -> Result<Fabric> {
    let fabric = Fabric::create(cloud.chassis.sandbox())?;
    fabric.connect(&cloud.chassis)?;
    Ok(fabric)
}

/// The MAC address of a network's metadata port.
fn metadata_mac(cloud: &Cloud<Lab>, network: &Network) -> Result<String> {
    let ids = format!("external_ids:neutron\\:device_id=ovnmeta-{}", network.id);
    let mut find = cloud.chassis.nbctl();
    let addresses = run(find.words("--bare --columns=addresses find Logical_Switch_Port").arg(ids))?;
    Ok(addresses.split_whitespace().next().context("no metadata port")?.to_owned())
}

/// Entry of a neighbour in the guest's kernel.
fn neighbour(guest: &Guest, address: &str) -> Result<String> {
    guest.netns.ip(format!("neigh show {address} dev eth0"))
}

/// Everything that a guest does, by the route of DHCP and on the link, over both families, with offloads on and off.
fn is_served_wholly(
    cloud: &Cloud<Lab>,
    guest: &Guest,
    network: &Network,
    generation: Generation,
) -> Result<()> {
    let mac = metadata_mac(cloud, network)?;
    let service = Namespace::existing(&service_namespace(&cloud.chassis));
    let body: Vec<u8> = (0..BODY).map(|index| (index * 7 % 253) as u8).collect();
    cloud.nova.set_user_data(&guest.port, body.clone());
    guest.enable_ipv6(generation)?;
    for (offloads, route) in [("on", "via 192.168.1.2"), ("off", "via 192.168.1.2"), ("on", ""), ("off", "")]
    {
        let say = || format!("with offloads {offloads}, by {route:?}");
        run(guest.netns.command("ethtool")?.words(format!("-K eth0 tx {offloads}")))?;
        guest.netns.ip("neigh flush dev eth0")?;
        guest.netns.ip(format!("route replace {} {route} dev eth0", METADATA.ip()))?;
        cloud.nova.take_requests();
        own_identity(guest).with_context(say)?;
        for request in cloud.nova.take_requests() {
            was_signed_for(&guest.port, &request)?;
        }
        ensure!(guest.get("/latest/user-data")?.body == body, "{}: the body changed", say());
        let long = "x".repeat(6000);
        ensure!(guest.request("GET", META_DATA, &[("Accept", &long)], b"")?.status == 200, "{}", say());
        let next_hop = if route.is_empty() { *METADATA.ip() } else { METADATA_PORT };
        let known = neighbour(guest, &next_hop.to_string())?;
        ensure!(known.contains(&mac), "{}: {next_hop} is {known:?}, not {mac}", say());
        let mut connection = guest.connect_v6().with_context(say)?;
        is_identity_of(&guest.port, &connection.request("GET", META_DATA, &[], b"")?)?;
        ensure!(connection.request("GET", "/latest/user-data", &[], b"")?.body == body, "{}", say());
        for netns in [&guest.netns, &service] {
            assert_eq!(netns.tcp_statistic("InCsumErrors")?, 0, "{}", say());
            assert_eq!(netns.tcp_statistic("InErrs")?, 0, "{}", say());
        }
    }
    let known = neighbour(guest, "fe80::a9fe:a9fe")?;
    ensure!(known.contains(&mac), "{known:?}");
    guest.ping(*METADATA.ip())
}

#[test]
fn a_machine_outside_of_the_switch_gets_its_own_identity() -> Result<()> {
    require(&["ethtool"])?;
    an_external_port_is_served(&Cloud::with_network_devices()?)
}

fn an_external_port_is_served(cloud: &Cloud<Lab>) -> Result<()> {
    let fabric = fabric(cloud)?;
    let network = cloud.chassis.add_provider_network("physical")?;
    let machine = cloud.add_external(&fabric, &network)?;
    is_served_wholly(cloud, &machine, &network, Generation::Random)
}

#[test]
fn an_internal_port_gets_its_own_identity() -> Result<()> {
    require(&["ethtool"])?;
    an_internal_port_is_served(&Cloud::with_network_devices()?, &[Routing::Routed, Routing::Isolated])
}

#[test]
#[ignore = "for a kernel with Open vSwitch's datapath: cargo xtask vm-test"]
fn ports_without_a_tap_are_served_over_the_kernels_datapath() -> Result<()> {
    require(&["ethtool"])?;
    let cloud = Cloud::on(Lab::start_on(Datapath::Kernel)?, &Options::default())?;
    an_internal_port_is_served(&cloud, &[Routing::Routed])?;
    an_external_port_is_served(&cloud)
}

fn an_internal_port_is_served(cloud: &Cloud<Lab>, routings: &[Routing]) -> Result<()> {
    for &routing in routings {
        let network = cloud.chassis.add_network("red", routing)?;
        let guest = cloud.add_internal(&network)?;
        // A port that has no IPv6 address may not send from one: port security comes before the device, as it does not
        // before a tap's program.
        let Port { id, mac, address, .. } = &guest.port;
        let addresses = format!("{mac} {address} fd00::10");
        let mut nbctl = cloud.chassis.nbctl();
        nbctl.words(format!("--wait=hv lsp-set-addresses {id}")).arg(&addresses);
        run(nbctl.words(format!("-- lsp-set-port-security {id}")).arg(&addresses))?;
        is_served_wholly(cloud, &guest, &network, Generation::Eui64)?;
    }
    Ok(())
}

/// Two tenants with one address each, and two ports of one network: everybody gets their own, with limits of their own.
#[test]
fn each_port_behind_a_device_is_itself() -> Result<()> {
    let more = ["port_connections = 16", "connection_burst = 100"];
    let more = more.map(|line| ("metadata_ebpf", line.to_owned())).to_vec();
    let cloud = Cloud::on(Lab::start_whole()?, &Options { more, ..Options::default() })?;
    let (red, blue) = (
        cloud.chassis.add_network("red", Routing::Routed)?,
        cloud.chassis.add_network("blue", Routing::Isolated)?,
    );
    let guests = [cloud.add_internal(&red)?, cloud.add_internal(&red)?, cloud.add_internal(&blue)?];
    ensure!(guests[0].port.address == guests[2].port.address);
    let mut indexes = Vec::new();
    for guest in &guests {
        own_identity(guest)?;
        indexes.push(cloud.agent.wait_station(guest)?.index);
    }
    indexes.dedup();
    ensure!(indexes.len() == 3, "{indexes:?}");

    // One takes all that it may have.
    let mut held = (0..16).map(|_| guests[0].connect()).collect::<Result<Vec<_>, _>>()?;
    for connection in &mut held {
        ensure!(connection.request("GET", META_DATA, &[], b"")?.status == 200);
    }
    let refused = guests[0].get(META_DATA)?;
    ensure!(refused.status == 503 && refused.text().contains("too many"), "{refused:?}");
    own_identity(&guests[1])?;
    // And uses up the rate of its connections.
    let opened = (0..200).filter(|_| guests[0].connect_with(None, Duration::from_millis(20)).is_ok()).count();
    ensure!(opened < 200 && cloud.agent.counter("connections_limited")? > 0, "{opened} opened");
    own_identity(&guests[1])?;
    let log = cloud.agent.wait_logged(&["access", &format!("/{}", guests[1].port.mac)])?;
    ensure!(log.lines().any(|line| line.contains(&format!(
        "{}/{}",
        Lab::network_device(&red.id),
        guests[0].port.mac
    ))));
    Ok(())
}

/// A port with a tap is its tap's, and its frames that come by the network's device are nobody's there.
#[test]
fn a_tap_is_never_served_by_the_device() -> Result<()> {
    let cloud = Cloud::with_network_devices()?;
    let network = cloud.chassis.add_network("red", Routing::Isolated)?;
    let alone = cloud.add_guest(&network)?;
    cloud.agent.wait_served(&alone, cloud.chassis.ifindex(&alone)?)?;
    let devices = run(cloud.chassis.vsctl().words("list-ports br-int"))?;
    ensure!(!devices.contains("mdn"), "a device without a port that needs it: {devices}");
    let internal = cloud.add_internal(&network)?;
    let before = cloud.agent.settled_counters()?;
    // In this lab the switch sees what the tap's program has taken.
    for guest in [&alone, &internal, &alone] {
        own_identity(guest)?;
    }
    let after = cloud.agent.settled_counters()?;
    ensure!(after["other_station"] > before["other_station"], "{after:?}");
    ensure!(after["unknown_connection"] == before["unknown_connection"], "{after:?}");
    let ports = cloud.agent.ports()?;
    let of_tap: Vec<_> = ports.iter().filter(|status| status.port == alone.port.id).collect();
    ensure!(of_tap.len() == 1 && of_tap[0].tap == alone.port.tap && of_tap[0].mac.is_none(), "{ports:?}");
    // The last one behind the device goes, and takes it along.
    run(cloud.chassis.vsctl().words(format!("del-port {}", internal.port.tap)))?;
    let device = Lab::network_device(&network.id);
    cloud.agent.wait_gone(&device)?;
    until("the device is gone", Duration::from_secs(30), || {
        let devices = run(cloud.chassis.vsctl().words("list-ports br-int"))?;
        ensure!(!devices.contains("mdn"), "{devices}");
        Ok(())
    })?;
    own_identity(&alone)
}

/// Others' addresses on the physical network: what is not a port's own is not answered, and the host is not to be seen.
#[test]
fn who_pretends_is_not_answered() -> Result<()> {
    let cloud = Cloud::with_network_devices()?;
    let fabric = fabric(&cloud)?;
    let network = cloud.chassis.add_provider_network("physical")?;
    let machine = cloud.add_external(&fabric, &network)?;
    own_identity(&machine)?;

    // Its own MAC address, and one that is not its port's.
    let before = cloud.agent.settled_counters()?;
    let stranger = Ipv4Addr::new(192, 168, 1, 77);
    machine.netns.ip(format!("addr add {stranger}/24 dev eth0"))?;
    let answer = machine.connect_with(Some(SocketAddrV4::new(stranger, 0)), NO_ANSWER).err();
    ensure!(matches!(answer, Some(Error::Timeout)), "{answer:?}");
    let after = cloud.agent.settled_counters()?;
    ensure!(after["foreign_source"] > before["foreign_source"], "{after:?}");

    // A machine that is no port at all: not even ARP is answered.
    let nobody = fabric.add_machine(cloud.chassis.sandbox(), Port::new(&network)?)?;
    nobody.configure(None)?;
    let answer = nobody.connect_with(None, NO_ANSWER).err();
    ensure!(matches!(answer, Some(Error::Timeout | Error::Unreachable)), "{answer:?}");
    ensure!(!neighbour(&nobody, "169.254.169.254")?.contains("lladdr"));
    let pretended = cloud.agent.settled_counters()?;
    ensure!(pretended["other_station"] > after["other_station"], "{pretended:?}");
    ensure!(pretended["arp_answered"] == after["arp_answered"], "{pretended:?}");

    // The host has addresses, and its stack is behind the device.
    let host = Ipv4Addr::new(192, 168, 1, 99);
    cloud.chassis.host().ip(format!("addr add {host}/32 dev lo"))?;
    ensure!(machine.ping(host).is_err(), "the host answers");
    let mac = metadata_mac(&cloud, &network)?;
    machine.netns.ip(format!("neigh replace {host} lladdr {mac} dev eth0"))?;
    ensure!(machine.ping(host).is_err(), "the host answers who sends to the metadata port");
    machine.netns.ip(format!("neigh replace {host} lladdr ff:ff:ff:ff:ff:ff dev eth0"))?;
    ensure!(machine.ping(host).is_err(), "the host answers who sends to all");
    own_identity(&machine)
}

/// Without port security a port can send with another's MAC address. Behind the same device it is taken for that one, and the
/// answer goes to that one; a port that has a tap it cannot even be taken for.
#[test]
fn a_port_without_port_security_is_taken_for_others_behind_its_device_alone() -> Result<()> {
    let cloud = Cloud::with_network_devices()?;
    let network = cloud.chassis.add_network("red", Routing::Isolated)?;
    let (hostile, tapped) = (cloud.add_internal(&network)?, cloud.add_guest(&network)?);
    run(cloud
        .chassis
        .nbctl()
        .words(format!(
            "--wait=hv lsp-set-port-security {id} -- lsp-set-addresses {id}",
            id = hostile.port.id
        ))
        .arg(format!("{} {}", hostile.port.mac, hostile.port.address))
        .arg("unknown"))?;
    // One whose frames no device of the kernel carries.
    let vhost = Port::new(&network)?;
    cloud.nova.add_instance(&vhost);
    cloud.chassis.create_port(&vhost)?;
    run(cloud
        .chassis
        .vsctl()
        .words("--no-wait add-port br-int vhu0 -- set Interface vhu0 type=dpdkvhostuserclient")
        .arg(format!("external_ids={{iface-id=\"{}\",vm-uuid=\"{}\"}}", vhost.id, vhost.instance)))?;
    cloud.agent.wait_station_of(&vhost)?;
    own_identity(&hostile)?;

    for (victim, is_behind) in [(&vhost, true), (&tapped.port, false)] {
        let before = cloud.agent.settled_counters()?;
        hostile.netns.ip(format!("link set eth0 address {}", victim.mac))?;
        hostile.netns.ip(format!("addr add {}/24 dev eth0", victim.address))?;
        let mac = metadata_mac(&cloud, &network)?;
        hostile.netns.ip(format!("neigh replace {METADATA_PORT} lladdr {mac} dev eth0 nud permanent"))?;
        hostile.netns.ip(format!("route replace {} via {METADATA_PORT} dev eth0", METADATA.ip()))?;
        let source = SocketAddrV4::new(victim.address, 0);
        let answer = hostile.connect_with(Some(source), NO_ANSWER).err();
        ensure!(matches!(answer, Some(Error::Timeout)), "{answer:?}");
        let after = cloud.agent.settled_counters()?;
        let counted = |name: &str| after[name] > before[name];
        ensure!(counted("source_learned") == is_behind, "as {}: {after:?}", victim.address);
        ensure!(counted("other_station") != is_behind, "as {}: {after:?}", victim.address);
        hostile.netns.ip(format!("addr del {}/24 dev eth0", victim.address))?;
    }
    own_identity(&tapped)
}

/// A physical network is trusted with whose MAC address is whose: what has an external port's there is that port.
#[test]
fn a_machine_is_who_the_physical_network_lets_it_be() -> Result<()> {
    let cloud = Cloud::with_network_devices()?;
    let fabric = fabric(&cloud)?;
    let network = cloud.chassis.add_provider_network("physical")?;
    let machine = cloud.add_external(&fabric, &network)?;
    own_identity(&machine)?;
    fabric.set_link(&machine, "down")?;
    let other = fabric
        .add_machine(cloud.chassis.sandbox(), Port { tap: "other".to_owned(), ..machine.port.clone() })?;
    other.dhcp()?;
    own_identity(&other)
}

/// An address that several ports may have (`type=virtual`) is whose frames it comes in.
#[test]
fn a_virtual_address_is_whoever_has_it() -> Result<()> {
    let cloud = Cloud::with_network_devices()?;
    let network = cloud.chassis.add_network("red", Routing::Isolated)?;
    let holders = [cloud.add_internal(&network)?, cloud.add_internal(&network)?];
    let vip = Ipv4Addr::new(192, 168, 1, 200);
    let [first, second] = &holders;
    let mut nbctl = cloud.chassis.nbctl();
    nbctl.words(format!("--wait=hv lsp-add neutron-{} vip -- lsp-set-type vip virtual", network.id));
    nbctl.words(format!("-- lsp-set-options vip virtual-ip={vip}"));
    nbctl.arg(format!("virtual-parents={},{}", first.port.id, second.port.id));
    for Port { id, mac, address, .. } in [&first.port, &second.port] {
        nbctl.words(format!("-- lsp-set-port-security {id}")).arg(format!("{mac} {address} {vip}"));
    }
    run(&mut nbctl)?;
    for holder in &holders {
        holder.netns.ip(format!("addr add {vip}/24 dev eth0"))?;
        cloud.nova.take_requests();
        let mut connection = until("the address may be asked from", Duration::from_secs(30), || {
            Ok(holder.connect_from(SocketAddrV4::new(vip, 0))?)
        })?;
        is_identity_of(&holder.port, &connection.request("GET", META_DATA, &[], b"")?)?;
        // Nova is told the port's own address.
        cloud.nova.take_requests().iter().try_for_each(|request| was_signed_for(&holder.port, request))?;
        holder.netns.ip(format!("addr del {vip}/24 dev eth0"))?;
    }
    Ok(())
}

/// The Southbound's word is all there is for an external port: as it changes, so does who is there, and nobody who asks
/// meanwhile gets what is not theirs any more.
#[test]
fn a_machine_is_given_to_another_instance_and_taken_away() -> Result<()> {
    let cloud = Cloud::with_network_devices()?;
    let fabric = fabric(&cloud)?;
    let network = cloud.chassis.add_provider_network("physical")?;
    let machine = cloud.add_external(&fabric, &network)?;
    let mut kept = machine.connect()?;
    is_identity_of(&machine.port, &kept.request("GET", META_DATA, &[], b"")?)?;

    let next = Port { instance: uuid()?, ..machine.port.clone() };
    cloud.nova.add_instance(&next);
    run(cloud
        .chassis
        .nbctl()
        .words(format!("--wait=sb set Logical_Switch_Port {}", next.id))
        .arg(format!("external_ids:neutron\\:device_id={}", next.instance)))?;
    cloud.agent.wait_station_of(&next)?;
    let answer = kept.request("GET", META_DATA, &[], b"");
    ensure!(answer.is_err(), "a connection of the instance before: {answer:?}");
    cloud.nova.take_requests();
    let mut kept = machine.connect()?;
    is_identity_of(&next, &kept.request("GET", META_DATA, &[], b"")?)?;
    cloud.nova.take_requests().iter().try_for_each(|request| was_signed_for(&next, request))?;

    cloud.chassis.delete_port(&next)?;
    cloud.agent.wait_gone(&Lab::network_device(&network.id))?;
    kept.stream().set_read_timeout(Some(NO_ANSWER))?;
    let answer = kept.request("GET", META_DATA, &[], b"");
    ensure!(answer.is_err(), "a connection of a deleted port: {answer:?}");
    let fresh = machine.connect_with(None, NO_ANSWER).err();
    ensure!(matches!(fresh, Some(Error::Timeout | Error::Unreachable)), "{fresh:?}");
    ensure!(cloud.nova.take_requests().is_empty());
    Ok(())
}

/// A network with IPv6: nobody but the device says to a machine outside of the switch where the metadata port's own address
/// is, and that goes to the machine alone.
#[test]
fn the_metadata_ports_own_addresses_are_answered_for() -> Result<()> {
    let cloud = Cloud::with_network_devices()?;
    let fabric = fabric(&cloud)?;
    let network = cloud.chassis.add_provider_network("physical")?;
    let machine = cloud.add_external(&fabric, &network)?;
    let ids = format!("external_ids:neutron\\:device_id=ovnmeta-{}", network.id);
    let mut find = cloud.chassis.nbctl();
    let port = run(find.words("--bare --columns=name find Logical_Switch_Port").arg(ids))?;
    let mac = metadata_mac(&cloud, &network)?;
    let mut set = cloud.chassis.nbctl();
    set.words(format!("--wait=hv lsp-set-addresses {}", port.trim()));
    run(set.arg(format!("{mac} {METADATA_PORT} fd00::2")))?;
    machine.enable_ipv6(Generation::Eui64)?;
    machine.netns.ip("addr add fd00::10/64 dev eth0 nodad")?;
    until("the machine knows where the metadata port is", Duration::from_secs(30), || {
        own_identity(&machine)?;
        // There is nobody to answer this, only what comes before it.
        let _unanswered = run(machine.netns.command("busybox")?.words("ping -6 -c 1 -W 1 fd00::2"));
        for address in ["fd00::2", "192.168.1.2"] {
            let known = neighbour(&machine, address)?;
            ensure!(known.contains(&mac), "{address} is {known:?}");
        }
        Ok(())
    })
}
