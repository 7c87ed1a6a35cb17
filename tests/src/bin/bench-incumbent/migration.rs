//! `migrate` with the real agent: a node goes from it to this one and back while its guests ask.

use std::{
    path::Path,
    process::Command,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use metadata_tests::{check::own_identity, command::run, ovn::Lab, wait::until};

use crate::{
    Arguments,
    changes::{Asked, Seen, ask, wait_recovered},
    pair::Pair,
};

/// Exit status of an agent that was told to leave.
const LEFT: i32 = 79;
const REBOUND: Duration = Duration::from_secs(30);

pub(crate) fn there_and_back(arguments: &Arguments) -> Result<()> {
    println!(
        "\n| what happens | requests that failed | the longest time without an answer |\n| --- | --- | --- |"
    );
    let mut pair = Pair::start(arguments, 2)?;
    start(&pair)?;
    watched(&mut pair, "guests with taps: this agent starts beside the other one", |pair| pair.start_ours())?;
    migrate(&mut pair, "guests with taps")?;
    drop(pair);

    let mut pair = Pair::without_tap(arguments)?;
    start(&pair)?;
    let port = &pair.guests[0].port.id;
    pair.cloud.agent.wait_unserved(port, "another agent's interface")?;
    migrate(&mut pair, "a guest without a tap")
}

/// Starts the other agent as an operator's command does, and waits until it serves.
fn start(pair: &Pair) -> Result<()> {
    run(Command::new("sh").arg("-c").arg(pair.neutron.start_command(&pair.cloud.chassis)?))?;
    for (network, guest) in pair.networks.iter().zip(&pair.guests) {
        pair.neutron.wait_provisioned(&network.id)?;
        until("the other agent answers", REBOUND, || own_identity(guest))?;
    }
    Ok(())
}

fn migrate(pair: &mut Pair, guests: &str) -> Result<()> {
    let said = command(pair, "")?;
    eprintln!("{said}");
    for network in &pair.networks {
        ensure!(said.contains(&format!("would remove what served network {}", network.id)), "{said}");
    }
    ensure!(said.contains("found: neutron-ovn-metadata-agent"), "{said}");
    watched(pair, &format!("{guests}: migrate --apply"), |pair| {
        let said = command(pair, "--apply")?;
        ensure!(said.ends_with("done\n"), "{said}");
        for network in &pair.networks {
            pair.neutron.wait_removed(&network.id)?;
            has_port(&pair.cloud.chassis, &network.id, false)?;
        }
        until("all of the other agent's processes have ended", REBOUND, || {
            ensure!(!pair.neutron.is_there()?);
            Ok(())
        })
    })?;
    watched(pair, &format!("{guests}: migrate --back --apply"), |pair| {
        let said = command(pair, "--back --apply")?;
        ensure!(said.ends_with("done\n"), "{said}");
        let status = pair.cloud.agent.wait_end()?;
        ensure!(status.code() == Some(LEFT), "{status}");
        pair.networks.iter().try_for_each(|network| has_port(&pair.cloud.chassis, &network.id, true))
    })?;
    for (network, guest) in pair.networks.iter().zip(&pair.guests) {
        pair.neutron.wait_provisioned(&network.id)?;
        own_identity(guest).context("through the other agent")?;
    }
    Ok(())
}

/// Output of `migrate`, where the switch and the other agent's devices are.
fn command(pair: &Pair, arguments: &str) -> Result<String> {
    let chassis = &pair.cloud.chassis;
    let mut command = chassis.switch().command("sh")?;
    let line = pair.cloud.agent.command_line("migrate");
    command.arg("-c").arg(format!("{line} {arguments} --stop \"$STOP\" --start \"$START\" 2>&1"));
    run(command.env("STOP", pair.neutron.stop_command()).env("START", pair.neutron.start_command(chassis)?))
}

fn has_port(lab: &Lab, network: &str, expected: bool) -> Result<()> {
    let ports = run(lab.vsctl().args(["list-ports", "br-int"]))?;
    let (device, namespace) = (format!("tap{}0", &network[..10]), format!("ovnmeta-{network}"));
    let is_there = ports.lines().any(|port| port == device);
    let has_namespace = Path::new("/run/netns").join(namespace).exists();
    ensure!(
        is_there == expected && has_namespace == expected,
        "{device}: {is_there}, its namespace: {has_namespace}"
    );
    Ok(())
}

/// Does something while all guests ask, and tells what they noticed.
fn watched(pair: &mut Pair, what: &str, work: impl FnOnce(&mut Pair) -> Result<()>) -> Result<()> {
    let is_over = AtomicBool::new(false);
    let guests = std::mem::take(&mut pair.guests);
    let asked: Vec<_> = guests.iter().map(|_| Asked::default()).collect();
    let done = thread::scope(|scope| {
        let asking: Vec<_> = guests
            .iter()
            .zip(&asked)
            .map(|(guest, asked)| scope.spawn(|| ask(guest, asked, &is_over)))
            .collect();
        let done = asked
            .iter()
            .try_for_each(wait_recovered)
            .and_then(|()| work(pair))
            .and_then(|()| asked.iter().try_for_each(wait_recovered));
        is_over.store(true, Ordering::Relaxed);
        for thread in asking {
            thread.join().ok().context("a guest's thread panicked")?;
        }
        done
    });
    pair.guests = guests;
    done?;
    let seen: Vec<_> = asked.into_iter().map(Seen::of).collect();
    let [failed, all] =
        [|seen: &Seen| seen.failed, |seen: &Seen| seen.all].map(|of| seen.iter().map(of).sum::<usize>());
    let gap = seen.iter().map(|seen| seen.gap).max().unwrap_or_default();
    println!("| {what} | {failed} of {all} | {:.2} s |", gap.as_secs_f64());
    Ok(())
}
