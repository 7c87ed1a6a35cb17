//! The sources behind the ports, as the datapath knows them.
use std::{net::IpAddr, sync::Arc};

use metadata_ebpf::address::Tag;

/// The sources behind the ports, as the datapath has learned them.
pub trait Sources: std::fmt::Debug + Send + Sync + 'static {
    /// The address a guest really used, if it is still known; for the log only, never for identity.
    fn source(&self, tag: Tag) -> Option<IpAddr>;

    /// Notes that this source has one more connection open, for which it keeps its place.
    fn opened(&self, tag: Tag);

    /// Notes that it has one less.
    fn closed(&self, tag: Tag);
}

/// A connection that its source keeps its place for.
#[derive(Debug)]
pub struct OpenConnection {
    sources: Arc<dyn Sources>,
    tag: Tag,
}

impl OpenConnection {
    /// Of the source behind a tag, until it is dropped.
    pub fn new(sources: Arc<dyn Sources>, tag: Tag) -> Self {
        sources.opened(tag);
        Self { sources, tag }
    }
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.sources.closed(self.tag);
    }
}
