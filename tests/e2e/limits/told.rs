//! Limits as an operator hears of them: numbers, the first lines of the log, and a line for each request.

use super::*;

/// The numbers that an operator watches, on the socket and, for reading only, over TCP.
#[test]
fn everything_is_counted() -> Result<()> {
    let (cloud, [guest, _other]) = cloud(&[("metadata_ebpf", "admin_listen = 127.0.0.1:9775")])?;
    own_identity(&guest)?;
    assert_eq!(guest.get("/nothing")?.status, 404);
    guest.connect()?.send(b"nonsense\r\n\r\n")?;
    until("all of it is counted", SOON, || {
        for (name, expected) in [
            ("metadata_requests_total{by=\"nova\",status=\"200\"}", 2.0),
            ("metadata_requests_total{by=\"nova\",status=\"404\"}", 1.0),
            ("metadata_requests_total{by=\"agent\",status=\"400\"}", 1.0),
            ("metadata_refusals_total{reason=\"malformed\"}", 1.0),
            ("metadata_connections_accepted_total", 4.0),
            ("metadata_connections", 0.0),
            ("metadata_request_seconds_count{by=\"nova\"}", 3.0),
            ("metadata_request_seconds_count{by=\"agent\"}", 1.0),
            ("metadata_nova_seconds_count", 3.0),
            ("metadata_nova_up{endpoint=\"127.0.0.1:8775\"}", 1.0),
            // The three requests came one after another.
            ("metadata_ports{identity=\"known\"}", 2.0),
            ("metadata_ready", 1.0),
        ] {
            let value = cloud.agent.metric(name)?;
            ensure!(value == expected, "{name} is {value}, not {expected}");
        }
        ensure!(cloud.agent.metric("metadata_nova_connections_total{endpoint=\"127.0.0.1:8775\"}")? >= 1.0);
        Ok(())
    })?;
    let redirected = cloud.agent.counters()?["redirected"] as f64;
    assert!(cloud.agent.metric("metadata_frames_total{outcome=\"redirected\"}")? >= redirected);

    let ask = |method: &str, target: &str| -> Result<Response> {
        let stream = cloud.chassis.host().run(|| TcpStream::connect("127.0.0.1:9775"))??;
        Ok(Connection::new(stream).request(method, target, &[("Connection", "close")], b"")?)
    };
    let metrics = ask("GET", "/metrics")?;
    assert!(
        metrics.header("Content-Type").is_some_and(|kind| kind.starts_with("application/openmetrics-text"))
    );
    assert!(metrics.text().ends_with("# EOF\n"));
    assert_eq!(ask("GET", "/ready")?.status, 200);
    assert_eq!(ask("PUT", "/log?level=debug")?.status, 403);
    let ports = ask("GET", "/ports")?;
    assert!(ports.status == 403 && !ports.text().contains(&guest.port.instance), "{ports:?}");
    assert_eq!(cloud.agent.admin("PUT", "/log?level=info")?.status, 200);
    // The port that the agent listens at is no guest's.
    assert!(guest.get("/metrics")?.status == 404);
    Ok(())
}

/// The log's first line, the metric and `--version` tell of the same build, and the former of no secret.
#[test]
fn version_files_and_settings_are_told_at_the_start() -> Result<()> {
    let (cloud, _) = cloud(&[("metadata_ebpf", "connection_lifetime = 77")])?;
    let log = cloud.agent.wait_logged(&["starting", "connection_lifetime"])?;
    let first = log.lines().next().context("the log is empty")?;
    let told = run(Command::new(cloud.agent.program()).arg("--version"))?;
    let version = told.trim().strip_prefix("metadata-agent ").with_context(|| told.clone())?;
    for words in [
        format!("version=\"{version}\""),
        "agent.conf\"]".to_owned(),
        "\"[metadata_ebpf] connection_lifetime = 77\"".to_owned(),
        "\"[DEFAULT] metadata_proxy_shared_secret = (set)\"".to_owned(),
    ] {
        assert!(first.contains(&words), "{words} is not in {first}");
    }
    assert!(!log.contains(nova::SECRET), "{log}");
    let (release, commit) = version.split_once(' ').unwrap_or((version, ""));
    let commit = commit.trim_matches(['(', ')']);
    let name = format!("metadata_build_info{{version=\"{release}\",commit=\"{commit}\"}}");
    assert_eq!(cloud.agent.metric(&name)?, 1.0);
    Ok(())
}

