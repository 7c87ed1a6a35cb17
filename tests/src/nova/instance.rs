//! Metadata of one instance: OpenStack's documents and EC2's tree, in every version and with Nova's listings.

use std::net::Ipv4Addr;

use anyhow::Result;
use bytes::Bytes;
use http_body_util::Full;
use hyper::{Method, Response, StatusCode};
use serde_json::{Map, Value, json};

use super::{Refusal, answer, ec2_id};
use crate::port::{self, GATEWAY, Port};

const OPENSTACK_VERSIONS: [&str; 10] = [
    "2012-08-10",
    "2013-04-04",
    "2013-10-17",
    "2015-10-15",
    "2016-06-30",
    "2016-10-06",
    "2017-02-22",
    "2018-08-27",
    "2020-10-14",
    "2025-04-04",
];
const EC2_VERSIONS: [&str; 9] = [
    "1.0",
    "2007-01-19",
    "2007-03-01",
    "2007-08-29",
    "2007-10-10",
    "2007-12-15",
    "2008-02-01",
    "2008-09-01",
    "2009-04-04",
];
const NETMASK: Ipv4Addr = Ipv4Addr::new(255, 255, 255, 0);
const AVAILABILITY_ZONE: &str = "nova";
/// Nova's limit of what a guest may store as its password.
const LONGEST_PASSWORD: usize = 1020;
/// In EC2's tree the entry of a directory that is listed by another name than it is found by.
const LISTED_AS: &str = "_name";

#[derive(Debug)]
pub(super) struct Instance {
    port: Port,
    pub(super) user_data: Option<Bytes>,
    pub(super) password: Bytes,
}

/// The name of the instance's key pair.
pub fn key_name(port: &Port) -> String {
    format!("key of {}", port.hostname())
}

/// Public key that its owner would log in with.
pub fn public_key(port: &Port) -> String {
    format!("ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI{} {}", port.instance.replace('-', ""), port.hostname())
}

/// Vendor's configuration for cloud-init: of `vendor_data.json`, and of `vendor_data2.json`.
pub fn vendor_data(port: &Port) -> [String; 2] {
    ["static", "dynamic"].map(|kind| format!("#cloud-config\n# {kind}, for {}\n", port.hostname()))
}

/// Listing of `/`, for whoever asks.
pub(super) fn ec2_versions() -> String {
    listing_of(&EC2_VERSIONS)
}

impl Instance {
    pub(super) fn new(port: &Port) -> Self {
        Self { port: port.clone(), user_data: None, password: Bytes::new() }
    }

    pub(super) fn project(&self) -> &str {
        &self.port.project
    }

    /// Nova's own way through a path: empty parts do not count, `..` goes back, and `ec2` may be left out.
    pub(super) fn answer(
        &mut self,
        method: &Method,
        path: &str,
        body: &Bytes,
    ) -> Result<Response<Full<Bytes>>, Refusal> {
        let mut tokens = Vec::new();
        for token in path.split('/').filter(|token| !matches!(*token, "" | ".")) {
            match token {
                ".." => drop(tokens.pop()),
                _ => tokens.push(token),
            }
        }
        match tokens.as_slice() {
            ["openstack"] => Ok(text(listing_of(&OPENSTACK_VERSIONS))),
            ["openstack", version, rest @ ..] => {
                self.openstack(known(version, &OPENSTACK_VERSIONS)?, rest, method, body)
            }
            ["ec2"] => Ok(text(ec2_versions())),
            ["ec2", version, rest @ ..] | [version, rest @ ..] => {
                self.ec2(known(version, &EC2_VERSIONS)?, rest)
            }
            [] => Ok(text(ec2_versions())),
        }
    }

