//! Reading without a buffer for each connection: most of them are idle most of the time.
use std::{
    cell::RefCell,
    future::{pending, poll_fn},
    io,
    pin::Pin,
    task::{Poll, ready},
};

use bytes::BytesMut;
use tokio::io::{AsyncRead, ReadBuf};

/// Bytes taken at once.
const AT_ONCE: usize = 32 * 1024;

thread_local! {
    static SCRATCH: RefCell<Box<[u8]>> = RefCell::new(vec![0; AT_ONCE].into());
}

/// Appends what is there, waiting for something to be; 0 at the end. Memory is taken for what came, when it came.
pub(super) async fn receive(
    stream: &mut (impl AsyncRead + Unpin),
    received: &mut BytesMut,
) -> io::Result<usize> {
    poll_fn(|context| {
        SCRATCH.with_borrow_mut(|scratch| {
            let mut buffer = ReadBuf::new(scratch);
            ready!(Pin::new(&mut *stream).poll_read(context, &mut buffer))?;
            received.extend_from_slice(buffer.filled());
            Poll::Ready(Ok(buffer.filled().len()))
        })
    })
    .await
}

/// Bytes of a next request that are taken while the answer to this one is awaited: to see the end behind them.
const AHEAD: usize = 4096;

/// Waits for as long as the guest is there, and returns how it went away. What it says meanwhile is kept. One that ends its
/// side, which `ended` is told, may still wait for its answer: there is nothing more to be seen of it until it is sent some.
pub(super) async fn departure(
    stream: &mut (impl AsyncRead + Unpin),
    received: &mut BytesMut,
    ended: impl FnOnce(),
) -> io::Error {
    while received.len() < AHEAD {
        match receive(stream, received).await {
            Ok(0) => {
                ended();
                break;
            }
            Ok(_) => {}
            Err(error) => return error,
        }
    }
    pending().await
}
