//! Session tokens (IMDSv2): who gets one, what it is good for, for how long, and for whom it is not.

mod hops;
mod modes;

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use metadata_tests::{
    agent::Options,
    check::{META_DATA, own_identity},
    cloud::Cloud,
    command::{Words as _, run},
    guest::Guest,
    http::Response,
    port::Port,
    stage::{Path, Stage},
    wait::until,
};

const TOKEN: &str = "/latest/api/token";
const TTL: &str = "X-aws-ec2-metadata-token-ttl-seconds";
const HEADER: &str = "X-aws-ec2-metadata-token";
const USER_DATA: &str = "/latest/user-data";
const SOON: Duration = Duration::from_secs(60);

fn options(lines: &[&str]) -> Options {
    let more = lines.iter().map(|line| ("metadata_ebpf", (*line).to_owned())).collect();
    Options { more, ..Options::default() }
}

/// Two guests with one address, each with user data of its own.
fn cloud(lines: &[&str]) -> Result<(Cloud<Stage>, [Guest; 2])> {
    let cloud = Cloud::on(Stage::start()?, &options(lines))?;
    let guests = cloud.overlapping_guests()?;
    for guest in &guests {
        cloud.nova.set_user_data(&guest.port, guest.port.instance.clone());
    }
    Ok((cloud, guests))
}

fn ask_for_token(guest: &Guest, seconds: &str) -> Result<Response> {
    Ok(guest.request("PUT", TOKEN, &[(TTL, seconds)], b"")?)
}

fn token(guest: &Guest) -> Result<String> {
    let response = ask_for_token(guest, "21600")?;
    ensure!(response.status == 200, "{response:?}");
    Ok(response.text())
}

fn get_with(guest: &Guest, target: &str, token: &str) -> Result<Response> {
    Ok(guest.request("GET", target, &[(HEADER, token)], b"")?)
}

/// The token is good for that guest.
fn is_good(guest: &Guest, token: &str) -> Result<()> {
    let response = get_with(guest, USER_DATA, token)?;
    ensure!(response.status == 200 && response.text() == guest.port.instance, "{response:?}");
    Ok(())
}

/// It is worth nothing to that guest, on any path, and Nova hears nothing of it.
fn is_worthless(cloud: &Cloud<Stage>, guest: &Guest, token: &str) -> Result<()> {
    cloud.nova.take_requests();
    for target in [USER_DATA, META_DATA, "/"] {
        let response = get_with(guest, target, token)?;
        ensure!(response.status == 401 && !response.text().contains(token), "{target}: {response:?}");
    }
    let heard = cloud.nova.take_requests();
    ensure!(heard.is_empty(), "Nova heard {heard:?}");
    Ok(())
}

#[test]
fn a_token_is_what_aws_says_it_is() -> Result<()> {
    let (cloud, [guest, _]) = cloud(&["token_mode = required"])?;
    cloud.nova.take_requests();
    let given = ask_for_token(&guest, "300")?;
    ensure!(given.status == 200, "{given:?}");
    assert_eq!(given.header(TTL), Some("300"));
    assert_eq!(given.header("Content-Type"), Some("text/plain"));
    let token = given.text();
    for (method, headers, status) in [
        ("PUT", &[][..], 400),
        ("PUT", &[(TTL, "0")], 400),
        ("PUT", &[(TTL, "21601")], 400),
        ("PUT", &[(TTL, "60"), ("X-Forwarded-For", "192.168.1.77")], 403),
        ("PUT", &[(TTL, "60"), ("Via", "1.1 proxy")], 403),
        ("GET", &[(HEADER, token.as_str())], 405),
        ("DELETE", &[(HEADER, token.as_str())], 405),
    ] {
        let response = guest.request(method, TOKEN, headers, b"")?;
        ensure!(response.status == status, "{method} {headers:?}: {response:?}");
        assert_eq!(response.header("Allow"), (status == 405).then_some("PUT"), "{response:?}");
        assert_eq!(response.header("Server"), Some("metadata-agent"));
    }
    // Whoever sends a body has it read, and may go on on the same connection.
    let mut connection = guest.connect()?;
    for _ in 0..2 {
        let again = connection.request("PUT", TOKEN, &[(TTL, "300")], b"what nobody wants")?;
        ensure!(again.status == 200 && again.text() != token, "{again:?}");
    }
    let missing = connection.request("GET", USER_DATA, &[], b"")?;
    ensure!(missing.status == 401 && missing.header("Connection").is_none(), "{missing:?}");
    assert!(cloud.nova.take_requests().is_empty(), "nothing of this is Nova's");

    let answered = connection.request("GET", USER_DATA, &[(HEADER, &token)], b"")?;
    ensure!(answered.status == 200 && answered.text() == guest.port.instance, "{answered:?}");
    own_identity(&guest)?;
    for request in cloud.nova.take_requests() {
        assert!(request.header(HEADER).is_empty(), "{request:?}");
        assert!(!format!("{request:?}").contains(&token), "{request:?}");
    }
    // No secret is told: in no line, number or answer to the operator.
    for outcome in
        ["issued", "accepted", "token_missing", "token_ttl", "forwarded", "token_method", "without"]
    {
        cloud.agent.wait_logged(&["request", &guest.port.id, &format!("token=\"{outcome}\"")])?;
    }
    let log = cloud.agent.log()?;
    let told =
        [log, cloud.agent.admin("GET", "/metrics")?.text(), cloud.agent.admin("GET", "/ports")?.text()];
    let kept = std::fs::read_to_string(cloud.agent.run_dir().join("token.key"))?;
    let key = kept.split("\"key\":\"").nth(1).and_then(|rest| rest.split('"').next()).context("no key")?;
    for text in told {
        assert!(!text.contains(&token) && !text.contains(key), "{text}");
    }
    Ok(())
}

