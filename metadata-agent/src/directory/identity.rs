//! Identity of a guest, and the signature by which Nova believes it. Whoever serves guests is given it ready-made, and has no
//! secret.
use std::net::IpAddr;

use aws_lc_rs::hmac;
use serde::{Deserialize, Serialize};

use super::policy::RequestPolicy;

/// Identity of a guest, to Nova and in the log. Everything a request needs is computed once, here.
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
#[derive(Clone, Serialize, Deserialize)]
pub struct SignedIdentity {
    /// The identity itself.
    pub identity: Identity,
    /// Policy that its requests must meet, if any.
    pub policy: Option<RequestPolicy>,
    signature: String,
    forwarded_for: [Option<String>; 2],
}

impl SignedIdentity {
    /// The headers that tell Nova who asks. The last is the port's fixed address, of the family that the guest used if
    /// it has one of that; Nova takes it for the guest's local-ipv4 when nothing else tells, and for its log.
    pub fn headers(&self, is_v4: bool) -> impl Iterator<Item = (&'static str, &str)> {
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
            policy: None,
            identity,
        })
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
}
