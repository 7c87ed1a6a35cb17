//! Set-up of logging: a filter, changeable while the agent runs.
#![forbid(unsafe_code)]
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context as _;
use tracing_subscriber::{
    EnvFilter, Layer as _, Registry, fmt, layer::SubscriberExt as _, reload, util::SubscriberInitExt as _,
};

use crate::{
    config::LogFormat,
    log_format,
    log_writer::{LogGuard, LogWriter},
    panics,
};

/// The filter in force.
#[derive(Debug, Clone)]
pub struct LogFilter {
    handle: reload::Handle<EnvFilter, Registry>,
    text: Arc<Mutex<String>>,
}

impl LogFilter {
    /// Sends records to standard error, where a service manager collects them. `RUST_LOG` wins over `debug`.
    ///
    /// The guard writes what is left when it is dropped.
    pub fn install(debug: bool, format: LogFormat) -> anyhow::Result<(Self, LogGuard)> {
        let default =
            if debug { "debug,aya=info,aya_obj=info,hyper=info,hyper_util=info,rustls=info" } else { "info" };
        let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(default));
        Self::install_filter(filter, format)
    }

    /// The same, with a filter in the syntax of `RUST_LOG`.
    pub fn install_text(filter: &str, format: LogFormat) -> anyhow::Result<(Self, LogGuard)> {
        Self::install_filter(filter.parse()?, format)
    }

    fn install_filter(filter: EnvFilter, format: LogFormat) -> anyhow::Result<(Self, LogGuard)> {
        let text = Arc::new(Mutex::new(filter.to_string()));
        let (filter, handle) = reload::Layer::new(filter);
        let (writer, guard) = LogWriter::start(std::io::stderr()).context("cannot start a thread")?;
        let last_words = writer.clone();
        panics::end_the_process(move || last_words.flush_to(std::io::stderr()));
        let records = fmt::layer().with_writer(writer);
        let records = match format {
            LogFormat::Text => records.with_timer(log_format::Time).fmt_fields(log_format::Fields).boxed(),
            LogFormat::Json => records.json().flatten_event(true).boxed(),
        };
        tracing_subscriber::registry()
            .with(filter)
            .with(records)
            .try_init()
            .context("logging is set up already")?;
        Ok((Self { handle, text }, guard))
    }

    /// Sets the filter, in the syntax of `RUST_LOG`.
    pub fn set(&self, filter: &str) -> anyhow::Result<()> {
        let filter: EnvFilter = filter.parse()?;
        let text = filter.to_string();
        self.handle.reload(filter).context("cannot change the filter")?;
        *self.text.lock().unwrap_or_else(PoisonError::into_inner) = text;
        Ok(())
    }

    /// The filter in force, in the same syntax.
    pub fn text(&self) -> String {
        self.text.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