/// As it stands in AWS' documentation, but for the path of the example.
#[test]
fn curl_as_aws_documents_it() -> Result<()> {
    let (_cloud, [guest, _]) = cloud(&["token_mode = required"])?;
    let script = "TOKEN=`curl -sS -X PUT \"http://169.254.169.254/latest/api/token\" \
                  -H \"X-aws-ec2-metadata-token-ttl-seconds: 21600\"` \
                  && curl -sS --fail -H \"X-aws-ec2-metadata-token: $TOKEN\" http://169.254.169.254/latest/user-data";
    let text = run(guest.netns.command("sh")?.args(["-c", script]))?;
    assert_eq!(text, guest.port.instance);
    let without =
        run(guest.netns.command("curl")?.words("-sS --fail http://169.254.169.254/latest/user-data"));
    let error = format!("{:#}", without.err().context("it had it without a token")?);
    assert!(error.contains("401"), "{error}");
    Ok(())
}

#[test]
fn a_token_is_worth_nothing_to_anybody_else() -> Result<()> {
    let (cloud, [mut red, blue]) = cloud(&["token_mode = optional"])?;
    assert_eq!(red.port.address, blue.port.address);
    let tokens = [token(&red)?, token(&blue)?];
    for (guest, own, other) in [(&red, &tokens[0], &tokens[1]), (&blue, &tokens[1], &tokens[0])] {
        is_good(guest, own)?;
        is_worthless(&cloud, guest, other)?;
    }
    // The same port on a new tap is another assignment, and asks for another token.
    cloud.chassis.stop_tap(&red)?;
    cloud.agent.wait_gone(&red.port.tap)?;
    cloud.chassis.start_tap(&red, Path::OnLink)?;
    cloud.agent.wait_served(&red, cloud.chassis.ifindex(&red)?)?;
    is_worthless(&cloud, &red, &tokens[0])?;
    is_worthless(&cloud, &blue, &tokens[0])?;
    is_good(&blue, &tokens[1])?;
    let renewed = token(&red)?;
    is_good(&red, &renewed)?;

    // Another instance gets the very port, tap, address and MAC.
    let heir =
        Port { instance: blue.port.instance.replace(|c: char| c.is_ascii_digit(), "7"), ..red.port.clone() };
    cloud.nova.add_instance(&heir);
    cloud.nova.set_user_data(&heir, heir.instance.clone());
    cloud.chassis.write_inventory(&[&heir, &blue.port])?;
    cloud.agent.reload()?;
    red.port = heir;
    cloud.agent.wait_served(&red, cloud.chassis.ifindex(&red)?)?;
    is_worthless(&cloud, &red, &renewed)?;
    let heirs = token(&red)?;
    is_good(&red, &heirs)?;
    // And another project with the same instance, as after a transfer.
    let moved = Port { project: blue.port.project.clone(), ..red.port.clone() };
    cloud.nova.add_instance(&moved);
    cloud.chassis.write_inventory(&[&moved, &blue.port])?;
    cloud.agent.reload()?;
    until("its project's own token is wanted", SOON, || is_worthless(&cloud, &red, &heirs))
}

#[test]
fn tokens_survive_the_agent() -> Result<()> {
    let (mut cloud, [guest, other]) = cloud(&["token_mode = required"])?;
    let token = token(&guest)?;
    cloud.agent.stop()?;
    cloud.agent.resume()?;
    cloud.agent.wait_ready()?;
    is_good(&guest, &token)?;
    cloud.agent.kill()?;
    cloud.agent.resume()?;
    cloud.agent.wait_ready()?;
    is_good(&guest, &token)?;
    let mut former = cloud.agent.replace()?;
    former.wait()?;
    cloud.agent.wait_ready()?;
    is_good(&guest, &token)?;
    is_worthless(&cloud, &other, &token)?;
    // The node's key was replaced, and the former one still opens.
    let file = cloud.agent.run_dir().join("token.key");
    let mut kept: serde_json::Value = serde_json::from_slice(&std::fs::read(&file)?)?;
    kept["previous"] = kept["current"].clone();
    kept["current"]["key"] = format!("{}=", "A".repeat(43)).into();
    std::fs::write(&file, kept.to_string())?;
    let mut former = cloud.agent.replace()?;
    former.wait()?;
    cloud.agent.wait_ready()?;
    is_good(&guest, &token)?;
    is_good(&guest, &self::token(&guest)?)?;
    is_worthless(&cloud, &other, &token)?;
    // An operator who wants all of them to end removes the key.
    std::fs::remove_file(cloud.agent.run_dir().join("token.key"))?;
    let mut former = cloud.agent.replace()?;
    former.wait()?;
    cloud.agent.wait_ready()?;
    is_worthless(&cloud, &guest, &token)?;
    cloud.agent.stop()?;
    cloud.agent.clean_up()?;
    assert!(!cloud.agent.run_dir().exists(), "the run directory is still there");
    Ok(())
}

