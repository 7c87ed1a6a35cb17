//! The link between the privileged process and the guest-facing one: messages over a SEQPACKET socket, each with the
//! descriptors that it gives away.
//!
//! | privileged process | guest-facing process |
//! | --- | --- |
//! | `Begin` with the map `OPEN` and the listening sockets; `Certificates` in a file of memory, with TLS | |
//! | | `Ready`, confined, with its threads |
//! | `Ports`: all of them, and changes from then on | |
//! | `Serve` | accepts connections |
//! | | `Dial` when a request needs a connection to Nova |
//! | `Dialled` with the connection, or with why there is none | |
//! | `Ask` each second | `Status` with its numbers and notes |
//! | `Inquire` when an operator wants to know | `Told` |
//! | `Watch` while an operator watches | `Seen` |
//! | `Retire`, `Stop` | ends |
//!
//! A process whose other end of the link is gone goes on serving the ports that it knows. It has a socket in the run
//! directory, where the next agent finds it:
//!
//! | next privileged process | orphaned process |
//! | --- | --- |
//! | `Adopt` with a socket for signatures | |
//! | | `Adopted` with the listening sockets, and requests that wait for a connection |
//! | `Dialled` and `Certificates`, as above, and in the end `Retire` | |
//!
//! Both are the same program, started from the same file: a message that one of them does not know is an error. The
//! privileged process believes nothing that it is told: see [`Event`].
#![forbid(unsafe_code)]
mod inquiry;
pub mod signing;
mod watched;

use std::{ffi::CStr, path::PathBuf, time::Duration};

use serde::{Deserialize, Serialize};

use crate::{
    config::{Endpoint, Limits, LogFormat},
    directory::Entry,
};
pub use inquiry::{Inquiry, MOST_PORTS, MOST_TALLIES, PortNumber, PortReport, PortTally, ProbeReport, Told};
pub use watched::{MOST_SEEN, Seen, Watched};

/// Most connections to Nova that are being made for the guest-facing process at a time.
pub const MOST_DIALS: usize = 1024;

/// Receive buffer of connections to Nova: what the kernel may keep of an answer that is not read, since a guest is slow to
/// take it. Left to itself it grows to megabytes (tcp(7)).
pub const NOVA_BUFFER: u32 = 64 << 10;

/// Time for which connections are accepted after no handshake begins any more: the last third of one, with a guest on
/// this host.
pub const HANDSHAKE: Duration = Duration::from_millis(200);

/// Name of the empty folder in the run directory that is the root of the guest-facing process.
pub const EMPTY: &str = "empty";

/// Name of the socket of a guest-facing process in the run directory, where it is found when it is orphaned: this, its
/// process id, and `.sock`.
pub const ADOPTION: &str = "guests-";

/// Name of the guest-facing process, as lists of processes show it (`/proc/<pid>/comm`). Once it is confined, it cannot
/// change that any more.
pub const NAME: &CStr = c"metadata-proxy";

/// Longest text of the guest-facing process' numbers, and of its notes together.
pub const MOST_NUMBERS: usize = 64 << 10;
pub const MOST_NOTES: usize = 4 << 10;

/// Messages to the guest-facing process.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Command {
    /// Confine yourself and be ready. The first message.
    Begin(Box<Setup>),
    /// The certificates for Nova, new or renewed: a [`Certificates`] in the file of memory that comes with it.
    Certificates,
    /// Ports that are new or have changed, and indexes that have none any more.
    Ports {
        /// The former.
        entered: Vec<Entry>,
        /// The latter.
        gone: Vec<u32>,
    },
    /// Accept connections.
    Serve,
    /// The connection that was asked for is with it, or there is none.
    Dialled {
        /// Number of the request.
        id: u64,
        /// The failure, if there is none.
        failure: Option<Failure>,
    },
    /// Log by this filter from now on.
    Log(String),
    /// A process that had connections open has ended.
    Settle,
    /// Say how you are.
    Ask,
    /// Say something about ports, for an operator.
    Inquire {
        /// Number of the question.
        id: u64,
        /// The question.
        inquiry: Inquiry,
    },
    /// Tell of each request as it ends, or of none any more.
    Watch(bool),
    /// The listening sockets are accepted from by others, too: leave what you have not accepted to them.
    Outlive,
    /// Take nothing new.
    Retire,
    /// End.
    Stop,
    /// This is the other end of the link from now on. The first message of the next agent, and, with its answer, the same in
    /// all versions: a process that speaks another one gives its sockets and ends.
    Adopt {
        /// Version of the messages.
        protocol: u32,
    },
}

/// Messages of the guest-facing process. Whoever hears them bounds and checks all of them: guests may have taken it over.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Event {
    /// It is confined, and serves when told to.
    Ready {
        /// Parts of its confinement that this machine does not have.
        lacking: Vec<String>,
    },
    /// It needs a connection to Nova.
    Dial {
        /// Number of the request.
        id: u64,
        /// Index of the endpoint.
        endpoint: usize,
        /// Timeout.
        within: Duration,
    },
    /// It has lost the agent that has started it, and hears this one.
    Adopted {
        /// Its process id, or what it says is that.
        pid: u32,
        /// Set if it has certificates for Nova, which can be renewed. Processes that do not say so cannot hear of others.
        #[serde(default)]
        has_tls: bool,
    },
    /// Answer to a question.
    Told {
        /// Number of the question.
        id: u64,
        /// The answer.
        told: Told,
    },
    /// Requests that have ended, while they are watched.
    Seen(Seen),
    /// It is well.
    Status {
        /// Its numbers, in Prometheus' text format.
        numbers: String,
        /// Warnings for operators.
        notes: Vec<String>,
    },
}

/// All that the guest-facing process is set up with.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Setup {
    /// Version of the messages.
    pub protocol: u32,
    /// Bounds on what guests may take.
    pub limits: Limits,
    /// Nova.
    pub nova: NovaSettings,
    /// TLS to Nova: then `Certificates` come with their own message.
    pub has_tls: bool,
    /// Listening sockets of each worker, in the order in which they come.
    pub workers: Vec<usize>,
    /// Set if a former process may still have connections open.
    pub lingers: bool,
    /// Time for which guests come when there is no agent: so long known ports are served.
    pub lease: Duration,
    /// User of agents: nobody else's adopts it.
    pub owner: u32,
    /// Filter of the log.
    pub log: String,
    /// Form of its lines.
    pub log_format: LogFormat,
    /// Confinement.
    pub confinement: Confinement,
}

/// Nova, for who may make no connection to it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct NovaSettings {
    /// Endpoints, in the order of their indexes.
    pub endpoints: Vec<Endpoint>,
    /// Longest time for a connection.
    pub connect_timeout: Duration,
    /// Longest time for an answer.
    pub response_timeout: Duration,
}

/// Identity and root directory of the guest-facing process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Confinement {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// An empty folder, which becomes its root.
    pub root: PathBuf,
}

/// Version of the messages.
pub const PROTOCOL: u32 = 1;

/// Certificates for Nova, without the private key.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Certificates {
    /// Contents of the files.
    pub material: tls_peer::Public,
    /// Words for where whom to trust is configured.
    pub trusted: String,
}

/// Failure to connect to Nova.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{text}")]
pub struct Failure {
    /// The fault.
    pub kind: FailureKind,
    /// In words.
    pub text: String,
}

/// Fault of a connection that was not made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum FailureKind {
    /// This machine has no port, descriptor or memory left.
    Local,
    /// There is a machine, on which nobody listens.
    Refused,
    /// Another.
    Other,
}
