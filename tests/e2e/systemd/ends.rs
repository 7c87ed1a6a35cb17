//! Ends of the agent: killed, hung, restarted or stopped, it is followed by another one, and guests are served.

use std::{thread, time::Duration};

use anyhow::{Context as _, Result, ensure};
use metadata_tests::{service::PATIENCE, wait::until};

use super::{counter, is_answered_as, left_behind, on_host, while_guests_ask};

const ENDED_WELL: &str = "metadata-agent.service: Deactivated successfully.";

/// Known guests are served by the other process meanwhile.
#[test]
#[ignore = "for a machine whose init is systemd: cargo xtask vm-test"]
fn nobody_notices_that_the_agent_is_killed() -> Result<()> {
    on_host(|host| {
        host.serves()?;
        let pid = host.service.pid()?;
        let repeated = || host.guests.iter().map(|guest| guest.netns.repeated_syns()).sum::<Result<u64>>();
        let before = repeated()?;
        while_guests_ask(host, || {
            host.service.systemctl("kill --kill-whom=main --signal=KILL")?;
            until("there is another one", PATIENCE, || {
                ensure!(host.service.pid()? != pid);
                host.service.has(&["ActiveState=active", "SubState=running"])
            })
        })?;
        assert_eq!(repeated()?, before, "a guest found nobody");
        // The service manager and the process that was left had the same sockets.
        host.service.has(&["NFileDescriptorStore=4"])?;
        host.serves()
    })
}

/// The service manager ends an agent that gives no sign of life, and the successor of one that is reloaded as well.
#[test]
#[ignore = "for a machine whose init is systemd: cargo xtask vm-test"]
fn nobody_notices_that_the_agent_hangs() -> Result<()> {
    on_host(|host| {
        host.serves()?;
        host.service.has(&["WatchdogUSec=3min"])?;
        host.service.set_watchdog(Some("3s"))?;
        host.service.systemctl("restart")?;
        for is_reloaded in [false, true] {
            let mut pid = host.service.pid()?;
            if is_reloaded {
                pid = host.service.reload()?;
                // One that lives is left alone for longer than that.
                thread::sleep(2 * Duration::from_secs(3));
                assert_eq!(host.service.pid()?, pid, "an agent that is well was ended");
            }
            while_guests_ask(host, || {
                host.service.systemctl("kill --kill-whom=main --signal=STOP")?;
                until("there is another one", PATIENCE, || {
                    ensure!(host.service.pid()? != pid);
                    host.service.has(&["ActiveState=active", "SubState=running"])
                })
            })?;
            host.serves()?;
        }
        host.service.set_watchdog(None)?;
        host.service.systemctl("restart")?;
        host.serves()
    })
}

/// A unit that is given a watchdog while its service runs has it from the next start on: a successor before that says so.
#[test]
#[ignore = "for a machine whose init is systemd: cargo xtask vm-test"]
fn a_watchdog_that_came_after_the_start_is_missed() -> Result<()> {
    const UNWATCHED: &str = "the service manager waits for no signs of life";
    on_host(|host| {
        let said = || Ok::<_, anyhow::Error>(host.service.log()?.matches(UNWATCHED).count());
        host.serves()?;
        host.service.set_watchdog(Some("0"))?;
        host.service.systemctl("restart")?;
        host.serves()?;
        let before = said()?;
        host.service.set_watchdog(None)?;
        host.service.reload()?;
        host.service.wait_said(UNWATCHED, before)?;
        host.service.systemctl("restart")?;
        host.service.reload()?;
        host.serves()?;
        assert_eq!(said()?, before + 1, "it is said of one that is watched");
        Ok(())
    })
}

/// Sockets that a successor has made for more workers are kept by the service manager like those before them.
#[test]
#[ignore = "for a machine whose init is systemd: cargo xtask vm-test"]
fn sockets_of_more_workers_are_kept_as_well() -> Result<()> {
    on_host(|host| {
        host.serves()?;
        host.service.configure("workers = 3\n")?;
        host.service.reload()?;
        host.serves()?;
        host.service.has(&["NFileDescriptorStore=6"])?;
        while_guests_ask(host, || host.service.systemctl("restart"))?;
        host.service.has(&["NFileDescriptorStore=6"])?;
        // With fewer workers all of them stay in use, until the service is stopped.
        host.service.configure("")?;
        host.service.systemctl("stop")?;
        host.service.systemctl("start")?;
        host.serves()?;
        host.service.has(&["NFileDescriptorStore=4"])
    })
}

#[test]
#[ignore = "for a machine whose init is systemd: cargo xtask vm-test"]
fn a_restart_loses_nobody() -> Result<()> {
    on_host(|host| {
        host.serves()?;
        let (before, learned) = (left_behind()?, counter(host, "source_learned")?);
        let pid = host.service.pid()?;
        // One socket of each family for each of two workers is kept meanwhile.
        host.service.has(&["NFileDescriptorStore=4"])?;
        while_guests_ask(host, || host.service.systemctl("restart"))?;
        assert_ne!(host.service.pid()?, pid);
        host.service.has(&["NFileDescriptorStore=4"])?;
        assert_eq!(left_behind()?, before);
        assert_eq!(counter(host, "source_learned")?, learned);
        Ok(())
    })
}

#[test]
#[ignore = "for a machine whose init is systemd: cargo xtask vm-test"]
fn a_guest_that_asks_while_it_is_stopped_is_answered_later() -> Result<()> {
    on_host(|host| {
        host.serves()?;
        let (before, ended) = (left_behind()?, host.service.log()?.matches(ENDED_WELL).count());
        host.service.systemctl("stop")?;
        host.service.has(&["ActiveState=inactive"])?;
        // What systemd does not say of one that failed, or that had to be killed in the end.
        host.service.wait_said(ENDED_WELL, ended)?;
        assert_eq!(left_behind()?, before);
        thread::scope(|scope| {
            let asking =
                host.guests.each_ref().map(|guest| scope.spawn(|| is_answered_as(guest, &guest.port)));
            for guest in &host.guests {
                until("the guest tries to connect", PATIENCE, || {
                    ensure!(guest.netns.is_connecting(80)?);
                    Ok(())
                })?;
            }
            host.service.systemctl("start")?;
            for guest in asking {
                guest.join().ok().context("a guest's thread panicked")??;
            }
            Ok(())
        })
    })
}

#[test]
#[ignore = "for a machine whose init is systemd: cargo xtask vm-test"]
fn a_killed_agent_is_started_again() -> Result<()> {
    on_host(|host| {
        host.serves()?;
        let (before, pid) = (left_behind()?, host.service.property("MainPID")?);
        host.service.systemctl("kill --signal KILL")?;
        // What it had accepted ends with it; what comes afterwards is the next one's.
        until("the agent is killed", PATIENCE, || {
            ensure!(host.service.property("MainPID")? != pid);
            Ok(())
        })?;
        host.serves()?;
        host.service.has(&["NRestarts=1", "ActiveState=active"])?;
        assert_eq!(left_behind()?, before);
        // However often it is killed.
        host.service.has(&["StartLimitIntervalUSec=0"])
    })
}