    fn openstack(
        &mut self,
        version: &str,
        path: &[&str],
        method: &Method,
        body: &Bytes,
    ) -> Result<Response<Full<Bytes>>, Refusal> {
        // Each with the version that it came with.
        let documents = [
            ("meta_data.json", "2012-08-10"),
            ("user_data", "2012-08-10"),
            ("password", "2013-04-04"),
            ("vendor_data.json", "2013-10-17"),
            ("network_data.json", "2015-10-15"),
            ("vendor_data2.json", "2016-10-06"),
        ];
        let has_user_data = self.user_data.is_some();
        let mut there = documents
            .iter()
            .filter(|(name, since)| version >= *since && (has_user_data || *name != "user_data"));
        let [name] = path else {
            let names: Vec<_> = there.map(|(name, _)| *name).collect();
            return if path.is_empty() { Ok(text(names.join("\n"))) } else { Err(Refusal::not_found()) };
        };
        if !there.any(|(document, _)| document == name) {
            return Err(Refusal::not_found());
        }
        let [vendor_data, vendor_data2] = vendor_data(&self.port);
        Ok(match *name {
            "meta_data.json" => document(&self.meta_data(version)),
            "network_data.json" => document(&self.network_data()),
            "vendor_data.json" => document(&json!({ "cloud-init": vendor_data })),
            "vendor_data2.json" => document(&json!({ "static": {}, "cloud-init": vendor_data2 })),
            "password" => self.exchange_password(method, body)?,
            _ => self.user_data()?,
        })
    }

    fn meta_data(&self, version: &str) -> Value {
        let (name, key) = (key_name(&self.port), public_key(&self.port));
        let mut document = json!({
            "uuid": self.port.instance,
            "meta": { "role": self.port.hostname() },
            "public_keys": { name.as_str(): key },
            "keys": [{ "name": name, "type": "ssh", "data": key }],
            "hostname": self.port.hostname(),
            "name": self.port.hostname(),
            "launch_index": 0,
            "availability_zone": AVAILABILITY_ZONE,
        });
        let mut add = |since: &str, name: &str, value: Value| {
            if version >= since {
                document[name] = value;
            }
        };
        // Drawn anew for each request; these digits are base64 as well.
        add("2013-04-04", "random_seed", port::uuid().unwrap_or_default().replace('-', "").into());
        add("2015-10-15", "project_id", self.port.project.as_str().into());
        add("2016-06-30", "devices", json!([]));
        add("2020-10-14", "dedicated_cpus", json!([]));
        document
    }

    fn network_data(&self) -> Value {
        let Port { id, tap, mac, address, network, .. } = &self.port;
        json!({
            "links": [{
                "id": tap, "vif_id": id, "type": "ovs", "mtu": 1442, "ethernet_mac_address": mac,
            }],
            "networks": [{
                "id": "network0",
                "type": "ipv4",
                "link": tap,
                "ip_address": address,
                "netmask": NETMASK,
                "routes": [{ "network": "0.0.0.0", "netmask": "0.0.0.0", "gateway": GATEWAY }],
                "network_id": network,
                "services": [{ "type": "dns", "address": GATEWAY }],
            }],
            "services": [{ "type": "dns", "address": GATEWAY }],
        })
    }

    fn user_data(&self) -> Result<Response<Full<Bytes>>, Refusal> {
        Ok(plain(self.user_data.clone().ok_or_else(Refusal::not_found)?))
    }

    fn exchange_password(&mut self, method: &Method, body: &Bytes) -> Result<Response<Full<Bytes>>, Refusal> {
        let conflict = "There was a conflict when trying to complete your request.";
        match *method {
            Method::GET => Ok(plain(self.password.clone())),
            Method::POST if body.len() > LONGEST_PASSWORD => {
                Err(Refusal::new(StatusCode::BAD_REQUEST, "Request is too large."))
            }
            Method::POST if !self.password.is_empty() => Err(Refusal::new(StatusCode::CONFLICT, conflict)),
            Method::POST => {
                self.password = body.clone();
                Ok(plain(Bytes::new()))
            }
            _ => Err(Refusal::new(StatusCode::BAD_REQUEST, "GET and POST only are supported.")),
        }
    }

