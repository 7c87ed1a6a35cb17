//! Tests that need another kernel, or Open vSwitch's kernel datapath: they run in `cargo xtask vm-test`'s VMs.
//!
//! Guests sit on taps as a hypervisor makes them, so the datapath meets unfinished checksums and segments of 64 KiB.

use std::{
    fs,
    net::{Ipv4Addr, Ipv6Addr, SocketAddrV6, TcpStream},
    path::Path,
    process::Command,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use aya::programs::{SchedClassifier, TcAttachType};
use metadata_tests::{
    agent::{Agent, Options, service_namespace},
    check::{META_DATA, is_identity_of, own_identity, transfer, was_signed_for},
    cloud::{Chassis as _, Cloud},
    command::{Words as _, run},
    guest::Guest,
    http::{Connection, Error},
    kernel,
    netns::Namespace,
    nova::{Answer, Nova},
    ovn::{Datapath, Lab, Routing},
    port::Port,
    trunk::Uplink,
    wait::until,
};

const METADATA_V6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0xa9fe, 0xa9fe);
/// Handle of the agent's filters.
const HANDLE: &str = "handle 0xa9fe";
/// Long enough for a SYN and its first retransmission.
const GAP: Duration = Duration::from_millis(1500);
/// The most that a guest may send, and more than one segment of any kind.
const BODY: usize = 64 << 10;
/// A body of that size in segments of a guest's MTU.
const SEGMENTS: u64 = (BODY / 1400) as u64;
/// Time after which a thing that somebody removed must be back: at once, on processors that are emulated.
const HEALED: Duration = Duration::from_secs(10);

/// A chassis of the kernel's datapath, with two guests that have one address in two networks.
struct Host {
    // Dropped in this order.
    guests: [Guest; 2],
    cloud: Cloud<Lab>,
}

/// The chassis that a test left in order, for the next one: an emulated processor takes its time to make one. The
/// last is not dropped, and ends with its machine.
static SPARE: Mutex<Option<Host>> = Mutex::new(None);

/// Runs the test on a chassis. A failure shows all of what the agent had to say, since a verifier's report is longer
/// than the end of a log, and leaves the chassis to nobody.
fn on_host(test: impl FnOnce(&mut Host) -> Result<()>) -> Result<()> {
    let spare = || SPARE.lock().unwrap_or_else(PoisonError::into_inner);
    let taken = spare().take();
    let mut host = taken.map_or_else(Host::start, Ok)?;
    let log = host.cloud.chassis.sandbox().log("agent");
    test(&mut host).with_context(|| what_it_says(&log))?;
    *spare() = Some(host);
    Ok(())
}

impl Host {
    fn start() -> Result<Self> {
        let lab = Lab::start_on(Datapath::Kernel)?;
        let log = lab.sandbox().log("agent");
        let nova = Nova::start(lab.host())?;
        let agent = Agent::start(&lab, &Options::default()).with_context(|| what_it_says(&log))?;
        let cloud = Cloud { agent, nova, chassis: lab, quiet: true };
        let guests = cloud.overlapping_guests().with_context(|| what_it_says(&log))?;
        Ok(Self { guests, cloud })
    }

    /// Two guests of one network.
    fn neighbours(&self) -> Result<[Guest; 2]> {
        let network = self.cloud.chassis.add_network("green", Routing::Isolated)?;
        let guests = [self.cloud.add_guest(&network)?, self.cloud.add_guest(&network)?];
        for guest in guests.iter() {
            self.cloud.agent.wait_served(guest, self.cloud.chassis.ifindex(guest)?)?;
            own_identity(guest)?;
        }
        Ok(guests)
    }
}

fn what_it_says(log: &Path) -> String {
    format!("the agent says\n{}", fs::read_to_string(log).unwrap_or_default())
}

