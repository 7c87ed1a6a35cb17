//! Takes what OpenSSL's own client takes: certificates and keys made by openssl, over TLS to `openssl s_server`.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed test is what they are for")]

mod workshop;

use std::path::{Path, PathBuf};

use tls_peer::{Identity, Settings, Trust};
use workshop::{Server, Workshop};

/// Verdict on a certificate, as a table says it: that of OpenSSL is found out and must be the same.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Verdict {
    /// Both take it.
    Good,
    /// Neither does, and we with these words.
    Bad(&'static str),
    /// OpenSSL does, and we refuse it with these words, as the documentation says.
    Stricter(&'static str),
}

use Verdict::{Bad, Good, Stricter};

/// The name is in the certificates that have one.
fn settings(trust: PathBuf, verify_name: bool) -> Settings {
    Settings { trust: Trust::Authorities(trust), identity: None, verify_name }
}

fn check(server: &Server, name: &str, trust: &Path, verify_name: bool, expected: Verdict) {
    let ours = server.visit(&settings(trust.to_owned(), verify_name));
    let openssl = server.visit_with_openssl(trust, verify_name);
    let shown =
        format!("{name}, trusting {trust:?}, name verified: {verify_name}: {ours:?}, openssl {openssl:?}");
    match expected {
        Good => assert!(ours.is_ok() && openssl.is_ok(), "{shown}"),
        Bad(words) => assert!(ours.is_err_and(|error| error.contains(words)) && openssl.is_err(), "{shown}"),
        Stricter(words) => {
            assert!(ours.is_err_and(|error| error.contains(words)) && openssl.is_ok(), "{shown}")
        }
    }
}

const NO_NAME: &str = "it has no subject alternative name, and common names are not looked at";
const UNKNOWN: &str = "no certificate that is trusted";
const SAN: &str = "subjectAltName=DNS:localhost";

#[test]
fn servers_certificates_are_taken_as_openssl_takes_them() {
    let shop = Workshop::new("servers");
    shop.authority("ca");
    shop.authority("other");
    shop.issue("intermediate", "ca", &["basicConstraints=critical,CA:TRUE"]);
    shop.issue_v1("intermediate-v1", "ca");

    let p521 = ["ec", "-pkeyopt", "ec_paramgen_curve:P-521"];
    let usual = || [SAN, "basicConstraints=CA:FALSE"];
    shop.issue("usual", "ca", &usual());
    shop.issue_v1("v1", "ca");
    shop.issue_v1("v1-of-intermediate", "intermediate");
    shop.issue_v1("v1-of-other", "other");
    shop.issue_v1("v1-of-v1", "intermediate-v1");
    shop.key("p521", &p521);
    shop.issue("p521", "ca", &usual());
    shop.key("p521-v1", &p521);
    shop.issue_v1("p521-v1", "ca");
    shop.key("rsa-v1", &["rsa", "-pkeyopt", "rsa_keygen_bits:2048"]);
    shop.issue_v1("rsa-v1", "ca");
    shop.key("ed25519", &["ed25519"]);
    shop.issue("ed25519", "ca", &usual());
    shop.key("secp256k1", &["ec", "-pkeyopt", "ec_paramgen_curve:secp256k1"]);
    shop.issue("secp256k1", "ca", &usual());
    shop.key("rsa1024", &["rsa", "-pkeyopt", "rsa_keygen_bits:1024"]);
    shop.issue("rsa1024", "ca", &usual());
    shop.issue("authority", "ca", &[SAN, "basicConstraints=critical,CA:TRUE"]);
    shop.issue("signer-only", "ca", &[SAN, "basicConstraints=CA:TRUE", "keyUsage=keyCertSign"]);
    shop.issue(
        "signer-and-server",
        "ca",
        &[SAN, "basicConstraints=CA:TRUE", "keyUsage=keyCertSign,digitalSignature"],
    );
    shop.issue("for-clients", "ca", &[SAN, "extendedKeyUsage=clientAuth"]);
    shop.issue_v1_expired("expired-v1", "ca");
    shop.issue_v1("forged", "ca");
    // The common name is another than was signed.
    shop.alter("forged", b"localhost", b"localhest");

    for protocol in ["-tls1_2", "-tls1_3"] {
        for (name, expected) in [
            ("usual", [Good, Good]),
            ("v1", [Good, Stricter(NO_NAME)]),
            ("v1-of-intermediate", [Good, Stricter(NO_NAME)]),
            ("v1-of-other", [Bad(UNKNOWN), Bad(UNKNOWN)]),
            ("p521", [Good, Good]),
            ("p521-v1", [Good, Stricter(NO_NAME)]),
            ("rsa-v1", [Good, Stricter(NO_NAME)]),
            ("ed25519", [Good, Good]),
            ("authority", [Good, Good]),
            ("signer-only", [Bad("its key usage does not allow servers"); 2]),
            ("signer-and-server", [Good, Good]),
            ("for-clients", [Bad("its extended key usage does not allow servers"); 2]),
            ("expired-v1", [Bad("it has expired"); 2]),
            (
                "forged",
                [
                    Bad("its signature, or one that its key made, is wrong"),
                    Bad("its signature, or one that its key made, is wrong"),
                ],
            ),
            ("rsa1024", [Bad("or by RSA with less than 2048 bits"); 2]),
        ] {
            // OpenSSL's server does not even show it in TLS 1.2.
            if (name, protocol) == ("signer-only", "-tls1_2") {
                continue;
            }
            let server = Server::start(&shop, name, &[protocol]);
            for (verify_name, expected) in [(false, expected[0]), (true, expected[1])] {
                check(&server, &format!("{name} {protocol}"), &shop.certificate("ca"), verify_name, expected);
            }
        }
    }
    let below_v1 = Server::start(&shop, "v1-of-v1", &[]);
    check(&below_v1, "v1-of-v1", &shop.certificate("ca"), false, Bad("of X.509 version 1"));
    let k1 = Server::start(&shop, "secp256k1", &[]);
    check(&k1, "secp256k1", &shop.certificate("ca"), false, Bad("no algorithms in common"));
}

#[test]
fn what_is_trusted_is_read_as_openssl_reads_it() {
    let shop = Workshop::new("trusted");
    shop.authority("ca");
    shop.authority("other");
    shop.authority_v1("ca-v1");
    shop.issue("usual", "ca", &[SAN]);
    shop.issue("of-v1", "ca-v1", &[SAN]);
    shop.authority_v1("itself-v1");
    shop.openssl(&[
        "req",
        "-x509",
        "-key",
        "usual.key",
        "-subj",
        "/CN=localhost",
        "-addext",
        SAN,
        "-out",
        "itself.pem",
    ]);
    shop.key_of("itself", "usual");
    let variant = |name: &str, arguments: &[&str]| {
        shop.openssl(&[&["x509", "-in", "ca.pem", "-out", &format!("{name}.pem")], arguments].concat());
        shop.certificate(name)
    };
    let usual = Server::start(&shop, "usual", &[]);
    for (trust, expected) in [
        (variant("trusted", &["-trustout"]), Good),
        (variant("trusted-servers", &["-addtrust", "serverAuth"]), Good),
        (variant("trusted-any", &["-addtrust", "anyExtendedKeyUsage"]), Good),
        (variant("trusted-clients", &["-addtrust", "clientAuth"]), Bad("is trusted for servers")),
        (variant("rejected", &["-addreject", "serverAuth"]), Bad("is trusted for servers")),
        (variant("rejected-clients", &["-addreject", "clientAuth"]), Good),
        (shop.relabelled("ca", "X509 CERTIFICATE"), Good),
        (shop.certificate("other"), Bad(UNKNOWN)),
        (shop.bundle(&["other", "ca"]), Good),
        (shop.hashed(&["other", "ca"]), Good),
        (shop.hashed(&["other", "trusted"]), Good),
        (shop.hashed(&["other"]), Bad(UNKNOWN)),
    ] {
        check(&usual, "usual", &trust, true, expected);
    }
    for name in ["of-v1", "itself", "itself-v1"] {
        let server = Server::start(&shop, name, &[]);
        let trust = if name == "of-v1" { "ca-v1" } else { name };
        check(&server, name, &shop.certificate(trust), false, Good);
        check(&server, name, &shop.certificate("other"), false, Bad(UNKNOWN));
    }
}

#[test]
fn any_certificate_is_any() {
    let shop = Workshop::new("any");
    shop.authority("ca");
    shop.issue_v1("v1", "ca");
    shop.issue_v1_expired("expired", "ca");
    shop.key("rsa1024", &["rsa", "-pkeyopt", "rsa_keygen_bits:1024"]);
    shop.issue_v1("rsa1024", "ca");
    shop.key("ed448", &["ed448"]);
    shop.issue("ed448", "ca", &[SAN]);
    shop.issue("critical", "ca", &["1.2.3.4=critical,DER:05:00", "extendedKeyUsage=codeSigning"]);
    for name in ["v1", "expired", "rsa1024", "ed448", "critical", "ca"] {
        // Nobody's TLS 1.2 has Ed448 but OpenSSL's.
        let protocols = if name == "ed448" { &["-tls1_3"][..] } else { &["-tls1_2", "-tls1_3"] };
        for protocol in protocols {
            let server = Server::start(&shop, name, &[protocol]);
            let any = Settings { trust: Trust::Anybody, identity: None, verify_name: true };
            assert_eq!(server.visit(&any), Ok(()), "{name} {protocol}");
        }
    }
}

#[test]
fn clients_certificates_are_shown_whatever_their_version_and_key() {
    let shop = Workshop::new("clients");
    shop.authority("ca");
    shop.issue("server", "ca", &[SAN]);
    shop.key("p521", &["ec", "-pkeyopt", "ec_paramgen_curve:P-521"]);
    shop.issue("p521", "ca", &[]);
    shop.key("p521-v1", &["ec", "-pkeyopt", "ec_paramgen_curve:P-521"]);
    shop.issue_v1("p521-v1", "ca");
    shop.issue_v1("v1", "ca");
    shop.key("rsa-v1", &["rsa", "-pkeyopt", "rsa_keygen_bits:2048"]);
    shop.issue_v1("rsa-v1", "ca");
    shop.authority("other");
    shop.issue_v1("stranger", "other");
    shop.sec1("p521");
    let ca = shop.certificate("ca");
    let with = |certificate: &str, key: &str| Settings {
        identity: Some(Identity { certificate: shop.certificate(certificate), private_key: shop.file(key) }),
        ..settings(ca.clone(), true)
    };
    for protocol in ["-tls1_2", "-tls1_3"] {
        let demand = [protocol, "-CAfile", ca.to_str().unwrap(), "-Verify", "3", "-verify_return_error"];
        let server = Server::start(&shop, "server", &demand);
        for name in ["p521", "p521-v1", "v1", "rsa-v1"] {
            assert_eq!(server.visit(&with(name, &format!("{name}.key"))), Ok(()), "{name} {protocol}");
        }
        assert_eq!(server.visit(&with("p521", "p521.sec1.key")), Ok(()), "{protocol}");
        for refused in [with("stranger", "stranger.key"), settings(ca.clone(), true)] {
            assert!(server.visit(&refused).is_err(), "{refused:?} {protocol}");
        }
    }

    shop.openssl(&["pkey", "-in", "v1.key", "-aes256", "-passout", "pass:x", "-out", "encrypted.key"]);
    shop.openssl(&["ec", "-in", "v1.key", "-aes256", "-passout", "pass:x", "-out", "encrypted.sec1.key"]);
    shop.key("k1", &["ec", "-pkeyopt", "ec_paramgen_curve:secp256k1"]);
    shop.issue_v1("k1", "ca");
    for (certificate, key, expected) in [
        ("v1", "p521.key", "client certificate \"v1.pem\": does not go with private key \"p521.key\""),
        ("v1", "rsa-v1.key", "client certificate \"v1.pem\": does not go with private key \"rsa-v1.key\""),
        (
            "v1",
            "encrypted.key",
            "private key \"encrypted.key\": is encrypted; a key without a passphrase is needed",
        ),
        ("v1", "encrypted.sec1.key", "private key \"encrypted.sec1.key\": is encrypted"),
        (
            "k1",
            "k1.key",
            "private key \"k1.key\": is broken or of a kind that is not supported: RSA with at least",
        ),
    ] {
        let error = with(certificate, key).load().unwrap_err().to_string();
        let error = error.replace(&format!("{}/", shop.folder().display()), "");
        assert!(error.starts_with(expected), "{error}");
    }
}
