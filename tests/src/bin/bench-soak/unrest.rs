//! Unrest around the agent: taps come and go all the time, and now and then a database or Nova is gone for a while.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::Result;
use metadata_tests::{
    check::own_identity,
    cloud::{Chassis as _, Cloud},
    guest::Guest,
    ovn::Lab,
    port::METADATA_PORT,
    wait::until,
};

/// Time for which a database is gone, and Nova.
const AWAY: [Duration; 2] = [Duration::from_secs(3), Duration::from_secs(2)];
/// Most time that a tap takes to go and come: none goes later than that before a period's end.
const LEFT: Duration = Duration::from_secs(3);
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub(crate) struct Unrest<'a> {
    guests: &'a [Guest],
    next: usize,
    happened: Vec<&'static str>,
    /// Taps that went and came.
    taps: usize,
}

impl<'a> Unrest<'a> {
    pub(crate) fn new(guests: &'a [Guest]) -> Self {
        Self { guests, next: 0, happened: Vec::new(), taps: 0 }
    }

    /// Number of taps and the events since this was last called.
    pub(crate) fn take(&mut self) -> (usize, Vec<&'static str>) {
        (std::mem::take(&mut self.taps), std::mem::take(&mut self.happened))
    }

    /// Makes the unrest of the period of that number, which ends at `end`.
    pub(crate) fn stir(&mut self, cloud: &mut Cloud<Lab>, number: u32, end: Instant) -> Result<()> {
        match number % 9 {
            2 => {
                self.happened.push("the Southbound was restarted");
                cloud.chassis.kill_southbound()?;
                thread::sleep(AWAY[0]);
                cloud.chassis.start_southbound()?;
            }
            5 => {
                self.happened.push("Open vSwitch's database was restarted");
                cloud.chassis.kill_ovs_database()?;
                thread::sleep(AWAY[0]);
                cloud.chassis.start_ovs_database()?;
            }
            8 => {
                self.happened.push("Nova was restarted");
                cloud.nova.pause();
                thread::sleep(AWAY[1]);
                cloud.nova.resume(cloud.chassis.host())?;
            }
            _ => {
                while Instant::now() + LEFT < end {
                    self.replug(cloud)?;
                }
            }
        }
        Ok(())
    }

    /// A machine is unplugged, has a new tap, and is plugged again; it is itself.
    fn replug(&mut self, cloud: &Cloud<Lab>) -> Result<()> {
        let guest = &self.guests[self.next % self.guests.len()];
        self.next += 1;
        cloud.chassis.unplug(guest)?;
        cloud.chassis.stop_tap(guest)?;
        cloud.agent.wait_gone(&guest.port.tap)?;
        cloud.chassis.start_tap(guest)?;
        cloud.chassis.plug(guest)?;
        cloud.agent.wait_served(guest, cloud.chassis.ifindex(guest)?)?;
        guest.configure(Some((METADATA_PORT, "fa:16:3e:aa:bb:cc")))?;
        until("the machine is answered", PATIENCE, || own_identity(guest))?;
        self.taps += 1;
        Ok(())
    }
}
