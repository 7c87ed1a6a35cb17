//! Real clients, as images have them: what each makes of its metadata, on a tap as a hypervisor makes it.

use std::{fs, thread};

use anyhow::{Context as _, Result, ensure};
use metadata_tests::{
    agent::Options,
    check::{META_DATA, is_identity_of},
    cloud::{Chassis as _, Cloud},
    cloud_init::{Datasource, Found, SUITES, crawl},
    command::{Words as _, require, run},
    guest::{Generation, Guest, METADATA_V6},
    http::Response,
    nova::{self, ec2_id},
    port::{GATEWAY, Port},
    stage::{Nic, Stage},
};
use serde_json::{Value, json};

const ADDRESS: &str = "http://169.254.169.254";
/// Bytes of user-data: more than Nova takes.
const LONG: usize = 1 << 16;

fn cloud_with_guests() -> Result<(Cloud<Stage>, [Guest; 2])> {
    require(&["busybox", "curl", "ip", "wget"])?;
    // Booting guests are within the limits that an operator has by default.
    let more = ["request_rate = 100", "request_burst = 200"];
    let more = more.map(|option| ("metadata_ebpf", option.to_owned())).to_vec();
    let cloud = Cloud::on(Stage::start_with(Nic::Tap)?, &Options { more, ..Options::default() })?;
    let guests = cloud.overlapping_guests()?;
    Ok((cloud, guests))
}

/// User-data that no text is: every byte, compressed data's first ones, and an end that differs for each guest.
fn user_data(port: &Port) -> Vec<u8> {
    let mut bytes = vec![0x1f, 0x8b, 8, 0];
    bytes.extend((0..LONG - 40).map(|index| (index * 7 % 256) as u8));
    bytes.extend(port.instance.as_bytes());
    bytes
}

fn is_openstack_of(port: &Port, found: &Found) -> Result<()> {
    same("instance_id", &found.instance_id, &port.instance)?;
    same("hostname", &found.hostname, &port.hostname())?;
    same("availability_zone", &found.availability_zone, &"nova".to_owned())?;
    same("public_keys", &found.public_keys, &vec![nova::public_key(port)])?;
    same("user_data", &found.user_data, &digits(&user_data(port)))?;
    same("uuid", &found.metadata["uuid"], &json!(port.instance))?;
    same("project", &found.metadata["project_id"], &json!(port.project))?;
    let network = found.network.as_ref().context("the network was not read")?;
    same("MAC", &network["config"][0]["mac_address"], &json!(port.mac))?;
    let subnet = &network["config"][0]["subnets"][0];
    let address = subnet["address"].as_str().and_then(|address| address.split('/').next());
    same("address", &address, &Some(port.address.to_string().as_str()))?;
    same("gateway", &subnet["routes"][0]["gateway"], &json!(GATEWAY))
}

/// The OpenStack datasource reads EC2's tree as well.
fn is_all_of(port: &Port, found: &Found) -> Result<()> {
    is_openstack_of(port, found)?;
    is_ec2_tree_of(port, found.ec2_metadata.as_ref().context("EC2's tree was not read")?)
}

fn is_ec2_of(port: &Port, found: &Found) -> Result<()> {
    same("instance_id", &found.instance_id, &ec2_id(&port.instance))?;
    same("hostname", &found.hostname, &port.hostname())?;
    same("availability_zone", &found.availability_zone, &"nova".to_owned())?;
    same("public_keys", &found.public_keys, &vec![nova::public_key(port)])?;
    same("user_data", &found.user_data, &digits(&user_data(port)))?;
    is_ec2_tree_of(port, &found.metadata)
}

/// The whole tree was walked, to the leaves of its directories.
fn is_ec2_tree_of(port: &Port, tree: &Value) -> Result<()> {
    same("instance-id", &tree["instance-id"], &json!(ec2_id(&port.instance)))?;
    same("local-ipv4", &tree["local-ipv4"], &json!(port.address))?;
    same("instance-type", &tree["instance-type"], &json!("m1.small"))?;
    same("security-groups", &tree["security-groups"], &json!(["default", "web"]))?;
    let mapping = json!({ "ami": "vda", "root": "/dev/vda" });
    same("block-device-mapping", &tree["block-device-mapping"], &mapping)?;
    same("placement", &tree["placement"], &json!({ "availability-zone": "nova" }))?;
    let keys = json!({ nova::key_name(port): nova::public_key(port) });
    same("public-keys", &tree["public-keys"], &keys)
}

fn same<T: PartialEq + std::fmt::Debug>(what: &str, found: &T, expected: &T) -> Result<()> {
    ensure!(found == expected, "{what} is {found:?}, not {expected:?}");
    Ok(())
}

