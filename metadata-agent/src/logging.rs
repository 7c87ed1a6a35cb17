//! What is logged, changeable while the agent runs, and the eBPF programs' log records.
use std::io::BufWriter;

use anyhow::Context as _;
use aya_log::EbpfLogger;
use tokio::io::{Interest, unix::AsyncFd};
use tracing::warn;
use tracing_appender::non_blocking::WorkerGuard;
use tracing_subscriber::{
    EnvFilter, Registry, fmt, layer::SubscriberExt as _, reload, util::SubscriberInitExt as _,
};

/// The filter in force.
#[derive(Debug, Clone)]
pub struct LogFilter(reload::Handle<EnvFilter, Registry>);

impl LogFilter {
    /// Sends records to standard error, where a service manager collects them. `RUST_LOG` wins over `debug`.
    ///
    /// They are written by a thread of their own, and dropped rather than waited for when nobody takes them: a log
    /// that is stuck must not keep guests from booting. The guard writes out what is left when it is dropped.
    pub fn install(debug: bool) -> anyhow::Result<(Self, WorkerGuard)> {
        let default =
            if debug { "debug,aya=info,aya_obj=info,hyper=info,hyper_util=info,rustls=info" } else { "info" };
        let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(default));
        let (filter, handle) = reload::Layer::new(filter);
        let (writer, guard) = tracing_appender::non_blocking(BufWriter::new(std::io::stderr()));
        let records = fmt::layer().with_writer(writer).with_ansi(false);
        tracing_subscriber::registry()
            .with(filter)
            .with(records)
            .try_init()
            .context("logging is set up already")?;
        Ok((Self(handle), guard))
    }

    /// Sets the filter, in the syntax of `RUST_LOG`.
    pub fn set(&self, filter: &str) -> anyhow::Result<()> {
        let filter: EnvFilter = filter.parse()?;
        self.0.reload(filter).context("cannot change the filter")
    }
}

/// Passes the programs' records on, for ever. They are written only while an operator wants them.
pub async fn follow_datapath(logger: EbpfLogger<&'static dyn log::Log>) {
    // SAFETY: the logger owns its descriptor, keeps it open for its whole life and always gives the same one.
    let mut logger = match unsafe { AsyncFd::register_with_interest(logger, Interest::READABLE) } {
        Ok(logger) => logger,
        Err(error) => {
            warn!(?error, "log records of the datapath are not available");
            return;
        }
    };
    while let Ok(mut guard) = logger.readable_mut().await {
        guard.get_inner_mut().flush();
        guard.clear_ready();
    }
}
