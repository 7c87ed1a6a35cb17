//! Taps change hands: from another agent to this one, from this one to another, and from one set of maps to the next.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddrV4, TcpStream},
    os::fd::AsRawFd as _,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use metadata_tests::{
    agent::Options,
    capture::{Capture, Segment},
    check::{META_DATA, is_identity_of, own_identity},
    cloud::Cloud,
    command::{Words as _, run},
    guest::{Guest, METADATA},
    http::{self, request_head},
    nova::Answer,
    port::{Port, uuid},
    stage::{Path, Stage},
    wait::until,
};
use nix::sys::socket::{setsockopt, sockopt};

const SOON: Duration = Duration::from_secs(30);
/// Long enough for retransmissions of what was not acknowledged.
const RETRANSMITTED: Duration = Duration::from_secs(8);
const BIG: &str = "/openstack/latest/vendor_data.json";

/// A machine on the guests' link that serves the metadata address itself, as an agent of another kind does: it echoes
/// what it is sent.
struct Incumbent {
    machine: Guest,
}

impl Incumbent {
    fn start(cloud: &Stage, network: &metadata_tests::port::Network) -> Result<Self> {
        let machine = cloud.add_guest(network, Path::OnLink)?;
        machine.netns.ip(format!("addr add {}/32 dev eth0", METADATA.ip()))?;
        let listener = machine.netns.listen(METADATA)?;
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                thread::spawn(move || {
                    let mut stream = stream;
                    let mut bytes = [0; 64];
                    while let Ok(length @ 1..) = stream.read(&mut bytes) {
                        if stream.write_all(&bytes[..length]).is_err() {
                            return;
                        }
                    }
                });
            }
        });
        Ok(Self { machine })
    }

    /// Fails unless an echo server has the other end of the connection.
    fn has(stream: &mut TcpStream) -> Result<()> {
        stream.write_all(b"are you there?")?;
        let mut echo = [0; 14];
        stream.read_exact(&mut echo)?;
        ensure!(&echo == b"are you there?");
        Ok(())
    }
}

fn connect(guest: &Guest) -> Result<TcpStream> {
    connect_within(guest, Duration::from_secs(5))
}

fn connect_within(guest: &Guest, limit: Duration) -> Result<TcpStream> {
    Ok(guest.netns.run(move || http::connect_from(None, METADATA, limit))??)
}

/// Connections through whoever served the tap before go on; new ones are ours at once.
#[test]
fn a_running_node_is_taken_over() -> Result<()> {
    let mut cloud = Cloud::with_inventory()?;
    let network = cloud.chassis.add_network("green")?;
    let guest = cloud.chassis.add_guest(&network, Path::OnLink)?;
    cloud.nova.add_instance(&guest.port);
    cloud.chassis.write_inventory(&[&guest.port])?;
    // As if no agent of this kind had ever been here.
    cloud.agent.stop()?;
    cloud.agent.clean_up()?;
    let incumbent = Incumbent::start(&cloud.chassis, &network)?;
    let mut kept = connect(&guest)?;
    Incumbent::has(&mut kept)?;

    std::fs::create_dir_all(cloud.agent.run_dir())?;
    cloud.agent.resume()?;
    cloud.agent.wait_ready()?;
    cloud.agent.wait_served(&guest, cloud.chassis.ifindex(&guest)?)?;
    Incumbent::has(&mut kept).context("before a connection of the agent's")?;
    own_identity(&guest)?;
    let mut ours = guest.connect()?;
    is_identity_of(&guest.port, &ours.request("GET", META_DATA, &[], b"")?)?;
    Incumbent::has(&mut kept).context("beside connections of the agent's")?;
    is_identity_of(&guest.port, &ours.request("GET", META_DATA, &[], b"")?)?;
    assert!(cloud.agent.counter("foreign_connection")? > 0);
    drop(incumbent.machine);
    Ok(())
}

