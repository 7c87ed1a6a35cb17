//! Who is behind which tag: the ports this host serves and their identities, as the control plane last published them.
use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use arc_swap::ArcSwap;
use aws_lc_rs::hmac;
use metadata_ebpf::address::Tag;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::tap::Tap;

/// Who a guest is, to Nova and in the log. Everything a request needs is computed once, here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Neutron's port, which is OVN's logical port.
    pub port: String,
    /// Nova's instance.
    pub instance: String,
    /// The project that owns the port.
    pub project: String,
    /// Neutron's network; empty when unknown. Only for the log.
    pub network: String,
    /// The port's fixed addresses.
    pub fixed_ips: Vec<IpAddr>,
}

/// An identity that can travel: found fit for header lines, and signed.
#[derive(Clone)]
pub struct SignedIdentity {
    /// The identity itself.
    pub identity: Identity,
    signature: String,
    forwarded_for: [Option<String>; 2],
}

impl SignedIdentity {
    /// The headers that tell Nova who asks. The last is the port's fixed address, of the family that the guest used if
    /// it has one of that; Nova takes it for the guest's local-ipv4 when nothing else tells, and for its log.
    pub(super) fn headers(&self, is_v4: bool) -> impl Iterator<Item = (&'static str, &str)> {
        let forwarded_for = self.forwarded_for[usize::from(!is_v4)].as_deref();
        let identity = [
            ("X-Instance-ID", self.identity.instance.as_str()),
            ("X-Tenant-ID", self.identity.project.as_str()),
            ("X-Instance-ID-Signature", self.signature.as_str()),
        ];
        identity.into_iter().chain(forwarded_for.map(|address| ("X-Forwarded-For", address)))
    }
}

impl std::fmt::Debug for SignedIdentity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SignedIdentity").field("identity", &self.identity).finish_non_exhaustive()
    }
}

/// Signs identities with the secret that Nova shares. Belongs to the control plane.
#[derive(Debug)]
pub struct Signer(hmac::Key);

/// An identity that cannot be put into a header.
#[derive(Debug, thiserror::Error)]
#[error("{what} {value:?} of port {port} cannot be sent in a header")]
pub struct InvalidIdentity {
    what: &'static str,
    value: String,
    port: String,
}

impl Signer {
    /// With Nova's `metadata_proxy_shared_secret`.
    pub fn new(secret: &str) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes()))
    }

    /// Nova compares `hmac.new(secret, instance_id, sha256).hexdigest()`, in lower case.
    pub fn sign(&self, identity: Identity) -> Result<SignedIdentity, InvalidIdentity> {
        // Stricter than a header needs: neither kind of id has spaces or anything else in it.
        for (what, value) in [("instance id", &identity.instance), ("project id", &identity.project)] {
            if value.is_empty() || !value.bytes().all(|byte| byte.is_ascii_graphic()) {
                return Err(InvalidIdentity { what, value: value.clone(), port: identity.port.clone() });
            }
        }
        let signature = hmac::sign(&self.0, identity.instance.as_bytes());
        let of_family = |is_v4: bool| {
            let ips = &identity.fixed_ips;
            ips.iter().find(|ip| ip.is_ipv4() == is_v4).or(ips.first()).map(IpAddr::to_string)
        };
        Ok(SignedIdentity {
            signature: signature.as_ref().iter().map(|byte| format!("{byte:02x}")).collect(),
            forwarded_for: [of_family(true), of_family(false)],
            identity,
        })
    }
}

/// What is known about who is behind a port.
#[derive(Debug, Clone)]
pub enum Resolution {
    /// Not yet; the text says what is missing.
    Pending(Arc<str>),
    /// This.
    Known(Arc<SignedIdentity>),
    /// The sources contradict each other, and choosing would hand out somebody's data.
    Conflict(Arc<str>),
}