#[test]
#[ignore = "for a kernel with Open vSwitch's datapath: cargo xtask vm-test"]
fn each_guest_gets_its_own() -> Result<()> {
    on_host(|host| {
        let Host { cloud, guests } = host;
        let switch = cloud.chassis.host().ip("-d link show ovs-system")?;
        ensure!(switch.contains("openvswitch"), "this is not the kernel's datapath: {switch}");
        for guest in guests.iter() {
            assert_eq!(guest.addresses()?, [guest.port.address]);
            let offloads = run(guest.netns.command("ethtool")?.words("-k eth0"))?;
            for offload in ["tx-checksumming: on", "tcp-segmentation-offload: on"] {
                ensure!(offloads.contains(offload), "not {offload}:\n{offloads}");
            }
            own_identity(guest)?;
            println!("attached to {} by {:?}", guest.port.tap, attachment(cloud, guest)?);
            assert_eq!(attachment(cloud, guest)?, Some(expected_attachment()?));
        }
        let log = cloud.agent.log()?;
        let said = log.lines().find(|line| line.contains("programs are attached")).unwrap_or_default();
        let word = match expected_attachment()? {
            Attachment::Tcx => "TCX",
            Attachment::Clsact => "clsact",
        };
        ensure!(said.contains(word), "the agent says: {said}");
        Ok(())
    })
}

#[test]
#[ignore = "for a kernel with Open vSwitch's datapath: cargo xtask vm-test"]
fn large_bodies_arrive_as_they_were() -> Result<()> {
    on_host(|host| {
        let guest = &host.guests[0];
        large_body(host, guest, guest.connect()?)
    })
}

/// Both ways, in segments as large as the guest's kernel makes them.
fn large_body(host: &Host, guest: &Guest, mut connection: Connection<TcpStream>) -> Result<()> {
    let Host { cloud, .. } = host;
    let body: Vec<u8> = (0..BODY).map(|index| (index * 7 % 253) as u8).collect();
    let target = "/openstack/latest/vendor_data2.json";
    let answer = |body: &[u8]| {
        cloud.nova.answer(target, Answer { status: 200, headers: vec![], body: body.to_vec().into() });
    };
    let before = cloud.agent.settled_counters()?;
    cloud.nova.take_requests();
    answer(b"ok");
    ensure!(connection.request("POST", target, &[], &body)?.body == b"ok");
    let requests = cloud.nova.take_requests();
    ensure!(requests.len() == 1 && requests[0].body == body, "the request's body changed");
    was_signed_for(&guest.port, &requests[0])?;
    let after = cloud.agent.settled_counters()?;
    let redirected = after["redirected"] - before["redirected"];
    ensure!(redirected < SEGMENTS, "{redirected} frames: the guest's segments were not large");
    answer(&body);
    ensure!(connection.request("GET", target, &[], b"")?.body == body, "the answer's body changed");
    let service = Namespace::existing(&service_namespace(&cloud.chassis));
    for netns in [&guest.netns, &service] {
        for name in ["InCsumErrors", "InErrs"] {
            assert_eq!(netns.tcp_statistic(name)?, 0, "{name} in {}", netns.name());
        }
    }
    Ok(())
}

/// The tag is inside of a frame that a tap gets, also of a segment that is larger than the MTU.
#[test]
#[ignore = "for a kernel with Open vSwitch's datapath: cargo xtask vm-test"]
fn a_trunk_and_its_subport_are_served() -> Result<()> {
    on_host(|host| {
        let cloud = &host.cloud;
        let parent = Port::new(&cloud.chassis.add_network("parent", Routing::Isolated)?)?;
        let network = cloud.chassis.add_network("subport", Routing::Isolated)?;
        let address = Ipv4Addr::new(192, 168, 1, 20);
        let subport = Port { address, ..Port::subport(&network, &parent)? };
        cloud.nova.add_instance(&parent);
        let trunk = cloud.chassis.add_trunk(Uplink::Tap, parent, vec![(101, subport)])?;
        for guest in trunk.guests() {
            cloud.agent.wait_served(guest, cloud.chassis.ifindex(guest)?)?;
            own_identity(guest)?;
            large_body(host, guest, guest.connect()?)?;
        }
        Ok(())
    })
}

