//! Remote signer: the private key of the client certificate stays with the privileged process, which signs handshakes with
//! Nova for the guest-facing one, over a socket of their own.
use std::{
    fmt, io,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use rustls::{
    Error, SignatureAlgorithm, SignatureScheme,
    sign::{Signer, SigningKey},
};
use serde::{Deserialize, Serialize};
use tls_peer::KeyKind;

use crate::{config::Rate, directory::Bucket, packets::Channel};

/// Timeout of a signature. The worker that needs it waits, as it would for its own.
const SIGNING: Duration = Duration::from_secs(2);

/// Longest message that is signed: a whole handshake, for TLS 1.2, with the chains of both sides.
const LONGEST: usize = 24 << 10;

/// Token bucket of the signatures, which are what costs a processor the most. A handshake waits for its turn.
const PACE: Rate = Rate { rate: 4_000, burst: 8_000 };

#[derive(Debug, Serialize, Deserialize)]
struct Request {
    /// Told again with the signature: one that comes late is not taken for the next one's.
    #[serde(default)]
    number: u64,
    scheme: u16,
    message: Vec<u8>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Response {
    /// None from an agent of before there were numbers.
    #[serde(default)]
    number: Option<u64>,
    signature: Option<Vec<u8>>,
}

/// The key of a client certificate, as who does not have it uses it.
#[derive(Clone)]
pub struct RemoteKey {
    channel: Arc<Mutex<Channel>>,
    kind: KeyKind,
}

impl RemoteKey {
    /// A key of that kind at the other end of the channel.
    pub fn new(channel: Arc<Mutex<Channel>>, kind: KeyKind) -> Self {
        Self { channel, kind }
    }
}

impl fmt::Debug for RemoteKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RemoteKey").field("kind", &self.kind).finish_non_exhaustive()
    }
}

impl SigningKey for RemoteKey {
    fn choose_scheme(&self, offered: &[SignatureScheme]) -> Option<Box<dyn Signer>> {
        let scheme = self.kind.schemes().find(|scheme| offered.contains(scheme))?;
        Some(Box::new(RemoteSigner { channel: self.channel.clone(), scheme }))
    }

    fn algorithm(&self) -> SignatureAlgorithm {
        self.kind.algorithm()
    }
}

#[derive(Debug)]
struct RemoteSigner {
    channel: Arc<Mutex<Channel>>,
    scheme: SignatureScheme,
}

impl Signer for RemoteSigner {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, Error> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let request = Request { number, scheme: self.scheme.into(), message: message.to_vec() };
        let channel = self.channel.lock().unwrap_or_else(PoisonError::into_inner);
        let ask = || -> io::Result<Response> {
            channel.send(&request, &[])?;
            loop {
                let (response, _): (Response, _) = channel.receive(Some(SIGNING))?;
                if response.number.is_none_or(|of| of == number) {
                    return Ok(response);
                }
            }
        };
        let response = ask().map_err(|error| Error::General(format!("nobody signs: {error}")))?;
        response.signature.ok_or_else(|| Error::General("the signature is refused".to_owned()))
    }

    fn scheme(&self) -> SignatureScheme {
        self.scheme
    }
}

/// Signs what comes over the channel, with the key that there is at the time, until the other end is gone.
///
/// Only handshakes are signed: the key may be good for other things elsewhere.
pub fn serve(channel: &Channel, key: impl Fn() -> Option<Arc<dyn SigningKey>>) -> io::Result<()> {
    let mut pace = Bucket::default();
    loop {
        let (Request { number, scheme, message }, _) = match channel.receive(None) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            request => request?,
        };
        let now = Instant::now();
        if let Some(delay) = pace.wait(PACE, now) {
            thread::sleep(delay);
        }
        pace.add(PACE, now);
        let sign = || {
            is_handshake(&message).then_some(())?;
            key()?.choose_scheme(&[scheme.into()])?.sign(&message).ok()
        };
        channel.send(&Response { number: Some(number), signature: sign() }, &[])?;
    }
}

/// Recognizes what a client signs in TLS: the words of 1.3 (RFC 8446, section 4.4.3) with a hash, or, for 1.2, the
/// handshake from its first message on, which is a ClientHello (RFC 5246, sections 7.4 and 7.4.8).
fn is_handshake(message: &[u8]) -> bool {
    const CONTEXT: &[u8] = b"TLS 1.3, client CertificateVerify\0";
    if message.len() > LONGEST {
        return false;
    }
    match message.strip_prefix(&[b' '; 64]) {
        Some(rest) => rest.strip_prefix(CONTEXT).is_some_and(|hash| matches!(hash.len(), 32 | 48 | 64)),
        None => is_client_hello(message),
    }
}

/// Recognizes a message that begins with a whole ClientHello: type, length, and the version of all since 1.2 (RFC 8446,
/// section 4.1.2).
fn is_client_hello(message: &[u8]) -> bool {
    let [1, a, b, c, rest @ ..] = message else { return false };
    let length = u32::from_be_bytes([0, *a, *b, *c]) as usize;
    rest.len() >= length && rest.starts_with(&[3, 3])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A signer that took too long once would otherwise have each handshake signed with the one before.
    #[test]
    fn a_signature_that_comes_late_is_not_taken_for_the_next() {
        let (ours, theirs) = Channel::pair().unwrap();
        let signer = RemoteSigner { channel: Arc::new(Mutex::new(ours)), scheme: SignatureScheme::ED25519 };
        thread::scope(|scope| {
            let late = scope.spawn(|| signer.sign(b"one"));
            let (one, _): (Request, _) = theirs.receive(None).unwrap();
            assert!(late.join().unwrap().is_err());
            let next = scope.spawn(|| signer.sign(b"two"));
            let (two, _): (Request, _) = theirs.receive(None).unwrap();
            for request in [one, two] {
                let response = Response { number: Some(request.number), signature: Some(request.message) };
                theirs.send(&response, &[]).unwrap();
            }
            assert_eq!(next.join().unwrap().unwrap(), b"two");
            // An agent of before there were numbers tells none.
            let former = scope.spawn(|| signer.sign(b"three"));
            let (three, _): (Request, _) = theirs.receive(None).unwrap();
            theirs.send(&serde_json::json!({ "signature": three.message }), &[]).unwrap();
            assert_eq!(former.join().unwrap().unwrap(), b"three");
        });
    }

    #[test]
    fn nothing_but_handshakes_is_signed() {
        let mut verify = vec![b' '; 64];
        verify.extend_from_slice(b"TLS 1.3, client CertificateVerify\0");
        assert!(!is_handshake(&verify));
        assert!(is_handshake(&[&verify[..], &[7; 32]].concat()));
        assert!(!is_handshake(&[&verify[..], &[7; 33]].concat()));
        assert!(is_handshake(&[1, 0, 0, 4, 3, 3, 7, 7]));
        assert!(!is_handshake(&[1, 0, 0, 4, 3, 1, 7, 7]) && !is_handshake(&[1, 0, 0, 5, 3, 3, 7, 7]));
        let server = b"TLS 1.3, server CertificateVerify\0";
        assert!(!is_handshake(&[&[b' '; 64][..], server, &[7; 32]].concat()));
        assert!(!is_handshake(b"") && !is_handshake(b"a contract") && !is_handshake(&[1; LONGEST + 1]));
    }
}
