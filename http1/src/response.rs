//! A server's response head, and what of it is passed on.
use bytes::Bytes;

use super::{
    Framing, Malformed, Request, Version,
    fields::{Fields, Named, first_line},
    length,
};

/// Fields that belong to one connection (RFC 9110, section 7.6.1) or tell the framing, which is ours to choose.
const OF_THE_CONNECTION: [&str; 9] = [
    "connection",
    "content-length",
    "keep-alive",
    "proxy-authenticate",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// Response of a server, before its body.
#[derive(Debug)]
pub struct Response {
    head: Bytes,
    /// True if the head names fields of the connection.
    names_fields: bool,
    pub status: u16,
    /// Framing of the body, as the server tells it.
    pub body: Framing,
    /// The length of the body that a GET would have got: in answers without one.
    announced: Option<u64>,
    /// True if the connection to the server can be used again.
    pub keep_alive: bool,
}

impl Response {
    /// Of a complete head, to a request with that method.
    pub fn parse(head: Bytes, method: &[u8]) -> Result<Self, Malformed> {
        let (line, rest) = first_line(&head);
        let (version, status) = status_line(line)?;
        let fields = Fields::parse(rest)?;
        let [encoding, lengths, connection] =
            fields.named(["transfer-encoding", "content-length", "connection"]);
        let chunked = encoding.is_chunked()?;
        let announced = announced(lengths)?;
        let body = match announced {
            _ if method == b"HEAD" || matches!(status, 100..=199 | 204 | 304) => Framing::Length(0),
            // Chunks tell the end, whatever else does (RFC 9112, section 6.3).
            _ if chunked => Framing::Chunked,
            Some(length) => Framing::Length(length),
            None => Framing::Close,
        };
        // What is told twice may mean that somebody adds it who reads it otherwise.
        let told_twice = chunked && announced.is_some() || lengths.members().count() > 1;
        let closes = connection.has_member("close");
        let keep_alive = version == Version::Http11 && !closes && !told_twice && body != Framing::Close;
        let names_fields = connection.exists();
        Ok(Self { status, body, announced, keep_alive, names_fields, head })
    }

    /// True if the real answer is still to come.
    pub fn is_interim(&self) -> bool {
        (100..200).contains(&self.status)
    }

    /// Writes the head that the client gets that made `request`; returns how it is told the body's end.
    pub fn write_for(&self, request: &Request<'_>, keep_alive: bool, out: &mut Vec<u8>) -> Framing {
        let (line, rest) = first_line(&self.head);
        out.extend_from_slice(b"HTTP/1.1 ");
        out.extend_from_slice(&line[b"HTTP/1.x ".len()..]);
        out.extend_from_slice(b"\r\n");
        let fields = Fields::parsed(rest);
        let named = self.names_fields.then(|| fields.named(["connection"]));
        let is_named = |name: &[u8]| {
            named.is_some_and(|[connection]| {
                connection.members().any(|other| other.eq_ignore_ascii_case(name))
            })
        };
        for (name, value) in fields.iter() {
            let is_ours = OF_THE_CONNECTION.iter().any(|other| name.eq_ignore_ascii_case(other.as_bytes()));
            if !is_ours && !is_named(name) {
                write_field(name, value, out);
            }
        }
        let framing = match self.body {
            Framing::Length(length) => Framing::Length(length),
            _ if request.version == Version::Http11 => Framing::Chunked,
            _ => Framing::Close,
        };
        match framing {
            // Without a body of its own: what a GET would have got, or nothing at all.
            Framing::Length(0) => {
                let has_none = matches!(self.status, 204);
                let other = request.method == b"HEAD" || self.status == 304;
                let length = if other { self.announced } else { Some(0) };
                if let Some(length) = length.filter(|_| !has_none) {
                    write_field(b"Content-Length", length.to_string().as_bytes(), out);
                }
            }
            Framing::Length(length) => write_field(b"Content-Length", length.to_string().as_bytes(), out),
            Framing::Chunked => write_field(b"Transfer-Encoding", b"chunked", out),
            Framing::Close => {}
        }
        write_connection(request.version, keep_alive && framing != Framing::Close, out);
        out.extend_from_slice(b"\r\n");
        framing
    }
}

/// Says what becomes of the connection where it is not what the version implies.
pub fn write_connection(version: Version, keep_alive: bool, out: &mut Vec<u8>) {
    match (version, keep_alive) {
        (Version::Http11, false) => write_field(b"Connection", b"close", out),
        (Version::Http10, true) => write_field(b"Connection", b"keep-alive", out),
        _ => {}
    }
}

/// One header line.
pub fn write_field(name: &[u8], value: &[u8], out: &mut Vec<u8>) {
    for part in [name, b": ", value, b"\r\n"] {
        out.extend_from_slice(part);
    }
}

/// The body's length. A server, or one before it, may say it several times, in one field or more, as long as it is the same
/// (RFC 9112, section 6.3).
fn announced(told: Named<'_>) -> Result<Option<u64>, Malformed> {
    if !told.exists() {
        return Ok(None);
    }
    let mut lengths = told.members().map(length);
    let first = lengths.next().unwrap_or(Err(Malformed::ContentLength))?;
    let is_same = lengths.all(|length| length == Ok(first));
    if is_same { Ok(Some(first)) } else { Err(Malformed::ContentLength) }
}

fn status_line(line: &[u8]) -> Result<(Version, u16), Malformed> {
    let (version, rest) = match line.split_at_checked(b"HTTP/1.x".len()) {
        Some((b"HTTP/1.1", rest)) => (Version::Http11, rest),
        Some((b"HTTP/1.0", rest)) => (Version::Http10, rest),
        _ => return Err(Malformed::StatusLine),
    };
    let [b' ', a @ b'1'..=b'9', b @ b'0'..=b'9', c @ b'0'..=b'9', reason @ ..] = rest else {
        return Err(Malformed::StatusLine);
    };
    if !(reason.is_empty() || reason[0] == b' ')
        || reason.iter().any(|byte| byte.is_ascii_control() && *byte != b'\t')
    {
        return Err(Malformed::StatusLine);
    }
    let digit = |byte: &u8| u16::from(*byte - b'0');
    Ok((version, digit(a) * 100 + digit(b) * 10 + digit(c)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(head: &'static str, method: &str) -> Result<Response, Malformed> {
        Response::parse(Bytes::from_static(head.as_bytes()), method.as_bytes())
    }

    /// The head that a client gets of `head`, by an HTTP/1.1 GET unless said otherwise.
    fn passed(head: &'static str, request: &str) -> String {
        let request = Request::parse(request.as_bytes(), &[]).unwrap();
        let mut out = Vec::new();
        let response = Response::parse(Bytes::from_static(head.as_bytes()), request.method).unwrap();
        response.write_for(&request, request.keep_alive, &mut out);
        String::from_utf8(out).unwrap()
    }

    const GET: &str = "GET / HTTP/1.1\r\n\r\n";

    #[test]
    fn heads_pass_but_for_the_connection() {
        let head = "HTTP/1.1 200 Fine, thanks\r\nx-a: b\r\nConnection: close, X-Hop\r\nX-Hop: 1\r\nKeep-Alive: 5\r\n\
                    Content-Length: 3\r\nX-A: c\r\nTE: x\r\n\r\n";
        assert_eq!(
            passed(head, GET),
            "HTTP/1.1 200 Fine, thanks\r\nx-a: b\r\nX-A: c\r\nContent-Length: 3\r\n\r\n"
        );
        assert!(!parse(head, "GET").unwrap().keep_alive);
    }

    #[test]
    fn bodies_are_framed_for_the_client() {
        let close = "HTTP/1.0 200 OK\r\n\r\n";
        assert_eq!(passed(close, GET), "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
        assert_eq!(
            passed(close, "GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"),
            "HTTP/1.1 200 OK\r\n\r\n"
        );
        let length = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n";
        assert_eq!(
            passed(length, "GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"),
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: keep-alive\r\n\r\n"
        );
        assert_eq!(passed(length, "HEAD / HTTP/1.1\r\n\r\n"), length);
        assert_eq!(passed("HTTP/1.1 204 No\r\n\r\n", GET), "HTTP/1.1 204 No\r\n\r\n");
        assert_eq!(
            passed("HTTP/1.1 304 No\r\nContent-Length: 9\r\n\r\n", GET),
            "HTTP/1.1 304 No\r\nContent-Length: 9\r\n\r\n"
        );
        assert_eq!(
            passed("HTTP/1.1 599\r\nContent-Length: 0\r\n\r\n", GET),
            "HTTP/1.1 599\r\nContent-Length: 0\r\n\r\n"
        );
    }

    #[test]
    fn what_is_told_twice_and_the_same_is_understood() {
        for fields in [
            "Content-Length: 5\r\nContent-Length: 5",
            "Content-Length: 5, 5",
            "Content-Length: 5,\r\ncontent-length: 05",
        ] {
            let head = String::leak(format!("HTTP/1.1 200 OK\r\n{fields}\r\n\r\n"));
            let response = parse(head, "GET").unwrap();
            assert_eq!((response.body, response.keep_alive), (Framing::Length(5), false), "{fields}");
            assert_eq!(passed(head, GET), "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n");
        }
        let both = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n";
        let response = parse(both, "GET").unwrap();
        assert_eq!((response.body, response.keep_alive), (Framing::Chunked, false));
        assert_eq!(passed(both, GET), "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
    }

    #[test]
    fn broken_heads_are_refused() {
        for (head, problem) in [
            ("SSH-2.0-x\r\n\r\n", Malformed::StatusLine),
            ("HTTP/2 200\r\n\r\n", Malformed::StatusLine),
            ("HTTP/1.1 20\r\n\r\n", Malformed::StatusLine),
            ("HTTP/1.1 2000\r\n\r\n", Malformed::StatusLine),
            ("HTTP/1.1  200\r\n\r\n", Malformed::StatusLine),
            ("HTTP/1.1 200 a\rb\r\n\r\n", Malformed::StatusLine),
            ("HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", Malformed::ContentLength),
            ("HTTP/1.1 200 OK\r\nContent-Length: 1, 2\r\n\r\n", Malformed::ContentLength),
            ("HTTP/1.1 200 OK\r\nContent-Length: 1, x\r\n\r\n", Malformed::ContentLength),
            ("HTTP/1.1 200 OK\r\nContent-Length: ,\r\n\r\n", Malformed::ContentLength),
            ("HTTP/1.1 200 OK\r\nContent-Length:\r\n\r\n", Malformed::ContentLength),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n", Malformed::TransferEncoding),
            ("HTTP/1.1 200 OK\r\nA\r\n\r\n", Malformed::FieldName),
        ] {
            assert_eq!(parse(head, "GET").err(), Some(problem), "{head:?}");
        }
    }
}
