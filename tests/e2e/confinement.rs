//! The guest-facing process has given up everything that it could be taken over for.
#![allow(
    unsafe_code,
    reason = "system calls by their numbers, which is how a process that was taken over makes them"
)]

use std::{
    collections::BTreeMap,
    env, fs,
    fs::File,
    net::{SocketAddrV4, TcpListener},
    os::{
        fd::AsRawFd as _,
        unix::{fs::FileExt as _, process::ExitStatusExt as _},
    },
    process::Command,
    thread,
};

use anyhow::{Context as _, Result, bail, ensure};
use metadata_agent::{confinement, link::Confinement};
use metadata_tests::{
    agent::Options,
    check::{META_DATA, own_identity},
    cloud::{Chassis as _, Cloud},
    nova,
    pki::Authority,
    sandbox::Sandbox,
    stage::Stage,
    upstream::{Script, Upstream},
};
use nix::{errno::Errno, libc, sys::signal::Signal};
use rustls::pki_types::{PrivateKeyDer, pem::PemObject as _};

/// User and group of nobody.
const NOBODY: u32 = 65534;
/// Number of the system call that a confined process is to make, and its root.
const ATTEMPT: &str = "METADATA_TEST_SYSTEM_CALL";
const ROOT: &str = "METADATA_TEST_ROOT";

/// Verdict on a system call of a confined process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    /// It fails, and the process goes on.
    Refused,
    /// The process is killed.
    Killed,
}

/// Everything that a process which was taken over could want to do.
const FORBIDDEN: &[(&str, libc::c_long, Verdict)] = &[
    ("socket", libc::SYS_socket, Verdict::Refused),
    ("socketpair", libc::SYS_socketpair, Verdict::Refused),
    ("connect", libc::SYS_connect, Verdict::Refused),
    ("bind", libc::SYS_bind, Verdict::Refused),
    ("listen", libc::SYS_listen, Verdict::Refused),
    ("openat", libc::SYS_openat, Verdict::Refused),
    ("openat2", libc::SYS_openat2, Verdict::Refused),
    ("getdents64", libc::SYS_getdents64, Verdict::Refused),
    ("statx", libc::SYS_statx, Verdict::Refused),
    ("unlinkat", libc::SYS_unlinkat, Verdict::Refused),
    ("linkat", libc::SYS_linkat, Verdict::Refused),
    ("memfd_create", libc::SYS_memfd_create, Verdict::Refused),
    ("pipe2", libc::SYS_pipe2, Verdict::Refused),
    ("clone", libc::SYS_clone, Verdict::Refused),
    ("clone3", libc::SYS_clone3, Verdict::Refused),
    ("kill", libc::SYS_kill, Verdict::Refused),
    ("prlimit64", libc::SYS_prlimit64, Verdict::Refused),
    ("prctl", libc::SYS_prctl, Verdict::Refused),
    ("seccomp", libc::SYS_seccomp, Verdict::Refused),
    ("sendmmsg", libc::SYS_sendmmsg, Verdict::Refused),
    ("shmget", libc::SYS_shmget, Verdict::Refused),
    ("personality", libc::SYS_personality, Verdict::Refused),
    ("execve", libc::SYS_execve, Verdict::Killed),
    ("execveat", libc::SYS_execveat, Verdict::Killed),
    ("ptrace", libc::SYS_ptrace, Verdict::Killed),
    ("process_vm_readv", libc::SYS_process_vm_readv, Verdict::Killed),
    ("pidfd_open", libc::SYS_pidfd_open, Verdict::Killed),
    ("pidfd_getfd", libc::SYS_pidfd_getfd, Verdict::Killed),
    ("bpf", libc::SYS_bpf, Verdict::Killed),
    ("perf_event_open", libc::SYS_perf_event_open, Verdict::Killed),
    ("io_uring_setup", libc::SYS_io_uring_setup, Verdict::Killed),
    ("userfaultfd", libc::SYS_userfaultfd, Verdict::Killed),
    ("mount", libc::SYS_mount, Verdict::Killed),
    ("umount2", libc::SYS_umount2, Verdict::Killed),
    ("chroot", libc::SYS_chroot, Verdict::Killed),
    ("pivot_root", libc::SYS_pivot_root, Verdict::Killed),
    ("setns", libc::SYS_setns, Verdict::Killed),
    ("unshare", libc::SYS_unshare, Verdict::Killed),
    ("finit_module", libc::SYS_finit_module, Verdict::Killed),
    ("keyctl", libc::SYS_keyctl, Verdict::Killed),
    ("setuid", libc::SYS_setuid, Verdict::Killed),
    ("capset", libc::SYS_capset, Verdict::Killed),
];

