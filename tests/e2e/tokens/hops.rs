//! Hop limits: what keeps an answer in the guest that it is for.

use anyhow::{Context as _, Result, ensure};
use metadata_tests::{
    capture::Capture,
    check::{META_DATA, own_identity},
    cloud::Chassis as _,
    command::{Words as _, run},
    guest::{Generation, Guest, METADATA_V6},
    netns::Namespace,
    wait::until,
};

use super::{SOON, TOKEN, TTL, cloud, is_good, options, token};

/// TTL of the segments with bytes in them that arrive while something is done.
fn ttls(guest: &Guest, done: impl FnOnce() -> Result<()>) -> Result<Vec<u8>> {
    let capture = Capture::start(guest)?;
    done()?;
    let segments = capture.segments()?;
    let with_data = segments.iter().filter(|segment| segment.packet() > 100);
    Ok(with_data.map(|segment| segment.bytes()[14 + 8]).collect())
}

#[test]
fn a_hop_limit_keeps_answers_in_the_guest() -> Result<()> {
    let (mut cloud, [guest, _]) = cloud(&["token_mode = optional", "token_hop_limit = 1"])?;
    // A container behind the guest, which routes for it.
    let container = Namespace::create(cloud.chassis.sandbox(), "container")?;
    guest.netns.ip(format!("link add inner type veth peer name eth0 netns {}", container.name()))?;
    guest.netns.ip("addr add 10.77.0.1/24 dev inner")?;
    guest.netns.ip("link set inner up")?;
    guest.netns.sysctl("net.ipv4.ip_forward", "1")?;
    container.ip("addr add 10.77.0.2/24 dev eth0")?;
    container.ip("link set eth0 up")?;
    container.ip("route add default via 10.77.0.1")?;
    let curl = |arguments: &str| -> Result<String> {
        run(container.command("curl")?.words(format!("-sS --fail --max-time 5 {arguments}")))
    };
    let put = format!("-X PUT -H {TTL}:60 http://169.254.169.254{TOKEN}");
    let get = "http://169.254.169.254/latest/meta-data/instance-id";
    until("the container is served", SOON, || curl(get))?;
    let unanswered = format!("{:#}", curl(&put).err().context("the container got a token")?);
    assert!(unanswered.contains("timed out"), "{unanswered}");
    let asked = ttls(&guest, || token(&guest).map(drop))?;
    assert_eq!(asked, [1], "the answer with the token");
    assert_eq!(ttls(&guest, || own_identity(&guest))?, [64, 64]);
    // What comes after it on the connection has the same limit, since the token may have to be sent again.
    let mut connection = guest.connect()?;
    let kept = ttls(&guest, || {
        for (method, target) in [("GET", META_DATA), ("PUT", TOKEN), ("GET", META_DATA)] {
            ensure!(connection.request(method, target, &[(TTL, "60")], b"")?.status == 200);
        }
        Ok(())
    })?;
    assert_eq!(kept, [64, 1, 1]);

    let lines = ["token_mode = optional", "token_hop_limit = 2", "answer_hop_limit = 1"];
    cloud.agent.configure(&cloud.chassis, &options(&lines))?;
    let mut former = cloud.agent.replace()?;
    former.wait()?;
    cloud.agent.wait_ready()?;
    let all = ttls(&guest, || {
        own_identity(&guest)?;
        token(&guest)?;
        // What is no request is answered, too.
        let mut connection = guest.connect()?;
        connection.send(b"nonsense\r\n\r\n")?;
        ensure!(connection.response("GET")?.status == 400);
        Ok(())
    })?;
    assert_eq!(all, [1, 1, 1, 1]);
    let unanswered = format!("{:#}", curl(get).err().context("the container got an answer")?);
    assert!(unanswered.contains("timed out"), "{unanswered}");
    // Over IPv6 as well.
    guest.enable_ipv6(Generation::Eui64)?;
    let url = format!("http://[{METADATA_V6}%25eth0]");
    let put = format!("-sS --fail --max-time 20 -X PUT -H {TTL}:60 {url}{TOKEN}");
    let text = run(guest.netns.command("curl")?.words(put))?;
    is_good(&guest, text.trim())
}
