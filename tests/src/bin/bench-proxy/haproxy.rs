//! Debian's haproxy as one plain hop, with what neutron-ovn-metadata-agent's configuration has, reached over a plain
//! pair of devices.
//!
//! Unlike there, connections may be kept on both sides, so that what is compared is the work on a request.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddrV4, TcpStream},
    os::unix::net::UnixDatagram,
    thread,
    time::Duration,
};

use anyhow::Result;
use metadata_tests::{
    cloud::{Chassis as _, Cloud},
    command::{Words as _, require},
    netns::Namespace,
    nova,
    process::Daemon,
    stage::Stage,
    wait::until,
};

pub(crate) const HOST: Ipv4Addr = Ipv4Addr::new(192, 168, 77, 1);
pub(crate) const ADDRESS: SocketAddrV4 = SocketAddrV4::new(HOST, 80);
pub(crate) const START: Duration = Duration::from_secs(10);

/// The proxy on the host, and a guest that has nothing but a pair of devices to it.
pub(crate) struct Haproxy {
    pub(crate) daemon: Daemon,
    pub(crate) guest: Namespace,
}

impl Haproxy {
    pub(crate) fn start(cloud: &Cloud<Stage>) -> Result<Self> {
        require(&["haproxy"])?;
        let (sandbox, host) = (cloud.chassis.sandbox(), cloud.chassis.host());
        let guest = Namespace::create(sandbox, "plain")?;
        guest.ip(format!("link add eth0 type veth peer name plain0 netns {}", host.name()))?;
        guest.ip("addr add 192.168.77.2/24 dev eth0")?;
        guest.ip("link set eth0 up")?;
        host.ip(format!("addr add {HOST}/24 dev plain0"))?;
        host.ip("link set plain0 up")?;

        let socket = sandbox.path("syslog");
        let syslog = UnixDatagram::bind(&socket)?;
        thread::spawn(move || while syslog.recv(&mut [0; 1024]).is_ok() {});
        let file = sandbox.path("haproxy.cfg");
        fs::write(&file, configuration(&socket.to_string_lossy()))?;
        let mut command = host.command("haproxy")?;
        command.words("-db -f").arg(file);
        let daemon = Daemon::spawn("haproxy", command, sandbox.log("haproxy"))?;
        until("haproxy listens", START, || Ok(guest.run(|| TcpStream::connect(ADDRESS))??))?;
        Ok(Self { daemon, guest })
    }
}

/// The limit of connections is raised to what the bench parks. By default haproxy wants as many descriptors again for
/// the upstream, which idle connections do not need.
fn configuration(syslog: &str) -> String {
    format!(
        "global
    log {syslog} local0 info
    log-tag haproxy-metadata-proxy
    maxconn 10500
    no strict-limits
    nbthread 2
defaults
    log global
    mode http
    option httplog
    option dontlognull
    option forwardfor
    http-reuse always
    retries 3
    timeout http-request 30s
    timeout http-keep-alive 120s
    timeout connect 30s
    timeout client 120s
    timeout server 120s
listen listener
    bind {ADDRESS}
    http-request add-header X-OVN-Network-ID 5d1bfa6c-8fa9-4d3b-8d0e-0a8a4f1b2c3d
    server metadata {}
",
        nova::ADDRESS
    )
}