fn digits(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Both guests at the same time, with every version.
#[test]
fn cloud_init_crawls_openstack() -> Result<()> {
    let (cloud, guests) = cloud_with_guests()?;
    for guest in &guests {
        cloud.nova.set_user_data(&guest.port, user_data(&guest.port));
    }
    for suite in SUITES {
        for (guest, found) in guests.iter().zip(crawl_at_once(&cloud, &guests, suite, Datasource::OpenStack)?)
        {
            is_all_of(&guest.port, &found).with_context(|| format!("{suite}: {}", guest.port.tap))?;
            ensure!(found.address == ADDRESS, "{suite} asked {}", found.address);
            let [vendor_data, vendor_data2] = nova::vendor_data(&guest.port).map(Some);
            ensure!(found.vendor_data == [vendor_data, vendor_data2], "{suite}: {:?}", found.vendor_data);
        }
    }
    Ok(())
}

#[test]
fn cloud_init_crawls_ec2() -> Result<()> {
    let (cloud, guests) = cloud_with_guests()?;
    for guest in &guests {
        cloud.nova.set_user_data(&guest.port, user_data(&guest.port));
    }
    for suite in SUITES {
        for (guest, found) in guests.iter().zip(crawl_at_once(&cloud, &guests, suite, Datasource::Ec2)?) {
            is_ec2_of(&guest.port, &found).with_context(|| format!("{suite}: {}", guest.port.tap))?;
            ensure!(found.address == ADDRESS, "{suite} asked {}", found.address);
        }
    }
    Ok(())
}

/// cloud-init asks both addresses at once and takes what answers first: that must not make a difference.
#[test]
fn cloud_init_races_both_families() -> Result<()> {
    let (cloud, guests) = cloud_with_guests()?;
    let over_ipv6 = format!("http://[{METADATA_V6}%25eth0]");
    for guest in &guests {
        cloud.nova.set_user_data(&guest.port, user_data(&guest.port));
        guest.enable_ipv6(Generation::Random)?;
    }
    for (guest, found) in guests.iter().zip(crawl_at_once(&cloud, &guests, "trixie", Datasource::OpenStack)?)
    {
        is_all_of(&guest.port, &found)?;
        ensure!([ADDRESS, &over_ipv6].contains(&found.address.as_str()), "it asked {}", found.address);
    }
    // Without an IPv4 address there is but one way, on which it does not look for EC2's tree.
    let [guest, _] = guests;
    guest.netns.ip("-4 addr flush dev eth0")?;
    let found = crawl(&cloud.chassis, &guest, "trixie", Datasource::OpenStack)?;
    is_openstack_of(&guest.port, &found)?;
    ensure!(found.address == over_ipv6, "it asked {}", found.address);
    Ok(())
}

fn crawl_at_once(
    cloud: &Cloud<Stage>,
    guests: &[Guest; 2],
    suite: &str,
    source: Datasource,
) -> Result<Vec<Found>> {
    thread::scope(|scope| {
        let crawl = |guest| crawl(&cloud.chassis, guest, suite, source);
        let crawling = guests.each_ref().map(|guest| scope.spawn(move || crawl(guest)));
        crawling.into_iter().map(|thread| thread.join().ok().context("a guest's thread panicked")?).collect()
    })
}

/// Downloads are what the user gave, to the last byte.
#[test]
fn downloads_are_exact() -> Result<()> {
    let (cloud, guests) = cloud_with_guests()?;
    let file = cloud.chassis.sandbox().path("download");
    let target = format!("{ADDRESS}/latest/user-data");
    for guest in &guests {
        let user_data = user_data(&guest.port);
        cloud.nova.set_user_data(&guest.port, user_data.clone());
        for client in [
            "curl -sS --fail --max-time 20 -o",
            "curl -sS --fail --max-time 20 --http1.0 -o",
            // It unpacks what is announced to be compressed; compressed user-data is not.
            "curl -sS --fail --max-time 20 --compressed -o",
            "wget -q -T 20 -t 1 -O",
            "busybox wget -q -O",
        ] {
            let (program, arguments) = client.split_once(' ').context("a client has arguments")?;
            run(guest.netns.command(program)?.words(arguments).arg(&file).arg(&target))?;
            let downloaded = fs::read(&file)?;
            ensure!(downloaded == user_data, "{client}: {} of {LONG} bytes", downloaded.len());
        }
    }
    Ok(())
}

/// curl keeps its connection for all that it is asked for at once, and asks before it sends a body.
#[test]
fn curl_reuses_its_connection() -> Result<()> {
    let (cloud, [guest, _]) = cloud_with_guests()?;
    let mut curl = guest.netns.command("curl")?;
    curl.words("-sS --fail --max-time 20 -w \\n%{num_connects}\\n");
    let text = run(curl.args([META_DATA, "/latest/meta-data/"].map(|target| format!("{ADDRESS}{target}"))))?;
    let lines: Vec<_> = text.lines().collect();
    let (document, connections) = (lines[0], [lines[1], lines.last().copied().unwrap_or_default()]);
    let response = Response { status: 200, headers: Vec::new(), body: document.into() };
    is_identity_of(&guest.port, &response)?;
    ensure!(connections == ["1", "0"], "new connections: {connections:?}");
    ensure!(lines.contains(&"public-keys/") && lines.contains(&"placement/"), "the directory is {lines:?}");

    let password = "a".repeat(344);
    let mut curl = guest.netns.command("curl")?;
    curl.words("-sS --fail --max-time 20 -H Expect:100-continue --data-raw").arg(&password);
    run(curl.arg(format!("{ADDRESS}/openstack/latest/password")))?;
    ensure!(cloud.nova.password(&guest.port) == password, "another password was stored");
    Ok(())
}
