//! A client's request head.
use std::borrow::Cow;

use super::{
    Framing, Malformed,
    fields::{Fields, Named, first_line},
    is_token, length,
};

/// The two that there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    /// Connections end after a response, and chunks are unknown.
    Http10,
    /// As nearly everybody.
    Http11,
}

/// Request of a client, as it stands on the wire.
#[derive(Debug, Clone)]
pub struct Request<'b> {
    pub method: &'b [u8],
    /// Path and query, byte for byte.
    pub target: Cow<'b, [u8]>,
    pub version: Version,
    pub fields: Fields<'b>,
    pub body: Framing,
    /// True if another request may follow on the connection.
    pub keep_alive: bool,
    /// True if the client waits for a 100 before it sends the body.
    pub expects_continue: bool,
}

impl<'b> Request<'b> {
    /// Of a complete head. `hosts` are the names under which a client may address us in a target (RFC 9112, section 3.2.2,
    /// demands that form to be accepted).
    pub fn parse(head: &'b [u8], hosts: &[&str]) -> Result<Self, Malformed> {
        let (line, rest) = first_line(head);
        let mut words = line.splitn(3, |byte| *byte == b' ');
        let (Some(method), Some(target), Some(version)) = (words.next(), words.next(), words.next()) else {
            return Err(Malformed::RequestLine);
        };
        if !is_token(method) || target.is_empty() {
            return Err(Malformed::RequestLine);
        }
        let version = match version {
            b"HTTP/1.1" => Version::Http11,
            b"HTTP/1.0" => Version::Http10,
            other if other.starts_with(b"HTTP/") && !other.contains(&b' ') => return Err(Malformed::Version),
            _ => return Err(Malformed::RequestLine),
        };
        let target = path(method, target, hosts)?;
        let fields = Fields::parse(rest)?;
        let [host, connection, expect, encoding, length] =
            fields.named(["host", "connection", "expect", "transfer-encoding", "content-length"]);
        host.only(Malformed::Host)?;
        let keep_alive = match version {
            Version::Http11 => !connection.has_member("close"),
            Version::Http10 => connection.has_member("keep-alive") && !connection.has_member("close"),
        };
        Ok(Self {
            method,
            target,
            version,
            fields,
            body: framing(encoding, length, version)?,
            keep_alive,
            expects_continue: version == Version::Http11 && expect.has_member("100-continue"),
        })
    }

    /// True if asking twice is the same as asking once, and changes nothing.
    pub fn is_safe(&self) -> bool {
        matches!(self.method, b"GET" | b"HEAD" | b"OPTIONS")
    }
}

fn path<'b>(method: &[u8], target: &'b [u8], hosts: &[&str]) -> Result<Cow<'b, [u8]>, Malformed> {
    // Bytes above 0x7f are no part of a URL, but they are data. A TRACE would tell the client what is added on the way.
    if matches!(method, b"CONNECT" | b"TRACE") || target.iter().any(|byte| byte.is_ascii_control()) {
        return Err(Malformed::Target);
    }
    // No target has a fragment. Where one does, some servers take it for a part of the path, others cut it off.
    if target.contains(&b'#') {
        return Err(Malformed::Fragment);
    }
    let mut path = target;
    if let Some((scheme, rest)) = target.split_at_checked(b"http://".len())
        && scheme.eq_ignore_ascii_case(b"http://")
    {
        let end = rest.iter().position(|byte| matches!(byte, b'/' | b'?')).unwrap_or(rest.len());
        let (authority, rest) = rest.split_at(end);
        if !is_one_of(hosts, authority) {
            return Err(Malformed::Target);
        }
        // An empty path is a slash, also before a query (RFC 9112, section 3.2.1).
        if !rest.starts_with(b"/") {
            return Ok([b"/", rest].concat().into());
        }
        path = rest;
    }
    if path.starts_with(b"/") { Ok(path.into()) } else { Err(Malformed::Target) }
}

