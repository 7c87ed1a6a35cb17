//! A host whose kernel has no IPv6: guests are served over IPv4, and what is missing is said. Runs in the machines of `cargo xtask
//! vm-test --without-ipv6`.

use anyhow::{Result, ensure};
use metadata_tests::{
    agent::{Agent, Options},
    check::own_identity,
    cloud::{Chassis as _, Cloud},
    kernel,
    nova::Nova,
    ovn::{Datapath, Lab},
};

const NOTE: &str = "IPv6 is off on this host: guests that ask http://[fe80::a9fe:a9fe] get no answer";

#[test]
#[ignore = "for a kernel without IPv6: cargo xtask vm-test --without-ipv6"]
fn guests_are_served_over_ipv4_and_the_rest_is_said() -> Result<()> {
    ensure!(!kernel::has_ipv6(), "this kernel has IPv6");
    let lab = Lab::start_on(Datapath::Kernel)?;
    let nova = Nova::start(lab.host())?;
    let agent = Agent::start(&lab, &Options::default())?;
    let mut cloud = Cloud { agent, nova, chassis: lab, quiet: true };
    for guest in &cloud.overlapping_guests()? {
        own_identity(guest)?;
        // A note, and nothing that is wrong with the port.
        let (status, text) = cloud.agent.tells(&["explain", &guest.port.tap])?;
        ensure!(status == 0 && text.contains(NOTE) && text.contains("nothing is wrong"), "{status}:\n{text}");
    }
    cloud.agent.wait_ready()?;
    cloud.agent.wait_logged(&["this kernel has no IPv6: guests are served over IPv4 only"]).map(drop)
}
