//! Set-up of logging: a filter, changeable while the agent runs, and the eBPF programs' log records.
use std::panic;

use anyhow::Context as _;
use aya_log::EbpfLogger;
use tokio::io::{Interest, unix::AsyncFd};
use tracing::warn;
use tracing_subscriber::{
    EnvFilter, Registry, fmt, layer::SubscriberExt as _, reload, util::SubscriberInitExt as _,
};

use crate::log_writer::{LogGuard, LogWriter};

/// The filter in force.
#[derive(Debug, Clone)]
pub struct LogFilter(reload::Handle<EnvFilter, Registry>);

impl LogFilter {
    /// Sends records to standard error, where a service manager collects them. `RUST_LOG` wins over `debug`.
    ///
    /// The guard writes what is left when it is dropped.
    pub fn install(debug: bool) -> anyhow::Result<(Self, LogGuard)> {
        let default =
            if debug { "debug,aya=info,aya_obj=info,hyper=info,hyper_util=info,rustls=info" } else { "info" };
        let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(default));
        let (filter, handle) = reload::Layer::new(filter);
        let (writer, guard) = LogWriter::start(std::io::stderr()).context("cannot start a thread")?;
        let (last_words, hook) = (writer.clone(), panic::take_hook());
        panic::set_hook(Box::new(move |panic| {
            last_words.flush_to(std::io::stderr());
            hook(panic);
        }));
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
#[allow(unsafe_code, reason = "a promise about a descriptor, which it is not asked for otherwise")]
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
