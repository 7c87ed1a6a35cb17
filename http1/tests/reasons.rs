//! Claims of the README about other crates, held against them.
#![allow(clippy::unwrap_used, reason = "it is part of tests")]
use std::convert::Infallible;

use bytes::Bytes;
use http::{HeaderValue, Uri};
use http_body_util::{BodyExt as _, Full};
use http1::{HeadEnd, Malformed, Request};
use hyper::{body::Incoming, server::conn::http1::Builder, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

/// The status that hyper's server answers with, and the fields that are left when its program sees them.
async fn by_hyper(request: &str) -> (String, Vec<String>) {
    let (mut client, server) = tokio::io::duplex(4096);
    client.write_all(request.as_bytes()).await.unwrap();
    client.shutdown().await.unwrap();
    let (sender, mut names) = tokio::sync::mpsc::unbounded_channel();
    let service = service_fn(move |request: http::Request<Incoming>| {
        let names = request.headers().iter().map(|(name, _)| name.to_string()).collect::<Vec<_>>();
        let sender = sender.clone();
        async move {
            sender.send(names).unwrap();
            let _ = request.collect().await;
            Ok::<_, Infallible>(http::Response::new(Full::new(Bytes::new())))
        }
    });
    // What it thinks of the connection's end is of no interest.
    let _ = Builder::new().half_close(true).serve_connection(TokioIo::new(server), service).await;
    let mut answer = String::new();
    client.read_to_string(&mut answer).await.unwrap();
    let status = answer.split(' ').nth(1).unwrap_or_default().to_owned();
    (status, names.recv().await.unwrap_or_default())
}

fn by_us(request: &str) -> Option<Malformed> {
    let mut end = HeadEnd::default();
    match end.find(request.as_bytes()) {
        Ok(end) => Request::parse(&request.as_bytes()[..end.unwrap()], &[]).err(),
        Err(problem) => Some(problem),
    }
}

#[tokio::test]
async fn what_is_refused_here_a_usual_server_tidies_away() {
    for (request, problem, left) in [
        ("GET / HTTP/1.1\nHost: a\n\n", Malformed::LineEnd, &["host"][..]),
        (
            "POST / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\na",
            Malformed::ContentLength,
            &["content-length"],
        ),
        (
            "POST / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            Malformed::BothFramings,
            &["transfer-encoding"],
        ),
    ] {
        assert_eq!(by_us(request), Some(problem), "{request:?}");
        let left = left.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        assert_eq!(by_hyper(request).await, ("200".to_owned(), left), "{request:?}");
    }
}

#[test]
fn the_usual_types_hold_every_value_and_not_every_target() {
    let bytes: Vec<u8> = (b' '..=b'\xff').filter(|byte| *byte != 0x7f).collect();
    assert_eq!(HeaderValue::from_bytes(&bytes).unwrap().as_bytes(), bytes);
    assert!(Uri::try_from(&b"/\xff"[..]).is_err());
    assert_eq!(Uri::try_from("/a#b").unwrap().to_string(), "/a");
}
