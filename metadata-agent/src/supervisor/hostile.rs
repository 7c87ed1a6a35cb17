//! A guest-facing process that was taken over, against the supervisor: whatever it says, it gets connections to Nova's
//! endpoints and nothing else, and takes nothing that others need.
use std::{
    env, fs,
    io::{IoSlice, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    os::fd::{AsFd as _, AsRawFd, OwnedFd},
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use fuzz::Random;
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};

use socket2::{Domain, SockAddr, SockRef, Socket, Type};

use super::{Guests, Orphan, Parts, Supervisor};
use crate::{
    config::{self, Limits, LogFormat},
    directory::Directory,
    health::DataPlane as _,
    link::{ADOPTION, Command as Told, Confinement, Event, NAME, NovaSettings, PROTOCOL, Setup},
    nova::{
        Dialler,
        testing::{dialler, refusing, settings},
    },
    packets::Channel,
};

/// Says to the test program that it is the process, and which of them.
const HOSTILE: &str = "METADATA_TEST_HOSTILE";
/// Processes that are taken over, one after another.
const PROCESSES: usize = 7;
/// Messages of each.
const MESSAGES: usize = 400;

/// The process: it begins as a good one does, and then says what comes to its mind.
#[test]
fn taken_over() {
    let Some(seed) = env::var(HOSTILE).ok().and_then(|seed| seed.parse().ok()) else { return };
    let mut random = Random::new(seed);
    let socket = std::io::stdin().as_fd().try_clone_to_owned().unwrap();
    let raw = socket.as_raw_fd();
    let channel = Channel::new(socket.into()).unwrap();
    let (Told::Begin(_), given) = channel.receive::<Told>(Some(Duration::from_secs(10))).unwrap() else {
        panic!("another beginning")
    };
    channel.send(&Event::Ready { lacking: vec!["\x1b[2Jhostile\nready".repeat(50)] }, &[]).unwrap();
    let own: Vec<_> = given.iter().map(AsRawFd::as_raw_fd).collect();
    let send = |bytes: &[u8], with: usize| {
        let rights = [ControlMessage::ScmRights(&own[..with])];
        let control = if with == 0 { &[][..] } else { &rights };
        sendmsg::<()>(raw, &[IoSlice::new(bytes)], control, MsgFlags::MSG_NOSIGNAL, None).is_ok()
    };
    for number in 0..MESSAGES as u64 {
        let dial = Event::Dial {
            id: if random.below(2) == 0 { number } else { u64::MAX },
            endpoint: [0, 0, 0, 1, 7, usize::MAX][random.below(6)],
            within: [Duration::from_millis(50), Duration::ZERO, Duration::MAX][random.below(3)],
        };
        let forged = ["metadata_ready 1", "metadata_connections{a=\"\n\"} 1", "# TYPE metadata_ready gauge"];
        let status = Event::Status {
            numbers: format!("{}\n# EOF\n", forged[random.below(3)]),
            notes: vec!["\x1b]0;owned\x07".to_owned(); 100],
        };
        let good = Event::Status {
            numbers: "metadata_connections 1\n# EOF\n".to_owned(),
            notes: vec!["\x1b[2J".into()],
        };
        let text = |event: &Event| serde_json::to_vec(event).unwrap();
        // What a supervisor bears with is likelier than what ends the process.
        let bytes = match random.below(60) {
            0 => text(&status),
            1 => (0..random.below(200)).map(|_| random.below(256) as u8).collect(),
            2 => text(&Event::Ready { lacking: vec![] }),
            3 => text(&Event::Adopted { pid: 1, has_tls: true }),
            4 => b"{\"Dial\":{\"id\":-1,\"endpoint\":1e99,\"within\":null}}".to_vec(),
            5 => b"[".repeat(100_000),
            6..20 => text(&good),
            _ => text(&dial),
        };
        if !send(&bytes, if random.below(4) == 0 { own.len() } else { 0 }) {
            break;
        }
    }
    // And then it is silent, without listening.
    let _ = std::io::stdin().read(&mut [0; 1]);
    std::process::exit(0);
}

fn hostile() -> Command {
    static STARTED: AtomicUsize = AtomicUsize::new(1);
    let mut command = Command::new("/proc/self/exe");
    command.args(["--exact", "supervisor::hostile::taken_over", "--nocapture"]);
    command.env(HOSTILE, STARTED.fetch_add(1, Ordering::Relaxed).to_string());
    command
}

fn folder(name: &str) -> PathBuf {
    let folder = env::temp_dir().join(format!("metadata-agent-{name}-{}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    folder
}

fn parts(command: fn() -> Command, folder: &Path, endpoints: Vec<config::Endpoint>) -> Parts {
    let timeout = Duration::from_secs(1);
    let setup = Setup {
        protocol: PROTOCOL,
        limits: Limits::default(),
        nova: NovaSettings { endpoints, connect_timeout: timeout, response_timeout: timeout },
        has_tls: false,
        workers: vec![],
        lingers: false,
        lease: timeout,
        owner: 0,
        log_format: LogFormat::Text,
        log: "info".to_owned(),
        confinement: Confinement { uid: 0, gid: 0, root: folder.to_owned() },
    };
    Parts {
        command,
        setup,
        required: false,
        listeners: Vec::new(),
        run_dir: folder.to_owned(),
        orphans: Vec::new(),
        open: fs::File::open("/dev/null").unwrap().into(),
        directory: Arc::<Directory>::default(),
        numbers: vec!["metadata_connections".to_owned()],
    }
}

/// Address to which the process with the lingering sockets connects.
const PEER: &str = "127.0.0.1:18769";

/// The process: gives away sockets whose close takes an hour, since their peer takes nothing.
#[test]
fn lingering() {
    if env::var(HOSTILE).as_deref() != Ok("lingering") {
        return;
    }
    let socket = std::io::stdin().as_fd().try_clone_to_owned().unwrap();
    let channel = Channel::new(socket.into()).unwrap();
    let _: (Told, _) = channel.receive(Some(Duration::from_secs(10))).unwrap();
    channel.send(&Event::Ready { lacking: vec![] }, &[]).unwrap();
    let sockets: Vec<_> = (0..3)
        .map(|_| {
            let mut stream = TcpStream::connect(PEER).unwrap();
            SockRef::from(&stream).set_linger(Some(Duration::from_secs(3600))).unwrap();
            stream.set_nonblocking(true).unwrap();
            while stream.write(&[0; 1 << 16]).is_ok() {}
            stream
        })
        .collect();
    let dial = Event::Dial { id: 0, endpoint: 7, within: Duration::ZERO };
    for socket in sockets {
        channel.send(&dial, &[socket.as_fd()]).unwrap();
    }
    channel.wait_end();
    std::process::exit(0);
}

/// Sockets that come along with a message take time to close, for which the supervisor does not wait.
#[test]
fn sockets_that_linger_hold_up_nobody() {
    fn lingering() -> Command {
        let mut command = Command::new("/proc/self/exe");
        command.args(["--exact", "supervisor::hostile::lingering", "--nocapture"]);
        command.env(HOSTILE, "lingering");
        command
    }
    let folder = folder("lingering");
    let peer = TcpListener::bind(PEER).unwrap();
    thread::spawn(move || {
        let mut kept = Vec::new();
        while let Ok((stream, _)) = peer.accept() {
            kept.push(stream);
        }
    });
    let (guests, orders) = Guests::new(Arc::new(dialler(&[])));
    let supervisor =
        Supervisor::start(parts(lingering, &folder, Vec::new()), guests.clone(), orders).unwrap();
    let until = Instant::now() + Duration::from_secs(15);
    while guests.restarts() < 2 {
        assert!(Instant::now() < until, "the supervisor is stuck");
        thread::sleep(Duration::from_millis(20));
    }
    supervisor.stop();
    fs::remove_dir_all(&folder).unwrap();
}

/// The process: writes down whether a former one lingers, and ends.
#[test]
fn short_lived() {
    if env::var(HOSTILE).as_deref() != Ok("short-lived") {
        return;
    }
    let channel = Channel::new(std::io::stdin().as_fd().try_clone_to_owned().unwrap().into()).unwrap();
    let (Told::Begin(setup), _) = channel.receive::<Told>(Some(Duration::from_secs(10))).unwrap() else {
        panic!("another beginning")
    };
    let mut notes =
        fs::File::options().create(true).append(true).open(setup.confinement.root.join("lingers")).unwrap();
    writeln!(notes, "{}", setup.lingers).unwrap();
    channel.send(&Event::Ready { lacking: vec![] }, &[]).unwrap();
    std::process::exit(0);
}

/// One that is started while a former agent's process still has connections does not forget these.
#[test]
fn a_former_process_lingers_until_it_has_ended() {
    fn short_lived() -> Command {
        let mut command = Command::new("/proc/self/exe");
        command.args(["--exact", "supervisor::hostile::short_lived", "--nocapture"]);
        command.env(HOSTILE, "short-lived");
        command
    }
    let folder = folder("short-lived");
    let (guests, orders) = Guests::new(Arc::new(dialler(&[])));
    let mut parts = parts(short_lived, &folder, Vec::new());
    parts.setup.lingers = true;
    let supervisor = Supervisor::start(parts, guests.clone(), orders).unwrap();
    let noted = |count: usize| {
        let until = Instant::now() + Duration::from_secs(30);
        loop {
            let notes = fs::read_to_string(folder.join("lingers")).unwrap_or_default();
            let lines: Vec<String> = notes.lines().map(str::to_owned).collect();
            if lines.len() >= count {
                return lines;
            }
            assert!(Instant::now() < until, "{lines:?}");
            thread::sleep(Duration::from_millis(10));
        }
    };
    let before = noted(3);
    assert!(before.iter().all(|line| line == "true"), "{before:?}");
    guests.settle();
    // The next but one is started after that was heard.
    let after = noted(before.len() + 2);
    assert_eq!(after.last().unwrap(), "false", "{after:?}");
    supervisor.stop();
    fs::remove_dir_all(&folder).unwrap();
}

/// The process: an orphan that was taken over, named and found as an honest one. It lies about its id, or says nothing, and
/// in the end hangs up and goes on.
#[test]
fn orphaned() {
    let Ok(how) = env::var(HOSTILE) else { return };
    if !how.starts_with("orphaned") {
        return;
    }
    fs::write("/proc/self/comm", NAME.to_bytes()).unwrap();
    let adoption = Socket::from(std::io::stdin().as_fd().try_clone_to_owned().unwrap());
    if how == "orphaned and silent" {
        thread::sleep(Duration::from_secs(600));
    }
    let channel = Channel::new(adoption.accept().unwrap().0).unwrap();
    let _: (Told, _) = channel.receive(Some(Duration::from_secs(60))).unwrap();
    channel.send(&Event::Adopted { pid: 1, has_tls: true }, &[]).unwrap();
    if how == "orphaned and deaf" {
        let dial = Event::Dial { id: 0, endpoint: 7, within: Duration::ZERO };
        while channel.send(&dial, &[]).is_ok() {}
        thread::sleep(Duration::from_secs(600));
    }
    drop(channel);
    thread::sleep(Duration::from_secs(600));
}

/// An orphan that does not end is killed, whatever it says and does not say: it would accept guests' connections for ever.
#[test]
fn an_orphan_that_was_taken_over_ends() {
    let folder = folder("orphaned");
    let dialler = Arc::new(dialler(&[]));
    for (how, is_adopted) in [("silent", false), ("hanging up", true), ("deaf", true)] {
        let socket = Socket::new(Domain::UNIX, Type::SEQPACKET, None).unwrap();
        let waiting = folder.join("waiting.sock");
        socket.bind(&SockAddr::unix(&waiting).unwrap()).unwrap();
        socket.listen(8).unwrap();
        let mut command = Command::new("/proc/self/exe");
        command.args(["--exact", "supervisor::hostile::orphaned", "--nocapture"]);
        command.env(HOSTILE, format!("orphaned and {how}")).stdin(OwnedFd::from(socket));
        let mut child = command.spawn().unwrap();
        fs::rename(waiting, folder.join(format!("{ADOPTION}{}.sock", child.id()))).unwrap();
        let comm = format!("/proc/{}/comm", child.id());
        while !fs::read(&comm).unwrap().starts_with(NAME.to_bytes()) {
            thread::sleep(Duration::from_millis(5));
        }
        let orphans = Orphan::find(&folder, &dialler);
        assert_eq!(!orphans.is_empty(), is_adopted, "{how}");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let serving = tokio_util::sync::CancellationToken::new();
        serving.cancel();
        let (orders, _kept) = tokio::sync::mpsc::unbounded_channel();
        for orphan in orphans {
            let accompanied = orphan.accompany(dialler.clone(), serving.clone(), orders.clone());
            let ended = async { tokio::time::timeout(Duration::from_secs(60), accompanied).await };
            runtime.block_on(ended).unwrap();
        }
        let until = Instant::now() + Duration::from_secs(2);
        while child.try_wait().unwrap().is_none() {
            if Instant::now() > until {
                child.kill().unwrap();
                panic!("{how}: it goes on");
            }
            thread::sleep(Duration::from_millis(20));
        }
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 0, "{how}: a socket was left");
    }
    fs::remove_dir(&folder).unwrap();
}

fn descriptors() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}

#[test]
fn a_process_that_was_taken_over_gets_connections_to_nova_and_nothing_else() {
    let folder = folder("hostile");
    let nova = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = nova.local_addr().unwrap();
    let connections = Arc::new(AtomicUsize::new(0));
    thread::spawn({
        let connections = connections.clone();
        move || {
            while nova.accept().is_ok() {
                connections.fetch_add(1, Ordering::Relaxed);
            }
        }
    });
    let settings = settings(&[address, refusing()]);
    let endpoints = settings.endpoints.clone();
    let dialler = Dialler::new(&settings);
    let (guests, orders) = Guests::new(Arc::new(dialler.unwrap()));
    let parts = parts(hostile, &folder, endpoints);
    let supervisor = Supervisor::start(parts, guests.clone(), orders).unwrap();
    guests.serve();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let until = Instant::now() + Duration::from_secs(120);
    let mut most = 0;
    while guests.restarts() < PROCESSES as u64 {
        assert!(Instant::now() < until, "the supervisor is stuck after {} processes", guests.restarts());
        let numbers = runtime.block_on(guests.numbers());
        assert!(numbers.is_empty() || numbers == "metadata_connections 1\n", "{numbers:?}");
        for note in guests.notes() {
            assert!(note.len() < 1000 && !note.contains(char::is_control), "{note:?}");
        }
        most = most.max(descriptors());
        thread::sleep(Duration::from_millis(20));
    }
    assert!(guests.problem().is_some(), "it ended again and again");
    assert!(connections.load(Ordering::Relaxed) > 0);
    supervisor.stop();
    // Other tests have theirs meanwhile; what came along with messages would be hundreds.
    assert!(most < 400, "{most} descriptors");
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 0, "a socket was left");
    fs::remove_dir(&folder).unwrap();
}
