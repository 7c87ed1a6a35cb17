//! The service manager's store of descriptors: sockets that guests connect to live on there while an agent is stopped to be
//! started again, so that connections wait for the next one and are not refused (sd_pid_notify_with_fds(3)).
#![forbid(unsafe_code)]
use std::{net::TcpListener, os::fd::AsFd as _};

use sd_notify::NotifyState;
use tracing::warn;

use crate::descriptors::own;

/// The sockets' name in the store.
const NAME: &str = "guests";

/// The sockets of a former agent.
pub fn take() -> Vec<TcpListener> {
    let stored = match sd_notify::listen_fds_with_names() {
        Ok(stored) => stored,
        Err(error) => {
            warn!(%error, "the sockets that the service manager keeps cannot be had");
            return Vec::new();
        }
    };
    stored
        .map(|(raw, name)| (own(raw), name))
        .filter(|(_, name)| name == NAME)
        .map(|(fd, _)| fd.into())
        .collect()
}

/// Gives the sockets to the service manager, in place of those that it has. Tells whether it keeps them.
pub fn keep<'a>(sockets: impl Iterator<Item = &'a TcpListener>) -> bool {
    // systemd tells so since 254; before, our unit does.
    let has_store = std::env::var("FDSTORE").is_ok_and(|places| places != "0");
    if !has_store || std::env::var_os("NOTIFY_SOCKET").is_none() {
        return false;
    }
    let remove = sd_notify::notify(&[NotifyState::FdStoreRemove, NotifyState::FdName(NAME)]);
    let descriptors: Vec<_> = sockets.map(|socket| socket.as_fd()).collect();
    // Those of a successor's that do not listen yet look like broken ones to a poll.
    let kept = [NotifyState::FdStore, NotifyState::FdName(NAME), NotifyState::Custom("FDPOLL=0")];
    let stored = remove.and_then(|()| sd_notify::notify_with_fds(&kept, &descriptors));
    if let Err(error) = &stored {
        warn!(%error, "the service manager does not keep the sockets: guests that connect during a restart try again");
    }
    stored.is_ok()
}
