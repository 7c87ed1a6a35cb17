//! Oracles for any bytes: a message that is accepted is understood in the same way however it is cut, and by other
//! readers.
use bytes::{Bytes, BytesMut};
use http1::{Chunks, Framing, HeadEnd, Malformed, Request, Response};
use httparse::{EMPTY_HEADER, Status};

/// Names under which we may be addressed in a target.
pub(crate) const HOSTS: &[&str] = &["192.0.2.1"];

/// Head of a request, as it is understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RequestHead {
    pub(crate) method: Vec<u8>,
    pub(crate) target: Vec<u8>,
    pub(crate) fields: Vec<(Vec<u8>, Vec<u8>)>,
}

/// Response, as it is understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) fields: Vec<(Vec<u8>, Vec<u8>)>,
    pub(crate) body: Vec<u8>,
}

/// Reads requests that follow each other, and returns those that are accepted, with their heads.
pub(crate) fn requests(bytes: &[u8]) -> Vec<(&[u8], RequestHead)> {
    let mut accepted = Vec::new();
    let mut rest = bytes;
    while let Some(end) = head_end(rest) {
        let (head, after) = rest.split_at(end);
        let Ok(request) = Request::parse(head, HOSTS) else { break };
        let read = RequestHead {
            method: request.method.to_vec(),
            target: request.target.to_vec(),
            fields: request.fields.iter().map(|(name, value)| (name.to_vec(), value.to_vec())).collect(),
        };
        compare_request(head, &read);
        accepted.push((head, read));
        let Some((_, after)) = body(request.body, after) else { break };
        rest = after;
    }
    accepted
}

/// Reads a response to each kind of request, and returns what it says if it is accepted and whole, and whether that was to
/// a HEAD.
pub(crate) fn responses(bytes: &[u8]) -> Vec<(bool, Answer)> {
    let requests = ["GET / HTTP/1.1\r\n\r\n", "GET / HTTP/1.0\r\n\r\n", "HEAD / HTTP/1.1\r\n\r\n"];
    let requests = requests.iter().filter_map(|request| Request::parse(request.as_bytes(), HOSTS).ok());
    requests.filter_map(|request| Some((request.method == b"HEAD", response(bytes, &request)?))).collect()
}

fn response(bytes: &[u8], request: &Request<'_>) -> Option<Answer> {
    let (head, rest) = bytes.split_at(head_end(bytes)?);
    let response = Response::parse(Bytes::copy_from_slice(head), request.method).ok()?;
    let mut passed = Vec::new();
    let framing = response.write_for(request, request.keep_alive, &mut passed);
    // What is passed on says the same, and is refused by nobody who refused nothing.
    assert_eq!(head_end(&passed), Some(passed.len()), "{passed:?}");
    let again = Response::parse(passed.into(), request.method).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!((again.status, again.body), (response.status, framing));
    let fields = compare_response(head, &response);
    let (body, _) = body(response.body, rest)?;
    Some(Answer { status: response.status, fields, body })
}

/// Length of a head, found at once and byte by byte.
fn head_end(bytes: &[u8]) -> Option<usize> {
    let mut step_by_step = HeadEnd::default();
    let found = (0..=bytes.len()).map(|length| step_by_step.find(&bytes[..length]));
    let found = found.into_iter().find(|found| *found != Ok(None)).unwrap_or(Ok(None));
    assert_eq!(HeadEnd::default().find(bytes), found);
    found.ok().flatten()
}

/// A body and what comes after it, if it is whole.
fn body(framing: Framing, bytes: &[u8]) -> Option<(Vec<u8>, &[u8])> {
    match framing {
        Framing::Length(length) => {
            let (body, rest) = bytes.split_at_checked(usize::try_from(length).ok()?)?;
            Some((body.to_vec(), rest))
        }
        Framing::Close => Some((bytes.to_vec(), &[])),
        Framing::Chunked => {
            let at_once = chunks(bytes, bytes.len().max(1));
            assert_eq!(at_once, chunks(bytes, 1));
            let (body, length) = at_once.ok().flatten()?;
            assert_eq!(chunks_by_httparse(&bytes[..length]).as_deref(), Some(&body[..]));
            Some((body, &bytes[length..]))
        }
    }
}

/// Takes chunks apart that arrive in pieces; the body and how many bytes it was in, if it is whole.
fn chunks(bytes: &[u8], piece: usize) -> Result<Option<(Vec<u8>, usize)>, Malformed> {
    let (mut chunks, mut received, mut body) = (Chunks::default(), BytesMut::new(), Vec::new());
    let mut given = 0;
    for piece in bytes.chunks(piece) {
        given += piece.len();
        received.extend_from_slice(piece);
        if chunks.decode(&mut received, &mut body)? {
            return Ok(Some((body, given - received.len())));
        }
    }
    Ok(None)
}

fn chunks_by_httparse(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    let mut rest = bytes;
    loop {
        let Ok(Status::Complete((line, size))) = httparse::parse_chunk_size(rest) else { return None };
        rest = &rest[line..];
        if size == 0 {
            break;
        }
        let (data, after) = rest.split_at_checked(usize::try_from(size).ok()?)?;
        body.extend_from_slice(data);
        rest = after.strip_prefix(b"\r\n")?;
    }
    let mut fields = [EMPTY_HEADER; 64];
    let trailers = httparse::parse_headers(rest, &mut fields);
    matches!(trailers, Ok(Status::Complete((length, _))) if length == rest.len()).then_some(body)
}

/// It is accepted by a more lenient parser too, and understood in the same way.
fn compare_request(head: &[u8], ours: &RequestHead) {
    let mut fields = [EMPTY_HEADER; 128];
    let mut theirs = httparse::Request::new(&mut fields);
    match theirs.parse(head) {
        Ok(Status::Complete(length)) => assert_eq!(length, head.len()),
        // It wants targets to be text, and no quotes and the like in them.
        Err(httparse::Error::Token) => return,
        other => panic!("{other:?}: {}", head.escape_ascii()),
    }
    assert_eq!(theirs.method.unwrap_or_default().as_bytes(), ours.method);
    assert_target(theirs.path.unwrap_or_default().as_bytes(), &ours.target);
    assert_eq!(owned(theirs.headers), ours.fields);
}

/// An absolute target may have no path, which is a slash.
pub(crate) fn assert_target(theirs: &[u8], ours: &[u8]) {
    let is_same = theirs == ours
        || !theirs.starts_with(b"/") && (theirs.ends_with(ours) || theirs.ends_with(&ours[1..]));
    assert!(is_same, "{} {}", theirs.escape_ascii(), ours.escape_ascii());
}

fn compare_response(head: &[u8], ours: &Response) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut fields = [EMPTY_HEADER; 128];
    let mut theirs = httparse::Response::new(&mut fields);
    match theirs.parse(head) {
        Ok(Status::Complete(length)) => assert_eq!(length, head.len()),
        other => panic!("{other:?}: {}", head.escape_ascii()),
    }
    assert_eq!(theirs.code, Some(ours.status));
    owned(theirs.headers)
}

fn owned(fields: &[httparse::Header<'_>]) -> Vec<(Vec<u8>, Vec<u8>)> {
    fields.iter().map(|field| (field.name.as_bytes().to_vec(), field.value.to_vec())).collect()
}