#[test]
#[ignore = "for a kernel with Open vSwitch's datapath: cargo xtask vm-test"]
fn other_traffic_passes() -> Result<()> {
    on_host(|host| {
        let [one, other] = host.neighbours()?;
        let cloud = &host.cloud;
        let before = cloud.agent.settled_counters()?;
        one.ping(other.port.address)?;
        transfer(&one, &other, 80)?;
        transfer(&other, &one, 8080)?;
        let after = cloud.agent.settled_counters()?;
        for name in ["redirected", "replied", "source_learned", "arp_answered"] {
            assert_eq!(after[name], before[name], "{name}");
        }
        own_identity(&one)
    })
}

#[test]
#[ignore = "for a kernel with Open vSwitch's datapath: cargo xtask vm-test"]
fn the_agent_is_restarted() -> Result<()> {
    on_host(|host| {
        let Host { cloud, guests } = host;
        guests.iter().try_for_each(own_identity)?;
        let learned = cloud.agent.counter("source_learned")?;
        for end in [Agent::stop, Agent::kill_both] {
            end(&mut cloud.agent)?;
            for guest in guests.iter() {
                let gap = guest.connect_with(None, GAP).err();
                assert!(
                    matches!(gap, Some(Error::Timeout)),
                    "a connection while the agent was away: {gap:?}"
                );
                assert_eq!(
                    attachment(cloud, guest)?,
                    Some(expected_attachment()?),
                    "while the agent was away"
                );
            }
            cloud.agent.resume()?;
            cloud.agent.wait_ready()?;
            guests.iter().try_for_each(own_identity)?;
        }
        // The maps were adopted, not made anew.
        assert_eq!(cloud.agent.counter("source_learned")?, learned);
        Ok(())
    })
}

/// The tap of a machine that is powered off and on again is another device, which Open vSwitch takes by itself.
#[test]
#[ignore = "for a kernel with Open vSwitch's datapath: cargo xtask vm-test"]
fn a_machine_is_powered_off_and_on() -> Result<()> {
    on_host(|host| {
        let [guest, neighbour] = host.neighbours()?;
        let Host { cloud, guests } = host;
        cloud.chassis.stop_tap(&guest)?;
        cloud.agent.wait_gone(&guest.port.tap)?;
        cloud.chassis.start_tap(&guest)?;
        guest.dhcp()?;
        cloud.agent.wait_served(&guest, cloud.chassis.ifindex(&guest)?)?;
        own_identity(&guest)?;
        guest.ping(neighbour.port.address)?;
        guests.iter().try_for_each(own_identity)
    })
}

/// From a link-local address, on a network that has no IPv6 subnet.
#[test]
#[ignore = "for a kernel with Open vSwitch's datapath: cargo xtask vm-test"]
fn ipv6_is_served() -> Result<()> {
    on_host(|host| {
        for guest in &host.guests {
            guest.netns.sysctl("net.ipv6.conf.eth0.disable_ipv6", "0")?;
            until("the guest has a link-local address", Duration::from_secs(60), || {
                let addresses = guest.netns.ip("-6 -o addr show dev eth0 scope link -tentative")?;
                ensure!(addresses.contains("fe80::"), "{addresses}");
                Ok(())
            })?;
            let response = connect_v6(guest)?.request("GET", META_DATA, &[("Connection", "close")], b"")?;
            is_identity_of(&guest.port, &response)?;
            own_identity(guest)?;
            large_body(host, guest, connect_v6(guest)?)?;
        }
        Ok(())
    })
}

fn connect_v6(guest: &Guest) -> Result<Connection<TcpStream>> {
    let limit = Duration::from_secs(30);
    let metadata = SocketAddrV6::new(METADATA_V6, 80, 0, guest.netns.ifindex("eth0")?);
    let stream = guest.netns.run(|| TcpStream::connect_timeout(&metadata.into(), limit))?;
    let stream = stream.with_context(|| format!("cannot connect to {metadata}"))?;
    stream.set_read_timeout(Some(limit))?;
    Ok(Connection::new(stream))
}