/// An agent that is told to leave gives new connections away at once, and serves what is under way.
#[test]
fn a_node_is_given_back() -> Result<()> {
    let cloud = Cloud::with_inventory()?;
    let network = cloud.chassis.add_network("green")?;
    let guest = cloud.chassis.add_guest(&network, Path::OnLink)?;
    cloud.nova.add_instance(&guest.port);
    cloud.chassis.write_inventory(&[&guest.port])?;
    cloud.agent.reload()?;
    cloud.agent.wait_served(&guest, cloud.chassis.ifindex(&guest)?)?;
    own_identity(&guest)?;
    let incumbent = Incumbent::start(&cloud.chassis, &network)?;
    // The guest goes on asking the MAC that it knows, as it does over DHCP's route.
    guest.netns.ip("neigh flush dev eth0")?;
    let mac = &incumbent.machine.port.mac;
    guest.netns.ip(format!("neigh replace {} lladdr {mac} dev eth0", METADATA.ip()))?;
    own_identity(&guest)?;
    let mut under_way = guest.connect()?;
    under_way.send(b"GET ")?;

    thread::scope(|scope| -> Result<()> {
        let cleaning = scope.spawn(|| cloud.agent.clean_up());
        // One of before it leaves is the agent's, which waits for the end of a head.
        let attempt = || Incumbent::has(&mut connect_within(&guest, Duration::from_millis(200))?);
        until("a new connection is the incumbent's", SOON, attempt)?;
        ensure!(!cleaning.is_finished(), "the agent did not wait for what was under way");
        under_way.send(&request_head("GET", META_DATA, &[], 0)[4..])?;
        is_identity_of(&guest.port, &under_way.response("GET")?)?;
        cleaning.join().ok().context("the clean-up panicked")?
    })?;
    Incumbent::has(&mut connect(&guest)?)?;
    cloud.agent.wait_logged(&["stopping"])?;
    Ok(())
}

/// An agent that is gone, however it went, does not keep metadata away for ever.
#[test]
fn programs_of_an_agent_that_is_gone_let_frames_pass() -> Result<()> {
    let more = vec![("metadata_ebpf", "lease = 10".to_owned())];
    let mut cloud = Cloud::on(Stage::start()?, &Options { more, ..Options::default() })?;
    let network = cloud.chassis.add_network("green")?;
    let guest = cloud.chassis.add_guest(&network, Path::OnLink)?;
    cloud.nova.add_instance(&guest.port);
    cloud.chassis.write_inventory(&[&guest.port])?;
    cloud.agent.reload()?;
    cloud.agent.wait_served(&guest, cloud.chassis.ifindex(&guest)?)?;
    own_identity(&guest)?;
    let incumbent = Incumbent::start(&cloud.chassis, &network)?;
    own_identity(&guest)?;

    cloud.agent.kill()?;
    let gone = Instant::now();
    guest.netns.ip("neigh flush dev eth0")?;
    // A restart may be under way: what is left of the agent takes connections.
    drop(connect(&guest)?);
    until("connections pass", SOON, || {
        guest.netns.ip("neigh flush dev eth0")?;
        Incumbent::has(&mut connect(&guest)?)
    })?;
    println!("another agent was reached {:?} after this one was killed", gone.elapsed());

    // The next one takes over as if there had never been one.
    let mut kept = connect(&guest)?;
    Incumbent::has(&mut kept)?;
    cloud.agent.resume()?;
    cloud.agent.wait_ready()?;
    Incumbent::has(&mut kept).context("on a connection from before the next agent")?;
    own_identity(&guest)?;
    Incumbent::has(&mut kept).context("beside connections of the next agent")?;
    drop(incumbent.machine);
    guest.netns.ip("neigh flush dev eth0")?;
    own_identity(&guest)
}

/// A guest that takes nothing of an answer, so that the kernel goes on sending it.
fn leave_unacknowledged(cloud: &Cloud<Stage>, guest: &Guest) -> Result<TcpStream> {
    let body = vec![b'x'; 200_000];
    cloud.nova.answer(BIG, Answer { status: 200, headers: vec![], body: body.into() });
    let mut stream = connect(guest)?;
    setsockopt(&stream, sockopt::RcvBuf, &4096).with_context(|| format!("socket {}", stream.as_raw_fd()))?;
    let silence = "qdisc add dev eth0 root tbf rate 8bit burst 64 latency 1ms";
    stream.write_all(&request_head("GET", BIG, &[], 0))?;
    until("the answer has begun", SOON, || {
        let mut byte = [0];
        ensure!(stream.peek(&mut byte)? == 1);
        Ok(())
    })?;
    // From now on it acknowledges nothing.
    run(guest.netns.command("tc")?.words(silence))?;
    Ok(stream)
}

/// Segments with data that reached the guest meanwhile.
fn data_of_others(capture: &Capture) -> Result<Vec<Segment>> {
    Ok(capture.segments()?.into_iter().filter(|segment| segment.payload() > 0).collect())
}