/// True if it is one of those; the port is 80, also where it is empty or missing (RFC 3986, section 6.2.3).
fn is_one_of(hosts: &[&str], authority: &[u8]) -> bool {
    hosts.iter().any(|name| {
        let (host, port) = authority.split_at_checked(name.len()).unwrap_or_default();
        host.eq_ignore_ascii_case(name.as_bytes()) && matches!(port, b"" | b":" | b":80")
    })
}

fn framing(encoding: Named<'_>, told: Named<'_>, version: Version) -> Result<Framing, Malformed> {
    let chunked = encoding.is_chunked()?;
    match told.only(Malformed::ContentLength)? {
        Some(_) if chunked => Err(Malformed::BothFramings),
        Some(value) => Ok(Framing::Length(length(value)?)),
        // RFC 9112, section 6.1: what an HTTP/1.0 client means by it is anybody's guess.
        None if chunked && version == Version::Http10 => Err(Malformed::TransferEncoding),
        None if chunked => Ok(Framing::Chunked),
        None => Ok(Framing::Length(0)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOSTS: &[&str] = &["192.0.2.1", "[2001:db8::a]"];

    fn parse(head: &str) -> Result<Request<'_>, Malformed> {
        Request::parse(head.as_bytes(), HOSTS)
    }

    #[test]
    fn what_clients_send() {
        let request = parse("GET /a%2F?q=\u{e4} HTTP/1.1\r\nHost: x\r\nAccept: */*\r\n\r\n").unwrap();
        assert_eq!((request.method, &*request.target), (&b"GET"[..], "/a%2F?q=\u{e4}".as_bytes()));
        assert_eq!((request.body, request.keep_alive), (Framing::Length(0), true));
        assert!(request.is_safe());
        let request = Request::parse(b"GET /\xff\xfe HTTP/1.0\r\n\r\n", HOSTS).unwrap();
        assert_eq!((&*request.target, request.keep_alive), (&b"/\xff\xfe"[..], false));
        let request =
            parse("POST /p HTTP/1.1\r\nExpect: 100-Continue\r\nContent-Length: 07\r\n\r\n").unwrap();
        assert_eq!((request.body, request.expects_continue), (Framing::Length(7), true));
        let request =
            parse("PUT /p HTTP/1.1\r\nTransfer-Encoding: Chunked\r\nConnection: x, Close\r\n\r\n").unwrap();
        assert_eq!((request.body, request.keep_alive), (Framing::Chunked, false));
        let request = parse("GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n").unwrap();
        assert!(request.keep_alive);
        assert!(!parse("POST / HTTP/1.1\r\n\r\n").unwrap().is_safe());
    }

    #[test]
    fn only_paths_and_our_hosts() {
        for target in ["http://192.0.2.1/a?b", "HTTP://192.0.2.1:80/a?b", "http://[2001:DB8::A]/a?b"] {
            assert_eq!(&*parse(&format!("GET {target} HTTP/1.1\r\n\r\n")).unwrap().target, b"/a?b");
        }
        for (target, path) in [
            ("http://192.0.2.1", "/"),
            ("http://192.0.2.1:", "/"),
            ("http://[2001:db8::a]:80", "/"),
            ("http://192.0.2.1?a=/b", "/?a=/b"),
        ] {
            let head = format!("GET {target} HTTP/1.1\r\n\r\n");
            assert_eq!(&*parse(&head).unwrap().target, path.as_bytes(), "{target}");
        }
        for line in [
            "GET http://another.host/ HTTP/1.1",
            "GET http:// HTTP/1.1",
            "GET http:///a HTTP/1.1",
            "GET http://192.0.2.1:8080 HTTP/1.1",
            "GET http://192.0.2.1:080/ HTTP/1.1",
            "GET http://192.0.2.11/ HTTP/1.1",
            "GET http://192.0.2.1\\/ HTTP/1.1",
            "GET http://192.0.2.1@evil/ HTTP/1.1",
            "GET http://evil@192.0.2.1 HTTP/1.1",
            "GET ?a HTTP/1.1",
            "GET https://192.0.2.1/ HTTP/1.1",
            "GET latest HTTP/1.1",
            "OPTIONS * HTTP/1.1",
            "CONNECT 127.0.0.1:22 HTTP/1.1",
            "CONNECT / HTTP/1.1",
            "TRACE / HTTP/1.1",
            "GET /a\tb HTTP/1.1",
            "GET /a\0 HTTP/1.1",
            "GET /a\x7f HTTP/1.1",
        ] {
            assert_eq!(parse(&format!("{line}\r\n\r\n")).err(), Some(Malformed::Target), "{line}");
        }
        for target in ["/a#b", "/#", "#", "/a?b#c", "http://192.0.2.1#/a", "http://192.0.2.1/#@evil"] {
            let head = format!("GET {target} HTTP/1.1\r\n\r\n");
            assert_eq!(parse(&head).err(), Some(Malformed::Fragment), "{target}");
        }
    }

    #[test]
    fn what_could_be_read_in_two_ways_is_refused() {
        for (head, problem) in [
            ("GET / HTTP/1.1 \r\n", Malformed::RequestLine),
            ("GET  / HTTP/1.1\r\n", Malformed::RequestLine),
            ("GET / \r\n", Malformed::RequestLine),
            ("GET /\r\n", Malformed::RequestLine),
            ("GET / b HTTP/1.1\r\n", Malformed::RequestLine),
            (" GET / HTTP/1.1\r\n", Malformed::RequestLine),
            ("G(T / HTTP/1.1\r\n", Malformed::RequestLine),
            ("GET / http/1.1\r\n", Malformed::RequestLine),
            ("GET / HTTP/1.2\r\n", Malformed::Version),
            ("PRI * HTTP/2.0\r\n", Malformed::Version),
            ("GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n", Malformed::Host),
            ("GET / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 1\r\n", Malformed::ContentLength),
            ("GET / HTTP/1.1\r\nContent-Length: 1\r\ncontent-length: 2\r\n", Malformed::ContentLength),
            ("GET / HTTP/1.1\r\nContent-Length: 1, 1\r\n", Malformed::ContentLength),
            ("GET / HTTP/1.1\r\nContent-Length:\r\n", Malformed::ContentLength),
            ("GET / HTTP/1.1\r\nContent-Length: +1\r\n", Malformed::ContentLength),
            ("GET / HTTP/1.1\r\nContent-Length: 0x1\r\n", Malformed::ContentLength),
            ("GET / HTTP/1.1\r\nContent-Length: 1 1\r\n", Malformed::ContentLength),
            ("GET / HTTP/1.1\r\nContent-Length: 99999999999999999999\r\n", Malformed::ContentLength),
            (
                "GET / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n",
                Malformed::BothFramings,
            ),
            (
                "GET / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nContent-Length: 1\r\n",
                Malformed::BothFramings,
            ),
            ("GET / HTTP/1.1\r\nTransfer-Encoding: gzip, chunked\r\n", Malformed::TransferEncoding),
            ("GET / HTTP/1.1\r\nTransfer-Encoding: chunked, identity\r\n", Malformed::TransferEncoding),
            ("GET / HTTP/1.1\r\nTransfer-Encoding: xchunked\r\n", Malformed::TransferEncoding),
            ("GET / HTTP/1.1\r\nTransfer-Encoding:\r\n", Malformed::TransferEncoding),
            (
                "GET / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
                Malformed::TransferEncoding,
            ),
            ("GET / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n", Malformed::TransferEncoding),
        ] {
            assert_eq!(parse(&format!("{head}\r\n")).err(), Some(problem), "{head:?}");
        }
    }
}