/// One assignment of a port: as long as it lasts, a connection that came in through it stays what it is.
#[derive(Debug)]
pub struct Port {
    /// Neutron's port, for the log and for who is told why it is not served.
    pub id: String,
    /// The device, and what those behind it take of us now.
    pub tap: Arc<Tap>,
    /// Generation of the assignment.
    pub generation: u8,
    /// Who is behind it; changes from pending to known and back, never from one instance to another.
    resolution: ArcSwap<Resolution>,
    resolved: Notify,
    /// Whether nobody but the agent itself is behind it, who finds out by it whether the datapath works.
    pub is_probe: bool,
    /// Cancelled when the assignment ends.
    pub gone: CancellationToken,
}

impl Port {
    /// An assignment that begins.
    pub fn new(id: String, tap: Arc<Tap>, generation: u8, resolution: Resolution) -> Self {
        Self {
            id,
            tap,
            generation,
            resolution: ArcSwap::from_pointee(resolution),
            resolved: Notify::new(),
            is_probe: false,
            gone: CancellationToken::new(),
        }
    }

    /// The port by which the agent looks after itself.
    pub fn probe(device: &str, tap: Arc<Tap>, generation: u8) -> Self {
        let nobody = Resolution::Pending("the agent itself is behind it".into());
        Self { is_probe: true, ..Self::new(device.to_owned(), tap, generation, nobody) }
    }

    /// Says who is behind it from now on. Control plane only.
    pub fn resolve(&self, resolution: Resolution) {
        self.resolution.store(Arc::new(resolution));
        self.resolved.notify_waiters();
    }

    /// Who is behind it now. Never waits.
    pub fn resolution(&self) -> Resolution {
        Resolution::clone(&self.resolution.load())
    }

    /// Who is behind it, as soon as that can be said.
    pub(super) async fn resolved(&self) -> Resolution {
        loop {
            // It hears of what happens from here on, before it is awaited.
            let changed = self.resolved.notified();
            match self.resolution() {
                Resolution::Pending(_) => changed.await,
                resolution => return resolution,
            }
        }
    }
}

/// The ports by index, and their taps. Readers take a snapshot and never wait.
#[derive(Debug, Default)]
pub struct Directory {
    published: ArcSwap<Published>,
    /// All taps that somebody still has, by name.
    taps: Mutex<HashMap<String, Weak<Tap>>>,
}

#[derive(Debug, Default)]
struct Published {
    ports: HashMap<u32, Arc<Port>>,
    taps: Vec<Arc<Tap>>,
}

impl Directory {
    /// The tap of that name, which all ports on it share. Control plane only.
    pub fn tap(&self, name: &str) -> Arc<Tap> {
        let mut taps = self.taps.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(tap) = taps.get(name).and_then(Weak::upgrade) {
            return tap;
        }
        let tap = Arc::new(Tap::new(name));
        taps.insert(name.to_owned(), Arc::downgrade(&tap));
        tap
    }

    /// Replaces the contents. Control plane only.
    pub fn publish(&self, ports: HashMap<u32, Arc<Port>>) {
        let mut taps: Vec<_> = ports.values().map(|port| port.tap.clone()).collect();
        taps.sort_by_key(|tap| Arc::as_ptr(tap).addr());
        taps.dedup_by(|one, other| Arc::ptr_eq(one, other));
        self.published.store(Arc::new(Published { ports, taps }));
        let mut taps = self.taps.lock().unwrap_or_else(PoisonError::into_inner);
        taps.retain(|_, tap| tap.strong_count() > 0);
    }

    /// The port that a tag names, if that assignment still lasts.
    pub fn port(&self, tag: Tag) -> Option<Arc<Port>> {
        let published = self.published.load();
        published.ports.get(&tag.index()).filter(|port| port.generation == tag.generation()).cloned()
    }

    /// The tap, but for one, that has most of something.
    pub(super) fn heaviest(&self, has: impl Fn(&Tap) -> u32, but: Option<&Arc<Tap>>) -> Option<Arc<Tap>> {
        let published = self.published.load();
        let others = published.taps.iter().filter(|tap| but.is_none_or(|but| !Arc::ptr_eq(tap, but)));
        others.max_by_key(|tap| has(tap)).cloned()
    }
}

