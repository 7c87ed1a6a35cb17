//! Ends a haproxy of the other agent's, and nobody else, whoever has its number by then.
use std::{
    fs,
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::fs::MetadataExt as _,
    },
    path::Path,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::signal::Signal,
};

use crate::descriptors;

/// Time for haproxy to answer what is under way, and then to end.
const PATIENCE: Duration = Duration::from_secs(5);
/// Name of its program.
pub(super) const NAME: &str = "haproxy";

/// Ends the process if it is haproxy in that network namespace, which is named by a file. What is under way is answered
/// (SIGUSR1); then the process ends, whatever it does. A process that has ended, or is another one by now, is none to end.
pub(super) fn end(process: u32, namespace: &Path) -> Result<(), String> {
    let failed = |error: &dyn std::fmt::Display| format!("{NAME} ({process}): {error}");
    let descriptor = match descriptors::process(process) {
        Err(error) if error.raw_os_error() == Some(Errno::ESRCH as i32) => return Ok(()),
        descriptor => descriptor.map_err(|error| failed(&error))?,
    };
    // From here on the descriptor is of one process. If that has ended, what is read here may be of another one, and the
    // signal goes to nobody.
    if !is_haproxy_in(process, namespace).map_err(|error| failed(&error))? {
        return Ok(());
    }
    for signal in [Signal::SIGUSR1, Signal::SIGTERM, Signal::SIGKILL] {
        match descriptors::send(&descriptor, signal) {
            Err(error) if error.raw_os_error() == Some(Errno::ESRCH as i32) => return Ok(()),
            sent => sent.map_err(|error| failed(&error))?,
        }
        if ends(&descriptor).map_err(|error| failed(&error))? {
            return Ok(());
        }
    }
    Err(failed(&"it does not end"))
}

fn is_haproxy_in(process: u32, namespace: &Path) -> std::io::Result<bool> {
    let folder = format!("/proc/{process}");
    let name = fs::read_to_string(format!("{folder}/comm")).unwrap_or_default();
    // One that has ended is in none.
    let Ok(of_process) = fs::metadata(format!("{folder}/ns/net")) else { return Ok(false) };
    let meant = fs::metadata(namespace)?;
    Ok(name.trim_end() == NAME && (of_process.dev(), of_process.ino()) == (meant.dev(), meant.ino()))
}

/// True if the process ends in time.
fn ends(process: &OwnedFd) -> nix::Result<bool> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(process.as_fd(), PollFlags::POLLIN)], timeout) {
            Err(Errno::EINTR) => {}
            ended => return Ok(ended? > 0),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command};

    use super::*;

    /// A process of any name, in the namespace of this one.
    fn named(name: &str) -> (std::path::PathBuf, Child) {
        let folder = std::env::temp_dir().join(format!("end-{}-{name}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let program = folder.join(name);
        std::os::unix::fs::symlink("/bin/sleep", &program).unwrap();
        let child = Command::new(&program).arg("300").spawn().unwrap();
        let is_there =
            || fs::read_to_string(format!("/proc/{}/comm", child.id())).unwrap().trim_end() == name;
        while !is_there() {
            std::thread::sleep(Duration::from_millis(1));
        }
        (folder, child)
    }

    #[test]
    fn only_haproxy_in_that_namespace_ends() {
        let own = Path::new("/proc/self/ns/net");
        let (folder, mut stranger) = named("stranger");
        end(stranger.id(), own).unwrap();
        assert_eq!(stranger.try_wait().unwrap(), None);
        let (others, mut haproxy) = named(NAME);
        end(haproxy.id(), Path::new("/proc/self/ns/mnt")).unwrap();
        assert_eq!(haproxy.try_wait().unwrap(), None);
        end(haproxy.id(), own).unwrap();
        // By the first signal: it is not awaited before, and its number is its own until then.
        let status = haproxy.wait().unwrap();
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(Signal::SIGUSR1 as i32));
        end(haproxy.id(), own).unwrap();
        stranger.kill().unwrap();
        stranger.wait().unwrap();
        for folder in [folder, others] {
            fs::remove_dir_all(folder).unwrap();
        }
    }
}