/// Confined and with the arguments that the names have there, each fails as it should; this is that process.
#[test]
fn nothing_that_is_forbidden_can_be_done() -> Result<()> {
    if let Some(attempt) = env::var_os(ATTEMPT) {
        let number = attempt.to_str().context("a number")?.parse()?;
        return attempt_it(number, &env::var(ROOT)?);
    }
    let sandbox = Sandbox::create()?;
    let root = sandbox.path("empty");
    fs::create_dir(&root)?;
    for (name, number, expected) in FORBIDDEN {
        let mut inside = Command::new(env::current_exe()?);
        inside.args(["--exact", "confinement::nothing_that_is_forbidden_can_be_done", "--nocapture"]);
        let output = inside.env(ATTEMPT, number.to_string()).env(ROOT, &root).output()?;
        let said = String::from_utf8_lossy(&output.stdout);
        let verdict = match output.status.signal() {
            Some(signal) if signal == Signal::SIGSYS as i32 => Verdict::Killed,
            None if said.contains(&format!("refused {}", Errno::EPERM as i32)) => Verdict::Refused,
            _ => bail!("{name}: {}, {said}{}", output.status, String::from_utf8_lossy(&output.stderr)),
        };
        ensure!(verdict == *expected, "{name} is {verdict:?}");
    }
    Ok(())
}

/// Ends the process without anything that a confined one may not do.
fn attempt_it(number: libc::c_long, root: &str) -> Result<()> {
    let confinement = Confinement { uid: NOBODY, gid: NOBODY, root: root.into() };
    let mut lacking = confinement::give_up_privileges(&confinement);
    lacking.extend(confinement::give_up_system_calls());
    ensure!(lacking.is_empty(), "{lacking:?}");
    ensure!(File::open("/").is_err() && thread::Builder::new().spawn(|| ()).is_err());
    // SAFETY: with arguments that name nothing, it does nothing but fail, or end the process.
    let result = unsafe { libc::syscall(number, 0, 0, 0, 0, 0, 0) };
    println!("{} {}", if result < 0 { "refused" } else { "done" }, Errno::last_raw());
    std::process::exit(0)
}

/// A listening socket is the next process' as well: nothing can be done to it that lasts, and no signal be sent by way of
/// one.
#[test]
fn listening_sockets_cannot_be_spoilt() -> Result<()> {
    const INSIDE: &str = "METADATA_TEST_LISTENER";
    if let Some(root) = env::var_os(INSIDE) {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let socket = listener.as_raw_fd();
        let confinement = Confinement { uid: NOBODY, gid: NOBODY, root: root.into() };
        confinement::give_up_privileges(&confinement);
        ensure!(confinement::give_up_system_calls().is_empty());
        let set = |level, option, value: i32| {
            let length = size_of::<i32>() as libc::socklen_t;
            // SAFETY: the option's value is read from where it is.
            unsafe { libc::setsockopt(socket, level, option, (&raw const value).cast(), length) }
        };
        let blocking: libc::c_int = 0;
        ensure!(set(libc::IPPROTO_IP, libc::IP_TTL, 3) == 0, "what is needed can be set");
        // SAFETY: numbers, and for `FIONBIO` one that is read from where it is.
        let attempts = unsafe {
            [
                ("SO_LOCK_FILTER", set(libc::SOL_SOCKET, libc::SO_LOCK_FILTER, 1)),
                ("SO_MAX_PACING_RATE", set(libc::SOL_SOCKET, libc::SO_MAX_PACING_RATE, 1)),
                ("TCP_MAXSEG", set(libc::IPPROTO_TCP, libc::TCP_MAXSEG, 88)),
                ("TCP_DEFER_ACCEPT", set(libc::IPPROTO_TCP, libc::TCP_DEFER_ACCEPT, 60)),
                ("shutdown", libc::shutdown(socket, libc::SHUT_RDWR)),
                ("shutdown", libc::shutdown(socket, libc::SHUT_RD)),
                ("FIONBIO", libc::ioctl(socket, libc::FIONBIO, &raw const blocking)),
                ("F_SETFL", libc::fcntl(socket, libc::F_SETFL, libc::O_RDWR)),
                ("F_SETOWN", libc::fcntl(socket, libc::F_SETOWN, libc::getpid())),
                ("F_SETSIG", libc::fcntl(socket, 10, libc::SIGKILL)),
            ]
        };
        for (name, result) in attempts {
            ensure!(result == -1, "{name} can be done");
        }
        // What connects without `connect`.
        // SAFETY: a byte that is read from where it is, and no address.
        let sent = unsafe { libc::send(socket, (&raw const blocking).cast(), 1, libc::MSG_FASTOPEN) };
        ensure!(sent == -1 && Errno::last() == Errno::EPERM, "{sent}, {}", Errno::last());
        println!("all refused");
        std::process::exit(0);
    }
    all_is_refused_inside("listening_sockets_cannot_be_spoilt", INSIDE)
}

