//! Debian's Prometheus, which scrapes one agent: what it has scraped, and what it makes of a query.

use std::{
    collections::BTreeMap,
    fs,
    net::{Ipv4Addr, SocketAddrV4},
    path::PathBuf,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;

use crate::{
    cloud::Chassis,
    cloud_init::fetched,
    http::{self, Connection},
    netns::Namespace,
    process::Daemon,
    wait::until,
};

const ADDRESS: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 9090);
/// Address at which the agent is scraped: its `admin_listen`.
pub const AGENT: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 9675);
const START: Duration = Duration::from_secs(30);

/// Values of one series, each with its time in seconds since 1970.
#[derive(Debug, Deserialize)]
pub struct Series {
    #[serde(rename = "metric")]
    pub labels: BTreeMap<String, String>,
    #[serde(deserialize_with = "numbers")]
    pub values: Vec<(f64, f64)>,
}

#[derive(Debug, Deserialize)]
struct Answer {
    data: Data,
}

#[derive(Debug, Deserialize)]
struct Data {
    result: Vec<Series>,
}

/// Numbers are text to Prometheus, which has some that JSON has not.
fn numbers<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Vec<(f64, f64)>, D::Error> {
    let values = Vec::<(f64, String)>::deserialize(from)?;
    let number = |(time, text): (f64, String)| Ok((time, text.parse().map_err(serde::de::Error::custom)?));
    values.into_iter().map(number).collect()
}

#[derive(Debug)]
pub struct Prometheus {
    // It ends before its namespace does.
    _daemon: Daemon,
    host: Namespace,
}

impl Prometheus {
    /// Starts it on the chassis, and waits until it has scraped the agent, which it calls by that name.
    pub fn start(chassis: &impl Chassis, agent: &str, interval: Duration) -> Result<Self> {
        let folder = chassis.sandbox().path("prometheus");
        fs::create_dir(&folder)?;
        let config = folder.join("prometheus.yml");
        let text = format!(
            "global:\n  scrape_interval: {}ms\nscrape_configs:\n- job_name: metadata-agent\n  static_configs:\n  \
             - targets: ['{AGENT}']\n    labels: {{ instance: '{agent}' }}\n",
            interval.as_millis()
        );
        fs::write(&config, text)?;
        let mut command = chassis.host().command(program("prometheus")?)?;
        command.arg("--config.file").arg(config);
        command.arg("--storage.tsdb.path").arg(folder.join("data"));
        command.arg(format!("--web.listen-address={ADDRESS}"));
        let daemon = Daemon::spawn("prometheus", command, chassis.sandbox().log("prometheus"))?;
        let prometheus = Self { _daemon: daemon, host: Namespace::existing(chassis.host().name()) };
        until("the agent is scraped", START, || {
            let series = prometheus.range("metadata_ready", now()?, 0.0, 1.0)?;
            ensure!(!series.is_empty(), "there is no metadata_ready");
            Ok(())
        })?;
        Ok(prometheus)
    }

    /// Answer to a query at each step of so many seconds from a time on.
    pub fn range(&self, query: &str, from: f64, seconds: f64, step: f64) -> Result<Vec<Series>> {
        let target = format!(
            "/api/v1/query_range?query={}&start={from:.3}&end={:.3}&step={step}",
            percent_encoded(query),
            from + seconds
        );
        let ask = || -> http::Result<_> {
            let stream = http::connect_from(None, ADDRESS, START)?;
            Connection::new(stream).request("GET", &target, &[("Connection", "close")], b"")
        };
        let response = self.host.run(ask)??;
        ensure!(response.status == 200, "{query}: {}", response.text());
        let answer: Answer = serde_json::from_slice(&response.body).with_context(|| response.text())?;
        Ok(answer.data.result)
    }
}

/// Seconds since 1970.
pub fn now() -> Result<f64> {
    Ok(std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_secs_f64())
}

/// A program of Prometheus' package.
pub fn program(name: &str) -> Result<PathBuf> {
    let program = fetched("prometheus")?.join("root/usr/bin").join(name);
    ensure!(program.exists(), "there is no {} (`cargo xtask setup` unpacks it)", program.display());
    Ok(program)
}

fn percent_encoded(text: &str) -> String {
    let encoded = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' => char::from(byte).to_string(),
        byte => format!("%{byte:02X}"),
    };
    text.bytes().map(encoded).collect()
}