/// Whoever tidies up qdiscs (libvirt, Open vSwitch, a person) takes the program with them; it is put back.
#[test]
#[ignore = "for a kernel with Open vSwitch's datapath: cargo xtask vm-test"]
fn a_removed_qdisc_is_put_back() -> Result<()> {
    if kernel::has_tcx()? {
        println!("TCX links are no qdiscs: nothing to remove");
        return Ok(());
    }
    on_host(|host| {
        let Host { cloud, guests } = host;
        for _ in 0..3 {
            for guest in guests.iter() {
                own_identity(guest)?;
                run(&mut tc(cloud, guest, "qdisc del", "clsact")?)?;
            }
            for guest in guests.iter() {
                until("the program is attached again", HEALED, || {
                    ensure!(attachment(cloud, guest)? == Some(Attachment::Clsact));
                    Ok(())
                })?;
                own_identity(guest)?;
            }
        }
        // A filter alone goes as easily.
        for guest in guests.iter() {
            run(&mut tc(cloud, guest, "filter del", "ingress")?)?;
            until("the filter is back", HEALED, || {
                ensure!(attachment(cloud, guest)? == Some(Attachment::Clsact));
                Ok(())
            })?;
            own_identity(guest)?;
        }
        Ok(())
    })
}

/// Open vSwitch's own use of TC on the same device neither removes the program nor is done instead of it.
#[test]
#[ignore = "for a kernel with Open vSwitch's datapath: cargo xtask vm-test"]
fn a_policed_port_is_served() -> Result<()> {
    on_host(|host| {
        let Host { cloud, guests } = host;
        let guest = &guests[0];
        for rate in ["100000", "0"] {
            let set = format!("set Interface {} ingress_policing_rate={rate}", guest.port.tap);
            // Returns when ovs-vswitchd has done it.
            run(cloud.chassis.vsctl().words(set))?;
            let qdiscs = run(&mut tc(cloud, guest, "qdisc show", "")?)?;
            println!("rate {rate}: {}", qdiscs.trim());
            assert_eq!(attachment(cloud, guest)?, Some(expected_attachment()?));
            own_identity(guest)?;
        }
        Ok(())
    })
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Attachment {
    Tcx,
    Clsact,
}

/// Attachment of the program on the guest's tap, as the kernel says it, not the agent.
fn attachment(cloud: &Cloud<Lab>, guest: &Guest) -> Result<Option<Attachment>> {
    let Port { tap, .. } = &guest.port;
    if run(&mut tc(cloud, guest, "filter show", "ingress")?)?.contains(HANDLE) {
        return Ok(Some(Attachment::Clsact));
    }
    // A kernel without TCX refuses the question.
    let links = cloud.chassis.host().run(|| SchedClassifier::query_tcx(tap, TcAttachType::Ingress))?;
    Ok(links.is_ok_and(|(_, programs)| !programs.is_empty()).then_some(Attachment::Tcx))
}

/// `tc <what> dev <the guest's tap> <rest>` on the chassis.
fn tc(cloud: &Cloud<Lab>, guest: &Guest, what: &str, rest: &str) -> Result<Command> {
    let mut tc = cloud.chassis.host().command("tc")?;
    tc.words(what).words(format!("dev {} {rest}", guest.port.tap));
    Ok(tc)
}

fn expected_attachment() -> Result<Attachment> {
    Ok(if kernel::has_tcx()? { Attachment::Tcx } else { Attachment::Clsact })
}

/// A port without a tap, by its network's device, over the kernel's datapath; frames that were taken at a tap do not come there.
#[test]
#[ignore = "for a kernel with Open vSwitch's datapath: cargo xtask vm-test"]
fn what_a_tap_takes_does_not_pass() -> Result<()> {
    on_host(|host| {
        let cloud = &host.cloud;
        let network = cloud.chassis.add_network("tapless", Routing::Routed)?;
        let tapped = cloud.add_guest(&network)?;
        cloud.agent.wait_served(&tapped, cloud.chassis.ifindex(&tapped)?)?;
        own_identity(&cloud.add_internal(&network)?)?;
        let before = cloud.agent.settled_counters()?;
        own_identity(&tapped)?;
        let after = cloud.agent.settled_counters()?;
        assert_eq!(after["other_station"], before["other_station"], "a frame passed as well");
        Ok(())
    })
}
