//! One guest-facing process: this program again, with nothing but a channel.
use std::{
    io,
    os::{fd::OwnedFd, unix::process::CommandExt as _, unix::process::ExitStatusExt as _},
    process::{Child, Command, ExitStatus, Stdio},
};

use nix::sys::signal::Signal;
use tokio::io::{Interest, unix::AsyncFd};

use crate::{descriptors, packets::Channel};

/// This program as a guest-facing process. Not by a name: another version may be installed there by now.
pub fn command() -> Command {
    let mut command = Command::new("/proc/self/exe");
    command.arg0("metadata-agent").arg("proxy").env_clear();
    command
}

/// Command line of a guest-facing process, as `/proc/<pid>/cmdline` has it.
pub(super) const COMMAND_LINE: &[u8] = b"metadata-agent\0proxy\0";

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
