//! `migrate`: a node goes from Neutron's own metadata agent to this one and back, and no guest is without metadata.

use std::{
    io::{BufRead as _, BufReader, Read as _},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use metadata_tests::{
    check::{META_DATA, own_identity},
    cloud::{Chassis as _, Cloud},
    command::{Words as _, run},
    guest::Guest,
    netns,
    ovn::{Incumbent, Lab, Routing},
    port::Network,
    traffic::{meanwhile, while_asking},
    wait::until,
};

/// Exit status of an agent that was told to leave.
const LEFT: i32 = 79;
/// A binding changes hands in Open vSwitch and OVN; guests' TCP repeats a SYN after a second.
const REBOUND: Duration = Duration::from_secs(10);

/// Output of `migrate`.
fn migrate(cloud: &Cloud<Lab>, arguments: &str, stop: &str, start: &str) -> Result<String> {
    let mut command = netns::command_in(&cloud.chassis.host().path(), "sh")?;
    let line = cloud.agent.command_line("migrate");
    command.arg("-c").arg(format!("{line} {arguments} --stop \"$STOP\" --start \"$START\" 2>&1"));
    run(command.env("STOP", stop).env("START", start))
}

/// Interrupts it where it waits until the other agent has stopped, which the command does not do, as a terminal does that
/// goes away. Gives what it says then.
fn hang_up(scene: &Scene) -> Result<String> {
    let mut command = netns::command_in(&scene.cloud.chassis.host().path(), "sh")?;
    let line = scene.cloud.agent.command_line("migrate");
    command.arg("-c").arg(format!("exec {line} --apply --stop 'echo told to stop' --start \"$START\""));
    command.env("START", scene.incumbent.start_command());
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let mut lines = BufReader::new(child.stdout.take().context("no output")?).lines();
    let is_stopping = lines.any(|line| line.is_ok_and(|line| line == "told to stop"));
    drop(lines);
    run(Command::new("kill").words(format!("-HUP {}", child.id())))?;
    let mut said = String::new();
    child.stderr.take().context("no output")?.read_to_string(&mut said)?;
    let status = child.wait()?;
    ensure!(is_stopping && status.code() == Some(1), "{status}: {said}");
    Ok(said)
}

/// Waits until a guest is answered by the other agent, or by ours: a binding that changes hands takes its time.
fn wait_answered(guest: &Guest, by_other: bool) -> Result<()> {
    until(&format!("{} is answered by the other agent: {by_other}", guest.port.tap), REBOUND, || {
        own_identity(guest)?;
        let is_others = guest.get(META_DATA)?.header("X-By").is_some();
        ensure!(is_others == by_other, "by the other agent: {is_others}");
        Ok(())
    })
}

/// Both agents on a chassis, a guest in the first network, and nobody in the second.
struct Scene {
    incumbent: Incumbent,
    guest: [Guest; 1],
    networks: [Network; 2],
    cloud: Cloud<Lab>,
}

impl Scene {
    /// With a guest on a tap, which ours serves as soon as it runs.
    fn with_tap() -> Result<Self> {
        Self::set_up(Cloud::with_ovn()?, |cloud, network| cloud.add_guest(network))
    }

    /// With a guest on an internal port, which the other agent serves as long as it has bound the network's metadata port.
    fn without_tap() -> Result<Self> {
        Self::set_up(Cloud::with_network_devices()?, |cloud, network| cloud.add_internal(network))
    }

    fn set_up(cloud: Cloud<Lab>, add: impl FnOnce(&Cloud<Lab>, &Network) -> Result<Guest>) -> Result<Self> {
        let network = |name| cloud.chassis.add_network(name, Routing::Routed);
        let networks = [network("red")?, network("grey")?];
        // Stateful rules would have the switch follow connections that change hands, at which Open vSwitch 3.1 in user space
        // ends (an assertion in lib/conntrack.c).
        for network in &networks {
            cloud.chassis.remove_rules(network)?;
        }
        let [red, grey] = &networks;
        let guest = [add(&cloud, red)?];
        let incumbent = Incumbent::install(&cloud.chassis, &[red, grey], &[&guest[0]])?;
        incumbent.start()?;
        Ok(Self { incumbent, guest, networks, cloud })
    }

    fn traces(&self) -> Result<[Vec<String>; 2]> {
        let [red, grey] = &self.networks;
        let traces = |network| self.incumbent.traces(&self.cloud.chassis, network);
        Ok([traces(red)?, traces(grey)?])
    }

    /// Fails unless the other agent has all of both networks.
    fn is_untouched(&self) -> Result<()> {
        let traces = self.traces()?;
        ensure!(traces.iter().all(|traces| traces.len() == 4), "{traces:?}");
        Ok(())
    }

    /// Waits until nothing of the first network is there. Devices whose outer end is in the switch's namespace end with the
    /// inner one's, which the kernel does in its own time. The second network has all of it.
    fn wait_removed(&self) -> Result<()> {
        until("the first network's things are gone", REBOUND, || {
            let [of_red, of_grey] = self.traces()?;
            ensure!(of_red.is_empty() && of_grey.len() == 4, "{of_red:?} {of_grey:?}");
            Ok(())
        })
    }

    fn migrate(&self, arguments: &str) -> Result<String> {
        let (stop, start) = (self.incumbent.stop_command(), self.incumbent.start_command());
        migrate(&self.cloud, arguments, &stop, &start)
    }

    /// Words of `migrate` when it fails.
    fn refused(&self, arguments: &str) -> Result<String> {
        Ok(format!("{:#}", self.migrate(arguments).err().context("it did not fail")?))
    }
}

#[test]
fn a_node_is_taken_over_and_given_back() -> Result<()> {
    let mut scene = Scene::with_tap()?;
    wait_answered(&scene.guest[0], false)?;
    scene.is_untouched()?;
    let said = scene.migrate("")?;
    let [red, grey] = &scene.networks;
    for words in [
        "found: neutron-ovn-metadata-agent",
        &format!("would stop the other agent: {}", scene.incumbent.stop_command()),
        &format!("would remove what served network {}", red.id),
        &format!("left as it is: ovnmeta-{}", grey.id),
        "nothing was changed",
    ] {
        ensure!(said.contains(words), "{words:?} is not in\n{said}");
    }
    scene.is_untouched()?;

    meanwhile(&scene.guest, || {
        let said = scene.migrate("--apply")?;
        ensure!(said.ends_with("done\n"), "{said}");
        Ok(())
    })?;
    scene.wait_removed()?;
    wait_answered(&scene.guest[0], false)?;
    let said = scene.migrate("--apply")?;
    ensure!(said.contains("there is nothing to do"), "{said}");

    // Back: where the other one does not start, nothing changes.
    let said = migrate(&scene.cloud, "--back --apply", &scene.incumbent.stop_command(), "exit 3");
    let said = format!("{:#}", said.err().context("it did not fail")?);
    ensure!(said.contains("cannot start the other agent"), "{said}");
    wait_answered(&scene.guest[0], false)?;
    meanwhile(&scene.guest, || {
        let said = scene.migrate("--back --apply")?;
        ensure!(said.ends_with("done\n"), "{said}");
        Ok(())
    })?;
    let status = scene.cloud.agent.wait_end()?;
    ensure!(status.code() == Some(LEFT), "{status}");
    wait_answered(&scene.guest[0], true)
}

#[test]
fn a_metadata_port_changes_hands() -> Result<()> {
    let mut scene = Scene::without_tap()?;
    let guest = &scene.guest[0];
    scene.cloud.agent.wait_unserved(&guest.port.id, "another agent's interface")?;
    wait_answered(guest, true)?;
    let said = scene.migrate("")?;
    let network = &scene.networks[0].id;
    ensure!(said.contains(&format!("would release the metadata port of network {network}")), "{said}");

    // A command that fails has everything as it was.
    let said = migrate(&scene.cloud, "--apply", "exit 3", &scene.incumbent.start_command());
    let said = format!("{:#}", said.err().context("it did not fail")?);
    ensure!(said.contains("what had been done is undone"), "{said}");
    ensure!(said.contains("the other agent was seen serving again"), "{said}");
    scene.is_untouched()?;
    scene.cloud.agent.wait_unserved(&guest.port.id, "another agent's interface")?;
    wait_answered(guest, true)?;
    // The same for one that is interrupted.
    let said = hang_up(&scene)?;
    for words in ["interrupted by SIGHUP", "what had been done is undone", "seen serving again"] {
        ensure!(said.contains(words), "{words:?} is not in\n{said}");
    }
    scene.is_untouched()?;
    scene.cloud.agent.wait_unserved(&guest.port.id, "another agent's interface")?;
    wait_answered(guest, true)?;

    let asked = while_asking(guest, |_| {
        let said = scene.migrate("--apply")?;
        ensure!(said.ends_with("done\n"), "{said}");
        Ok(())
    })?;
    ensure!(asked.gap() < REBOUND, "{:?}", asked.gap());
    scene.cloud.agent.wait_station(guest)?;
    wait_answered(guest, false)?;
    scene.wait_removed()?;

    let asked = while_asking(guest, |_| {
        let said = scene.migrate("--back --apply")?;
        ensure!(said.ends_with("done\n"), "{said}");
        Ok(())
    })?;
    ensure!(asked.gap() < REBOUND, "{:?}", asked.gap());
    ensure!(scene.cloud.agent.wait_end()?.code() == Some(LEFT));
    wait_answered(&scene.guest[0], true)
}

#[test]
fn what_is_in_the_way_is_told_before_anything_is_changed() -> Result<()> {
    let mut scene = Scene::with_tap()?;
    // No service of systemd's, and no command.
    let line = scene.cloud.agent.command_line("migrate");
    let mut command = netns::command_in(&scene.cloud.chassis.host().path(), "sh")?;
    let output = command.arg("-c").arg(format!("{line} --apply")).output()?;
    let said = String::from_utf8(output.stderr)?;
    ensure!(
        !output.status.success() && said.contains("--stop") && said.contains("nothing was changed"),
        "{said}"
    );

    // Somebody else's process among haproxies.
    let namespace = format!("--net=/run/netns/ovnmeta-{}", scene.networks[0].id);
    let mut stranger = Command::new("nsenter").arg(namespace).words("sleep 300").spawn()?;
    let said = until("the process is seen", REBOUND, || {
        let said = scene.refused("")?;
        ensure!(said.contains("(sleep) is in ovnmeta-"), "{said}");
        Ok(said)
    });
    stranger.kill()?;
    stranger.wait()?;
    ensure!(said?.contains("nothing was changed"));

    // A port that is not served, which the other agent may serve.
    scene.cloud.chassis.stop_tap(&scene.guest[0])?;
    scene.cloud.agent.wait_unserved(&scene.guest[0].port.id, "there is no device")?;
    let said = scene.refused("--apply")?;
    ensure!(
        said.contains("is not served by this agent: there is no device") && said.contains("--force"),
        "{said}"
    );

    scene.cloud.agent.stop()?;
    let said = scene.refused("--apply")?;
    ensure!(said.contains("this agent does not serve here: start it first"), "{said}");
    scene.is_untouched()
}
