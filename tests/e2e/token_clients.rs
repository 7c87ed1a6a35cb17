//! Real clients in each mode of session tokens: those that insist on them, those that use them, and those that know none.

use std::{path::PathBuf, process::Command, time::Duration};

use anyhow::{Context as _, Result, ensure};
use metadata_tests::{
    agent::Options,
    cloud::Cloud,
    cloud_init::{Datasource, PYTHON, SUITES, crawl, fetched},
    command::{Words as _, require, run},
    guest::Guest,
    nova::{Recorded, ec2_id, public_key},
    stage::{Nic, Stage},
    wait::until,
};

const USER_DATA: &str = "#!/bin/sh\necho a secret";
const SOON: Duration = Duration::from_secs(60);

fn cloud(lines: &[&str]) -> Result<(Cloud<Stage>, [Guest; 2])> {
    require(&["bash", "curl", "ip", "node"])?;
    let more = lines.iter().map(|line| ("metadata_ebpf", (*line).to_owned())).collect();
    let cloud = Cloud::on(Stage::start_with(Nic::Tap)?, &Options { more, ..Options::default() })?;
    let guests = cloud.overlapping_guests()?;
    for guest in &guests {
        cloud.nova.set_user_data(&guest.port, USER_DATA);
    }
    Ok((cloud, guests))
}

/// Runs Python's text with the clients' modules inside the guest.
fn python(guest: &Guest, script: &str) -> Result<String> {
    let modules = client("pypi/ec2_metadata")?;
    let mut python = guest.netns.command(PYTHON)?;
    python.args(["-B", "-c", script]).env("PYTHONPATH", modules.parent().context("it is in a folder")?);
    run(&mut python)
}

fn client(path: &str) -> Result<PathBuf> {
    let path = fetched("ec2-clients")?.join(path);
    ensure!(path.exists(), "there is no {} (`cargo xtask setup` fetches it)", path.display());
    Ok(path)
}

/// Amazon's script, of which images have one or the other version.
fn ec2_metadata_script(guest: &Guest, option: &str) -> Result<String> {
    let mut bash: Command = guest.netns.command("bash")?;
    run(bash.arg(client("root/usr/bin/ec2-metadata")?).arg(option))
}

/// Nobody passed anything of a token on.
fn know_no_tokens(requests: &[Recorded]) -> Result<()> {
    for request in requests {
        let names = request.headers.iter().map(|(name, _)| name.to_ascii_lowercase());
        let told: Vec<_> = names.filter(|name| name.contains("token")).collect();
        ensure!(told.is_empty() && request.method != "PUT", "{request:?}");
    }
    Ok(())
}

const EC2_METADATA: &str = "from ec2_metadata import ec2_metadata as m\n\
    print(m.instance_id, m.availability_zone, m.private_hostname, m.security_groups)\n\
    print(m.user_data.decode())";

/// The part of the SDK on which the others stand; what it reads of a region is all but the zone's last letter.
const BOTOCORE: &str = "from botocore.utils import IMDSFetcher, InstanceMetadataRegionFetcher as Region\n\
    fetcher = IMDSFetcher(num_attempts=1, config={'ec2_metadata_v1_disabled': V1_DISABLED})\n\
    token = fetcher._fetch_metadata_token()\n\
    print(bool(token), fetcher._get_request('latest/user-data', None, token).text)\n\
    print(Region(num_attempts=1).retrieve_region())";

/// The SDK for JavaScript, which would wait for the end of a connection that it has not read to the end.
const AWS_SDK: &str = "const { MetadataService } = require('@aws-sdk/ec2-metadata-service');\n\
    const service = new MetadataService({ ec2MetadataV1Disabled: V1_DISABLED });\n\
    const end = (status) => () => process.exit(status);\n\
    service.request('/latest/user-data', {}).then((text) => process.stdout.write(text, end(0)), end(1));";

fn node(guest: &Guest, script: &str) -> Result<String> {
    let mut node = guest.netns.command("node")?;
    node.args(["-e", script]).env("NODE_PATH", client("npm/node_modules")?);
    run(&mut node)
}

#[test]
fn clients_that_insist_on_tokens_are_served_where_there_are_some() -> Result<()> {
    for mode in ["token_mode = optional", "token_mode = required"] {
        for more in ["token_required_for = *", "token_hop_limit = 1"] {
            let (cloud, [guest, _]) = cloud(&[mode, more])?;
            let id = ec2_id(&guest.port.instance);
            assert_eq!(ec2_metadata_script(&guest, "-i")?.trim(), format!("instance-id: {id}"));
            assert!(ec2_metadata_script(&guest, "-d")?.contains(USER_DATA));
            assert!(ec2_metadata_script(&guest, "-u")?.contains(&public_key(&guest.port)));
            let text = python(&guest, EC2_METADATA)?;
            let hostname = guest.port.hostname();
            assert_eq!(text.trim(), format!("{id} nova {hostname} ['default', 'web']\n{USER_DATA}"));
            for disabled in ["True", "False"] {
                let text = python(&guest, &BOTOCORE.replace("V1_DISABLED", disabled))?;
                assert_eq!(text.trim(), format!("True {USER_DATA}\nnov"));
            }
            assert_eq!(node(&guest, &AWS_SDK.replace("V1_DISABLED", "true"))?, USER_DATA);
            know_no_tokens(&cloud.nova.take_requests())?;
            let refused = cloud.agent.metric("metadata_tokens_total{outcome=\"token_missing\"}")?;
            assert_eq!(refused, 0.0);
        }
    }
    Ok(())
}