/// The sources behind the ports, as the datapath has learned them.
pub trait Sources: std::fmt::Debug + Send + Sync + 'static {
    /// The address a guest really used, if it is still known; for the log only, never for identity.
    fn source(&self, tag: Tag) -> Option<IpAddr>;

    /// Notes that this source has one more connection open, for which it keeps its place.
    fn opened(&self, tag: Tag);

    /// Notes that it has one less.
    fn closed(&self, tag: Tag);
}

/// A connection that its source keeps its place for.
#[derive(Debug)]
pub struct OpenConnection {
    sources: Arc<dyn Sources>,
    tag: Tag,
}

impl OpenConnection {
    /// Of the source behind a tag, until it is dropped.
    pub fn new(sources: Arc<dyn Sources>, tag: Tag) -> Self {
        sources.opened(tag);
        Self { sources, tag }
    }
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.sources.closed(self.tag);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity() -> Identity {
        Identity {
            port: "p".into(),
            instance: "0b0c9c6c-9c1c-4f9e-8d7a-1c9c1c9c1c9c".into(),
            project: "0123456789abcdef".into(),
            network: "n".into(),
            fixed_ips: vec!["fd00::5".parse().unwrap(), "192.168.1.10".parse().unwrap()],
        }
    }

    #[test]
    fn signature_is_what_nova_computes() {
        // python3: hmac.new(b"s3cret", b"0b0c9c6c-9c1c-4f9e-8d7a-1c9c1c9c1c9c", hashlib.sha256).hexdigest()
        let signed = Signer::new("s3cret").sign(identity()).unwrap();
        let headers: Vec<_> = signed.headers(true).collect();
        assert_eq!(
            headers,
            [
                ("X-Instance-ID", "0b0c9c6c-9c1c-4f9e-8d7a-1c9c1c9c1c9c"),
                ("X-Tenant-ID", "0123456789abcdef"),
                ("X-Instance-ID-Signature", SIGNATURE),
                ("X-Forwarded-For", "192.168.1.10")
            ]
        );
        assert_eq!(signed.headers(false).last(), Some(("X-Forwarded-For", "fd00::5")));
        assert!(!format!("{signed:?}").contains(&SIGNATURE[..8]));
    }

    const SIGNATURE: &str = "74d4b9f44e1ff37d6d04712f74fc3e9411531cd0bae6f09f02531d65f1d9eb4e";

    #[test]
    fn ids_that_could_break_a_header_are_refused() {
        for bad in ["", "a b", "a\r\nX-Instance-ID: b", "ä", "a\0"] {
            let error = Signer::new("s").sign(Identity { instance: bad.into(), ..identity() }).unwrap_err();
            assert!(error.to_string().contains("instance id"), "{error}");
        }
    }

    #[test]
    fn a_tag_of_another_generation_is_nobody() {
        let port = Port::new("p".into(), Directory::default().tap("tap0"), 3, Resolution::Pending("".into()));
        let directory = Directory::default();
        directory.publish([(7, Arc::new(port))].into());
        assert!(directory.port(Tag::new(3, 7, 5)).is_some());
        assert!(directory.port(Tag::new(2, 7, 5)).is_none());
        assert!(directory.port(Tag::new(3, 8, 5)).is_none());
    }

    #[tokio::test]
    async fn who_waits_hears_of_the_resolution() {
        let port = Arc::new(Port::new(
            "p".into(),
            Directory::default().tap("tap0"),
            3,
            Resolution::Pending("".into()),
        ));
        let waiting = tokio::spawn({
            let port = port.clone();
            async move { port.resolved().await }
        });
        tokio::task::yield_now().await;
        port.resolve(Resolution::Pending("still".into()));
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        port.resolve(Resolution::Conflict("x".into()));
        assert!(matches!(waiting.await.unwrap(), Resolution::Conflict(_)));
        assert!(matches!(port.resolved().await, Resolution::Conflict(_)));
    }
}
