//! `ssl:` remotes with certificates of ovs-pki.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed test is what they are for")]

mod common;

use std::fs;

use common::*;
use ovsdb_client::{Client, Conditions, Config, Event, TlsConfig};

/// A server with the certificate `name`, and the remote to reach it as `host`.
fn server(pki: &Pki, name: &str, host: &str) -> (Server, String) {
    let server = Server::start_with(SCHEMA, |port| pki.server_arguments(name, port));
    let remote = format!("ssl:{host}:{}", server.port);
    (server, remote)
}

fn secure(remote: &str, tls: TlsConfig) -> Config {
    let mut config = config(remote);
    config.tls = Some(tls);
    config
}

fn connect(config: Config) -> Client {
    Client::builder(config).monitor::<Item>(Conditions::All).connect()
}

/// Reason for which the first attempt fails.
async fn reason(config: Config) -> String {
    match next(&mut connect(config)).await {
        Event::Disconnected { reason, .. } => reason.to_string(),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn certificates_of_ovs_pki_do_whatever_the_host() {
    let pki = Pki::new();
    pki.issue("sb", "switch");
    pki.issue("client", "controller");
    let (mut server, remote) = server(&pki, "sb", "127.0.0.1");
    let mut client = connect(secure(&remote, pki.tls("client")));
    synced(&mut client).await;
    // Large enough for many TLS records in both directions.
    let name = |i: usize| format!("{i:0300}");
    client.transact((0..2000).map(|i| insert(&name(i))).collect()).await.unwrap();
    assert_eq!(batch(&mut client).await.len(), 2000);
    server.restart();
    assert!(synced(&mut client).await.is_empty());
    assert_eq!(client.table::<Item>().len(), 2000);
}

#[tokio::test]
async fn certificates_of_version_1_and_keys_of_p521_will_do() {
    let pki = Pki::new();
    let kinds =
        [&["rsa", "-pkeyopt", "rsa_keygen_bits:2048"][..], &["ec", "-pkeyopt", "ec_paramgen_curve:P-521"]];
    for (index, key) in kinds.into_iter().enumerate() {
        let (server_name, client_name) = (format!("sb-{index}"), format!("client-{index}"));
        pki.issue_v1(&server_name, "switch", key);
        pki.issue_v1(&client_name, "controller", key);
        let (_server, remote) = server(&pki, &server_name, "127.0.0.1");
        synced(&mut connect(secure(&remote, pki.tls(&client_name)))).await;
        // Its name is a common one, which is no name.
        let strict = TlsConfig { verify_hostname: true, ..pki.tls(&client_name) };
        let unnamed = reason(secure(&remote, strict)).await;
        assert!(unnamed.contains("common names are not looked at"), "{unnamed}");
        // Verified is who has signed it, too.
        let stranger =
            TlsConfig { ca_certificates: pki.authority("controller").into(), ..pki.tls(&client_name) };
        let stranger = reason(secure(&remote, stranger)).await;
        assert!(stranger.contains("no certificate in"), "{stranger}");
    }
}

#[tokio::test]
async fn names_are_verified_on_demand() {
    let pki = Pki::new();
    pki.issue("localhost", "switch");
    pki.issue("client", "controller");
    let strict = TlsConfig { verify_hostname: true, ..pki.tls("client") };
    let (server, by_name) = server(&pki, "localhost", "localhost");
    synced(&mut connect(secure(&by_name, strict.clone()))).await;
    let by_address = format!("ssl:127.0.0.1:{}", server.port);
    let reason = reason(secure(&by_address, strict)).await;
    assert!(reason.contains("127.0.0.1") && reason.contains("not valid for"), "{reason}");
}

#[tokio::test]
async fn bad_certificates_of_the_server_are_told_apart() {
    let pki = Pki::new();
    pki.issue("client", "controller");
    pki.issue_expired("old", "switch");
    let (_server, remote) = server(&pki, "old", "127.0.0.1");
    let expired = reason(secure(&remote, pki.tls("client"))).await;
    assert_eq!(expired, "the server's certificate is not acceptable: it has expired");
    let other = TlsConfig { ca_certificates: pki.authority("controller").into(), ..pki.tls("client") };
    pki.issue("sb", "switch");
    let (_server, remote) = server(&pki, "sb", "127.0.0.1");
    let stranger = reason(secure(&remote, other)).await;
    assert!(stranger.contains("controllerca/cacert.pem\" has signed it"), "{stranger}");
}

#[tokio::test]
async fn a_certificate_that_is_trusted_itself_will_do() {
    let pki = Pki::new();
    pki.issue("client", "controller");
    pki.issue_own("localhost", false);
    pki.issue_own("other", false);
    pki.issue_own("old", true);
    let trusting = |name: &str, verify_hostname| TlsConfig {
        ca_certificates: pki.file(&format!("{name}-cert.pem")).into(),
        verify_hostname,
        ..pki.tls("client")
    };
    let (own, remote) = server(&pki, "localhost", "127.0.0.1");
    synced(&mut connect(secure(&remote, trusting("localhost", false)))).await;
    let by_name = format!("ssl:localhost:{}", own.port);
    synced(&mut connect(secure(&by_name, trusting("localhost", true)))).await;

    let misnamed = reason(secure(&remote, trusting("localhost", true))).await;
    assert!(misnamed.contains("not valid for"), "{misnamed}");
    let stranger = reason(secure(&remote, trusting("other", false))).await;
    assert!(stranger.contains("no certificate in"), "{stranger}");
    let (_old, remote) = server(&pki, "old", "127.0.0.1");
    let expired = reason(secure(&remote, trusting("old", false))).await;
    assert_eq!(expired, "the server's certificate is not acceptable: it has expired");
}

#[tokio::test]
async fn a_refused_client_certificate_is_named_and_a_renewed_one_used() {
    let pki = Pki::new();
    pki.issue("sb", "switch");
    pki.issue_expired("client", "controller");
    let (_server, remote) = server(&pki, "sb", "127.0.0.1");
    let mut client = connect(secure(&remote, pki.tls("client")));
    let Event::Disconnected { reason, .. } = next(&mut client).await else { panic!("connected") };
    let reason = reason.to_string();
    assert!(reason.contains("client certificate") && reason.contains("client-cert.pem"), "{reason}");
    assert!(reason.contains("Expired") || reason.contains("broke the connection off"), "{reason}");
    for file in ["client-cert.pem", "client-privkey.pem", "client-req.pem"] {
        fs::remove_file(pki.file(file)).unwrap();
    }
    pki.issue("client", "controller");
    synced(&mut client).await;
}

#[tokio::test]
async fn unusable_files_are_named() {
    let pki = Pki::new();
    pki.issue("client", "controller");
    pki.issue("other", "controller");
    fs::write(pki.file("empty.pem"), "nothing in here").unwrap();
    let good = pki.tls("client");
    let cases = [
        (
            TlsConfig { private_key: "/none.pem".into(), ..good.clone() },
            "private key \"/none.pem\": No such file",
        ),
        (TlsConfig { private_key: pki.file("empty.pem").into(), ..good.clone() }, "holds no usable key"),
        (TlsConfig { certificate: pki.file("empty.pem").into(), ..good.clone() }, "holds no certificate"),
        (TlsConfig { ca_certificates: "/none.pem".into(), ..good.clone() }, "CA certificate \"/none.pem\""),
        (
            TlsConfig { private_key: pki.file("other-privkey.pem").into(), ..good },
            "client-cert.pem\": does not go with private key",
        ),
    ];
    for (tls, expected) in cases {
        let reason = reason(secure("ssl:127.0.0.1:1", tls)).await;
        assert!(reason.contains(expected), "{reason}");
    }
}

#[tokio::test]
async fn mixed_up_remotes_are_explained() {
    let pki = Pki::new();
    pki.issue("sb", "switch");
    pki.issue("client", "controller");
    let (server, _) = server(&pki, "sb", "127.0.0.1");
    let plain = reason(config(&format!("tcp:127.0.0.1:{}", server.port))).await;
    assert!(plain.contains("is it a TLS port?") || plain.contains("does it expect ssl: there?"), "{plain}");
    let clear = Server::start(SCHEMA);
    let mut config = secure(&format!("ssl:127.0.0.1:{}", clear.port), pki.tls("client"));
    config.connect_timeout = std::time::Duration::from_secs(2);
    let clear = reason(config).await;
    assert!(clear.contains("TLS handshake") || clear.contains("no answer within 2 s"), "{clear}");

    // What is configured for others does not matter.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let remote = format!("tcp:{}", listener.local_addr().unwrap());
    let refusing = tokio::spawn(async move { drop(listener.accept().await) });
    let refused = reason(secure(&remote, pki.tls("client"))).await;
    refusing.await.unwrap();
    assert!(refused.contains("without a word (does it expect ssl: there?)"), "{refused}");
}
