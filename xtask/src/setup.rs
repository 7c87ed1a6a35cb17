//! Makes a Debian machine able to build and test everything. Idempotent: what is there is left alone.
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, bail};

use crate::{
    build,
    command::{cargo, find, is_root, root, run_quietly, say},
    debian, ebpf, vm,
};

/// Programs that building needs: a C compiler for a crate with C and assembler parts (aws-lc-sys), and for bpf-linker's.
const BUILD_PROGRAMS: &[(&str, &str)] = &[("cc", "gcc libc6-dev")];

/// Programs that tests and demo run, and the packages they come in.
const TEST_PROGRAMS: &[(&str, &str)] = &[
    ("ip", "iproute2"),
    ("ethtool", "ethtool"),
    ("ping", "iputils-ping"),
    ("arping", "iputils-arping"),
    ("curl", "curl"),
    ("openssl", "openssl"),
    ("wget", "wget"),
    ("udhcpc", "udhcpc"),
    ("busybox", "busybox"),
    ("ovsdb-server", "openvswitch-switch"),
    ("ovs-vswitchd", "openvswitch-switch"),
    ("ovs-pki", "openvswitch-pki"),
    ("ovn-northd", "ovn-central"),
    ("ovn-controller", "ovn-host"),
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("depmod", "kmod"),
    ("setpriv", "util-linux"),
];

/// Files that cloud-init needs besides itself.
const CLOUD_INIT_FILES: &[(&str, &str)] = &[
    ("/usr/bin/python3", "python3"),
    ("/usr/lib/python3/dist-packages/configobj", "python3-configobj"),
    ("/usr/lib/python3/dist-packages/jinja2", "python3-jinja2"),
    ("/usr/lib/python3/dist-packages/jsonpatch.py", "python3-jsonpatch"),
    ("/usr/lib/python3/dist-packages/jsonschema", "python3-jsonschema"),
    ("/usr/lib/python3/dist-packages/oauthlib", "python3-oauthlib"),
    ("/usr/lib/python3/dist-packages/requests", "python3-requests"),
    ("/usr/lib/python3/dist-packages/yaml", "python3-yaml"),
];

/// Reader that configurations are compared with. The interpreter is Debian's, whose modules these are.
const OSLO_CONFIG_FILES: &[(&str, &str)] =
    &[("/usr/bin/python3", "python3"), ("/usr/lib/python3/dist-packages/oslo_config", "python3-oslo.config")];

/// Readers of a request's path in front of Nova's code, and within it.
const NOVA_FILES: &[(&str, &str)] = &[
    ("/usr/bin/python3", "python3"),
    ("/usr/lib/python3/dist-packages/eventlet", "python3-eventlet"),
    ("/usr/lib/python3/dist-packages/paste/urlmap.py", "python3-paste"),
    ("/usr/lib/python3/dist-packages/webob", "python3-webob"),
];

/// Installers of modules of PyPI's and npm's, and what those are run by.
const MODULE_FILES: &[(&str, &str)] = &[
    ("/usr/bin/python3", "python3"),
    ("/usr/lib/python3/dist-packages/pip", "python3-pip"),
    ("node", "nodejs"),
    ("npm", "npm"),
];

/// Clients of EC2's interface that are PyPI's.
const PYPI_CLIENTS: &[&str] = &["botocore==1.44.5", "ec2-metadata==3.0.0"];

/// The same of npm's: the last version for the node of Debian 12.
const NPM_CLIENTS: &[&str] = &["@aws-sdk/ec2-metadata-service@3.908.0"];

/// Grafana's types of a dashboard, and the compiler that holds one to them: the last one for the node of Debian 12.
const GRAFANA_TYPES: &[&str] = &["@grafana/grafana-foundation-sdk@0.0.21", "typescript@5.9.3"];

/// Says which of them are in a folder.
const REQUIREMENTS: &str = "requirements.txt";

/// The suites of which the tests take cloud-init: before it asked over IPv6, and since.
const CLOUD_INIT_SUITES: &[&str] = &["bookworm", "trixie"];

/// Open vSwitch with DPDK and what it is linked with besides the other one's libraries, by Debian 12's versions of their interfaces.
const DPDK_PACKAGES: &[&str] = &[
    "openvswitch-switch-dpdk",
    "libbsd0",
    "libfdt1",
    "libmd0",
    "librte-cryptodev23",
    "librte-dmadev23",
    "librte-eal23",
    "librte-ethdev23",
    "librte-hash23",
    "librte-kvargs23",
    "librte-mbuf23",
    "librte-mempool23",
    "librte-mempool-ring23",
    "librte-meter23",
    "librte-net23",
    "librte-pci23",
    "librte-rcu23",
    "librte-ring23",
    "librte-telemetry23",
    "librte-vhost23",
];

