//! Thread that signs handshakes with Nova for a guest-facing process, which does not have the private key.
use std::{io, os::fd::OwnedFd, sync::Arc, thread};

use tracing::warn;

use crate::{link::signing, nova::Dialler, packets::Channel};

/// Starts one; gives the end of the channel that is for the process. It ends with that one.
pub(super) fn start(dialler: Arc<Dialler>) -> io::Result<OwnedFd> {
    let (ours, theirs) = Channel::pair()?;
    let serve = move || {
        if let Err(error) = signing::serve(&ours, || dialler.key()) {
            warn!(%error, "handshakes with nova are not signed any more");
        }
    };
    thread::Builder::new().name("metadata-signer".to_owned()).spawn(serve)?;
    Ok(theirs.into())
}