    fn ec2(&self, version: &str, path: &[&str]) -> Result<Response<Full<Bytes>>, Refusal> {
        match path {
            ["user-data"] => return self.user_data(),
            [] if self.user_data.is_some() => return Ok(text("meta-data/\nuser-data".to_owned())),
            _ => {}
        }
        let tree = json!({ "meta-data": self.ec2_meta_data(version) });
        let found = path.iter().try_fold(&tree, |tree, name| tree.get(name));
        Ok(text(listing(found.ok_or_else(Refusal::not_found)?)))
    }

    fn ec2_meta_data(&self, version: &str) -> Map<String, Value> {
        let Port { address, .. } = &self.port;
        let hostname = self.port.hostname();
        let entries = [
            ("1.0", "ami-id", json!("ami-00000001")),
            ("1.0", "ami-launch-index", json!(0)),
            // The very word that Nova answers with (nova/api/metadata/base.py).
            ("1.0", "ami-manifest-path", json!("FIXME")),
            ("1.0", "instance-id", json!(ec2_id(&self.port.instance))),
            ("1.0", "hostname", json!(hostname)),
            ("1.0", "local-ipv4", json!(address)),
            ("1.0", "reservation-id", json!(format!("r-{}", &self.port.id[..8]))),
            ("1.0", "security-groups", json!(["default", "web"])),
            ("1.0", "public-keys", self.ec2_public_keys()),
            ("2007-01-19", "local-hostname", json!(hostname)),
            ("2007-01-19", "public-hostname", json!(hostname)),
            ("2007-01-19", "public-ipv4", json!("")),
            ("2007-08-29", "instance-type", json!("m1.small")),
            ("2007-12-15", "block-device-mapping", json!({ "ami": "vda", "root": "/dev/vda" })),
            ("2008-02-01", "placement", json!({ "availability-zone": AVAILABILITY_ZONE })),
            ("2008-09-01", "instance-action", json!("none")),
        ];
        let there = entries.into_iter().filter(|(since, ..)| version >= *since);
        there.map(|(_, name, value)| (name.to_owned(), value)).collect()
    }

    fn ec2_public_keys(&self) -> Value {
        let listed_as = format!("0={}", key_name(&self.port));
        json!({ "0": { LISTED_AS: listed_as, "openssh-key": public_key(&self.port) } })
    }
}

/// The version that is meant; both lists are in the order of their texts.
fn known<'a>(version: &'a str, versions: &[&'a str]) -> Result<&'a str, Refusal> {
    let newest = versions.last().copied().unwrap_or_default();
    let meant = if version == "latest" { newest } else { version };
    if versions.contains(&meant) { Ok(meant) } else { Err(Refusal::not_found()) }
}

fn listing_of(versions: &[&str]) -> String {
    [versions, &["latest"]].concat().join("\n")
}

/// Listing of a value by EC2's interface: a directory line by line, those in it with a slash.
fn listing(value: &Value) -> String {
    let entry = |(name, value): (&String, &Value)| match value.as_object() {
        Some(directory) => match directory.get(LISTED_AS) {
            Some(listed) => listing(listed),
            None => format!("{name}/"),
        },
        None => name.clone(),
    };
    match value {
        Value::Object(directory) => {
            let entries = directory.iter().filter(|(name, _)| *name != LISTED_AS);
            entries.map(entry).collect::<Vec<_>>().join("\n")
        }
        Value::Array(values) => values.iter().map(listing).collect::<Vec<_>>().join("\n"),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn document(document: &Value) -> Response<Full<Bytes>> {
    answer(200, &[("content-type", "application/json")], document.to_string().into())
}

fn text(text: String) -> Response<Full<Bytes>> {
    plain(text.into())
}

/// Nova calls everything text, whatever the bytes are.
fn plain(bytes: Bytes) -> Response<Full<Bytes>> {
    answer(200, &[("content-type", "text/plain; charset=UTF-8")], bytes)
}