/// The log's line of a request, and what it must not say.
#[test]
fn requests_are_logged_without_their_secrets() -> Result<()> {
    let (cloud, [guest, _]) = cloud(&[])?;
    cloud.nova.set_user_data(&guest.port, "user-data-secret");
    guest.get("/latest/user-data?query-secret")?;
    guest.request("POST", "/openstack/latest/password", &[("X-Header", "header-secret")], b"body-secret")?;
    guest.get("/path-secret")?;
    guest.request("METHODSECRET", "/", &[], b"")?;
    let lines = until("the requests are in the log", SOON, || {
        let log = cloud.agent.log()?;
        let lines: Vec<_> = log.lines().filter(|line| line.contains("access: ")).map(str::to_owned).collect();
        ensure!(lines.len() == 4, "{lines:?}");
        Ok(lines)
    })?;
    let Port { id, instance, project, network, tap, address, .. } = &guest.port;
    for word in [
        format!("tap={tap}"),
        format!("port=\"{id}\""),
        format!("instance=\"{instance}\""),
        format!("project=\"{project}\""),
        format!("network=\"{network}\""),
        format!("source={address}"),
        "method=\"GET\"".to_owned(),
        "path=\"user-data\"".to_owned(),
        "status=200".to_owned(),
        "bytes=16".to_owned(),
        "ms=".to_owned(),
        "nova_ms=".to_owned(),
    ] {
        assert!(lines[0].contains(&word), "no {word} in {}", lines[0]);
    }
    // An option's name is none.
    let log = cloud.agent.log()?.to_lowercase().replace("metadata_proxy_shared_secret", "");
    assert!(!log.contains("secret"), "{log}");
    assert!(!log.contains(&nova::signature(instance)), "a signature is in the log");
    Ok(())
}

/// Requests without an answer, as their guest goes away or its port does: no answer is counted, and the log says which
/// it was.
#[test]
fn requests_that_end_without_an_answer_are_told_of() -> Result<()> {
    let (mut cloud, [leaves, unplugged]) = cloud(&[])?;
    cloud.nova.pause();
    let upstream = Upstream::start(cloud.chassis.host(), nova::ADDRESS, Script::Held(OK.to_vec()))?;
    let unfinished = |reason: &str| {
        let name = format!("metadata_requests_unfinished_total{{reason=\"{reason}\"}}");
        until(&name, SOON, || {
            let count = cloud.agent.metric(&name)?;
            ensure!(count == 1.0, "{count}");
            Ok(())
        })
    };
    let mut connection = leaves.connect()?;
    connection.send(&http::request_head("POST", "/openstack/latest/password", &[], 10))?;
    connection.send(b"half")?;
    // With a reset: one who only ended its side would be told that something is missing.
    setsockopt(connection.stream(), sockopt::Linger, &libc::linger { l_onoff: 1, l_linger: 0 })?;
    drop(connection);
    unfinished("guest_left")?;

    let mut connection = unplugged.connect()?;
    connection.send(&http::request_head("GET", META_DATA, &[], 0))?;
    until("the request is with Nova", SOON, || {
        ensure!(upstream.take_requests().len() == 1, "it is not");
        Ok(())
    })?;
    cloud.chassis.stop_tap(&unplugged)?;
    unfinished("cut_off")?;

    let lines = until("both are in the log", SOON, || {
        let log = cloud.agent.log()?;
        let lines: Vec<_> = log.lines().filter(|line| line.contains("access: ")).map(str::to_owned).collect();
        ensure!(lines.len() == 2, "{lines:?}");
        Ok(lines)
    })?;
    for (line, guest, reason) in
        [(&lines[0], &leaves, "the guest left"), (&lines[1], &unplugged, "its port or the agent went away")]
    {
        assert!(line.contains(&guest.port.id) && line.contains(reason), "{line}");
        assert!(!line.contains("status="), "{line}");
    }
    Ok(())
}