/// Runs that test once more, in a process that confines itself because the variable names its root.
fn all_is_refused_inside(test: &str, variable: &str) -> Result<()> {
    let sandbox = Sandbox::create()?;
    let root = sandbox.path("empty");
    fs::create_dir(&root)?;
    let mut inside = Command::new(env::current_exe()?);
    let output = inside
        .args(["--exact", &format!("confinement::{test}"), "--nocapture"])
        .env(variable, root)
        .output()?;
    ensure!(String::from_utf8_lossy(&output.stdout).contains("all refused"), "{output:?}");
    Ok(())
}

/// Memory can be had to write to, and not to execute.
#[test]
fn no_memory_can_be_executed() -> Result<()> {
    const INSIDE: &str = "METADATA_TEST_MEMORY";
    let map = |protection: i32| {
        // SAFETY: a new mapping of its own, at a place of the kernel's choice.
        unsafe {
            libc::mmap(std::ptr::null_mut(), 4096, protection, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0)
        }
    };
    if let Some(root) = env::var_os(INSIDE) {
        let confinement = Confinement { uid: NOBODY, gid: NOBODY, root: root.into() };
        confinement::give_up_privileges(&confinement);
        ensure!(confinement::give_up_system_calls().is_empty());
        let data = map(libc::PROT_READ | libc::PROT_WRITE);
        ensure!(data != libc::MAP_FAILED);
        ensure!(map(libc::PROT_READ | libc::PROT_EXEC) == libc::MAP_FAILED);
        // SAFETY: the mapping of above.
        let changed = unsafe { libc::mprotect(data, 4096, libc::PROT_READ | libc::PROT_EXEC) };
        ensure!(changed != 0 && Errno::last() == Errno::EPERM);
        println!("all refused");
        std::process::exit(0);
    }
    all_is_refused_inside("no_memory_can_be_executed", INSIDE)
}

/// Fields of /proc/<pid>/status.
fn status(process: u32) -> Result<BTreeMap<String, String>> {
    let text = fs::read_to_string(format!("/proc/{process}/status"))?;
    let fields = text.lines().filter_map(|line| line.split_once(':'));
    Ok(fields.map(|(name, value)| (name.to_owned(), value.trim().to_owned())).collect())
}

#[test]
fn the_running_process_has_no_privilege() -> Result<()> {
    let cloud = Cloud::with_inventory()?;
    let [guest, _] = cloud.overlapping_guests()?;
    own_identity(&guest)?;
    let process = cloud.agent.guest_process()?;
    for task in fs::read_dir(format!("/proc/{process}/task"))? {
        let task: u32 = task?.file_name().to_str().context("a thread")?.parse()?;
        let status = status(task)?;
        let nobody = format!("{NOBODY}\t{NOBODY}\t{NOBODY}\t{NOBODY}");
        for (field, expected) in [
            ("Uid", nobody.as_str()),
            ("Gid", nobody.as_str()),
            ("Groups", ""),
            ("CapInh", "0000000000000000"),
            ("CapPrm", "0000000000000000"),
            ("CapEff", "0000000000000000"),
            ("CapBnd", "0000000000000000"),
            ("CapAmb", "0000000000000000"),
            ("NoNewPrivs", "1"),
            ("Seccomp", "2"),
            ("Seccomp_filters", "2"),
        ] {
            ensure!(
                status.get(field).map(String::as_str) == Some(expected),
                "{field}: {:?}",
                status.get(field)
            );
        }
    }
    let root = fs::read_link(format!("/proc/{process}/root"))?;
    assert_eq!(root, cloud.agent.run_dir().join("empty"));
    assert_eq!(fs::read_dir(root)?.count(), 0);
    // Sockets, what a runtime waits with, its log, what tells its memory, and nothing to read or write.
    let log = cloud.chassis.sandbox().log("agent");
    for descriptor in fs::read_dir(format!("/proc/{process}/fd"))? {
        // A connection may end meanwhile.
        let Ok(target) = fs::read_link(descriptor?.path()) else { continue };
        let text = target.to_string_lossy();
        let is_known = text.starts_with("socket:[")
            || text.starts_with("anon_inode:[event")
            || text == format!("/proc/{process}/statm")
            || text == "/dev/null"
            || target == log;
        ensure!(is_known, "it has {text}");
    }
    // Nobody of its user may look into it either.
    let owner = fs::metadata(format!("/proc/{process}/fd"))?;
    assert_eq!(std::os::unix::fs::MetadataExt::uid(&owner), 0, "it can be dumped");
    let ready = cloud.agent.admin("GET", "/ready")?.text();
    ensure!(!ready.contains("confined"), "{ready}");
    Ok(())
}

