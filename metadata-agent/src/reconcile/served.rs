//! One port that is served: its assignment, who it is for, and what of it is in force.
use std::{sync::Arc, time::Duration};

use metadata_ebpf::map::{
    FrameLimit, NETWORK_ADDRESSES, Network, OWN_ADDRESSES, Owner, Port as Entered, PortKey, Source,
};
use serde_json::{Value, json};
use tracing::{error, warn};
use uuid::{Uuid, uuid};

use crate::{
    boot_clock,
    datapath::{Adopted, Assignment, Device, PortFrames},
    directory::{Identity, Port, Resolution, Signer, Tap},
    inventory::{DesiredPort, MetadataPort, Who},
    link::PortNumber,
    tokens::{FirstServed, Tokens},
};

/// Reason given for a device whose program nobody has tried to attach yet.
pub(super) const NOT_YET: &str = "not yet";

/// Namespace of the fingerprints.
const FINGERPRINTS: Uuid = uuid!("6f1f1f0e-3c0c-4d57-8f0b-0d6a4a7d8b11");

/// Limits on one tap in the datapath.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameLimits {
    /// New connections.
    pub connections: FrameLimit,
    /// ARP, neighbour discovery and echo requests, and segments of connections that nobody has.
    pub answers: FrameLimit,
}

/// A port that is being served.
#[derive(Debug)]
pub(super) struct Served {
    pub(super) assignment: Assignment,
    pub(super) wanted: DesiredPort,
    /// Owner: which port, and instance and project as they were last known, which it stays for also while the
    /// source has lost them.
    pub(super) owner: Owner,
    /// Value in the map.
    pub(super) entered: Option<Entered>,
    /// Reason for which the program is not on the tap, if it is not.
    pub(super) attached: Result<(), String>,
    pub(super) entry: Arc<Port>,
    /// True if its network has been told where its metadata port is, or knows.
    pub(super) announced: bool,
    /// True if it was said that it has more sources than places.
    pub(super) told_exhausted: bool,
    /// First time that it was known who is behind it; none if that is not known yet.
    pub(super) first: Option<FirstServed>,
    foreign_until: u64,
}

/// Issuer of signed identities: all that requests are served by.
#[derive(Debug)]
pub(super) struct Issuer {
    pub(super) signer: Signer,
    /// If there are session tokens, or requests have to bring something else.
    pub(super) tokens: Option<Tokens>,
}

impl Served {
    /// An assignment that `owner` has or had. The program is not on the tap yet.
    pub(super) fn new(
        issuer: &Issuer,
        wanted: &DesiredPort,
        tap: Arc<Tap>,
        assignment: Assignment,
        before: Owner,
        first: Option<FirstServed>,
        foreign_until: u64,
    ) -> Self {
        let not_yet = Resolution::Pending(NOT_YET.into());
        let mut served = Self {
            assignment,
            wanted: wanted.clone(),
            owner: latest(before, owner(wanted)),
            entered: None,
            attached: Err(NOT_YET.to_owned()),
            entry: Arc::new(Port::new(wanted.port.clone(), tap, assignment.generation, not_yet)),
            announced: !wanted.is_external,
            told_exhausted: false,
            first,
            foreign_until,
        };
        served.resolve(issuer);
        served
    }

    pub(super) fn number(&self) -> PortNumber {
        PortNumber { index: self.assignment.index, generation: self.assignment.generation }
    }

    pub(super) fn device(&self) -> &Device {
        &self.wanted.device
    }

    /// Takes what is known now.
    pub(super) fn update(&mut self, issuer: &Issuer, wanted: &DesiredPort) {
        if self.wanted != *wanted {
            self.owner = latest(self.owner, owner(wanted));
            self.wanted = wanted.clone();
            self.resolve(issuer);
        }
    }

    /// Says who is behind it, by what is wanted now.
    pub(super) fn resolve(&mut self, issuer: &Issuer) {
        let resolution = match &self.wanted.who {
            Who::Pending(reason) => Resolution::Pending(reason.as_str().into()),
            Who::Conflict(reason) => {
                error!(port = self.wanted.port, reason, "contradictory identity, the port is not served");
                Resolution::Conflict(reason.as_str().into())
            }
            Who::Known(identity) => {
                let first = *self.first.get_or_insert_with(|| FirstServed::At(boot_clock::now()));
                issuer.issue(identity, self.assignment, first)
            }
        };
        self.entry.resolve(resolution);
    }

