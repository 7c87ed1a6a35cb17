//! What of a guest's request goes to Nova, and what of Nova's answer goes to the guest. Pure functions.
//!
//! The request is built from an allow-list, not by removing things: whatever a guest thinks of next does not travel.
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Uri, header, request, uri::PathAndQuery};
use http_body_util::Full;

use super::{answer::Refusal, directory::SignedIdentity};

const X_INSTANCE_ID: HeaderName = HeaderName::from_static("x-instance-id");
const X_TENANT_ID: HeaderName = HeaderName::from_static("x-tenant-id");
const X_INSTANCE_ID_SIGNATURE: HeaderName = HeaderName::from_static("x-instance-id-signature");
const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// Headers of a guest that Nova may see: what describes the request and its body, nothing about who or how.
static ALLOWED: [HeaderName; 10] = [
    header::ACCEPT,
    header::ACCEPT_ENCODING,
    header::ACCEPT_LANGUAGE,
    header::CACHE_CONTROL,
    header::CONTENT_ENCODING,
    header::CONTENT_TYPE,
    header::IF_MODIFIED_SINCE,
    header::IF_NONE_MATCH,
    header::RANGE,
    header::USER_AGENT,
];

/// Headers that belong to one connection (RFC 9110, section 7.6.1), not to the answer.
static HOP_BY_HOP: [HeaderName; 8] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::PROXY_AUTHENTICATE,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

/// Where requests go.
#[derive(Debug, Clone)]
pub struct Target {
    authority: http::uri::Authority,
    host: HeaderValue,
}

impl Target {
    /// For a `host:port`.
    pub fn new(authority: &str) -> Result<Self, http::Error> {
        Ok(Self { authority: authority.parse()?, host: HeaderValue::from_str(authority)? })
    }

    /// Host and port.
    pub fn authority(&self) -> &str {
        self.authority.as_str()
    }
}

/// The target of the guest's request as it stood in the request line, if it is one that a metadata server has.
pub(super) fn path(request: &request::Parts) -> Result<PathAndQuery, Refusal> {
    if request.method == Method::CONNECT {
        return Err(Refusal::BadRequest("this is no proxy: CONNECT is not served"));
    }
    match request.uri.path_and_query() {
        Some(path) if path.as_str().starts_with('/') => Ok(path.clone()),
        _ => Err(Refusal::BadRequest("the request target must be a path")),
    }
}

/// The request that Nova gets.
pub(super) fn to_nova(
    guest: &request::Parts,
    path: PathAndQuery,
    body: Bytes,
    who: &SignedIdentity,
    is_v4: bool,
    target: &Target,
) -> Result<Request<Full<Bytes>>, http::Error> {
    let uri =
        Uri::builder().scheme("http").authority(target.authority.clone()).path_and_query(path).build()?;
    let mut request = Request::new(Full::new(body.clone()));
    *request.method_mut() = guest.method.clone();
    *request.uri_mut() = uri;
    let headers = request.headers_mut();
    headers.insert(header::HOST, target.host.clone());
    for name in &ALLOWED {
        for value in guest.headers.get_all(name) {
            headers.append(name, value.clone());
        }
    }
    // Nova's password handler reads Content-Length of a POST and fails without; a bare GET has none.
    if !body.is_empty() || guest.headers.contains_key(header::CONTENT_LENGTH) || guest.method == Method::POST
    {
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from(body.len()));
    }
    headers.insert(X_INSTANCE_ID, who.instance.clone());
    headers.insert(X_TENANT_ID, who.project.clone());
    headers.insert(X_INSTANCE_ID_SIGNATURE, who.signature.clone());
    if let Some(address) = who.forwarded_for(is_v4) {
        headers.insert(X_FORWARDED_FOR, address.clone());
    }
    Ok(request)
}

/// Takes out of Nova's headers what concerns the connection between Nova and us.
pub(super) fn strip_hop_by_hop(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|list| list.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    for name in named.iter().chain(&HOP_BY_HOP) {
        headers.remove(name);
    }
}

/// What of a path may stand in a log: metadata paths are public knowledge, query strings and odd ones may not be.
pub(super) fn path_class(path: &str) -> &'static str {
    let path = path.split('?').next().unwrap_or_default().trim_matches('/');
    if path.is_empty() {
        return "/";
    }
    let last = path.rsplit('/').next().unwrap_or_default();
    match last {
        "password" => "password",
        "user-data" | "user_data" => "user-data",
        "meta_data.json" => "meta_data.json",
        "network_data.json" => "network_data.json",
        "vendor_data.json" | "vendor_data2.json" => "vendor-data",
        _ if path.split('/').any(|part| part == "meta-data") => "meta-data",
        _ if path == "openstack" || path.starts_with("openstack/") => "openstack",
        _ => "other",
    }
}

#[cfg(test)]
#[path = "forward_tests.rs"]
mod tests;
