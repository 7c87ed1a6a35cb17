//! One guest-facing process: this program again, with nothing but a channel.
use std::{
    fs, io,
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::process::CommandExt as _,
        unix::process::ExitStatusExt as _,
    },
    process::{Child, Command, ExitStatus, Stdio},
    time::Duration,
};

use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::signal::Signal,
};
use tokio::io::{Interest, unix::AsyncFd};

use crate::{descriptors, link::NAME, packets::Channel};

/// This program as a guest-facing process. Not by a name: another version may be installed there by now.
pub fn command() -> Command {
    let mut command = Command::new("/proc/self/exe");
    command.arg0("metadata-agent").arg("proxy").env_clear();
    command
}

/// A running process. It is killed when this is dropped.
#[derive(Debug)]
pub(super) struct Process {
    child: Child,
    /// Can be read when it has ended.
    end: AsyncFd<OwnedFd>,
}

impl Process {
    /// Starts one; gives the channel to it as well.
    pub(super) fn start(mut command: Command) -> io::Result<(Self, Channel)> {
        let (ours, theirs) = Channel::pair()?;
        command.stdin(Stdio::from(OwnedFd::from(theirs))).stdout(Stdio::null());
        // What a terminal sends to a group of processes is for the other one.
        command.process_group(0);
        let mut child = command.spawn()?;
        let end = descriptors::process(child.id())
            .and_then(|process| descriptors::watch(process, Interest::READABLE));
        match end {
            Ok(end) => Ok((Self { child, end }, ours)),
            Err(error) => {
                let _ = child.kill();
                let _ = child.wait();
                Err(error)
            }
        }
    }

    pub(super) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Waits until it has ended; tells how. May be cancelled.
    pub(super) async fn ended(&mut self) -> String {
        // That it can be waited for, nothing else makes it readable.
        if let Err(error) = self.end.readable().await {
            return format!("it cannot be watched: {error}");
        }
        match self.child.wait() {
            Ok(status) => tell(status),
            Err(error) => format!("it cannot be waited for: {error}"),
        }
    }

    pub(super) fn kill(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
        let _ = self.child.wait();
    }
}

/// A guest-facing process that is no child of this one.
#[derive(Debug)]
pub(super) struct Former(OwnedFd);

impl Former {
    /// The process with that id, if it is a guest-facing one.
    pub(super) fn find(id: u32) -> Option<Self> {
        let process = descriptors::process(id).ok()?;
        let name = fs::read(format!("/proc/{id}/comm")).ok()?;
        (name.strip_suffix(b"\n") == Some(NAME.to_bytes())).then_some(Self(process))
    }

    /// Waits until it has ended, for so long at most. Tells whether it has.
    pub(super) fn has_ended(&self, within: Duration) -> bool {
        let limit = PollTimeout::try_from(within).unwrap_or(PollTimeout::MAX);
        poll(&mut [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)], limit).is_ok_and(|ended| ended > 0)
    }

    pub(super) fn kill(&self) {
        // It may have ended.
        let _ = descriptors::send(&self.0, Signal::SIGKILL);
    }
}

fn tell(status: ExitStatus) -> String {
    match status.signal().map(Signal::try_from) {
        Some(Ok(Signal::SIGSYS)) => {
            "it made a system call that it may not make (SIGSYS), and was killed".to_owned()
        }
        Some(Ok(Signal::SIGKILL)) => "it was killed (SIGKILL), perhaps for want of memory".to_owned(),
        Some(Ok(Signal::SIGABRT)) => {
            "it has found an error in itself (SIGABRT), which the log tells".to_owned()
        }
        Some(Ok(signal)) => format!("it was ended by {signal}"),
        _ => status.to_string(),
    }
}