#[test]
fn neither_the_secret_nor_the_private_key_is_in_its_memory() -> Result<()> {
    let stage = Stage::start()?;
    let authority = Authority::new(stage.sandbox(), "ca")?;
    authority.issue("client")?;
    let tls = authority.server(Some(&authority))?;
    let ok = Script::Answer(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok".to_vec());
    let upstream =
        Upstream::start_with(stage.host(), SocketAddrV4::new(*nova::ADDRESS.ip(), 8801), ok, Some(tls))?;
    let more = vec![
        ("DEFAULT", "nova_metadata_protocol = https".to_owned()),
        ("DEFAULT", "nova_metadata_port = 8801".to_owned()),
        ("DEFAULT", format!("auth_ca_cert = {}", authority.file("ca.pem"))),
        ("DEFAULT", format!("nova_client_cert = {}", authority.file("client.pem"))),
        ("DEFAULT", format!("nova_client_priv_key = {}", authority.file("client.key"))),
    ];
    let cloud = Cloud::on(stage, &Options { more, ..Options::default() })?;
    let [guest, _] = cloud.overlapping_guests()?;
    // With a signature that the other process has made.
    assert_eq!(guest.get(META_DATA)?.text(), "ok");
    assert!(upstream.connections() > 0);
    let pem = fs::read_to_string(authority.file("client.key"))?;
    let line = pem.lines().nth(1).context("the key has no second line")?.to_owned();
    let key = PrivateKeyDer::from_pem_slice(pem.as_bytes())?;
    // The private number itself, in the middle of the structure around it (RFC 5915, in RFC 5208).
    let private = key.secret_der()[36..68].to_vec();
    let secret = nova::SECRET.as_bytes().to_vec();
    let guests = memory(cloud.agent.guest_process()?)?;
    ensure!(holds(&guests, b"X-Instance-ID-Signature"), "its memory cannot be read");
    for (name, bytes) in
        [("the secret", &secret), ("the key", &private), ("the key's file", &line.into_bytes())]
    {
        ensure!(!holds(&guests, bytes), "{name} is in the memory of the guest-facing process");
    }
    // That this would be found is shown by the other process.
    let agent = memory(cloud.agent.id()?)?;
    ensure!(holds(&agent, &secret), "the secret is not in the agent's memory either");
    Ok(())
}

/// All memory of a process that can be read.
fn memory(process: u32) -> Result<Vec<Vec<u8>>> {
    let file = File::open(format!("/proc/{process}/mem"))?;
    let mut regions = Vec::new();
    for line in fs::read_to_string(format!("/proc/{process}/maps"))?.lines() {
        let (range, rest) = line.split_once(' ').context("a line without range")?;
        let (start, end) = range.split_once('-').context("a range without end")?;
        let (start, end) = (u64::from_str_radix(start, 16)?, u64::from_str_radix(end, 16)?);
        if !rest.starts_with('r') || line.contains("[v") {
            continue;
        }
        let mut bytes = vec![0; usize::try_from(end - start)?];
        file.read_exact_at(&mut bytes, start).with_context(|| format!("cannot read {line}"))?;
        regions.push(bytes);
    }
    Ok(regions)
}

fn holds(regions: &[Vec<u8>], wanted: &[u8]) -> bool {
    regions.iter().any(|bytes| bytes.windows(wanted.len()).any(|window| window == wanted))
}