/// As on every OpenStack cloud before.
#[test]
fn without_tokens_they_fail_or_do_without_as_before() -> Result<()> {
    let (cloud, [guest, _]) = cloud(&["token_mode = off"])?;
    assert!(ec2_metadata_script(&guest, "-i").is_err());
    assert!(python(&guest, EC2_METADATA).is_err());
    let without = python(&guest, &BOTOCORE.replace("V1_DISABLED", "False"))?;
    assert_eq!(without.trim(), format!("False {USER_DATA}\nnov"));
    assert!(python(&guest, &BOTOCORE.replace("V1_DISABLED", "True")).is_err());
    assert_eq!(node(&guest, &AWS_SDK.replace("V1_DISABLED", "false"))?, USER_DATA);
    assert!(node(&guest, &AWS_SDK.replace("V1_DISABLED", "true")).is_err());
    assert!(cloud.nova.take_requests().iter().any(|request| request.method == "PUT"), "Nova answers");
    Ok(())
}

/// cloud-init knows tokens on AWS only: elsewhere it has its time, or is not told what is secret.
#[test]
fn cloud_init_boots_in_each_mode_in_its_time() -> Result<()> {
    let hexadecimal: String = USER_DATA.bytes().map(|byte| format!("{byte:02x}")).collect();
    for (lines, outcome) in [
        (&["token_mode = optional"][..], "without_where_optional"),
        (&["token_mode = required", "token_required_after = 3600"], "without_yet"),
    ] {
        let (cloud, [guest, _]) = cloud(lines)?;
        for suite in SUITES {
            for source in [Datasource::OpenStack, Datasource::Ec2] {
                let found = crawl(&cloud.chassis, &guest, suite, source)?;
                ensure!(found.user_data == hexadecimal, "{suite} {source:?}: {found:?}");
            }
        }
        until("it is counted", SOON, || {
            let counted = cloud.agent.metric(&format!("metadata_tokens_total{{outcome=\"{outcome}\"}}"))?;
            ensure!(counted >= 4.0, "{counted}");
            Ok(())
        })?;
    }
    Ok(())
}

/// Without its time it boots, and has no user data: nobody tells it that there is some.
#[test]
fn cloud_init_without_its_time_has_no_user_data() -> Result<()> {
    let (cloud, [guest, _]) = cloud(&["token_mode = required"])?;
    for suite in SUITES {
        for source in [Datasource::OpenStack, Datasource::Ec2] {
            let found = crawl(&cloud.chassis, &guest, suite, source)?;
            ensure!(found.user_data.is_empty(), "{suite} {source:?}: {found:?}");
            ensure!(found.hostname == guest.port.hostname(), "{suite} {source:?}: {found:?}");
        }
    }
    Ok(())
}

/// The Ec2 datasource asks for a token where the firmware is AWS', and has no need of a time without.
#[test]
fn cloud_init_of_aws_uses_tokens() -> Result<()> {
    let hexadecimal: String = USER_DATA.bytes().map(|byte| format!("{byte:02x}")).collect();
    let (cloud, [guest, _]) = cloud(&["token_mode = required", "token_required_for = *"])?;
    for suite in SUITES {
        let found = crawl(&cloud.chassis, &guest, suite, Datasource::Ec2OnAws)?;
        ensure!(found.user_data == hexadecimal, "{suite}: {found:?}");
        ensure!(found.instance_id == ec2_id(&guest.port.instance), "{suite}: {found:?}");
    }
    know_no_tokens(&cloud.nova.take_requests())?;
    until("it is counted", SOON, || {
        for (outcome, least, most) in
            [("issued", 2.0, 20.0), ("accepted", 10.0, 1e6), ("token_missing", 0.0, 0.0)]
        {
            let counted = cloud.agent.metric(&format!("metadata_tokens_total{{outcome=\"{outcome}\"}}"))?;
            ensure!((least..=most).contains(&counted), "{outcome}: {counted}");
        }
        Ok(())
    })?;
    // What knows no token does not have what is secret.
    let mut curl = guest.netns.command("curl")?;
    let text = run(curl.words("-sS -w %{http_code} http://169.254.169.254/latest/user-data"))?;
    assert!(text.ends_with("401") && !text.contains("a secret"), "{text}");
    Ok(())
}
