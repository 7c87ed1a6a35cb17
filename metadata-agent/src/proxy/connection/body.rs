//! The body of a request, which is read whole.
use std::{io, pin::pin};

use http1::{Chunks, Framing, Malformed, Request};
use tokio::io::{AsyncRead, AsyncWrite};

use super::{
    super::{answer::Refusal, closing::GuestSocket, receive::receive, turn::within},
    Connection, limited,
};

/// Sent before the body to who waits for it.
const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// Least allowance for bytes of sizes, extensions and trailers around a body's chunks: a body in chunks of one
/// byte each has five times as many as it has itself.
const LEAST_AROUND: usize = 16 * 1024;

impl<S: AsyncRead + AsyncWrite + GuestSocket + Unpin> Connection<'_, S> {
    /// The whole body: nothing of a request goes to Nova before all of it is here.
    pub(super) async fn body(&mut self, request: &Request<'_>) -> io::Result<Result<Vec<u8>, Refusal>> {
        let limit = self.common.limits.body_bytes;
        let mut body = Vec::new();
        let (mut chunks, mut around) = (Chunks::default(), 0);
        if matches!(request.body, Framing::Length(length) if length > limit as u64) {
            return Ok(Err(Refusal::BodyTooLarge(limit)));
        }
        if request.expects_continue && self.received.is_empty() && request.body != Framing::Length(0) {
            self.send(CONTINUE).await?;
        }
        loop {
            let complete = match request.body {
                Framing::Length(length) => {
                    let missing = (length as usize).saturating_sub(body.len());
                    let here = self.received.split_to(missing.min(self.received.len()));
                    body.extend_from_slice(&here);
                    here.len() == missing
                }
                Framing::Chunked | Framing::Close => {
                    let before = self.received.len() + body.len();
                    let complete = match chunks.decode(&mut self.received, &mut body) {
                        Ok(complete) => complete,
                        Err(problem) => return Ok(Err(Refusal::Malformed(problem))),
                    };
                    around += before - (self.received.len() + body.len());
                    complete
                }
            };
            if body.len() > limit || around > limit.max(LEAST_AROUND) {
                return Ok(Err(Refusal::BodyTooLarge(limit)));
            }
            if complete {
                return Ok(Ok(body));
            }
            if let Err(limit) = self.account.charge((self.received.len() + body.len()) as u32) {
                return Ok(Err(limited(limit)));
            }
            match within(self.common.limits.pause, pin!(receive(&mut self.stream, &mut self.received))).await
            {
                // It may have ended its side only, and wait for what we say.
                Ok(Ok(0)) => return Ok(Err(Refusal::Malformed(Malformed::Truncated))),
                Ok(received) => drop(received?),
                Err(_) => return Ok(Err(Refusal::Slow)),
            }
        }
    }
}
