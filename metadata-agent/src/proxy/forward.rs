//! Translation of a guest's request into the one that goes to Nova. Pure functions.
//!
//! The request is built from an allow-list, not by removing things: whatever a guest thinks of next does not travel.
use http1::{Framing, Request, write_field};

use super::token;
use crate::directory::SignedIdentity;

/// Headers of a guest that Nova may see: what describes the request and its body, nothing about who or how.
const ALLOWED: [&str; 10] = [
    "accept",
    "accept-encoding",
    "accept-language",
    "cache-control",
    "content-encoding",
    "content-type",
    "if-modified-since",
    "if-none-match",
    "range",
    "user-agent",
];

/// The request that Nova gets, body included. `host` is Nova's own name.
pub(super) fn to_nova(
    guest: &Request<'_>,
    body: &[u8],
    who: &SignedIdentity,
    is_v4: bool,
    host: &str,
) -> Vec<u8> {
    let mut out = Vec::with_capacity(1024 + body.len());
    for part in [guest.method, b" ", &guest.target, b" HTTP/1.1\r\n"] {
        out.extend_from_slice(part);
    }
    write_field(b"Host", host.as_bytes(), &mut out);
    for (name, value) in guest.fields.iter() {
        if ALLOWED.iter().any(|allowed| name.eq_ignore_ascii_case(allowed.as_bytes())) {
            write_field(name, value, &mut out);
        }
    }
    // Nova's password handler reads the Content-Length of a POST and fails without; a bare GET has none.
    let told = guest.body == Framing::Chunked || guest.fields.values("content-length").next().is_some();
    if told || guest.method == b"POST" {
        write_field(b"Content-Length", body.len().to_string().as_bytes(), &mut out);
    }
    for (name, value) in who.headers(is_v4) {
        write_field(name.as_bytes(), value.as_bytes(), &mut out);
    }
    out.extend_from_slice(b"\r\n");
    out.extend_from_slice(body);
    out
}

/// Class of a target, which may stand in a log: metadata paths are public knowledge, query strings and odd ones may not be.
pub(super) fn path_class(target: &[u8]) -> &'static str {
    let path = target.split(|byte| *byte == b'?').next().unwrap_or_default();
    if token::is_for_token(path) {
        return "token";
    }
    let mut parts = path.split(|byte| *byte == b'/').filter(|part| !part.is_empty()).peekable();
    let Some(first) = parts.peek().copied() else { return "/" };
    let mut has_meta_data = false;
    let mut last: &[u8] = b"";
    for part in parts {
        has_meta_data |= part == b"meta-data";
        last = part;
    }
    match last {
        b"password" => "password",
        b"user-data" | b"user_data" => "user-data",
        b"meta_data.json" => "meta_data.json",
        b"network_data.json" => "network_data.json",
        b"vendor_data.json" | b"vendor_data2.json" => "vendor-data",
        _ if has_meta_data => "meta-data",
        _ if first == b"openstack" => "openstack",
        _ => "other",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::directory::{Identity, Signer};

    fn who() -> SignedIdentity {
        let identity = Identity {
            port: "port".into(),
            instance: "11111111-2222-3333-4444-555555555555".into(),
            project: "project".into(),
            network: "network".into(),
            fixed_ips: vec!["192.168.1.10".parse().unwrap()],
        };
        Signer::new("secret").sign(identity).unwrap()
    }

    fn forward(head: &str, body: &[u8]) -> String {
        let request = Request::parse(head.as_bytes(), &[]).unwrap();
        String::from_utf8(to_nova(&request, body, &who(), true, "nova:8775")).unwrap()
    }

    /// But for the signature, which is tested where it is made.
    const OURS: &str = "X-Instance-ID: 11111111-2222-3333-4444-555555555555\r\nX-Tenant-ID: project\r\n\
        X-Forwarded-For: 192.168.1.10\r\n\r\n";

    fn without_signature(text: &str) -> String {
        text.split_inclusive("\r\n").filter(|line| !line.starts_with("X-Instance-ID-Signature: ")).collect()
    }

    #[test]
    fn nothing_of_a_guest_that_says_who_or_how_travels() {
        let hostile = "GET /latest/meta-data/ HTTP/1.1\r\nX-Instance-ID: victim\r\nX-Tenant-ID: victim\r\n\
            X-Instance-ID-Signature: 00\r\nX-Forwarded-For: 1.2.3.4\r\nX-Metadata-Provider: victim\r\n\
            X-OVN-Network-ID: victim\r\nX_Instance_ID: victim\r\nForwarded: for=1.2.3.4\r\n\
            Connection: X-Instance-ID, X-Tenant-ID\r\nUpgrade: h2c\r\nAuthorization: Bearer x\r\nCookie: a=b\r\n\
            Host: victim\r\nExpect: 100-continue\r\nProxy-Authorization: x\r\nTE: trailers\r\n\r\n";
        assert_eq!(
            without_signature(&forward(hostile, b"")),
            format!("GET /latest/meta-data/ HTTP/1.1\r\nHost: nova:8775\r\n{OURS}")
        );
    }

    #[test]
    fn what_describes_the_request_travels() {
        let head = "POST /openstack/latest/password?a=%20 HTTP/1.1\r\nAccept: a\r\naccept: b\r\nUser-Agent: c\u{e9}\r\n\
            Content-Type: text/plain\r\nTransfer-Encoding: chunked\r\n\r\n";
        assert_eq!(
            without_signature(&forward(head, b"secret")),
            format!(
                "POST /openstack/latest/password?a=%20 HTTP/1.1\r\nHost: nova:8775\r\nAccept: a\r\naccept: b\r\n\
                 User-Agent: c\u{e9}\r\nContent-Type: text/plain\r\nContent-Length: 6\r\n{OURS}secret"
            )
        );
    }

    #[test]
    fn a_length_is_told_where_nova_wants_one() {
        assert!(!forward("GET / HTTP/1.1\r\n\r\n", b"").contains("Content-Length"));
        assert!(forward("POST / HTTP/1.1\r\n\r\n", b"").contains("Content-Length: 0\r\n"));
        for framing in ["Content-Length: 0", "Transfer-Encoding: chunked"] {
            let told = forward(&format!("PUT / HTTP/1.1\r\n{framing}\r\n\r\n"), b"");
            assert!(told.contains("Content-Length: 0\r\n"), "{told}");
        }
    }

    #[test]
    fn paths_are_classified_without_being_told() {
        for (target, class) in [
            ("/", "/"),
            ("//?secret", "/"),
            ("/latest/user-data?secret", "user-data"),
            ("/openstack/latest/meta_data.json", "meta_data.json"),
            ("/latest/meta-data/public-keys/0/openssh-key", "meta-data"),
            ("/openstack/2018-08-27", "openstack"),
            ("/latest/api/token?secret", "token"),
            ("/secret", "other"),
        ] {
            assert_eq!(path_class(target.as_bytes()), class, "{target}");
        }
    }
}
