//! The lab's processes: three databases, northd, the switch and ovn-controller.

use std::{os::unix::net::UnixStream, path::Path, process::Command, time::Duration};

use anyhow::{Context as _, Result};

use super::{
    Datapath, dpdk,
    southbound::{Servers, Southbound},
};
use crate::{
    command::{Words as _, run},
    netns::Namespace,
    port::uuid,
    process::Daemon,
    sandbox::Sandbox,
    wait::until,
};

pub(super) const NB_SOCKET: &str = "nb.sock";
pub(super) const OVS_SOCKET: &str = "db.sock";
/// Host name of the lab's own chassis.
pub const HOSTNAME: &str = "lab-host";

const NB_SCHEMA: &str = "/usr/share/ovn/ovn-nb.ovsschema";
pub(super) const OVS_SCHEMA: &str = "/usr/share/openvswitch/vswitch.ovsschema";
const START: Duration = Duration::from_secs(90);

#[derive(Debug)]
pub(super) struct Daemons {
    // Dropped in this order: clients before their servers.
    pub(super) controller: Daemon,
    pub(super) vswitchd: Daemon,
    _northd: Daemon,
    ovs_database: Daemon,
    pub(super) southbound: Servers,
    _northbound: Daemon,
}

impl Daemons {
    pub(super) fn start(
        sandbox: &Sandbox,
        host: &Namespace,
        ovs: &Namespace,
        datapath: Datapath,
        southbound: Southbound,
    ) -> Result<Self> {
        run(Command::new("ovsdb-tool").arg("create").arg(sandbox.path("nb.db")).arg(NB_SCHEMA))?;
        let northbound = spawn_database(sandbox, host, "nb", "nb.db", NB_SOCKET, &[])?;
        let southbound = Servers::start(sandbox, host, southbound)?;
        let mut northd = command(sandbox, host, "ovn-northd")?;
        northd.arg(format!("--ovnnb-db={}", unix(sandbox, NB_SOCKET)));
        northd.arg(format!("--ovnsb-db={}", southbound.sockets(sandbox)));
        let northd = spawn(sandbox, "northd", northd)?;

        let Switch { controller, vswitchd, ovs_database } =
            Switch::start(sandbox, ovs, datapath, HOSTNAME, &southbound.sockets(sandbox))?;

        Ok(Self { controller, vswitchd, _northd: northd, ovs_database, southbound, _northbound: northbound })
    }

    pub(super) fn kill_ovs_database(&mut self) -> Result<()> {
        self.ovs_database.kill().map(drop)
    }

    pub(super) fn start_ovs_database(&mut self, sandbox: &Sandbox, ovs: &Namespace) -> Result<()> {
        self.ovs_database = spawn_ovs_database(sandbox, ovs)?;
        Ok(())
    }
}

/// The processes of a chassis alone.
#[derive(Debug)]
pub(super) struct Switch {
    // Dropped in this order: clients before their servers.
    pub(super) controller: Daemon,
    pub(super) vswitchd: Daemon,
    pub(super) ovs_database: Daemon,
}

impl Switch {
    /// Starts them in a namespace, with a bridge `br-int`.
    pub(super) fn start(
        sandbox: &Sandbox,
        ovs: &Namespace,
        datapath: Datapath,
        hostname: &str,
        southbound: &str,
    ) -> Result<Self> {
        let datapath_type = datapath.kind();
        let file = sandbox.path("conf.db");
        run(Command::new("ovsdb-tool").arg("create").arg(file).arg(OVS_SCHEMA))?;
        let ovs_database = spawn_ovs_database(sandbox, ovs)?;
        let mut init = client("ovs-vsctl", sandbox, OVS_SOCKET);
        run(init
            .words("--no-wait init -- set Open_vSwitch . external_ids:ovn-bridge=br-int")
            .words("external_ids:ovn-encap-type=geneve external_ids:ovn-encap-ip=127.0.0.1")
            .words(format!("external_ids:ovn-bridge-datapath-type={datapath_type}"))
            .words("external_ids:ovn-remote-probe-interval=30000")
            .words(format!("external_ids:system-id={} external_ids:hostname={hostname}", uuid()?))
            .arg(format!("external_ids:ovn-remote=\"{southbound}\""))
            // Without this the userspace datapath drops the unfinished checksums that guests with offloads send.
            // The kernel's has no such thing to enable.
            .words(format!("other_config:userspace-tso-enable={}", datapath == Datapath::Userspace))
            .args(if datapath == Datapath::Dpdk { dpdk::SETTINGS } else { &[] }))?;
        let vswitchd = spawn_vswitchd(sandbox, ovs, datapath)?;
        run(client("ovs-vsctl", sandbox, OVS_SOCKET)
            .words("--may-exist add-br br-int -- set Bridge br-int fail-mode=secure")
            .words(format!("datapath_type={datapath_type} other_config:disable-in-band=true")))?;
        let controller = spawn_controller(sandbox, ovs)?;
        Ok(Self { controller, vswitchd, ovs_database })
    }
}

