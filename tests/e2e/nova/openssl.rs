//! Nova behind OpenSSL, with certificates that openssl makes: of X.509 version 1, and with keys of P-521.

use std::{fs, net::TcpStream};

use anyhow::{Result, ensure};
use metadata_tests::{
    agent::Options,
    check::META_DATA,
    cloud::{Chassis as _, Cloud},
    command::run,
    process::Daemon,
    stage::Stage,
    wait::until,
};

use super::{SOON, address};

/// A key and a certificate for each of the names, signed by `ca`: with extensions if there are any, else of version 1.
fn issue(stage: &Stage, names: &[(&str, &str, &str)]) -> Result<()> {
    let folder = stage.sandbox().dir();
    let openssl = |arguments: &str| -> Result<()> {
        run(std::process::Command::new("openssl").args(arguments.split(' ')).current_dir(folder)).map(drop)
    };
    openssl("req -x509 -newkey rsa:2048 -nodes -subj /CN=ca -days 2 -keyout ca.key -out ca.pem")?;
    for (name, curve, extensions) in names {
        fs::write(folder.join("extensions"), extensions)?;
        openssl(&format!("genpkey -algorithm ec -pkeyopt ec_paramgen_curve:{curve} -out {name}.key"))?;
        openssl(&format!("req -new -key {name}.key -subj /CN=127.0.0.1 -out {name}.csr"))?;
        let sign = format!(
            "x509 -req -in {name}.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -out {name}.pem"
        );
        let with = if extensions.is_empty() { "" } else { " -extfile extensions" };
        openssl(&(sign + with))?;
    }
    Ok(())
}

/// A server that demands a certificate of `ca` and answers with a page.
fn serve(stage: &Stage, name: &str, port: u16) -> Result<Daemon> {
    let mut command = stage.host().command("openssl")?;
    let files = format!("-cert {name}.pem -key {name}.key -CAfile ca.pem");
    let arguments = format!("s_server -accept 127.0.0.1:{port} -www {files} -Verify 3 -verify_return_error");
    command.args(arguments.split(' ')).current_dir(stage.sandbox().dir());
    let server = Daemon::spawn(name, command, stage.sandbox().log(name))?;
    until("the server listens", SOON, || Ok(stage.host().run(|| TcpStream::connect(address(port)))??))?;
    Ok(server)
}

#[test]
fn certificates_of_version_1_and_keys_of_p521_do_for_nova() -> Result<()> {
    let name = "subjectAltName=IP:127.0.0.1";
    for (server, insecure, status) in [("named", false, 200), ("v1", false, 502), ("v1", true, 200)] {
        let stage = Stage::start()?;
        issue(&stage, &[("named", "P-521", name), ("v1", "P-521", ""), ("client", "P-521", "")])?;
        let _server = serve(&stage, server, 8801)?;
        let file = |name: &str| stage.sandbox().path(name).display().to_string();
        let more = vec![
            ("DEFAULT", "nova_metadata_protocol = https".to_owned()),
            ("DEFAULT", "nova_metadata_host = 127.0.0.1:8801".to_owned()),
            ("DEFAULT", format!("auth_ca_cert = {}", file("ca.pem"))),
            ("DEFAULT", format!("nova_client_cert = {}", file("client.pem"))),
            ("DEFAULT", format!("nova_client_priv_key = {}", file("client.key"))),
            ("DEFAULT", format!("nova_metadata_insecure = {insecure}")),
        ];
        let cloud = Cloud::on(stage, &Options { more, ..Options::default() })?;
        let [guest, _] = cloud.overlapping_guests()?;
        assert_eq!(guest.get(META_DATA)?.status, status, "{server}, insecure: {insecure}");
        if status == 502 {
            until("the log says why", SOON, || {
                let reason = "it has no subject alternative name, and common names are not looked at";
                ensure!(cloud.agent.log()?.contains(reason), "it does not");
                Ok(())
            })?;
        }
    }
    Ok(())
}
