//! Settings of a client, known before it connects.

use std::path::PathBuf;
use std::time::Duration;

use crate::remote::Remotes;

/// Address of a database, timeouts and limits of memory. The defaults are those of Open vSwitch's clients and of
/// Neutron.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Config {
    /// The servers, tried in random order.
    pub remotes: Remotes,
    /// The name of the database, such as `OVN_Southbound`.
    pub database: String,
    /// Time that a server may be silent before it is probed, and then before the connection is given up (60 s). Zero
    /// never probes: a server that hangs is then waited for without end.
    pub probe_interval: Duration,
    /// The greatest delay between attempts to connect (8 s). The first is 1 s, once all other servers were tried, and each
    /// is twice the one before, until a connection outlasts its delay. Less than 1 s is taken for 1 s.
    pub backoff_max: Duration,
    /// Time that making a connection may take, TLS included (10 s).
    pub connect_timeout: Duration,
    /// Time that a server that took the connection may take for each step of the beginning, if there are others (10 s): to
    /// say what it is, and, in six times that time, to begin with the contents. It is left for another one then; the time doubles up to three
    /// times while none of them is of use, so that servers that are asked by many at once get the time. Answers to
    /// probes do not count. Zero leaves this to the probes. [`Event::Waiting`](crate::Event::Waiting) comes after half
    /// of the time, also where there is no other server.
    pub greeting_timeout: Duration,
    /// The name of a lock (RFC 7047, section 4.1.8) with which the clients of a server take turns in asking it for the first
    /// contents (none). A server does nothing else while it makes these, so hundreds of clients that come back at once
    /// keep it from its cluster and from everybody else. The lock is given up when the contents are there, after as long
    /// again, and not waited for for more than some minutes. It must not be used for anything else.
    pub turn_lock: Option<String>,
    /// True if to use no server but the leader of a cluster (no). Followers are as good: they forward writes.
    pub leader_only: bool,
    /// The longest message to accept, in bytes (1 GiB). A complete dump is a single message. As much may wait for a
    /// consumer of events while an answer is waited for.
    ///
    /// Bound on memory: no more of a server's text is kept, whatever it sends, than a message that arrives and one that
    /// is read, of this length each, those that wait for an answer, of this length together, and
    /// [`Self::backlog_limit`]. The rows that it sends are not limited.
    pub message_limit: usize,
    /// Bytes of updates that may wait for the consumer of events (64 MiB). Beyond them the socket is not read. A
    /// message that is longer waits alone.
    pub backlog_limit: usize,
    /// Keys and certificates for `ssl:` remotes.
    pub tls: Option<TlsConfig>,
}

impl Config {
    /// The defaults for `database` at `remotes`.
    pub fn new(remotes: Remotes, database: impl Into<String>) -> Self {
        Self {
            remotes,
            database: database.into(),
            probe_interval: Duration::from_secs(60),
            backoff_max: Duration::from_secs(8),
            connect_timeout: Duration::from_secs(10),
            greeting_timeout: Duration::from_secs(10),
            turn_lock: None,
            leader_only: false,
            message_limit: 1 << 30,
            backlog_limit: 64 << 20,
            tls: None,
        }
    }
}

/// The PEM files for `ssl:` remotes. They are read for each connection, so that renewed ones are used from the next
/// connection on.
#[derive(Debug, Clone)]
pub struct TlsConfig {
    /// The client's private key.
    pub private_key: PathBuf,
    /// The client's certificate, followed by intermediate ones if there are any.
    pub certificate: PathBuf,
    /// The certificates of the authorities that may sign a server's certificate.
    pub ca_certificates: PathBuf,
    /// True if the server's certificate has to name the host of the remote. Open vSwitch's own clients verify the chain
    /// only, and the certificates that `ovs-pki` makes name no host.
    pub verify_hostname: bool,
}
