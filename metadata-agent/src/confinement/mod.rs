//! Confinement of the guest-facing process (privilege separation): what it gives up before a guest can say anything to it.
//!
//! It has a user of its own, no capability in any set, an empty root directory, no way to gain privileges by a program, no
//! core dumps and nobody who may look into it, and two filters of system calls (seccomp). What a machine does not have, or
//! does not let this process have, is told and done without.
#![forbid(unsafe_code)]
mod syscalls;

use std::{io, path::Path};

use caps::CapSet;
use nix::{
    sys::{
        prctl,
        signal::{SigSet, Signal},
    },
    unistd::{Gid, Uid, chdir, chroot, setgroups, setresgid, setresuid},
};

use crate::link::{Confinement, NAME};

/// Gives up everything that is of one thread, and inherited by those that it starts: to be called before there are any.
/// Tells what could not be given up.
pub fn give_up_privileges(confinement: &Confinement) -> Vec<String> {
    let Confinement { uid, gid, root } = confinement;
    let mut lacking = Vec::new();
    let mut note = |what: &str, result: io::Result<()>| {
        if let Err(error) = result {
            lacking.push(format!("{what}: {error}"));
        }
    };
    // What lists of processes show; it was started by another name.
    note("name", prctl::set_name(NAME).map_err(Into::into));
    // It is told to end over its channel: signals to a whole group or unit are for the other process.
    let others = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGUSR1, Signal::SIGUSR2];
    note("signals", SigSet::from_iter(others).thread_block().map_err(Into::into));
    // Which there are is told by /proc, which the next step takes away.
    note("capabilities could be gained (bounding set)", empty(CapSet::Bounding));
    note("no empty root directory", enter(root));
    note("no user of its own", become_user(Uid::from_raw(*uid), Gid::from_raw(*gid)));
    for set in [CapSet::Ambient, CapSet::Inheritable, CapSet::Effective, CapSet::Permitted] {
        note("it keeps capabilities", empty(set));
    }
    note("privileges could be gained by a program", prctl::set_no_new_privs().map_err(Into::into));
    // Nor may other processes of its user trace it, or read its memory.
    note("its memory could be dumped", prctl::set_dumpable(false).map_err(Into::into));
    lacking
}

/// Gives up the system calls that serving guests does not need, for all threads: to be called when all have been started.
/// Tells what could not be given up.
pub fn give_up_system_calls() -> Vec<String> {
    let lacking = |error| format!("no filter of system calls (seccomp): {error}");
    syscalls::filter().err().map(lacking).into_iter().collect()
}

fn enter(root: &Path) -> io::Result<()> {
    chroot(root)?;
    Ok(chdir("/")?)
}

fn become_user(uid: Uid, gid: Gid) -> io::Result<()> {
    setgroups(&[])?;
    setresgid(gid, gid, gid)?;
    Ok(setresuid(uid, uid, uid)?)
}

fn empty(set: CapSet) -> io::Result<()> {
    let emptied = match set {
        // There is no call for the whole of it.
        CapSet::Bounding => caps::read(None, set)
            .and_then(|held| held.into_iter().try_for_each(|capability| caps::drop(None, set, capability))),
        _ => caps::clear(None, set),
    };
    emptied.map_err(io::Error::other)
}