/// Programs that virtual machines with other kernels need besides.
const VM_PROGRAMS: &[(&str, &str)] = &[("dpkg-deb", "dpkg"), ("/usr/lib/systemd/systemd", "systemd")];

/// Programs that make a guest's disk.
const CLOUD_GUEST_PROGRAMS: &[(&str, &str)] = &[("debootstrap", "debootstrap"), ("mke2fs", "e2fsprogs")];

/// Programs that make packages.
const DIST_PROGRAMS: &[(&str, &str)] = &[
    ("dpkg-deb", "dpkg"),
    ("objcopy", "binutils"),
    ("objdump", "binutils"),
    ("strip", "binutils"),
    ("git", "git"),
    ("xz", "xz-utils"),
    ("rpmbuild", "rpm"),
    ("lintian", "lintian"),
    ("rpmlint", "rpmlint"),
    ("dnf", "dnf"),
    ("createrepo_c", "createrepo-c"),
    ("/etc/ssl/certs/ca-certificates.crt", "ca-certificates"),
];

/// Programs that the checks of a change run besides.
const CHECK_PROGRAMS: &[(&str, &str)] = &[("cargo-clippy", "rust-web-clippy"), ("cargo-fmt", "rustfmt-web")];

/// Programs that run a container.
const CONTAINER_PROGRAMS: &[(&str, &str)] = &[("podman", "podman"), ("runc", "runc")];

/// Programs of the other agent for each network, in tests and in measurements.
const INCUMBENT_PROGRAMS: &[(&str, &str)] = &[("haproxy", "haproxy")];

/// Files that Neutron's own agent for OVN needs besides haproxy, and that make a virtual environment for it.
const NEUTRON_PROGRAMS: &[(&str, &str)] = &[
    ("/usr/bin/python3", "python3"),
    ("/usr/lib/python3/dist-packages/pip", "python3-pip"),
    ("iptables-save", "iptables"),
    ("unshare", "util-linux"),
];

/// Neutron of OpenStack 2026.2 with all that it needs, as PyPI has them.
const NEUTRON_REQUIREMENTS: &str = include_str!("neutron.txt");

/// Counts system calls and samples stacks.
const PROFILE_PROGRAMS: &[(&str, &str)] = &[("perf", "linux-perf")];

/// Clients that the measurements of ovsdb-client compare with, and the schema that they use.
const OVSDB_BENCH_FILES: &[(&str, &str)] = &[
    ("ovsdb-server", "openvswitch-switch"),
    ("ovn-sbctl", "ovn-common"),
    ("/usr/lib/python3/dist-packages/ovs/db/idl.py", "python3-openvswitch"),
];

/// Debian's newest toolchain for those who have none that can compile the eBPF programs.
const TOOLCHAIN_PACKAGES: &[&str] = &["rustc-web", "cargo-web", "rust-web-src"];

/// All of it.
pub(crate) fn everything() -> anyhow::Result<()> {
    for_checks()?;
    say("setup complete");
    Ok(())
}

/// Installs for a build of the agent.
pub(crate) fn for_build() -> anyhow::Result<()> {
    packages(BUILD_PROGRAMS)?;
    let toolchain = toolchain()?;
    say(&format!("eBPF programs are compiled by {}", toolchain.name));
    linker()
}

/// Installs for the tests.
pub(crate) fn for_tests() -> anyhow::Result<()> {
    packages(TEST_PROGRAMS)?;
    packages(INCUMBENT_PROGRAMS)?;
    packages(CONTAINER_PROGRAMS)?;
    packages(CLOUD_INIT_FILES)?;
    packages(OSLO_CONFIG_FILES)?;
    packages(NOVA_FILES)?;
    cloud_init()?;
    ec2_clients()?;
    prometheus()?;
    grafana_types()?;
    open_vswitch_with_dpdk()?;
    vm::guest_image()?;
    for_build()
}

/// Installs for packages.
pub(crate) fn for_dist() -> anyhow::Result<()> {
    packages(DIST_PROGRAMS)?;
    for_build()
}

/// Installs for the tests in virtual machines.
pub(crate) fn for_vm_tests() -> anyhow::Result<()> {
    packages(VM_PROGRAMS)?;
    packages(DIST_PROGRAMS)?;
    for_tests()
}

/// Installs for guests with cloud-init.
pub(crate) fn for_cloud_guest() -> anyhow::Result<()> {
    packages(CLOUD_GUEST_PROGRAMS)?;
    for_tests()
}

/// Installs for the checks of a change, tests included.
pub(crate) fn for_checks() -> anyhow::Result<()> {
    packages(CHECK_PROGRAMS)?;
    for_tests()
}