#[test]
fn a_token_ends_with_its_time() -> Result<()> {
    let (cloud, [guest, _]) = cloud(&["token_mode = optional"])?;
    let asked = Instant::now();
    let short = ask_for_token(&guest, "2")?.text();
    let first = get_with(&guest, USER_DATA, &short)?.status;
    ensure!(first == 200 || asked.elapsed() >= Duration::from_secs(2), "{first} after {:?}", asked.elapsed());
    until("it has expired", SOON, || {
        let response = get_with(&guest, USER_DATA, &short)?;
        ensure!(response.status == 401 && response.text().contains("expired"), "{response:?}");
        Ok(())
    })?;
    assert!(asked.elapsed() >= Duration::from_secs(2), "{:?}", asked.elapsed());
    until("it is counted", SOON, || {
        ensure!(cloud.agent.metric("metadata_tokens_total{outcome=\"token_expired\"}")? >= 1.0);
        Ok(())
    })
}

/// User data needs a token in every spelling of its path.
#[test]
fn no_spelling_gets_around() -> Result<()> {
    let (cloud, [guest, _]) = cloud(&["token_mode = required"])?;
    cloud.nova.take_requests();
    for target in [
        "/latest/%75ser-data",
        "//latest//user-data",
        "/latest/meta-data/../user-data",
        "/latest/meta-data/%2e%2e/user-data",
        "/latest/user-data;x",
        "/latest/user-data?x",
        "/latest/user-data%00",
        "/latest/%2575ser-data",
        "/latest/%zz",
        "http://169.254.169.254/latest/user-data",
        "/openstack/latest/user_data",
        "/openstack/2012-08-10/user_data/",
        "/openstack/latest/password",
        "/openstack/latest/vendor_data2.json",
        "/openstack/content/0000",
    ] {
        for method in ["GET", "HEAD", "POST", "OPTIONS"] {
            let response = guest.request(method, target, &[], b"")?;
            ensure!(response.status == 401, "{method} {target}: {response:?}");
        }
    }
    for bytes in [&b"\x85"[..], b"\xa0", b"\xa0\x85\xa0"] {
        let mut connection = guest.connect()?;
        connection.send(&[b"GET /latest/user-data", bytes, b" HTTP/1.1\r\nHost: x\r\n\r\n"].concat())?;
        assert_eq!(connection.response("GET")?.status, 401);
    }
    assert!(cloud.nova.take_requests().is_empty());
    Ok(())
}

#[test]
fn every_path_may_need_a_token() -> Result<()> {
    let (cloud, [guest, _]) = cloud(&["token_mode = required", "token_required_for = *"])?;
    for target in ["/", META_DATA, "/latest/meta-data/", USER_DATA] {
        assert_eq!(guest.get(target)?.status, 401, "{target}");
    }
    assert!(cloud.nova.take_requests().is_empty());
    is_good(&guest, &token(&guest)?)
}

#[test]
fn what_a_proxy_passed_on_is_refused_with_and_without_tokens() -> Result<()> {
    let (cloud, [guest, _]) = cloud(&["refuse_forwarded = true"])?;
    own_identity(&guest)?;
    cloud.nova.take_requests();
    for header in ["X-Forwarded-For", "forwarded", "VIA"] {
        let response = guest.request("GET", META_DATA, &[(header, "x")], b"")?;
        ensure!(response.status == 403, "{header}: {response:?}");
    }
    assert!(cloud.nova.take_requests().is_empty());
    // Its path is Nova's without tokens.
    assert_eq!(ask_for_token(&guest, "60")?.status, 404);
    until("it is counted", SOON, || {
        let counted = cloud.agent.metric("metadata_refusals_total{reason=\"forwarded\"}")?;
        ensure!(counted == 3.0, "{counted}");
        Ok(())
    })
}

/// A token is asked for within the limits that are for every request.
#[test]
fn asking_for_tokens_has_limits() -> Result<()> {
    let more = ["token_mode = optional", "request_rate = 1", "request_burst = 5"];
    let (cloud, [guest, other]) = cloud(&more)?;
    let mut statuses = Vec::new();
    for _ in 0..20 {
        statuses.push(ask_for_token(&guest, "60")?.status);
        thread::yield_now();
    }
    assert!(statuses.contains(&200) && statuses.contains(&503), "{statuses:?}");
    assert_eq!(ask_for_token(&other, "60")?.status, 200);
    assert!(cloud.nova.take_requests().is_empty());
    Ok(())
}