/// A command line client of one of the databases, which gives up rather than wait for ever.
pub(super) fn client(program: &str, sandbox: &Sandbox, socket: &str) -> Command {
    let mut command = Command::new(program);
    command.arg("--timeout=30").arg(format!("--db={}", unix(sandbox, socket)));
    command
}

pub(super) fn spawn_vswitchd(sandbox: &Sandbox, ovs: &Namespace, datapath: Datapath) -> Result<Daemon> {
    let mut vswitchd = match datapath {
        Datapath::Dpdk => dpdk::vswitchd(sandbox, |program| command(sandbox, ovs, program))?,
        Datapath::Userspace | Datapath::Kernel => command(sandbox, ovs, "ovs-vswitchd")?,
    };
    vswitchd.arg(unix(sandbox, OVS_SOCKET));
    if datapath != Datapath::Kernel {
        vswitchd.arg("--disable-system");
    }
    spawn(sandbox, "vswitchd", vswitchd)
}

pub(super) fn spawn_controller(sandbox: &Sandbox, ovs: &Namespace) -> Result<Daemon> {
    let mut controller = command(sandbox, ovs, "ovn-controller")?;
    controller.arg(unix(sandbox, OVS_SOCKET));
    spawn(sandbox, "controller", controller)
}

fn spawn_ovs_database(sandbox: &Sandbox, ovs: &Namespace) -> Result<Daemon> {
    spawn_database(sandbox, ovs, "ovsdb", "conf.db", OVS_SOCKET, &[])
}

pub(super) fn spawn_database(
    sandbox: &Sandbox,
    netns: &Namespace,
    name: &str,
    file: &str,
    socket: &str,
    arguments: &[String],
) -> Result<Daemon> {
    let mut server = command(sandbox, netns, "ovsdb-server")?;
    server.arg(sandbox.path(file)).arg(format!("--remote=p{}", unix(sandbox, socket)));
    server.arg(format!("--unixctl={}", sandbox.path(format!("{name}.ctl")).display())).args(arguments);
    let mut server = spawn(sandbox, name, server)?;
    let socket = sandbox.path(socket);
    until(&format!("{name} accepts connections"), START, || {
        // Waiting would not help if it ended.
        server.check_running().map_or_else(|ended| Ok(Err(ended)), |()| accepts(&socket).map(Ok))
    })??;
    Ok(server)
}

fn accepts(socket: &Path) -> Result<()> {
    UnixStream::connect(socket).with_context(|| format!("cannot connect to {}", socket.display()))?;
    Ok(())
}

fn spawn(sandbox: &Sandbox, name: &str, mut command: Command) -> Result<Daemon> {
    command.words("-vconsole:info -vsyslog:off -vfile:off");
    Daemon::spawn(name, command, sandbox.log(name))
}

/// A daemon that keeps all its files in the run directory.
fn command(sandbox: &Sandbox, netns: &Namespace, program: &str) -> Result<Command> {
    let mut command = netns.command(program)?;
    for variable in ["OVS_RUNDIR", "OVN_RUNDIR", "OVS_DBDIR", "OVN_DBDIR", "OVS_LOGDIR", "OVN_LOGDIR"] {
        command.env(variable, sandbox.dir());
    }
    Ok(command)
}

pub(super) fn unix(sandbox: &Sandbox, socket: &str) -> String {
    format!("unix:{}", sandbox.path(socket).display())
}