/// Installs for the measurements of the proxy.
pub(crate) fn for_proxy_bench(profile: bool) -> anyhow::Result<()> {
    packages(INCUMBENT_PROGRAMS)?;
    if profile {
        packages(PROFILE_PROGRAMS)?;
    }
    for_tests()
}

/// Installs for the comparison with Neutron's own agent; gives the folder of that agent.
pub(crate) fn for_incumbent_bench() -> anyhow::Result<PathBuf> {
    packages(NEUTRON_PROGRAMS)?;
    for_tests()?;
    neutron()
}

/// Installs for the measurements of ovsdb-client.
pub(crate) fn for_ovsdb_bench() -> anyhow::Result<()> {
    packages(BUILD_PROGRAMS)?;
    packages(OVSDB_BENCH_FILES)
}

fn packages(programs: &[(&str, &str)]) -> anyhow::Result<()> {
    let missing: Vec<&(&str, &str)> =
        programs.iter().filter(|(program, _)| find(program).is_none()).collect();
    let mut wanted: Vec<&str> = missing.iter().flat_map(|(_, packages)| packages.split(' ')).collect();
    wanted.dedup();
    if wanted.is_empty() {
        return Ok(());
    }
    say(&format!("missing: {}", missing.iter().map(|(program, _)| *program).collect::<Vec<_>>().join(", ")));
    install(&wanted)
}

/// Installs packages without starting the services they bring: a machine that runs tests is no hypervisor.
fn install(packages: &[&str]) -> anyhow::Result<()> {
    let list = packages.join(" ");
    if find("apt-get").is_none() {
        bail!("this is no Debian machine: install the equivalents of these packages by hand: {list}");
    }
    if !is_root() {
        bail!("installing packages needs root: run this as root, or apt-get install {list}");
    }
    let _policy = NoServices::declare()?;
    let apt = || {
        let mut apt = Command::new("apt-get");
        // A fresh machine may be upgrading itself.
        apt.env("DEBIAN_FRONTEND", "noninteractive").args(["-q", "-y", "-o", "DPkg::Lock::Timeout=300"]);
        apt
    };
    run_quietly(apt().arg("update"))?;
    run_quietly(apt().args(["install", "--no-install-recommends"]).args(packages))
}

/// Debian's way to keep packages from starting services (invoke-rc.d(8)), for as long as this lives. One that the
/// machine has already stays as it is.
struct NoServices {
    ours: bool,
}

impl NoServices {
    const POLICY: &str = "/usr/sbin/policy-rc.d";

    fn declare() -> anyhow::Result<Self> {
        use std::os::unix::fs::PermissionsExt as _;
        if Path::new(Self::POLICY).exists() {
            return Ok(Self { ours: false });
        }
        fs::write(Self::POLICY, "#!/bin/sh\nexit 101\n")
            .with_context(|| format!("cannot write {}", Self::POLICY))?;
        fs::set_permissions(Self::POLICY, fs::Permissions::from_mode(0o755))?;
        Ok(Self { ours: true })
    }
}

impl Drop for NoServices {
    fn drop(&mut self) {
        if self.ours
            && let Err(error) = fs::remove_file(Self::POLICY)
        {
            say(&format!("cannot remove {}: {error}; remove it by hand", Self::POLICY));
        }
    }
}

/// cloud-init is unpacked, never installed: its units would run at the machine's next boot.
fn cloud_init() -> anyhow::Result<()> {
    for suite in CLOUD_INIT_SUITES {
        let folder = build::target().join("cloud-init").join(suite);
        debian::unpacked(&folder, &[suite], false, |apt, draft| apt.unpack(&["cloud-init"], draft))?;
    }
    Ok(())
}

/// Prometheus is unpacked as well: its package has a service.
fn prometheus() -> anyhow::Result<()> {
    let folder = build::target().join("prometheus");
    debian::unpacked(&folder, &["bookworm"], false, |apt, draft| apt.unpack(&["prometheus"], draft))?;
    Ok(())
}

/// Open vSwitch with DPDK is unpacked as well: installed it would be this machine's ovs-vswitchd.
fn open_vswitch_with_dpdk() -> anyhow::Result<()> {
    let folder = build::target().join("dpdk");
    debian::unpacked(&folder, &["bookworm"], false, |apt, draft| apt.unpack(DPDK_PACKAGES, draft))?;
    Ok(())
}