/// New maps begin anew with the tags, and what the kernel still sends to one of before is nobody's.
#[test]
fn nothing_of_a_namespace_survives_the_maps_that_it_belonged_to() -> Result<()> {
    let mut cloud = Cloud::with_inventory()?;
    let network = cloud.chassis.add_network("green")?;
    let [one, heir] = [(); 2].map(|()| cloud.chassis.add_guest(&network, Path::OnLink));
    let (one, heir) = (one?, heir?);
    cloud.nova.add_instance(&one.port);
    cloud.nova.add_instance(&heir.port);
    cloud.chassis.write_inventory(&[&one.port])?;
    cloud.agent.reload()?;
    let first = cloud.agent.wait_served(&one, cloud.chassis.ifindex(&one)?)?;
    let stream = leave_unacknowledged(&cloud, &one)?;

    cloud.agent.kill()?;
    run(std::process::Command::new("umount").arg(cloud.agent.run_dir().join("bpf")))?;
    cloud.chassis.write_inventory(&[&heir.port])?;
    let capture = Capture::start(&heir)?;
    cloud.agent.resume()?;
    cloud.agent.wait_ready()?;
    let second = cloud.agent.wait_served(&heir, cloud.chassis.ifindex(&heir)?)?;
    assert_eq!((first.index, first.generation), (second.index, second.generation), "the tag is another");
    thread::sleep(RETRANSMITTED);
    let astray = data_of_others(&capture)?;
    assert!(astray.is_empty(), "{} segments of another's answer", astray.len());
    own_identity(&heir)?;
    drop(stream);
    Ok(())
}

/// An assignment of a former agent is adopted for the same port, instance and project, and for nobody else.
#[test]
fn an_assignment_is_adopted_for_the_same_instance_only() -> Result<()> {
    let mut cloud = Cloud::with_inventory()?;
    let [guest, other] = cloud.overlapping_guests()?;
    own_identity(&other)?;
    let (ifindex, kept) = (cloud.chassis.ifindex(&guest)?, cloud.chassis.ifindex(&other)?);
    let before = cloud.agent.wait_served(&guest, ifindex)?;
    let kept_before = cloud.agent.wait_served(&other, kept)?;
    let stream = leave_unacknowledged(&cloud, &guest)?;
    cloud.agent.kill()?;

    let heir = Port { instance: uuid()?, ..guest.port.clone() };
    cloud.nova.add_instance(&heir);
    cloud.chassis.write_inventory(&[&heir, &other.port])?;
    run(guest.netns.command("tc")?.words("qdisc del dev eth0 root"))?;
    let capture = Capture::start(&guest)?;
    cloud.agent.resume()?;
    cloud.agent.wait_ready()?;
    until("the heir is served", SOON, || {
        let ports = cloud.agent.ports()?;
        let found = ports.iter().find(|port| port.instance.as_ref() == Some(&heir.instance));
        let found = found.with_context(|| format!("{ports:?}"))?;
        assert_ne!((found.index, found.generation), (before.index, before.generation));
        Ok(())
    })?;
    let after = cloud.agent.wait_served(&other, kept)?;
    assert_eq!((after.index, after.generation), (kept_before.index, kept_before.generation));
    // What came before the successor's maps said so is the old instance's on its own tap.
    capture.segments()?;
    thread::sleep(RETRANSMITTED);
    let astray = data_of_others(&capture)?;
    assert!(astray.is_empty(), "{} segments of another's answer", astray.len());
    is_identity_of(&heir, &guest.get(META_DATA)?)?;
    drop(stream);
    Ok(())
}

/// The end of an assignment is the end of its connections, and the guest hears of it: at once where it waits, and with its
/// next segment where the maps know nothing of it any more.
#[test]
fn a_guest_hears_the_end_of_its_connections() -> Result<()> {
    let mut cloud = Cloud::with_inventory()?;
    let [guest, other] = cloud.overlapping_guests()?;
    let idle = guest.connect()?;
    own_identity(&other)?;
    let heir = Port { instance: uuid()?, ..guest.port.clone() };
    cloud.nova.add_instance(&heir);
    cloud.chassis.write_inventory(&[&heir, &other.port])?;
    cloud.agent.reload()?;
    // It has nothing to send, and only waits.
    let mut stream = idle.stream();
    stream.set_read_timeout(Some(SOON))?;
    let heard = stream.read(&mut [0; 1]);
    let kind = heard.as_ref().map_err(std::io::Error::kind).err();
    assert_eq!(kind, Some(std::io::ErrorKind::ConnectionReset), "{heard:?}");

    let mut kept = other.connect()?;
    is_identity_of(&other.port, &kept.request("GET", META_DATA, &[], b"")?)?;
    cloud.agent.kill()?;
    run(std::process::Command::new("umount").arg(cloud.agent.run_dir().join("bpf")))?;
    cloud.agent.resume()?;
    cloud.agent.wait_ready()?;
    cloud.agent.wait_served(&other, cloud.chassis.ifindex(&other)?)?;
    let asked = Instant::now();
    let lost = kept.request("GET", META_DATA, &[], b"");
    assert!(
        lost.is_err() && asked.elapsed() < Duration::from_secs(10),
        "{lost:?} after {:?}",
        asked.elapsed()
    );
    assert!(cloud.agent.counter("unknown_connection")? > 0);
    own_identity(&other)?;
    // That is limited as other answers are, and says nothing to anybody else.
    let unlikely = SocketAddrV4::new(other.port.address, 0);
    is_identity_of(&other.port, &other.connect_from(unlikely)?.request("GET", META_DATA, &[], b"")?)
}
