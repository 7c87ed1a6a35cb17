//! Reasons of a disconnection, in words for operators.

use std::io;
use std::path::Path;
use std::time::Duration;

use tokio::time::Instant;

use crate::config::TlsConfig;
use crate::session::Hangup;
use crate::splitter::SplitError;
use crate::tls::{self, TlsError};
use crate::transport::ConnectError;

/// Reason for which there is no connection.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DisconnectReason {
    /// No connection could be made.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The server closed the connection.
    #[error("the server closed the connection")]
    Closed,
    /// The server closed the connection before it sent anything.
    #[error("the server broke the connection off without a word (does it expect ssl: there?)")]
    Rejected,
    /// The connection broke.
    #[error("the connection broke: {0}")]
    Io(io::Error),
    /// The bytes received were no stream of messages.
    #[error(transparent)]
    Split(#[from] SplitError),
    /// The server is of no use, or misbehaved.
    #[error(transparent)]
    Session(#[from] Hangup),
    /// The program asked for another connection.
    #[error("another connection was asked for")]
    Asked,
    /// The server is none of the remotes any more.
    #[error("the server is no longer among those to be used")]
    NotListed,
}

/// Progress of a connection.
#[derive(Default)]
pub(super) struct Progress {
    /// True if the server sent anything.
    pub(super) heard: bool,
    /// Time at which monitoring began.
    pub(super) ready: Option<Instant>,
}

impl Progress {
    /// Time for which a connection that ended for `reason` was of use. One whose contents could not be applied was of
    /// none: the next may bring the same again, which must not be asked for without end and without delay.
    pub(super) fn lasted(&self, reason: &DisconnectReason) -> Duration {
        match (reason, self.ready) {
            (DisconnectReason::Session(Hangup::Inconsistent(_)), _) | (_, None) => Duration::ZERO,
            (_, Some(ready)) => ready.elapsed(),
        }
    }
}

impl DisconnectReason {
    /// True if the program wanted it, so that the next attempt need not wait.
    pub(super) fn is_wanted(&self) -> bool {
        matches!(self, Self::Asked | Self::NotListed)
    }

    /// Finds the cause of a broken connection; it may be about the certificates if there were any.
    pub(super) fn explain(self, progress: &Progress, tls: Option<&TlsConfig>) -> Self {
        let broken_off = |certificate: &Path, error| {
            Self::from(ConnectError::from(TlsError::BrokenOff { certificate: certificate.to_owned(), error }))
        };
        let is_tls = |error: &io::Error| error.get_ref().is_some_and(|inner| inner.is::<rustls::Error>());
        match (self, tls) {
            (Self::Io(error), Some(files)) if is_tls(&error) => {
                ConnectError::from(tls::explain(error, files)).into()
            }
            (Self::Io(error), Some(files)) if !progress.heard => broken_off(&files.certificate, error),
            (Self::Closed, Some(files)) if !progress.heard => {
                broken_off(&files.certificate, io::ErrorKind::UnexpectedEof.into())
            }
            (Self::Closed | Self::Io(_), None) if !progress.heard => Self::Rejected,
            (reason, _) => reason,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_whose_contents_cannot_be_applied_was_of_no_use() {
        let progress = Progress { heard: true, ready: Some(Instant::now()) };
        std::thread::sleep(Duration::from_millis(2));
        assert!(progress.lasted(&DisconnectReason::Closed) > Duration::ZERO);
        let inconsistent = Hangup::Inconsistent("column x".to_owned()).into();
        assert_eq!(progress.lasted(&inconsistent), Duration::ZERO);
        assert_eq!(Progress::default().lasted(&DisconnectReason::Closed), Duration::ZERO);
    }
}
