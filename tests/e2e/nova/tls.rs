//! Nova behind TLS: who it is, who we are, and certificates that are renewed meanwhile.

use std::fs;

use anyhow::{Result, ensure};
use metadata_tests::{
    agent::Options,
    check::META_DATA,
    cloud::{Chassis as _, Cloud},
    pki::Authority,
    stage::Stage,
    upstream::{Script, Upstream},
    wait::until,
};

use super::{OK, SOON, address, answer};

#[test]
fn nova_behind_tls() -> Result<()> {
    let stage = Stage::start()?;
    let (nova_ca, our_ca) =
        (Authority::new(stage.sandbox(), "nova-ca")?, Authority::new(stage.sandbox(), "our-ca")?);
    our_ca.issue("client")?;
    let upstream =
        Upstream::start_with(stage.host(), address(8801), answer(), Some(nova_ca.server(Some(&our_ca))?))?;
    let more = vec![
        ("DEFAULT", "nova_metadata_protocol = https".to_owned()),
        ("DEFAULT", "nova_metadata_port = 8801".to_owned()),
        // Each has connections of its own, and it is to be seen when they are gone.
        ("metadata_ebpf", "workers = 1".to_owned()),
        ("DEFAULT", format!("auth_ca_cert = {}", nova_ca.file("ca.pem"))),
        ("DEFAULT", format!("nova_client_cert = {}", our_ca.file("client.pem"))),
        ("DEFAULT", format!("nova_client_priv_key = {}", our_ca.file("client.key"))),
    ];
    let cloud = Cloud::on(stage, &Options { more, ..Options::default() })?;
    let [guest, _] = cloud.overlapping_guests()?;
    for _ in 0..20 {
        assert_eq!(guest.get(META_DATA)?.text(), "ok");
    }
    assert!(upstream.connections() < 5, "{} connections for 20 requests", upstream.connections());
    let body: Vec<u8> = (0..60_000).map(|index| (index % 251) as u8).collect();
    assert_eq!(guest.request("POST", "/openstack/latest/password", &[], &body)?.text(), "ok");
    assert!(upstream.take_requests().iter().any(|request| request.ends_with(&body)));

    // Nova's certificate changes its authority: refused, until ours does too, without a restart.
    let other_ca = Authority::new(cloud.chassis.sandbox(), "other-ca")?;
    upstream.set_tls(other_ca.server(Some(&our_ca))?);
    upstream.set_script(Script::AnswerAndClose(OK.to_vec()));
    until("connections to the old server are gone", SOON, || {
        let response = guest.get(META_DATA)?;
        ensure!(response.status == 502, "{response:?}");
        Ok(())
    })?;
    until("the log says why", SOON, || {
        let refused = format!("nova's certificate is refused (auth_ca_cert = {})", nova_ca.file("ca.pem"));
        ensure!(cloud.agent.log()?.contains(&refused), "it does not");
        Ok(())
    })?;
    fs::copy(other_ca.file("ca.pem"), nova_ca.file("ca.pem"))?;
    assert_eq!(guest.get(META_DATA)?.text(), "ok");

    // A connection that is still good does not keep what was replaced in use.
    upstream.set_script(answer());
    assert_eq!(guest.get(META_DATA)?.text(), "ok");
    let before = upstream.connections();
    for _ in 0..3 {
        assert_eq!(guest.get(META_DATA)?.text(), "ok");
    }
    assert!(upstream.connections() <= before + 1, "{} connections", upstream.connections());
    fs::copy(our_ca.file("ca.pem"), nova_ca.file("ca.pem"))?;
    until("the new file is used", SOON, || {
        let response = guest.get(META_DATA)?;
        ensure!(response.status == 502, "{response:?}");
        Ok(())
    })?;
    fs::copy(other_ca.file("ca.pem"), nova_ca.file("ca.pem"))?;
    upstream.set_script(Script::AnswerAndClose(OK.to_vec()));
    assert_eq!(guest.get(META_DATA)?.text(), "ok");

    // A client certificate that Nova does not know.
    fs::copy(other_ca.file("ca.pem"), our_ca.file("ca.pem"))?;
    other_ca.issue("client")?;
    for file in ["client.key", "client.pem"] {
        fs::copy(other_ca.file(file), our_ca.file(file))?;
    }
    assert_eq!(guest.get(META_DATA)?.status, 502);
    our_ca.issue("client")?;
    assert_eq!(guest.get(META_DATA)?.text(), "ok");
    // Files that are broken while they are replaced do no harm.
    fs::write(our_ca.file("client.key"), "")?;
    assert_eq!(guest.get(META_DATA)?.text(), "ok");
    Ok(())
}

