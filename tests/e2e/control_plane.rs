//! The Southbound as a cluster over TLS is taken apart in every way; known guests never notice, new ones are served.

use std::{
    fs,
    os::unix::fs::symlink,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use metadata_tests::{
    agent::Options,
    check::{META_DATA, is_identity_of, own_identity},
    cloud::{Chassis as _, Cloud},
    command::run,
    guest::Guest,
    nova::{SECRET, signature},
    ovn::{Credentials, Lab, Pki, Routing},
    port::{METADATA_PORT, Network, Port},
    traffic::{Answers, meanwhile},
    wait::until,
};
use nix::sys::signal::Signal;

/// The whole Southbound is away for this long.
const OUTAGE: Duration = Duration::from_secs(60);
/// Every client of the Southbound tries again within 8 s; the machine may be busy.
const RECOVERY: Duration = Duration::from_secs(60);
/// A guest would notice if its SYN was lost, which it repeats after 1 s; the machine may be busy.
const PATIENCE: Duration = Duration::from_secs(8);
const HOLD: u32 = 2;

fn cloud(more: &[(&'static str, &str)]) -> Result<Cloud<Lab>> {
    let more = more.iter().map(|(section, line)| (*section, (*line).to_owned())).collect();
    Cloud::on(Lab::start_with_cluster()?, &Options { hold: HOLD, more, ..Options::default() })
}

/// The place of the server that the agent has last connected to.
fn connected_server(cloud: &Cloud<Lab>) -> Result<usize> {
    until("the agent says where it is connected", RECOVERY, || {
        let log = cloud.agent.log()?;
        let connected = |line: &&str| line.contains(" connected database=\"OVN_Southbound\"");
        let line = log.lines().rev().find(connected).context("the agent never connected")?;
        let remotes = cloud.chassis.southbound_remotes();
        remotes
            .iter()
            .position(|remote| line.contains(remote))
            .with_context(|| format!("no remote in {line}"))
    })
}

/// An instance of that network whose rows are there, but whose tap is not plugged yet.
fn announce(cloud: &Cloud<Lab>, network: &Network) -> Result<Port> {
    let port = Port::new(network)?;
    cloud.nova.add_instance(&port);
    cloud.chassis.create_port(&port)?;
    Ok(port)
}

/// Plugs it without help of OVN, which can give no lease while the Southbound is away.
fn plug(cloud: &Cloud<Lab>, port: Port) -> Result<Guest> {
    let guest = cloud.chassis.boot(port)?;
    guest.configure(Some((METADATA_PORT, "fa:16:3e:aa:bb:cc")))?;
    cloud.chassis.plug(&guest)?;
    Ok(guest)
}

/// A guest that comes when all is well again is served.
fn newcomer_is_served(cloud: &Cloud<Lab>, network: &Network) -> Result<()> {
    let newcomer = cloud.add_guest(network)?;
    let ifindex = cloud.chassis.ifindex(&newcomer)?;
    until("the newcomer is served", RECOVERY, || cloud.agent.wait_served(&newcomer, ifindex))?;
    own_identity(&newcomer)
}

/// The agent still writes what Neutron waits for.
fn heartbeat_follows(cloud: &Cloud<Lab>) -> Result<()> {
    let number = cloud.chassis.raise_nb_cfg()?.to_string();
    let chassis = cloud.chassis.chassis_name()?;
    until("the agent answers to the number", RECOVERY, || {
        let row = cloud.chassis.chassis_private(&chassis)?;
        ensure!(
            row.external_ids.get("neutron:ovn-metadata-sb-cfg") == Some(&number),
            "not {number}: {row:?}"
        );
        Ok(())
    })
}

fn assert_unnoticed(answers: &[Answers]) {
    println!("{answers:?}");
    assert!(answers.iter().all(|guest| guest.slowest < PATIENCE), "{answers:?}");
}

#[test]
fn the_leader_and_the_agents_own_server_are_killed() -> Result<()> {
    let mut cloud = cloud(&[])?;
    let guests = cloud.overlapping_guests()?;
    let network = cloud.chassis.add_network("green", Routing::Routed)?;
    let open = guests.each_ref().map(Guest::connect);
    let ((), answers) = meanwhile(&guests, || {
        let leader = cloud.chassis.southbound_leader()?;
        cloud.chassis.kill_southbound_server(leader)?;
        assert_ne!(cloud.chassis.southbound_leader()?, leader);
        until("the agent is connected", RECOVERY, || {
            ensure!(connected_server(&cloud)? != leader);
            Ok(())
        })?;
        newcomer_is_served(&cloud, &network)?;
        cloud.chassis.start_southbound()?;

        let own = connected_server(&cloud)?;
        cloud.chassis.kill_southbound_server(own)?;
        until("the agent is connected elsewhere", RECOVERY, || {
            ensure!(connected_server(&cloud)? != own);
            Ok(())
        })?;
        newcomer_is_served(&cloud, &network)?;
        cloud.chassis.start_southbound()
    })?;
    assert_unnoticed(&answers);
    for (connection, guest) in open.into_iter().zip(&guests) {
        is_identity_of(&guest.port, &connection?.request("GET", META_DATA, &[], b"")?)
            .context("on a connection from before")?;
    }
    cloud.agent.wait_ready()?;
    heartbeat_follows(&cloud)
}

#[test]
fn the_whole_southbound_is_away() -> Result<()> {
    let mut cloud = cloud(&[])?;
    let guests = cloud.overlapping_guests()?;
    let network = cloud.chassis.add_network("green", Routing::Routed)?;
    // Neutron has bound it to this chassis: its row is here when that of one that came later is.
    let announced = announce(&cloud, &network)?;
    newcomer_is_served(&cloud, &network)?;
    guests.iter().try_for_each(|guest| cloud.agent.wait_remembered(guest))?;
    let remembered =
        fs::read_to_string(cloud.chassis.sandbox().path("state/metadata-agent/identities.json"))?;
    let signed = guests.iter().any(|guest| remembered.contains(&signature(&guest.port.instance)));
    assert!(!signed && !remembered.contains(SECRET), "a secret is on disk: {remembered}");

    let began = Instant::now();
    let (newcomer, answers) = meanwhile(&guests, || {
        cloud.chassis.kill_southbound()?;
        cloud.agent.wait_pending("OVN_Southbound: ssl:127.0.0.1:")?;
        own_identity(&plug(&cloud, announced)?)?;
        // Nobody can say who this is: held, then told to come again.
        let port = Port::new(&network)?;
        cloud.nova.add_instance(&port);
        let newcomer = plug(&cloud, port)?;
        let asked = Instant::now();
        let response = newcomer.get(META_DATA)?;
        assert_eq!((response.status, response.header("Retry-After")), (503, Some("1")), "{response:?}");
        assert!(asked.elapsed() >= Duration::from_secs(HOLD.into()), "{:?}", asked.elapsed());
        Ok(newcomer)
    })?;
    assert_unnoticed(&answers);

    // The next agent has never seen the Southbound. Nobody asks at this moment: what a killed program was about to
    // answer is lost in any case.
    cloud.agent.kill()?;
    cloud.agent.resume()?;
    guests.iter().try_for_each(own_identity)?;
    cloud.agent.wait_pending("OVN_Southbound")?;
    assert_eq!(newcomer.get(META_DATA)?.status, 503, "a guest that was never known is answered");

    let ((), answers) = meanwhile(&guests, || {
        thread::sleep(OUTAGE.saturating_sub(began.elapsed()));
        thread::scope(|scope| {
            let waiting = scope.spawn(|| served_after_503(&newcomer));
            cloud.chassis.start_southbound()?;
            cloud.chassis.create_port(&newcomer.port)?;
            waiting.join().ok().context("the newcomer's thread panicked")?
        })?;
        cloud.agent.wait_ready()?;
        newcomer_is_served(&cloud, &network)
    })?;
    assert_unnoticed(&answers);
    heartbeat_follows(&cloud)
}

/// Asks until it is known. Until then it hears nothing but that it should ask again.
fn served_after_503(guest: &Guest) -> Result<()> {
    until("the newcomer is known", RECOVERY, || {
        let response = guest.get(META_DATA)?;
        if response.status == 503 {
            ensure!(response.header("Retry-After") == Some("1"), "{response:?}");
            return Err(anyhow::anyhow!("503"));
        }
        Ok(is_identity_of(&guest.port, &response))
    })?
}

/// A server that is there but does nothing looks like one until it does not answer a probe.
#[test]
fn a_paused_server_is_left() -> Result<()> {
    let mut cloud =
        cloud(&[("ovn", "ovsdb_probe_interval = 1000"), ("ovn", "ovsdb_retry_max_interval = 1")])?;
    let guests = cloud.overlapping_guests()?;
    let network = cloud.chassis.add_network("green", Routing::Isolated)?;
    let ((), answers) = meanwhile(&guests, || {
        let paused = connected_server(&cloud)?;
        cloud.chassis.signal_southbound_server(paused, Signal::SIGSTOP)?;
        let stopped = Instant::now();
        until("the agent has left the paused server", RECOVERY, || {
            ensure!(connected_server(&cloud)? != paused);
            Ok(())
        })?;
        println!("left after {:?}", stopped.elapsed());
        ensure!(
            cloud.agent.log()?.contains("did not answer the inactivity probe"),
            "left for another reason"
        );
        cloud.agent.wait_ready()?;
        cloud.chassis.signal_southbound_server(paused, Signal::SIGCONT)?;
        newcomer_is_served(&cloud, &network)
    })?;
    assert_unnoticed(&answers);
    Ok(())
}

/// Each way to get them wrong says which file it is, and what is put right is used without a restart.
#[test]
fn certificates_are_replaced() -> Result<()> {
    let mut cloud = cloud(&[("ovn", "ovsdb_retry_max_interval = 1")])?;
    let guests = cloud.overlapping_guests()?;
    let network = cloud.chassis.add_network("green", Routing::Routed)?;
    let files = cloud.chassis.agent_credentials()?.clone();
    let stranger = Pki::create(cloud.chassis.sandbox().path("stranger"))?.issue("client", "controller")?;
    let renewed = cloud.chassis.pki()?.issue("renewed", "controller")?;
    ensure!(
        fs::read(&renewed.certificate)? != fs::read(&files.certificate)?,
        "nothing to tell them apart by"
    );

    let ((), answers) = meanwhile(&guests, || {
        // A server of an authority that the agent does not know.
        let wrong_ca = Credentials { ca_certificates: stranger.ca_certificates.clone(), ..renewed.clone() };
        files.replace(&wrong_ca)?;
        cloud.chassis.kill_southbound()?;
        cloud.chassis.start_southbound()?;
        let text = cloud.agent.wait_pending("has signed it")?;
        assert!(text.contains(&files.ca_certificates.display().to_string()), "{text}");

        // A client of an authority that the servers do not know.
        let unknown = Credentials { ca_certificates: renewed.ca_certificates.clone(), ..stranger };
        files.replace(&unknown)?;
        let text = cloud.agent.wait_pending("client certificate")?;
        assert!(text.contains(&files.certificate.display().to_string()), "{text}");

        // A key that belongs to another certificate.
        files.replace(&Credentials { certificate: renewed.certificate.clone(), ..unknown })?;
        let text = cloud.agent.wait_pending("does not go with private key")?;
        assert!(text.contains(&files.private_key.display().to_string()), "{text}");

        // Those that it began with are gone: only the renewed ones can have made this connection.
        files.replace(&renewed)?;
        cloud.agent.wait_ready()?;
        newcomer_is_served(&cloud, &network)
    })?;
    assert_unnoticed(&answers);
    Ok(())
}

/// `state_path` is Neutron's, who is not root: what is put in the place of ours is neither waited for nor followed.
#[test]
fn a_fifo_in_the_identities_place_holds_up_nobody() -> Result<()> {
    let mut cloud = cloud(&[])?;
    let guests = cloud.overlapping_guests()?;
    guests.iter().try_for_each(|guest| cloud.agent.wait_remembered(guest))?;
    cloud.agent.kill()?;
    let folder = cloud.chassis.sandbox().path("state/metadata-agent");
    let file = folder.join("identities.json");
    fs::remove_file(&file)?;
    run(Command::new("mkfifo").arg(&file))?;
    cloud.agent.resume()?;
    guests.iter().try_for_each(own_identity)?;
    until("the fifo has become a file", RECOVERY, || {
        ensure!(fs::symlink_metadata(&file)?.is_file());
        Ok(())
    })?;
    guests.iter().try_for_each(|guest| cloud.agent.wait_remembered(guest))?;
    cloud.agent.wait_logged(&["it is no regular file"]).context("nothing is said of the fifo")?;

    // The whole folder leads elsewhere.
    cloud.agent.kill()?;
    let elsewhere = cloud.chassis.sandbox().path("elsewhere");
    fs::rename(&folder, &elsewhere)?;
    let before = fs::metadata(elsewhere.join("identities.json"))?.modified()?;
    symlink(&elsewhere, &folder)?;
    cloud.agent.resume()?;
    guests.iter().try_for_each(own_identity)?;
    cloud.agent.wait_ready()?;
    until("the log says that nothing is remembered", RECOVERY, || {
        let log = cloud.agent.log()?;
        ensure!(log.contains("cannot remember identities") && log.contains("a symbolic link to one"));
        Ok(())
    })?;
    assert_eq!(fs::metadata(elsewhere.join("identities.json"))?.modified()?, before);
    Ok(())
}