/// Clients of EC2's interface are unpacked beside each other: Debian's package would bring rules for devices, and what is PyPI's
/// or npm's is no part of the machine.
fn ec2_clients() -> anyhow::Result<()> {
    let folder = build::target().join("ec2-clients");
    debian::unpacked(&folder, &["bookworm"], false, |apt, draft| apt.unpack(&["amazon-ec2-utils"], draft))?;
    let mut pip = Command::new("/usr/bin/python3");
    pip.args(["-m", "pip", "install", "--quiet", "--root-user-action=ignore", "--no-compile", "--target"]);
    modules(&folder.join("pypi"), pip, PYPI_CLIENTS)?;
    modules(&folder.join("npm"), npm(), NPM_CLIENTS)
}

/// Grafana itself is under the AGPL, and none of Debian's packages.
fn grafana_types() -> anyhow::Result<()> {
    modules(&build::target().join("grafana"), npm(), GRAFANA_TYPES)
}

/// Installs into the folder that comes next.
fn npm() -> Command {
    let mut npm = Command::new("npm");
    npm.args(["install", "--silent", "--no-audit", "--no-fund", "--ignore-scripts", "--prefix"]);
    npm
}

/// Neutron in a virtual environment of its own, unless that very one is there. An environment cannot be moved: what is complete says
/// so by its list.
fn neutron() -> anyhow::Result<PathBuf> {
    let folder = build::target().join("neutron");
    let installed = folder.join(REQUIREMENTS);
    if fs::read_to_string(&installed).unwrap_or_default() == NEUTRON_REQUIREMENTS {
        return Ok(folder);
    }
    if folder.exists() {
        fs::remove_dir_all(&folder).with_context(|| format!("cannot remove {}", folder.display()))?;
    }
    say("fetching neutron and what it needs");
    let python = || Command::new("/usr/bin/python3");
    run_quietly(python().args(["-m", "venv", "--without-pip"]).arg(&folder))?;
    let draft = folder.join("requirements.draft");
    fs::write(&draft, NEUTRON_REQUIREMENTS)?;
    let mut pip = python();
    pip.args(["-m", "pip", "--python"]).arg(folder.join("bin/python"));
    run_quietly(pip.args(["install", "--quiet", "--root-user-action=ignore", "--requirement"]).arg(&draft))?;
    fs::rename(draft, installed)?;
    Ok(folder)
}

/// Installs modules into a folder, unless those very ones are there.
fn modules(folder: &Path, mut install: Command, wanted: &[&str]) -> anyhow::Result<()> {
    let list = wanted.join("\n");
    if fs::read_to_string(folder.join(REQUIREMENTS)).unwrap_or_default() == list {
        return Ok(());
    }
    packages(MODULE_FILES)?;
    // What is in place is complete.
    let draft = folder.with_extension("draft");
    for old in [folder, &draft] {
        if old.exists() {
            fs::remove_dir_all(old).with_context(|| format!("cannot remove {}", old.display()))?;
        }
    }
    say(&format!("fetching {}", wanted.join(", ")));
    run_quietly(install.arg(&draft).args(wanted))?;
    fs::write(draft.join(REQUIREMENTS), list)?;
    Ok(fs::rename(&draft, folder)?)
}

/// A toolchain that can compile for the eBPF target; the first that can be had, in this order: one that is there,
/// rustup's source component for the one in use, Debian's packages.
fn toolchain() -> anyhow::Result<ebpf::Toolchain> {
    if let Ok(toolchain) = ebpf::Toolchain::find() {
        return Ok(toolchain);
    }
    if find("rustup").is_some() {
        let component =
            run_quietly(Command::new("rustup").current_dir(root()).args(["component", "add", "rust-src"]));
        match component {
            Ok(()) => {
                if let Ok(toolchain) = ebpf::Toolchain::find() {
                    return Ok(toolchain);
                }
            }
            Err(error) => say(&format!("rustup has no source of core for us: {error:#}")),
        }
    }
    install(TOOLCHAIN_PACKAGES)?;
    ebpf::Toolchain::find().map_err(|error| anyhow::anyhow!("{error}"))
}

/// bpf-linker goes to cargo's folder, or, where another version lives there, to our own.
fn linker() -> anyhow::Result<()> {
    if ebpf::linker(root()).is_some() {
        return Ok(());
    }
    say("installing bpf-linker, which takes a minute or two");
    let mut install = cargo();
    // Its own build must not inherit the workspace's place or flags.
    install.current_dir("/").args(["install", "--locked", "--version", ebpf::LINKER_VERSION, "bpf-linker"]);
    if ebpf::cargo_home().join("bin/bpf-linker").exists() {
        install.args(["--force", "--root"]).arg(root().join("target/tools"));
    }
    run_quietly(&mut install)?;
    match ebpf::linker(root()) {
        Some(_) => Ok(()),
        None => bail!("bpf-linker {} was installed but does not start", ebpf::LINKER_VERSION),
    }
}
