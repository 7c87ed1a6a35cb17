//! Tests of what travels and what does not.
use super::*;
use crate::proxy::directory::{Identity, Signer};

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

fn forward(
    method: &str,
    target: &str,
    headers: &[(&str, &str)],
    body: &'static [u8],
) -> Request<Full<Bytes>> {
    let mut builder = Request::builder().method(method).uri(target);
    for (name, value) in headers {
        builder = builder.header(*name, *value);
    }
    let (parts, ()) = builder.body(()).unwrap().into_parts();
    let path = path(&parts).unwrap();
    to_nova(&parts, path, Bytes::from_static(body), &who(), true, &Target::new("nova:8775").unwrap()).unwrap()
}

fn names(request: &Request<Full<Bytes>>) -> Vec<&str> {
    let mut names: Vec<&str> = request.headers().keys().map(HeaderName::as_str).collect();
    names.sort_unstable();
    names
}

const OURS: [&str; 5] =
    ["host", "x-forwarded-for", "x-instance-id", "x-instance-id-signature", "x-tenant-id"];

#[test]
fn nothing_of_a_guest_that_says_who_or_how_travels() {
    let hostile = [
        ("X-Instance-ID", "victim"),
        ("X-Tenant-ID", "victim"),
        ("X-Instance-ID-Signature", "00"),
        ("X-Forwarded-For", "1.2.3.4"),
        ("X-Metadata-Provider", "victim"),
        ("X-OVN-Network-ID", "victim"),
        ("X_Instance_ID", "victim"),
        ("Forwarded", "for=1.2.3.4"),
        ("Connection", "X-Instance-ID, X-Tenant-ID"),
        ("Upgrade", "h2c"),
        ("Authorization", "Bearer x"),
        ("Cookie", "a=b"),
        ("Host", "victim"),
        ("Expect", "100-continue"),
        ("Proxy-Authorization", "x"),
    ];
    let request = forward("GET", "/latest/meta-data/", &hostile, b"");
    assert_eq!(names(&request), OURS);
    assert_eq!(request.headers()["x-instance-id"], "11111111-2222-3333-4444-555555555555");
    assert_eq!(request.headers()["x-forwarded-for"], "192.168.1.10");
    assert_eq!(request.headers()["host"], "nova:8775");
    for name in OURS {
        assert_eq!(request.headers().get_all(name).iter().count(), 1, "{name}");
    }
}

#[test]
fn what_describes_the_request_travels() {
    let request = forward(
        "POST",
        "/openstack/2013-04-04/password?a=%2F&b",
        &[("Content-Type", "text/plain"), ("User-Agent", "cloudbase-init"), ("Accept", "*/*")],
        b"secret",
    );
    assert_eq!(request.method(), "POST");
    assert_eq!(request.uri(), "http://nova:8775/openstack/2013-04-04/password?a=%2F&b");
    assert_eq!(request.headers()["content-length"], "6");
    assert_eq!(request.headers()["content-type"], "text/plain");
    assert_eq!(request.headers()["user-agent"], "cloudbase-init");
}

#[test]
fn targets_are_taken_as_they_stand() {
    for target in
        ["/", "//latest//meta-data", "/latest/../openstack", "/a%2Fb%2e%2E", "/x?y=/../&z", "/a+b;c=d"]
    {
        assert_eq!(forward("GET", target, &[], b"").uri().path_and_query().unwrap(), target);
    }
    // The absolute form names another host, which does not matter: there is one place a request can go.
    assert_eq!(forward("GET", "http://victim:1/x", &[], b"").uri(), "http://nova:8775/x");
}

#[test]
fn targets_that_are_no_path_are_refused() {
    for (method, target) in [("CONNECT", "victim:80"), ("OPTIONS", "*")] {
        let (parts, ()) = Request::builder().method(method).uri(target).body(()).unwrap().into_parts();
        assert!(matches!(path(&parts), Err(Refusal::BadRequest(_))), "{method} {target}");
    }
}

#[test]
fn a_get_without_body_has_no_length_and_a_post_always_has() {
    assert!(!forward("GET", "/", &[], b"").headers().contains_key("content-length"));
    assert_eq!(forward("POST", "/", &[], b"").headers()["content-length"], "0");
}

#[test]
fn answers_lose_what_belongs_to_the_connection() {
    let mut headers = HeaderMap::new();
    for (name, value) in [
        ("connection", "keep-alive, x-private"),
        ("keep-alive", "timeout=5"),
        ("x-private", "1"),
        ("transfer-encoding", "chunked"),
        ("content-type", "application/json"),
        ("retry-after", "3"),
        ("content-length", "7"),
    ] {
        headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
    }
    strip_hop_by_hop(&mut headers);
    let mut left: Vec<&str> = headers.keys().map(HeaderName::as_str).collect();
    left.sort_unstable();
    assert_eq!(left, ["content-length", "content-type", "retry-after"]);
}

#[test]
fn path_classes() {
    for (path, class) in [
        ("/", "/"),
        ("/openstack", "openstack"),
        ("/openstack/latest/meta_data.json", "meta_data.json"),
        ("/openstack/latest/user_data", "user-data"),
        ("/latest/user-data", "user-data"),
        ("/latest/meta-data/local-ipv4", "meta-data"),
        ("/openstack/2013-04-04/password?x=secret", "password"),
        ("/anything/else", "other"),
    ] {
        assert_eq!(path_class(path), class, "{path}");
    }
}
