//! Broken requests against a whole connection, with a Nova that trusts nothing behind it.
use std::{
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use ::fuzz::{Random, fuzz};
use prometheus_client::registry::Registry;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::{
    access::Caller,
    connection::{Common, Connection},
    metrics::Metrics,
    seat::Seat,
    shares::Shares,
    shutdown::Shutdown,
    tick::Tick,
    upstream::{Observer, Upstream, testing},
};
use crate::{
    config::{self, Limits, RequestLimits},
    directory::{
        Directory, Identity, Port, RequestPolicy, Resolution, Signer, TokenKey, TokenKeys, TokenPolicy,
    },
};

/// Seeds: requests of clients, and of attackers.
const REQUESTS: &[&str] = &[
    "GET /latest/meta-data/ HTTP/1.1\r\nHost: 169.254.169.254\r\nUser-Agent: Cloud-Init/23\r\n\r\n",
    "HEAD /openstack HTTP/1.1\r\nHost: x\r\nX-Instance-ID: victim\r\n\r\n",
    "POST /openstack/latest/password HTTP/1.1\r\nHost: x\r\nContent-Length: 6\r\n\r\nsecret",
    "POST /openstack/latest/password HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
    "PUT /latest/api/token HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\nab",
    "GET http://169.254.169.254/a HTTP/1.1\r\nConnection: X-Instance-ID, keep-alive\r\nX-Tenant-ID: victim\r\n\r\n",
    "GET http://169.254.169.254?a HTTP/1.1\r\nHost: 169.254.169.254\r\n\r\n",
    "GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
    "PUT /latest/api/token HTTP/1.1\r\nX-aws-ec2-metadata-token-ttl-seconds: 60\r\n\r\n",
    "GET /latest/user-data HTTP/1.1\r\nX-aws-ec2-metadata-token: AAAA\r\n\r\n",
    "POST / HTTP/1.1\r\nContent-Length: 40\r\n\r\nGET /smuggled HTTP/1.1\r\nX-Instance-ID: v\r\n",
];

/// Marks by which Nova's answers are known.
const MARK: &[u8] = b"X-Nova: said so\r\n";

/// Dictionary of words that mean something where they are read.
const WORDS: &[&str] = &[
    "\r\n",
    "\n",
    "\r",
    "\r\n\r\n",
    " ",
    "\t",
    "\0",
    ":",
    ",",
    ";",
    "Content-Length: 5\r\n",
    "Content-Length:",
    "Transfer-Encoding: chunked\r\n",
    "Transfer-Encoding:",
    "chunked",
    "X-Instance-ID: victim\r\n",
    "X_Instance_ID: victim\r\n",
    "X-Metadata-Provider: v\r\n",
    "Accept: a\r\n",
    "Accept: a\r\n b",
    "0\r\n\r\n",
    "5\r\n",
    "ffffffffffffffff",
    "HTTP/1.1",
    "HTTP/1.0",
    "GET / HTTP/1.1\r\n\r\n",
    "GET /smuggled HTTP/1.1\r\nX-Instance-ID: victim\r\n\r\n",
    "http://",
    "#",
    "%00",
    "\u{e4}",
];

const INSTANCE: &str = "11111111-2222-3333-4444-555555555555";

/// A few requests, one after another, most of them broken somewhere.
fn requests(random: &mut Random) -> Vec<u8> {
    let mut bytes = Vec::new();
    for _ in 0..1 + random.below(4) {
        bytes.extend_from_slice(random.pick(REQUESTS).as_bytes());
    }
    if !random.once_in(8) {
        random.damage(&mut bytes, WORDS);
    }
    bytes.truncate(256 << 10);
    bytes
}

/// Requests that reach Nova are proper ones, whatever comes in on a connection and however it is cut: each has our
/// identity headers once and nobody else's.
#[test]
fn connections() {
    fuzz_connections("proxy::connections", None);
}

/// The same where session tokens are required: no request for a secret reaches Nova, since none has a good one.
#[test]
fn connections_with_tokens() {
    let tokens = TokenPolicy {
        keys: TokenKeys { current: TokenKey([7; 32]), previous: None },
        required: true,
        required_for: config::Tokens::default().required_for,
        required_from: Duration::ZERO,
        hop_limit: Some(1),
    };
    let policy = RequestPolicy { tokens: Some(tokens), hop_limit: Some(2), ..RequestPolicy::default() };
    fuzz_connections("proxy::connections_with_tokens", Some(policy));
}

fn fuzz_connections(name: &'static str, policy: Option<RequestPolicy>) {
    let nova = Arc::new(SuspiciousNova { keeps_secrets: policy.is_some(), ..SuspiciousNova::default() });
    let endpoint = nova.clone().start().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let _inside = runtime.enter();
    let limits = Limits {
        rates: RequestLimits { rate: config::Rate { rate: 0, burst: 1 }, windows: [None, None] },
        ..Limits::default()
    };
    let metrics = Metrics::register(&mut Registry::default());
    let observer: Arc<dyn Observer> = Arc::new(metrics.clone());
    let upstream = Upstream::new(Arc::new(testing::observed_nova(&[endpoint], &observer)), 0);
    let directory = Arc::new(Directory::default());
    let tap = directory.tap("tap0");
    let shares = Arc::new(Shares::new(directory, limits.clone(), metrics.clone()));
    let identity = Identity {
        port: "port".into(),
        instance: INSTANCE.into(),
        project: "project".into(),
        network: "network".into(),
        fixed_ips: vec!["192.168.1.10".parse().unwrap()],
    };
    let mut signed = Signer::new("secret").sign(identity).unwrap();
    signed.policy = policy;
    let known = Resolution::Known(Arc::new(signed));
    let port = Port::new("port".into(), tap.clone(), 1, known);
    let caller = Caller { port: Arc::new(port), source: None, is_v4: true, open: None };
    let shutdown = Shutdown::default();
    let seat = Seat::take(&shares, &tap).unwrap();
    let tick = Tick::default();
    let common = Common { limits: &limits, metrics: &metrics, upstream: &upstream, tick: &tick };

    fuzz(name, |random| {
        let bytes = requests(random);
        let before = nova.requests.load(Ordering::Relaxed);
        let (guest, ours) = tokio::io::duplex(1 + random.below(4096));
        let answers = runtime.block_on(async {
            let mut connection = Connection::new(ours, &caller, common, &seat, &shutdown);
            let (mut reader, mut writer) = tokio::io::split(guest);
            let send = async {
                let mut left = &bytes[..];
                while !left.is_empty() {
                    let (piece, rest) = left.split_at((1 + random.below(200)).min(left.len()));
                    // It may have had enough.
                    if writer.write_all(piece).await.is_err() {
                        break;
                    }
                    left = rest;
                }
                let _ = writer.shutdown().await;
            };
            let serve = async {
                connection.serve().await;
                drop(connection);
            };
            let mut answers = Vec::new();
            let (.., received) = tokio::join!(send, serve, reader.read_to_end(&mut answers));
            received.unwrap();
            answers
        });
        assert!(
            answers.is_empty() || answers.starts_with(b"HTTP/1.1 "),
            "{}",
            String::from_utf8_lossy(&answers)
        );
        if let Some(problem) = nova.problem.lock().unwrap().take() {
            panic!("{problem}\nafter {}", String::from_utf8_lossy(&bytes));
        }
        // A request that came along with another would be signed like it, but nobody waits for its answer.
        let heard = nova.requests.load(Ordering::Relaxed) - before;
        let passed = answers.windows(MARK.len()).filter(|window| *window == MARK).count() as u64;
        assert_eq!(
            heard,
            passed,
            "requests that nova heard, and its answers, after {}",
            String::from_utf8_lossy(&bytes)
        );
    });
    let heard = nova.requests.load(Ordering::Relaxed);
    println!("fuzz::{name}: {heard} requests reached nova");
    assert!(heard > 0, "nothing reached nova");
}

/// Reads requests without any of the proxy's code, and keeps what was wrong with one.
#[derive(Debug, Default)]
struct SuspiciousNova {
    requests: AtomicU64,
    problem: Mutex<Option<String>>,
    /// True if nobody may ask for a secret.
    keeps_secrets: bool,
}

impl SuspiciousNova {
    fn start(self: Arc<Self>) -> io::Result<SocketAddr> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        thread::spawn(move || {
            while let Ok((stream, _)) = listener.accept() {
                let nova = self.clone();
                thread::spawn(move || {
                    // The connection ends after that is known.
                    if let Err(problem) = nova.serve(&stream) {
                        *nova.problem.lock().unwrap() = Some(problem);
                    }
                });
            }
        });
        Ok(address)
    }

    fn serve(&self, stream: &TcpStream) -> Result<(), String> {
        let mut reader = BufReader::new(stream);
        loop {
            let mut lines: Vec<String> = Vec::new();
            loop {
                let mut line = Vec::new();
                match reader.read_until(b'\n', &mut line) {
                    Ok(0) if lines.is_empty() && line.is_empty() => return Ok(()),
                    // The proxy closed it while it was idle.
                    Err(_) if lines.is_empty() && line.is_empty() => return Ok(()),
                    Ok(_) => {}
                    Err(error) => return Err(format!("{error} after {lines:?}")),
                }
                let line =
                    line.strip_suffix(b"\r\n").ok_or_else(|| format!("a line {line:?} after {lines:?}"))?;
                if line.is_empty() {
                    break;
                }
                lines.push(line.iter().map(|byte| char::from(*byte)).collect());
            }
            let length = check(&lines).map_err(|problem| format!("{problem} in {lines:?}"))?;
            if self.keeps_secrets && names_secret(&lines[0]) {
                return Err(format!("a secret is asked for in {lines:?}"));
            }
            let mut body = vec![0; length];
            reader.read_exact(&mut body).map_err(|error| format!("{error} within the body of {lines:?}"))?;
            self.requests.fetch_add(1, Ordering::Relaxed);
            // With the body's length, unless nobody would read that body.
            let body: &[u8] = if lines[0].starts_with("HEAD ") { b"" } else { b"ok" };
            let answer = [b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n", MARK, b"\r\n", body].concat();
            if reader.get_mut().write_all(&answer).is_err() {
                return Ok(());
            }
        }
    }
}

/// Tells whether a request line asks for a secret, in the plain spelling.
fn names_secret(line: &str) -> bool {
    let path = line.split([' ', '?']).nth(1).unwrap_or_default();
    matches!(path.rsplit('/').next(), Some("password" | "user-data"))
}

/// The length of the body, if everything else is as it should be.
fn check(lines: &[String]) -> Result<usize, String> {
    const ALLOWED: [&str; 16] = [
        "host",
        "accept",
        "accept-encoding",
        "accept-language",
        "cache-control",
        "content-encoding",
        "content-length",
        "content-type",
        "if-modified-since",
        "if-none-match",
        "range",
        "user-agent",
        "x-instance-id",
        "x-tenant-id",
        "x-instance-id-signature",
        "x-forwarded-for",
    ];
    let words: Vec<&str> = lines.first().ok_or("no request line")?.split(' ').collect();
    let [_, target, "HTTP/1.1"] = words[..] else { return Err("a broken request line".into()) };
    if !target.starts_with('/') {
        return Err("a target that is no path".into());
    }
    let mut fields = Vec::new();
    for line in &lines[1..] {
        let (name, value) = line.split_once(": ").ok_or("a broken header line")?;
        let name = name.to_ascii_lowercase();
        if !ALLOWED.contains(&name.as_str()) || value.contains(|c: char| c.is_ascii_control() && c != '\t') {
            return Err(format!("a header {line:?}"));
        }
        fields.push((name, value));
    }
    let values = |wanted: &str| -> Vec<&str> {
        fields.iter().filter(|(name, _)| name == wanted).map(|(_, value)| *value).collect()
    };
    for (name, value) in
        [("x-instance-id", INSTANCE), ("x-tenant-id", "project"), ("x-forwarded-for", "192.168.1.10")]
    {
        if values(name) != [value] {
            return Err(format!("{name} is {:?}", values(name)));
        }
    }
    if values("x-instance-id-signature").len() != 1 || values("host").len() != 1 {
        return Err("not one signature, or not one Host".into());
    }
    match values("content-length")[..] {
        [] => Ok(0),
        [length] => length.parse().map_err(|_| format!("Content-Length {length:?}")),
        _ => Err("more than one Content-Length".into()),
    }
}