    /// True if this assignment may go on as what is wanted now. A port's addresses may change under it; which port,
    /// instance or project it is may not, because connections and learned sources belong to who it was.
    pub(super) fn continues_as(&self, wanted: Option<&DesiredPort>) -> bool {
        wanted
            .is_some_and(|wanted| self.wanted.device == wanted.device && succeeds(self.owner, owner(wanted)))
    }

    /// Desired value in the map; `meter` is the index whose limits count.
    pub(super) fn value(&self, limits: FrameLimits, meter: u32) -> Entered {
        let mut own = [[0; 4]; OWN_ADDRESSES];
        for (place, address) in own.iter_mut().zip(&self.wanted.own) {
            *place = Source::compared(*address);
        }
        let Assignment { index, generation } = self.assignment;
        Entered {
            meter,
            connections: limits.connections,
            answers: limits.answers,
            // On a network's device nobody else can be that passes what it has a connection of.
            foreign_until: if self.wanted.metadata_port.is_some() { 0 } else { self.foreign_until },
            own,
            owner: self.owner,
            ..Entered::new(index, generation)
        }
    }

    /// State of the identity, and what is wrong with it.
    pub(super) fn state(&self) -> (&'static str, String) {
        match self.entry.resolution() {
            Resolution::Known(_) => ("known", String::new()),
            Resolution::Pending(reason) => ("unknown", reason.to_string()),
            Resolution::Conflict(reason) => ("conflict", reason.to_string()),
        }
    }

    pub(super) fn describe(&self, key: PortKey, frames: &PortFrames) -> Value {
        let (state, reason) = self.state();
        let reason = match &self.attached {
            Ok(()) => reason,
            Err(error) => format!("not attached: {error}"),
        };
        let identity = match &self.wanted.who {
            Who::Known(identity) => Some(identity),
            _ => None,
        };
        json!({
            "port": self.wanted.port,
            "tap": self.wanted.device.name,
            "ifindex": key.ifindex,
            "vlan": key.vlan,
            "mac": mac(key),
            "index": self.assignment.index,
            "generation": self.assignment.generation,
            "state": state,
            "reason": reason,
            "instance": identity.map(|identity| &identity.instance),
            "project": identity.map(|identity| &identity.project),
            "network": identity.map(|identity| &identity.network),
            "fixed_ips": identity.map_or_else(Vec::new, |identity| identity.fixed_ips.clone()),
            "tokens": self.token_mode(),
            "frames": by_outcome(frames),
        })
    }

    /// Mode of its session tokens, once it is known who is behind it.
    fn token_mode(&self) -> Option<String> {
        let Resolution::Known(signed) = self.entry.resolution() else { return None };
        let tokens = signed.policy.as_ref().and_then(|policy| policy.tokens.as_ref());
        Some(match tokens {
            None => "off".to_owned(),
            Some(tokens) if !tokens.required => "optional".to_owned(),
            Some(tokens) => match tokens.required_from.saturating_sub(boot_clock::now()) {
                Duration::ZERO => "required".to_owned(),
                left => format!("required in {} s", left.as_millis().div_ceil(1000)),
            },
        })
    }
}

/// Numbers of frames by the names of their outcomes.
pub(super) fn by_outcome(frames: &PortFrames) -> Value {
    let named = frames.frames.iter().map(|(counter, frames)| (counter.name().to_owned(), json!(frames)));
    Value::Object(named.collect())
}

/// A port that there was no room for.
pub(super) fn describe_refused(key: PortKey, port: &DesiredPort, reason: &str) -> Value {
    json!({
        "port": port.port,
        "tap": port.device.name,
        "ifindex": key.ifindex,
        "vlan": key.vlan,
        "mac": mac(key),
        "state": "unserved",
        "reason": reason,
    })
}

/// MAC address of a port that has no tap.
pub(super) fn mac(key: PortKey) -> Option<String> {
    key.is_station().then(|| key.mac.to_string())
}

/// The metadata port of a network as the map has it.
pub(super) fn network(port: &MetadataPort) -> Network {
    let mut addresses = [[0; 4]; NETWORK_ADDRESSES];
    for (place, address) in addresses.iter_mut().zip(&port.addresses) {
        *place = Source::compared(*address);
    }
    Network { mac: port.mac, addresses }
}

