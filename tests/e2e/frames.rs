//! The log of the datapath: every frame that is ours, in words, for those ports and for as long as somebody wants it.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use metadata_tests::{
    agent::Agent,
    check::own_identity,
    cloud::Cloud,
    guest::{Generation, Guest},
    wait::until,
};

const SOON: Duration = Duration::from_secs(30);

/// Lines of the log about frames.
fn told(agent: &Agent) -> Result<Vec<String>> {
    let log = agent.log()?;
    Ok(log.lines().filter(|line| line.contains(" datapath: frame ")).map(str::to_owned).collect())
}

fn wait_told(agent: &Agent, words: &[&str]) -> Result<()> {
    until(&format!("a frame is told of with {words:?}"), SOON, || {
        let told = told(agent)?;
        let found = told.iter().any(|line| words.iter().all(|word| line.contains(word)));
        ensure!(found, "{told:#?}");
        Ok(())
    })
}

fn set(agent: &Agent, query: &str) -> Result<()> {
    let answer = agent.admin("PUT", &format!("/log?datapath={query}"))?;
    ensure!(answer.status == 200, "{}: {}", answer.status, answer.text());
    Ok(())
}

#[test]
fn frames_are_told_in_words_for_a_port_and_a_time() -> Result<()> {
    let cloud = Cloud::with_inventory()?;
    let [guest, other] = cloud.overlapping_guests()?;
    for guest in [&guest, &other] {
        own_identity(guest)?;
    }
    ensure!(told(&cloud.agent)?.is_empty(), "nobody wanted any");

    set(&cloud.agent, &format!("on&port={}&seconds=600", guest.port.tap))?;
    for guest in [&other, &guest] {
        guest.netns.ip("neigh flush dev eth0")?;
        own_identity(guest)?;
    }
    let Guest { port, .. } = &guest;
    let (tap, id) = (format!("tap={}", port.tap), format!("port=\"{}\"", port.id));
    let (there, back) = (format!("{}:", port.address), format!("169.254.169.254:80 > {}:", port.address));
    for words in [
        ["outcome=\"redirected\"", &there, "> 169.254.169.254:80, TCP SYN", "action=\"forwarded\""],
        ["outcome=\"replied\"", &back, "TCP SYN ACK", "action=\"forwarded\""],
        ["outcome=\"redirected\"", &there, "TCP ACK FIN", "action=\"forwarded\""],
    ] {
        wait_told(&cloud.agent, &[&words[..], &[&tap, &id]].concat())?;
    }
    ensure!(
        told(&cloud.agent)?.iter().all(|line| line.contains(&tap)),
        "another port's: {:#?}",
        told(&cloud.agent)?
    );

    // Everything, and what is dropped with its reason.
    set(&cloud.agent, "on")?;
    guest.enable_ipv6(Generation::Eui64)?;
    let reset = stray_reset();
    guest.send_packet(&reset)?;
    let other_tap = format!("tap={}", other.port.tap);
    own_identity(&other)?;
    wait_told(
        &cloud.agent,
        &["outcome=\"unknown_source\"", "action=\"dropped\"", "TCP RST", "192.0.2.77:4000 >", &tap],
    )?;
    wait_told(&cloud.agent, &["outcome=\"redirected\"", &other_tap])?;

    // A flood is told of in part, and says so.
    let before = told(&cloud.agent)?.len();
    let stop = AtomicBool::new(false);
    let sent = thread::scope(|scope| -> Result<u64> {
        let flooding = scope.spawn(|| guest.flood(&stop));
        let seen = wait_told(&cloud.agent, &["left_out="]);
        stop.store(true, Ordering::Relaxed);
        let sent = flooding.join().ok().context("the flood panicked")??;
        seen.map(|()| sent)
    })?;
    let lines = told(&cloud.agent)?.len() - before;
    ensure!((lines as u64) < sent, "{lines} lines about {sent} frames");

    // It ends by itself, and by a word.
    set(&cloud.agent, "on&seconds=1")?;
    cloud.agent.wait_logged(&["datapath", "the time for it is over"])?;
    let before = told(&cloud.agent)?.len();
    own_identity(&guest)?;
    set(&cloud.agent, "on")?;
    set(&cloud.agent, "off")?;
    own_identity(&guest)?;
    // The log is written a moment later.
    thread::sleep(Duration::from_secs(1));
    ensure!(told(&cloud.agent)?.len() == before, "it goes on");

    let answer = cloud.agent.admin("PUT", "/log?datapath=on&port=nobody")?;
    ensure!(answer.status == 404 && answer.text().contains("nobody"), "{answer:?}");
    let (status, text) =
        cloud.agent.tells(&["log", "--datapath", "on", "--port", &port.id, "--seconds", "1"])?;
    ensure!(status == 0 && text.contains("are logged for 1 s"), "{status}: {text}");
    Ok(())
}

/// A reset of a connection that never was, from an address that nobody has asked from.
fn stray_reset() -> Vec<u8> {
    let ip = [0x45, 0, 0, 40, 0, 1, 0x40, 0, 64, 6, 0, 0, 192, 0, 2, 77, 169, 254, 169, 254];
    let tcp = [0x0f, 0xa0, 0, 80, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, 0x04, 0, 0, 0, 0, 0, 0];
    [ip, tcp].concat()
}