/// A process that has lost its agent hears of new certificates from the next one.
#[test]
fn certificates_that_were_renewed_while_nobody_was_there_reach_an_orphan() -> Result<()> {
    let stage = Stage::start()?;
    let (former_ca, next_ca) =
        (Authority::new(stage.sandbox(), "former-ca")?, Authority::new(stage.sandbox(), "next-ca")?);
    let upstream =
        Upstream::start_with(stage.host(), address(8801), answer(), Some(former_ca.server(None)?))?;
    let more = vec![
        ("DEFAULT", "nova_metadata_protocol = https".to_owned()),
        ("DEFAULT", "nova_metadata_host = 127.0.0.1:8801".to_owned()),
        ("DEFAULT", format!("auth_ca_cert = {}", former_ca.file("ca.pem"))),
    ];
    let mut cloud = Cloud::on(stage, &Options { more, ..Options::default() })?;
    let [guest, _] = cloud.overlapping_guests()?;
    upstream.set_script(Script::AnswerAndClose(OK.to_vec()));
    let mut kept = guest.connect()?;
    assert_eq!(kept.request("GET", META_DATA, &[], b"")?.text(), "ok");
    cloud.agent.kill()?;
    upstream.set_tls(next_ca.server(None)?);
    fs::copy(next_ca.file("ca.pem"), former_ca.file("ca.pem"))?;
    cloud.agent.resume()?;
    // It has to be greeted anew, by the orphan.
    let response = kept.request("GET", META_DATA, &[], b"")?;
    assert_eq!((response.status, response.text()), (200, "ok".to_owned()));
    cloud.agent.wait_logged(&["a guest-facing process of a former agent still serves"])?;
    assert_eq!(guest.get(META_DATA)?.text(), "ok");
    Ok(())
}

#[test]
fn certificates_are_verified_unless_told_otherwise() -> Result<()> {
    for (insecure, status) in [(false, 502), (true, 200)] {
        let stage = Stage::start()?;
        let (nova_ca, unrelated) =
            (Authority::new(stage.sandbox(), "nova-ca")?, Authority::new(stage.sandbox(), "unrelated")?);
        let _upstream =
            Upstream::start_with(stage.host(), address(8801), answer(), Some(nova_ca.server(None)?))?;
        let more = vec![
            ("DEFAULT", "nova_metadata_protocol = https".to_owned()),
            ("DEFAULT", "nova_metadata_host = 127.0.0.1:8801".to_owned()),
            ("DEFAULT", format!("auth_ca_cert = {}", unrelated.file("ca.pem"))),
            ("DEFAULT", format!("nova_metadata_insecure = {insecure}")),
        ];
        let cloud = Cloud::on(stage, &Options { more, ..Options::default() })?;
        let [guest, _] = cloud.overlapping_guests()?;
        assert_eq!(guest.get(META_DATA)?.status, status, "insecure = {insecure}");
    }
    Ok(())
}

/// `openssl req -x509` makes such ones, and OpenSSL takes them.
#[test]
fn a_certificate_that_is_trusted_itself_is_good() -> Result<()> {
    for (host, is_trusted, status) in
        [("127.0.0.1", true, 200), ("127.0.0.1", false, 502), ("localhost", true, 502)]
    {
        let stage = Stage::start()?;
        let (nova, unrelated) =
            (Authority::new(stage.sandbox(), "nova")?, Authority::new(stage.sandbox(), "unrelated")?);
        let _upstream = Upstream::start_with(stage.host(), address(8801), answer(), Some(nova.itself()?))?;
        let trusted = if is_trusted { nova } else { unrelated };
        let more = vec![
            ("DEFAULT", "nova_metadata_protocol = https".to_owned()),
            ("DEFAULT", format!("nova_metadata_host = {host}:8801")),
            ("DEFAULT", format!("auth_ca_cert = {}", trusted.file("ca.pem"))),
        ];
        let cloud = Cloud::on(stage, &Options { more, ..Options::default() })?;
        let [guest, _] = cloud.overlapping_guests()?;
        assert_eq!(guest.get(META_DATA)?.status, status, "{host}, trusted: {is_trusted}");
    }
    Ok(())
}