/// Name of what a port's guest is limited as: all of a tap together, and each port without one by itself, whoever shares
/// the device.
pub(super) fn limited_as(key: PortKey, device: &Device) -> String {
    if key.is_station() { format!("{}/{}", device.name, key.mac) } else { device.name.clone() }
}

/// Owner of a port, by fingerprints that fit into the map.
pub(super) fn owner(wanted: &DesiredPort) -> Owner {
    // Ids are of a tenant's choice where Neutron lets them be: a separator that none can hold keeps two of them apart.
    let fingerprint = |text: &str| {
        let (high, low) = Uuid::new_v5(&FINGERPRINTS, text.as_bytes()).as_u64_pair();
        [high, low]
    };
    let identity = match &wanted.who {
        Who::Known(identity) => fingerprint(&format!("{}\n{}", identity.instance, identity.project)),
        Who::Pending(_) | Who::Conflict(_) => [0; 2],
    };
    Owner { port: fingerprint(&wanted.port), identity }
}

/// True if an assignment of `before` may be that of `now`: the same port, and no other instance or project.
pub(super) fn succeeds(before: Owner, now: Owner) -> bool {
    let same_identity =
        before.identity == now.identity || before.identity == [0; 2] || now.identity == [0; 2];
    before.port == now.port && same_identity
}

/// Owner as it is known now, with what was known of it before.
fn latest(before: Owner, now: Owner) -> Owner {
    if now.identity == [0; 2] { Owner { identity: before.identity, ..now } } else { now }
}

impl Issuer {
    /// First time that a former agent served the guest of `now`, unless it did not, or has not known who is behind the port.
    pub(super) fn first(&self, key: PortKey, now: Owner, adopted: Option<&Adopted>) -> Option<FirstServed> {
        let noted = self.tokens.as_ref().and_then(|tokens| tokens.first_served(key, now));
        let was_known = adopted.is_some_and(|adopted| adopted.owner.identity != [0; 2]);
        noted.or_else(|| was_known.then_some(FirstServed::Before))
    }

    /// An identity that guests are served by, or what keeps it from being one.
    fn issue(&self, identity: &Identity, assignment: Assignment, first: FirstServed) -> Resolution {
        let signed = self.signer.sign(identity.clone()).map_err(|error| error.to_string());
        let policy = match &self.tokens {
            Some(tokens) => tokens.policy(identity, assignment, first).map_err(|error| error.to_string()),
            None => Ok(None),
        };
        let issued = signed.and_then(|mut signed| {
            signed.policy = policy?;
            Ok(signed)
        });
        match issued {
            Ok(signed) => Resolution::Known(Arc::new(signed)),
            Err(error) => {
                warn!(port = identity.port, %error, "unusable identity");
                Resolution::Pending(error.into())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::directory::Identity;

    fn wanted(port: &str, identity: Option<(&str, &str)>) -> DesiredPort {
        let who = match identity {
            None => Who::Pending("not yet".into()),
            Some((instance, project)) => Who::Known(Identity {
                port: port.into(),
                instance: instance.into(),
                project: project.into(),
                network: String::new(),
                fixed_ips: Vec::new(),
            }),
        };
        let device = Device::tap(7, "tap0");
        DesiredPort::on_tap(device, port.into(), who, Vec::new())
    }

    #[test]
    fn an_assignment_goes_on_for_the_same_and_for_nobody_else() {
        let of = |port, identity| owner(&wanted(port, identity));
        let known = of("p", Some(("i", "t")));
        assert!(succeeds(known, known));
        assert!(succeeds(known, of("p", None)) && succeeds(of("p", None), known));
        for other in
            [of("q", Some(("i", "t"))), of("p", Some(("j", "t"))), of("p", Some(("i", "u"))), of("q", None)]
        {
            assert!(!succeeds(known, other), "{other:?}");
        }
        // What was known once is not forgotten while it is not.
        let lost = latest(known, of("p", None));
        assert!(!succeeds(lost, of("p", Some(("j", "t")))));
        assert_ne!(of("p", Some(("a", "b\nc"))).identity, of("p", Some(("a\nb", "d"))).identity);
    }
}
