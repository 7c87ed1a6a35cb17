//! Nova: pooled connections, time-outs, and the one retry that is safe.
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioTimer},
};

use super::{answer::Refusal, forward::Target};
use crate::{config::Nova, error_chain::chain};

/// An idle connection older than this is not used again: nova's servers close theirs after a while, and a request
/// sent into a closing connection is lost.
const POOL_IDLE: Duration = Duration::from_secs(20);
/// Idle connections kept.
const POOL_SIZE: usize = 32;

/// The way to Nova.
#[derive(Debug, Clone)]
pub struct Upstream {
    client: Client<HttpConnector, Full<Bytes>>,
    target: Target,
    response_timeout: Duration,
}

impl Upstream {
    /// Must be called on the runtime that will use it.
    pub fn new(nova: &Nova) -> Result<Self, http::Error> {
        let mut connector = HttpConnector::new();
        connector.set_connect_timeout(Some(nova.connect_timeout));
        connector.set_nodelay(true);
        let client = Client::builder(TokioExecutor::new())
            .pool_idle_timeout(POOL_IDLE)
            .pool_max_idle_per_host(POOL_SIZE)
            .pool_timer(TokioTimer::new())
            .set_host(false)
            .build(connector);
        Ok(Self { client, target: Target::new(&nova.authority())?, response_timeout: nova.response_timeout })
    }

    /// What requests are addressed to.
    pub fn target(&self) -> &Target {
        &self.target
    }

    /// Sends a request; returns when the head of the answer is there.
    pub async fn send(&self, request: Request<Full<Bytes>>) -> Result<Response<Incoming>, Refusal> {
        let send = self.send_or_retry(request);
        match tokio::time::timeout(self.response_timeout, send).await {
            Err(_) => {
                tracing::warn!(
                    nova = self.target.authority(),
                    seconds = self.response_timeout.as_secs_f64(),
                    "nova did not answer in time"
                );
                Err(Refusal::Timeout)
            }
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) => {
                tracing::warn!(nova = self.target.authority(), error = %chain(&error), "nova cannot be reached");
                Err(Refusal::Unreachable)
            }
        }
    }

    /// A pooled connection may have died just as it was used. A request that was not written is sent again by the
    /// client itself; one that was, only if asking twice is the same as asking once.
    async fn send_or_retry(
        &self,
        request: Request<Full<Bytes>>,
    ) -> Result<Response<Incoming>, hyper_util::client::legacy::Error> {
        let safe = request.method() == Method::GET || request.method() == Method::HEAD;
        let again = safe.then(|| request.clone());
        match (self.client.request(request).await, again) {
            (Err(error), Some(again)) if !error.is_connect() => {
                tracing::debug!(error = %chain(&error), "connection to nova broke, asking again");
                self.client.request(again).await
            }
            (result, _) => result,
        }
    }
}
