//! Neutron's view of the agent: the keys in Chassis_Private, when they are written, and when they are not.

use std::{
    collections::{BTreeMap, BTreeSet},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use aya::{
    Ebpf,
    programs::{LinkOrder, SchedClassifier, TcAttachType, tc::TcAttachOptions},
};
use metadata_agent::datapath::OBJECT;
use metadata_tests::{
    agent::Options,
    check::own_identity,
    cloud::{Chassis as _, Cloud},
    command::{Words as _, run},
    kernel,
    ovn::{ChassisPrivate, Lab, Routing},
    port::{METADATA_PORT, Port},
    traffic::meanwhile,
    wait::until,
};

const ID: &str = "neutron:ovn-metadata-id";
const BRIDGE: &str = "neutron:ovn-bridge";
const SB_CFG: &str = "neutron:ovn-metadata-sb-cfg";
/// `OVN_METADATA_UUID_NAMESPACE` of neutron/common/ovn/constants.py.
const NAMESPACE: &str = "d34bf9f6-da32-4871-9af8-15a4626b41ab";
/// Answers to a new number are spread over 10 s, and a write that failed is made again after 10 s; the rest since the
/// machine may be busy.
const ANSWER: Duration = Duration::from_secs(30);
/// The least time that answers are spread over.
const SPREAD: Duration = Duration::from_secs(3);
/// ovn-controller makes its rows, or tries to connect again within 8 s; and then the agent writes at once.
const REGISTRATION: Duration = Duration::from_secs(30);

/// Python's `uuid.uuid5`, with which Neutron computes ids (RFC 9562, section 5.5).
fn uuid5(namespace: &str, name: &str) -> Result<String> {
    let hex = namespace.replace('-', "");
    let bytes = (0..32).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16));
    let mut input =
        bytes.collect::<Result<Vec<u8>, _>>().with_context(|| format!("{namespace:?} is no UUID"))?;
    input.extend(name.as_bytes());
    let hash = digest(&SHA1_FOR_LEGACY_USE_ONLY, &input);
    let mut id = [0; 16];
    id.copy_from_slice(&hash.as_ref()[..16]);
    id[6] = id[6] & 0x0f | 0x50;
    id[8] = id[8] & 0x3f | 0x80;
    let hex: String = id.iter().map(|byte| format!("{byte:02x}")).collect();
    Ok([&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-"))
}

/// The keys of a metadata agent in a row, without those of others.
fn keys(row: &ChassisPrivate) -> BTreeMap<&str, &str> {
    let all = row.external_ids.iter().map(|(key, value)| (key.as_str(), value.as_str()));
    all.filter(|(key, _)| key.starts_with("neutron:")).collect()
}

/// Waits until the row of that chassis says what Neutron expects there.
fn registered(cloud: &Cloud<Lab>, chassis: &str, id: &str, limit: Duration) -> Result<ChassisPrivate> {
    until("the agent is registered", limit, || {
        let number = run(cloud.chassis.nbctl().words("get NB_Global . nb_cfg"))?;
        let row = cloud.chassis.chassis_private(chassis)?;
        let expected = BTreeMap::from([(BRIDGE, "br-int"), (ID, id), (SB_CFG, number.trim())]);
        ensure!(keys(&row) == expected, "{row:?}");
        Ok(row)
    })
}

fn set_external_id(cloud: &Cloud<Lab>, row: &ChassisPrivate, pair: &str) -> Result<()> {
    run(cloud
        .chassis
        .sbctl()
        .words(format!("set Chassis_Private {}", row.uuid))
        .arg(format!("external_ids:{pair}")))?;
    Ok(())
}

#[test]
fn ids_are_computed_as_python_does() -> Result<()> {
    assert_eq!(
        uuid5("6c8f3fcb-8a0a-4f0c-8f35-8a9d3a6f7c11", "metadata_agent")?,
        "95892dd1-e313-5aea-85e2-8d4040bbf874"
    );
    assert_eq!(uuid5(&uuid5(NAMESPACE, "host1")?, "metadata_agent")?, "8c37653d-9269-5387-98e3-b27bd8651cd4");
    Ok(())
}

#[test]
fn numbers_are_answered_while_guests_can_be_served() -> Result<()> {
    let mut cloud = Cloud::with_ovn()?;
    let chassis = cloud.chassis.chassis_name()?;
    let id = uuid5(&chassis, "metadata_agent")?;
    let row = registered(&cloud, &chassis, &id, REGISTRATION)?;

    // Keys of others, ovn-controller's and those of other agents of Neutron, are left alone.
    set_external_id(&cloud, &row, "other-agent=7")?;
    let number = cloud.chassis.raise_nb_cfg()?;
    let raised = Instant::now();
    let row = registered(&cloud, &chassis, &id, ANSWER)?;
    println!("answered after {:?}", raised.elapsed());
    assert_eq!(row.external_ids[SB_CFG], number.to_string());
    assert_eq!(row.external_ids.get("other-agent").map(String::as_str), Some("7"));

    // Guests of an agent that cannot reach Nova are not served, whatever runs.
    cloud.nova.pause();
    let before = cloud.agent.log()?.len();
    let refused = cloud.chassis.raise_nb_cfg()?;
    until("the agent says that it keeps silent", ANSWER, || {
        let log = cloud.agent.log()?;
        ensure!(log[before..].contains("Neutron is not told that the agent is alive"), "it does not");
        Ok(())
    })?;
    assert_eq!(cloud.chassis.chassis_private(&chassis)?.external_ids[SB_CFG], number.to_string());
    // Neutron and the operator are told the same.
    cloud.agent.wait_pending("nova at ")?;
    cloud.nova.resume(cloud.chassis.host())?;
    cloud.agent.wait_ready()?;
    let row = registered(&cloud, &chassis, &id, ANSWER)?;
    assert_eq!(row.external_ids[SB_CFG], refused.to_string());

    // A new agent is the same agent to Neutron, and does not wait before it says so.
    cloud.agent.stop()?;
    cloud.chassis.raise_nb_cfg()?;
    cloud.agent.resume()?;
    cloud.agent.wait_ready()?;
    registered(&cloud, &chassis, &id, REGISTRATION)?;
    Ok(())
}

/// An agent that runs, but leaves most guests without metadata, or cannot see which guests there are, is not alive. One
/// guest's trouble is told for that guest.
#[test]
fn an_agent_that_does_not_serve_its_guests_is_silent() -> Result<()> {
    let more = vec![
        ("DEFAULT", "agent_down_time = 9".to_owned()),
        ("ovn", "ovsdb_retry_max_interval = 1".to_owned()),
    ];
    let mut cloud = Cloud::on(Lab::start()?, &Options { more, ..Options::default() })?;
    let chassis = cloud.chassis.chassis_name()?;
    let id = uuid5(&chassis, "metadata_agent")?;
    registered(&cloud, &chassis, &id, REGISTRATION)?;

    let network = cloud.chassis.add_network("green", Routing::Isolated)?;
    let port = Port::new(&network)?;
    cloud.nova.add_instance(&port);
    cloud.chassis.create_port(&port)?;
    let guest = cloud.chassis.boot(port)?;
    guest.configure(Some((METADATA_PORT, "fa:16:3e:aa:bb:cc")))?;
    // A kernel without TCX gives no way to keep the program off a tap.
    if kernel::has_tcx()? {
        let others = cloud.chassis.host().run(|| occupy(&guest.port.tap))??;
        cloud.chassis.plug(&guest)?;
        cloud.agent.wait_pending("1 of 1 ports cannot be served")?;
        let status = cloud.agent.ports()?;
        let told =
            status.iter().any(|port| port.port == guest.port.id && port.reason.contains("not attached"));
        ensure!(told, "{status:?}");
        stays_silent(&cloud, &chassis)?;
        let neighbours = [cloud.add_guest(&network)?, cloud.add_guest(&network)?];
        neighbours.iter().try_for_each(own_identity)?;
        cloud.agent.wait_ready()?;
        let status = cloud.agent.ports()?;
        ensure!(status.iter().filter(|port| port.reason.contains("not attached")).count() == 1, "{status:?}");
        ensure!(cloud.agent.metric("metadata_ports_unserved")? == 1.0);
        registered(&cloud, &chassis, &id, ANSWER)?;
        drop(others);
    } else {
        cloud.chassis.plug(&guest)?;
    }
    cloud.agent.wait_served(&guest, cloud.chassis.ifindex(&guest)?)?;
    cloud.agent.wait_ready()?;
    registered(&cloud, &chassis, &id, ANSWER)?;
    own_identity(&guest)?;

    cloud.chassis.kill_ovs_database()?;
    cloud.agent.wait_pending("Open_vSwitch")?;
    stays_silent(&cloud, &chassis)?;
    own_identity(&guest)?;
    cloud.chassis.start_ovs_database()?;
    cloud.agent.wait_ready()?;
    registered(&cloud, &chassis, &id, ANSWER)?;
    Ok(())
}

/// A number is not answered in the time that an answer takes.
fn stays_silent(cloud: &Cloud<Lab>, chassis: &str) -> Result<()> {
    let before = cloud.chassis.chassis_private(chassis)?.external_ids[SB_CFG].clone();
    let number = cloud.chassis.raise_nb_cfg()?.to_string();
    thread::sleep(SPREAD + Duration::from_secs(1));
    let after = cloud.chassis.chassis_private(chassis)?.external_ids[SB_CFG].clone();
    ensure!(after == before && after != number, "{number} was answered: {before}, {after}");
    Ok(())
}

/// Takes all places for programs that a device has (BPF_MPROG_MAX of linux/bpf_mprog.h).
fn occupy(device: &str) -> Result<Vec<Ebpf>> {
    let mut others = Vec::new();
    while others.len() < 100 {
        let mut ebpf = Ebpf::load(OBJECT)?;
        let program: &mut SchedClassifier = ebpf.program_mut("to_guest").context("no program")?.try_into()?;
        program.load()?;
        let options = TcAttachOptions::TcxOrder(LinkOrder::last());
        if program.attach_with_options(device, TcAttachType::Ingress, options).is_err() {
            return Ok(others);
        }
        others.push(ebpf);
    }
    anyhow::bail!("{device} has room for more than {} programs", others.len())
}

/// neutron-server may ask more often than it is answered, and lists another agent where that has left its id.
#[test]
fn numbers_are_answered_however_fast_they_come() -> Result<()> {
    let more = vec![("DEFAULT", "agent_down_time = 10".to_owned())];
    let cloud = Cloud::on(Lab::start()?, &Options { more, ..Options::default() })?;
    let chassis = cloud.chassis.chassis_name()?;
    let row = registered(&cloud, &chassis, &uuid5(&chassis, "metadata_agent")?, REGISTRATION)?;
    set_external_id(&cloud, &row, "\"neutron:ovn-neutron-agent-id\"=theirs")?;
    let mut answers = BTreeSet::new();
    until("several numbers are answered", Duration::from_secs(60), || {
        cloud.chassis.raise_nb_cfg()?;
        answers.insert(cloud.chassis.chassis_private(&chassis)?.external_ids[SB_CFG].clone());
        ensure!(answers.len() > 3, "{answers:?}");
        Ok(())
    })?;
    let log = cloud.agent.wait_logged(&["lists this chassis' neutron-ovn-agent"])?;
    assert_eq!(log.matches("lists this chassis' neutron-ovn-agent").count(), 1, "{log}");
    assert_eq!(
        cloud.chassis.chassis_private(&chassis)?.external_ids["neutron:ovn-neutron-agent-id"],
        "theirs"
    );
    Ok(())
}

/// neutron-server takes an id that is there as the agent's for ever, so it stays even if it is another.
#[test]
fn an_id_that_is_there_stays() -> Result<()> {
    let mut cloud = Cloud::with_ovn()?;
    let chassis = cloud.chassis.chassis_name()?;
    let row = registered(&cloud, &chassis, &uuid5(&chassis, "metadata_agent")?, REGISTRATION)?;
    cloud.agent.stop()?;
    let id = "00000000-1111-4222-8333-444444444444";
    set_external_id(&cloud, &row, &format!("{ID:?}={id}"))?;
    cloud.chassis.raise_nb_cfg()?;
    cloud.agent.resume()?;
    registered(&cloud, &chassis, id, REGISTRATION)?;
    Ok(())
}

#[test]
fn a_row_made_anew_is_registered_again() -> Result<()> {
    let mut cloud = Cloud::with_ovn()?;
    let guests = cloud.overlapping_guests()?;
    let network = cloud.chassis.add_network("green", Routing::Routed)?;
    let chassis = cloud.chassis.chassis_name()?;
    let id = uuid5(&chassis, "metadata_agent")?;
    let mut row = registered(&cloud, &chassis, &id, REGISTRATION)?;
    let ((), answers) = meanwhile(&guests, || {
        run(cloud.chassis.sbctl().words(format!("destroy Chassis_Private {}", row.uuid)))?;
        let anew = registered(&cloud, &chassis, &id, REGISTRATION)?;
        assert_ne!(anew.uuid, row.uuid);
        row = anew;

        // ovn-controller takes its rows with it, and makes new ones.
        cloud.chassis.stop_controller()?;
        assert!(cloud.chassis.chassis_private(&chassis).is_err(), "ovn-controller has left its row");
        cloud.chassis.start_controller()?;
        let anew = registered(&cloud, &chassis, &id, REGISTRATION)?;
        assert_ne!(anew.uuid, row.uuid);
        row = anew;

        // A crash leaves them.
        cloud.chassis.kill_controller()?;
        cloud.chassis.start_controller()?;
        cloud.chassis.raise_nb_cfg()?;
        assert_eq!(registered(&cloud, &chassis, &id, REGISTRATION)?.uuid, row.uuid);

        let newcomer = cloud.add_guest(&network)?;
        cloud.agent.wait_served(&newcomer, cloud.chassis.ifindex(&newcomer)?)?;
        own_identity(&newcomer)
    })?;
    println!("{answers:?}");
    Ok(())
}

#[test]
fn a_chassis_whose_name_is_no_uuid_has_an_id_all_the_same() -> Result<()> {
    let mut cloud = Cloud::with_ovn()?;
    let name = "compute-7.example.org";
    cloud.chassis.stop_controller()?;
    run(cloud.chassis.vsctl().words(format!("set Open_vSwitch . external_ids:system-id={name}")))?;
    cloud.chassis.start_controller()?;
    registered(&cloud, name, &uuid5(&uuid5(NAMESPACE, name)?, "metadata_agent")?, REGISTRATION)?;
    Ok(())
}
