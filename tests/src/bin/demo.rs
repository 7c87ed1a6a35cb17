//! The demo: two guests with one address in two networks ask one service who they are.
#![forbid(unsafe_code)]

use std::{
    process::ExitCode,
    sync::mpsc::{self, Receiver},
    thread,
};

use anyhow::{Context as _, Result, ensure};
use clap::Parser;
use metadata_tests::{
    agent::Options,
    check::{META_DATA, is_identity_of},
    cloud::{Chassis, Cloud},
    guest::Guest,
    http::Response,
    ovn::Lab,
    stage::Stage,
};
use nix::sys::signal::{SigSet, Signal};
use serde_json::Value;

const NAMES: [&str; 2] = ["red", "blue"];
const LABEL: usize = 14;
const COLUMN: usize = 38;
/// Those that tell the story; the admin socket has them all.
const COUNTERS: [&str; 5] = ["redirected", "replied", "arp_answered", "source_learned", "unknown_port"];

/// Two guests with the same address in two networks each get their own metadata.
#[derive(Debug, Parser)]
struct Arguments {
    /// On a real OVN and Open vSwitch, with addresses by DHCP, instead of bridges and a static inventory.
    #[arg(long)]
    ovn: bool,
    /// Leave everything running until Ctrl-C.
    #[arg(long)]
    keep: bool,
}

fn main() -> ExitCode {
    match demonstrate(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn demonstrate(arguments: &Arguments) -> Result<()> {
    let interrupts = interrupts()?;
    if arguments.ovn {
        println!("Building a chassis with OVN and Open vSwitch ...");
        let cloud = Cloud::on(Lab::start()?, &Options::default())?;
        let guests = cloud.overlapping_guests()?;
        run(cloud, &guests, &interrupts, arguments.keep)
    } else {
        println!("Building a stage with two bridges and a static inventory ...");
        let cloud = Cloud::on(Stage::start()?, &Options::default())?;
        let guests = cloud.overlapping_guests()?;
        run(cloud, &guests, &interrupts, arguments.keep)
    }
}

fn run<C: Chassis>(
    mut cloud: Cloud<C>,
    guests: &[Guest; 2],
    interrupts: &Receiver<()>,
    keep: bool,
) -> Result<()> {
    for (guest, name) in guests.iter().zip(NAMES) {
        cloud.nova.set_user_data(&guest.port, format!("#cloud-config for {name}"));
    }
    show(&cloud, guests)?;
    cloud.quiet = true;
    if keep {
        println!("\nIt runs until Ctrl-C. Inside a guest:");
        for guest in guests {
            let namespace = guest.netns.name();
            println!("  ip netns exec {namespace} busybox wget -qO- http://169.254.169.254{META_DATA}");
        }
        println!("What the agent knows:\n  {}", cloud.agent.command_line("show ports"));
        interrupts.recv().context("nobody listens for Ctrl-C")?;
        println!();
    } else {
        ensure!(interrupts.try_recv().is_err(), "interrupted");
    }
    println!("Cleaning up.");
    Ok(())
}

fn show<C: Chassis>(cloud: &Cloud<C>, guests: &[Guest; 2]) -> Result<()> {
    println!();
    row("guest", &NAMES);
    row("namespace", &guests.each_ref().map(|guest| guest.netns.name()));
    row("tap", &guests.each_ref().map(|guest| guest.port.tap.as_str()));
    row("address", &guests.each_ref().map(|guest| guest.port.address.to_string()));

    println!("\n$ curl http://169.254.169.254{META_DATA}");
    let answers = ask(guests, META_DATA)?;
    let documents = answers.each_ref().map(|answer| serde_json::from_slice::<Value>(&answer.body));
    for key in ["uuid", "project_id", "hostname"] {
        row(
            key,
            &documents.each_ref().map(|document| match document {
                Ok(document) => document[key].as_str().unwrap_or("-").to_owned(),
                Err(_) => "-".to_owned(),
            }),
        );
    }
    for target in ["/latest/meta-data/instance-id", "/latest/user-data"] {
        println!("\n$ curl http://169.254.169.254{target}");
        row("", &ask(guests, target)?.map(|answer| answer.text()));
    }

    println!("\nThe instance that belongs to that tap");
    row("uuid", &guests.each_ref().map(|guest| guest.port.instance.as_str()));
    let verdicts = [0, 1].map(|index| is_identity_of(&guests[index].port, &answers[index]));
    row(
        "the answer was",
        &verdicts.each_ref().map(|verdict| if verdict.is_ok() { "its own" } else { "WRONG" }),
    );

    println!("\nThe datapath counted");
    let counters = cloud.agent.counters()?;
    let counted = COUNTERS.iter().filter_map(|name| Some(format!("{name} {}", counters.get(*name)?)));
    println!("  {}", counted.collect::<Vec<_>>().join(", "));
    for (verdict, name) in verdicts.into_iter().zip(NAMES) {
        verdict.with_context(|| format!("the guest {name} got a wrong answer"))?;
    }
    Ok(())
}

fn ask(guests: &[Guest; 2], target: &str) -> Result<[Response; 2]> {
    let ask =
        |guest: &Guest| guest.get(target).with_context(|| format!("GET {target} from {}", guest.port.tap));
    Ok([ask(&guests[0])?, ask(&guests[1])?])
}

fn row(label: &str, cells: &[impl AsRef<str>; 2]) {
    println!("  {label:LABEL$}  {:COLUMN$}  {}", cells[0].as_ref(), cells[1].as_ref());
}

/// Ctrl-C asks for the end; a second one does not wait for it (what is left behind, the next start removes).
fn interrupts() -> Result<Receiver<()>> {
    let signals: SigSet = [Signal::SIGINT, Signal::SIGTERM].into_iter().collect();
    // Before there is any other thread, so that all of them inherit it.
    signals.thread_block().context("cannot block signals")?;
    let (interrupt, interrupts) = mpsc::channel();
    thread::spawn(move || {
        while signals.wait().is_ok() {
            if interrupt.send(()).is_err() {
                break;
            }
            if signals.wait().is_ok() {
                std::process::exit(130);
            }
        }
    });
    Ok(interrupts)
}
